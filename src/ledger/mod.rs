//! What each CA has counted against its limits: kept over restarts, so that an order that would be refused is not sent.

mod book;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use crate::clock::SharedClock;
use crate::issuer::{Budget, IssuerId, Spent};
use crate::storage::{Expect, Key, Storage, StorageError};

pub use book::{Ask, Book, Limit, Refusal, domains};

/// A CA's book is kept in so many values: an order rewrites a few small ones.
const SHARDS: usize = 16;
/// Two processes that write at once: the later one reads again.
const TRIES: usize = 8;

/// The books of all CAs. Cloning shares them.
///
/// Calls are serialised. A call whose future is dropped may have counted or not. Storage that fails never holds an order up:
/// it is logged, and what is in memory counts.
#[derive(Clone, Debug)]
pub struct Ledger {
    storage: Arc<dyn Storage>,
    clock: SharedClock,
    books: Arc<Mutex<HashMap<IssuerId, Kept>>>,
}

/// A CA's book with the revisions of what it was read from.
#[derive(Debug, Default)]
struct Kept {
    book: Book,
    revisions: BTreeMap<usize, Expect>,
}

impl Ledger {
    /// Reads nothing yet.
    pub fn new(storage: Arc<dyn Storage>, clock: SharedClock) -> Self {
        Self { storage, clock, books: Arc::default() }
    }

    /// Whether the CA would take `ask` now. Counts nothing.
    pub async fn check(&self, budget: &Budget, ask: &Ask<'_>) -> Result<(), Refusal> {
        let mut books = self.books.lock().await;
        let kept = self.kept(&mut books, &budget.ca).await;
        kept.book.check(&budget.limits, ask, self.clock.now())
    }

    /// Reserves what the CA will count for `ask` before it is sent, unless it would refuse it. It is kept, over restarts, until
    /// [`Ledger::settle`] is told how the order ended. Whether something was reserved for the same names before is the answer.
    ///
    /// `force` counts it whatever the book says: an order at the hard floor, or one that a person demands.
    pub async fn begin(&self, budget: &Budget, ask: &Ask<'_>, force: bool) -> Result<bool, Refusal> {
        let now = self.clock.now();
        let begin = |book: &mut Book| book.begin(&budget.limits, ask, now, force);
        self.change(budget, &touched(ask, &Spent::default()), begin).await
    }

    /// Takes in what the CA has counted since [`Ledger::begin`].
    pub async fn settle(&self, budget: &Budget, ask: &Ask<'_>, spent: &Spent) {
        let now = self.clock.now();
        let shards = touched(ask, spent);
        let settled = self.change(budget, &shards, |book| {
            book.settle(&budget.limits, ask, spent, now);
            Ok(())
        });
        if let Err(refusal) = settled.await {
            tracing::debug!(%refusal, "settling refuses nothing");
        }
    }

    /// How many more of each limit the CA allows, by what is used most.
    pub async fn remaining(&self, budget: &Budget) -> Vec<(Limit, u32)> {
        let mut books = self.books.lock().await;
        let (kept, now) = (self.kept(&mut books, &budget.ca).await, self.clock.now());
        Limit::ALL
            .into_iter()
            .filter_map(|limit| Some((limit, kept.book.remaining(&budget.limits, limit, now)?)))
            .collect()
    }

    /// What is known to be counted by a CA, as it stands now.
    pub async fn book(&self, ca: &IssuerId) -> Book {
        let mut books = self.books.lock().await;
        self.kept(&mut books, ca).await.book.clone()
    }

    async fn change<T>(
        &self,
        budget: &Budget,
        touched: &BTreeSet<usize>,
        change: impl Fn(&mut Book) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut books = self.books.lock().await;
        let kept = self.kept(&mut books, &budget.ca).await;
        let mut tries = 0;
        loop {
            let changed = change(&mut kept.book)?;
            kept.book.prune(self.clock.now());
            match self.write(&budget.ca, kept, touched).await {
                Ok(()) => return Ok(changed),
                Err(StorageError::Conflict(_)) if tries == TRIES => {
                    tracing::warn!(ca = %budget.ca, "other processes kept on changing what the CA counts; this order is not in it");
                    return Ok(changed);
                }
                // Another process has counted meanwhile, and what it has under way may lie in any shard. What was already written stays
                // written: rather too much than too little.
                Err(StorageError::Conflict(_)) => {
                    tries += 1;
                    for shard in 0..SHARDS {
                        self.read(&budget.ca, kept, shard).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(ca = %budget.ca, %error, "what the CA counts cannot be kept; after a restart too little is known of its limits");
                    return Ok(changed);
                }
            }
        }
    }

    async fn kept<'b>(&self, books: &'b mut HashMap<IssuerId, Kept>, ca: &IssuerId) -> &'b mut Kept {
        if !books.contains_key(ca) {
            let mut kept = Kept::default();
            for shard in 0..SHARDS {
                self.read(ca, &mut kept, shard).await;
            }
            books.insert(ca.clone(), kept);
        }
        books.entry(ca.clone()).or_default()
    }

    /// Replaces what is known of a shard by what storage holds.
    async fn read(&self, ca: &IssuerId, kept: &mut Kept, shard: usize) {
        let key = key(ca, shard);
        let (entries, revision) = match self.storage.load(&key).await {
            Ok(Some(found)) => match serde_json::from_slice(&found.value) {
                Ok(entries) => (entries, Expect::Revision(found.revision)),
                Err(error) => {
                    tracing::warn!(%key, %error, "what the CA has counted is damaged there; it is counted anew");
                    (BTreeMap::new(), Expect::Anything)
                }
            },
            Ok(None) => (BTreeMap::<String, u64>::new(), Expect::Absent),
            Err(error) => {
                tracing::warn!(%error, "what the CA has counted cannot be read; orders go on without it");
                (BTreeMap::new(), Expect::Anything)
            }
        };
        kept.book.entries.retain(|entry, _| shard_of(entry) != shard);
        kept.book.entries.extend(entries);
        kept.revisions.insert(shard, revision);
    }

    async fn write(
        &self,
        ca: &IssuerId,
        kept: &mut Kept,
        shards: &BTreeSet<usize>,
    ) -> Result<(), StorageError> {
        for shard in shards {
            let entries: BTreeMap<&str, u64> = kept
                .book
                .entries
                .iter()
                .filter(|(entry, _)| shard_of(entry) == *shard)
                .map(|(entry, end)| (entry.as_str(), *end))
                .collect();
            let value = serde_json::to_vec(&entries)
                .map_err(|e| StorageError::Io { what: "cannot encode".into(), reason: e.to_string() })?;
            let expect = kept.revisions.get(shard).cloned().unwrap_or(Expect::Anything);
            let revision = self.storage.store(&key(ca, *shard), &value, expect).await?;
            kept.revisions.insert(*shard, Expect::Revision(revision));
        }
        Ok(())
    }
}

/// The shards that an order may change.
fn touched(ask: &Ask<'_>, spent: &Spent) -> BTreeSet<usize> {
    let failed = spent
        .failed
        .iter()
        .flat_map(|name| [Limit::Failures, Limit::Pause].map(|limit| book::entry(limit, name.as_str())));
    // What is reserved may be of another kind than what is asked for now.
    let registers = ask.registers || spent.registered;
    let counted = Ask { exempt: false, renewal: false, resumes: false, registers, ..*ask };
    book::looked_at(&counted)
        .into_iter()
        .map(|(limit, of)| book::entry(limit, &of))
        .chain(failed)
        .map(|entry| shard_of(&entry))
        .collect()
}

/// What is counted for the same thing lies together.
fn shard_of(entry: &str) -> usize {
    let of = entry.split_once(':').map_or("", |(_, of)| of);
    usize::from(Sha256::digest(of)[0]) % SHARDS
}

fn key(ca: &IssuerId, shard: usize) -> Key {
    Key::new(&["ledger", ca.as_str(), &format!("{shard:x}")])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::clock::ManualClock;
    use crate::issuer::{CaLimits, Rate};
    use crate::name::HostPattern;
    use crate::storage::MemoryStorage;

    const HOUR: Duration = Duration::from_secs(3600);

    fn budget() -> Budget {
        let names = Some(Rate { burst: 2, every: HOUR });
        Budget { ca: IssuerId::new("ca.test"), limits: CaLimits { names, ..CaLimits::default() } }
    }

    #[tokio::test]
    async fn it_is_the_same_after_a_restart_and_beside_another_process() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let clock = Arc::new(ManualClock::new(now));
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
        let open = || Ledger::new(storage.clone(), clock.clone());
        let names = [HostPattern::parse("example.com").unwrap()];
        let ask = Ask { names: &names, renewal: false, exempt: false, registers: false, resumes: false };
        let (one, two) = (open(), open());
        let signed = Spent { ordered: true, signed: true, ..Spent::default() };
        two.check(&budget(), &ask).await.unwrap(); // has read what was there before the other wrote
        assert!(!one.begin(&budget(), &ask, false).await.unwrap());
        one.settle(&budget(), &ask, &signed).await;
        assert!(!two.begin(&budget(), &ask, false).await.unwrap());
        assert!(open().begin(&budget(), &ask, false).await.unwrap(), "it is still under way after a restart");
        two.settle(&budget(), &ask, &signed).await;
        let refusal = open().begin(&budget(), &ask, false).await.unwrap_err();
        assert_eq!((refusal.limit, refusal.until), (Limit::Names, now + HOUR + HOUR / 50));
        assert!(two.check(&budget(), &ask).await.is_err(), "it read again when it wrote");
        let taken = Ask { resumes: true, ..ask };
        open().begin(&budget(), &taken, false).await.unwrap();
        open().settle(&budget(), &taken, &Spent::default()).await;
        open().begin(&budget(), &ask, true).await.unwrap();
        assert_eq!(open().remaining(&budget()).await, [(Limit::Names, 0)]);
        open().settle(&budget(), &ask, &signed).await;
        clock.advance(HOUR * 4);
        assert_eq!(open().remaining(&budget()).await, [(Limit::Names, 2)]);
    }

    /// The certificates of one domain are ordered by several processes: what one has under way is held against the other.
    #[tokio::test]
    async fn what_another_process_has_under_way_counts() {
        let clock = Arc::new(ManualClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
        let limits = CaLimits { domain: Some(Rate { burst: 5, every: HOUR }), ..CaLimits::default() };
        let budget = Budget { ca: IssuerId::new("ca.test"), limits };
        let [one, two] = [(); 2].map(|()| Ledger::new(storage.clone(), clock.clone()));
        let sets: Vec<_> =
            (0..6).map(|n| [HostPattern::parse(&format!("h{n}.example.com")).unwrap()]).collect();
        let ask = |n: usize| Ask {
            names: &sets[n],
            renewal: false,
            exempt: false,
            registers: false,
            resumes: false,
        };
        two.check(&budget, &ask(5)).await.unwrap();
        for n in 0..5 {
            one.begin(&budget, &ask(n), false).await.unwrap();
        }
        let refusal = two.begin(&budget, &ask(5), false).await.unwrap_err();
        assert_eq!(refusal.limit, Limit::Domain);
    }
}
