//! One certificate: a thin loop around the state machine.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::manager::{News, Update, Wanted};
use super::record::{CertId, CertRecords, Found, HeldCert, cert_key};
use super::state::{Action, Event, Machine, State};
use super::view::{CertObserver, CertView, Phase, Views};
use crate::backoff;
use crate::clock::{self, SharedClock};
use crate::issuer::{FailureClass, IssueError, IssueRequest, IssuedCert, Progress, Retry, Step};
use crate::task::{self, Shutdown};

/// The wall clock is read again at least this often: a suspended machine wakes up late otherwise.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What a worker shares with all others.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) records: CertRecords,
    pub(super) clock: SharedClock,
    pub(super) observer: Arc<dyn CertObserver>,
    pub(super) views: Views,
    pub(super) updates: mpsc::Sender<Update>,
    /// Bounds the orders that run at once.
    pub(super) orders: Arc<Semaphore>,
}

/// Told once each, by whichever start of the worker gets there first.
#[derive(Default)]
pub(super) struct Milestones {
    /// What storage holds was sent to the manager.
    pub(super) loaded: Option<oneshot::Sender<()>>,
    /// The first attempt ended, or none is due.
    pub(super) settled: Option<oneshot::Sender<()>>,
}

pub(super) struct Worker {
    shared: Shared,
    wanted: Wanted,
    id: CertId,
    number: u64,
    stop: Shutdown,
    current: Option<HeldCert>,
}

impl Worker {
    pub(super) fn new(shared: Shared, wanted: Wanted, number: u64, stop: Shutdown) -> Self {
        let id = CertId::of(&wanted.names);
        Self { shared, wanted, id, number, stop, current: None }
    }

    /// Runs until it is told to stop. An order under way is dropped then; its records go to the janitor and it is resumed later.
    pub(super) async fn run(mut self, mut milestones: Milestones) {
        let shutdown = self.stop.clone();
        let mut machine = self.load().await;
        self.show(&machine, None);
        done(&mut milestones.loaded);
        loop {
            let now = self.shared.clock.now();
            let before = machine.state().clone();
            let action = machine.next(now);
            if *machine.state() != before {
                self.show(&machine, None); // the clock was set: the next moment is another one
            }
            match action {
                Action::SleepUntil(until) => {
                    done(&mut milestones.settled);
                    let wait = until.duration_since(now).unwrap_or_default().min(LONGEST_SLEEP);
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = shutdown.wait() => return,
                    }
                }
                Action::Order => {
                    let event = tokio::select! {
                        event = self.attempt(&mut machine) => event,
                        () = shutdown.wait() => return,
                    };
                    let waited = matches!(event, Event::Busy);
                    machine.step(event, self.shared.clock.now(), backoff::dice());
                    if !waited {
                        self.remember(&machine).await;
                    }
                    self.show(&machine, None);
                }
            }
        }
    }

    async fn load(&mut self) -> Machine {
        let issuer = self.wanted.issuer.id();
        let (records, now) = (&self.shared.records, self.shared.clock.now());
        let attempts = records.load_attempts(issuer, &self.id, &self.wanted.fingerprint).await;
        let found = records.load(issuer, &self.id, &self.wanted.names).await;
        let lost = match found {
            Ok(Found::Cert(cert)) => {
                if cert.bundle.not_before() > now {
                    tracing::warn!(
                        certificate = %self.id, not_before = clock::rfc3339(cert.bundle.not_before()),
                        "the clock of this machine is before the certificate's first day; it is served as it is, nothing is renewed"
                    );
                }
                let held = cert.held;
                self.publish(cert).await;
                return Machine::new(Some(held), attempts, now);
            }
            Ok(Found::Nothing | Found::Damaged) => None,
            Ok(Found::Lost(message)) => Some(message),
            Err(error) => {
                Some(format!("{error}. Nothing is ordered while the state directory cannot be read"))
            }
        };
        match records.stand_ins(issuer, &self.wanted.names).await {
            Ok(bundles) => {
                for bundle in bundles {
                    self.send(News::StandIn(bundle)).await;
                }
            }
            Err(error) => {
                tracing::warn!(certificate = %self.id, %error, "cannot look for another certificate to serve meanwhile");
            }
        }
        let mut machine = Machine::new(None, attempts, now);
        if let Some(message) = lost {
            tracing::error!(certificate = %self.id, "{message}");
            machine.step(Event::StorageLost(message), now, backoff::dice());
        }
        machine
    }

    /// Takes the lease, looks again, orders, proves, stores, publishes: in this order.
    async fn attempt(&mut self, machine: &mut Machine) -> Event {
        // An order that asks nobody does not queue behind those that wait for CAs.
        let _permit = match self.wanted.issuer.is_instant() {
            true => None,
            false => match self.shared.orders.clone().acquire_owned().await {
                Ok(permit) => Some(permit),
                Err(_never_closed) => return Event::Busy,
            },
        };
        let issuer = self.wanted.issuer.clone();
        let (records, now) = (self.shared.records.clone(), self.shared.clock.now());
        let _lease = match records.storage.try_lease(&cert_key(issuer.id(), &self.id)).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return Event::Busy,
            Err(error) => {
                return Event::StorageLost(format!("{error}. Nothing is ordered without the lease"));
            }
        };
        match records.load(issuer.id(), &self.id, &self.wanted.names).await {
            Ok(Found::Cert(cert)) => {
                if self.is_news(&cert) {
                    let held = cert.held;
                    tracing::info!(certificate = %self.id, serial = cert.bundle.serial(), "found in storage");
                    self.publish(cert).await;
                    machine.hold(held);
                    if held.renew_at(now) > now {
                        return Event::Renewed(held);
                    }
                }
            }
            Ok(Found::Nothing) if self.current.is_some() => {
                return Event::StorageLost(
                    "the state directory was emptied while running. What is in memory is served on; nothing is ordered. \
                     Restore the directory"
                        .to_owned(),
                );
            }
            Ok(Found::Lost(message)) => return Event::StorageLost(message),
            Ok(Found::Nothing | Found::Damaged) => {}
            Err(error) => {
                return Event::StorageLost(format!("{error}. Nothing is ordered while it cannot be read"));
            }
        }
        let fingerprint = &self.wanted.fingerprint;
        if let Some(theirs) = records.load_attempts(issuer.id(), &self.id, fingerprint).await
            && theirs.failures > machine.failures()
            && theirs.until > now
        {
            return Event::PeerFailed(theirs);
        }
        self.show(machine, Some("starting".to_owned()));
        let request = IssueRequest::new(self.wanted.names.clone());
        let event = self.order(&request).await;
        let ok = matches!(event, Event::Renewed(_));
        self.shared.observer.ordered(&self.wanted.names, ok);
        event
    }

    async fn order(&mut self, request: &IssueRequest) -> Event {
        let issuer = self.wanted.issuer.clone();
        let (issued, cert) = match self.issue(request).await {
            Ok(issued) => issued,
            Err(error) => return Event::Failed(error),
        };
        if let Err(error) = self.shared.records.store(issuer.id(), &self.id, &issued, &cert).await {
            // The order stays in the issuer's journal: the next attempt fetches the same certificate again.
            let message =
                format!("{:?}: signed, but {error}. Fetched again when storage works.", request.names);
            return Event::Failed(IssueError::new(FailureClass::Config, Retry::Backoff, message));
        }
        issuer.stored(request).await;
        tracing::info!(
            certificate = %self.id, names = ?request.names, serial = cert.bundle.serial(),
            not_after = clock::rfc3339(cert.bundle.not_after()), "certificate stored"
        );
        let held = cert.held;
        self.publish(cert).await;
        Event::Renewed(held)
    }

    /// Gets a certificate that is worth storing. What an interrupted order ends with may be what is held already (the crash
    /// came after it was stored) or may have grown old meanwhile; then the order is let go and a new one made, once.
    async fn issue(&self, request: &IssueRequest) -> Result<(IssuedCert, HeldCert), IssueError> {
        let issuer = &self.wanted.issuer;
        let progress = Steps { id: &self.id, views: &self.shared.views, stop: &self.stop };
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
            let proven = HeldCert::prove(&issued, &request.names, self.shared.clock.now());
            let reason = match proven {
                Ok(cert) if !issued.resumed || !self.is_stale(&cert) => return Ok((issued, cert)),
                Ok(_) => "it is the one that is held already, or as old".to_owned(),
                Err(reason) => reason,
            };
            // Whatever is wrong with it, asking for the same order again would not change it.
            issuer.stored(request).await;
            if !issued.resumed || !may_order_again {
                let message = format!(
                    "{:?}: the CA's certificate cannot be served: {reason}. What was served before stays; a new order is made                      at the next attempt.",
                    request.names
                );
                return Err(IssueError::new(FailureClass::Config, Retry::Park, message));
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

    async fn publish(&mut self, cert: HeldCert) {
        self.send(News::Held(cert.bundle.clone())).await;
        self.current = Some(cert);
    }

    async fn send(&self, news: News) {
        let update = Update { id: self.id.clone(), worker: self.number, news };
        if self.shared.updates.send(update).await.is_err() {
            tracing::debug!(certificate = %self.id, "the certificate manager has ended");
        }
    }

    async fn remember(&self, machine: &Machine) {
        let attempts = machine.attempts();
        if let Some(attempts) = &attempts {
            let parked = matches!(machine.state(), State::Parked { .. });
            tracing::warn!(
                certificate = %self.id, class = attempts.failure.class.as_str(), failures = attempts.failures, parked,
                next_attempt = clock::rfc3339(attempts.until), "{}", attempts.failure.message
            );
        }
        let (issuer, fingerprint) = (self.wanted.issuer.id(), &self.wanted.fingerprint);
        if let Err(error) =
            self.shared.records.store_attempts(issuer, &self.id, fingerprint, attempts.as_ref()).await
        {
            tracing::warn!(certificate = %self.id, %error, "the attempt cannot be remembered over a restart");
        }
    }

    fn show(&self, machine: &Machine, step: Option<String>) {
        let (phase, next_at, error) = match machine.state() {
            _ if step.is_some() => (Phase::Ordering, None, machine.attempts().map(|a| a.failure.message)),
            State::Wanted => (Phase::Wanted, None, None),
            State::Valid { renew_at } => (Phase::Valid, Some(*renew_at), None),
            State::Waiting { until, failure } => {
                (Phase::Waiting, Some(*until), Some(failure.message.clone()))
            }
            State::Parked { until, failure } => (Phase::Parked, Some(*until), Some(failure.message.clone())),
            State::Following { until } => (Phase::Following, Some(*until), None),
        };
        let view = CertView {
            id: self.id.clone(),
            names: self.wanted.names.clone(),
            issuer: self.wanted.issuer.id().clone(),
            phase,
            serial: self.current.as_ref().map(|c| c.bundle.serial().to_owned()),
            validity: machine.held().map(|h| (h.not_before, h.not_after)),
            next_at,
            failures: machine.failures(),
            last_error: error,
            step,
        };
        if self.shared.views.put(view.clone(), &self.stop) {
            self.shared.observer.changed(&view);
        }
    }
}

/// Passes an order's steps on to the log and to whoever watches.
struct Steps<'a> {
    id: &'a CertId,
    views: &'a Views,
    stop: &'a Shutdown,
}

impl Progress for Steps<'_> {
    fn step(&self, step: Step) {
        tracing::info!(certificate = %self.id, "{step}");
        self.views.step(self.id, step.to_string(), self.stop);
    }
}

fn done(milestone: &mut Option<oneshot::Sender<()>>) {
    if let Some(sender) = milestone.take()
        && sender.send(()).is_err()
    {
        tracing::trace!("nobody waits for this milestone any more");
    }
}
