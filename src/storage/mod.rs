//! State that outlives the process: certificates, accounts, orders under way, the journal of TXT records.
//!
//! One value per certificate holds chain, key and meta together, so that one store is one transaction.

mod memory;

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;

pub use memory::MemoryStorage;

/// Where state lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageSpec {
    /// A directory of our own; made with mode 0700 if it does not exist.
    pub path: PathBuf,
}

/// A value's name: segments of `[a-z0-9._-]`, joined by `/`. A segment does not start with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// Joins segments; every character that a key cannot hold becomes `_` (`*` becomes `_` too), and an empty segment
    /// or a leading dot gets a `_` in front.
    pub fn new(segments: &[&str]) -> Self {
        let safe = |segment: &&str| {
            let mut text: String = segment
                .chars()
                .map(|c| c.to_ascii_lowercase())
                .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
                .collect();
            if text.is_empty() || text.starts_with('.') {
                text.insert(0, '_');
            }
            text
        };
        Self(segments.iter().map(safe).collect::<Vec<_>>().join("/"))
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Changes whenever a value changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(pub String);

/// A value as it was read.
#[derive(Clone)]
pub struct Stored {
    /// The bytes; may hold private keys.
    pub value: Vec<u8>,
    /// What to expect at the next store.
    pub revision: Revision,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stored({} bytes, {:?})", self.value.len(), self.revision)
    }
}

/// What must be true for a store to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Whatever is there is replaced.
    Anything,
    /// Nothing is there.
    Absent,
    /// The value is still this one.
    Revision(Revision),
}

/// Why storage did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process changed the value first: read it again.
    #[error("{0} was changed by another process meanwhile")]
    Conflict(Key),
    /// The value is there but not readable as what it should be. It was set aside, not deleted.
    #[error("{key} is damaged: {reason}")]
    Damaged {
        /// Which value.
        key: Key,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk, its rights, its space.
    #[error("storage: {what}: {reason}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// What the system said.
        reason: String,
    },
}

/// Keeps values durably.
///
/// A store that has returned is on disk. A crash at any moment leaves either the old or the new value, whole.
/// Calls may run concurrently; dropping a call's future may or may not carry it out.
#[async_trait]
pub trait Storage: Send + Sync + fmt::Debug {
    /// Reads a value; `None` if there is none.
    async fn load(&self, key: &Key) -> Result<Option<Stored>, StorageError>;

    /// The generation before the current one, if one was kept.
    async fn load_previous(&self, key: &Key) -> Result<Option<Stored>, StorageError>;

    /// Replaces a value if `expect` holds, keeping the former one as the previous generation.
    async fn store(&self, key: &Key, value: &[u8], expect: Expect) -> Result<Revision, StorageError>;

    /// Removes a value and its previous generation. Removing what is not there is fine.
    async fn remove(&self, key: &Key) -> Result<(), StorageError>;

    /// Moves a value out of the way, keeping its bytes for a person to look at. Says where it is now.
    async fn set_aside(&self, key: &Key) -> Result<String, StorageError>;

    /// The keys below `prefix` (whole segments), sorted.
    async fn list(&self, prefix: &str) -> Result<Vec<Key>, StorageError>;

    /// Takes the lease of `name` if nobody holds it. It ends when dropped and when the process dies.
    ///
    /// For keeping two processes from ordering the same certificate, not for consistency: a store still says what it expects.
    async fn try_lease(&self, name: &Key) -> Result<Option<Box<dyn Lease>>, StorageError>;
}

/// A held lease.
pub trait Lease: Send + Sync + fmt::Debug {
    /// Grows with every holder; written beside what a holder writes, it shows whose turn came later.
    fn fencing(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_cannot_leave_their_place() {
        assert_eq!(Key::new(&["certs", "*.Example.com"]).as_str(), "certs/_.example.com");
        assert_eq!(Key::new(&["..", "a/b", ""]).as_str(), "_../a_b/_");
    }
}
