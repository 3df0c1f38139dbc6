//! One attempt: lease, storage, ledger, order, proof, storage again, table.

use std::time::SystemTime;

use super::counted::{Refused, Standing};
use super::record::{HeldCert, cert_key};
use super::state::{Event, Machine};
use super::worker::Worker;
use crate::issuer::{FailureClass, IssueError, IssueRequest, Retry, Spent};

impl Worker {
    /// Takes the lease, looks again, orders at the CA number `ca`, proves, stores, publishes: in this order.
    pub(super) async fn attempt(&mut self, machine: &mut Machine, ca: usize) -> Event {
        let Some(issuer) = self.wanted.issuers.get(ca).cloned() else { return Event::Busy };
        // An order that asks nobody does not queue behind those that wait for CAs.
        let permit = match issuer.is_instant() {
            true => self.shared.instant.clone().acquire_owned().await.ok(),
            false => self.shared.orders.at(&*issuer).await,
        };
        let Some(_permit) = permit else { return Event::Busy };
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
        let mut may_order_again = true;
        let event = loop {
            let now = self.shared.clock.now();
            let standing = Standing {
                renewal: signers.contains(&number(ca)) || request.replaces.is_some(),
                exempt: request.replaces.is_some() && machine.in_window(now),
                force: self.forced || machine.past_floor(now),
            };
            let reserved = match self.reserve(&*issuer, &request, standing).await {
                Ok(reserved) => reserved,
                Err(Refused { until, message }) => return Event::Refused(ca, until, message),
            };
            self.show(machine, Some("starting".to_owned()));
            match self.order(&*issuer, &request, reserved, number(ca)).await {
                Err(error) => break Event::Failed(ca, error),
                Ok((issued, Err(reason))) => {
                    break self.keep_useless(&*issuer, &request, &issued, &reason).await;
                }
                // What an interrupted order ends with may be what is held already (the crash came after it was stored) or
                // may have grown old meanwhile; then the order is let go and a new one made, once.
                Ok((issued, Ok(cert))) if issued.resumed && self.is_stale(&cert) => {
                    issuer.stored(&request).await;
                    if !std::mem::take(&mut may_order_again) {
                        break Event::Failed(ca, self.stale_again(&request));
                    }
                    tracing::info!(certificate = %self.id, "the interrupted order's certificate is of no use; ordering a new one");
                }
                Ok((issued, Ok(cert))) => break self.keep(issuer, request, issued, cert).await,
            }
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

    fn is_stale(&self, cert: &HeldCert) -> bool {
        self.serves(cert) || cert.held.is_due_by_its_dates(self.shared.clock.now())
    }

    fn stale_again(&self, request: &IssueRequest) -> IssueError {
        let message = format!(
            "{:?}: the CA's certificate is the one that is held already, or as old, although its order was let go. What was served \
             before stays; a new order is made at the next attempt.",
            request.names
        );
        let spent = Spent { ordered: true, signed: true, ..Spent::default() };
        IssueError { spent, ..IssueError::new(FailureClass::Config, Retry::Park, message) }
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
