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
    values: BTreeMap<Key, Vec<(u64, Vec<u8>)>>,
    aside: Vec<(Key, Vec<u8>)>,
    leases: HashSet<Key>,
    counter: u64,
}

impl MemoryStorage {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn generation(&self, key: &Key, back: usize) -> Option<Stored> {
        let state = self.state();
        let generations = state.values.get(key)?;
        let (number, value) = generations.iter().rev().nth(back)?;
        Some(Stored { value: value.clone(), revision: Revision(number.to_string()) })
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn load(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        Ok(self.generation(key, 0))
    }

    async fn load_previous(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        Ok(self.generation(key, 1))
    }

    async fn store(&self, key: &Key, value: &[u8], expect: Expect) -> Result<Revision, StorageError> {
        let mut state = self.state();
        let current = state.values.get(key).and_then(|g| g.last()).map(|(n, _)| Revision(n.to_string()));
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
        let generations = state.values.entry(key.clone()).or_default();
        generations.push((number, value.to_vec()));
        let excess = generations.len().saturating_sub(2);
        generations.drain(..excess);
        Ok(Revision(number.to_string()))
    }

    async fn remove(&self, key: &Key) -> Result<(), StorageError> {
        self.state().values.remove(key);
        Ok(())
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StorageError> {
        let mut state = self.state();
        if let Some(mut generations) = state.values.remove(key) {
            if let Some((_, value)) = generations.pop() {
                state.aside.push((key.clone(), value));
            }
            if !generations.is_empty() {
                state.values.insert(key.clone(), generations);
            }
        }
        Ok(format!("memory:{key}"))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Key>, StorageError> {
        let below = format!("{prefix}/");
        Ok(self.state().values.keys().filter(|k| k.as_str().starts_with(&below)).cloned().collect())
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
