//! Opening a connection to a server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::exchange::Failure;
use crate::balance::{ServerHost, ServerSpec};
use crate::resolver::Hosts;

/// Connects to `server` within `limit`, name resolution included. A name's addresses are tried one after the other, from a
/// random one on, each with an equal share of the time that is left.
pub(super) async fn connect(
    server: &ServerSpec,
    hosts: &Hosts,
    limit: Duration,
) -> Result<TcpStream, Failure> {
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
                return Ok(stream);
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
        assert!(connect(&local, &hosts, limit).await.is_ok());
        let named = server(ServerHost::Name("localhost".into()));
        assert!(connect(&named, &hosts, limit).await.is_ok(), "::1 refuses, 127.0.0.1 takes it");
        drop(listener);
        assert_eq!(connect(&local, &hosts, limit).await.unwrap_err(), Failure::ConnectRefused);
        let odd = server(ServerHost::Name("..".into()));
        assert_eq!(connect(&odd, &hosts, limit).await.unwrap_err(), Failure::Resolve);
    }
}
