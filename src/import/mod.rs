//! What other programs keep: their certificates and ACME accounts, read from their own files. Changes nothing of theirs.

mod acme_sh;
mod caddy;
mod certbot;
mod files;
mod keys;
mod traefik;

use std::path::{Path, PathBuf};

use crate::secret::Secret;

pub use keys::AccountKey;

/// Whose files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `/etc/letsencrypt` or a copy of it.
    Certbot,
    /// Caddy's data directory.
    Caddy,
    /// `~/.acme.sh`.
    AcmeSh,
    /// `acme.json`.
    Traefik,
}

/// Which CA something came from, as far as the files say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The directory's URL, or its letters and digits in a file's name.
    Directory(String),
    /// Some URL at the CA.
    Url(String),
    /// The files do not say.
    Unknown,
}

impl Origin {
    /// Whether this can be the CA with that directory.
    pub fn is(&self, directory: &str) -> bool {
        let plain = |text: &str| -> String {
            let text = text.trim_start_matches("https://").trim_start_matches("http://");
            text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
        };
        let host = |url: &str| {
            url.split("://").nth(1).and_then(|rest| rest.split('/').next()).map(str::to_ascii_lowercase)
        };
        match self {
            Self::Directory(name) => plain(name) == plain(directory),
            Self::Url(url) => host(url).is_some() && host(url) == host(directory),
            Self::Unknown => true,
        }
    }

    /// For a person.
    pub fn shown(&self) -> &str {
        match self {
            Self::Directory(text) | Self::Url(text) => text,
            Self::Unknown => "an unknown CA",
        }
    }
}

/// A certificate with its key, as found; nothing is proven yet.
#[derive(Clone, Debug)]
pub struct FoundCertificate {
    /// Leaf first, PEM.
    pub chain_pem: String,
    /// PEM, in whichever form the program keeps it.
    pub key_pem: Secret,
    /// Who signed it.
    pub origin: Origin,
    /// Where it was found.
    pub place: String,
}

/// An account at a CA, as found.
#[derive(Clone, Debug)]
pub struct FoundAccount {
    /// Whose.
    pub origin: Origin,
    /// The account's URL, where the files say it.
    pub url: Option<String>,
    /// Its key.
    pub key: AccountKey,
    /// Where it was found.
    pub place: String,
}

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Certificates.
    pub certificates: Vec<FoundCertificate>,
    /// Accounts.
    pub accounts: Vec<FoundAccount>,
    /// What could not be read: where, and why.
    pub problems: Vec<(String, String)>,
}

/// Why nothing was read. The text is for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The path cannot be read at all.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It is something else.
    #[error("{path} is not what {what}")]
    SomethingElse {
        /// The path.
        path: PathBuf,
        /// What it should be, and how to tell.
        what: &'static str,
    },
}

/// Reads what lies at `path`. Blocking; bounded in files and in bytes of each.
pub fn read(source: Source, path: &Path) -> Result<Found, ImportError> {
    let unreadable =
        |e: std::io::Error| ImportError::Unreadable { path: path.to_owned(), reason: e.to_string() };
    std::fs::metadata(path).map_err(unreadable)?;
    let found = match source {
        Source::Certbot => certbot::read(path),
        Source::Caddy => caddy::read(path),
        Source::AcmeSh => acme_sh::read(path),
        Source::Traefik => traefik::read(path),
    };
    let what = match source {
        Source::Certbot => "certbot keeps: a directory with `live` and `accounts`, such as /etc/letsencrypt",
        Source::Caddy => {
            "Caddy keeps: its data directory with `certificates` and `acme`, such as /var/lib/caddy/.local/share/caddy"
        }
        Source::AcmeSh => "acme.sh keeps: a directory such as ~/.acme.sh with one directory for each name",
        Source::Traefik => "Traefik keeps: the file acme.json",
    };
    match found {
        Some(found) => Ok(found),
        None => Err(ImportError::SomethingElse { path: path.to_owned(), what }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_is_known_by_its_directory_however_it_is_written() {
        let directory = "https://acme-v02.api.letsencrypt.org/directory";
        for (origin, same) in [
            (Origin::Directory(directory.into()), true),
            (Origin::Directory("acme-v02.api.letsencrypt.org-directory".into()), true),
            (Origin::Directory("acme-v02.api.letsencrypt.org/directory".into()), true),
            (Origin::Directory("acme-staging-v02.api.letsencrypt.org-directory".into()), false),
            (Origin::Url("https://acme-v02.api.letsencrypt.org/acme/acct/1".into()), true),
            (Origin::Url("https://acme.zerossl.com/v2/DV90/account/1".into()), false),
            (Origin::Url("nonsense".into()), false),
            (Origin::Unknown, true),
        ] {
            assert_eq!(origin.is(directory), same, "{origin:?}");
        }
    }
}
