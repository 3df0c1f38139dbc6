//! Takes records away that nobody needs any more, whatever became of who asked for them.
//!
//! Every record that is to stand in DNS is *held* first. Whoever lets go of a record last has it removed; removing and
//! creating the same record take turns, so an order that is resumed never loses what it has just published again.

use std::collections::HashMap;
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
        let turn = if provider.holds_one_value() {
            Some(self.0.turns.take(&format!("provider {}", provider.id())).await)
        } else {
            None
        };
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
            job.turn = None;
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

    /// Creates one record that is held.
    async fn create(&self, provider: &dyn TxtProvider, record: &TxtRecord) -> Result<(), DnsError> {
        let _turn = self.turn(provider.id(), record).await;
        self.journal.write(provider.id(), record).await.map_err(|e| {
            DnsError::Unavailable(format!(
                "the TXT record {} was not created, since the journal cannot be written: {e}",
                record.name
            ))
        })?;
        provider.add_txt(record).await
    }

    /// Removes what can be removed of a job; the rest stays in it. Dropping the future loses nothing.
    async fn discard(&self, job: &mut Job) {
        if let Some(adding) = &mut job.adding {
            // What the order thought of it does not matter any more; whether it came to be does.
            drop(adding.get_mut().unwrap_or_else(PoisonError::into_inner).await);
            job.adding = None;
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
    adding: Option<Mutex<BoxFuture<'static, Result<(), DnsError>>>>,
    turn: Option<OwnedMutexGuard<()>>,
    failures: u32,
    reason: String,
}

struct Left {
    record: TxtRecord,
    held: bool,
}

impl Job {
    fn new(provider: Arc<dyn TxtProvider>, left: Vec<Left>) -> Self {
        Self { provider, left, adding: None, turn: None, failures: 0, reason: String::new() }
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
        let adding = async move {
            let mut adds = stream::iter(records)
                .map(|record| {
                    let (inner, provider, stop) = (inner.clone(), provider.clone(), stop.clone());
                    async move {
                        if stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        let added = inner.create(&*provider, &record).await;
                        stop.fetch_or(added.is_err(), Ordering::Relaxed);
                        added
                    }
                })
                .buffer_unordered(ADDS_AT_ONCE);
            let mut result = Ok(());
            while let Some(added) = adds.next().await {
                result = result.and(added);
            }
            result
        };
        let adding = job.adding.insert(Mutex::new(adding.boxed()));
        let result = adding.get_mut().unwrap_or_else(PoisonError::into_inner).await;
        job.adding = None;
        result
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
