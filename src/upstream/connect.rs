//! Opening a connection to a server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::exchange::Failure;
use super::proxy_protocol::{self, ClientAddresses};
use super::stream::{Io, TlsIo, TlsState};
use super::tls::{self, TlsReader};
use crate::balance::{Endpoint, ServerHost, ServerSpec, TlsHttp, Transport};
use crate::conn::notice_vanished_peer;
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
            let handshake = Box::pin(tls::handshake(&means.tls, endpoint, spec, only_h1, io));
            let result = timeout(limit, handshake).await.unwrap_or_else(|_| Err(tls::Refused::timeout()));
            let stream = result.map_err(|refused| {
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

/// A connection for a question of our own, on a runtime of any kind: no exchange, no pool. `http2`: what is to be spoken on it.
/// Has no deadline of its own. `Err`: why there is none, for people.
pub async fn reach(
    endpoint: &Arc<Endpoint>,
    tls: &TlsReader,
    http2: bool,
) -> Result<Box<dyn Reached>, String> {
    let server = endpoint.spec();
    let opening = proxy_protocol::opening(server.proxy_protocol);
    if let ServerHost::Unix(path) = &server.host {
        let mut io = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
        io.write_all(&opening).await.map_err(|error| error.to_string())?;
        return Ok(Box::new(io));
    }
    let address = server.ip().ok_or("it has no address")?;
    let mut io = TcpStream::connect((address, server.port)).await.map_err(|error| error.to_string())?;
    io.write_all(&opening).await.map_err(|error| error.to_string())?;
    match &server.transport {
        Transport::Tls(spec) => {
            let stream =
                tls::handshake(tls, endpoint, spec, !http2, io).await.map_err(|refused| refused.reason)?;
            Ok(Box::new(stream))
        }
        Transport::Http | Transport::H2c => Ok(Box::new(io)),
    }
}

/// What [`reach`] gives.
pub trait Reached: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Reached for T {}

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
                notice_vanished_peer(&stream);
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

fn classify(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused,
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        _ => Failure::Connect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
