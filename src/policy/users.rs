//! Names and the hashes of their passwords: what is written in the configuration, and files as `htpasswd` makes them.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

/// Ten thousand users are a tenth of this.
const MAX_FILE: u64 = 8 << 20;

/// What is wrong with users, for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsersError {
    /// The file cannot be read.
    #[error("the users in {path} cannot be read: {reason}", path = path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A line of the file is wrong.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// Not a hash that can be verified.
    #[error("{0}")]
    Hash(String),
    /// Not a name.
    #[error("a user's name has no colon and no control characters")]
    Name,
    /// Nobody may come.
    #[error("{path} names no user", path = .0.display())]
    Empty(PathBuf),
    /// The system gives no random numbers.
    #[error("the system has no random numbers")]
    NoRandomness,
}

/// Everybody who may come.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Users {
    by_name: HashMap<String, Hash>,
    stamp: Option<Stamp>,
}

/// What tells one state of a file from another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(file: &Path) -> std::io::Result<Self> {
        let meta = std::fs::metadata(file)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl Users {
    /// Those of the configuration, and those of the file. Blocking.
    pub(super) fn read(inline: &[(String, String)], file: Option<&Path>) -> Result<Self, UsersError> {
        let mut by_name = HashMap::new();
        for (name, hash) in inline {
            check_name(name)?;
            by_name.insert(name.clone(), Hash::parse(hash)?);
        }
        let Some(path) = file else { return Ok(Self { by_name, stamp: None }) };
        let unreadable = |error: std::io::Error| UsersError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        // Before it is read: a change in between is seen at the next look.
        let stamp = Stamp::of(path).map_err(unreadable)?;
        let mut text = String::new();
        let opened = std::fs::File::open(path).map_err(unreadable)?;
        opened.take(MAX_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_FILE {
            let reason = format!("it is over the limit of {MAX_FILE} bytes");
            return Err(UsersError::Unreadable { path: path.to_owned(), reason });
        }
        for (number, line) in text.lines().enumerate() {
            let wrong = |reason: String| UsersError::Line { path: path.to_owned(), line: number + 1, reason };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, hash) =
                line.split_once(':').ok_or_else(|| wrong("a line is a name, a colon and a hash".into()))?;
            check_name(name).map_err(|error| wrong(error.to_string()))?;
            let hash = Hash::parse(hash).map_err(|error| wrong(error.to_string()))?;
            if by_name.insert(name.to_owned(), hash).is_some() {
                return Err(wrong(format!("`{name}` is there twice")));
            }
        }
        if by_name.is_empty() {
            return Err(UsersError::Empty(path.to_owned()));
        }
        Ok(Self { by_name, stamp: Some(stamp) })
    }

    pub(super) fn find(&self, name: &str) -> Option<&Hash> {
        self.by_name.get(name)
    }

    /// A hash that costs as much as the costliest: what a stranger's password is compared with.
    pub(super) fn stand_in(&self) -> Option<&Hash> {
        self.by_name.values().max_by_key(|hash| hash.cost())
    }

    /// The state of the file that they were read from.
    pub(super) fn stamp(&self) -> Option<&Stamp> {
        self.stamp.as_ref()
    }
}

pub(super) fn check_name(name: &str) -> Result<(), UsersError> {
    match name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
        true => Err(UsersError::Name),
        false => Ok(()),
    }
}

/// A hash of a kind that is made for passwords.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Hash {
    /// In PHC format.
    Argon2(String),
    /// `$2a$`, `$2b$`, `$2x$` or `$2y$`.
    Bcrypt(String),
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Argon2(_) => "Argon2(...)",
            Self::Bcrypt(_) => "Bcrypt(...)",
        })
    }
}

impl Hash {
    pub(super) fn parse(text: &str) -> Result<Self, UsersError> {
        let wrong = |what: &str| {
            Err(UsersError::Hash(format!(
                "{what}; argon2 and bcrypt are known: `starlock hash-password` and `htpasswd -B` make them"
            )))
        };
        if ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|kind| text.starts_with(kind)) {
            return match text.parse::<bcrypt::HashParts>() {
                Ok(_) => Ok(Self::Bcrypt(text.to_owned())),
                Err(_) => wrong("this bcrypt hash is not whole"),
            };
        }
        if text.starts_with("$argon2") {
            let parsed = PasswordHash::new(text).ok().filter(|hash| {
                Algorithm::try_from(hash.algorithm).is_ok()
                    && Params::try_from(hash).is_ok()
                    && hash.hash.is_some()
            });
            return match parsed {
                Some(_) => Ok(Self::Argon2(text.to_owned())),
                None => wrong("this argon2 hash is not whole"),
            };
        }
        wrong(match text {
            text if text.starts_with("$apr1$") || text.starts_with("$1$") => {
                "an MD5 hash protects no password"
            }
            text if text.starts_with("{SHA}") => "a SHA-1 hash protects no password",
            text if text.starts_with("$5$") || text.starts_with("$6$") => "hashes of crypt(3) are not known",
            _ => "this is not a hash of a password",
        })
    }

    /// By argon2id with the costs that OWASP recommends.
    pub(super) fn make(password: &[u8]) -> Result<String, UsersError> {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| UsersError::NoRandomness)?;
        let failed = |error: argon2::password_hash::Error| UsersError::Hash(error.to_string());
        let salt = SaltString::encode_b64(&salt).map_err(failed)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::default());
        Ok(argon2.hash_password(password, &salt).map_err(failed)?.to_string())
    }

    /// Whether `password` is the one; compares in constant time. Slow on purpose.
    pub(super) fn verify(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2(text) => PasswordHash::new(text)
                .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok()),
            // Like every bcrypt, it looks at the first 72 bytes.
            Self::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
        }
    }

    /// About how many microseconds it takes to verify; only for comparing.
    fn cost(&self) -> u64 {
        match self {
            Self::Argon2(text) => {
                let params = PasswordHash::new(text).ok().and_then(|hash| Params::try_from(&hash).ok());
                params.map_or(0, |params| u64::from(params.m_cost()) * u64::from(params.t_cost()))
            }
            Self::Bcrypt(text) => {
                let cost = text.parse::<bcrypt::HashParts>().map_or(0, |parts| parts.get_cost());
                50_u64 << cost.min(31)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_are_known_and_why_others_are_not() {
        let made = Hash::make(b"correct").unwrap();
        assert!(made.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{made}");
        let argon2 = Hash::parse(&made).unwrap();
        assert!(argon2.verify(b"correct") && !argon2.verify(b"wrong"));
        let text = bcrypt::hash("correct", 4).unwrap();
        for kind in ["$2a$", "$2b$", "$2y$"] {
            let hash = Hash::parse(&text.replacen("$2b$", kind, 1)).unwrap();
            assert!(hash.verify(b"correct") && !hash.verify(b"wrong"), "{kind}");
        }
        for (hash, why) in [
            ("correct", "not a hash of a password"),
            ("$apr1$x$y", "MD5"),
            ("{SHA}x", "SHA-1"),
            ("$6$x$y", "crypt(3)"),
            (&text[..40], "not whole"),
            ("$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ", "not whole"),
            ("$argon2x$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2g", "not whole"),
        ] {
            let error = Hash::parse(hash).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("htpasswd -B"), "{hash}: {error}");
        }
    }

    #[test]
    fn a_stranger_is_compared_with_the_costliest() {
        let hash = |text: &str| Hash::parse(text).unwrap();
        let (four, six) = (bcrypt::hash("x", 4).unwrap(), bcrypt::hash("x", 6).unwrap());
        let argon2 = Hash::make(b"x").unwrap();
        let users = |list: &[&String]| {
            let list: Vec<_> =
                list.iter().map(|hash| (hash[..9].replace('$', "-"), (*hash).clone())).collect();
            Users::read(&list, None).unwrap()
        };
        assert_eq!(users(&[&four, &six]).stand_in(), Some(&hash(&six)));
        assert_eq!(users(&[&four, &argon2]).stand_in(), Some(&hash(&argon2)));
        assert_eq!(users(&[]).stand_in(), None);
    }

    #[test]
    fn a_wrong_file_is_refused_at_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let hash = bcrypt::hash("x", 4).unwrap();
        for (text, why) in [
            (String::new(), "names no user"),
            (format!("a:{hash}\n\nb\n"), "line 3: a line is a name"),
            (format!("a:{hash}\na:{hash}\n"), "line 2: `a` is there twice"),
            (format!(":{hash}\n"), "line 1: a user's name"),
            ("a:$apr1$x$y\n".into(), "line 1: an MD5 hash"),
        ] {
            let path = dir.path().join("users");
            std::fs::write(&path, text).unwrap();
            let error = Users::read(&[], Some(&path)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let missing = Users::read(&[], Some(&dir.path().join("none"))).unwrap_err().to_string();
        assert!(missing.contains("cannot be read"), "{missing}");
    }
}
