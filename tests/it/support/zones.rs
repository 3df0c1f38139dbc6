//! Zones with every detail in the hand of the test, on real Knots: serial numbers, name servers, signatures, wrong ones too.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use super::dns::{daemon, datagram, hints, loopback, ready, write};
use super::eventually;
use super::process::{Process, output};

/// A zone's file. TTLs are one second.
#[derive(Clone)]
pub struct Zone {
    pub name: String,
    pub serial: u32,
    /// For how long an absence is kept; the TTL of the SOA is the same.
    pub minimum: u32,
    /// Names of its servers, relative to the zone or with a final dot.
    pub servers: Vec<String>,
    pub body: String,
    /// Signed by Knot.
    pub signed: bool,
}

impl Zone {
    /// Served by `ns` inside of it, at `ip`.
    pub fn new(name: &str, ip: Ipv4Addr, body: &str) -> Self {
        Self {
            name: name.into(),
            serial: 1,
            minimum: 1,
            servers: vec!["ns".into()],
            body: format!("ns A {ip}\n{body}"),
            signed: false,
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn file(&self) -> String {
        let Self { name, serial, minimum, servers, body, .. } = self;
        let mut text = format!(
            "$ORIGIN {name}.\n$TTL 1\n@ {minimum} SOA ns.{name}. admin.{name}. {serial} 60 60 600 {minimum}\n"
        );
        for server in servers {
            writeln!(text, "@ NS {server}").unwrap();
        }
        text + body + "\n"
    }
}

/// Knot with such zones. Its key may update TXT records.
pub struct Authority {
    pub ip: Ipv4Addr,
    pub secret: String,
    config: String,
    _process: Process,
    _dir: TempDir,
}

impl Authority {
    pub fn start(ip: Ipv4Addr, zones: &[Zone]) -> Self {
        let files: Vec<_> = zones.iter().map(|zone| (zone.name.as_str(), zone.file(), zone.signed)).collect();
        Self::start_files(ip, &files)
    }

    /// Zones by the text of their files.
    pub fn start_files(ip: Ipv4Addr, zones: &[(&str, String, bool)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secret = STANDARD.encode(rand::random::<[u8; 32]>());
        let place = dir.path().display();
        let mut config = format!(
            "server:\n    rundir: \"{place}\"\n    listen: {ip}@53\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ndatabase:\n    storage: \"{place}\"\nlog:\n  - target: stdout\n    any: info\nkey:\n  \
             - id: acme.\n    algorithm: hmac-sha256\n    secret: {secret}\nacl:\n  - id: update\n    key: acme.\n    \
             action: update\n    update-type: [TXT]\npolicy:\n  - id: one\n    algorithm: ecdsap256sha256\n    \
             single-type-signing: on\nzone:\n"
        );
        for (zone, text, signed) in zones {
            let file = write(&dir, &format!("{zone}.zone"), text);
            let signing = if *signed { "on\n    dnssec-policy: one" } else { "off" };
            writeln!(
                config,
                "  - domain: {zone}.\n    file: \"{file}\"\n    zonefile-sync: -1\n    zonefile-load: difference-no-serial\n    \
                 journal-content: all\n    acl: update\n    semantic-checks: soft\n    dnssec-signing: {signing}"
            )
            .unwrap();
        }
        let config = write(&dir, "knot.conf", &config);
        let process = daemon(&dir, "knotd", &["-c", &config]);
        for (zone, ..) in zones {
            ready((ip, 53).into(), zone);
        }
        Self { ip, secret, config, _process: process, _dir: dir }
    }

    /// The DS record of a signed zone, as it stands in the parent's file.
    pub fn ds(&self, zone: &str) -> String {
        let fqdn = format!("{zone}.");
        eventually("Knot has made the keys", || {
            let text = output("keymgr", &["-c", &self.config, &fqdn, "ds"]);
            text.lines().find(|line| line.split(' ').nth(4) == Some("2")).map(ToOwned::to_owned)
        })
    }
}

/// The zone's file, signed by BIND's tools until a day that is over.
pub fn signed_long_ago(zone: &Zone) -> (String, String) {
    signed_by_tools(zone, "ECDSAP256SHA256", ["20200101000000", "20200201000000"])
}

/// The zone's file, signed by BIND's tools with an algorithm, from a day to another; and its DS record.
pub fn signed_by_tools(zone: &Zone, algorithm: &str, [from, to]: [&str; 2]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let (place, name) = (dir.path().to_str().unwrap(), zone.name.as_str());
    let key = output("dnssec-keygen", &["-q", "-K", place, "-a", algorithm, "-f", "KSK", name]);
    let file = write(&dir, "zone", &zone.file());
    let signed = format!("{file}.signed");
    let mut arguments = vec!["-q", "-S", "-P", "-z", "-K", place, "-d", place, "-o", name];
    arguments.extend(["-s", from, "-e", to, "-f", &signed, &file]);
    output("dnssec-signzone", &arguments);
    let public = format!("{place}/{}.key", key.trim());
    let ds = output("dnssec-dsfromkey", &["-2", &public]);
    (std::fs::read_to_string(signed).unwrap(), ds.trim().to_owned())
}

/// An Unbound that validates below `top`.
pub struct Validator {
    pub address: SocketAddr,
    _process: Process,
    _dir: TempDir,
}

impl Validator {
    pub fn start(top: &str, authority: Ipv4Addr, anchor: &str) -> Self {
        let (ip, dir) = (loopback(), tempfile::tempdir().unwrap());
        let hints = hints(&dir, IpAddr::from(authority));
        let place = dir.path().display();
        let config = format!(
            "server:\n  interface: {ip}\n  port: 53\n  do-ip6: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{place}\"\n  \
             pidfile: \"{place}/pid\"\n  use-syslog: no\n  logfile: \"\"\n  verbosity: 1\n  num-threads: 1\n  \
             module-config: \"validator iterator\"\n  trust-anchor: \"{anchor}\"\n  root-hints: \"{hints}\"\n  \
             do-not-query-localhost: no\n  local-zone: \"{top}.\" nodefault\n  access-control: 127.0.0.0/8 allow\n\
             remote-control:\n  control-enable: no\nstub-zone:\n  name: \"{top}.\"\n  stub-addr: {authority}\n"
        );
        let config = write(&dir, "unbound.conf", &config);
        let process = daemon(&dir, "unbound", &["-d", "-c", &config]);
        ready((ip, 53).into(), top);
        Self { address: (ip, 53).into(), _process: process, _dir: dir }
    }
}

/// Lets datagrams through to `server`, and nothing else: a firewall that forgot TCP. Ends with the test's process.
pub fn udp_only(server: impl Into<SocketAddr>) -> Ipv4Addr {
    let ip = loopback();
    pass_datagrams(ip, server.into());
    ip
}

/// Of an address that [`loopback`] has found: a child that another test is just starting may hold the socket that it was found with
/// until it becomes its program.
pub fn port_53<S, E>(mut bind: impl FnMut() -> Result<S, E>) -> S {
    super::eventually("port 53 is free", || bind().ok())
}

/// Port 53 of `ip`, over UDP. Ends with the test's process.
fn pass_datagrams(ip: Ipv4Addr, to: SocketAddr) {
    let socket = port_53(|| UdpSocket::bind((ip, 53)));
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = datagram(to, &buffer[..length], Duration::from_secs(2)) {
                drop(socket.send_to(&answer, from));
            }
        }
    });
}

/// BIND as an authority. It listens only where an interface names an address, so it has a port there, and what
/// comes to port 53 of another address is passed on.
pub struct Bind {
    /// Where it is itself, for updates.
    pub address: SocketAddr,
    pub secret: String,
    _process: Process,
    _dir: TempDir,
}

impl Bind {
    /// Answers at `ip`. Serves `zones`, each with the grants of its update policy; `good` is one of them that it takes. A zone whose file is wrong is
    /// SERVFAIL.
    pub fn start(zones: &[(Zone, &str)], good: &str, ip: Ipv4Addr) -> Self {
        let (address, dir) = (super::local(super::free_port()), tempfile::tempdir().unwrap());
        let secret = STANDARD.encode(rand::random::<[u8; 32]>());
        let (place, port) = (dir.path().display(), address.port());
        let mut config = format!(
            "options {{ directory \"{place}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
             pid-file \"{place}/pid\"; session-keyfile \"{place}/session\"; recursion no; empty-zones-enable no; \
             dnssec-validation no; }};\ncontrols {{ }};\nkey \"acme.\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n"
        );
        for (zone, grants) in zones {
            let file = write(&dir, &format!("{}.zone", zone.name), &zone.file());
            writeln!(
                config,
                "zone \"{}\" {{ type primary; file \"{file}\"; update-policy {{ {grants} }}; }};",
                zone.name
            )
            .unwrap();
        }
        let config = write(&dir, "named.conf", &config);
        let process = daemon(&dir, "named", &["-n", "1", "-g", "-4", "-c", &config]);
        ready(address, good);
        pass_datagrams(ip, address);
        pass_connections(ip, address);
        Self { address, secret, _process: process, _dir: dir }
    }
}

/// Port 53 of `ip`, over TCP. Ends with the test's process.
fn pass_connections(ip: Ipv4Addr, to: SocketAddr) {
    let listener = port_53(|| TcpListener::bind((ip, 53)));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(to) else { continue };
            let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else {
                continue;
            };
            std::thread::spawn(move || {
                drop(std::io::copy(&mut from_client, &mut to_server));
                drop(to_server.shutdown(std::net::Shutdown::Write));
            });
            let (mut from_server, mut to_client) = (server, client);
            std::thread::spawn(move || {
                drop(std::io::copy(&mut from_server, &mut to_client));
                drop(to_client.shutdown(std::net::Shutdown::Both));
            });
        }
    });
}
