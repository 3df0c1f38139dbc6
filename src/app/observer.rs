//! What happens to certificates, for all who want to know: metrics (one series for each name), deploys, the webhook.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::certs::{BudgetLeft, CertId, CertObserver, CertView};
use crate::deploy::Deployments;
use crate::name::HostPattern;
use crate::notify::Notifier;
use crate::telemetry::Metrics;

pub(super) struct Observers {
    pub(super) metrics: Arc<Metrics>,
    pub(super) deployments: Deployments,
    pub(super) notifier: Notifier,
    pub(super) names: Names,
}

/// Which certificates are for which names: several may be for one, and a series is gone with the last of them.
#[derive(Default)]
pub(super) struct Names(Mutex<Known>);

#[derive(Default)]
struct Known {
    certificates: HashMap<CertId, Vec<Arc<str>>>,
    names: HashMap<Arc<str>, BTreeMap<CertId, Dates>>,
}

#[derive(Clone, Copy)]
struct Dates {
    not_after: Option<SystemTime>,
    next: Option<SystemTime>,
}

impl CertObserver for Observers {
    fn ordered(&self, names: &[HostPattern], ok: bool) {
        let known = self.names.lock();
        // An order that ends after its certificate was forgotten does not bring the series back.
        for name in labels(names).filter(|name| known.names.contains_key(name)) {
            self.metrics.certificate_renewals(&name, if ok { "success" } else { "failure" }).inc();
        }
    }

    fn budgets(&self, left: &[BudgetLeft]) {
        self.metrics.acme_budgets(left.iter().map(|left| (left.ca.as_str(), left.limit, left.remaining)));
    }

    fn changed(&self, view: &CertView) {
        self.deployments.served(view);
        self.notifier.changed(view);
        let dates = Dates { not_after: view.validity.map(|(_, end)| end), next: view.next_at };
        let (mut known, now) = (self.names.lock(), labels(&view.names).collect::<Vec<_>>());
        let before = known.certificates.insert(view.id.clone(), now.clone()).unwrap_or_default();
        for name in &now {
            known.names.entry(name.clone()).or_default().insert(view.id.clone(), dates);
            self.show(&known, name);
        }
        // Files may be for other names than they were.
        for name in before.iter().filter(|name| !now.contains(name)) {
            self.drop_name(&mut known, name, &view.id);
        }
    }

    fn forgotten(&self, id: &CertId) {
        self.deployments.forgotten(id);
        self.notifier.forgotten(id);
        let mut known = self.names.lock();
        for name in known.certificates.remove(id).unwrap_or_default() {
            self.drop_name(&mut known, &name, id);
        }
    }
}

impl Observers {
    /// The gauges of a name are those of the certificate that is valid longest, which is the one that is served.
    fn show(&self, known: &Known, name: &Arc<str>) {
        let held = known.names.get(name).into_iter().flat_map(BTreeMap::values);
        let Some(best) = held.max_by_key(|dates| dates.not_after) else { return };
        if let Some(at) = best.not_after {
            self.metrics.certificate_not_after(name, at);
        }
        if let Some(at) = best.next {
            self.metrics.certificate_next_action(name, at);
        }
    }

    fn drop_name(&self, known: &mut Known, name: &Arc<str>, id: &CertId) {
        if let Some(held) = known.names.get_mut(name) {
            held.remove(id);
            if held.is_empty() {
                known.names.remove(name);
            }
        }
        match known.names.contains_key(name) {
            true => self.show(known, name),
            false => self.metrics.forget_certificate(name),
        }
    }
}

impl Names {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn labels(names: &[HostPattern]) -> impl Iterator<Item = Arc<str>> {
    names.iter().map(|name| name.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::Phase;
    use crate::clock::{self, SystemClock};
    use crate::issuer::IssuerId;
    use crate::storage::{MemoryStorage, Storage};
    use crate::task::{Shutdown, Supervisor};

    fn observers() -> Observers {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let (clock, metrics) = (Arc::new(SystemClock), Metrics::new("0"));
        let supervisor = Supervisor::new(Shutdown::new());
        Observers {
            deployments: Deployments::new(storage.clone(), clock.clone(), metrics.clone()),
            notifier: Notifier::start(storage, clock, metrics.clone(), &supervisor),
            metrics,
            names: Names::default(),
        }
    }

    fn view(names: &[&str], not_after: u64) -> CertView {
        let names: Vec<_> = names.iter().map(|name| HostPattern::parse(name).unwrap()).collect();
        CertView {
            id: CertId::of(&names),
            names: names.into(),
            issuer: IssuerId::new("model"),
            phase: Phase::Valid,
            serial: None,
            validity: Some((clock::at(1), clock::at(not_after))),
            next_at: Some(clock::at(not_after / 2)),
            reason: None,
            explanation: None,
            failures: 0,
            last_error: None,
            step: None,
        }
    }

    #[tokio::test]
    async fn series_go_with_the_last_certificate_of_a_name() {
        let observers = observers();
        let (one, both) = (view(&["a.test"], 4000), view(&["a.test", "b.test"], 2000));
        for view in [&one, &both] {
            observers.changed(view);
            observers.ordered(&view.names, true);
            observers.metrics.deploys(&view.names[0].to_string().into(), "success").inc();
        }
        let text = || observers.metrics.render();
        let ends = "starlock_certificate_not_after_timestamp_seconds{name=\"a.test\"}";
        assert!(text().contains(&format!("{ends} 4000.0")), "the one that is served: {}", text());
        observers.forgotten(&one.id);
        assert!(text().contains(&format!("{ends} 2000.0")), "another is for it: {}", text());
        assert!(text().contains("renewals_total{name=\"a.test\",result=\"success\"} 2"), "{}", text());
        observers.forgotten(&both.id);
        observers.ordered(&both.names, false);
        assert!(!text().contains(".test"), "{}", text());
    }

    #[tokio::test]
    async fn files_that_are_for_other_names_leave_no_series_behind() {
        let observers = observers();
        let before = view(&["a.test"], 4000);
        let after = CertView { names: view(&["b.test"], 4000).names, ..before.clone() };
        observers.changed(&before);
        observers.changed(&after);
        let text = observers.metrics.render();
        assert!(text.contains("b.test") && !text.contains("a.test"), "{text}");
    }
}
