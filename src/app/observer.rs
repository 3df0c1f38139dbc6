//! What happens to certificates, for all who want to know: metrics (one series for each name), deploys, the webhook.

use std::sync::Arc;

use crate::certs::{BudgetLeft, CertObserver, CertView};
use crate::deploy::Deployments;
use crate::name::HostPattern;
use crate::notify::Notifier;
use crate::telemetry::Metrics;

pub(super) struct Observers {
    pub(super) metrics: Arc<Metrics>,
    pub(super) deployments: Deployments,
    pub(super) notifier: Notifier,
}

impl CertObserver for Observers {
    fn ordered(&self, names: &[HostPattern], ok: bool) {
        for name in labels(names) {
            self.metrics.certificate_renewals(&name, if ok { "success" } else { "failure" }).inc();
        }
    }

    fn budgets(&self, left: &[BudgetLeft]) {
        self.metrics.acme_budgets(left.iter().map(|left| (left.ca.as_str(), left.limit, left.remaining)));
    }

    fn changed(&self, view: &CertView) {
        self.deployments.served(view);
        self.notifier.changed(view);
        for name in labels(&view.names) {
            if let Some((_, not_after)) = view.validity {
                self.metrics.certificate_not_after(&name, not_after);
            }
            if let Some(at) = view.next_at {
                self.metrics.certificate_next_action(&name, at);
            }
        }
    }

    fn forgotten(&self, names: &[HostPattern]) {
        self.deployments.forgotten(names);
        self.notifier.forgotten(names);
        for name in labels(names) {
            self.metrics.forget_certificate(&name);
        }
    }
}

fn labels(names: &[HostPattern]) -> impl Iterator<Item = Arc<str>> {
    names.iter().map(|name| name.to_string().into())
}
