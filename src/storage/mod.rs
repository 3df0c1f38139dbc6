//! State that outlives the process: certificates, accounts, orders under way, the journal of TXT records.
//!
//! One value per certificate holds chain, key and meta together, so that one store is one transaction.

#[cfg(test)]
pub(crate) mod dying_tests;
mod fs;
mod lock;
mod memory;
mod rights;

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use sha2::{Digest, Sha256};

pub use fs::FsStorage;
pub use memory::MemoryStorage;

/// File names hold 255 bytes: two segments and what is put around them.
const MAX_SEGMENT: usize = 100;

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
    /// or a leading dot gets a `_` in front. A segment that would not fit into a file's name is cut and ends with a digest of
    /// the whole.
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
            if text.len() > MAX_SEGMENT {
                let digest = Sha256::digest(segment.as_bytes());
                text.truncate(MAX_SEGMENT - 17);
                text = format!(
                    "{text}-{}",
                    digest.iter().take(8).map(|b| format!("{b:02x}")).collect::<String>()
                );
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

/// What is wrong with a value that is not the JSON it should be, without what stands there: it may be a key.
pub fn json_fault(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let what = match error.classify() {
        Category::Data => "it is JSON of another shape",
        Category::Eof => "it ends in the middle",
        Category::Syntax | Category::Io => "it is not JSON",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
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
    /// For keeping two processes from ordering the same certificate, not for consistency: a store still says what it expects. A
    /// store of the value `name` by a holder that somebody has overtaken since (a lock that the file system lost, a file that
    /// was taken away) fails.
    async fn try_lease(&self, name: &Key) -> Result<Option<Box<dyn Lease>>, StorageError>;
}

/// A held lease.
pub trait Lease: Send + Sync + fmt::Debug {
    /// Grows with every holder: shows whose turn came later.
    fn fencing(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_json_is_told_without_what_stands_there() {
        #[derive(Debug, serde::Deserialize)]
        struct Account {
            #[allow(dead_code, reason = "only its shape matters")]
            key: u8,
        }
        for (text, fault) in [
            (r#"{"key": "hunter2"}"#, "it is JSON of another shape (line 1, column 17)"),
            (r#"{"hunter2": "#, "it ends in the middle (line 1, column 12)"),
            ("hunter2", "it is not JSON (line 1, column 1)"),
            (r#""hunter2""#, "it is JSON of another shape (line 1, column 9)"),
        ] {
            assert_eq!(json_fault(&serde_json::from_str::<Account>(text).unwrap_err()), fault);
        }
    }

    #[test]
    fn keys_cannot_leave_their_place() {
        assert_eq!(Key::new(&["certs", "*.Example.com"]).as_str(), "certs/_.example.com");
        assert_eq!(Key::new(&["..", "a/b", ""]).as_str(), "_../a_b/_");
    }

    #[tokio::test]
    async fn the_longest_names_fit_into_files() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = FsStorage::open(&StorageSpec { path: dir.path().join("state") }).unwrap();
        let name = |last: &str| format!("{}{last}", "abcdefgh.".repeat(27));
        let keys = ["one", "two"].map(|last| Key::new(&["certs", &"x".repeat(300), &name(last)]));
        assert_ne!(keys[0], keys[1]);
        for key in &keys {
            storage.store(key, b"first", Expect::Absent).await.unwrap();
            storage.store(key, b"second", Expect::Anything).await.unwrap();
            assert!(storage.try_lease(key).await.unwrap().is_some());
            storage.set_aside(key).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_process_that_stopped_with_the_lock_does_not_stop_others_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = FsStorage::open(&StorageSpec { path: dir.path().to_owned() }).unwrap();
        let held = storage.lock_within(std::time::Duration::ZERO).unwrap();
        let error = storage.lock_within(std::time::Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        drop(held);
        storage.lock_within(std::time::Duration::ZERO).unwrap();
    }

    #[tokio::test]
    async fn of_many_who_expect_the_same_one_stores_and_the_others_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let spec = StorageSpec { path: dir.path().to_owned() };
        let processes = [FsStorage::open(&spec).unwrap().0, FsStorage::open(&spec).unwrap().0];
        let key = Key::new(&["certs", "a"]);
        let value = |n: usize| format!("value {n}").into_bytes();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..32 {
            let (storage, key, value) = (processes[n % 2].clone(), key.clone(), value(n));
            tasks.spawn(async move { storage.store(&key, &value, Expect::Absent).await.map(|_| value) });
        }
        let results = tasks.join_all().await;
        let stored: Vec<_> = results.iter().flatten().collect();
        assert_eq!(stored, [&processes[0].load(&key).await.unwrap().unwrap().value]);
        let conflicts = results.iter().filter(|r| matches!(r, Err(StorageError::Conflict(_)))).count();
        assert_eq!(conflicts, 31);
        let names: Vec<_> =
            std::fs::read_dir(dir.path().join("certs")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["a.json"]);
    }

    #[tokio::test]
    async fn the_names_of_new_directories_are_on_disk_up_to_the_top() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = FsStorage::open(&StorageSpec { path: dir.path().join("state") }).unwrap();
        let key = Key::new(&["certs", "ca", "a"]);
        storage.store(&key, b"x", Expect::Anything).await.unwrap();
        for below in ["certs/ca", "certs"] {
            assert!(storage.is_durable(&storage.path().join(below)), "{below}");
        }
        // Removed and made again, they are new.
        std::fs::remove_dir_all(storage.path().join("certs")).unwrap();
        storage.store(&key, b"x", Expect::Anything).await.unwrap();
        assert_eq!(storage.load(&key).await.unwrap().unwrap().value, b"x");
        assert!(storage.try_lease(&key).await.unwrap().is_some());
        assert!(storage.is_durable(&storage.path().join("leases")));
    }

    #[tokio::test]
    async fn whoever_was_overtaken_stores_nothing_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let spec = StorageSpec { path: dir.path().to_owned() };
        let [one, two] = [FsStorage::open(&spec).unwrap().0, FsStorage::open(&spec).unwrap().0];
        let (key, other) = (Key::new(&["certs", "a"]), Key::new(&["certs", "b"]));
        let file = dir.path().join("leases/certs~a");
        let held = one.try_lease(&key).await.unwrap().unwrap();
        one.store(&key, b"one", Expect::Anything).await.unwrap();
        // A file that is gone was taken by nobody; a new one of the same name was.
        std::fs::remove_file(&file).unwrap();
        one.store(&key, b"still one", Expect::Anything).await.unwrap();
        let newer = two.try_lease(&key).await.unwrap().expect("the kernel's lock was lost with the file");
        let error = one.store(&key, b"late", Expect::Anything).await.unwrap_err();
        assert!(error.to_string().contains("another process has taken its lease"), "{error}");
        two.store(&key, b"two", Expect::Anything).await.unwrap();
        one.store(&other, b"no lease, no question", Expect::Anything).await.unwrap();
        assert_eq!(one.load(&key).await.unwrap().unwrap().value, b"two");
        drop((held, newer));
        one.store(&key, b"free", Expect::Anything).await.unwrap();
        // The same file with a higher number: a file system that forgot the lock.
        let held = one.try_lease(&key).await.unwrap().unwrap();
        std::fs::write(&file, format!("{} pid 1\n", held.fencing() + 1)).unwrap();
        assert!(one.store(&key, b"late", Expect::Anything).await.is_err());
    }

    #[tokio::test]
    async fn a_directory_that_vanished_is_not_made_again_by_whoever_writes_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (storage, _) = FsStorage::open(&StorageSpec { path: path.clone() }).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        let key = Key::new(&["certs", "a"]);
        assert!(storage.try_lease(&key).await.is_err());
        assert!(storage.store(&key, b"x", Expect::Anything).await.is_err());
        assert!(storage.list("certs").await.is_err());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_store_that_fails_half_way_leaves_the_old_value_and_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = FsStorage::open(&StorageSpec { path: dir.path().to_owned() }).unwrap();
        let key = Key::new(&["certs", "a"]);
        storage.store(&key, b"good", Expect::Anything).await.unwrap();
        // Renaming a file over a directory fails, after the new value was written and the old one linked.
        std::fs::create_dir(dir.path().join("certs/a~previous.json")).unwrap();
        assert!(storage.store(&key, b"new", Expect::Anything).await.is_err());
        assert_eq!(storage.load(&key).await.unwrap().unwrap().value, b"good");
        let names: Vec<_> =
            std::fs::read_dir(dir.path().join("certs")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!names.iter().any(|n| n.to_string_lossy().starts_with(".tmp-")), "{names:?}");
    }

    /// Everything that `Storage` promises, asked of both implementations.
    async fn keeps_its_promises(storage: &dyn Storage) {
        let key = Key::new(&["certs", "ca", "example.com"]);
        assert!(storage.load(&key).await.unwrap().is_none());
        let first = storage.store(&key, b"one", Expect::Absent).await.unwrap();
        assert!(matches!(storage.store(&key, b"x", Expect::Absent).await, Err(StorageError::Conflict(_))));
        assert!(storage.load_previous(&key).await.unwrap().is_none());
        let second = storage.store(&key, b"two", Expect::Revision(first.clone())).await.unwrap();
        assert_ne!(first, second);
        assert!(matches!(
            storage.store(&key, b"x", Expect::Revision(first)).await,
            Err(StorageError::Conflict(_))
        ));
        assert_eq!(storage.load(&key).await.unwrap().unwrap().value, b"two");
        assert_eq!(storage.load_previous(&key).await.unwrap().unwrap().value, b"one");

        let other = Key::new(&["certs", "ca", "other.example"]);
        storage.store(&other, b"other", Expect::Anything).await.unwrap();
        storage.store(&Key::new(&["certs2", "x"]), b"x", Expect::Anything).await.unwrap();
        assert_eq!(storage.list("certs").await.unwrap(), [key.clone(), other.clone()]);
        assert_eq!(storage.list("certs/ca").await.unwrap().len(), 2);
        assert!(storage.list("nothing").await.unwrap().is_empty());

        storage.set_aside(&key).await.unwrap();
        assert!(storage.load(&key).await.unwrap().is_none());
        assert_eq!(storage.list("certs").await.unwrap(), std::slice::from_ref(&other));
        storage.remove(&other).await.unwrap();
        storage.remove(&other).await.unwrap();
        assert!(storage.load(&other).await.unwrap().is_none());

        let lease = storage.try_lease(&key).await.unwrap().unwrap();
        assert!(storage.try_lease(&key).await.unwrap().is_none());
        let before = lease.fencing();
        drop(lease);
        assert!(storage.try_lease(&key).await.unwrap().unwrap().fencing() > before);
    }

    #[tokio::test]
    async fn memory_keeps_the_promises() {
        keeps_its_promises(&MemoryStorage::new()).await;
    }

    #[tokio::test]
    async fn the_directory_keeps_the_promises() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, _) = FsStorage::open(&StorageSpec { path: dir.path().join("state") }).unwrap();
        keeps_its_promises(&storage).await;
    }

    #[tokio::test]
    async fn files_are_private_and_leftovers_are_swept() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let spec = StorageSpec { path: dir.path().to_owned() };
        let (storage, warnings) = FsStorage::open(&spec).unwrap();
        assert!(warnings.iter().any(|w| w.contains("0755")), "{warnings:?}");
        let key = Key::new(&["certs", "a"]);
        storage.store(&key, b"secret", Expect::Anything).await.unwrap();
        let mode =
            |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("certs/a.json"), mode("certs"), mode("")), (0o600, 0o700, 0o700));
        std::fs::write(dir.path().join("certs/.tmp-0123"), b"half a file").unwrap();
        let used = std::fs::File::create(dir.path().join("certs/.tmp-4567")).unwrap();
        used.lock().unwrap();
        let (storage, warnings) = FsStorage::open(&spec).unwrap();
        assert!(!dir.path().join("certs/.tmp-0123").exists());
        assert!(dir.path().join("certs/.tmp-4567").exists(), "another process is writing it");
        assert!(!warnings.iter().any(|w| w.contains("mode")), "{warnings:?}");
        assert_eq!(storage.load(&key).await.unwrap().unwrap().value, b"secret");
    }

    #[tokio::test]
    async fn a_directory_that_vanished_is_an_error_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (storage, _) = FsStorage::open(&StorageSpec { path: path.clone() }).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        let error = storage.load(&Key::new(&["certs", "a"])).await.unwrap_err();
        assert!(error.to_string().contains("state"), "{error}");
    }
}
