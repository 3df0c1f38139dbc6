//! What the outside may see of a certificate.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::budgets::BudgetLeft;
use super::policy::Why;
use super::record::CertId;
use crate::clock;
use crate::issuer::{FailureClass, IssuerId};
use crate::name::HostPattern;
use crate::task::Shutdown;

/// One certificate as it stands.
#[derive(Clone, Debug)]
pub struct CertView {
    /// Its id, stable over restarts.
    pub id: CertId,
    /// The names it is for.
    pub names: Arc<[HostPattern]>,
    /// Who signs it.
    pub issuer: IssuerId,
    /// Where it stands.
    pub phase: Phase,
    /// The served leaf's serial number.
    pub serial: Option<String>,
    /// The served leaf's dates.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// When something happens next by itself.
    pub next_at: Option<SystemTime>,
    /// Why then.
    pub reason: Option<Reason>,
    /// Where the CA says why it wants it renewed when it does.
    pub explanation: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// What the last attempt failed with; kept until one succeeds.
    pub last_error: Option<String>,
    /// What a running order is doing.
    pub step: Option<String>,
}

/// Why something happens when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A renewal.
    Due(Why),
    /// Another attempt.
    Failure(FailureClass),
    /// Somebody else writes it into files.
    Files,
}

impl Reason {
    /// In brackets behind what happens; `None` if there is nothing to add.
    fn text(self) -> Option<String> {
        let text = match self {
            Self::Due(Why::Lifetime) => "by its lifetime".to_owned(),
            Self::Due(Why::Window(w)) => {
                format!("ARI window {} to {}", clock::rfc3339(w.start), clock::rfc3339(w.end))
            }
            Self::Due(Why::Overdue) => "ARI: the CA wants it replaced now".to_owned(),
            Self::Due(Why::Floor) => "a tenth of its lifetime is left then".to_owned(),
            Self::Due(Why::Gap) => "not sooner after the last one".to_owned(),
            Self::Due(Why::RolledBack) => {
                "it was rolled back; `starlock certs renew` renews sooner".to_owned()
            }
            Self::Due(Why::Fleet) => "early once, so that what was ordered together comes apart".to_owned(),
            Self::Due(Why::Revoked) => "it is revoked".to_owned(),
            Self::Failure(FailureClass::RateLimited) => "waits for the CA's limit".to_owned(),
            Self::Failure(_) | Self::Files => return None,
        };
        Some(text)
    }
}

/// Where a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is held yet.
    Wanted,
    /// An order is running.
    Ordering,
    /// Held and not due.
    Valid,
    /// The last attempt failed; tried again at `next_at`.
    Waiting,
    /// A person has to act; looked at again at `next_at`.
    Parked,
    /// Another process is ordering it.
    Following,
}

impl Phase {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Ordering => "ordering",
            Self::Valid => "valid",
            Self::Waiting => "waiting",
            Self::Parked => "parked",
            Self::Following => "following",
        }
    }
}

impl CertView {
    /// In brackets; with the page where the CA explains itself, if it is the CA that wants it.
    fn why(&self) -> Option<String> {
        let why = self.reason.and_then(Reason::text)?;
        let asked = matches!(self.reason, Some(Reason::Due(Why::Window(_) | Why::Overdue)));
        match self.explanation.as_ref().filter(|_| asked) {
            Some(page) => Some(format!("{why}: {page}")),
            None => Some(why),
        }
    }

    /// What happens next by itself, as a sentence.
    pub fn next_action(&self) -> String {
        let at = self.next_at.map(clock::rfc3339).unwrap_or_else(|| "now".to_owned());
        let why = self.why().map(|why| format!(" ({why})")).unwrap_or_default();
        match self.phase {
            _ if self.reason == Some(Reason::Files) => "taken from its files when they change".to_owned(),
            Phase::Wanted => "is ordered as soon as it is its turn".to_owned(),
            Phase::Ordering => format!("{}{why}", self.step.as_deref().unwrap_or("is being ordered")),
            Phase::Valid => format!("renewed at {at}{why}"),
            Phase::Waiting => format!("tried again at {at}{why}"),
            Phase::Parked => format!("waits for a person; looked at again at {at}"),
            Phase::Following => {
                "another process is ordering it; its certificate is taken from storage".to_owned()
            }
        }
    }
}

/// Told what happens to certificates; counts it.
pub trait CertObserver: Send + Sync {
    /// An order ended.
    fn ordered(&self, names: &[HostPattern], ok: bool);
    /// What is left of every CA's limits, as the ledger has it now: what is not among it is not limited, or not asked any more.
    fn budgets(&self, _left: &[BudgetLeft]) {}
    /// What is served, or what happens next, has changed.
    fn changed(&self, view: &CertView);
    /// It is not wanted any more; `id` is what its views said.
    fn forgotten(&self, id: &CertId);
}

/// The views of all certificates. Read by operators and by nothing on the request path.
#[derive(Clone, Debug, Default)]
pub(super) struct Views(Arc<Mutex<BTreeMap<CertId, CertView>>>);

impl Views {
    /// Shows `view`, unless its worker was told to `stop`: what is not wanted any more must not come back. `false` then.
    pub(super) fn put(&self, view: CertView, stop: &Shutdown) -> bool {
        let mut views = self.lock();
        if stop.is_triggered() {
            return false;
        }
        views.insert(view.id.clone(), view);
        true
    }

    pub(super) fn remove(&self, id: &CertId) {
        self.lock().remove(id);
    }

    pub(super) fn step(&self, id: &CertId, step: String, stop: &Shutdown) {
        if let Some(view) = self.lock().get_mut(id)
            && !stop.is_triggered()
        {
            view.step = Some(step);
        }
    }

    pub(super) fn all(&self) -> Vec<CertView> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<CertId, CertView>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
