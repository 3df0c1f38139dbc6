//! What tests of other rooms kill processes with.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::{Expect, FsStorage, Key, Lease, Revision, Storage, StorageError, StorageSpec, Stored};

/// Storage in a directory for a process that dies: its `n`-th write is carried out and never answered.
#[derive(Debug)]
pub(crate) struct Dying {
    inner: FsStorage,
    left: AtomicUsize,
}

impl Dying {
    pub(crate) fn open(path: &Path, writes: usize) -> Arc<Self> {
        let (inner, _) = FsStorage::open(&StorageSpec { path: path.to_owned() }).unwrap();
        Arc::new(Self { inner, left: AtomicUsize::new(writes) })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    /// Never comes back after the last write that was granted.
    async fn after<T>(&self, result: T) -> T {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if matches!(left, Ok(1) | Err(_)) {
            std::future::pending::<()>().await;
        }
        result
    }
}

#[async_trait]
impl Storage for Dying {
    async fn load(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        self.inner.load(key).await
    }

    async fn load_previous(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        self.inner.load_previous(key).await
    }

    async fn store(&self, key: &Key, value: &[u8], expect: Expect) -> Result<Revision, StorageError> {
        let result = self.inner.store(key, value, expect).await;
        self.after(result).await
    }

    async fn remove(&self, key: &Key) -> Result<(), StorageError> {
        let result = self.inner.remove(key).await;
        self.after(result).await
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StorageError> {
        let result = self.inner.set_aside(key).await;
        self.after(result).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Key>, StorageError> {
        self.inner.list(prefix).await
    }

    async fn try_lease(&self, name: &Key) -> Result<Option<Box<dyn Lease>>, StorageError> {
        self.inner.try_lease(name).await
    }
}
