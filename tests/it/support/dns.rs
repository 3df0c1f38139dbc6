//! Real name servers, each on a loopback address of its own on port 53, so that delegations work as they do outside.
//! Needs the right to take port 53 (root, or `net.ipv4.ip_unprivileged_port_start=53`).

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use super::eventually;
use super::process::Process;

/// A loopback address that nobody else uses: its ports 53 are free, and so are all others.
pub fn loopback() -> Ipv4Addr {
    loop {
        let [a, b, c] = rand::random::<[u8; 3]>();
        let ip = Ipv4Addr::new(127, 64 + a % 128, b, 1 + c % 250);
        let taken = UdpSocket::bind((ip, 53)).and_then(|_| TcpListener::bind((ip, 53)));
        match taken {
            Ok(_) => return ip,
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => panic!("port 53 on {ip}: {error}; these tests need it"),
        }
    }
}

/// One datagram there and back; `None` when nothing came.
pub fn datagram(server: SocketAddr, query: &[u8], wait: Duration) -> Option<Vec<u8>> {
    let local: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(wait)).unwrap();
    socket.send(query).ok()?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// The bytes of a plain query.
pub fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes
}

/// Waits until the server answers for `zone` without an error.
pub(super) fn ready(server: SocketAddr, zone: &str) {
    let query = query(zone, 6);
    eventually(&format!("{server} answers for {zone}"), || {
        let answer = datagram(server, &query, Duration::from_millis(500))?;
        (answer.len() >= 12 && answer[3] & 0xf == 0).then_some(())
    });
}

/// A daemon that dies with the thread that started it, even if that is killed.
pub(super) fn daemon(dir: &TempDir, program: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]).args(arguments).current_dir(dir.path());
    Process::start(&mut command, &dir.path().join("log"))
}

pub(super) fn write(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A zone file: SOA and NS of its own, then `body`. TTLs are one second.
fn zone_file(zone: &str, server: IpAddr, body: &str) -> String {
    let kind = if server.is_ipv4() { "A" } else { "AAAA" };
    format!(
        "$ORIGIN {zone}.\n$TTL 1\n@ SOA ns-self.{zone}. admin.{zone}. 1 60 60 600 1\n@ NS ns-self.{zone}.\n\
         ns-self {kind} {server}\n{body}\n"
    )
}

/// Knot: an authoritative server that takes updates signed with its key.
pub struct Knot {
    pub address: SocketAddr,
    pub key_name: String,
    pub secret: String,
    _process: Process,
    _dir: TempDir,
}

impl Knot {
    /// Serves zones, each a name and the lines of its file.
    pub fn start(zones: &[(&str, &str)]) -> Self {
        Self::start_at(loopback(), zones)
    }

    pub fn start_at(ip: impl Into<IpAddr>, zones: &[(&str, &str)]) -> Self {
        let ip = ip.into();
        let dir = tempfile::tempdir().unwrap();
        let secret = STANDARD.encode(rand::random::<[u8; 32]>());
        let place = dir.path().display();
        let mut config = format!(
            "server:\n    rundir: \"{place}\"\n    listen: {ip}@53\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ndatabase:\n    storage: \"{place}\"\nlog:\n  - target: stdout\n    any: info\nkey:\n  \
             - id: acme.\n    algorithm: hmac-sha256\n    secret: {secret}\nacl:\n  - id: update\n    key: acme.\n    \
             action: update\n    update-type: [TXT]\nzone:\n"
        );
        for (zone, body) in zones {
            let file = write(&dir, &format!("{zone}.zone"), &zone_file(zone, ip, body));
            writeln!(
                config,
                "  - domain: {zone}.\n    file: \"{file}\"\n    zonefile-sync: -1\n    zonefile-load: difference-no-serial\n    \
                 journal-content: all\n    acl: update"
            )
            .unwrap();
        }
        let config = write(&dir, "knot.conf", &config);
        let process = daemon(&dir, "knotd", &["-c", &config]);
        let address = (ip, 53).into();
        for (zone, _) in zones {
            ready(address, zone);
        }
        Self { address, key_name: "acme.".into(), secret, _process: process, _dir: dir }
    }
}

/// PowerDNS with its HTTP API.
pub struct PowerDns {
    pub address: SocketAddr,
    pub url: String,
    pub api_key: String,
    _process: Process,
    _dir: TempDir,
}

impl PowerDns {
    /// Serves an empty zone, made through the API.
    pub fn start(zone: &str) -> Self {
        let (ip, dir) = (loopback(), tempfile::tempdir().unwrap());
        let place = dir.path().display().to_string();
        let database = format!("{place}/pdns.db");
        let schema = fs::read_to_string("/usr/share/doc/pdns-backend-sqlite3/schema.sqlite3.sql")
            .expect("the package pdns-backend-sqlite3 is installed");
        super::process::output("sqlite3", &[database.as_str(), schema.as_str()]);
        let api_key = format!("key-{:016x}", rand::random::<u64>());
        let config = format!(
            "launch=gsqlite3\ngsqlite3-database={database}\nlocal-address={ip}\nlocal-port=53\nsocket-dir={place}\ndaemon=no\n\
             guardian=no\napi=yes\napi-key={api_key}\nwebserver=yes\nwebserver-address={ip}\nwebserver-port=8081\n\
             webserver-allow-from=127.0.0.0/8\nzone-cache-refresh-interval=0\ncache-ttl=0\nnegquery-cache-ttl=0\n\
             query-cache-ttl=0\nreceiver-threads=1\ndistributor-threads=1\n"
        );
        write(&dir, "pdns.conf", &config);
        let process = daemon(&dir, "pdns_server", &[&format!("--config-dir={place}")]);
        let url = format!("http://{ip}:8081");
        let body = serde_json::json!({
            "name": format!("{zone}."), "kind": "Native", "nameservers": [format!("ns-self.{zone}.")],
            "rrsets": [{
                "name": format!("ns-self.{zone}."), "type": "A", "ttl": 1,
                "records": [{ "content": ip.to_string(), "disabled": false }],
            }],
        })
        .to_string();
        let zones = format!("{url}/api/v1/servers/localhost/zones");
        eventually("PowerDNS makes the zone", || {
            let key = format!("X-API-Key: {api_key}");
            let made =
                Command::new("curl").args(["-fsS", "-m", "5", "-H", &key, "-d", &body, &zones]).output();
            made.unwrap().status.success().then_some(())
        });
        let address = (ip, 53).into();
        ready(address, zone);
        Self { address, url, api_key, _process: process, _dir: dir }
    }
}

/// A recursive resolver that asks `authority` for everything below `top`.
pub struct Recursor {
    pub address: SocketAddr,
    process: Process,
    _dir: TempDir,
}

impl Recursor {
    /// Unbound, with random case in its questions.
    pub fn unbound(top: &str, authority: IpAddr) -> Self {
        Self::unbound_at(loopback(), top, authority, "")
    }

    /// Unbound at an address, with more lines for its `server:` part.
    pub fn unbound_at(ip: Ipv4Addr, top: &str, authority: IpAddr, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hints = hints(&dir, authority);
        let place = dir.path().display();
        let config = format!(
            "server:\n  interface: {ip}\n  port: 53\n  do-ip6: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{place}\"\n  \
             pidfile: \"{place}/pid\"\n  use-syslog: no\n  logfile: \"\"\n  verbosity: 2\n  log-queries: yes\n  num-threads: 1\n  \
             module-config: \"iterator\"\n  root-hints: \"{hints}\"\n  do-not-query-localhost: no\n  use-caps-for-id: yes\n  \
             local-zone: \"{top}.\" nodefault\n  access-control: 127.0.0.0/8 allow\n{more}remote-control:\n  control-enable: no\n\
             stub-zone:\n  name: \"{top}.\"\n  stub-addr: {authority}\n"
        );
        let config = write(&dir, "unbound.conf", &config);
        let process = daemon(&dir, "unbound", &["-d", "-c", &config]);
        ready((ip, 53).into(), top);
        Self { address: (ip, 53).into(), process, _dir: dir }
    }

    /// What it was asked, a line each (Unbound).
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// BIND. It listens only on addresses that an interface names, so it gets a port instead.
    pub fn bind(top: &str, authority: IpAddr) -> Self {
        let (address, dir) = (super::local(super::free_port()), tempfile::tempdir().unwrap());
        let (ip, port) = (address.ip(), address.port());
        let hints = hints(&dir, authority);
        let place = dir.path().display();
        let config = format!(
            "options {{ directory \"{place}\"; listen-on port {port} {{ {ip}; }}; listen-on-v6 {{ none; }}; \
             pid-file \"{place}/pid\"; session-keyfile \"{place}/session\"; recursion yes; dnssec-validation no; \
             empty-zones-enable no; allow-query {{ 127.0.0.0/8; }}; allow-recursion {{ 127.0.0.0/8; }}; }};\ncontrols {{ }};\n\
             zone \".\" {{ type hint; file \"{hints}\"; }};\n\
             zone \"{top}\" {{ type static-stub; server-addresses {{ {authority}; }}; }};\n"
        );
        let config = write(&dir, "named.conf", &config);
        let process = daemon(&dir, "named", &["-n", "1", "-g", "-4", "-c", &config]);
        ready(address, top);
        Self { address, process, _dir: dir }
    }
}

pub(super) fn hints(dir: &TempDir, authority: IpAddr) -> String {
    write(dir, "hints", &format!(". 3600 NS hint.invalid.\nhint.invalid. 3600 A {authority}\n"))
}

/// What `dig` prints; fails only if it cannot be run.
pub fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    ask_with("dig", server, arguments)
}

/// What `kdig` prints.
pub fn kdig(server: SocketAddr, arguments: &[&str]) -> String {
    ask_with("kdig", server, arguments)
}

fn ask_with(program: &str, server: SocketAddr, arguments: &[&str]) -> String {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let mut command = Command::new(program);
    let timing: &[&str] =
        if program == "dig" { &["+tries=1", "+time=5"] } else { &["+retry=0", "+timeout=5"] };
    command.args([&at, "-p", &port]).args(timing).args(arguments);
    let output =
        command.output().unwrap_or_else(|e| panic!("cannot run {program}: {e}; scripts/test installs it"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The TXT values at a name, sorted, as one server shows them.
pub fn txt(server: SocketAddr, name: &str) -> Vec<String> {
    // Aliases on the way are lines without quotes.
    let lines = dig(server, &["+short", "TXT", name]);
    let mut values: Vec<String> =
        lines.lines().filter(|line| line.starts_with('"')).map(|line| line.replace('"', "")).collect();
    values.sort();
    values
}

/// A program file.
pub fn script(path: &Path, text: &str) {
    let written = tempfile::NamedTempFile::new().unwrap();
    fs::write(written.path(), text).unwrap();
    super::process::install(written.path(), path);
}

/// A hook as people write them for `exec`: it updates the zone `example.test` of Knot.
pub fn hook(knot: &Knot, path: &Path) {
    let (ip, key) = (knot.address.ip(), &knot.secret);
    script(
        path,
        &format!(
            "#!/bin/sh\nset -eu\ncase $1 in present) what=add; ttl=1;; cleanup) what=delete; ttl=;; esac\n\
             printf 'server {ip} 53\\nzone example.test\\nupdate %s %s %s TXT \"%s\"\\nsend\\n' $what $2 \"$ttl\" \"$3\" | \
             nsupdate -v -y hmac-sha256:acme:{key}\n"
        ),
    );
}
