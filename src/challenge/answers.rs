//! The answers to http-01 that stand now: read by every worker without a lock, and by every node that shares the storage.
//!
//! Writes to storage take turns in one task, so that what is taken away is never put back by a write that lagged behind. What
//! a node that died left there ends by itself: each answer says until when it is good.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::Challenge;
use crate::backoff::Backoff;
use crate::clock::SharedClock;
use crate::storage::{Expect, Key, Storage};
use crate::task::{OnExit, Shutdown, Supervisor};

/// Below this, a value an answer.
const ROOM: &str = "answers";
/// An answer is good for so long: three times what a CA gets to look.
const LEASE: Duration = Duration::from_secs(15 * 60);
/// Writes that wait; a removal beyond that is left to the lease.
const WRITES: usize = 1024;
/// Look-ups that wait; a request beyond that goes to its route at once.
const READS: usize = 16;
/// Between two look-ups: 50 a second, however many ask.
const PAUSE: Duration = Duration::from_millis(20);
/// For one look-up, waiting included; then the request goes to its route.
const READ_LIMIT: Duration = Duration::from_secs(2);
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// After the signal to end, for what still stands.
const SHUTDOWN_BUDGET: Duration = Duration::from_secs(10);
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
const RESTART: Backoff = Backoff::new(&[Duration::from_secs(1), Duration::from_secs(30)]);

/// Host, then token.
type Table = HashMap<Box<str>, HashMap<Box<str>, Bytes>>;
/// Host and token, and how many hold the answer.
type Counted = HashMap<(Box<str>, Box<str>), (Bytes, usize)>;

/// Puts answers where they are found. Cloning shares it.
#[derive(Clone)]
pub struct Answers(Arc<Inner>);

struct Inner {
    table: ArcSwap<Table>,
    /// How many stand of each; the table is made of it.
    standing: Mutex<Counted>,
    writes: mpsc::Sender<Write>,
    reads: mpsc::Sender<Read>,
    /// Guards there are, so that a shutdown knows whom to wait for.
    guards: watch::Sender<usize>,
}

/// Finds answers. Cloning is cheap.
#[derive(Clone)]
pub struct AnswerReader(Arc<Inner>);

enum Write {
    Put { host: Box<str>, token: Box<str>, answer: Bytes, done: oneshot::Sender<()> },
    Remove { host: Box<str>, token: Box<str> },
}

struct Read {
    host: Box<str>,
    token: Box<str>,
    reply: oneshot::Sender<Option<Bytes>>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    token: String,
    answer: String,
    /// Seconds since 1970.
    until: u64,
}

/// Starts the tasks that write to storage and look there. After the shutdown signal they go on for up to ten seconds while
/// something stands.
pub fn answers(storage: Arc<dyn Storage>, clock: SharedClock, supervisor: &Supervisor) -> Answers {
    let (writes, written) = mpsc::channel(WRITES);
    let (reads, asked) = mpsc::channel(READS);
    let inner = Arc::new(Inner {
        table: ArcSwap::default(),
        standing: Mutex::default(),
        writes,
        reads,
        guards: watch::Sender::new(0),
    });
    let guards = inner.guards.subscribe();
    let shelf = Shelf { storage, clock };
    let written = Arc::new(AsyncMutex::new(written));
    let keeper = shelf.clone();
    supervisor.spawn("answers".into(), OnExit::Restart(RESTART), move |shutdown| {
        let (keeper, written, guards) = (keeper.clone(), written.clone(), guards.clone());
        async move { keeper.keep(&mut *written.lock().await, guards, &shutdown).await }
    });
    let asked = Arc::new(AsyncMutex::new(asked));
    supervisor.spawn("answers-elsewhere".into(), OnExit::Restart(RESTART), move |shutdown| {
        let (shelf, asked) = (shelf.clone(), asked.clone());
        async move {
            tokio::select! {
                () = shutdown.wait() => {}
                () = async { shelf.look(&mut *asked.lock().await).await } => {}
            }
        }
    });
    Answers(inner)
}

impl Answers {
    /// For the workers.
    pub fn reader(&self) -> AnswerReader {
        AnswerReader(self.0.clone())
    }

    /// Answers `challenges` until the guard is dropped. Returns when other nodes can see them too, or cannot be told.
    pub(super) async fn stand(&self, challenges: &[&Challenge]) -> Standing {
        let mut guard = Standing { inner: self.0.clone(), held: Vec::new() };
        self.0.guards.send_modify(|guards| *guards += 1);
        for challenge in challenges {
            let (host, token): (Box<str>, Box<str>) =
                (challenge.name.as_str().into(), challenge.token.as_str().into());
            let answer = Bytes::from(challenge.key_authorization.clone());
            guard.hold(host.clone(), token.clone(), answer.clone());
            let (done, stored) = oneshot::channel();
            let written = async {
                let write = Write::Put { host, token, answer, done };
                self.0.writes.send(write).await.is_ok() && stored.await.is_ok()
            };
            if !matches!(timeout(WRITE_LIMIT, written).await, Ok(true)) {
                tracing::warn!(name = %challenge.name, "only this process answers the CA's http-01 request: the storage could not be told");
            }
        }
        guard
    }
}

impl AnswerReader {
    /// The answer for a token of `host`, if one stands here. No lock is taken.
    pub(super) fn here(&self, host: &str, token: &str) -> Option<Bytes> {
        self.0.table.load().get(host)?.get(token).cloned()
    }

    /// The answer that another node put into the storage. Bounded in time and number; gives up rather than waits.
    pub(super) async fn elsewhere(&self, host: &str, token: &str) -> Option<Bytes> {
        let (reply, answer) = oneshot::channel();
        self.0.reads.try_send(Read { host: host.into(), token: token.into(), reply }).ok()?;
        timeout(READ_LIMIT, answer).await.ok()?.ok()?
    }
}

impl Inner {
    fn change(&self, change: impl FnOnce(&mut Counted)) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut standing);
        let mut table = Table::new();
        for ((host, token), (answer, _)) in standing.iter() {
            table.entry(host.clone()).or_default().insert(token.clone(), answer.clone());
        }
        self.table.store(Arc::new(table));
    }
}

/// Answers that stand; dropping it takes them away.
pub(super) struct Standing {
    inner: Arc<Inner>,
    held: Vec<(Box<str>, Box<str>)>,
}

impl Standing {
    fn hold(&mut self, host: Box<str>, token: Box<str>, answer: Bytes) {
        self.inner.change(|standing| {
            standing.entry((host.clone(), token.clone())).or_insert((answer, 0)).1 += 1;
        });
        self.held.push((host, token));
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.inner.change(|standing| {
            for key in &self.held {
                if let Some((_, count)) = standing.get_mut(key) {
                    *count -= 1;
                    if *count == 0 {
                        standing.remove(key);
                    }
                }
            }
        });
        for (host, token) in self.held.drain(..) {
            if self.inner.writes.try_send(Write::Remove { host, token }).is_err() {
                tracing::debug!("an answer stays in the storage until its lease is over");
            }
        }
        self.inner.guards.send_modify(|guards| *guards -= 1);
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answers({} guards)", *self.0.guards.borrow())
    }
}

impl fmt::Debug for AnswerReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnswerReader({} hosts)", self.0.table.load().len())
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Standing({})", self.held.len())
    }
}

/// Answers in storage.
#[derive(Clone)]
struct Shelf {
    storage: Arc<dyn Storage>,
    clock: SharedClock,
}

impl Shelf {
    async fn keep(
        &self,
        writes: &mut mpsc::Receiver<Write>,
        mut guards: watch::Receiver<usize>,
        shutdown: &Shutdown,
    ) {
        self.sweep().await;
        let mut sweep_at = Instant::now() + SWEEP_EVERY;
        loop {
            tokio::select! {
                biased;
                write = writes.recv() => match write {
                    Some(write) => self.write(write).await,
                    None => return,
                },
                () = shutdown.wait() => break,
                () = tokio::time::sleep_until(sweep_at) => {
                    self.sweep().await;
                    sweep_at = Instant::now() + SWEEP_EVERY;
                }
            }
        }
        let deadline = Instant::now() + SHUTDOWN_BUDGET;
        let rest = async {
            loop {
                tokio::select! {
                    biased;
                    Some(write) = writes.recv() => self.write(write).await,
                    () = async { drop(guards.wait_for(|guards| *guards == 0).await) } => break,
                }
            }
            while let Ok(write) = writes.try_recv() {
                self.write(write).await;
            }
        };
        if timeout_at(deadline, rest).await.is_err() {
            tracing::warn!(
                "answers to http-01 stay in the storage; they end by themselves within 15 minutes"
            );
        }
    }

    async fn write(&self, write: Write) {
        let outcome = match write {
            Write::Put { host, token, answer, done } => {
                let until = seconds(self.clock.now() + LEASE);
                let answer = String::from_utf8_lossy(&answer).into_owned();
                let kept = Kept { token: token.to_string(), answer, until };
                let value = serde_json::to_vec(&kept).unwrap_or_default();
                let key = key(&host, &token);
                let stored = timeout(WRITE_LIMIT, self.storage.store(&key, &value, Expect::Anything)).await;
                if matches!(stored, Ok(Ok(_))) {
                    // Whoever waited may have been cancelled; then the removal is next in the queue.
                    let _ = done.send(());
                }
                stored.map(|stored| stored.map(drop))
            }
            Write::Remove { host, token } => {
                timeout(WRITE_LIMIT, self.storage.remove(&key(&host, &token))).await
            }
        };
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "answers to http-01 cannot be shared with other nodes"),
            Err(_) => tracing::warn!("the storage did not take an answer to http-01 within 10 s"),
        }
    }

    /// Removes what dead processes left.
    async fn sweep(&self) {
        let Ok(Ok(keys)) = timeout(WRITE_LIMIT, self.storage.list(ROOM)).await else { return };
        for key in keys {
            let Ok(Ok(Some(found))) = timeout(WRITE_LIMIT, self.storage.load(&key)).await else { continue };
            if !self.is_good(&found.value) {
                drop(timeout(WRITE_LIMIT, self.storage.remove(&key)).await);
            }
        }
    }

    fn is_good(&self, value: &[u8]) -> bool {
        serde_json::from_slice::<Kept>(value).is_ok_and(|kept| kept.until > seconds(self.clock.now()))
    }

    async fn look(&self, asked: &mut mpsc::Receiver<Read>) {
        while let Some(Read { host, token, reply }) = asked.recv().await {
            if reply.is_closed() {
                continue;
            }
            let found = timeout(READ_LIMIT, self.storage.load(&key(&host, &token))).await;
            let answer = match found {
                Ok(Ok(Some(found))) if self.is_good(&found.value) => {
                    serde_json::from_slice::<Kept>(&found.value)
                        .ok()
                        .filter(|kept| kept.token == *token)
                        .map(|kept| Bytes::from(kept.answer))
                }
                _ => None,
            };
            // The client may have left.
            let _ = reply.send(answer);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Tokens differ by case, and keys do not.
fn key(host: &str, token: &str) -> Key {
    let digest: String = Sha256::digest(token).iter().take(16).map(|b| format!("{b:02x}")).collect();
    Key::new(&[ROOM, host, &digest])
}

fn seconds(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::challenge::ChallengeKind;
    use crate::clock::SystemClock;
    use crate::name::HostName;
    use crate::storage::MemoryStorage;

    fn challenge(token: &str) -> Challenge {
        let mut challenge = Challenge::dns01(HostName::parse("example.com").unwrap(), "");
        challenge.kind = ChallengeKind::Http01;
        (challenge.token, challenge.key_authorization) = (token.into(), format!("{token}.thumb"));
        challenge
    }

    #[tokio::test]
    async fn answers_are_found_here_and_elsewhere_and_leave_nothing_behind() {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let supervisor = Supervisor::new(Shutdown::new());
        let clock: SharedClock = Arc::new(SystemClock);
        let here = answers(storage.clone(), clock.clone(), &supervisor);
        let elsewhere = answers(storage.clone(), clock, &supervisor).reader();
        let reader = here.reader();
        let guard = here.stand(&[&challenge("Token"), &challenge("tOKEN")]).await;
        assert_eq!(reader.here("example.com", "Token").unwrap(), "Token.thumb");
        assert!(
            reader.here("example.com", "other").is_none() && reader.here("example.org", "Token").is_none()
        );
        assert!(elsewhere.here("example.com", "Token").is_none());
        assert_eq!(elsewhere.elsewhere("example.com", "tOKEN").await.unwrap(), "tOKEN.thumb");
        assert!(elsewhere.elsewhere("example.com", "token").await.is_none());
        // Two orders may hold the same answer.
        let second = here.stand(&[&challenge("Token")]).await;
        drop(guard);
        assert!(
            reader.here("example.com", "Token").is_some() && reader.here("example.com", "tOKEN").is_none()
        );
        supervisor.shutdown().trigger();
        drop(second);
        assert!(reader.here("example.com", "Token").is_none());
        assert!(supervisor.join(Duration::from_secs(20)).await);
        assert!(storage.list(ROOM).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_a_dead_node_left_is_not_given_out_and_swept_at_the_next_start() {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let stale = serde_json::to_vec(&Kept { token: "old".into(), answer: "x".into(), until: 1 }).unwrap();
        let fresh =
            serde_json::to_vec(&Kept { token: "new".into(), answer: "y".into(), until: u64::MAX }).unwrap();
        for (token, value) in [("old", &stale), ("new", &fresh)] {
            storage.store(&key("example.com", token), value, Expect::Absent).await.unwrap();
        }
        let supervisor = Supervisor::new(Shutdown::new());
        let reader = answers(storage.clone(), Arc::new(SystemClock), &supervisor).reader();
        assert!(reader.elsewhere("example.com", "old").await.is_none());
        assert_eq!(reader.elsewhere("example.com", "new").await.unwrap(), "y");
        assert_eq!(storage.list(ROOM).await.unwrap(), [key("example.com", "new")]);
        supervisor.shutdown().trigger();
        assert!(supervisor.join(Duration::from_secs(20)).await);
    }

    #[tokio::test]
    async fn a_flood_of_tokens_is_turned_away_at_once() {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let supervisor = Supervisor::new(Shutdown::new());
        let reader = answers(storage, Arc::new(SystemClock), &supervisor).reader();
        let begun = std::time::Instant::now();
        let asked = (0..2000).map(|n| {
            let reader = reader.clone();
            async move { reader.elsewhere("example.com", &format!("token-{n}")).await }
        });
        let answers = futures_util::future::join_all(asked).await;
        assert!(answers.iter().all(Option::is_none));
        assert!(begun.elapsed() < READ_LIMIT, "{:?}", begun.elapsed());
    }
}
