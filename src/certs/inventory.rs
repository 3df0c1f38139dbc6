//! Which certificates were ever stored: one that is missing later was lost, and is not ordered again.
//!
//! The notes lie in parts, chosen by a digest of the certificate's key, so that the first certificates of ten thousand names do
//! not each rewrite a list of all of them. Before, one value held everything: it is still read where a part says nothing of a key, and
//! never written. So there is no moment of a migration at which a stored certificate could look like one that never was.

use std::sync::{Mutex as StdMutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::record::{CertRecords, encode};
use crate::storage::{Expect, Key, StorageError};

const PARTS: usize = 64;

/// One change of a part at a time within a process; between processes the revision decides.
#[derive(Debug)]
pub(super) struct PartLocks([Part; PARTS]);

#[derive(Debug, Default)]
struct Part {
    turn: Mutex<()>,
    /// Notes of those who wait for their turn, oldest first: whoever has it writes them all at once.
    waiting: StdMutex<Vec<(Key, Noted)>>,
}

impl Default for PartLocks {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Part::default()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    Stored,
    /// Its value was damaged and set aside by us: missing, but not lost.
    SetAside,
}

#[derive(Default, Serialize, Deserialize)]
struct Inventory {
    /// Keys of the certificates that were stored.
    certificates: Vec<String>,
    /// Those among them whose value was set aside.
    #[serde(default)]
    set_aside: Vec<String>,
}

impl Inventory {
    fn noted(&self, key: &Key) -> Option<Noted> {
        let holds = |keys: &[String]| keys.iter().any(|k| k == key.as_str());
        if holds(&self.set_aside) {
            Some(Noted::SetAside)
        } else {
            holds(&self.certificates).then_some(Noted::Stored)
        }
    }

    /// `false` if that was noted already.
    fn note(&mut self, key: &Key, what: Noted) -> bool {
        if self.noted(key) == Some(what) {
            return false;
        }
        let text = || key.as_str().to_owned();
        match what {
            Noted::Stored => {
                self.set_aside.retain(|k| k != key.as_str());
                if !self.certificates.iter().any(|k| k == key.as_str()) {
                    self.certificates.push(text());
                }
            }
            Noted::SetAside => self.set_aside.push(text()),
        }
        true
    }
}

impl CertRecords {
    /// What was noted last of a certificate; `None` if it was never stored.
    pub(super) async fn noted(&self, key: &Key) -> Result<Option<Noted>, StorageError> {
        match self.inventory(&part_key(part(key))).await?.0.noted(key) {
            None => Ok(self.inventory(&whole_key()).await?.0.noted(key)),
            noted => Ok(noted),
        }
    }

    /// Notes it durably, if it is not noted so already.
    pub(super) async fn note(&self, key: &Key, what: Noted) -> Result<(), StorageError> {
        let number = part(key);
        let (place, part) = (part_key(number), &self.parts.0[number]);
        let waiting = || part.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting().push((key.clone(), what));
        let _turn = part.turn.lock().await;
        // Whoever does not find their note written, because this store fails or is given up, writes it themselves.
        let mut notes = std::mem::take(&mut *waiting());
        notes.push((key.clone(), what));
        for _ in 0..8 {
            let (mut inventory, expect) = self.inventory(&place).await?;
            let mut changed = false;
            for (key, what) in &notes {
                changed |= inventory.note(key, *what);
            }
            if !changed {
                return Ok(());
            }
            match self.storage.store(&place, &encode(&inventory)?, expect).await {
                Err(StorageError::Conflict(_)) => {}
                result => return result.map(|_| ()),
            }
        }
        Err(StorageError::Conflict(place))
    }

    async fn inventory(&self, place: &Key) -> Result<(Inventory, Expect), StorageError> {
        let Some(found) = self.storage.load(place).await? else {
            return Ok((Inventory::default(), Expect::Absent));
        };
        let inventory = serde_json::from_slice(&found.value)
            .map_err(|e| StorageError::Damaged { key: place.clone(), reason: e.to_string() })?;
        Ok((inventory, Expect::Revision(found.revision)))
    }
}

fn part(key: &Key) -> usize {
    Sha256::digest(key.as_str()).first().map_or(0, |byte| usize::from(*byte)) % PARTS
}

fn part_key(number: usize) -> Key {
    Key::new(&["inventory", &format!("{number:02x}")])
}

/// Where everything was before there were parts.
fn whole_key() -> Key {
    Key::new(&["inventory"])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::{MemoryStorage, Storage};

    #[tokio::test]
    async fn what_the_single_value_of_before_says_holds_until_a_part_says_otherwise() {
        let storage = MemoryStorage::new();
        let [stored, aside, never] = ["stored", "aside", "never"].map(|id| Key::new(&["certs", "ca", id]));
        let text = format!(r#"{{"certificates":["{stored}","{aside}"],"set_aside":["{aside}"]}}"#);
        storage.store(&whole_key(), text.as_bytes(), Expect::Absent).await.unwrap();
        let records = CertRecords::new(Arc::new(storage.clone()));
        for (key, noted) in [(&stored, Some(Noted::Stored)), (&aside, Some(Noted::SetAside)), (&never, None)]
        {
            assert_eq!(records.noted(key).await.unwrap(), noted, "{key}");
        }
        for (key, what) in [(&aside, Noted::Stored), (&stored, Noted::SetAside), (&never, Noted::Stored)] {
            records.note(key, what).await.unwrap();
            assert_eq!(records.noted(key).await.unwrap(), Some(what), "{key}");
        }
        let whole = storage.load(&whole_key()).await.unwrap().unwrap();
        assert_eq!(whole.value, text.as_bytes(), "read, and never written");
    }

    #[tokio::test]
    async fn notes_of_many_at_once_all_last() {
        let records = CertRecords::new(Arc::new(MemoryStorage::new()));
        let keys: Vec<Key> = (0..1000).map(|n| Key::new(&["certs", "ca", &format!("h{n}")])).collect();
        let noted = keys.iter().map(|key| records.note(key, Noted::Stored));
        for result in futures_util::future::join_all(noted).await {
            result.unwrap();
        }
        for key in &keys {
            assert_eq!(records.noted(key).await.unwrap(), Some(Noted::Stored), "{key}");
        }
    }
}
