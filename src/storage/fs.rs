//! Storage in a directory: a file for each value and one for its previous generation.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::lock::{Lock, Turn};
use super::rights;
use super::{Expect, Key, Lease, Revision, Storage, StorageError, StorageSpec, Stored};
use crate::task;

/// A larger file is none of ours.
const MAX_VALUE_BYTES: u64 = 4 * 1024 * 1024;

/// A process holds the lock while it writes one file. One that holds it for longer has stopped or hangs.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// Directories that are known to be on disk; with more of them, each is looked at again once.
const MAX_DURABLE: usize = 4096;

/// Values as files of mode 0600 below a directory of mode 0700.
///
/// `~` never occurs in a key, so `NAME~previous` and `NAME~damaged-N` cannot be taken for values. Cloning shares the directory.
#[derive(Clone, Debug)]
pub struct FsStorage {
    path: Arc<Path>,
    turn: Arc<Turn>,
    known: Arc<Mutex<Known>>,
}

/// What this process knows of the directory.
#[derive(Debug, Default)]
struct Known {
    /// Directories whose own names are on disk, up to the state directory.
    durable: HashSet<PathBuf>,
    /// The leases that it holds.
    leases: HashMap<Key, Held>,
}

/// A lease as it was taken: the file, and the number that was written into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    file: (u64, u64),
    fencing: u64,
}

impl FsStorage {
    /// Opens the directory, making it if it is missing. Blocking.
    ///
    /// Warnings are for a person: rights that are too wide (they are narrowed when the directory is ours), a place that does
    /// not outlive the machine or the container.
    pub fn open(spec: &StorageSpec) -> Result<(Self, Vec<String>), StorageError> {
        let path = spec.path.as_path();
        let failed = |what: &str, error: io::Error| io_error(what, path, &error);
        make_dir(path).map_err(|e| failed("cannot make the state directory", e))?;
        let path = fs::canonicalize(path).map_err(|e| failed("cannot open the state directory", e))?;
        let this = Self::at(path);
        let mut warnings = rights::narrow(&this.path)?;
        warnings.extend(rights::volatile(&this.path));
        // Fails now, with the path, rather than at the first certificate.
        drop(this.lock().map_err(|e| failed("cannot write to the state directory", e))?);
        this.sweep_temporaries()?;
        Ok((this, warnings))
    }

    fn at(path: PathBuf) -> Self {
        Self { path: path.into(), turn: Arc::default(), known: Arc::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory as it is: nothing is made, narrowed or swept. For whoever looks into that of a process that may be running.
    /// Blocking.
    pub fn as_it_is(path: &Path) -> Result<Self, StorageError> {
        let path =
            fs::canonicalize(path).map_err(|e| io_error("cannot open the state directory", path, &e))?;
        Ok(Self::at(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Temporary files of a process that died while writing: they were never values.
    fn sweep_temporaries(&self) -> Result<(), StorageError> {
        let _lock = self.lock().map_err(|e| io_error("cannot lock", &self.path, &e))?;
        rights::each_file(&self.path, |path| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(".tmp-") && Temporary::is_nobodys(path) {
                fs::remove_file(path).map_err(|e| io_error("cannot remove", path, &e))?;
            }
            Ok(())
        })
    }

    /// Held while values are moved into place, so that `Expect` holds between processes too. Waits at most [`LOCK_LIMIT`].
    fn lock(&self) -> io::Result<Lock<'_>> {
        self.lock_within(LOCK_LIMIT)
    }

    pub(super) fn lock_within(&self, limit: Duration) -> io::Result<Lock<'_>> {
        Lock::take(
            &self.turn,
            || private().create(true).truncate(false).write(true).open(self.path.join(".lock")),
            limit,
        )
    }

    /// Makes a directory of ours, and never the state directory itself: one that was deleted or unmounted under a running
    /// process must not come back empty.
    ///
    /// On return its name is on disk, and so are those of the directories above it: a value is lost with any of them.
    fn make_dir_below(&self, dir: &Path) -> io::Result<()> {
        fs::metadata(&self.path)?;
        let above: Vec<&Path> = dir.ancestors().take_while(|above| *above != &*self.path).collect();
        for dir in above.into_iter().rev() {
            match DirBuilder::new().mode(0o700).create(dir) {
                // One that is there may have been made by a process that died before it was on disk.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if self.is_durable(dir) {
                        continue;
                    }
                }
                made => made?,
            }
            File::open(dir.parent().unwrap_or(dir))?.sync_all()?;
            let mut known = self.known();
            if known.durable.len() >= MAX_DURABLE {
                known.durable.clear();
            }
            known.durable.insert(dir.to_owned());
        }
        Ok(())
    }

    pub(super) fn is_durable(&self, dir: &Path) -> bool {
        self.known().durable.contains(dir)
    }

    /// Whether somebody has taken a lease after us that we hold: its file was replaced, or holds another number. A file that is
    /// gone was taken by nobody.
    fn is_overtaken(&self, name: &Key) -> io::Result<bool> {
        let Some(held) = self.known().leases.get(name).copied() else { return Ok(false) };
        let mut file = match File::open(self.lease_file(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        Ok(Held { file: (meta.dev(), meta.ino()), fencing: fencing(&mut file)? } != held)
    }

    fn lease_file(&self, name: &Key) -> PathBuf {
        self.path.join("leases").join(name.as_str().replace('/', "~"))
    }

    fn file(&self, key: &Key) -> PathBuf {
        self.path.join(format!("{key}.json"))
    }

    fn previous(&self, key: &Key) -> PathBuf {
        self.path.join(format!("{key}~previous.json"))
    }

    fn read(&self, key: &Key, path: &Path) -> Result<Option<Stored>, StorageError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A directory that vanished is not a value that was never there.
                fs::metadata(&self.path).map_err(|e| io_error("cannot read", &self.path, &e))?;
                return Ok(None);
            }
            Err(error) => return Err(io_error("cannot read", path, &error)),
        };
        let mut value = Vec::new();
        file.take(MAX_VALUE_BYTES + 1)
            .read_to_end(&mut value)
            .map_err(|e| io_error("cannot read", path, &e))?;
        if value.len() as u64 > MAX_VALUE_BYTES {
            let reason = format!("it is over {MAX_VALUE_BYTES} bytes");
            return Err(StorageError::Damaged { key: key.clone(), reason });
        }
        let revision = revision(&value);
        Ok(Some(Stored { value, revision }))
    }

    fn write(&self, key: &Key, value: &[u8], expect: &Expect) -> Result<Revision, StorageError> {
        let (path, previous) = (self.file(key), self.previous(key));
        let dir = path.parent().unwrap_or(&self.path).to_owned();
        let failed = |error: io::Error| io_error("cannot store", &path, &error);
        self.make_dir_below(&dir).map_err(failed)?;
        let name = || dir.join(format!(".tmp-{:016x}", rand::random::<u64>()));
        // Before anything is replaced: without a file left, the store must fail as a whole.
        let directory = File::open(&dir).map_err(failed)?;
        let mut temporary = {
            let _lock = self.lock().map_err(failed)?; // so that whoever sweeps finds it in use
            Temporary::create(name()).map_err(failed)?
        };
        // What waits for the disk is done without the lock: many stores wait together.
        temporary.file.write_all(value).and_then(|()| temporary.file.sync_all()).map_err(failed)?;
        let lock = self.lock().map_err(failed)?;
        if self.is_overtaken(key).map_err(failed)? {
            let reason = "another process has taken its lease meanwhile, and what that one writes counts";
            return Err(failed(io::Error::other(reason)));
        }
        let current = self.read(key, &path)?;
        let holds = match expect {
            Expect::Anything => true,
            Expect::Absent => current.is_none(),
            Expect::Revision(wanted) => current.as_ref().is_some_and(|c| c.revision == *wanted),
        };
        if !holds {
            return Err(StorageError::Conflict(key.clone()));
        }
        let replaced = (|| {
            if current.as_ref().is_some_and(|c| c.value == value) {
                return Ok(()); // the same again: the previous generation stays what it is
            }
            if current.is_some() {
                // A second name for the current file, moved into place: at no moment is there no current value.
                let second = Removed(name());
                fs::hard_link(&path, &second.0)?;
                fs::rename(&second.0, &previous)?;
            }
            fs::rename(&temporary.path.0, &path)
        })();
        replaced.map_err(failed)?;
        drop(lock);
        directory.sync_all().map_err(failed)?;
        Ok(revision(value))
    }

    fn delete(&self, key: &Key) -> Result<(), StorageError> {
        // Most of what is removed was never there, and the lock and the disk are slow.
        if [self.previous(key), self.file(key)].iter().all(|path| is_missing(path)) {
            // A directory that vanished is not a value that was never there.
            fs::metadata(&self.path).map_err(|e| io_error("cannot remove from", &self.path, &e))?;
            return Ok(());
        }
        let lock = self.lock().map_err(|e| io_error("cannot lock", &self.path, &e))?;
        for path in [self.previous(key), self.file(key)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("cannot remove", &path, &error));
                }
                _ => {}
            }
        }
        drop(lock);
        sync_parent(&self.file(key))
    }

    fn move_away(&self, key: &Key) -> Result<String, StorageError> {
        let _lock = self.lock().map_err(|e| io_error("cannot lock", &self.path, &e))?;
        let path = self.file(key);
        let aside = (1..1000)
            .map(|n| self.path.join(format!("{key}~damaged-{n}.json")))
            .find(|candidate| !candidate.exists())
            .unwrap_or_else(|| self.path.join(format!("{key}~damaged-1000.json")));
        fs::rename(&path, &aside).map_err(|e| io_error("cannot set aside", &path, &e))?;
        sync_parent(&path)?;
        Ok(aside.display().to_string())
    }

    fn keys(&self, prefix: &str) -> Result<Vec<Key>, StorageError> {
        let mut keys = Vec::new();
        let mut stack = vec![(self.path.join(prefix), prefix.to_owned())];
        while let Some((dir, prefix)) = stack.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::metadata(&self.path).map_err(|e| io_error("cannot list", &self.path, &e))?;
                    continue;
                }
                Err(error) => return Err(io_error("cannot list", &dir, &error)),
            };
            for entry in entries {
                let entry = entry.map_err(|e| io_error("cannot list", &dir, &e))?;
                let Some(name) = entry.file_name().to_str().map(ToOwned::to_owned) else { continue };
                if name.starts_with('.') || name.contains('~') {
                    continue;
                }
                let joined = format!("{prefix}/{name}");
                if entry.path().is_dir() {
                    stack.push((entry.path(), joined));
                } else if let Some(key) = joined.strip_suffix(".json") {
                    keys.push(Key(key.to_owned()));
                }
            }
        }
        keys.sort();
        Ok(keys)
    }

    fn lease(&self, name: &Key) -> Result<Option<FsLease>, StorageError> {
        let path = self.lease_file(name);
        let failed = |error: io::Error| io_error("cannot take the lease", &path, &error);
        self.make_dir_below(&self.path.join("leases")).map_err(failed)?;
        let mut file =
            private().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        }
        // A store by whoever had it before is over, or sees the new number.
        let lock = self.lock().map_err(failed)?;
        let fencing = fencing(&mut file).map_err(failed)? + 1;
        // Written over and then cut: on a full disk the number must not begin anew.
        let line = format!("{fencing} pid {}\n", std::process::id());
        file.rewind().and_then(|()| file.write_all(line.as_bytes())).map_err(failed)?;
        file.set_len(line.len() as u64).map_err(failed)?;
        drop(lock);
        let meta = file.metadata().map_err(failed)?;
        let held = Held { file: (meta.dev(), meta.ino()), fencing };
        self.known().leases.insert(name.clone(), held);
        Ok(Some(FsLease { _file: file, storage: self.clone(), name: name.clone(), held }))
    }
}

/// The number in a lease's file; 0 if it is new.
fn fencing(file: &mut File) -> io::Result<u64> {
    let mut text = String::new();
    file.take(64).read_to_string(&mut text)?;
    Ok(text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0))
}

#[async_trait]
impl Storage for FsStorage {
    async fn load(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        let (this, key) = (self.clone(), key.clone());
        task::blocking(move || this.read(&key, &this.file(&key))).await
    }

    async fn load_previous(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        let (this, key) = (self.clone(), key.clone());
        task::blocking(move || this.read(&key, &this.previous(&key))).await
    }

    async fn store(&self, key: &Key, value: &[u8], expect: Expect) -> Result<Revision, StorageError> {
        let (this, key, value) = (self.clone(), key.clone(), value.to_vec());
        task::blocking(move || this.write(&key, &value, &expect)).await
    }

    async fn remove(&self, key: &Key) -> Result<(), StorageError> {
        let (this, key) = (self.clone(), key.clone());
        task::blocking(move || this.delete(&key)).await
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StorageError> {
        let (this, key) = (self.clone(), key.clone());
        task::blocking(move || this.move_away(&key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Key>, StorageError> {
        let (this, prefix) = (self.clone(), prefix.to_owned());
        task::blocking(move || this.keys(&prefix)).await
    }

    async fn try_lease(&self, name: &Key) -> Result<Option<Box<dyn Lease>>, StorageError> {
        let (this, name) = (self.clone(), name.clone());
        let lease = task::blocking(move || this.lease(&name)).await?;
        Ok(lease.map(|lease| Box::new(lease) as Box<dyn Lease>))
    }
}

/// Closing the file ends the lock, and the kernel closes it when the process dies.
#[derive(Debug)]
struct FsLease {
    _file: File,
    storage: FsStorage,
    name: Key,
    held: Held,
}

impl Lease for FsLease {
    fn fencing(&self) -> u64 {
        self.held.fencing
    }
}

impl Drop for FsLease {
    fn drop(&mut self) {
        let mut known = self.storage.known();
        if known.leases.get(&self.name) == Some(&self.held) {
            known.leases.remove(&self.name);
        }
    }
}

/// A new file, locked for as long as it is being written: one that is not locked is nobody's.
struct Temporary {
    file: File,
    path: Removed,
}

impl Temporary {
    fn create(path: PathBuf) -> io::Result<Self> {
        let file = private().create_new(true).write(true).open(&path)?;
        let this = Self { file, path: Removed(path) };
        flock(&this.file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(this)
    }

    fn is_nobodys(path: &Path) -> bool {
        File::open(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
    }
}

/// Removed when dropped, unless it has become something else.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            let path = self.0.display();
            tracing::warn!(%path, %error, "a temporary file stays behind until the next start");
        }
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_parent(path: &Path) -> Result<(), StorageError> {
    let dir = path.parent().unwrap_or(path);
    match File::open(dir).and_then(|d| d.sync_all()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("cannot sync", dir, &error)),
        _ => Ok(()),
    }
}

fn revision(value: &[u8]) -> Revision {
    Revision(Sha256::digest(value).iter().take(16).map(|b| format!("{b:02x}")).collect())
}

pub(super) fn io_error(what: &str, path: &Path, error: &io::Error) -> StorageError {
    StorageError::Io { what: format!("{what} {}", path.display()), reason: error.to_string() }
}
