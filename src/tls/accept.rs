//! The server's side of a handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, NoClientAuth};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;

use super::client_auth::ClientAuthReader;
use super::mint::MintReader;
use super::resolver::{self, ChosenCert};
use super::store::CertResolver;
use super::validation::ValidationReader;
use crate::clock::{SharedClock, SystemClock};
use crate::conn::{Alpn, TlsInfo, TlsPolicy};
use crate::name::HostName;

/// An encrypted connection.
pub type Stream<IO> = tokio_rustls::server::TlsStream<IO>;

/// A TLS record with a fatal `unrecognized_name` alert (RFC 6066 section 3). rustls sends `access_denied` when it has no
/// certificate, which tells the client nothing.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Does handshakes. Cloning shares the ticket keys.
#[derive(Clone, Debug)]
pub struct TlsServer {
    /// For hosts that ask for no client certificate.
    config: Arc<ServerConfig>,
    certs: CertResolver,
    validations: ValidationReader,
    minted: Option<MintReader>,
    client_auth: ClientAuthReader,
    clock: SharedClock,
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// The connection.
    pub stream: Stream<IO>,
    /// What was settled.
    pub info: TlsInfo,
}

/// Why there is no connection to serve. The client is at fault unless it is [`HandshakeError::Io`] or
/// [`HandshakeError::Validated`].
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// No certificate for this name; the client got `unrecognized_name`.
    #[error("no certificate for {0}")]
    UnknownName(String),
    /// A CA validated a name; that was all it came for.
    #[error("answered a tls-alpn-01 request for {0}")]
    Validated(HostName),
    /// The connection broke or closed.
    #[error("connection lost in the handshake: {0}")]
    Io(io::Error),
    /// Not TLS, or nothing in common; the client got rustls' alert.
    #[error("handshake refused: {0}")]
    Protocol(io::Error),
    /// The host asks for a client certificate, and there was none, or not a good one; the client got rustls' alert.
    #[error("client certificate refused: {0}")]
    ClientCertificate(rustls::Error),
}

impl HandshakeError {
    /// One word for `starlock_tls_handshakes_total{result}`.
    pub fn result(&self) -> &'static str {
        match self {
            Self::UnknownName(_) => "unrecognized_name",
            Self::Validated(_) => "acme_tls",
            Self::Io(_) => "io",
            Self::Protocol(_) => "protocol",
            Self::ClientCertificate(_) => "client_certificate",
        }
    }
}

impl TlsServer {
    /// TLS 1.2 and 1.3, post-quantum key exchange first, one ticket from rotated keys, no 0-RTT, h2 before http/1.1.
    ///
    /// Errors only if the crypto provider cannot make ticket keys.
    pub fn new(certs: CertResolver) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(Self {
            config: Arc::new(server_config(provider, Arc::new(NoClientAuth))?),
            certs,
            validations: ValidationReader::default(),
            minted: None,
            client_auth: ClientAuthReader::default(),
            clock: Arc::new(SystemClock),
        })
    }

    /// Asks clients for certificates.
    #[must_use]
    pub fn asking(mut self, client_auth: ClientAuthReader) -> Self {
        self.client_auth = client_auth;
        self
    }

    /// Answers tls-alpn-01 as well.
    #[must_use]
    pub fn validating(mut self, validations: ValidationReader) -> Self {
        self.validations = validations;
        self
    }

    /// Has exact certificates made for names below a wildcard that clients refuse.
    #[must_use]
    pub fn minting(mut self, minted: MintReader) -> Self {
        self.minted = Some(minted);
        self
    }

    /// Shakes hands. Has no deadline of its own: the caller puts one around it. Dropping the future closes the connection.
    pub async fn accept<IO>(&self, io: IO, local: SocketAddr) -> Result<Accepted<IO>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await.map_err(classify)?;
        let hello = start.client_hello();
        // SNI is untrusted text: a name that does not parse is a name that nobody has.
        let sni = hello.server_name().map(ToOwned::to_owned);
        let name = sni.as_deref().and_then(|text| HostName::parse(text).ok());
        if let Some(config) = self.validations.of(&hello, name.as_ref())
            && let Some(name) = name
        {
            let mut stream = start.into_stream(config).await.map_err(classify)?;
            // The CA has seen the certificate, and may have left already (RFC 8737 section 3).
            drop(stream.shutdown().await);
            return Err(HandshakeError::Validated(name));
        }
        let bundle = {
            let table = self.certs.table();
            match (&sni, &name) {
                (None, _) => table.without_sni(local.ip().to_canonical()).cloned(),
                (Some(_), Some(name)) => table.lookup(name.as_str()).cloned(),
                (Some(_), None) => None,
            }
        };
        let bundle = match (bundle, &self.minted, &name) {
            (Some(wildcard), Some(minted), Some(name)) if wildcard.is_refused_for(name) => {
                Some(minted.exact(name, &wildcard).await.unwrap_or(wildcard))
            }
            (bundle, ..) => bundle,
        };
        let Some(bundle) = bundle else {
            let mut io = start.io;
            io.write_all(&UNRECOGNIZED_NAME).await.map_err(HandshakeError::Io)?;
            io.shutdown().await.map_err(HandshakeError::Io)?;
            let name = sni.unwrap_or_else(|| format!("a client without SNI at {}", local.ip()));
            return Err(HandshakeError::UnknownName(name));
        };
        // By SNI alone: whoever asks for another host later on finds that its policy is another one.
        let asking = name.as_ref().and_then(|name| self.client_auth.of(name));
        let config = asking.as_ref().map_or(&self.config, |asking| &asking.config).clone();
        let stream = resolver::with(&bundle, || start.into_stream(config)).await.map_err(classify)?;
        let (_, connection) = stream.get_ref();
        let (policy, client_cert) = match asking {
            None => (TlsPolicy::OPEN, None),
            Some(asking) => {
                let now = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let cert = asking.identify(connection, UnixTime::since_unix_epoch(now));
                (asking.id(), cert.map_err(HandshakeError::ClientCertificate)?)
            }
        };
        let info = TlsInfo {
            sni: name,
            cert_names: bundle.names().clone(),
            alpn: if connection.alpn_protocol() == Some(b"h2") { Alpn::Http2 } else { Alpn::Http1 },
            resumed: connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            policy,
            client_cert,
        };
        Ok(Accepted { stream, info })
    }
}

/// What all TLS policies have in common. Each has ticket keys of its own.
pub(super) fn server_config(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(ChosenCert));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn classify(error: io::Error) -> HandshakeError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(refused @ (rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_))) =
        inner
    {
        // A server has only one certificate to find fault with.
        return HandshakeError::ClientCertificate(refused.clone());
    }
    if error.kind() == io::ErrorKind::InvalidData {
        HandshakeError::Protocol(error)
    } else {
        HandshakeError::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::TlsConnector;

    use super::super::bundle::Bundle;
    use super::super::bundle::tests::self_signed;
    use super::super::store::cert_store;
    use super::super::table::CertTable;
    use super::super::validation::Validations;
    use super::*;

    const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 443);

    fn client(trusted: &[&Bundle]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for bundle in trusted {
            roots.add(bundle.certified_key().cert[0].clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    async fn shake(
        server: &TlsServer,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> (Result<TlsInfo, HandshakeError>, io::Result<String>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(config.clone());
        let ours = async {
            let mut accepted = server.accept(far, LOCAL).await?;
            // One byte carries the ticket along.
            accepted.stream.write_all(b"x").await.map_err(HandshakeError::Io)?;
            Ok(accepted.info)
        };
        let theirs = async {
            let mut stream = connector.connect(name, near).await?;
            tokio::io::AsyncReadExt::read_u8(&mut stream).await?;
            let (_, connection) = stream.get_ref();
            Ok(format!("{:?}", connection.negotiated_key_exchange_group().map(|g| g.name())))
        };
        tokio::join!(ours, theirs)
    }

    #[tokio::test]
    async fn a_swap_changes_the_certificate_and_keeps_tickets() {
        let (mut publisher, certs) = cert_store();
        let (first, second) =
            (Arc::new(self_signed(&["*.example.com"], 30)), Arc::new(self_signed(&["*.example.com"], 60)));
        let config = Arc::new(client(&[&first, &second]));
        let server = TlsServer::new(certs).unwrap();
        publisher.publish(CertTable::new([first.clone()], None));

        let (info, group) = shake(&server, &config, "a.example.com").await;
        let info = info.unwrap();
        assert_eq!(group.unwrap(), "Some(X25519MLKEM768)");
        assert_eq!((info.alpn, info.resumed), (Alpn::Http2, false));
        assert_eq!(info.sni.unwrap().as_str(), "a.example.com");
        assert_eq!(&info.cert_names, first.names());

        publisher.publish(CertTable::new([second], None));
        assert!(
            shake(&server, &config, "a.example.com").await.0.unwrap().resumed,
            "a ticket survives the swap"
        );
        assert!(!shake(&server, &config, "b.example.com").await.0.unwrap().resumed);
    }

    #[tokio::test]
    async fn an_unknown_name_gets_the_right_alert() {
        let (mut publisher, certs) = cert_store();
        let bundle = Arc::new(self_signed(&["example.com"], 30));
        publisher.publish(CertTable::new([bundle.clone()], Some("example.com")));
        let server = TlsServer::new(certs).unwrap();
        let config = Arc::new(client(&[&bundle]));
        let (ours, theirs) = shake(&server, &config, "other.example.com").await;
        assert!(matches!(ours, Err(HandshakeError::UnknownName(name)) if name == "other.example.com"));
        assert!(
            theirs.unwrap_err().to_string().to_lowercase().contains("unrecogni"),
            "the client is told why"
        );
    }

    #[tokio::test]
    async fn only_a_hello_for_nothing_but_a_validation_gets_the_validations_certificate() {
        let (mut publisher, certs) = cert_store();
        let bundle = Arc::new(self_signed(&["example.com", "example.org"], 30));
        publisher.publish(CertTable::new([bundle.clone()], None));
        let validations = Validations::default();
        let server = TlsServer::new(certs).unwrap().validating(validations.reader());
        let offering = |alpn: &[&str]| {
            let mut config = client(&[&bundle]);
            config.alpn_protocols = alpn.iter().map(|a| a.as_bytes().to_vec()).collect();
            Arc::new(config)
        };
        let name = HostName::parse("example.com").unwrap();
        let guard = validations.stand(&name, [7; 32]).unwrap();
        // Clients get what they always get, and a client of ours refuses the other certificate.
        for alpn in [&["h2"][..], &["acme-tls/1", "h2"], &["h2", "acme-tls/1"], &[]] {
            assert!(shake(&server, &offering(alpn), "example.com").await.0.is_ok(), "{alpn:?}");
        }
        let validation = offering(&["acme-tls/1"]);
        let (_, theirs) = shake(&server, &validation, "example.com").await;
        assert!(theirs.unwrap_err().to_string().contains("invalid peer certificate"));
        // A name without one, and the name once the guard is gone: as if nobody knew the protocol.
        let refused =
            |ours: Result<TlsInfo, HandshakeError>| matches!(ours, Err(HandshakeError::Protocol(_)));
        assert!(refused(shake(&server, &validation, "example.org").await.0));
        let later = validations.stand(&name, [8; 32]).unwrap();
        drop(guard);
        assert!(!validations.is_empty(), "the other one stands");
        drop(later);
        assert!(validations.is_empty() && refused(shake(&server, &validation, "example.com").await.0));
    }

    #[tokio::test]
    async fn garbage_is_the_clients_fault() {
        let (_publisher, certs) = cert_store();
        let server = TlsServer::new(certs).unwrap();
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(matches!(server.accept(far, LOCAL).await, Err(HandshakeError::Protocol(_))));
        let (near, far) = tokio::io::duplex(1024);
        drop(near);
        assert!(matches!(server.accept(far, LOCAL).await, Err(HandshakeError::Io(_))));
    }
}
