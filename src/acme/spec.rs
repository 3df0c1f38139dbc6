//! What the configuration says about a CA.

use std::path::PathBuf;

use super::known::KnownCa;
use crate::issuer::{CaLimits, KeyKind};
use crate::secret::SecretSource;

/// An `[acme]` section, one of its `fallback`, or a certificate's own `acme`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeSpec {
    /// The directory's URL.
    pub directory: String,
    /// Contact, if any.
    pub email: Option<String>,
    /// A root to trust for the directory, beside the system's.
    pub ca_root: Option<PathBuf>,
    /// The kind of key to make.
    pub key: KeyKind,
    /// The account at the CA that ours is bound to. Used only when registering.
    pub eab: Option<EabSpec>,
    /// A profile that the CA's directory offers.
    pub profile: Option<String>,
    /// Common name of the issuer of the topmost certificate of the chain that is wanted.
    pub preferred_chain: Option<String>,
    /// What the CA allows, where that is not known or another.
    pub limits: Option<CaLimits>,
    /// Whether a new set of names is ordered at the CA's staging first.
    pub rehearse: bool,
    /// Whether something outside (CAA `accounturi`, dns-account-01, dns-persist-01) names the account, so that another one
    /// would be of no use. Set by the kind of challenge.
    pub pinned: bool,
}

/// External account binding (RFC 8555 section 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EabSpec {
    /// The key identifier that the CA gave.
    pub kid: String,
    /// The HMAC key beside it, in base64url.
    pub hmac: SecretSource,
}

impl AcmeSpec {
    /// The directory's host; the whole text where it is no URL.
    pub fn host(&self) -> String {
        let url = self.directory.parse::<http::Uri>().ok();
        url.and_then(|u| u.host().map(ToOwned::to_owned)).unwrap_or_else(|| self.directory.clone())
    }

    /// What a person calls the CA: its word in the configuration, else its host.
    pub fn word(&self) -> String {
        self.known().map_or_else(|| self.host(), |known| known.word.to_owned())
    }

    /// An account without anything special at the CA of `directory`.
    pub fn new(directory: impl Into<String>) -> Self {
        Self {
            directory: directory.into(),
            email: None,
            ca_root: None,
            key: KeyKind::default(),
            eab: None,
            profile: None,
            preferred_chain: None,
            limits: None,
            rehearse: false,
            pinned: false,
        }
    }

    /// What is known of the CA, if anything.
    pub fn known(&self) -> Option<&'static KnownCa> {
        KnownCa::of_directory(&self.directory)
    }

    /// The staging of the same CA, for a rehearsal; `None` if it has none. External accounts are not shared with a staging, and
    /// its profiles and chains are its own.
    pub fn staging(&self) -> Option<Self> {
        let directory = self.known()?.staging?;
        Some(Self { email: self.email.clone(), key: self.key, ..Self::new(directory) })
    }
}
