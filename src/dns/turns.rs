//! One writer at a time in a zone: many vendors read a whole set of records, change it and write it back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Above this many entries the unused ones are thrown out at each new one.
const SWEEP_AT: usize = 64;

/// Who is writing where. Cloning shares it; all providers of a process share one.
#[derive(Clone, Debug, Default)]
pub struct ZoneTurns(Arc<Mutex<HashMap<String, Weak<AsyncMutex<()>>>>>);

impl ZoneTurns {
    /// Nobody is writing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for its turn in `place`; the turn ends when the guard is dropped. First come, first served.
    pub async fn take(&self, place: &str) -> OwnedMutexGuard<()> {
        self.lock(place).lock_owned().await
    }

    fn lock(&self, place: &str) -> Arc<AsyncMutex<()>> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = places.get(place).and_then(Weak::upgrade) {
            return lock;
        }
        if places.len() >= SWEEP_AT {
            places.retain(|_, lock| lock.strong_count() > 0);
        }
        let lock = Arc::new(AsyncMutex::new(()));
        places.insert(place.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn writers_of_one_zone_wait_for_each_other_and_others_do_not() {
        let turns = ZoneTurns::new();
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let start = tokio::time::Instant::now();
        join_all((0..10).map(|_| async {
            let _turn = turns.take("example.com").await;
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            inside.fetch_sub(1, Ordering::SeqCst);
        }))
        .await;
        assert_eq!((most.load(Ordering::SeqCst), start.elapsed().as_secs()), (1, 10));

        let start = tokio::time::Instant::now();
        join_all((0..500).map(|i| {
            let turns = turns.clone();
            async move {
                let _turn = turns.take(&format!("{i}.example")).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }))
        .await;
        assert_eq!(start.elapsed().as_secs(), 1);
        let _one_more = turns.take("last").await;
        assert!(turns.0.lock().unwrap().len() <= SWEEP_AT);
    }
}
