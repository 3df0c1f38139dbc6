//! Taking the responder's sockets, and saying why they cannot be had.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

/// Tries to find one free port for both protocols when any port will do.
const PORT_TRIES: usize = 16;

/// Sockets that are taken but not served yet: nothing is answered until [`Bound::start`](super::Bound::start).
#[derive(Debug)]
pub struct Bound {
    pub(super) pairs: Vec<(UdpSocket, TcpListener)>,
    addresses: Vec<SocketAddr>,
}

/// Why the responder cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the DNS responder cannot listen on {address} ({protocol}): {reason}")]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// `udp` or `tcp`.
    pub protocol: &'static str,
    /// What is in the way and what to do.
    pub reason: String,
}

impl Bound {
    /// Takes UDP and TCP on each address. Port 0 takes a free port, the same for both. Where the machine has no IPv6,
    /// `[::]` falls back to `0.0.0.0`.
    ///
    /// On a machine with several addresses each has to be named: an answer from an unspecified one leaves from the address
    /// that the route prefers, and a resolver drops what comes from another address than it asked.
    pub fn bind(listen: &[SocketAddr]) -> Result<Self, BindError> {
        let mut pairs = Vec::new();
        let mut addresses = Vec::new();
        for &address in listen {
            let pair = match pair(address) {
                Err((_, error)) if address.ip() == Ipv6Addr::UNSPECIFIED && is_no_ipv6(&error) => {
                    tracing::warn!(%address, "this machine has no IPv6; the responder listens on IPv4 only");
                    pair((Ipv4Addr::UNSPECIFIED, address.port()).into())
                }
                other => other,
            };
            let (udp, tcp, bound) = pair.map_err(|(protocol, error)| BindError {
                address,
                protocol,
                reason: explain(address, &error),
            })?;
            pairs.push((udp, tcp));
            addresses.push(bound);
        }
        Ok(Self { pairs, addresses })
    }

    /// As [`Bound::bind`] for one address, of which a service manager may have opened one or both sockets.
    pub fn of_given(
        address: SocketAddr,
        udp: Option<UdpSocket>,
        tcp: Option<TcpListener>,
    ) -> Result<Self, BindError> {
        if udp.is_none() && tcp.is_none() {
            return Self::bind(&[address]);
        }
        let failed =
            |protocol, error: &io::Error| BindError { address, protocol, reason: explain(address, error) };
        let udp = udp.map_or_else(|| UdpSocket::bind(address), Ok).map_err(|e| failed("udp", &e))?;
        let tcp = tcp.map_or_else(|| TcpListener::bind(address), Ok).map_err(|e| failed("tcp", &e))?;
        udp.set_nonblocking(true).map_err(|e| failed("udp", &e))?;
        tcp.set_nonblocking(true).map_err(|e| failed("tcp", &e))?;
        Ok(Self { pairs: vec![(udp, tcp)], addresses: vec![address] })
    }

    /// Where it listens, in the order asked, with real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

type Pair = (UdpSocket, TcpListener, SocketAddr);

fn pair(address: SocketAddr) -> Result<Pair, (&'static str, io::Error)> {
    let mut last = ("tcp", io::Error::from(io::ErrorKind::AddrInUse));
    for _ in 0..PORT_TRIES {
        let udp = UdpSocket::bind(address).map_err(|e| ("udp", e))?;
        let bound = udp.local_addr().map_err(|e| ("udp", e))?;
        match TcpListener::bind(bound) {
            Ok(tcp) => {
                udp.set_nonblocking(true).map_err(|e| ("udp", e))?;
                tcp.set_nonblocking(true).map_err(|e| ("tcp", e))?;
                return Ok((udp, tcp, bound));
            }
            Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {
                last = ("tcp", error);
            }
            Err(error) => return Err(("tcp", error)),
        }
    }
    Err(last)
}

fn is_no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no kind of its own.
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(97)
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse if address.ip().is_unspecified() && port == 53 => {
            "another DNS server holds the port. systemd-resolved listens on 127.0.0.53:53, which collides with every address: \
             name the public one instead, as in `listen = [\"203.0.113.7:53\"]`, or stop the other server, or have systemd open it \
             (ListenStream= and ListenDatagram= of a socket unit)"
                .to_owned()
        }
        io::ErrorKind::AddrInUse => format!(
            "another program holds it (`ss -lnp 'sport = :{port}'` names it; 127.0.0.53:53 is systemd-resolved's). If it is systemd for us: its socket unit \
             has to name this very address, in ListenStream= and ListenDatagram="
        ),
        io::ErrorKind::PermissionDenied => format!(
            "ports under 1024 need a privilege. Under systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE; in a container: a \
             port above 1023, published as {port}; on a bare machine: sysctl net.ipv4.ip_unprivileged_port_start={port}"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "no interface of this machine has the address {}. Behind NAT it is the inner address that has to stand here",
            address.ip()
        ),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_get_one_port_and_a_taken_one_is_explained() {
        let bound = Bound::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = bound.addresses()[0];
        assert_ne!(address.port(), 0);
        assert_eq!(bound.pairs[0].1.local_addr().unwrap(), address);
        let error = Bound::bind(&[address]).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert!(error.reason.contains("another program"), "{error}");
    }

    #[test]
    fn each_obstacle_says_what_to_do() {
        let explain = |address: &str, kind: io::ErrorKind| {
            super::explain(address.parse().unwrap(), &io::Error::from(kind))
        };
        assert!(explain("0.0.0.0:53", io::ErrorKind::AddrInUse).contains("systemd-resolved"));
        assert!(explain("192.0.2.1:53", io::ErrorKind::PermissionDenied).contains("CAP_NET_BIND_SERVICE"));
        assert!(explain("192.0.2.1:53", io::ErrorKind::AddrNotAvailable).contains("192.0.2.1"));
        let foreign = Bound::bind(&["192.0.2.1:0".parse().unwrap()]).unwrap_err();
        assert!(foreign.reason.contains("no interface"), "{foreign}");
    }
}
