//! Takes records away that nobody needs any more, whatever became of who asked for them.
//!
//! Every record that is to stand in DNS is *held* first. Whoever lets go of a record last has it removed; removing and
//! creating the same record take turns, so an order that is resumed never loses what it has just published again.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc, watch};
use tokio::time::Instant;

use super::journal::Journal;
use crate::backoff::Backoff;
use crate::clock::SharedClock;
use crate::dns::{DnsError, TxtProvider, TxtRecord, ZoneTurns};
use crate::name::DnsName;
use crate::storage::{Storage, StorageError};
use crate::task::{self, OnExit, Shutdown, Supervisor};

/// Jobs that wait to be looked at; more stay in the journal until the next start.
const QUEUE: usize = 1024;
/// Jobs that failed and wait for another try.
const MAX_WAITING: usize = 1024;
/// Jobs at once: a provider that hangs must not hold up the others.
const AT_ONCE: usize = 16;
/// Records of one order that are created at once.
const ADDS_AT_ONCE: usize = 4;
/// After the signal to end, for what is still standing.
const SHUTDOWN_BUDGET: Duration = Duration::from_secs(10);
const RETRIES: Backoff = Backoff::new(&[
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3600),
]);
const RESTART: Backoff = Backoff::new(&[Duration::from_secs(1), Duration::from_secs(30)]);

/// The handle of the janitor task. Cloning shares it.
#[derive(Clone)]
pub struct Janitor(Arc<Inner>);

struct Inner {
    journal: Journal,
    /// How many guards hold a record.
    held: Mutex<HashMap<(String, TxtRecord), usize>>,
    /// One at a time for each record, and for each provider that holds one value.
    turns: ZoneTurns,
    queue: mpsc::Sender<Job>,
    /// How many guards there are, so that a shutdown knows whom to wait for.
    guards: watch::Sender<usize>,
}

impl fmt::Debug for Janitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Janitor({} guards)", *self.0.guards.borrow())
    }
}

/// What [`Janitor::sweep`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Records that a former run left behind and that are being removed now.
    pub records: usize,
    /// Records whose provider is not configured any more: they stay in the journal.
    pub orphans: usize,
}

/// Starts the janitor. After the shutdown signal it goes on for up to ten seconds, as long as there is something to remove
/// or somebody who holds records: join the supervisor with a longer limit.
pub fn janitor(storage: Arc<dyn Storage>, clock: SharedClock, supervisor: &Supervisor) -> Janitor {
    let (queue, jobs) = mpsc::channel(QUEUE);
    let inner = Inner {
        journal: Journal::new(storage, clock),
        held: Mutex::default(),
        turns: ZoneTurns::new(),
        queue,
        guards: watch::Sender::new(0),
    };
    let janitor = Janitor(Arc::new(inner));
    let jobs = Arc::new(AsyncMutex::new(jobs));
    let this = janitor.clone();
    supervisor.spawn("txt-janitor".into(), OnExit::Restart(RESTART), move |shutdown| {
        let (this, jobs) = (this.clone(), jobs.clone());
        async move { this.run(&mut *jobs.lock().await, &shutdown).await }
    });
    janitor
}

impl Janitor {
    /// Has everything removed that stands in the journal and is held by nobody: once at each start, before the first
    /// order, and only by the process that owns the storage. Returns when the jobs are queued.
    pub async fn sweep(&self, providers: &[Arc<dyn TxtProvider>]) -> Result<Swept, StorageError> {
        let mut swept = Swept::default();
        for entry in self.0.journal.entries().await? {
            let Some(provider) = providers.iter().find(|provider| provider.id() == entry.provider) else {
                swept.orphans += 1;
                tracing::warn!(
                    provider = entry.provider, name = %entry.record.name, value = entry.record.value,
                    "a TXT record was left behind by a DNS provider that is not configured any more; remove it by hand"
                );
                continue;
            };
            swept.records += 1;
            let left = vec![Left { record: entry.record, held: false }];
            // The queue is bounded; the task that empties it is running.
            if self.0.queue.send(Job::new(provider.clone(), left)).await.is_err() {
                break;
            }
        }
        Ok(swept)
    }

    /// Holds records for `provider`. Nothing is created yet. Waits while another order holds a record of a provider that
    /// has room for one value only.
    pub(super) async fn hold(&self, provider: Arc<dyn TxtProvider>, records: Vec<TxtRecord>) -> Guard {
        let mut turn = Vec::new();
        if provider.holds_one_value() {
            turn.push(self.0.turns.take(&format!("provider {}", provider.id())).await);
        } else if provider.keeps_values() {
            // Newer values push older ones out: another order's must not come while these have to be seen. In one order for all,
            // so that two never wait for each other.
            let names: BTreeSet<&DnsName> = records.iter().map(|record| &record.name).collect();
            for name in names {
                turn.push(self.0.turns.take(&format!("values {} {name}", provider.id())).await);
            }
        }
        let mut held = self.0.held();
        for record in &records {
            *held.entry((provider.id().to_owned(), record.clone())).or_insert(0) += 1;
        }
        drop(held);
        self.0.guards.send_modify(|count| *count += 1);
        let left = records.into_iter().map(|record| Left { record, held: true }).collect();
        let job = Job { turn, ..Job::new(provider, left) };
        Guard { janitor: self.clone(), job: Some(job), stop: Arc::default() }
    }

    async fn run(&self, jobs: &mut mpsc::Receiver<Job>, shutdown: &Shutdown) {
        let mut working = FuturesUnordered::new();
        let mut waiting: Vec<(Instant, Job)> = Vec::new();
        loop {
            let due = waiting.iter().map(|(at, _)| *at).min();
            tokio::select! {
                biased;
                () = shutdown.wait() => break,
                Some(job) = working.next() => {
                    if let Some(job) = job {
                        self.again(job, &mut waiting);
                    }
                }
                () = sleep_until(due) => {
                    let now = Instant::now();
                    for index in (0..waiting.len()).rev() {
                        if waiting[index].0 <= now {
                            working.push(self.work(waiting.swap_remove(index).1));
                        }
                    }
                }
                Some(job) = jobs.recv(), if working.len() < AT_ONCE => working.push(self.work(job)),
            }
        }
        for (_, job) in waiting {
            working.push(self.work(job));
        }
        let finish = self.finish(jobs, &mut working);
        if tokio::time::timeout(SHUTDOWN_BUDGET, finish).await.is_err() {
            tracing::warn!(
                "not every TXT record could be removed before the end; the next start removes the rest"
            );
        }
    }

    /// Works until nobody holds a record and nothing is left to try.
    async fn finish(
        &self,
        jobs: &mut mpsc::Receiver<Job>,
        working: &mut FuturesUnordered<BoxFuture<'static, Option<Job>>>,
    ) {
        let mut guards = self.0.guards.subscribe();
        loop {
            while let Ok(job) = jobs.try_recv() {
                working.push(self.work(job));
            }
            if working.is_empty() && *guards.borrow_and_update() == 0 && jobs.is_empty() {
                return;
            }
            tokio::select! {
                Some(job) = working.next() => {
                    if let Some(left) = job {
                        left.report(None);
                    }
                }
                Some(job) = jobs.recv() => working.push(self.work(job)),
                Ok(()) = guards.changed() => {}
            }
        }
    }

    fn again(&self, mut job: Job, waiting: &mut Vec<(Instant, Job)>) {
        job.failures += 1;
        let wait = RETRIES.after(job.failures);
        job.report(Some(wait));
        if waiting.len() < MAX_WAITING {
            waiting.push((Instant::now() + wait, job));
        } else {
            tracing::error!("too many TXT records wait to be removed; the next start tries the rest");
        }
    }

    /// One try; gives the job back if something is left of it.
    fn work(&self, mut job: Job) -> BoxFuture<'static, Option<Job>> {
        let inner = self.0.clone();
        async move {
            let tried = AssertUnwindSafe(inner.discard(&mut job)).catch_unwind().await;
            if let Err(panic) = tried {
                let panic = task::panic_text(panic.as_ref());
                tracing::error!(provider = job.provider.id(), panic, "a DNS provider panicked");
                job.adding = None;
            }
            // Whatever came of it, the next order may have its turn: its value replaces this one.
            job.turn.clear();
            (!job.left.is_empty()).then_some(job)
        }
        .boxed()
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, HashMap<(String, TxtRecord), usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn(&self, provider: &str, record: &TxtRecord) -> OwnedMutexGuard<()> {
        self.turns.take(&format!("record {provider} {} {}", record.name, record.value)).await
    }

    /// Creates one record that is held. When this fails, the record may stand nevertheless, unless it says otherwise.
    async fn create(&self, provider: &dyn TxtProvider, record: &TxtRecord) -> Result<(), Uncreated> {
        let _turn = self.turn(provider.id(), record).await;
        let fresh = self.journal.write(provider.id(), record).await.map_err(|error| Uncreated {
            error: DnsError::Unavailable(format!(
                "the TXT record {} was not created, since the journal cannot be written: {error}",
                record.name
            )),
            absent: false,
        })?;
        let Err(error) = provider.add_txt(record).await else { return Ok(()) };
        // Refused means that nothing was written. Without this, a wrong credential would fill the journal with records that
        // never were and cannot be removed either.
        let refused = fresh && matches!(error, DnsError::Refused(_));
        let absent = refused && self.journal.erase(provider.id(), record).await.is_ok();
        Err(Uncreated { error, absent })
    }

    /// Creates the records, each journalled first, until one fails or `stop` is set.
    async fn create_all(
        &self,
        provider: &dyn TxtProvider,
        records: Vec<TxtRecord>,
        stop: &AtomicBool,
    ) -> Added {
        let mut adds = stream::iter(records)
            .map(|record| async move {
                if stop.load(Ordering::Relaxed) {
                    // A former run may have created it all the same.
                    let known = self.journal.knows(provider.id(), &record).await;
                    return (record, Ok(known));
                }
                let created = self.create(provider, &record).await;
                stop.fetch_or(created.is_err(), Ordering::Relaxed);
                (record, created.map(|()| true))
            })
            .buffer_unordered(ADDS_AT_ONCE);
        let mut added = Added { result: Ok(()), absent: Vec::new() };
        while let Some((record, created)) = adds.next().await {
            match created {
                Ok(true) => {}
                Ok(false) => added.absent.push(record),
                Err(Uncreated { error, absent }) => {
                    if absent {
                        added.absent.push(record);
                    }
                    added.result = added.result.and(Err(error));
                }
            }
        }
        added
    }

    /// Lets go of what does not stand anyway.
    fn settle(&self, job: &mut Job, absent: &[TxtRecord]) {
        for record in absent {
            if let Some(index) = job.left.iter().position(|left| left.record == *record) {
                let mut left = job.left.swap_remove(index);
                self.release(job.provider.id(), &mut left);
            }
        }
    }

    /// Removes what can be removed of a job; the rest stays in it. Dropping the future loses nothing.
    async fn discard(&self, job: &mut Job) {
        if let Some(adding) = &mut job.adding {
            // What the order thought of it does not matter any more; whether it came to be does.
            let added = adding.get_mut().unwrap_or_else(PoisonError::into_inner).await;
            job.adding = None;
            self.settle(job, &added.absent);
        }
        let mut index = 0;
        while index < job.left.len() {
            match self.remove(&*job.provider, &mut job.left[index]).await {
                Ok(()) => {
                    job.left.swap_remove(index);
                }
                Err(reason) => {
                    job.reason = reason;
                    index += 1;
                }
            }
        }
    }

    async fn remove(&self, provider: &dyn TxtProvider, left: &mut Left) -> Result<(), String> {
        let _turn = self.turn(provider.id(), &left.record).await;
        if self.release(provider.id(), left) {
            return Ok(());
        }
        provider.remove_txt(&left.record).await.map_err(|e| e.to_string())?;
        self.journal.erase(provider.id(), &left.record).await.map_err(|e| e.to_string())
    }

    /// Lets go of a record; whether somebody else still holds it.
    fn release(&self, provider: &str, left: &mut Left) -> bool {
        let mut held = self.held();
        let key = (provider.to_owned(), left.record.clone());
        if std::mem::take(&mut left.held)
            && let Some(count) = held.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                held.remove(&key);
            }
        }
        held.contains_key(&key)
    }
}

/// Records of one order that have to go.
struct Job {
    provider: Arc<dyn TxtProvider>,
    left: Vec<Left>,
    /// What was being created when the order was dropped: it is brought to its end first, so that it cannot come after the
    /// removal. The mutex only makes it shareable; nobody else locks it.
    adding: Option<Mutex<BoxFuture<'static, Added>>>,
    turn: Vec<OwnedMutexGuard<()>>,
    failures: u32,
    reason: String,
}

/// What became of creating records.
struct Added {
    result: Result<(), DnsError>,
    /// Those that surely do not stand.
    absent: Vec<TxtRecord>,
}

struct Uncreated {
    error: DnsError,
    /// Whether the record surely does not stand, and the journal does not say so either.
    absent: bool,
}

struct Left {
    record: TxtRecord,
    held: bool,
}

impl Job {
    fn new(provider: Arc<dyn TxtProvider>, left: Vec<Left>) -> Self {
        Self { provider, left, adding: None, turn: Vec::new(), failures: 0, reason: String::new() }
    }

    fn report(&self, next: Option<Duration>) {
        for left in &self.left {
            let next =
                next.map_or_else(|| "at the next start".to_owned(), |w| format!("in {} s", w.as_secs()));
            tracing::warn!(
                provider = self.provider.id(), name = %left.record.name, value = left.record.value, reason = self.reason, next,
                "a TXT record could not be removed; it is tried again"
            );
        }
    }
}

/// Records that are held. Dropping it hands them to the janitor.
pub(super) struct Guard {
    janitor: Janitor,
    job: Option<Job>,
    /// Tells what is still to be created that nobody waits for it.
    stop: Arc<AtomicBool>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({} records)", self.job.as_ref().map_or(0, |job| job.left.len()))
    }
}

impl Guard {
    /// Creates the records, each journalled first. The first failure stops the rest.
    pub(super) async fn publish(&mut self) -> Result<(), DnsError> {
        let Some(job) = &mut self.job else { return Ok(()) };
        let records: Vec<TxtRecord> = job.left.iter().map(|left| left.record.clone()).collect();
        let (inner, provider, stop) = (self.janitor.0.clone(), job.provider.clone(), self.stop.clone());
        let adding = async move { inner.create_all(&*provider, records, &stop).await };
        let adding = job.adding.insert(Mutex::new(adding.boxed()));
        let added = adding.get_mut().unwrap_or_else(PoisonError::into_inner).await;
        job.adding = None;
        self.janitor.0.settle(job, &added.absent);
        added.result
    }

    /// Removes the records now. What cannot be removed goes to the janitor.
    pub(super) async fn remove(mut self) {
        if let Some(job) = &mut self.job {
            self.janitor.0.discard(job).await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(job) = self.job.take().filter(|job| !job.left.is_empty())
            && let Err(error) = self.janitor.0.queue.try_send(job)
        {
            let mut job = match error {
                mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job) => job,
            };
            job.reason = "the janitor has too much to do".into();
            job.report(None);
            for left in &mut job.left {
                self.janitor.0.release(job.provider.id(), left);
            }
        }
        self.janitor.0.guards.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU32;

    use async_trait::async_trait;
    use tokio::sync::Semaphore;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::clock::SystemClock;
    use crate::name::DnsName;
    use crate::storage::MemoryStorage;

    #[derive(Debug)]
    struct Fake {
        one_value: bool,
        standing: Mutex<BTreeSet<String>>,
        calls: Mutex<Vec<String>>,
        failing_removals: AtomicU32,
        refuse: AtomicBool,
        gate: Semaphore,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                one_value: false,
                standing: Mutex::default(),
                calls: Mutex::default(),
                failing_removals: AtomicU32::new(0),
                refuse: AtomicBool::new(false),
                gate: Semaphore::new(1000),
            }
        }

        fn standing(&self) -> Vec<String> {
            self.standing.lock().unwrap().iter().cloned().collect()
        }
    }

    #[async_trait]
    impl TxtProvider for Fake {
        fn id(&self) -> &str {
            "fake"
        }

        fn holds_one_value(&self) -> bool {
            self.one_value
        }

        async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
            if self.refuse.load(Ordering::SeqCst) {
                return Err(DnsError::Refused("no".into()));
            }
            self.gate.acquire().await.unwrap().forget();
            sleep(Duration::from_millis(10)).await;
            self.calls.lock().unwrap().push(format!("+{}", record.value));
            self.standing.lock().unwrap().insert(record.value.clone());
            Ok(())
        }

        async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
            sleep(Duration::from_millis(10)).await;
            let failing =
                self.failing_removals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if failing.is_ok() {
                return Err(DnsError::Unavailable("down".into()));
            }
            self.calls.lock().unwrap().push(format!("-{}", record.value));
            self.standing.lock().unwrap().remove(&record.value);
            Ok(())
        }
    }

    struct Rig {
        fake: Arc<Fake>,
        storage: Arc<MemoryStorage>,
        supervisor: Supervisor,
        janitor: Janitor,
    }

    impl Rig {
        fn new(fake: Fake) -> Self {
            let storage = Arc::new(MemoryStorage::new());
            let supervisor = Supervisor::new(Shutdown::new());
            let janitor = janitor(storage.clone(), Arc::new(SystemClock), &supervisor);
            Self { fake: Arc::new(fake), storage, supervisor, janitor }
        }

        async fn hold(&self, values: &[&str]) -> Guard {
            self.janitor.hold(self.fake.clone(), values.iter().map(|v| record(v)).collect()).await
        }

        async fn journal(&self) -> usize {
            self.storage.list("journal").await.unwrap().len()
        }

        async fn end(self) -> (Arc<Fake>, usize) {
            self.supervisor.shutdown().trigger();
            assert!(self.supervisor.join(Duration::from_secs(11)).await);
            let left = self.journal().await;
            (self.fake, left)
        }
    }

    fn record(value: &str) -> TxtRecord {
        TxtRecord { name: DnsName::parse("_acme-challenge.example.com").unwrap(), value: value.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_published_is_removed_by_hand_or_by_dropping() {
        let rig = Rig::new(Fake::new());
        let mut first = rig.hold(&["a", "b"]).await;
        first.publish().await.unwrap();
        assert_eq!((rig.fake.standing().len(), rig.journal().await), (2, 2));
        first.remove().await;
        assert_eq!((rig.fake.standing().len(), rig.journal().await), (0, 0));
        let mut second = rig.hold(&["c"]).await;
        second.publish().await.unwrap();
        drop(second);
        let (fake, journal) = rig.end().await;
        assert_eq!((fake.standing().len(), journal), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_addition_under_way_is_brought_to_its_end_before_the_removal() {
        let rig = Rig::new(Fake { gate: Semaphore::new(0), ..Fake::new() });
        let mut guard = rig.hold(&["a"]).await;
        assert!(timeout(Duration::from_secs(1), guard.publish()).await.is_err());
        assert_eq!(rig.journal().await, 1);
        drop(guard);
        rig.fake.gate.add_permits(1);
        let (fake, journal) = rig.end().await;
        assert_eq!(*fake.calls.lock().unwrap(), ["+a", "-a"]);
        assert_eq!((fake.standing().len(), journal), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_stands_until_the_last_holder_lets_go() {
        let rig = Rig::new(Fake::new());
        let (mut first, mut second) = (rig.hold(&["a"]).await, rig.hold(&["a"]).await);
        first.publish().await.unwrap();
        second.publish().await.unwrap();
        first.remove().await;
        assert_eq!((rig.fake.standing(), rig.journal().await), (vec!["a".to_owned()], 1));
        // A removal that a former run left over must not hit it either.
        let providers: [Arc<dyn TxtProvider>; 1] = [rig.fake.clone()];
        let swept = rig.janitor.sweep(&providers).await.unwrap();
        assert_eq!(swept, Swept { records: 1, orphans: 0 });
        sleep(Duration::from_secs(5)).await;
        assert_eq!(rig.fake.standing(), ["a"]);
        second.remove().await;
        assert_eq!(rig.end().await.0.standing().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_removals_are_tried_again_and_stay_in_the_journal_until_then() {
        let rig = Rig::new(Fake::new());
        rig.fake.failing_removals.store(3, Ordering::SeqCst);
        let mut guard = rig.hold(&["a"]).await;
        guard.publish().await.unwrap();
        guard.remove().await;
        assert_eq!((rig.fake.standing().len(), rig.journal().await), (1, 1));
        sleep(Duration::from_secs(100)).await;
        assert_eq!((rig.fake.standing().len(), rig.journal().await), (0, 0));

        rig.fake.failing_removals.store(u32::MAX, Ordering::SeqCst);
        let mut guard = rig.hold(&["b"]).await;
        guard.publish().await.unwrap();
        drop(guard);
        let storage = rig.storage.clone();
        let (fake, left) = rig.end().await;
        assert_eq!((fake.standing().len(), left), (1, 1));
        // The next start removes it; what belongs to nobody stays.
        fake.failing_removals.store(0, Ordering::SeqCst);
        let supervisor = Supervisor::new(Shutdown::new());
        let next = janitor(storage.clone(), Arc::new(SystemClock), &supervisor);
        assert_eq!(next.sweep(&[]).await.unwrap(), Swept { records: 0, orphans: 1 });
        let providers: [Arc<dyn TxtProvider>; 1] = [fake.clone()];
        assert_eq!(next.sweep(&providers).await.unwrap(), Swept { records: 1, orphans: 0 });
        sleep(Duration::from_secs(1)).await;
        assert_eq!((fake.standing().len(), storage.list("journal").await.unwrap().len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_never_stood_and_leaves_no_entry() {
        let rig = Rig::new(Fake::new());
        rig.fake.refuse.store(true, Ordering::SeqCst);
        let mut guard = rig.hold(&["a", "b", "c", "d", "e", "f"]).await;
        assert!(matches!(guard.publish().await, Err(DnsError::Refused(_))));
        drop(guard);
        assert_eq!(rig.journal().await, 0);
        let (fake, _) = rig.end().await;
        assert!(fake.calls.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn orders_take_turns_where_one_value_can_stand() {
        let rig = Rig::new(Fake { one_value: true, ..Fake::new() });
        let mut first = rig.hold(&["a"]).await;
        first.publish().await.unwrap();
        assert!(timeout(Duration::from_secs(60), rig.hold(&["b"])).await.is_err());
        drop(first);
        let mut second = timeout(Duration::from_secs(60), rig.hold(&["b"])).await.unwrap();
        second.publish().await.unwrap();
        second.remove().await;
        assert_eq!(*rig.end().await.0.calls.lock().unwrap(), ["+a", "-a", "+b", "-b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_waits_for_holders_and_for_no_longer_than_its_budget() {
        let rig = Rig::new(Fake::new());
        let mut guard = rig.hold(&["a"]).await;
        guard.publish().await.unwrap();
        rig.supervisor.shutdown().trigger();
        assert!(!rig.supervisor.join(Duration::from_secs(5)).await);
        drop(guard);
        assert!(rig.supervisor.join(Duration::from_secs(1)).await);
        assert_eq!(rig.fake.standing().len(), 0);

        let rig = Rig::new(Fake::new());
        let _held = rig.hold(&["a"]).await;
        rig.supervisor.shutdown().trigger();
        assert!(rig.supervisor.join(Duration::from_secs(11)).await);
    }
}
