//! The journal of TXT records: an entry is written before a record is created and removed after the record is.

use std::fmt::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::{SharedClock, rfc3339};
use crate::dns::TxtRecord;
use crate::name::DnsName;
use crate::storage::{Expect, Key, Storage, StorageError};

const PREFIX: [&str; 2] = ["journal", "txt"];

/// Where entries lie.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    storage: Arc<dyn Storage>,
    clock: SharedClock,
}

/// What an entry says. Enough to remove the record by, with nothing else remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The provider's id.
    pub(super) provider: String,
    pub(super) record: TxtRecord,
}

#[derive(Serialize, Deserialize)]
struct Written {
    provider: String,
    name: String,
    value: String,
    since: String,
}

impl Journal {
    pub(super) fn new(storage: Arc<dyn Storage>, clock: SharedClock) -> Self {
        Self { storage, clock }
    }

    /// Writes the entry; when this has returned, a crash leaves no record that nobody knows of. `false` if a former run
    /// had written it already.
    pub(super) async fn write(&self, provider: &str, record: &TxtRecord) -> Result<bool, StorageError> {
        let written = Written {
            provider: provider.to_owned(),
            name: record.name.to_string(),
            value: record.value.clone(),
            since: rfc3339(self.clock.now()),
        };
        let key = key(provider, record);
        let json = serde_json::to_vec_pretty(&written)
            .map_err(|e| StorageError::Damaged { key: key.clone(), reason: e.to_string() })?;
        match self.storage.store(&key, &json, Expect::Absent).await {
            Ok(_) => Ok(true),
            Err(StorageError::Conflict(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether there is an entry, or may be one.
    pub(super) async fn knows(&self, provider: &str, record: &TxtRecord) -> bool {
        !matches!(self.storage.load(&key(provider, record)).await, Ok(None))
    }

    /// Removes the entry.
    pub(super) async fn erase(&self, provider: &str, record: &TxtRecord) -> Result<(), StorageError> {
        self.storage.remove(&key(provider, record)).await
    }

    /// Everything that stands in the journal. What cannot be read as an entry is set aside and said aloud.
    pub(super) async fn entries(&self) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        for key in self.storage.list(&PREFIX.join("/")).await? {
            let stored = match self.storage.load(&key).await {
                Ok(Some(stored)) => stored,
                Ok(None) => continue,
                Err(StorageError::Damaged { key, reason }) => {
                    tracing::warn!(%key, reason, "an entry of the TXT journal is damaged; its record may still stand in DNS");
                    continue;
                }
                Err(error) => return Err(error),
            };
            match parse(&stored.value) {
                Some(entry) => entries.push(entry),
                None => {
                    let place = self.storage.set_aside(&key).await?;
                    tracing::warn!(%key, place, "an entry of the TXT journal is not one; it was set aside, and its record may still stand in DNS");
                }
            }
        }
        Ok(entries)
    }
}

fn parse(bytes: &[u8]) -> Option<Entry> {
    let written: Written = serde_json::from_slice(bytes).ok()?;
    let name = DnsName::parse(&written.name).ok()?;
    Some(Entry { provider: written.provider, record: TxtRecord { name, value: written.value } })
}

/// The same record gets the same key, so that an order which is resumed does not leave a second entry.
fn key(provider: &str, record: &TxtRecord) -> Key {
    let digest = Sha256::digest(format!("{provider}\n{}\n{}", record.name, record.value));
    let mut hex = String::new();
    for byte in &digest[..16] {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Key::new(&[PREFIX[0], PREFIX[1], &hex])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::storage::MemoryStorage;

    #[tokio::test]
    async fn entries_come_back_and_damaged_ones_are_set_aside() {
        let storage = Arc::new(MemoryStorage::new());
        let journal = Journal::new(storage.clone(), Arc::new(SystemClock));
        let record = |value: &str| TxtRecord {
            name: DnsName::parse("_acme-challenge.example.com").unwrap(),
            value: value.into(),
        };
        for (value, fresh) in [("a", true), ("b", true), ("a", false)] {
            assert_eq!(journal.write("p", &record(value)).await.unwrap(), fresh);
        }
        let bad = Key::new(&["journal", "txt", "bad"]);
        storage.store(&bad, b"not json", Expect::Absent).await.unwrap();
        let mut values: Vec<_> =
            journal.entries().await.unwrap().into_iter().map(|e| e.record.value).collect();
        values.sort();
        assert_eq!(values, ["a", "b"]);
        assert!(storage.load(&bad).await.unwrap().is_none());
        journal.erase("p", &record("a")).await.unwrap();
        let left = journal.entries().await.unwrap();
        assert_eq!(left, [Entry { provider: "p".into(), record: record("b") }]);
    }
}
