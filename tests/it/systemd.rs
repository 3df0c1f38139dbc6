//! The unit that is shipped, and the protocols that systemd speaks to it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::issuance::builtin;
use crate::support::dns::{Knot, Recursor, dig, loopback};
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
    let config = "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[timeouts]\nlame_duck = \"20s\"\n[routes]\n\"a.localhost\" = { respond = 204 }\n";
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
    assert!(
        extended >= 50_000_000,
        "timeouts.lame_duck, timeouts.drain and what comes after them: {extended}"
    );
    starlock.process().signal("TERM");
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

/// The system calls that a `SystemCallFilter` names, groups taken apart.
fn expand(groups: &BTreeMap<String, BTreeSet<String>>, name: &str, into: &mut BTreeSet<String>) {
    match groups.get(name) {
        Some(members) => members.iter().for_each(|member| expand(groups, member, into)),
        None => drop(into.insert(name.to_owned())),
    }
}

/// What the shipped unit lets a process call.
fn allowed() -> BTreeSet<String> {
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut group = String::new();
    for line in output("systemd-analyze", &["syscall-filter", "--no-pager"]).lines() {
        let member = line.trim();
        if line.starts_with('@') {
            group = line.to_owned();
        } else if !member.is_empty() && !member.starts_with('#') {
            groups.entry(group.clone()).or_default().insert(member.to_owned());
        }
    }
    let unit = std::fs::read_to_string("packaging/starlock.service").unwrap();
    let (mut allowed, mut denied) = (BTreeSet::new(), BTreeSet::new());
    // Always allowed, whatever the filter says (systemd.exec(5)).
    expand(&groups, "@default", &mut allowed);
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        match filter.strip_prefix('~') {
            Some(names) => names.split(' ').for_each(|name| expand(&groups, name, &mut denied)),
            None => filter.split(' ').for_each(|name| expand(&groups, name, &mut allowed)),
        }
    }
    assert!(allowed.contains("accept4") && denied.contains("chown"), "{allowed:?}\n{denied:?}");
    allowed.difference(&denied).cloned().collect()
}

#[test]
fn the_sandbox_of_the_unit_leaves_room_for_all_it_does() {
    let responder = local(free_port());
    let pebble = Pebble::start(Options::with_dns(responder));
    let config = builtin(
        &pebble,
        responder,
        "\"example.test\" = \"http://localhost:9\"\n\"b.example.test\" = \"http://example.invalid\"\n",
    )
    .replacen("127.0.0.1:0", "[::]:0", 1);
    let mut trace = None;
    let mut starlock = Starlock::start_with(&config, |dir, command| {
        let to = dir.join("trace");
        let mut strace = Command::new("strace");
        // -D: the process is our child, and the tracer aside.
        strace.args(["-D", "-f", "-q", "-e", "signal=none", "-o"]).arg(&to);
        strace.arg(command.get_program()).args(command.get_args()).current_dir(dir).env_clear();
        strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        strace.env("NOTIFY_SOCKET", dir.join("notify.sock")).env("WATCHDOG_USEC", "200000");
        (*command, trace) = (strace, Some(to));
    });
    starlock.serial_other_than("example.test", None);
    let https = local(starlock.address("https").port());
    for host in ["example.test", "b.example.test"] {
        let answer = curl(https, &pebble.root(), &format!("https://{host}/"), &[]).unwrap();
        assert!(answer.contains("502") || answer.contains("503"), "no server is there: {answer}");
    }
    assert!(starlock.reload(&format!("{config}\"c.example.test\" = {{ respond = 204 }}\n")).status.success());
    let main = starlock.process().pid();
    for signal in ["USR1", "HUP", "TERM"] {
        starlock.process().signal(signal);
    }
    assert!(starlock.process().wait().success());
    let trace = trace.unwrap();
    let end = format!("{main} +++ exited with 0 +++");
    // The tracer writes a little longer than the process lives; process numbers are padded.
    let trace = eventually("the trace is whole", || {
        let text = std::fs::read_to_string(&trace).unwrap();
        text.lines().any(|line| line.split_whitespace().eq(end.split(' '))).then_some(text)
    });
    let allowed = allowed();
    let mut called = BTreeSet::new();
    for line in trace.lines() {
        let Some((_, call)) = line.trim_start().split_once(' ') else { continue };
        let call = call.trim_start().trim_start_matches("<... ");
        let name: String = call.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if !name.is_empty() {
            assert!(allowed.contains(&name), "the unit forbids {name}: {line}");
            called.insert(name.clone());
        }
        // RestrictAddressFamilies and MemoryDenyWriteExecute.
        let family = call.strip_prefix("socket(AF_");
        assert!(
            family.is_none_or(|f| f.starts_with("INET") || f.starts_with("UNIX")),
            "the unit forbids {line}"
        );
        let executable = call.contains("PROT_EXEC");
        assert!(
            !(executable && (call.contains("PROT_WRITE") || name == "mprotect")),
            "the unit forbids {line}"
        );
    }
    let seen = ["execve", "accept4", "connect", "sendto", "flock", "fsync", "prlimit64"];
    let missing: Vec<_> = seen.into_iter().filter(|name| !called.contains(*name)).collect();
    assert!(missing.is_empty(), "the trace shows too little, {missing:?} are not in it: {called:?}");
}

/// Opens a UDP and a TCP socket as a socket unit does, and becomes the program that follows.
const ACTIVATED_DNS: &str = r#"
import os, socket, sys
ip, port = sys.argv[1], int(sys.argv[2])
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((ip, port))
tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
tcp.bind((ip, port))
tcp.listen(16)
os.dup2(tcp.fileno(), 13), os.dup2(udp.fileno(), 14)
os.dup2(13, 3), os.dup2(14, 4)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[3], sys.argv[3:])
"#;

/// If the responder bound the address itself, it would be in use.
#[test]
fn the_responder_takes_the_sockets_that_systemd_opened() {
    let ip = loopback();
    let config = format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[acme]\nca = \"https://127.0.0.1:1/dir\"\n[dns]\nprovider = \"builtin\"\n\
         [responder]\nlisten = [\"{ip}:53\"]\nnameservers = [{{ name = \"ns.edge.test\", addresses = [\"{ip}\"] }}]\n\
         [routes]\n\"example.test\" = {{ respond = 204 }}\n"
    );
    let starlock = Starlock::start_as(&config, |dir, command| {
        let mut python = Command::new("python3");
        python.args(["-c", ACTIVATED_DNS, &ip.to_string(), "53"]).arg(command.get_program());
        python.args(command.get_args()).current_dir(dir).env_clear();
        python.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        python
    });
    assert_eq!(starlock.address("responder"), (ip, 53).into());
    for transport in ["+notcp", "+tcp"] {
        let answer = dig((ip, 53).into(), &[transport, "_acme-challenge.example.test", "SOA"]);
        assert!(answer.contains("status: NOERROR") && answer.contains("aa"), "{transport}: {answer}");
    }
    // A reload keeps them.
    assert!(starlock.reload(&config.replace("204", "200")).status.success());
    assert!(dig((ip, 53).into(), &["_acme-challenge.example.test", "SOA"]).contains("NOERROR"));
}
