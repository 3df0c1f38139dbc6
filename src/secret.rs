//! Secrets: named in the configuration, read at load, zeroed when dropped, never printed.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// A file larger than this is not a secret but a mistake.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// A secret's value. `Debug` and `Display` never show it.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes the value over.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// The value itself. Every call is a place to look at in a review.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Where a secret comes from. Comparing two sources compares where they point, and the text of a plain one.
#[derive(Clone)]
pub enum SecretSource {
    /// The environment variable, or the file that `{NAME}_FILE` names.
    Env(String),
    /// A file; surrounding white space is dropped.
    File(PathBuf),
    /// A systemd credential: `$CREDENTIALS_DIRECTORY/NAME`.
    Credential(String),
    /// Written in the configuration itself; `check` warns.
    Plain(Secret),
}

/// Why a secret could not be read. Names the place, never the value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Neither the variable nor its `_FILE` sibling is set.
    #[error("environment variable {0} is not set (nor is {0}_FILE)")]
    NoVariable(String),
    /// systemd passed no credentials.
    #[error(
        "credential `{0}` is not available: $CREDENTIALS_DIRECTORY is not set; add LoadCredential={0}:/path/to/file to the unit"
    )]
    NoCredentials(String),
    /// The name leaves the credentials directory.
    #[error("credential `{0}` is not a plain file name")]
    BadCredential(String),
    /// The file cannot be read.
    #[error("cannot read the secret in {path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Nothing in it.
    #[error("the secret in {0} is empty")]
    Empty(String),
}

impl SecretSource {
    /// Reads the secret. Blocking, bounded by 64 KiB; call it while preparing a plan, never on a request.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        match self {
            Self::Plain(secret) => Ok(secret.clone()),
            Self::File(path) => read(path),
            Self::Env(name) => match (std::env::var(name), std::env::var(format!("{name}_FILE"))) {
                (Ok(value), _) if !value.trim().is_empty() => Ok(Secret::new(value.trim())),
                (_, Ok(path)) if !path.is_empty() => read(Path::new(&path)),
                (Ok(_), _) => Err(SecretError::Empty(format!("environment variable {name}"))),
                (Err(_), _) => Err(SecretError::NoVariable(name.clone())),
            },
            Self::Credential(name) => {
                if name.is_empty() || name.contains('/') || name == "." || name == ".." {
                    return Err(SecretError::BadCredential(name.clone()));
                }
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
                read(&PathBuf::from(dir).join(name))
            }
        }
    }
}

fn read(path: &Path) -> Result<Secret, SecretError> {
    let unreadable = |reason: String| SecretError::Unreadable { path: path.to_owned(), reason };
    // What is read counts, not what the file says of itself: a device says 0 and never ends.
    // Without waiting: opening a pipe that nobody writes to would block the start for ever.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let mut options = std::fs::OpenOptions::new();
    let file =
        options.read(true).custom_flags(nonblocking).open(path).map_err(|e| unreadable(e.to_string()))?;
    if !file.metadata().map_err(|e| unreadable(e.to_string()))?.is_file() {
        return Err(unreadable("it is not a regular file".into()));
    }
    let mut text = String::new();
    file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text).map_err(|e| unreadable(e.to_string()))?;
    if text.len() as u64 > MAX_SECRET_BYTES {
        return Err(unreadable(format!("it is over the limit of {MAX_SECRET_BYTES} bytes")));
    }
    match text.trim() {
        "" => Err(SecretError::Empty(path.display().to_string())),
        value => Ok(Secret::new(value)),
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Credential(name) => write!(f, "credential {name}"),
            Self::Plain(_) => f.write_str("[redacted]"),
        }
    }
}

impl PartialEq for SecretSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Env(a), Self::Env(b)) | (Self::Credential(a), Self::Credential(b)) => a == b,
            (Self::File(a), Self::File(b)) => a == b,
            (Self::Plain(a), Self::Plain(b)) => a.expose() == b.expose(),
            _ => false,
        }
    }
}

impl Eq for SecretSource {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_prints_a_secret() {
        let source = SecretSource::Plain(Secret::new("hunter2"));
        assert!(!format!("{source:?} {:?}", source.resolve().unwrap()).contains("hunter2"));
    }

    #[test]
    fn files_are_trimmed_bounded_and_named_in_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, " abc\n").unwrap();
        assert_eq!(SecretSource::File(path.clone()).resolve().unwrap().expose(), "abc");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(SecretSource::File(path.clone()).resolve(), Err(SecretError::Empty(_))));
        std::fs::write(&path, vec![b'a'; 70_000]).unwrap();
        assert!(SecretSource::File(path).resolve().unwrap_err().to_string().contains("limit"));
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for odd in [fifo, "/dev/zero".into(), dir.path().to_owned()] {
            let error = SecretSource::File(odd).resolve().unwrap_err();
            assert!(error.to_string().contains("regular file"), "{error}");
        }
        assert!(SecretSource::Credential("../x".into()).resolve().is_err());
        let error = SecretSource::Env("STARLOCK_NO_SUCH_VARIABLE".into()).resolve().unwrap_err();
        assert!(error.to_string().contains("STARLOCK_NO_SUCH_VARIABLE_FILE"));
    }
}
