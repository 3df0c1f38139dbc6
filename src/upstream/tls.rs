//! TLS to servers: what is trusted and presented, made once for all workers; and the handshake.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::exchange::Failure;
use crate::balance::{Endpoint, ServerHost, TlsHttp, TlsSpec, Transport, UpstreamSpec};
use crate::task;

pub(super) const H2: &[u8] = b"h2";
const H1: &[u8] = b"http/1.1";

/// Files that changed are in force this soon.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why TLS to an upstream cannot be set up. Names the file and what it must hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("TLS to an upstream: {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system has no roots: a container without ca-certificates, for example.
    #[error(
        "TLS to an upstream: this system has no root certificates ({0}); install the package ca-certificates, or name the servers' root with `tls.ca`"
    )]
    NoRoots(String),
    /// rustls does not take them.
    #[error("TLS to an upstream cannot be set up: {0}")]
    Unusable(String),
}

/// What one `tls` table comes to.
#[derive(Debug)]
struct Client {
    /// Of everything that was read for it: sessions outlive a reload that changes nothing.
    digest: [u8; 32],
    config: Arc<ClientConfig>,
    /// For requests that ask for another protocol, which only HTTP/1.1 can switch to.
    only_h1: Arc<ClientConfig>,
}

type Clients = HashMap<Arc<TlsSpec>, Arc<Client>>;

#[derive(Debug, Default)]
struct Shared {
    clients: ArcSwap<Clients>,
    /// What was last said of a server's TLS: told again only when it changes.
    told: Mutex<HashMap<u64, String>>,
}

/// Makes the two ends of what TLS to servers is done with.
pub fn client_tls() -> (TlsPublisher, TlsReader) {
    let shared = Arc::new(Shared::default());
    (TlsPublisher { shared: shared.clone() }, TlsReader(shared))
}

/// Puts configurations into force. Not cloneable: there is one writer.
#[derive(Debug)]
pub struct TlsPublisher {
    shared: Arc<Shared>,
}

/// Sees what is in force. Cloning shares it.
#[derive(Clone, Debug)]
pub struct TlsReader(Arc<Shared>);

/// Configurations that were read and proven, and are not in force yet.
#[derive(Debug)]
#[must_use = "what is not committed is not in force"]
pub struct PreparedTls(Clients);

impl TlsPublisher {
    /// Reads everything that the `https://` servers of `upstreams` need. Errors at the first file that is no use.
    pub async fn prepare(&self, upstreams: &[UpstreamSpec]) -> Result<PreparedTls, TlsError> {
        let servers = upstreams.iter().flat_map(|upstream| &upstream.servers);
        let specs: Vec<Arc<TlsSpec>> = servers
            .filter_map(|server| match &server.transport {
                Transport::Tls(spec) => Some(spec.clone()),
                _ => None,
            })
            .collect();
        if specs.is_empty() {
            return Ok(PreparedTls(Clients::new()));
        }
        let held = self.shared.clients.load_full();
        task::blocking(move || read(&specs, &held).map(PreparedTls)).await
    }

    /// Connections that are made from now on use it. Those that are open stay.
    pub fn commit(&mut self, prepared: PreparedTls) {
        self.shared.clients.store(Arc::new(prepared.0));
    }

    /// Resolves when a file says something else than what is in force. A file that is no use is told of once; what it said
    /// before stays. Dropping the future loses nothing.
    pub async fn changed(&self) -> PreparedTls {
        let mut told = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let held = self.shared.clients.load_full();
            if held.keys().all(|spec| spec.ca.is_none() && spec.identity.is_none()) {
                continue;
            }
            let specs: Vec<_> = held.keys().cloned().collect();
            let known = held.clone();
            match task::blocking(move || read(&specs, &known)).await {
                Ok(clients) if clients.iter().any(|(spec, new)| held[spec].digest != new.digest) => {
                    tracing::info!(
                        "a certificate, key or root for TLS to upstreams has changed; new connections use it"
                    );
                    return PreparedTls(clients);
                }
                Ok(_) => told = None,
                Err(error) => {
                    if told.as_ref() != Some(&error) {
                        tracing::error!("{error}; what was read before stays in use");
                        told = Some(error);
                    }
                }
            }
        }
    }
}

/// Blocking.
fn read(specs: &[Arc<TlsSpec>], held: &Clients) -> Result<Clients, TlsError> {
    let mut system = None;
    let mut clients = Clients::new();
    for spec in specs {
        if clients.contains_key(spec) {
            continue;
        }
        let roots = match &spec.ca {
            _ if spec.skip_verify => Vec::new(),
            Some(path) => certificates(path)?,
            None => match &system {
                Some(roots) => Vec::clone(roots),
                None => system.insert(system_roots()?).clone(),
            },
        };
        let identity = match &spec.identity {
            None => None,
            Some(files) => {
                let key = PrivateKeyDer::from_pem_file(&files.key)
                    .map_err(|error| wrong(&files.key, format!("no PEM key: {error}")))?;
                Some((certificates(&files.cert)?, key))
            }
        };
        let mut hash = Sha256::new();
        let chain = identity.iter().flat_map(|(chain, _)| chain);
        for part in roots.iter().chain(chain) {
            hash.update(part);
        }
        if let Some((_, key)) = &identity {
            hash.update(key.secret_der());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let client = match held.get(spec).filter(|held| held.digest == digest) {
            Some(held) => held.clone(),
            None => Arc::new(client(spec, roots, identity, digest)?),
        };
        clients.insert(spec.clone(), client);
    }
    Ok(clients)
}

fn client(
    spec: &TlsSpec,
    roots: Vec<CertificateDer<'static>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    digest: [u8; 32],
) -> Result<Client, TlsError> {
    let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    let verifier: Arc<dyn ServerCertVerifier> = if spec.skip_verify {
        Arc::new(Anyone(provider))
    } else {
        let mut store = RootCertStore::empty();
        // Systems carry roots that webpki does not read; those are left out.
        let (usable, _) = store.add_parsable_certificates(roots);
        if usable == 0 {
            return Err(match &spec.ca {
                Some(path) => wrong(path, "no certificate in it can be a root"),
                None => TlsError::NoRoots("none of them can be used".to_owned()),
            });
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .map_err(|error| unusable(&error))?
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match (identity, &spec.identity) {
        (Some((chain, key)), Some(files)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| wrong(&files.cert, format!("does not go with the key: {error}")))?,
        _ => builder.with_no_client_auth(),
    };
    let mut only_h1 = config.clone();
    only_h1.alpn_protocols = vec![H1.to_vec()];
    config.alpn_protocols = match spec.http {
        TlsHttp::Auto => vec![H2.to_vec(), H1.to_vec()],
        TlsHttp::One => vec![H1.to_vec()],
        TlsHttp::Two => vec![H2.to_vec()],
    };
    Ok(Client { digest, config: Arc::new(config), only_h1: Arc::new(only_h1) })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match list {
        Ok(list) if list.is_empty() => Err(wrong(path, "it holds no PEM certificate")),
        Ok(list) => Ok(list),
        Err(error) => Err(wrong(path, error.to_string())),
    }
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    match found.certs.is_empty() {
        true => Err(TlsError::NoRoots(found.errors.first().map_or_else(String::new, ToString::to_string))),
        false => Ok(found.certs),
    }
}

fn wrong(path: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::File { path: path.to_owned(), reason: reason.into() }
}

/// A handshake that came to nothing.
pub(super) struct Refused {
    pub(super) failure: Failure,
    pub(super) reason: String,
}

impl Refused {
    pub(super) fn timeout() -> Self {
        Self { failure: Failure::TlsTimeout, reason: "the handshake did not end in time".to_owned() }
    }
}

/// Which HTTP is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpn {
    /// What the upstream's `tls` table says.
    AsConfigured,
    /// What can switch to another protocol.
    OnlyH1,
}

pub(super) async fn handshake(
    reader: &TlsReader,
    endpoint: &Endpoint,
    spec: &TlsSpec,
    alpn: Alpn,
    io: TcpStream,
) -> Result<TlsStream<TcpStream>, Refused> {
    let refused = |failure, reason: String| Refused { failure, reason };
    let client = reader.0.clients.load().get(spec).cloned();
    let Some(client) = client else {
        // A server of a snapshot that a reload has just taken out of force.
        return Err(refused(Failure::Tls, "its TLS settings are not in force any more".to_owned()));
    };
    let name = match (&spec.sni, &endpoint.spec().host) {
        (Some(sni), _) => ServerName::try_from(sni.as_str().to_owned()),
        (None, ServerHost::Ip(address)) => Ok(ServerName::from(*address)),
        (None, ServerHost::Name(name) | ServerHost::Service(name)) => ServerName::try_from(name.to_string()),
        (None, ServerHost::Unix(_)) => ServerName::try_from(String::new()),
    };
    let name = name.map_err(|_| {
        let why = "no certificate can be for this name; say with `tls.sni` which one its certificate is for";
        refused(Failure::TlsCertificate, why.to_owned())
    })?;
    let config = if alpn == Alpn::OnlyH1 { &client.only_h1 } else { &client.config };
    TlsConnector::from(config.clone())
        .connect(name, io)
        .await
        .map_err(|error| refused(refusal(&error).unwrap_or(Failure::Tls), words(&error)))
}

/// What TLS has against a connection, if that is what ended it.
pub(super) fn refusal(error: &io::Error) -> Option<Failure> {
    Some(match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            Failure::TlsCertificate
        }
        rustls::Error::AlertReceived(_) => Failure::TlsRefused,
        _ => Failure::Tls,
    })
}

/// What is wrong, and what mends it where that is one thing.
fn words(error: &io::Error) -> String {
    use rustls::{CertificateError, Error};
    let said = error.to_string();
    let mend = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "`tls.ca` names the PEM file with the root that its certificate is signed by"
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "`tls.sni` says which name its certificate is for",
        // rustls does not name this one: an error of webpki's inside.
        Some(Error::InvalidCertificate(_)) if said.contains("CaUsedAsEndEntity") => {
            return "its certificate is that of a CA, which no server may show as its own. `openssl req -x509` makes such a one, unless \
                    it has `-addext basicConstraints=critical,CA:FALSE`"
                .to_owned();
        }
        Some(Error::InvalidMessage(_)) => "if it speaks no TLS, its URL begins with http:// or h2c://",
        _ => return said,
    };
    format!("{said} ({mend})")
}

impl TlsReader {
    /// Says what is wrong with the TLS of a server, or that nothing is any more: once, not with each request.
    pub(super) fn told(&self, endpoint: &Endpoint, problem: Option<&str>) {
        let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            None if told.is_empty() => {}
            None => {
                if told.remove(&endpoint.id()).is_some() {
                    tracing::info!(upstream = %endpoint.upstream(), server = %endpoint.label(), "TLS to the server works again");
                }
            }
            Some(problem) if told.get(&endpoint.id()).is_some_and(|known| known == problem) => {}
            Some(problem) => {
                tracing::warn!(upstream = %endpoint.upstream(), server = %endpoint.label(), "no TLS to the server: {problem}");
                told.insert(endpoint.id(), problem.to_owned());
            }
        }
    }

    /// Forgets what was said of servers that `keep` says no to.
    pub(super) fn retain(&self, keep: impl Fn(u64) -> bool) {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| keep(*id));
    }
}

/// `danger_skip_verify`: takes any certificate. That the server has its key is still proven.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
