//! Answering tls-alpn-01 (RFC 8737): a certificate that says what the CA wants to hear, for hellos that offer nothing but
//! `acme-tls/1`. A table of its own: it never meets the certificates that clients get.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::name::HostName;

const ACME_TLS: &[u8] = b"acme-tls/1";

/// Why a certificate for a validation could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// By rcgen.
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
    /// rustls would not take it.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

type Table = HashMap<Box<str>, Arc<ServerConfig>>;

/// Puts validations into the table. Cloning shares it.
#[derive(Clone, Default)]
pub struct Validations(Arc<Inner>);

#[derive(Default)]
struct Inner {
    table: ArcSwap<Table>,
    /// In the order of their coming; of two for one name, the later one answers.
    standing: Mutex<Standing>,
}

#[derive(Default)]
struct Standing {
    next: u64,
    all: Vec<(u64, Box<str>, Arc<ServerConfig>)>,
}

/// Finds the validation for a hello. Cloning is cheap.
#[derive(Clone, Default)]
pub struct ValidationReader(Arc<Inner>);

/// A validation that stands; dropping it takes it away.
pub struct ValidationGuard {
    inner: Arc<Inner>,
    id: u64,
}

impl Validations {
    /// For handshakes.
    pub fn reader(&self) -> ValidationReader {
        ValidationReader(self.0.clone())
    }

    /// Whether none stands.
    pub fn is_empty(&self) -> bool {
        self.0.table.load().is_empty()
    }

    /// Answers for `name` with `digest`, the SHA-256 of the key authorization, until the guard is dropped.
    pub fn stand(&self, name: &HostName, digest: [u8; 32]) -> Result<ValidationGuard, ValidationError> {
        let config = Arc::new(config(name, &digest)?);
        let mut id = 0;
        self.0.change(|standing| {
            id = standing.next;
            standing.next += 1;
            standing.all.push((id, name.as_str().into(), config));
        });
        Ok(ValidationGuard { inner: self.0.clone(), id })
    }
}

impl ValidationReader {
    /// What to shake hands with, if `hello` is a validation's and one stands for `name`. No lock is taken.
    pub(super) fn of(&self, hello: &ClientHello<'_>, name: Option<&HostName>) -> Option<Arc<ServerConfig>> {
        let mut offered = hello.alpn()?;
        if offered.next() != Some(ACME_TLS) || offered.next().is_some() {
            return None;
        }
        self.0.table.load().get(name?.as_str()).cloned()
    }
}

impl Inner {
    fn change(&self, change: impl FnOnce(&mut Standing)) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut standing);
        let table = standing.all.iter().map(|(_, name, config)| (name.clone(), config.clone())).collect();
        self.table.store(Arc::new(table));
    }
}

impl Drop for ValidationGuard {
    fn drop(&mut self) {
        self.inner.change(|standing| standing.all.retain(|(id, ..)| *id != self.id));
    }
}

/// A self-made certificate with the critical acmeIdentifier (section 3), and no ticket that would outlive it.
fn config(name: &HostName, digest: &[u8; 32]) -> Result<ServerConfig, ValidationError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = provider.key_provider.load_private_key(key)?;
    // Not looked at by rustls, which refuses the extension that all this is about.
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

impl fmt::Debug for Validations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Validations({})", self.0.table.load().len())
    }
}

impl fmt::Debug for ValidationReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ValidationReader({})", self.0.table.load().len())
    }
}

impl fmt::Debug for ValidationGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ValidationGuard({})", self.id)
    }
}
