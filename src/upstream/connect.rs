//! Opening a connection to a server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::exchange::Failure;
use super::proxy_protocol::{self, ClientAddresses};
use super::stream::{Io, TlsIo, TlsState};
use super::tls::{self, TlsReader};
use crate::balance::{Endpoint, ServerHost, ServerSpec, TlsHttp, Transport};
use crate::conn::watch_peer;
use crate::resolver::Hosts;

/// A connection, and which HTTP is to be spoken on it.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) io: Io,
    pub(super) http2: bool,
    pub(super) tls: TlsState,
}

/// What connections are made with.
#[derive(Clone, Debug)]
pub(super) struct Means {
    pub(super) hosts: Hosts,
    pub(super) tls: TlsReader,
}

/// Connects to `endpoint`: a socket within `limit`, name resolution included, and TLS within as long again. `client` is told to
/// the server if that is configured. With `only_h1`, HTTP/2 is not offered.
pub(super) async fn connect(
    endpoint: &Arc<Endpoint>,
    means: &Means,
    limit: Duration,
    client: Option<&ClientAddresses>,
    only_h1: bool,
) -> Result<Connected, Failure> {
    let server = endpoint.spec();
    let mut io = socket(server, &means.hosts, limit).await?;
    if let (Some(version), Some(client)) = (server.proxy_protocol, client) {
        let header = proxy_protocol::header(version, client);
        // Far smaller than any socket's buffer: it does not wait.
        let written = match &mut io {
            Io::Tcp(io) => io.write_all(&header).await,
            Io::Unix(io) => io.write_all(&header).await,
            Io::Tls(_) => Ok(()),
        };
        written.map_err(|error| classify(&error))?;
    }
    match (&server.transport, io) {
        (Transport::Tls(spec), Io::Tcp(io)) => {
            let alpn = if only_h1 { tls::Alpn::OnlyH1 } else { tls::Alpn::AsConfigured };
            let handshake = Box::pin(tls::handshake(&means.tls, endpoint, spec, alpn, io));
            let result = timeout(limit, handshake).await.unwrap_or_else(|_| Err(tls::Refused::timeout()));
            let stream = result.map_err(|refused| {
                // Offered less than is configured, on a client's word: the server may well take what others ask for.
                if only_h1 && refused.failure == Failure::TlsRefused {
                    tracing::debug!(server = %endpoint.label(), reason = refused.reason, "no HTTP/1.1 for another protocol");
                    return Failure::NoSwitch;
                }
                means.tls.told(endpoint, Some(&refused.reason));
                refused.failure
            })?;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(tls::H2);
            if spec.http == TlsHttp::Two && !http2 && !only_h1 {
                return Err(Failure::NotHttp2);
            }
            let state = TlsState::new(endpoint.clone(), means.tls.clone());
            let io = Io::Tls(Box::new(TlsIo::new(stream, state.clone())));
            Ok(Connected { io, http2, tls: state })
        }
        (transport, io) => {
            Ok(Connected { io, http2: *transport == Transport::H2c, tls: TlsState::default() })
        }
    }
}

/// A connection for a question of our own, on a runtime of any kind: no exchange, no pool. By TLS it is made as those for requests
/// are. Has no deadline of its own.
pub async fn reach(endpoint: &Arc<Endpoint>, tls: &TlsReader) -> Result<Reached, Unreached> {
    let server = endpoint.spec();
    let opening = proxy_protocol::opening(server.proxy_protocol);
    let http2 = server.transport == Transport::H2c;
    if let ServerHost::Unix(path) = &server.host {
        let mut io = UnixStream::connect(path).await.map_err(|error| Unreached::new(&error))?;
        io.write_all(&opening).await.map_err(|error| Unreached::new(&error))?;
        return Ok(Reached { io: Box::new(io), http2 });
    }
    let address = server.ip().ok_or_else(|| Unreached::Theirs("it has no address".to_owned()))?;
    let connected = TcpStream::connect((address, server.port)).await;
    let mut io = connected.map_err(|error| Unreached::new(&error))?;
    io.write_all(&opening).await.map_err(|error| Unreached::new(&error))?;
    match &server.transport {
        Transport::Tls(spec) => {
            let stream = tls::handshake(tls, endpoint, spec, tls::Alpn::AsConfigured, io)
                .await
                .map_err(|refused| Unreached::Theirs(refused.reason))?;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(tls::H2);
            if spec.http == TlsHttp::Two && !http2 {
                return Err(Unreached::Theirs("it does not speak HTTP/2".to_owned()));
            }
            Ok(Reached { io: Box::new(stream), http2 })
        }
        Transport::Http | Transport::H2c => Ok(Reached { io: Box::new(io), http2 }),
    }
}

/// What [`reach`] gives.
#[expect(missing_debug_implementations, reason = "a connection has nothing to show")]
pub struct Reached {
    /// The connection.
    pub io: Box<dyn ReachedIo>,
    /// Whether HTTP/2 is to be spoken on it.
    pub http2: bool,
}

/// A connection of any kind.
pub trait ReachedIo: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ReachedIo for T {}

/// Why a server could not be asked, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreached {
    /// We have no socket to ask with.
    #[error("{0}")]
    Ours(String),
    /// It is the server's failure.
    #[error("{0}")]
    Theirs(String),
}

impl Unreached {
    fn new(error: &io::Error) -> Self {
        match classify(error) {
            Failure::NoSocket => Self::Ours(error.to_string()),
            _ => Self::Theirs(error.to_string()),
        }
    }
}

/// A name's addresses are tried one after the other, from a random one on, each with an equal share of the time that is left.
async fn socket(server: &ServerSpec, hosts: &Hosts, limit: Duration) -> Result<Io, Failure> {
    let deadline = Instant::now() + limit;
    let resolved: Arc<[IpAddr]>;
    let known = server.ip();
    let addresses: &[IpAddr] = match (&known, &server.host) {
        (Some(address), _) => std::slice::from_ref(address),
        (None, ServerHost::Name(name)) => {
            resolved = match timeout_at(deadline, hosts.resolve(name)).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(_)) | Err(_) => return Err(Failure::Resolve),
            };
            &resolved
        }
        (None, ServerHost::Unix(path)) => {
            return match timeout_at(deadline, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => Ok(Io::Unix(stream)),
                Ok(Err(error)) => {
                    tracing::debug!(path = %path.display(), %error, "no connection to the server");
                    Err(classify(&error))
                }
                Err(_) => Err(Failure::ConnectTimeout),
            };
        }
        (None, _) => return Err(Failure::Resolve),
    };
    let first = if addresses.len() > 1 { rand::random_range(0..addresses.len()) } else { 0 };
    let mut failure = Failure::NoServer;
    for n in 0..addresses.len() {
        let address = SocketAddr::new(addresses[(first + n) % addresses.len()], server.port);
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - n).unwrap_or(u32::MAX);
        match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Small writes must not wait for acknowledgements; a socket that cannot do it still works.
                let _ = stream.set_nodelay(true);
                watch_peer(&stream);
                return Ok(Io::Tcp(stream));
            }
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "no connection to the server");
                failure = classify(&error);
            }
            Err(_) => failure = Failure::ConnectTimeout,
        }
    }
    Err(failure)
}

/// What has run out here when no socket can be had, or no port for it.
const OURS: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];

/// How often it is said that we have no sockets.
const TELL_EVERY: Duration = Duration::from_secs(60);

fn classify(error: &io::Error) -> Failure {
    if Errno::from_io_error(error).is_some_and(|errno| OURS.contains(&errno)) {
        if TOLD.is_due(Instant::now()) {
            tracing::error!(
                %error,
                "no socket for a connection to a server: requests are answered 503, and no server is blamed; raise the limit \
                 of open files (LimitNOFILE), or that of ports (net.ipv4.ip_local_port_range). This is said once a minute"
            );
        }
        return Failure::NoSocket;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused,
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        _ => Failure::Connect,
    }
}

static TOLD: Told = Told(AtomicU64::new(0));

/// When something was last said, in milliseconds; 0: never. Shared by all workers.
struct Told(AtomicU64);

impl Told {
    /// Whether it may be said (again). True for one of those who ask at the same time.
    fn is_due(&self, now: Instant) -> bool {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now = 1 + millis(now.saturating_duration_since(*START));
        let last = self.0.load(Ordering::Relaxed);
        (last == 0 || now.saturating_sub(last) >= millis(TELL_EVERY))
            && self.0.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_run_out_here_is_no_failure_of_the_server() {
        for (errno, expected) in [
            (Errno::MFILE, Failure::NoSocket),
            (Errno::NFILE, Failure::NoSocket),
            (Errno::ADDRNOTAVAIL, Failure::NoSocket),
            (Errno::NOBUFS, Failure::NoSocket),
            (Errno::CONNREFUSED, Failure::ConnectRefused),
            (Errno::TIMEDOUT, Failure::ConnectTimeout),
            (Errno::HOSTUNREACH, Failure::Connect),
            // Of a socket in the file system: the server's own queue is full.
            (Errno::AGAIN, Failure::Connect),
        ] {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            assert_eq!(classify(&error), expected, "{error}");
            let ours = matches!(Unreached::new(&error), Unreached::Ours(_));
            assert_eq!(ours, expected == Failure::NoSocket, "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_said_once_a_period() {
        let told = Told(AtomicU64::new(0));
        assert!(told.is_due(Instant::now()) && !told.is_due(Instant::now()));
        tokio::time::advance(TELL_EVERY - Duration::from_millis(1)).await;
        assert!(!told.is_due(Instant::now()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(told.is_due(Instant::now()) && !told.is_due(Instant::now()));
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_and_an_unknown_name_does_not_resolve() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let hosts = Hosts::system();
        let server = |host| ServerSpec::new(host, port);
        let limit = Duration::from_secs(5);
        let local = server(ServerHost::Ip([127, 0, 0, 1].into()));
        let Ok(Io::Tcp(stream)) = socket(&local, &hosts, limit).await else { panic!("no connection") };
        assert!(crate::conn::is_watched(&stream));
        let named = server(ServerHost::Name("localhost".into()));
        assert!(socket(&named, &hosts, limit).await.is_ok(), "::1 refuses, 127.0.0.1 takes it");
        // An address where no other test listens: the port is not taken again.
        let listener = tokio::net::TcpListener::bind("127.0.77.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let closed = ServerSpec::new(ServerHost::Ip(address.ip()), address.port());
        assert_eq!(socket(&closed, &hosts, limit).await.unwrap_err(), Failure::ConnectRefused);
        let odd = server(ServerHost::Name("..".into()));
        assert_eq!(socket(&odd, &hosts, limit).await.unwrap_err(), Failure::Resolve);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let unix = server(ServerHost::Unix(path.as_path().into()));
        assert_eq!(socket(&unix, &hosts, limit).await.unwrap_err(), Failure::Connect);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        assert!(socket(&unix, &hosts, limit).await.is_ok());
        drop(listener);
        assert_eq!(socket(&unix, &hosts, limit).await.unwrap_err(), Failure::ConnectRefused);
    }
}
