//! A handshake with ourselves: whether clients will get on with a certificate, before they see it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::accept::TlsServer;
use super::bundle::Bundle;
use super::store::cert_store;
use super::table::CertTable;
use crate::name::HostPattern;

/// A hello, a chain of a few certificates and a finish fit several times.
const PIPE: usize = 256 * 1024;
/// What takes milliseconds must not hang for ever.
const LIMIT: Duration = Duration::from_secs(30);

/// The roots that this machine trusts. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// Reads the system's; none if there are none. Blocking.
    pub fn system() -> Self {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (_, unusable) = roots.add_parsable_certificates(found.certs);
        if unusable > 0 || !found.errors.is_empty() {
            tracing::debug!(unusable, errors = ?found.errors, "some of this machine's roots cannot be used");
        }
        Self(Arc::new(roots))
    }
}

/// Shakes hands with `bundle` for each of `names` at `now`, as a client that trusts the end of its chain: names, dates, the key,
/// and every signature of the chain are verified, through the same table and the same server as real clients.
///
/// `roots` are this machine's. `Ok` holds a warning if none of them is at the chain's end: then clients have to trust it
/// themselves. The error is for a person.
pub async fn canary(
    bundle: &Arc<Bundle>,
    names: &[HostPattern],
    now: SystemTime,
    roots: &Roots,
) -> Result<Option<String>, String> {
    let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let chain = &bundle.certified_key().cert;
    dates(chain, time)?;
    // Clients are not shown this one for such a wildcard, but one that is made for the very name they ask for.
    let names: Vec<&HostPattern> = names.iter().filter(|name| !name.is_below_root()).collect();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let inspector = Arc::new(Inspector::new(chain, &provider)?);
    let config = ClientConfig::builder_with_details(provider.clone(), Arc::new(Fixed(time)))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(inspector)
        .with_no_client_auth();
    let (mut publisher, certs) = cert_store();
    publisher.publish(CertTable::new([bundle.clone()], None));
    let server = TlsServer::new(certs).map_err(|e| e.to_string())?;
    let connector = TlsConnector::from(Arc::new(config));
    for name in &names {
        let shaken = tokio::time::timeout(LIMIT, shake(&server, &connector, name)).await;
        let seen = shaken.unwrap_or_else(|_| Err(io::Error::other("the handshake does not end")));
        let seen = seen.map_err(|e| format!("a client that asks for {name} refuses it: {e}"))?;
        if Some(&seen) != chain.first() {
            return Err(format!("a client that asks for {name} gets another certificate"));
        }
    }
    Ok(distrust(chain, &names, time, &roots.0, provider))
}

async fn shake(
    server: &TlsServer,
    connector: &TlsConnector,
    name: &HostPattern,
) -> io::Result<CertificateDer<'static>> {
    let (near, far) = tokio::io::duplex(PIPE);
    let (server_name, local) = match name {
        HostPattern::Ip(address) => (ServerName::from(*address), *address),
        other => (probe(other)?, IpAddr::V4(Ipv4Addr::LOCALHOST)),
    };
    let (ours, theirs) = tokio::join!(
        async { server.accept(far, SocketAddr::new(local, 443)).await.map_err(io::Error::other) },
        connector.connect(server_name, near),
    );
    // What the client says is why the server's side broke.
    let stream = theirs?;
    drop(ours?);
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    chain.first().map(|leaf| leaf.clone().into_owned()).ok_or_else(|| io::Error::other("no certificate came"))
}

/// A host that the pattern is for.
fn probe(name: &HostPattern) -> io::Result<ServerName<'static>> {
    let host = match name {
        HostPattern::Wildcard(zone) => format!("starlock-canary.{zone}"),
        other => other.to_string(),
    };
    ServerName::try_from(host).map_err(io::Error::other)
}

fn dates(chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), String> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    for der in chain {
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        let (from, to) = (&cert.validity().not_before, &cert.validity().not_after);
        if now < from.timestamp() || now > to.timestamp() {
            return Err(format!(
                "its certificate `{}` is valid from {from} to {to}, and that is not now by this machine's clock",
                cert.subject()
            ));
        }
    }
    Ok(())
}

/// Why a client with this machine's roots would not trust the chain.
fn distrust(
    chain: &[CertificateDer<'static>],
    names: &[&HostPattern],
    now: UnixTime,
    roots: &Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Option<String> {
    if roots.is_empty() {
        return None;
    }
    let (leaf, rest) = chain.split_first()?;
    let name = match names.first()? {
        HostPattern::Ip(address) => ServerName::from(*address),
        other => probe(other).ok()?,
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider).build().ok()?;
    // Everything else about the chain is proven by now.
    let Err(reason) = verifier.verify_server_cert(leaf, rest, &name, &[], now) else { return None };
    let (_, top) = X509Certificate::from_der(chain.last()?).ok()?;
    Some(format!(
        "this machine's roots do not vouch for `{}` ({reason}); clients' roots have to",
        top.issuer()
    ))
}

/// Trusts the end of one chain and nothing else.
#[derive(Debug)]
struct Inspector {
    /// `None` for a leaf that comes alone and is signed by somebody else: its signature cannot be checked.
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Inspector {
    fn new(chain: &[CertificateDer<'static>], provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let Some(end) = chain.last() else { return Err("the chain is empty".to_owned()) };
        let (_, parsed) = X509Certificate::from_der(end).map_err(|e| e.to_string())?;
        let alone = chain.len() == 1 && parsed.issuer() != parsed.subject();
        let mut roots = RootCertStore::empty();
        roots.add(end.clone()).map_err(|e| e.to_string())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let verifier = verifier.build().map_err(|e| e.to_string())?;
        Ok(Self { chain: (!alone).then_some(verifier), provider: provider.clone() })
    }
}

impl ServerCertVerifier for Inspector {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(chain) = &self.chain {
            return chain.verify_server_cert(leaf, rest, name, ocsp, now);
        }
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The time that was asked about.
#[derive(Debug)]
struct Fixed(UnixTime);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

    use super::*;
    use crate::clock::{Clock, SystemClock};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn none() -> Roots {
        Roots(Arc::new(RootCertStore::empty()))
    }

    fn names(texts: &[&str]) -> Vec<HostPattern> {
        texts.iter().map(|text| HostPattern::parse(text).unwrap()).collect()
    }

    /// A chain of leaf and CA; with `forged`, the leaf is signed by another key of the same name.
    fn chain(hosts: &[&str], days: u32, forged: bool) -> Arc<Bundle> {
        let now = SystemClock.now();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = ((now - DAY).into(), (now + 100 * DAY).into());
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let ca = params.self_signed(&key).unwrap();
        let signer = Issuer::new(params, if forged { other } else { key });
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        (params.not_before, params.not_after) = ((now - DAY).into(), (now + days * DAY).into());
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &signer).unwrap();
        let pem = format!("{}{}", leaf.pem(), ca.pem());
        Arc::new(Bundle::from_pem(&pem, &key.serialize_pem()).unwrap())
    }

    #[tokio::test]
    async fn what_clients_would_refuse_is_refused_and_why_is_said() {
        let hosts = ["example.com", "*.example.com", "192.0.2.1"];
        let good = chain(&hosts, 30, false);
        let now = SystemClock.now();
        let all = names(&hosts);
        assert_eq!(canary(&good, &all, now, &none()).await, Ok(None));
        let local = chain(&["*.localhost"], 30, false);
        assert_eq!(canary(&local, &names(&["*.localhost"]), now, &none()).await, Ok(None), "it is not shown");
        for (bundle, wanted, at, why) in [
            (&good, names(&["example.org"]), now, "example.org"),
            (&good, all.clone(), now + 40 * DAY, "not now by this machine's clock"),
            (&local, names(&["*.localhost"]), now + 40 * DAY, "not now by this machine's clock"),
            (&good, all.clone(), now - 2 * DAY, "not now by this machine's clock"),
            (&chain(&hosts, 30, true), all.clone(), now, "example.com refuses it"),
        ] {
            let error = canary(bundle, &wanted, at, &none()).await.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn a_root_that_this_machine_does_not_know_is_only_told_of() {
        let good = chain(&["example.com"], 30, false);
        let stranger = chain(&["example.org"], 30, false);
        let all = names(&["example.com"]);
        let roots = |bundle: &Bundle| {
            let mut roots = RootCertStore::empty();
            roots.add(bundle.certified_key().cert[1].clone()).unwrap();
            Roots(Arc::new(roots))
        };
        let now = SystemClock.now();
        let warning = canary(&good, &all, now, &roots(&stranger)).await.unwrap();
        assert!(warning.is_some_and(|text| text.contains("clients' roots have to")));
        assert_eq!(canary(&good, &all, now, &roots(&good)).await, Ok(None));
    }
}
