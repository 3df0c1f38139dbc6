//! The unit that is shipped, and the protocols that systemd speaks to it.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::dns::{Knot, Recursor};
use crate::support::pebble::{Options, Pebble};
use crate::support::process::{Process, output};
use crate::support::starlock::{Starlock, binary, command, root_of_local_ca, write_config};
use crate::support::web::curl;
use crate::support::{PATIENCE, eventually, free_port, local};

#[test]
fn the_unit_is_sound_and_hardened() {
    let dir = tempfile::tempdir().unwrap();
    let unit = std::fs::read_to_string("packaging/starlock.service").unwrap();
    let unit = unit.replace("/usr/bin/starlock", env!("CARGO_BIN_EXE_starlock"));
    assert_eq!(unit.matches(env!("CARGO_BIN_EXE_starlock")).count(), 2, "started and reloaded");
    let path = dir.path().join("starlock.service");
    std::fs::write(&path, unit).unwrap();
    let path = path.to_str().unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", path]).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && said.is_empty(), "{said}");
    output("systemd-analyze", &["security", "--offline=true", "--threshold=20", "--no-pager", path]);
}

/// What a service manager hears.
struct Manager(UnixDatagram);

type Message = BTreeMap<String, String>;

impl Manager {
    fn listen(socket: &Path) -> Self {
        let bound = UnixDatagram::bind(socket).unwrap();
        bound.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(bound)
    }

    fn next(&self) -> Message {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("a message");
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        text.lines()
            .map(|line| {
                line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).expect("an assignment")
            })
            .collect()
    }

    /// The next message that is not about the watchdog.
    fn news(&self) -> Message {
        loop {
            let message = self.next();
            if !message.contains_key("WATCHDOG") {
                return message;
            }
        }
    }
}

fn is(message: &Message, key: &str) -> bool {
    message.get(key).is_some_and(|value| value == "1")
}

#[test]
fn systemd_is_told_what_happens() {
    let config =
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[routes]\n\"a.localhost\" = { respond = 204 }\n";
    let mut manager = None;
    let mut starlock = Starlock::start_with(config, |dir, command| {
        manager = Some(Manager::listen(&dir.join("notify.sock")));
        command.env("NOTIFY_SOCKET", dir.join("notify.sock")).env("WATCHDOG_USEC", "200000");
    });
    let manager = manager.unwrap();
    let ready = manager.news();
    assert!(is(&ready, "READY") && ready["STATUS"].contains("1 route"), "{ready:?}");
    for _ in 0..3 {
        assert!(is(&manager.next(), "WATCHDOG"), "fed while nothing happens");
    }

    // Refused or taken over, by socket or by signal: a reload always ends.
    assert!(!starlock.reload("[routse]\n").status.success());
    let mut last = 0;
    for again in ["", "\"b.localhost\" = { respond = 204 }\n"] {
        if !again.is_empty() {
            std::fs::write(starlock.path("starlock.toml"), format!("{config}{again}")).unwrap();
            starlock.process().signal("HUP");
        }
        let (reloading, ready) = (manager.news(), manager.news());
        assert!(is(&reloading, "RELOADING"), "{reloading:?}");
        let at: u64 = reloading["MONOTONIC_USEC"].parse().unwrap();
        assert!(at > last, "{at} is not after {last}");
        last = at;
        assert!(is(&ready, "READY"), "{ready:?}");
    }
    starlock.process().signal("TERM");
    let stopping = manager.news();
    assert!(is(&stopping, "STOPPING"), "{stopping:?}");
    let extended: u64 = stopping["EXTEND_TIMEOUT_USEC"].parse().unwrap();
    assert!(extended >= 30_000_000, "timeouts.drain and what comes after it: {extended}");
    assert!(starlock.process().wait().success());
}

#[test]
fn sockets_are_taken_over_from_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let (https, http) = (local(free_port()), local(free_port()));
    write_config(
        dir.path(),
        &format!(
            "[listen]\nhttps = [\"{https}\"]\nhttp = [\"{http}\"]\n[routes]\n\"a.localhost\" = {{ respond = 200, body = \"taken\" }}\n"
        ),
    );
    let run = binary(dir.path());
    let mut activate = Command::new("systemd-socket-activate");
    activate.args(["-l", &https.to_string(), "-l", &http.to_string()]);
    for (name, value) in run.get_envs() {
        if let Some(value) = value {
            activate.arg("-E").arg(format!("{}={}", name.to_str().unwrap(), value.to_str().unwrap()));
        }
    }
    activate.arg(run.get_program()).args(["run", "--log-format", "text"]);
    let mut process = Process::start(&mut activate, &dir.path().join("starlock.log"));
    // The first connection starts it, and is served.
    let early = eventually("systemd listens", || std::net::TcpStream::connect(http).ok());
    eventually("it answers", || command(dir.path(), &["health"]).status.success().then_some(()));
    let root = root_of_local_ca(&dir.path().join("state"));
    assert_eq!(curl(https, &root, "https://a.localhost/", &[]).unwrap(), "taken");
    let answer = {
        use std::io::{Read, Write};
        let mut early = early;
        early.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        early.write_all(b"GET /x HTTP/1.1\r\nHost: a.localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        early.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
    process.signal("TERM");
    assert!(process.wait().success());
}

#[test]
fn a_secret_comes_from_systemds_credentials() {
    let knot = Knot::start(&[("test", "example A 192.0.2.1")]);
    let recursor = Recursor::unbound("test", knot.address.ip());
    let pebble = Pebble::start(Options::with_dns(recursor.address));
    let config = format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[acme]\nca = \"{}\"\nca_root = \"{}\"\n\
         [dns]\nprovider = \"rfc2136\"\nserver = \"{}\"\nkey_name = \"{}\"\nsecret = {{ credential = \"tsig\" }}\n\
         resolvers = [\"{}\"]\n[routes]\n\"example.test\" = {{ respond = 204 }}\n",
        pebble.directory_url,
        pebble.ca_root.display(),
        knot.address,
        knot.key_name,
        recursor.address,
    );
    let without = tempfile::tempdir().unwrap();
    write_config(without.path(), &config);
    let refused = command(without.path(), &["run", "--log-format", "text"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("tsig"), "{said}");
    assert!(said.contains("LoadCredential") || said.contains("CREDENTIALS_DIRECTORY"), "{said}");

    let starlock = Starlock::start_with(&config, |dir, command| {
        let credentials = dir.join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        std::fs::write(credentials.join("tsig"), format!("{}\n", knot.secret)).unwrap();
        command.env("CREDENTIALS_DIRECTORY", credentials);
    });
    starlock.serial_other_than("example.test", None);
    assert!(!starlock.log().contains(&knot.secret), "a secret is never told");
}
