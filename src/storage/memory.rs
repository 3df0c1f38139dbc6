//! Storage in memory: the reference for what [`Storage`] means, and what tests use.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Expect, Key, Lease, Revision, Storage, StorageError, Stored};

/// Values in a map; leases in a set. Cloning shares them, as two processes share a directory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    current: BTreeMap<Key, Generation>,
    previous: BTreeMap<Key, Generation>,
    aside: Vec<(Key, Vec<u8>)>,
    leases: HashSet<Key>,
    counter: u64,
}

#[derive(Clone, Debug)]
struct Generation {
    number: u64,
    value: Vec<u8>,
}

impl Generation {
    fn stored(&self) -> Stored {
        Stored { value: self.value.clone(), revision: Revision(self.number.to_string()) }
    }
}

impl MemoryStorage {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn load(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        Ok(self.state().current.get(key).map(Generation::stored))
    }

    async fn load_previous(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        Ok(self.state().previous.get(key).map(Generation::stored))
    }

    async fn store(&self, key: &Key, value: &[u8], expect: Expect) -> Result<Revision, StorageError> {
        let mut state = self.state();
        let current = state.current.get(key).map(|g| g.stored().revision);
        let holds = match &expect {
            Expect::Anything => true,
            Expect::Absent => current.is_none(),
            Expect::Revision(revision) => current.as_ref() == Some(revision),
        };
        if !holds {
            return Err(StorageError::Conflict(key.clone()));
        }
        state.counter += 1;
        let number = state.counter;
        if let Some(former) = state.current.insert(key.clone(), Generation { number, value: value.to_vec() })
        {
            state.previous.insert(key.clone(), former);
        }
        Ok(Revision(number.to_string()))
    }

    async fn remove(&self, key: &Key) -> Result<(), StorageError> {
        let mut state = self.state();
        state.current.remove(key);
        state.previous.remove(key);
        Ok(())
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StorageError> {
        let mut state = self.state();
        if let Some(generation) = state.current.remove(key) {
            state.aside.push((key.clone(), generation.value));
        }
        Ok(format!("memory:{key}"))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Key>, StorageError> {
        let below = format!("{prefix}/");
        Ok(self.state().current.keys().filter(|k| k.as_str().starts_with(&below)).cloned().collect())
    }

    async fn try_lease(&self, name: &Key) -> Result<Option<Box<dyn Lease>>, StorageError> {
        let mut state = self.state();
        if !state.leases.insert(name.clone()) {
            return Ok(None);
        }
        state.counter += 1;
        let fencing = state.counter;
        drop(state);
        Ok(Some(Box::new(MemoryLease { storage: self.clone(), name: name.clone(), fencing })))
    }
}

#[derive(Debug)]
struct MemoryLease {
    storage: MemoryStorage,
    name: Key,
    fencing: u64,
}

impl Lease for MemoryLease {
    fn fencing(&self) -> u64 {
        self.fencing
    }
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        self.storage.state().leases.remove(&self.name);
    }
}
