//! CAs that have a word in the configuration: where they are, what they want, what they allow.

use super::limits;
use crate::issuer::{CaLimits, KeyKind};

/// Let's Encrypt's production directory.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Let's Encrypt's staging directory: certificates that nobody trusts, limits that are hard to reach.
pub const LETS_ENCRYPT_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

/// A public CA.
#[derive(Debug)]
pub struct KnownCa {
    /// The value of `acme.ca`.
    pub word: &'static str,
    /// For people.
    pub title: &'static str,
    /// The directory for ECDSA keys.
    pub directory: &'static str,
    /// The directory for RSA keys, where it is another.
    pub rsa_directory: Option<&'static str>,
    /// Where the same CA can be tried without consequences.
    pub staging: Option<&'static str>,
    /// Where a person gets the key identifier and the HMAC key that the CA demands; `None` if it demands none.
    pub eab: Option<&'static str>,
    /// What it allows, as it documents; `None` if it documents nothing that can be counted here.
    pub limits: Option<fn() -> CaLimits>,
}

/// All of them. Directories and limits as documented by each CA in November 2026.
pub static KNOWN_CAS: &[KnownCa] = &[
    KnownCa {
        word: "letsencrypt",
        title: "Let's Encrypt",
        directory: LETS_ENCRYPT,
        rsa_directory: None,
        staging: Some(LETS_ENCRYPT_STAGING),
        eab: None,
        limits: Some(limits::lets_encrypt),
    },
    KnownCa {
        word: "letsencrypt-staging",
        title: "Let's Encrypt's staging",
        directory: LETS_ENCRYPT_STAGING,
        rsa_directory: None,
        staging: None,
        eab: None,
        limits: Some(limits::lets_encrypt_staging),
    },
    KnownCa {
        word: "zerossl",
        title: "ZeroSSL",
        directory: "https://acme.zerossl.com/v2/DV90",
        rsa_directory: None,
        staging: None,
        eab: Some("make EAB credentials at https://app.zerossl.com/developer"),
        limits: None,
    },
    KnownCa {
        word: "google",
        title: "Google Trust Services",
        directory: "https://dv.acme-v02.api.pki.goog/directory",
        rsa_directory: None,
        staging: Some("https://dv.acme-v02.test-api.pki.goog/directory"),
        eab: Some("run: gcloud publicca external-account-keys create; register within 7 days"),
        limits: None,
    },
    KnownCa {
        word: "sslcom",
        title: "SSL.com",
        directory: "https://acme.ssl.com/sslcom-dv-ecc",
        rsa_directory: Some("https://acme.ssl.com/sslcom-dv-rsa"),
        staging: None,
        eab: Some("copy the API credentials of your account at https://secure.ssl.com"),
        limits: None,
    },
];

impl KnownCa {
    /// The CA that a word of the configuration names.
    pub fn of_word(word: &str) -> Option<&'static Self> {
        KNOWN_CAS.iter().find(|ca| ca.word == word)
    }

    /// The CA whose directory this is.
    pub fn of_directory(url: &str) -> Option<&'static Self> {
        KNOWN_CAS.iter().find(|ca| ca.directory == url || ca.rsa_directory == Some(url))
    }

    /// The directory for keys of this kind.
    pub fn directory_for(&self, key: KeyKind) -> &'static str {
        match (key, self.rsa_directory) {
            (KeyKind::Rsa2048 | KeyKind::Rsa4096, Some(directory)) => directory,
            _ => self.directory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_directories_are_one_to_one() {
        for ca in KNOWN_CAS {
            assert!(std::ptr::eq(KnownCa::of_word(ca.word).unwrap(), ca));
            for directory in [Some(ca.directory), ca.rsa_directory].into_iter().flatten() {
                assert!(directory.starts_with("https://"));
                assert!(std::ptr::eq(KnownCa::of_directory(directory).unwrap(), ca), "{directory}");
            }
        }
        let ssl = KnownCa::of_word("sslcom").unwrap();
        assert!(ssl.directory_for(KeyKind::P384).ends_with("ecc"));
        assert!(ssl.directory_for(KeyKind::Rsa2048).ends_with("rsa"));
        assert!(KnownCa::of_directory("https://ca.internal/dir").is_none());
    }
}
