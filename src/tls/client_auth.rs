//! Client certificates by host: for each CA a TLS configuration of its own, chosen by SNI, with ticket keys of its own.
//!
//! A ticket holds the client's chain as it was, and rustls takes it from there without a second look. So tickets must not be good
//! under another policy: each one has its own keys, which end with it. And a chain that comes from a ticket is verified again.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::accept::server_config;
use crate::conn::{ClientCert, TlsPolicies, TlsPolicy};
use crate::name::{HostName, HostPattern};

/// A bundle of every public root is a quarter of this.
const MAX_CA: u64 = 1 << 20;

/// That a host asks for client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuthSpec {
    /// A name or `*.name`; a name comes before a wildcard.
    pub host: HostPattern,
    /// PEM certificates of those who may sign; every one of them has to be usable.
    pub ca: PathBuf,
    /// Whether clients without a certificate may come too; a wrong one is refused all the same.
    pub optional: bool,
}

/// Why client certificates cannot be asked for. For a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mtls.{host:?}: the CA certificates in {path} cannot be used: {reason}", host = .host.to_string(), path = .path.display())]
pub struct ClientAuthError {
    host: HostPattern,
    path: PathBuf,
    reason: String,
}

/// Which hosts ask for which certificates. Immutable: a reload makes a new one, and takes over what has not changed.
#[derive(Debug, Default)]
pub struct ClientAuth {
    policies: Arc<TlsPolicies>,
    by_id: HashMap<TlsPolicy, Arc<Asking>>,
    /// The number of the newest policy there has been.
    newest: u64,
}

/// One CA and how strict it is.
pub(super) struct Asking {
    id: TlsPolicy,
    /// Over the CA's certificates, and the strictness: what makes a policy the same over a reload.
    digest: [u8; 32],
    pub(super) config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    optional: bool,
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Asking({:?})", self.id)
    }
}

impl ClientAuth {
    /// Reads the CAs. What `self` has under the same certificates and strictness is taken over, its tickets included. Blocking.
    pub fn next(&self, specs: &[ClientAuthSpec]) -> Result<Self, ClientAuthError> {
        let mut next = Self { newest: self.newest, ..Self::default() };
        let mut hosts = Vec::new();
        for spec in specs {
            let wrong = |reason| ClientAuthError { host: spec.host.clone(), path: spec.ca.clone(), reason };
            let certificates = read_ca(&spec.ca).map_err(wrong)?;
            let mut digest = Sha256::new();
            digest.update([u8::from(spec.optional)]);
            for certificate in &certificates {
                digest.update((certificate.len() as u64).to_be_bytes());
                digest.update(certificate);
            }
            let digest: [u8; 32] = digest.finalize().into();
            let known = next.by_id.values().chain(self.by_id.values()).find(|asking| asking.digest == digest);
            let asking = match known {
                Some(asking) => asking.clone(),
                None => {
                    next.newest += 1;
                    let id = TlsPolicy(next.newest);
                    Arc::new(Asking::new(id, digest, certificates, spec.optional).map_err(wrong)?)
                }
            };
            hosts.push((spec.host.clone(), asking.id));
            next.by_id.insert(asking.id, asking);
        }
        next.policies = Arc::new(TlsPolicies::new(hosts));
        Ok(next)
    }

    /// Which policy each host has.
    pub fn policies(&self) -> Arc<TlsPolicies> {
        self.policies.clone()
    }

    /// What `host` asks for; `None`: nothing.
    fn of(&self, host: &str) -> Option<&Arc<Asking>> {
        self.by_id.get(&self.policies.of(host))
    }
}

fn read_ca(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_CA + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_CA {
        return Err(format!("it is over the limit of {MAX_CA} bytes"));
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(none) if none.is_empty() => Err("it holds no PEM certificate".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}

impl Asking {
    fn new(
        id: TlsPolicy,
        digest: [u8; 32],
        certificates: Vec<CertificateDer<'static>>,
        optional: bool,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let builder = if optional { builder.allow_unauthenticated() } else { builder };
        let verifier = builder.build().map_err(|error| error.to_string())?;
        let config = server_config(provider, verifier.clone()).map_err(|error| error.to_string())?;
        Ok(Self { id, digest, config: Arc::new(config), verifier, optional })
    }

    pub(super) fn id(&self) -> TlsPolicy {
        self.id
    }

    /// Who the client of a finished handshake is. The chain of a resumed session is as old as its ticket: it is verified again.
    pub(super) fn identify(
        &self,
        connection: &ServerConnection,
        now: UnixTime,
    ) -> Result<Option<Arc<ClientCert>>, rustls::Error> {
        let Some((leaf, rest)) = connection.peer_certificates().and_then(<[_]>::split_first) else {
            return if self.optional { Ok(None) } else { Err(rustls::Error::NoCertificatesPresented) };
        };
        if connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
            self.verifier.verify_client_cert(leaf, rest, now)?;
        }
        let subject =
            X509Certificate::from_der(leaf).map(|(_, cert)| cert.subject().to_string()).unwrap_or_default();
        Ok(Some(Arc::new(ClientCert::new(leaf, &subject, &Sha256::digest(leaf)))))
    }
}

/// Makes the two ends of what clients are asked for: nothing at first; one writer, any number of readers.
pub fn client_auth_cell() -> (ClientAuthPublisher, ClientAuthReader) {
    let cell = Arc::new(ArcSwap::from_pointee(ClientAuth::default()));
    (ClientAuthPublisher(cell.clone()), ClientAuthReader(Some(cell)))
}

/// Decides what clients are asked for. Not cloneable: there is one writer.
#[derive(Debug)]
pub struct ClientAuthPublisher(Arc<ArcSwap<ClientAuth>>);

impl ClientAuthPublisher {
    /// What is asked now.
    pub fn current(&self) -> Arc<ClientAuth> {
        self.0.load_full()
    }

    /// Handshakes that begin after this returns are held to `next`.
    pub fn publish(&mut self, next: ClientAuth) {
        self.0.store(Arc::new(next));
    }
}

/// Sees what clients are asked for. The default asks for nothing, ever.
#[derive(Clone, Debug, Default)]
pub struct ClientAuthReader(Option<Arc<ArcSwap<ClientAuth>>>);

impl ClientAuthReader {
    pub(super) fn of(&self, host: &HostName) -> Option<Arc<Asking>> {
        let all: Guard<Arc<ClientAuth>> = self.0.as_ref()?.load();
        all.of(host.as_str()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bundle::tests::self_signed;
    use super::*;

    fn pem(bundle: &super::super::bundle::Bundle) -> String {
        let der = &bundle.certified_key().cert[0];
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn what_has_not_changed_keeps_its_number_and_what_cannot_be_read_stops_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (one, two) = (pem(&self_signed(&["one"], 30)), pem(&self_signed(&["two"], 30)));
        std::fs::write(path("one"), &one).unwrap();
        std::fs::write(path("copy"), format!("# the same\n{one}")).unwrap();
        std::fs::write(path("two"), &two).unwrap();
        let spec = |host: &str, ca: &str, optional| ClientAuthSpec {
            host: HostPattern::parse(host).unwrap(),
            ca: path(ca),
            optional,
        };
        let specs = [
            spec("a.test", "one", false),
            spec("b.test", "copy", false),
            spec("c.test", "one", true),
            spec("*.d.test", "two", false),
        ];
        let first = ClientAuth::default().next(&specs).unwrap();
        let of = |auth: &ClientAuth, host: &str| auth.policies().of(host);
        assert_eq!(of(&first, "a.test"), of(&first, "b.test"), "the same CA");
        assert_ne!(of(&first, "a.test"), of(&first, "c.test"), "not as strict");
        assert_eq!(of(&first, "z.test"), TlsPolicy::OPEN);
        assert!(first.of("x.d.test").is_some() && first.of("d.test").is_none());

        std::fs::write(path("one"), &two).unwrap();
        let second = first.next(&specs).unwrap();
        assert_eq!(of(&second, "b.test"), of(&first, "b.test"), "nothing about it has changed");
        assert_eq!(of(&second, "a.test"), of(&second, "x.d.test"));
        assert!(Arc::ptr_eq(second.of("x.d.test").unwrap(), first.of("x.d.test").unwrap()));
        assert_ne!(of(&second, "c.test"), of(&first, "c.test"));
        let third = second.next(&[]).unwrap().next(&specs).unwrap();
        assert!(of(&third, "a.test").0 > second.newest, "a number is not used twice");

        for (text, why) in [
            ("", "no PEM certificate"),
            ("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", "cannot be used"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be used"),
        ] {
            std::fs::write(path("one"), text).unwrap();
            let error = second.next(&specs).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("a.test"), "{error}");
        }
        std::fs::remove_file(path("one")).unwrap();
        assert!(second.next(&specs).unwrap_err().to_string().contains("No such file"));
    }
}
