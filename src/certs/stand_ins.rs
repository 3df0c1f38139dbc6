//! Other certificates that storage holds for a name: good enough until the right one is there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::record::{CertRecords, StoredCert, parse};
use crate::issuer::IssuerId;
use crate::name::HostPattern;
use crate::storage::{Key, StorageError};
use crate::tls::Bundle;

/// What storage holds, by name. Read once, by the first of the workers that start together and need it; gone when all of them
/// have looked. Ten thousand workers that each read everything would read it ten thousand times.
#[derive(Debug)]
pub(super) struct StandIns {
    records: CertRecords,
    shelves: Mutex<HashMap<IssuerId, Arc<OnceCell<Shelf>>>>,
}

/// One issuer's certificates. Those that nobody asks for are not parsed.
#[derive(Debug, Default)]
struct Shelf {
    books: Vec<(Key, OnceCell<Option<Arc<Bundle>>>)>,
    by_name: HashMap<HostPattern, Vec<usize>>,
}

impl StandIns {
    pub(super) fn new(records: CertRecords) -> Self {
        Self { records, shelves: Mutex::default() }
    }

    /// This issuer's certificates that are for at least one of `names`.
    pub(super) async fn find(&self, issuer: &IssuerId, names: &[HostPattern]) -> Vec<Arc<Bundle>> {
        let shelf = self
            .shelves
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(issuer.clone())
            .or_default()
            .clone();
        let shelf = shelf.get_or_init(|| self.read(issuer)).await;
        let mut wanted: Vec<usize> = names
            .iter()
            .flat_map(HostPattern::coverers)
            .filter_map(|name| shelf.by_name.get(&name))
            .flatten()
            .copied()
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut found = Vec::new();
        for number in wanted {
            let (key, bundle) = &shelf.books[number];
            found.extend(bundle.get_or_init(|| self.bundle(key)).await.clone());
        }
        found
    }

    async fn read(&self, issuer: &IssuerId) -> Shelf {
        let keys = match self.records.storage.list(&format!("certs/{}", Key::new(&[issuer.as_str()]))).await {
            Ok(keys) => keys,
            Err(error) => {
                tracing::warn!(%issuer, %error, "cannot look for other certificates to serve meanwhile");
                return Shelf::default();
            }
        };
        let mut shelf = Shelf::default();
        for key in keys {
            // One that is damaged is told of when its own turn comes.
            let Some(stored) = self.stored(&key).await else { continue };
            for name in stored.names() {
                shelf.by_name.entry(name).or_default().push(shelf.books.len());
            }
            shelf.books.push((key, OnceCell::new()));
        }
        shelf
    }

    async fn bundle(&self, key: &Key) -> Option<Arc<Bundle>> {
        let found = self.load(key).await?;
        parse(&found, &[], 0).ok().map(|cert| cert.bundle)
    }

    async fn stored(&self, key: &Key) -> Option<StoredCert> {
        serde_json::from_slice(&self.load(key).await?).ok()
    }

    async fn load(&self, key: &Key) -> Option<Vec<u8>> {
        match self.records.storage.load(key).await {
            Ok(found) => Some(found?.value),
            Err(StorageError::Damaged { .. }) => None,
            Err(error) => {
                tracing::warn!(%key, %error, "cannot be read, so it is not served meanwhile");
                None
            }
        }
    }
}

/// What was served for sets of names that are not wanted any more, by serial: served on until the new sets have their own.
#[derive(Debug, Default)]
pub(super) struct Leftovers(BTreeMap<String, Arc<Bundle>>);

impl Leftovers {
    pub(super) fn keep(&mut self, bundle: Arc<Bundle>) {
        self.0.insert(bundle.serial().to_owned(), bundle);
    }

    /// Forgets what is for none of the names that `wait`.
    pub(super) fn only_for<'a>(&mut self, wait: impl Iterator<Item = &'a HostPattern>) {
        if self.0.is_empty() {
            return;
        }
        let needed: HashSet<HostPattern> = wait.flat_map(HostPattern::coverers).collect();
        self.0.retain(|_, bundle| bundle.names().iter().any(|name| needed.contains(name)));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.0.values()
    }
}
