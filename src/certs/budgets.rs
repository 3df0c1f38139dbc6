//! What is left of the CAs' limits, for metrics: it refills by itself, so it is looked at on a timer too.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::view::CertObserver;
use crate::backoff::Backoff;
use crate::issuer::{Budget, IssuerId};
use crate::ledger::Ledger;
use crate::task::{OnExit, Shutdown, Supervisor};

const LOOK_AGAIN: Duration = Duration::from_secs(60);
const RESTART: Backoff = Backoff::new(&[LOOK_AGAIN]);

/// How many more of one CA's limit are left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetLeft {
    /// The CA.
    pub ca: IssuerId,
    /// One word.
    pub limit: &'static str,
    /// By what is used most.
    pub remaining: u32,
}

/// Whose limits are looked at. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Budgets(Arc<watch::Sender<Vec<Budget>>>);

impl Budgets {
    /// Tells `observer` at once, every minute, and after each order.
    pub(super) fn start(ledger: Ledger, observer: Arc<dyn CertObserver>, supervisor: &Supervisor) -> Self {
        let (sender, receiver) = watch::channel(Vec::new());
        supervisor.spawn("CA budgets".into(), OnExit::Restart(RESTART), move |shutdown| {
            tell(ledger.clone(), observer.clone(), receiver.clone(), shutdown)
        });
        Self(Arc::new(sender))
    }

    /// Looks at these from now on, one for each CA.
    pub(super) fn set<'a>(&self, budgets: impl Iterator<Item = &'a Budget>) {
        let mut distinct: Vec<Budget> = Vec::new();
        for budget in budgets {
            if distinct.iter().all(|known| known.ca != budget.ca) {
                distinct.push(budget.clone());
            }
        }
        self.0.send_replace(distinct);
    }

    /// Looks now.
    pub(super) fn look(&self) {
        self.0.send_modify(|_| {});
    }
}

async fn tell(
    ledger: Ledger,
    observer: Arc<dyn CertObserver>,
    mut watched: watch::Receiver<Vec<Budget>>,
    shutdown: Shutdown,
) {
    loop {
        let budgets = watched.borrow_and_update().clone();
        let mut left = Vec::new();
        for budget in &budgets {
            let remaining = ledger.remaining(budget).await.into_iter();
            left.extend(remaining.map(|(limit, remaining)| BudgetLeft {
                ca: budget.ca.clone(),
                limit: limit.as_str(),
                remaining,
            }));
        }
        observer.budgets(&left);
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            changed = watched.changed() => if changed.is_err() {
                return shutdown.wait().await; // the manager has gone, and so does this
            },
            () = shutdown.wait() => return,
        }
    }
}
