//! Listening sockets: bound once for every worker, or inherited.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use listenfd::ListenFd;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::conn::watch_peer;

/// The kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Beyond so many open files the kernel's table of them grows when it has to; it takes eight bytes for each.
const USUAL_FILES: i32 = 32 * 1024;

/// Why Starlock cannot listen. The operator, or the machine, is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else is there.
    #[error(
        "{address} is in use: another process listens there, perhaps another Starlock (`ss -ltnp 'sport = :{}'` shows which); \
         stop it or listen elsewhere", .address.port()
    )]
    InUse {
        /// Where.
        address: SocketAddr,
    },
    /// A low port without the right.
    #[error(
        "no permission to listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE (systemd: \
         AmbientCapabilities=CAP_NET_BIND_SERVICE) or a lower net.ipv4.ip_unprivileged_port_start"
    )]
    Denied {
        /// Where.
        address: SocketAddr,
    },
    /// Not an address of this machine.
    #[error("{address} is not an address of this machine; use one that `ip address` shows, or [::] for all")]
    NotHere {
        /// Where.
        address: SocketAddr,
    },
    /// Something else.
    #[error("cannot listen on {address}: {error}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// A worker thread is gone, which ends the process anyway.
    #[error("a traffic worker has ended; restart Starlock")]
    WorkerGone,
}

impl ListenError {
    pub(super) fn of(address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { address },
            io::ErrorKind::PermissionDenied => Self::Denied { address },
            io::ErrorKind::AddrNotAvailable => Self::NotHere { address },
            _ => Self::Io { address, error },
        }
    }
}

/// One address with a socket for each worker. Connections to it wait in the kernel until somebody accepts.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) sockets: Vec<TcpListener>,
    /// With the port that was given for port 0.
    pub(super) address: SocketAddr,
}

/// Sockets that a service manager opened for us. They are kept open, as the manager keeps them: an address that a reload gives up
/// and a later one wants again can be had again.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<Given>,
    udp: Vec<GivenUdp>,
}

#[derive(Debug)]
struct Given {
    address: SocketAddr,
    listener: TcpListener,
    used: bool,
}

#[derive(Debug)]
struct GivenUdp {
    address: SocketAddr,
    socket: UdpSocket,
    used: bool,
}

/// What was inherited for an address of a DNS server.
#[derive(Debug, Default)]
pub struct GivenDns {
    /// For datagrams.
    pub udp: Option<UdpSocket>,
    /// For connections.
    pub tcp: Option<TcpListener>,
}

impl Inherited {
    /// Takes the sockets of systemd's protocol (`LISTEN_FDS`). To be called once, before other files are opened.
    pub fn from_env() -> Self {
        let mut fds = ListenFd::from_env();
        let mut this = Self::default();
        for index in 0..fds.len() {
            // One that is of another kind stays where it is.
            let (tcp, udp) = match fds.take_tcp_listener(index) {
                Ok(tcp) => (tcp, None),
                Err(_) => (None, fds.take_udp_socket(index).ok().flatten()),
            };
            let address = match (&tcp, &udp) {
                (Some(tcp), _) => tcp.local_addr(),
                (None, Some(udp)) => udp.local_addr(),
                (None, None) => {
                    tracing::warn!(
                        index,
                        "an inherited file is neither a listening TCP socket nor a UDP one; it is not used"
                    );
                    continue;
                }
            };
            match address {
                Ok(address) => {
                    this.tcp.extend(tcp.map(|listener| Given { address, listener, used: false }));
                    this.udp.extend(udp.map(|socket| GivenUdp { address, socket, used: false }));
                }
                Err(error) => {
                    tracing::warn!(index, %error, "an inherited socket has no address; it is not used");
                }
            }
        }
        this
    }

    /// Addresses that nobody has asked for.
    pub fn unused(&self) -> impl Iterator<Item = SocketAddr> {
        let tcp = self.tcp.iter().filter(|given| !given.used).map(|given| given.address);
        tcp.chain(self.udp.iter().filter(|given| !given.used).map(|given| given.address))
    }

    /// The sockets of a DNS server's address, as far as they were given. One that cannot be shared is as good as none.
    pub fn take_dns(&mut self, address: SocketAddr) -> GivenDns {
        let udp = self.udp.iter_mut().find(|given| given.address == address);
        let udp = udp.and_then(|given| {
            given.used = true;
            given.socket.try_clone().ok()
        });
        let tcp = self.tcp.iter_mut().find(|given| given.address == address);
        let tcp = tcp.and_then(|given| {
            given.used = true;
            given.listener.try_clone().ok()
        });
        GivenDns { udp, tcp }
    }

    /// The socket of `address`, once for each worker.
    fn take(&mut self, address: SocketAddr, workers: usize) -> io::Result<Option<Bound>> {
        let Some(given) = self.tcp.iter_mut().find(|given| given.address == address) else { return Ok(None) };
        given.listener.set_nonblocking(true)?;
        watch_peer(&given.listener);
        let sockets = (0..workers).map(|_| given.listener.try_clone()).collect::<io::Result<_>>()?;
        given.used = true;
        Ok(Some(Bound { sockets, address }))
    }
}

/// Listens on `address` with a socket for each worker, taking an inherited one first. `[::]` takes IPv4 too unless `only_v6`, and
/// falls back to `0.0.0.0` on a machine without IPv6. Fails if anybody else is there already.
pub(super) fn bind(
    address: SocketAddr,
    only_v6: bool,
    workers: usize,
    inherited: &mut Inherited,
) -> Result<Bound, ListenError> {
    let fail = |error| ListenError::of(address, error);
    if let Some(bound) = inherited.take(address, workers).map_err(fail)? {
        return Ok(bound);
    }
    match open(address, only_v6, workers) {
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && !only_v6 && no_ipv6(&error) => {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            tracing::info!(%address, "this machine has no IPv6; listening on {v4} instead");
            open(v4, false, workers).map_err(|error| ListenError::of(v4, error))
        }
        other => other.map_err(fail),
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn open(address: SocketAddr, only_v6: bool, workers: usize) -> io::Result<Bound> {
    // Bound without SO_REUSEPORT, so that a second instance is refused instead of silently taking a share of the traffic; with
    // it from then on, so that the other workers can join. The port is ours all the time.
    let first = socket(address, only_v6)?;
    first.bind(&address.into())?;
    let bound =
        first.local_addr()?.as_socket().ok_or_else(|| io::Error::other("the socket has no IP address"))?;
    first.set_reuse_port(true)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        let next = socket(address, only_v6)?;
        next.set_reuse_port(true)?;
        next.bind(&bound.into())?;
        sockets.push(next);
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(Bound { sockets: sockets.into_iter().map(Into::into).collect(), address: bound })
}

fn socket(address: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    watch_peer(&socket);
    if address.is_ipv6() {
        socket.set_only_v6(only_v6 || !address.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// Raises the limit of open files to what the process may have, and says what it is now.
pub fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let (Some(current), maximum) = (limit.current, limit.maximum) else { return u64::MAX };
    if maximum.is_none_or(|maximum| current < maximum) {
        match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            Ok(()) => return maximum.unwrap_or(u64::MAX),
            Err(error) => tracing::warn!(%error, current, "the limit of open files cannot be raised"),
        }
    }
    current
}

/// Makes the kernel's table of our open files large enough for `files` of them, or for as many as are usual. It would grow by itself,
/// but twice as large each time, and in a process with threads it waits for all cores meanwhile: whoever accepts a connection just
/// then keeps its whole worker waiting for some ten milliseconds.
pub(super) fn reserve_files(files: u64) {
    let last = i32::try_from(files).unwrap_or(i32::MAX).min(USUAL_FILES) - 1;
    let reserved = std::fs::File::open("/dev/null").and_then(|file| Ok(fcntl_dupfd_cloexec(file, last)?));
    if let Err(error) = reserved {
        tracing::debug!(%error, "no room for open files was reserved");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr, TcpStream};

    use super::*;

    fn local(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[test]
    fn the_table_of_open_files_does_not_grow_under_load() {
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
            size.trim().parse::<u64>().unwrap()
        };
        let wanted = raise_file_limit().min(USUAL_FILES as u64);
        reserve_files(wanted);
        assert!(size() >= wanted, "{} of {wanted}", size());
    }

    #[test]
    fn a_second_instance_is_refused_and_told() {
        let mut none = Inherited::default();
        let bound = bind(local(0), false, 3, &mut none).unwrap();
        assert_eq!(bound.sockets.len(), 3);
        assert_ne!(bound.address.port(), 0);
        for socket in &bound.sockets {
            assert_eq!(socket.local_addr().unwrap(), bound.address);
        }
        let error = bind(bound.address, false, 3, &mut none).unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("ss -ltnp"), "{error}");
        let address = bound.address;
        drop(bound);
        bind(address, false, 1, &mut none).unwrap();
    }

    #[test]
    fn unspecified_is_dual_stack_or_falls_back() {
        let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let bound = bind(everywhere, false, 2, &mut Inherited::default()).unwrap();
        TcpStream::connect(local(bound.address.port())).unwrap();
        assert!(no_ipv6(&io::Error::from_raw_os_error(rustix::io::Errno::AFNOSUPPORT.raw_os_error())));
        assert!(!no_ipv6(&io::Error::from(io::ErrorKind::AddrInUse)));
    }

    #[test]
    fn foreign_addresses_are_explained() {
        let foreign = SocketAddr::new(IpAddr::from([192, 0, 2, 1]), 0);
        let error = bind(foreign, false, 1, &mut Inherited::default()).unwrap_err();
        assert!(matches!(error, ListenError::NotHere { .. }), "{error}");
    }

    #[test]
    fn a_client_that_vanishes_is_noticed_whoever_opened_the_listener() {
        let listener = TcpListener::bind(local(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut inherited =
            Inherited { tcp: vec![Given { address, listener, used: false }], udp: Vec::new() };
        for address in [local(0), address] {
            let bound = bind(address, false, 1, &mut inherited).unwrap();
            bound.sockets[0].set_nonblocking(false).unwrap();
            let _client = TcpStream::connect(bound.address).unwrap();
            let (accepted, _) = bound.sockets[0].accept().unwrap();
            assert!(crate::conn::is_watched(&accepted), "{address}");
        }
    }

    #[test]
    fn inherited_sockets_are_matched_by_address() {
        let listener = TcpListener::bind(local(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut inherited =
            Inherited { tcp: vec![Given { address, listener, used: false }], udp: Vec::new() };
        let other = bind(local(0), false, 1, &mut inherited).unwrap();
        assert_ne!(other.address, address);
        assert_eq!(inherited.unused().collect::<Vec<_>>(), [address]);
        let bound = bind(address, false, 2, &mut inherited).unwrap();
        assert_eq!((bound.address, bound.sockets.len(), inherited.unused().count()), (address, 2, 0));
        drop(bound);
        assert_eq!(
            bind(address, false, 2, &mut inherited).unwrap().sockets.len(),
            2,
            "given up and wanted again"
        );
    }

    #[test]
    fn the_file_limit_is_known() {
        assert!(raise_file_limit() >= 256);
    }
}
