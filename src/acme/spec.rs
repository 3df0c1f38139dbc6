//! What the configuration says about a CA.

use std::path::PathBuf;

use crate::issuer::KeyKind;

/// An `[acme]` section or a certificate's own `acme`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AcmeSpec {
    /// The directory's URL.
    pub directory: String,
    /// Contact, if any.
    pub email: Option<String>,
    /// A root to trust for the directory, beside the system's.
    pub ca_root: Option<PathBuf>,
    /// The kind of key to make.
    pub key: KeyKind,
}

/// Let's Encrypt's production directory.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Let's Encrypt's staging directory: certificates that nobody trusts, limits that are hard to reach.
pub const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";
