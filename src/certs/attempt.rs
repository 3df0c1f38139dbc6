//! One attempt: lease, storage, ledger, order, proof, storage again, table.

use std::panic::AssertUnwindSafe;
use std::time::SystemTime;

use futures_util::FutureExt;

use super::jobs::Job;
use super::record::{CertId, HeldCert, cert_key};
use super::state::{Event, Machine};
use super::view::Views;
use super::worker::Worker;
use crate::clock;
use crate::issuer::{
    FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, Progress, Retry, Spent, Step,
};
use crate::ledger::Ask;
use crate::task::{self, Shutdown};

impl Worker {
    /// Takes the lease, looks again, orders at the CA number `ca`, proves, stores, publishes: in this order.
    pub(super) async fn attempt(&mut self, machine: &mut Machine, ca: usize) -> Event {
        let Some(issuer) = self.wanted.issuers.get(ca).cloned() else { return Event::Busy };
        // An order that asks nobody does not queue behind those that wait for CAs.
        let orders = if issuer.is_instant() { &self.shared.instant } else { &self.shared.orders };
        let Ok(_permit) = orders.clone().acquire_owned().await else { return Event::Busy };
        let (records, now) = (self.shared.records.clone(), self.shared.clock.now());
        let _lease = match records.storage.try_lease(&cert_key(self.preferred(), &self.id)).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return Event::Busy,
            Err(error) => {
                return Event::StorageLost(format!("{error}. Nothing is ordered without the lease"));
            }
        };
        let signers = match self.look_again(machine, now).await {
            Ok(signers) => signers,
            Err(event) => return event,
        };
        let fingerprint = &self.wanted.fingerprint;
        if let Some(theirs) = records.load_attempts(self.preferred(), &self.id, fingerprint, now).await
            && theirs.failures > machine.failures()
        {
            return Event::PeerFailed(theirs);
        }
        if let Some(event) = self.settle_unproven(now).await {
            return event;
        }
        if let Err(event) = self.rehearsed_first(&signers).await {
            return event;
        }
        let mut request = IssueRequest::new(self.wanted.names.clone());
        if let Some(current) = self.current.as_ref().filter(|c| usize::from(c.held.issuer) == ca) {
            request.replaces = Some(current.leaf());
        }
        let exempt = request.replaces.is_some() && machine.in_window(now);
        let names = request.names.clone();
        // Nobody asks storage for what nobody counts.
        let registers = issuer.budget().is_some() && !issuer.registered().await;
        let ask = Ask { names: &names, renewal: signers.contains(&number(ca)), exempt, registers };
        if let Some(budget) = issuer.budget()
            && let Err(refusal) =
                self.shared.ledger.reserve(budget, &ask, self.forced || machine.past_floor(now)).await
        {
            let message = format!(
                "{names:?}: not ordered yet: {refusal} is used up. {} would refuse the order before {}, so it is sent then.",
                budget.ca,
                clock::rfc3339(refusal.until)
            );
            return Event::Refused(ca, refusal.until, message);
        }
        self.show(machine, Some("starting".to_owned()));
        let issued = self.issue(&*issuer, &request, number(ca)).await;
        if let Some(budget) = issuer.budget() {
            match &issued {
                // What an interrupted order ends with was counted when it began.
                Ok((issued, _)) => {
                    self.shared.ledger.settle(budget, &ask, &issued.spent, !issued.resumed).await;
                }
                Err(error) => self.shared.ledger.settle(budget, &ask, &error.spent, false).await,
            }
            for (limit, remaining) in self.shared.ledger.remaining(budget).await {
                self.shared.observer.budget(budget.ca.as_str(), limit.as_str(), remaining);
            }
        }
        let event = match issued {
            Ok((issued, cert)) => self.keep(issuer, request, issued, cert).await,
            Err(error) => Event::Failed(ca, error),
        };
        let ok = matches!(event, Event::Renewed(_));
        self.shared.observer.ordered(&self.wanted.names, ok);
        event
    }

    /// Reads storage again: a peer may have renewed, the volume may be gone. The CAs that signed for this set before.
    async fn look_again(&mut self, machine: &mut Machine, now: SystemTime) -> Result<Vec<u8>, Event> {
        let records = self.shared.records.clone();
        let holdings = records.holdings(&self.wanted.issuers, &self.id, &self.wanted.names, now).await;
        let holdings = holdings
            .map_err(|e| Event::StorageLost(format!("{e}. Nothing is ordered while it cannot be read")))?;
        if let Some(message) = holdings.lost {
            return Err(Event::StorageLost(message));
        }
        match holdings.best {
            Some(cert) if self.is_news(&cert) => {
                let held = cert.held;
                tracing::info!(certificate = %self.id, serial = cert.bundle.serial(), "found in storage");
                self.publish(cert).await;
                machine.hold(held, now);
                if machine.due(&held, now).at > now {
                    return Err(Event::Renewed(held));
                }
            }
            None if self.current.is_some() && self.pending.is_none() && holdings.signers.is_empty() => {
                return Err(Event::StorageLost(
                    "the state directory was emptied while running. What is in memory is served on; nothing is ordered. \
                     Restore the directory"
                        .to_owned(),
                ));
            }
            _ => {}
        }
        Ok(holdings.signers)
    }

    /// Gets a certificate that is worth storing. What an interrupted order ends with may be what is held already (the crash
    /// came after it was stored) or may have grown old meanwhile; then the order is let go and a new one made, once.
    pub(super) async fn issue(
        &self,
        issuer: &dyn Issuer,
        request: &IssueRequest,
        ca: u8,
    ) -> Result<(IssuedCert, HeldCert), IssueError> {
        let progress =
            Steps { id: &self.id, views: &self.shared.views, stop: &self.stop, job: self.job.as_ref() };
        let mut may_order_again = true;
        loop {
            // A panic must not come back on the schedule of restarts, which knows nothing of a CA's limits.
            let issued = AssertUnwindSafe(issuer.issue(request, &progress)).catch_unwind().await;
            let issued = issued.unwrap_or_else(|panic| {
                let message = format!(
                    "{:?}: the order stopped at an error in Starlock itself ({}): please report it. Tried again by itself.",
                    request.names,
                    task::panic_text(panic.as_ref())
                );
                Err(IssueError::new(FailureClass::Config, Retry::Backoff, message))
            })?;
            let now = self.shared.clock.now();
            let proven = HeldCert::signed(&issued, &request.names, now, ca, self.current.as_ref());
            let reason = match proven {
                Ok(cert) if !issued.resumed || !self.is_stale(&cert) => return Ok((issued, cert)),
                Ok(_) => "it is the one that is held already, or as old".to_owned(),
                Err(reason) => reason,
            };
            // Whatever is wrong with it, asking for the same order again would not change it.
            issuer.stored(request).await;
            if !issued.resumed || !may_order_again {
                let message = format!(
                    "{:?}: the CA's certificate cannot be served: {reason}. What was served before stays; a new order is made \
                     at the next attempt.",
                    request.names
                );
                let error = IssueError::new(FailureClass::Config, Retry::Park, message);
                return Err(IssueError { spent: Spent { ordered: true, ..issued.spent }, ..error });
            }
            may_order_again = false;
            tracing::info!(certificate = %self.id, reason, "the interrupted order's certificate is of no use; ordering a new one");
        }
    }

    fn is_stale(&self, cert: &HeldCert) -> bool {
        let held = self.current.as_ref().is_some_and(|c| c.bundle.serial() == cert.bundle.serial());
        held || cert.held.is_due_by_its_dates(self.shared.clock.now())
    }

    /// Whether a certificate from storage is another one than the current one, and not an older one.
    fn is_news(&self, cert: &HeldCert) -> bool {
        self.current.as_ref().is_none_or(|current| {
            current.bundle.serial() != cert.bundle.serial() && current.held.not_after <= cert.held.not_after
        })
    }
}

fn number(ca: usize) -> u8 {
    u8::try_from(ca).unwrap_or(u8::MAX)
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
