//! Whether the sockets of a configuration can be had: free, held by a running Starlock, or by whom.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::finding::{About, Finding, Note};
use super::holders::{self, Protocol};
use crate::config::Plan;

/// A socket that the configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) kind: &'static str,
    pub(super) key: &'static str,
    pub(super) address: SocketAddr,
    pub(super) protocol: Protocol,
    /// `[::]` does not take IPv4, since `0.0.0.0` stands beside it.
    pub(super) only_v6: bool,
}

/// What trying to take it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It could be had.
    Free,
    /// The running Starlock has it.
    Ours,
    /// Somebody has it: who, if that can be seen.
    InUse(Option<String>),
    /// This user may not have ports so low.
    Denied,
    /// No interface has the address.
    NotHere,
    /// Something else.
    Failed(String),
}

/// Every socket that the plan asks for.
pub(super) fn wanted(plan: &Plan) -> Vec<Wanted> {
    let mut all = Vec::new();
    let mut add = |kind, key, list: &[SocketAddr], protocol| {
        for &address in list {
            let v4 = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), address.port());
            let only_v6 = address.ip() == Ipv6Addr::UNSPECIFIED && list.contains(&v4);
            all.push(Wanted { kind, key, address, protocol, only_v6 });
        }
    };
    add("https", "[listen] https", &plan.listen.https, Protocol::Tcp);
    add("http", "[listen] http", &plan.listen.http, Protocol::Tcp);
    if let Some(address) = plan.telemetry.metrics {
        add("metrics", "[listen] metrics", &[address], Protocol::Tcp);
    }
    if let Some(address) = plan.ready {
        add("ready", "[listen] ready", &[address], Protocol::Tcp);
    }
    if let Some(responder) = &plan.responder {
        add("responder", "[responder] listen", &responder.listen, Protocol::Udp);
        add("responder", "[responder] listen", &responder.listen, Protocol::Tcp);
    }
    all
}

/// Tries each. `ours`: where the running Starlock listens. Blocking.
pub(super) fn gather(wanted: Vec<Wanted>, ours: &BTreeSet<(String, SocketAddr)>) -> Vec<(Wanted, Taken)> {
    let take = |want: Wanted| {
        let taken =
            if ours.contains(&(want.kind.to_owned(), want.address)) { Taken::Ours } else { take(&want) };
        (want, taken)
    };
    wanted.into_iter().map(take).collect()
}

fn take(want: &Wanted) -> Taken {
    match bind(want) {
        Ok(()) => Taken::Free,
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse => {
                Taken::InUse(holders::who(Path::new("/proc"), want.protocol, want.address))
            }
            io::ErrorKind::PermissionDenied => Taken::Denied,
            // `[::]` on a machine without IPv6 falls back to IPv4, as the listeners do.
            _ if want.address.ip() == Ipv6Addr::UNSPECIFIED && no_ipv6(&error) && !want.only_v6 => {
                let v4 = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), want.address.port());
                take(&Wanted { address: v4, ..want.clone() })
            }
            io::ErrorKind::AddrNotAvailable => Taken::NotHere,
            _ => Taken::Failed(error.to_string()),
        },
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

/// Bound for a moment and never listened on, so that no client meets it.
fn bind(want: &Wanted) -> io::Result<()> {
    let kind = if want.protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(want.address), kind, None)?;
    if want.protocol == Protocol::Tcp {
        socket.set_reuse_address(true)?;
    }
    if want.address.is_ipv6() {
        socket.set_only_v6(want.only_v6 || !want.address.ip().is_unspecified())?;
    }
    socket.bind(&want.address.into())
}

pub(super) fn judge(all: &[(Wanted, Taken)]) -> Vec<Finding> {
    all.iter().map(|(want, taken)| judge_one(want, taken).place(want.key).about(&about(want))).collect()
}

fn about(want: &Wanted) -> About {
    About::Listener(format!("{} {}", want.kind, want.address))
}

fn judge_one(want: &Wanted, taken: &Taken) -> Note {
    let (address, port) = (want.address, want.address.port());
    let protocol = want.protocol.as_str();
    let dns = want.kind == "responder";
    let starts = "Starlock does not start without it";
    match taken {
        Taken::Free => Note::ok("listener.free", format!("{address} ({protocol}) is free")),
        Taken::Ours => Note::ok("listener.ours", format!("{address} ({protocol}) is held by the running Starlock")),
        Taken::InUse(who) => {
            let who = who.as_deref();
            let by = who.map_or_else(|| "another program".to_owned(), ToOwned::to_owned);
            let resolved = dns && port == 53 && (address.ip().is_unspecified() || who.is_some_and(|w| w.contains("systemd-resolve")));
            let flag = if want.protocol == Protocol::Tcp { "t" } else { "u" };
            let fix = if resolved {
                "name the public address, as systemd-resolved holds 127.0.0.53:53: [responder] listen = [\"203.0.113.7:53\"]\n\
                 or let it go: set DNSStubListener=no in /etc/systemd/resolved.conf, then systemctl restart systemd-resolved"
                    .to_owned()
            } else {
                format!("see who it is: ss -ln{flag}p 'sport = :{port}'; stop it, or write another address into {}", want.key)
            };
            Note::failure("listener.in-use", format!("{address} ({protocol}) is held by {by}")).why(starts).fix(fix)
        }
        Taken::Denied => Note::failure("listener.denied", format!("this user may not listen on port {port}"))
            .why(format!("{starts}; ports below 1024 need a privilege"))
            .fix(format!(
                "under systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE\nin a container: a port above 1023, published as {port}\non a bare machine: sysctl net.ipv4.ip_unprivileged_port_start={port}"
            )),
        Taken::NotHere => Note::failure("listener.not-here", format!("no interface of this machine has the address {}", address.ip()))
            .why(format!("{starts}. Behind NAT it is the inner address that has to stand here"))
            .fix(format!("take an address that this shows: ip -brief address; or {} = [\"[::]:{port}\"]", want.key)),
        Taken::Failed(reason) => Note::failure("listener.failed", format!("{address} ({protocol}) cannot be had: {reason}"))
            .why(starts)
            .fix(format!("write another address into {}", want.key)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn want(address: &str, protocol: Protocol, kind: &'static str) -> Wanted {
        let key = if kind == "responder" { "[responder] listen" } else { "[listen] https" };
        Wanted { kind, key, address: address.parse().unwrap(), protocol, only_v6: false }
    }

    #[test]
    fn a_taken_port_names_who_has_it() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = want(&held.local_addr().unwrap().to_string(), Protocol::Tcp, "https");
        let Taken::InUse(Some(who)) = take(&tcp) else { panic!("{:?}", take(&tcp)) };
        assert!(who.contains(&format!("process {}", std::process::id())), "{who}");
        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = want(&held.local_addr().unwrap().to_string(), Protocol::Udp, "responder");
        assert!(matches!(take(&udp), Taken::InUse(Some(_))));
        drop(held);
        assert_eq!(take(&udp), Taken::Free);
        assert_eq!(take(&want("192.0.2.1:0", Protocol::Tcp, "https")), Taken::NotHere);
    }

    #[test]
    fn each_obstacle_says_what_to_do() {
        let https = || want("[::]:443", Protocol::Tcp, "https");
        for (want, taken, id, words) in [
            (https(), Taken::Free, "listener.free", ""),
            (https(), Taken::Ours, "listener.ours", ""),
            (https(), Taken::Denied, "listener.denied", "CAP_NET_BIND_SERVICE"),
            (https(), Taken::NotHere, "listener.not-here", "ip -brief address"),
            (https(), Taken::InUse(None), "listener.in-use", "ss -lntp 'sport = :443'"),
            (
                want("0.0.0.0:53", Protocol::Udp, "responder"),
                Taken::InUse(None),
                "listener.in-use",
                "DNSStubListener=no",
            ),
            (
                want("192.0.2.1:53", Protocol::Udp, "responder"),
                Taken::InUse(None),
                "listener.in-use",
                "ss -lnup",
            ),
            (https(), Taken::Failed("x".into()), "listener.failed", "another address"),
        ] {
            let note = judge_one(&want, &taken);
            assert!(note.id == id && note.fix.contains(words), "{note:?}");
        }
    }
}
