//! The one owner of what is served: starts and stops workers, and publishes what they hold.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::budgets::Budgets;
use super::command::{Command, Exported, Verb};
use super::files::{WantedFiles, Watcher};
use super::jobs::{JobView, Jobs};
use super::record::{CertId, CertRecords};
use super::source::Source;
use super::stand_ins::{Leftovers, StandIns};
use super::turns::Turns;
use super::view::{CertObserver, CertView, Views};
use super::worker::{Milestones, Shared, Worker};
use crate::backoff::Backoff;
use crate::clock::SharedClock;
use crate::issuer::Issuer;
use crate::ledger::Ledger;
use crate::name::{HostName, HostPattern};
use crate::storage::Storage;
use crate::task::{OnExit, Shutdown, Supervisor};
use crate::tls::{Bundle, CertPublisher, CertTable};

/// Orders that run at once at one CA: enough to catch up, few enough not to look like an attack to a CA or a DNS provider.
const CONCURRENT_ORDERS: usize = 8;
/// Orders that ask nobody and run at once: each holds a lease, which is an open file.
const CONCURRENT_INSTANT: usize = 32;
/// Questions about renewal windows that run at once at one CA; they are small and wait for nobody.
const CONCURRENT_POLLS: usize = 4;
/// Commands that one certificate keeps for later.
const COMMANDS: usize = 4;
/// Changes within this time make one table.
const COALESCE: Duration = Duration::from_millis(50);
/// Whether a certificate is over is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// A start or a reload waits this long for the disk; a certificate that comes later is served when it comes.
const LOAD_LIMIT: Duration = Duration::from_secs(20);
/// A start waits this long for certificates that need nobody else.
const INSTANT_LIMIT: Duration = Duration::from_secs(5);
const RESTART: Backoff =
    Backoff::new(&[Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)]);

/// A certificate to hold.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Sorted, without duplicates, not empty.
    pub names: Arc<[HostPattern]>,
    /// Who signs it: the preferred CA first, then those that take over when it is down or refuses. Not empty.
    pub issuers: Arc<[Arc<dyn Issuer>]>,
    /// The preferred CA's staging, where it has one: what is ordered there counts nowhere and is never served.
    pub rehearsal: Option<Arc<dyn Issuer>>,
    /// A new set of names is ordered at `rehearsal` first.
    pub rehearse: bool,
    /// Changes with the configuration that an attempt depends on: failed attempts of another one are forgotten.
    pub fingerprint: String,
}

impl Wanted {
    /// The preferred CA.
    pub(super) fn issuer(&self) -> &Arc<dyn Issuer> {
        &self.issuers[0]
    }
}

/// What a worker tells the manager.
pub(super) struct Update {
    pub(super) id: CertId,
    /// Which worker speaks: one that was replaced has nothing to say any more.
    pub(super) worker: u64,
    pub(super) news: News,
}

pub(super) enum News {
    /// This is the certificate now.
    Held(Arc<Bundle>),
    /// Until there is one, this covers some of the names.
    StandIn(Arc<Bundle>),
}

/// Holds certificates. Cloning shares it.
#[derive(Clone)]
pub struct CertManager {
    commands: mpsc::Sender<Order>,
    views: Views,
    jobs: Jobs,
}

/// What the manager is told.
enum Order {
    Set(SetWanted),
    Pass(CertId, Command),
}

struct SetWanted {
    wanted: Vec<Source>,
    default_sni: Option<HostName>,
    published: oneshot::Sender<()>,
}

impl CertManager {
    /// Starts the manager with nothing wanted. It ends with the supervisor's shutdown.
    pub fn start(
        publisher: CertPublisher,
        storage: Arc<dyn Storage>,
        clock: SharedClock,
        observer: Arc<dyn CertObserver>,
        supervisor: &Supervisor,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(4);
        let (updates, received) = mpsc::channel(1024);
        let views = Views::default();
        let ledger = Ledger::new(storage.clone(), clock.clone());
        let shared = Shared {
            records: CertRecords::new(storage),
            budgets: Budgets::start(ledger.clone(), observer.clone(), supervisor),
            ledger,
            clock,
            observer,
            views: views.clone(),
            updates,
            orders: Arc::new(Turns::new(CONCURRENT_ORDERS)),
            instant: Arc::new(Semaphore::new(CONCURRENT_INSTANT)),
            roots: Arc::default(),
            polls: Arc::new(Turns::new(CONCURRENT_POLLS)),
            size: Arc::default(),
            hours: Arc::default(),
        };
        let actor = Actor {
            publisher,
            shared,
            supervisor: supervisor.clone(),
            workers: HashMap::new(),
            started: 0,
            leftovers: Leftovers::default(),
            default_sni: None,
            expires: None,
        };
        // Moved into the first and only start: what it owns cannot be made twice.
        let once = Mutex::new(Some((actor, inbox, received)));
        supervisor.spawn("certificates".into(), OnExit::Fatal, move |shutdown| {
            let taken = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move {
                if let Some((actor, inbox, received)) = taken {
                    actor.run(inbox, received, shutdown).await;
                }
            }
        });
        Self { commands, views, jobs: Jobs::default() }
    }

    /// Replaces the wanted set. Returns when everything that storage holds for it, and everything that needs nobody else, is
    /// published. Certificates in both sets are not touched; those that are gone are no longer served.
    pub async fn set_wanted(
        &self,
        wanted: Vec<Wanted>,
        files: Vec<WantedFiles>,
        default_sni: Option<HostName>,
    ) {
        let wanted =
            wanted.into_iter().map(Source::Issued).chain(files.into_iter().map(Source::Files)).collect();
        let (published, done) = oneshot::channel();
        if self.commands.send(Order::Set(SetWanted { wanted, default_sni, published })).await.is_ok()
            && done.await.is_err()
        {
            tracing::debug!("the certificate manager ended while its wanted set was changed");
        }
    }

    /// Has `verb` done to a certificate, one after the other. Returns the number to watch it by. The error is for a person.
    pub async fn command(&self, id: &CertId, verb: Verb) -> Result<u64, String> {
        let job = self.jobs.begin().ok_or("too much is under way already")?;
        let number = job.number();
        self.pass(id, Command::Do(verb, job)).await?;
        Ok(number)
    }

    /// Something that was asked for, as it stands; `None` if it is not known any more.
    pub fn job(&self, number: u64) -> Option<JobView> {
        self.jobs.view(number)
    }

    /// The served chain with its key. The error is for a person.
    pub async fn export(&self, id: &CertId) -> Result<Exported, String> {
        let (answer, answered) = oneshot::channel();
        self.pass(id, Command::Export(answer)).await?;
        answered.await.unwrap_or_else(|_| Err(format!("{id} is not held by a CA, or not any more")))
    }

    async fn pass(&self, id: &CertId, command: Command) -> Result<(), String> {
        let sent = self.commands.send(Order::Pass(id.clone(), command)).await;
        sent.map_err(|_| "Starlock is shutting down".to_owned())
    }

    /// Every wanted certificate as it stands, sorted by id.
    pub fn views(&self) -> Vec<CertView> {
        self.views.all()
    }
}

impl fmt::Debug for CertManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertManager")
    }
}

struct Actor {
    publisher: CertPublisher,
    shared: Shared,
    supervisor: Supervisor,
    workers: HashMap<CertId, Entry>,
    /// How many workers there have been.
    started: u64,
    leftovers: Leftovers,
    default_sni: Option<HostName>,
    /// When the next certificate is over: another may be better for its names then.
    expires: Option<SystemTime>,
}

struct Entry {
    wanted: Source,
    worker: u64,
    stop: Shutdown,
    /// `None` for files: nobody can ask for anything there.
    inbox: Option<mpsc::Sender<Command>>,
    bundle: Option<Arc<Bundle>>,
    stand_ins: Vec<Arc<Bundle>>,
}

impl Actor {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Order>,
        mut updates: mpsc::Receiver<Update>,
        shutdown: Shutdown,
    ) {
        let mut publish_at: Option<Instant> = None;
        loop {
            let due = async {
                match publish_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.wait() => return,
                () = tokio::time::sleep(LOOK_AGAIN), if publish_at.is_none() => {
                    if self.expires.is_some_and(|at| at <= self.shared.clock.now()) {
                        self.publish();
                    }
                }
                () = due => {
                    publish_at = None;
                    self.publish();
                }
                Some(update) = updates.recv() => {
                    self.take(update);
                    publish_at.get_or_insert_with(|| Instant::now() + COALESCE);
                }
                Some(order) = commands.recv() => {
                    let command = match order {
                        Order::Set(command) => command,
                        Order::Pass(id, command) => {
                            self.pass(&id, command);
                            continue;
                        }
                    };
                    while let Ok(update) = updates.try_recv() {
                        self.take(update); // of workers that are about to be replaced
                    }
                    let (loaded, settled) = self.set_wanted(command.wanted);
                    self.default_sni = command.default_sni;
                    let in_time = async {
                        if tokio::time::timeout(LOAD_LIMIT, all(loaded)).await.is_err() {
                            tracing::warn!("storage does not answer; certificates are served as they come from it");
                        }
                    };
                    self.drain_while(&mut updates, in_time).await;
                    let instant = tokio::time::timeout(INSTANT_LIMIT, all(settled));
                    self.drain_while(&mut updates, async { drop(instant.await) }).await;
                    publish_at = None;
                    self.publish();
                    self.sweep();
                    if command.published.send(()).is_err() {
                        tracing::debug!("nobody waits for the wanted set");
                    }
                }
            }
        }
    }

    /// Hands a command to its worker. One that cannot be taken is refused.
    fn pass(&self, id: &CertId, command: Command) {
        let inbox = self.workers.get(id).and_then(|entry| entry.inbox.as_ref());
        let Some(inbox) = inbox else {
            return command.refuse("no CA signs this certificate: whoever writes its files renews it");
        };
        if let Err(error) = inbox.try_send(command) {
            error
                .into_inner()
                .refuse("too much was asked of this certificate already; one thing is done at a time");
        }
    }

    /// Takes updates in while something that depends on them goes on: the channel is bounded and must not fill up.
    async fn drain_while(&mut self, updates: &mut mpsc::Receiver<Update>, done: impl Future<Output = ()>) {
        tokio::pin!(done);
        loop {
            tokio::select! {
                biased;
                Some(update) = updates.recv() => self.take(update),
                () = &mut done => return,
            }
        }
    }

    fn take(&mut self, update: Update) {
        let Update { id, worker, news } = update;
        let Some(entry) = self.workers.get_mut(&id).filter(|entry| entry.worker == worker) else { return };
        match news {
            News::Held(bundle) => {
                entry.bundle = Some(bundle);
                entry.stand_ins.clear();
            }
            News::StandIn(bundle) if entry.bundle.is_none() => entry.stand_ins.push(bundle),
            News::StandIn(_) => {}
        }
    }

    /// Starts and stops workers. The receivers resolve when each new worker has loaded, and when instant ones have settled.
    fn set_wanted(
        &mut self,
        wanted: Vec<Source>,
    ) -> (Vec<oneshot::Receiver<()>>, Vec<oneshot::Receiver<()>>) {
        self.shared.size.store(wanted.len(), Ordering::Relaxed);
        self.shared.budgets.set(wanted.iter().flat_map(Source::budgets));
        let mut before = std::mem::take(&mut self.workers);
        let (mut loaded, mut settled) = (Vec::new(), Vec::new());
        let stand_ins = Arc::new(StandIns::new(self.shared.records.clone()));
        for wanted in wanted {
            let id = wanted.id();
            match before.remove(&id) {
                Some(entry) if entry.wanted.is_as(&wanted) => {
                    self.workers.insert(id, entry);
                    continue;
                }
                Some(entry) => self.retire(entry),
                None => {}
            }
            let wanted = match wanted {
                Source::Issued(wanted) => wanted,
                Source::Files(files) => {
                    let entry = self.watch(&id, files);
                    self.workers.insert(id, entry);
                    continue;
                }
            };
            let mut milestones = Milestones { stand_ins: Some(stand_ins.clone()), ..Milestones::default() };
            let (sender, receiver) = oneshot::channel();
            milestones.loaded = Some(sender);
            loaded.push(receiver);
            if wanted.issuer().is_instant() {
                let (sender, receiver) = oneshot::channel();
                milestones.settled = Some(sender);
                settled.push(receiver);
            }
            let entry = self.start(&id, wanted, milestones);
            self.workers.insert(id, entry);
        }
        for (id, entry) in before {
            // Stopped first: what its worker still shows is not taken any more.
            self.retire(entry);
            self.shared.views.remove(&id);
            self.shared.observer.forgotten(&id);
        }
        (loaded, settled)
    }

    /// Forgets, in the background, what is remembered of certificates that are not wanted any more.
    fn sweep(&self) {
        let issued = self.workers.iter().filter_map(|(id, entry)| match &entry.wanted {
            Source::Issued(wanted) => Some((wanted.issuer().id().clone(), id.clone())),
            Source::Files(_) => None,
        });
        let wanted: Vec<_> = issued.collect();
        let records = self.shared.records.clone();
        let wanted = Arc::new(wanted);
        self.supervisor.spawn("certificate memos".into(), OnExit::Done, move |shutdown| {
            let (records, wanted) = (records.clone(), wanted.clone());
            async move {
                tokio::select! {
                    swept = records.sweep(&wanted) => match swept {
                        Ok(0) => {}
                        Ok(swept) => tracing::debug!(swept, "attempts of certificates that nobody wants any more are forgotten"),
                        Err(error) => tracing::debug!(%error, "attempts of removed certificates stay in storage"),
                    },
                    () = shutdown.wait() => {}
                }
            }
        });
    }

    fn start(&mut self, id: &CertId, wanted: Wanted, milestones: Milestones) -> Entry {
        self.started += 1;
        let worker = self.started;
        let stop = self.supervisor.shutdown().child();
        let (shared, template, first) = (self.shared.clone(), wanted.clone(), Mutex::new(milestones));
        let (inbox, commands) = mpsc::channel(COMMANDS);
        let commands = Arc::new(tokio::sync::Mutex::new(commands));
        let name = format!("certificate {id}").into();
        self.supervisor.spawn_until(name, OnExit::Restart(RESTART), stop.clone(), move |shutdown| {
            let milestones = std::mem::take(&mut *first.lock().unwrap_or_else(PoisonError::into_inner));
            Worker::new(shared.clone(), template.clone(), worker, commands.clone(), shutdown).run(milestones)
        });
        let wanted = Source::Issued(wanted);
        Entry { wanted, worker, stop, inbox: Some(inbox), bundle: None, stand_ins: Vec::new() }
    }

    fn watch(&mut self, id: &CertId, wanted: WantedFiles) -> Entry {
        self.started += 1;
        let worker = self.started;
        let stop = self.supervisor.shutdown().child();
        let (shared, template) = (self.shared.clone(), wanted.clone());
        let name = format!("certificate {id}").into();
        self.supervisor.spawn_until(name, OnExit::Restart(RESTART), stop.clone(), move |shutdown| {
            Watcher::new(shared.clone(), template.clone(), worker, shutdown).run()
        });
        let bundle = Some(wanted.first.clone());
        Entry { wanted: Source::Files(wanted), worker, stop, inbox: None, bundle, stand_ins: Vec::new() }
    }

    fn retire(&mut self, entry: Entry) {
        entry.stop.trigger();
        if let Some(bundle) = entry.bundle {
            self.leftovers.keep(bundle);
        }
    }

    fn publish(&mut self) {
        let waiting = self.workers.values().filter(|entry| entry.bundle.is_none());
        self.leftovers.only_for(waiting.flat_map(|entry| entry.wanted.names().iter()));
        let held = self.workers.values().filter_map(|entry| entry.bundle.clone());
        let mut table = CertTable::new(held, self.default_sni.as_ref().map(HostName::as_str));
        let stand_ins = self.workers.values().flat_map(|entry| entry.stand_ins.iter());
        let mut others: Vec<_> = self.leftovers.iter().chain(stand_ins).cloned().collect();
        others.sort_by_key(|bundle| std::cmp::Reverse(bundle.not_after())); // not an expired one before a good one
        table.fill(others);
        let now = self.shared.clock.now();
        let table = table.without_expired(now);
        self.expires = self
            .workers
            .values()
            .filter_map(|e| Some(e.bundle.as_ref()?.not_after()))
            .filter(|at| *at > now)
            .min();
        tracing::debug!(names = table.len(), "certificates published");
        self.publisher.publish(table);
    }
}

/// Resolves when every sender has sent or is gone.
async fn all(receivers: Vec<oneshot::Receiver<()>>) {
    for receiver in receivers {
        if receiver.await.is_err() {
            tracing::trace!("a worker ended before its milestone");
        }
    }
}
