//! A certificate chain with its key, proven to belong together.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::name::{HostName, HostPattern};

/// A chain, its key, and what the leaf says.
pub struct Bundle {
    key: Arc<CertifiedKey>,
    names: Arc<[HostPattern]>,
    issuer: String,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why a chain and a key are not a bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// No certificate, or not PEM.
    #[error("the chain is not PEM certificates: {0}")]
    Chain(String),
    /// No key, or one that we cannot use.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// They do not belong together.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// The leaf holds no name that we know.
    #[error("the certificate has no DNS name or address in subjectAltName")]
    NoNames,
}

impl Bundle {
    /// Parses PEM and proves that key and leaf match. Trust and dates are not judged here.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, BundleError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| BundleError::Chain(e.to_string()))?;
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| BundleError::Key(e.to_string()))?;
        Self::from_der(chain, key)
    }

    /// As [`Bundle::from_pem`], from DER.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, BundleError> {
        let Some(leaf) = chain.first().cloned() else {
            return Err(BundleError::Chain("it is empty".into()));
        };
        let (_, leaf) = X509Certificate::from_der(&leaf).map_err(|e| BundleError::Chain(e.to_string()))?;
        let names = names(&leaf);
        if names.is_empty() {
            return Err(BundleError::NoNames);
        }
        let (issuer, serial) = (leaf.issuer().to_string(), hex(leaf.raw_serial()));
        let not_before = time(leaf.validity().not_before.timestamp());
        let not_after = time(leaf.validity().not_after.timestamp());
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => BundleError::Mismatch,
            other => BundleError::Key(other.to_string()),
        })?;
        Ok(Self { key: Arc::new(key), names, issuer, serial, not_before, not_after })
    }

    /// What rustls signs with.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The names of the leaf, sorted.
    pub fn names(&self) -> &Arc<[HostPattern]> {
        &self.names
    }

    /// Whether the leaf is good for all of `wanted`.
    pub fn covers(&self, wanted: &[HostPattern]) -> bool {
        wanted.iter().all(|want| self.names.iter().any(|have| have.covers(want)))
    }

    /// Whether only a wildcard right below the root, such as `*.localhost`, is for `name`: clients take none of those.
    pub(super) fn is_refused_for(&self, name: &HostName) -> bool {
        let Some((_, parent)) = name.as_str().split_once('.').filter(|(_, rest)| !rest.contains('.')) else {
            return false;
        };
        let by = |have: &HostPattern| match have {
            HostPattern::Exact(exact) => exact == name,
            HostPattern::Wildcard(zone) => zone.as_str() == parent,
            HostPattern::Ip(_) => false,
        };
        let mut all = self.names.iter().filter(|have| by(have)).peekable();
        all.peek().is_some() && all.all(HostPattern::is_wildcard)
    }

    /// The distinguished name of who signed it.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Lower-case hex without separators, as Pebble and crt.sh write it.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The first moment of validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last moment of validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({:?}, serial {})", self.names, self.serial)
    }
}

fn names(leaf: &X509Certificate<'_>) -> Arc<[HostPattern]> {
    let mut names: Vec<HostPattern> = leaf
        .subject_alternative_name()
        .ok()
        .flatten()
        .into_iter()
        .flat_map(|san| san.value.general_names.iter())
        .filter_map(|name| match name {
            GeneralName::DNSName(text) => HostPattern::parse(text).ok(),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(Into::into);
                v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(Into::into)).ok().map(HostPattern::Ip)
            }
            _ => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names.into()
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(bytes);
    digits.iter().map(|b| format!("{b:02x}")).collect()
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A self-signed bundle that is valid from a day ago for `days`.
    pub(crate) fn self_signed(names: &[&str], days: i64) -> Bundle {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(names.iter().map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(1);
        params.not_after = params.not_before + time::Duration::days(days);
        let cert = params.self_signed(&key).unwrap();
        Bundle::from_pem(&cert.pem(), &key.serialize_pem()).unwrap()
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let key = KeyPair::generate().unwrap();
        let other = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert!(Bundle::from_pem(&cert.pem(), &key.serialize_pem()).is_ok());
        assert_eq!(Bundle::from_pem(&cert.pem(), &other.serialize_pem()).unwrap_err(), BundleError::Mismatch);
        assert!(matches!(Bundle::from_pem("", &key.serialize_pem()), Err(BundleError::Chain(_))));
        assert!(matches!(Bundle::from_pem(&cert.pem(), "nonsense"), Err(BundleError::Key(_))));
    }

    #[test]
    fn names_come_from_the_leaf() {
        let bundle = self_signed(&["*.example.com", "example.com", "::1"], 10);
        let text: Vec<_> = bundle.names().iter().map(ToString::to_string).collect();
        assert_eq!(text, ["example.com", "*.example.com", "::1"]);
        assert!(bundle.covers(&[HostPattern::parse("a.example.com").unwrap()]));
        assert!(!bundle.covers(&[HostPattern::parse("a.b.example.com").unwrap()]));
    }
}
