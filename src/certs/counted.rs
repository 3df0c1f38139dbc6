//! An order with what its CA counts: none is sent that would be refused, and each is counted once, however often it is interrupted.

use std::panic::AssertUnwindSafe;
use std::time::SystemTime;

use futures_util::FutureExt;

use super::jobs::Job;
use super::record::{CertId, HeldCert};
use super::view::Views;
use super::worker::Worker;
use crate::clock;
use crate::issuer::{
    FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, Progress, Retry, Spent, Step,
};
use crate::ledger::Ask;
use crate::task::{self, Shutdown};

/// How an order stands towards its CA's limits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// The same CA has signed for this set before.
    pub(super) renewal: bool,
    /// The CA wants it now, and is told what it replaces.
    pub(super) exempt: bool,
    /// It is sent whatever the ledger says.
    pub(super) force: bool,
}

/// What was reserved for an order.
pub(super) struct Reserved {
    standing: Standing,
    registers: bool,
    resumes: bool,
    /// The order, or one that never came to be, was reserved for before.
    before: bool,
}

/// The CA would refuse the order before this moment.
pub(super) struct Refused {
    pub(super) until: SystemTime,
    /// For a person.
    pub(super) message: String,
}

impl Reserved {
    fn ask<'a>(&self, request: &'a IssueRequest) -> Ask<'a> {
        let Standing { renewal, exempt, .. } = self.standing;
        Ask { names: &request.names, renewal, exempt, registers: self.registers, resumes: self.resumes }
    }
}

impl Worker {
    /// Reserves what the CA will count. It belongs to the order: one that is dropped from here on is gone on with by a later
    /// attempt, which finds it reserved.
    pub(super) async fn reserve(
        &self,
        issuer: &dyn Issuer,
        request: &IssueRequest,
        standing: Standing,
    ) -> Result<Reserved, Refused> {
        let mut reserved = Reserved { standing, registers: false, resumes: false, before: false };
        // Nobody asks storage for what nobody counts.
        let Some(budget) = issuer.budget() else { return Ok(reserved) };
        reserved.registers = !issuer.registered().await;
        reserved.resumes = issuer.resumes(request).await;
        match self.shared.ledger.begin(budget, &reserved.ask(request), standing.force).await {
            Ok(before) => Ok(Reserved { before, ..reserved }),
            Err(refusal) => {
                let message = format!(
                    "{:?}: not ordered yet: {refusal} is used up. {} would refuse the order before {}, so it is sent then.",
                    request.names,
                    budget.ca,
                    clock::rfc3339(refusal.until)
                );
                Err(Refused { until: refusal.until, message })
            }
        }
    }

    /// Orders at the CA number `ca`, and settles what the CA counted. What it signed comes with what could be made of it; the error of
    /// that is for a person.
    pub(super) async fn order(
        &self,
        issuer: &dyn Issuer,
        request: &IssueRequest,
        reserved: Reserved,
        ca: u8,
    ) -> Result<(IssuedCert, Result<HeldCert, String>), IssueError> {
        let progress =
            Steps { id: &self.id, views: &self.shared.views, stop: &self.stop, job: self.job.as_ref() };
        // A panic must not come back on the schedule of restarts, which knows nothing of a CA's limits.
        let result = AssertUnwindSafe(issuer.issue(request, &progress)).catch_unwind().await;
        let result = match result {
            Ok(result) => result,
            Err(panic) => {
                let message = format!(
                    "{:?}: the order stopped at an error in Starlock itself ({}): please report it. Tried again by itself.",
                    request.names,
                    task::panic_text(panic.as_ref())
                );
                // What it has seen is not known; an order that is kept is gone on with.
                let spent = Spent { ordered: true, open: issuer.resumes(request).await, ..Spent::default() };
                Err(IssueError { spent, ..IssueError::new(FailureClass::Config, Retry::Backoff, message) })
            }
        };
        let result = result.map(|issued| {
            let now = self.shared.clock.now();
            let cert = HeldCert::signed(&issued, &request.names, now, ca, self.current.as_ref());
            (issued, cert)
        });
        if let Some(budget) = issuer.budget() {
            let spent = match &result {
                Ok((issued, cert)) => {
                    // Found again after a crash that came when it was stored already: it was counted then.
                    let known = !reserved.before && cert.as_ref().is_ok_and(|cert| self.serves(cert));
                    Spent { signed: !known, open: false, ..issued.spent.clone() }
                }
                Err(error) => error.spent.clone(),
            };
            self.shared.ledger.settle(budget, &reserved.ask(request), &spent).await;
            self.shared.budgets.look();
        }
        result
    }

    /// Whether this very certificate is served.
    pub(super) fn serves(&self, cert: &HeldCert) -> bool {
        self.current.as_ref().is_some_and(|current| current.bundle.serial() == cert.bundle.serial())
    }
}

/// Passes an order's steps on to the log and to whoever watches.
struct Steps<'a> {
    id: &'a CertId,
    views: &'a Views,
    stop: &'a Shutdown,
    job: Option<&'a Job>,
}

impl Progress for Steps<'_> {
    fn step(&self, step: Step) {
        tracing::info!(certificate = %self.id, "{step}");
        self.views.step(self.id, step.to_string(), self.stop);
        if let Some(job) = self.job {
            job.step(step.to_string());
        }
    }
}
