//! Full TLS 1.3 handshakes for names picked at random, as many as one core can ask for.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::servers::Fleet;

/// Enough that neither side waits for the other.
const AT_ONCE: usize = 32;
/// One handshake takes no longer, or the measurement ends.
const LIMIT: Duration = Duration::from_secs(10);

pub struct Load {
    pub handshakes: u64,
    pub took: Duration,
}

/// Knows what each name has to be served with.
pub struct Client {
    names: Vec<String>,
    leaves: Vec<CertificateDer<'static>>,
    verifying: Arc<ClientConfig>,
    comparing: Arc<ClientConfig>,
}

impl Client {
    pub fn new(fleet: &Fleet) -> Self {
        // One key exchange that all servers know: nginx and HAProxy of Debian 12 have no post-quantum one.
        let provider = Arc::new(CryptoProvider {
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        });
        let builder = || {
            ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(fleet.root_pem().as_bytes()).unwrap()).unwrap();
        let mut verifying = builder().with_root_certificates(roots).with_no_client_auth();
        verifying.resumption = Resumption::disabled();
        let comparing = Compared(provider.signature_verification_algorithms.supported_schemes());
        let mut comparing =
            builder().dangerous().with_custom_certificate_verifier(Arc::new(comparing)).with_no_client_auth();
        comparing.resumption = Resumption::disabled();
        let leaves = fleet.pems().map(|pem| CertificateDer::from_pem_file(pem).unwrap()).collect();
        Self {
            names: fleet.names().to_vec(),
            leaves,
            verifying: verifying.into(),
            comparing: comparing.into(),
        }
    }

    /// One handshake that verifies everything, for the name that comes last in every configuration.
    pub fn sees_the_last_name(&self, address: SocketAddr) -> bool {
        let last = self.names.len() - 1;
        runtime().block_on(async {
            let shaken = tokio::time::timeout(LIMIT, self.shake(&self.verifying, address, last)).await;
            shaken.is_ok_and(|stream| stream.is_ok())
        })
    }

    /// Handshakes for `length`, from the last core. Every leaf is compared; one that is wrong ends the measurement.
    pub fn load(&self, address: SocketAddr, length: Duration) -> Load {
        let cores = std::thread::available_parallelism().unwrap().get();
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                if cores > 1 {
                    pin_this_thread(cores - 1);
                }
                let begun = Instant::now();
                let tasks = (0..AT_ONCE).map(|_| self.repeat(address, begun + length));
                let counts = runtime().block_on(futures_util::future::join_all(tasks));
                Load { handshakes: counts.iter().sum(), took: begun.elapsed() }
            });
            load.join().unwrap()
        })
    }

    async fn repeat(&self, address: SocketAddr, end: Instant) -> u64 {
        let mut count = 0;
        while Instant::now() < end {
            let which = rand::rng().random_range(0..self.names.len());
            let shaken = tokio::time::timeout(LIMIT, async {
                let mut stream = self.shake(&self.comparing, address, which).await?;
                assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
                stream.shutdown().await?;
                // The other side has seen the end of the handshake when it closes.
                let mut rest = [0; 256];
                while matches!(stream.read(&mut rest).await, Ok(1..)) {}
                Ok::<(), std::io::Error>(())
            });
            shaken
                .await
                .expect("a handshake takes too long")
                .unwrap_or_else(|e| panic!("{}: {e}", self.names[which]));
            count += 1;
        }
        count
    }

    async fn shake(
        &self,
        config: &Arc<ClientConfig>,
        address: SocketAddr,
        which: usize,
    ) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        // From many addresses: the ports of one would all be waiting for their end before the load is over.
        let source = Ipv4Addr::new(127, 1, 1, rand::rng().random_range(1..=254));
        socket.bind(SocketAddr::from((source, 0)))?;
        let tcp = socket.connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.names[which].clone()).map_err(std::io::Error::other)?;
        let stream = TlsConnector::from(config.clone()).connect(name, tcp).await?;
        match stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()) {
            Some(leaf) if *leaf == self.leaves[which] => Ok(stream),
            _ => Err(std::io::Error::other("served with the certificate of another name")),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn pin_this_thread(core: usize) {
    // "thread-self" is a link to PID/task/TID.
    let own = std::fs::read_link("/proc/thread-self").unwrap();
    let id = own.file_name().unwrap().to_owned();
    let status = Command::new("taskset").args(["-cp", &core.to_string()]).arg(id).output().unwrap().status;
    assert!(status.success(), "taskset fails");
}

/// Believes everything: the leaf is compared with what it has to be, and the measured work is the server's.
#[derive(Debug)]
struct Compared(Vec<SignatureScheme>);

impl ServerCertVerifier for Compared {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
