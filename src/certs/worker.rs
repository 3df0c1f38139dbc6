//! One certificate: a thin loop around the state machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, OnceCell, Semaphore, mpsc, oneshot};

use super::budgets::Budgets;
use super::command::Command;
use super::hours::{Hours, Place};
use super::jobs::Job;
use super::manager::{News, Update, Wanted};
use super::policy::{self, Terms};
use super::record::{CertId, CertRecords, HeldCert, cert_key};
use super::stand_ins::StandIns;
use super::state::{Action, Event, Machine, State};
use super::turns::Turns;
use super::view::{CertObserver, CertView, Phase, Reason, Views};
use crate::backoff;
use crate::clock::{self, SharedClock};
use crate::issuer::{IssueError, IssueRequest, IssuedCert, Issuer, IssuerId, RenewalHint};
use crate::ledger::Ledger;
use crate::task::Shutdown;
use crate::tls::Roots;

/// The wall clock is read again at least this often: a suspended machine wakes up late otherwise.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What a worker shares with all others.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) records: CertRecords,
    pub(super) ledger: Ledger,
    pub(super) clock: SharedClock,
    pub(super) observer: Arc<dyn CertObserver>,
    pub(super) views: Views,
    pub(super) updates: mpsc::Sender<Update>,
    /// What is left of the CAs' limits, told to the observer.
    pub(super) budgets: Budgets,
    /// Bounds the orders that run at once at each CA.
    pub(super) orders: Arc<Turns>,
    /// Bounds those of CAs that ask nobody.
    pub(super) instant: Arc<Semaphore>,
    /// What this machine trusts; read when the first certificate is proven.
    pub(super) roots: Arc<OnceCell<Roots>>,
    /// Bounds the questions about renewal windows that run at once at each CA.
    pub(super) polls: Arc<Turns>,
    /// How many certificates are wanted.
    pub(super) size: Arc<AtomicUsize>,
    /// When they are to be renewed.
    pub(super) hours: Arc<Hours>,
}

/// For whichever start of the worker gets there first: told or used once each.
#[derive(Default)]
pub(super) struct Milestones {
    /// What storage holds was sent to the manager.
    pub(super) loaded: Option<oneshot::Sender<()>>,
    /// The first attempt ended, or none is due.
    pub(super) settled: Option<oneshot::Sender<()>>,
    /// Shared with the workers that start at the same time.
    pub(super) stand_ins: Option<Arc<StandIns>>,
}

pub(super) struct Worker {
    pub(super) shared: Shared,
    pub(super) wanted: Wanted,
    pub(super) id: CertId,
    number: u64,
    pub(super) stop: Shutdown,
    pub(super) current: Option<HeldCert>,
    /// Served, and not stored yet because storage could not be written.
    pub(super) pending: Option<Pending>,
    /// Why what was signed last is not served.
    pub(super) unproven: Option<String>,
    /// The names were ordered at the CA's staging, and signed, or it could not be asked for long enough.
    pub(super) rehearsed: bool,
    /// Since when the CA's staging cannot be asked.
    pub(super) staging_away: Option<SystemTime>,
    /// A person wants it whatever the ledger says.
    pub(super) forced: bool,
    /// What a person asked for and watches.
    pub(super) job: Option<Job>,
    inbox: Inbox,
    /// Where the CA says why its window is where it is.
    explanation: Option<String>,
    /// Its renewal in the plan of all.
    place: Place,
}

/// Commands for one worker; whichever start of it runs takes them.
pub(super) type Inbox = Arc<Mutex<mpsc::Receiver<Command>>>;

/// A signed certificate with everything that storing it needs.
pub(super) struct Pending {
    pub(super) issuer: Arc<dyn Issuer>,
    pub(super) request: IssueRequest,
    pub(super) issued: IssuedCert,
    pub(super) cert: HeldCert,
}

impl Worker {
    pub(super) fn new(shared: Shared, wanted: Wanted, number: u64, inbox: Inbox, stop: Shutdown) -> Self {
        let id = CertId::of(&wanted.names);
        let place = Place::nowhere(shared.hours.clone());
        Self {
            shared,
            wanted,
            id,
            number,
            stop,
            current: None,
            pending: None,
            unproven: None,
            rehearsed: false,
            staging_away: None,
            forced: false,
            job: None,
            inbox,
            explanation: None,
            place,
        }
    }

    /// Runs until it is told to stop. An order under way is dropped then; its records go to the janitor and it is resumed later.
    pub(super) async fn run(mut self, mut milestones: Milestones) {
        let shutdown = self.stop.clone();
        let inbox = self.inbox.clone();
        let mut inbox = inbox.lock().await;
        let mut machine = self.load(milestones.stand_ins.take()).await;
        self.show(&machine, None);
        done(&mut milestones.loaded);
        self.after_a_crash(&mut machine).await;
        loop {
            if self.pending.is_some() {
                self.store_pending().await;
            }
            let now = self.shared.clock.now();
            let before = machine.state().clone();
            let action = machine.next(now);
            self.place.move_to(machine.planned());
            if *machine.state() != before {
                self.show(&machine, None); // the clock was set: the next moment is another one
            }
            match action {
                Action::SleepUntil(until) => {
                    done(&mut milestones.settled);
                    let wait = until.duration_since(now).unwrap_or_default().min(LONGEST_SLEEP);
                    let command = tokio::select! {
                        () = tokio::time::sleep(wait) => continue,
                        Some(command) = inbox.recv() => command,
                        () = shutdown.wait() => return,
                    };
                    tokio::select! {
                        () = self.obey(&mut machine, command) => {}
                        () = shutdown.wait() => return,
                    }
                }
                Action::PollAri => {
                    done(&mut milestones.settled);
                    let asked = tokio::select! {
                        asked = self.poll(&machine, &mut inbox) => asked,
                        () = shutdown.wait() => return,
                    };
                    match asked {
                        Polled::Said(said) => self.heard(&mut machine, said).await,
                        Polled::Due => {}
                        Polled::Interrupted(command) => tokio::select! {
                            () = self.obey(&mut machine, command) => {}
                            () = shutdown.wait() => return,
                        },
                    }
                }
                Action::Order(ca) => {
                    let event = tokio::select! {
                        event = self.attempt(&mut machine, ca) => event,
                        () = shutdown.wait() => return,
                    };
                    self.take(&mut machine, event).await;
                }
            }
        }
    }

    /// Takes the end of an attempt in.
    pub(super) async fn take(&mut self, machine: &mut Machine, event: Event) {
        let waited = matches!(event, Event::Busy);
        let renewed = matches!(event, Event::Renewed(_));
        if let Event::Failed(ca, error) = &event {
            let issuer = self.wanted.issuers.get(*ca).map_or("?", |i| i.id().as_str());
            tracing::warn!(certificate = %self.id, issuer, class = error.class.as_str(), "{}", error.message);
        }
        machine.step(event, self.shared.clock.now(), backoff::dice());
        if renewed {
            self.explanation = None;
            if let Err(error) = self.shared.records.forget_ari(self.preferred(), &self.id).await {
                tracing::debug!(certificate = %self.id, %error, "an old renewal window stays in storage");
            }
        }
        if !waited {
            self.remember(machine).await;
        }
        self.show(machine, None);
    }

    /// The identity under which attempts and leases are kept, whichever CA signs in the end.
    pub(super) fn preferred(&self) -> &IssuerId {
        self.wanted.issuer().id()
    }

    fn terms(&self) -> Vec<Terms> {
        let terms = |issuer: &Arc<dyn Issuer>| Terms {
            limited: issuer.budget().is_some(),
            hints: !issuer.is_instant(),
            fleet: self.shared.size.load(Ordering::Relaxed) > policy::FLEET,
        };
        self.wanted.issuers.iter().map(terms).collect()
    }

    async fn load(&mut self, stand_ins: Option<Arc<StandIns>>) -> Machine {
        let terms = self.terms();
        let (records, now) = (self.shared.records.clone(), self.shared.clock.now());
        let fingerprint = &self.wanted.fingerprint;
        let attempts = records.load_attempts(self.preferred(), &self.id, fingerprint, now).await;
        let lost = match records.holdings(&self.wanted.issuers, &self.id, &self.wanted.names, now).await {
            Ok(holdings) => match holdings.best {
                Some(cert) => {
                    if cert.bundle.not_before() > now {
                        tracing::warn!(
                            certificate = %self.id, not_before = clock::rfc3339(cert.bundle.not_before()),
                            "the clock of this machine is before the certificate's first day; it is served as it is, nothing is renewed"
                        );
                    }
                    let held = cert.held;
                    let ari = records.load_ari(self.preferred(), &self.id, cert.bundle.serial()).await;
                    self.publish(cert).await;
                    return Machine::new(&terms, Some(held), ari, attempts, now);
                }
                None => holdings.lost,
            },
            Err(error) => {
                Some(format!("{error}. Nothing is ordered while the state directory cannot be read"))
            }
        };
        let stand_ins = stand_ins.unwrap_or_else(|| Arc::new(StandIns::new(records)));
        for issuer in self.wanted.issuers.iter() {
            for bundle in stand_ins.find(issuer.id(), &self.wanted.names).await {
                self.send(News::StandIn(bundle)).await;
            }
        }
        let mut machine = Machine::new(&terms, None, None, attempts, now);
        if let Some(message) = lost {
            tracing::error!(certificate = %self.id, "{message}");
            machine.step(Event::StorageLost(message), now, backoff::dice());
        }
        machine
    }

    /// Asks the CA that signed the current certificate when it wants it to be renewed. A renewal that falls due meanwhile and a person
    /// do not wait for its answer, nor for its turn behind the others'.
    async fn poll(&self, machine: &Machine, inbox: &mut mpsc::Receiver<Command>) -> Polled {
        let signer = self.current.as_ref().and_then(|current| {
            Some((self.wanted.issuers.get(usize::from(current.held.issuer))?.clone(), current.leaf()))
        });
        let Some((issuer, leaf)) = signer else { return Polled::Said(Ok(None)) };
        let asking = async {
            let _turn = self.shared.polls.at(&*issuer).await;
            issuer.renewal_hint(&leaf).await
        };
        tokio::pin!(asking);
        loop {
            let now = self.shared.clock.now();
            let Some(left) = machine.planned().and_then(|due| due.duration_since(now).ok()) else {
                return Polled::Due;
            };
            tokio::select! {
                biased;
                Some(command) = inbox.recv() => return Polled::Interrupted(command),
                said = &mut asking => return Polled::Said(said),
                () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => {}
            }
        }
    }

    /// No answer changes nothing.
    async fn heard(&mut self, machine: &mut Machine, said: Result<Option<RenewalHint>, IssueError>) {
        let Some(serial) = self.current.as_ref().map(|current| current.bundle.serial().to_owned()) else {
            return;
        };
        let event = match said {
            Ok(hint) => {
                if let Some(explanation) = hint.as_ref().and_then(|h| h.explanation.clone())
                    && self.explanation.as_ref() != Some(&explanation)
                {
                    tracing::info!(certificate = %self.id, explanation, "the CA explains its renewal window");
                    self.explanation = Some(explanation);
                }
                Event::Hint(hint)
            }
            Err(error) => {
                tracing::debug!(certificate = %self.id, %error, "the CA does not say when it wants a renewal; asked again later");
                Event::HintFailed
            }
        };
        let now = self.shared.clock.now();
        machine.step(event, now, backoff::dice());
        machine.choose(|moment| self.shared.hours.planned(moment), now);
        self.keep_ari(machine, &serial).await;
        self.show(machine, None);
    }

    pub(super) async fn keep_ari(&self, machine: &Machine, serial: &str) {
        if let Some(ari) = machine.ari()
            && let Err(error) = self.shared.records.store_ari(self.preferred(), &self.id, serial, ari).await
        {
            tracing::debug!(certificate = %self.id, %error, "the CA's renewal window cannot be kept");
        }
    }

    /// A crash between signing and serving left something that is paid for and not served yet.
    async fn after_a_crash(&mut self, machine: &mut Machine) {
        if self.current.is_none() {
            return; // it is ordered next, and that looks first
        }
        // Hardly ever is there any: ten thousand names need no lease each at a start.
        if !self.may_have_unproven().await {
            return;
        }
        let lease = self.shared.records.storage.try_lease(&cert_key(self.preferred(), &self.id)).await;
        if !matches!(lease, Ok(Some(_))) {
            return;
        }
        if let Some(event @ Event::Renewed(_)) = self.settle_unproven(self.shared.clock.now()).await {
            self.take(machine, event).await;
        }
        drop(lease);
    }

    pub(super) async fn publish(&mut self, cert: HeldCert) {
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
            let (until, parked) = match machine.state() {
                State::Parked { until, .. } => (*until, true),
                State::Waiting { until, .. } => (*until, false),
                _ => (self.shared.clock.now(), false),
            };
            tracing::warn!(
                certificate = %self.id, class = attempts.failure.class.as_str(), failures = attempts.failures, parked,
                next_attempt = clock::rfc3339(until), "{}", attempts.failure.message
            );
        }
        let fingerprint = &self.wanted.fingerprint;
        let stored =
            self.shared.records.store_attempts(self.preferred(), &self.id, fingerprint, attempts.as_ref());
        if let Err(error) = stored.await {
            tracing::warn!(certificate = %self.id, %error, "the attempt cannot be remembered over a restart");
        }
    }

    pub(super) fn show(&self, machine: &Machine, step: Option<String>) {
        let (phase, next_at, error) = match machine.state() {
            _ if step.is_some() => (Phase::Ordering, None, machine.attempts().map(|a| a.failure.message)),
            State::Wanted => (Phase::Wanted, None, None),
            State::Valid { due } => (Phase::Valid, Some(due.at), None),
            State::Waiting { until, failure } => {
                (Phase::Waiting, Some(*until), Some(failure.message.clone()))
            }
            State::Parked { until, failure } => (Phase::Parked, Some(*until), Some(failure.message.clone())),
            State::Following { until } => (Phase::Following, Some(*until), None),
        };
        let reason = match machine.state() {
            State::Valid { due } => Some(Reason::Due(due.why)),
            State::Waiting { failure, .. } | State::Parked { failure, .. } => {
                Some(Reason::Failure(failure.class))
            }
            _ => None,
        };
        let signer = machine.held().and_then(|held| self.wanted.issuers.get(usize::from(held.issuer)));
        let view = CertView {
            id: self.id.clone(),
            names: self.wanted.names.clone(),
            issuer: signer.unwrap_or(self.wanted.issuer()).id().clone(),
            phase,
            serial: self.current.as_ref().map(|c| c.bundle.serial().to_owned()),
            validity: machine.held().map(|h| (h.not_before, h.not_after)),
            next_at,
            reason,
            explanation: self.explanation.clone(),
            failures: machine.failures(),
            last_error: error.or_else(|| self.unproven.clone()),
            step,
        };
        if self.shared.views.put(view.clone(), &self.stop) {
            self.shared.observer.changed(&view);
        }
    }
}

/// How a question for a renewal window ended.
enum Polled {
    Said(Result<Option<RenewalHint>, IssueError>),
    /// The certificate is to be renewed now, whatever the answer.
    Due,
    /// A person wants something.
    Interrupted(Command),
}

fn done(milestone: &mut Option<oneshot::Sender<()>>) {
    if let Some(sender) = milestone.take()
        && sender.send(()).is_err()
    {
        tracing::trace!("nobody waits for this milestone any more");
    }
}
