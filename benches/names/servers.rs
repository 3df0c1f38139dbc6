//! The servers that are compared, each with one certificate for each name, and what they use.

use std::fmt::Write;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::load::Client;
use crate::pem_path;

/// nginx takes half a minute for ten thousand.
const START_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);
/// `USER_HZ`, which is 100 wherever Linux has a stable interface.
const TICKS: u64 = 100;

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Starlock,
    Nginx,
    Haproxy,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Starlock, Self::Nginx, Self::Haproxy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Starlock => "Starlock",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
        }
    }
}

/// Names, and the certificates that Starlock's own CA signed for them.
pub struct Fleet {
    dir: PathBuf,
    names: Vec<String>,
    root_pem: String,
}

impl Fleet {
    /// Has Starlock sign and store one certificate for each name. Says how long that took, to the last name served.
    pub fn sign(dir: &Path, size: usize) -> (Self, Duration) {
        let names = (0..size).map(|n| format!("host-{n:05}.bench.internal")).collect();
        let mut fleet = Self { dir: dir.to_owned(), names, root_pem: String::new() };
        let mut server = fleet.start(Kind::Starlock);
        let stored = dir.join("state/certs/local");
        let count = || {
            let entries = fs::read_dir(&stored).into_iter().flatten().flatten();
            entries.filter(|e| e.file_name().to_string_lossy().ends_with(".json")).count()
        };
        while count() < size {
            server.check();
            std::thread::sleep(Duration::from_millis(50));
        }
        fleet.root_pem = text(&json(&dir.join("state/local-ca/root.json")), "certificate");
        fs::create_dir(dir.join("pem")).unwrap();
        for entry in fs::read_dir(&stored).unwrap() {
            let stored = json(&entry.unwrap().path());
            let name = stored["names"][0].as_str().unwrap();
            let pem = text(&stored, "chain") + &text(&stored, "key");
            fs::write(pem_path(dir, name), pem).unwrap();
        }
        let client = Client::new(&fleet);
        let took = server.until_it_serves(|address| client.sees_the_last_name(address));
        drop(server);
        (fleet, took)
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Files with chain and key, in the order of the names.
    pub fn pems(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.names.iter().map(|name| pem_path(&self.dir, name))
    }

    pub fn start(&self, kind: Kind) -> Server {
        let address = free_address();
        let mut command = match kind {
            Kind::Starlock => self.starlock(address),
            Kind::Nginx => self.nginx(address),
            Kind::Haproxy => self.haproxy(address),
        };
        let log = self.dir.join(format!("{}.log", kind.name()));
        let file = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", kind.name()));
        Server { child, begun: Instant::now(), address, log }
    }

    fn starlock(&self, address: SocketAddr) -> Command {
        let dir = self.dir.display();
        let mut config = format!(
            "[listen]\nhttps = [\"{address}\"]\nhttp = []\nadmin = \"{dir}/admin.sock\"\n\n[storage]\npath = \"{dir}/state\"\n\n\
             [acme]\nca = \"local\"\n\n[log]\naccess = \"off\"\n\n[routes]\n"
        );
        for name in &self.names {
            writeln!(config, "\"{name}\" = {{ respond = 200 }}").unwrap();
        }
        let mut command = Command::new(starlock());
        command.args(["run", "--config"]).arg(self.write("starlock.toml", &config));
        command
    }

    fn nginx(&self, address: SocketAddr) -> Command {
        let dir = self.dir.display();
        let mut config = format!(
            "daemon off;\nworker_processes auto;\npid {dir}/nginx.pid;\nerror_log stderr;\nevents {{ worker_connections 4096; }}\n\
             http {{\naccess_log off;\nssl_protocols TLSv1.2 TLSv1.3;\nserver_names_hash_max_size 65536;\n\
             server_names_hash_bucket_size 128;\n"
        );
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(config, "{kind}_temp_path {dir}/nginx-{kind};").unwrap();
        }
        for (name, pem) in self.names.iter().zip(self.pems()) {
            let pem = pem.display();
            writeln!(
                config,
                "server {{ listen {address} ssl; server_name {name}; ssl_certificate {pem}; ssl_certificate_key {pem}; return 200; }}"
            )
            .unwrap();
        }
        config.push_str("}\n");
        let mut command = Command::new(program("nginx"));
        command.arg("-p").arg(&self.dir).arg("-c").arg(self.write("nginx.conf", &config));
        command
    }

    fn haproxy(&self, address: SocketAddr) -> Command {
        let dir = self.dir.display();
        let config = format!(
            "global\n  maxconn 4096\n  ssl-default-bind-options ssl-min-ver TLSv1.2\ndefaults\n  mode http\n  timeout client 30s\n  \
             timeout connect 5s\n  timeout server 30s\nfrontend names\n  bind {address} ssl crt {dir}/pem/\n  \
             http-request return status 200\n"
        );
        let mut command = Command::new(program("haproxy"));
        command.args(["-db", "-f"]).arg(self.write("haproxy.cfg", &config));
        command
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

/// The binary that is measured.
pub fn starlock() -> PathBuf {
    std::env::var_os("STARLOCK").map_or_else(|| env!("CARGO_BIN_EXE_starlock").into(), PathBuf::from)
}

/// Debian keeps servers where the path of a plain user does not lead.
pub fn program(name: &str) -> String {
    let found = ["/usr/sbin", "/usr/local/sbin"].map(|dir| format!("{dir}/{name}"));
    found.into_iter().find(|path| Path::new(path).exists()).unwrap_or_else(|| name.to_owned())
}

/// A server that runs. It is stopped when dropped.
pub struct Server {
    child: Child,
    begun: Instant,
    address: SocketAddr,
    log: PathBuf,
}

impl Server {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Since the process was started.
    pub fn until_it_serves(&mut self, serves: impl Fn(SocketAddr) -> bool) -> Duration {
        while !serves(self.address) {
            self.check();
            std::thread::sleep(POLL);
        }
        self.begun.elapsed()
    }

    fn check(&mut self) {
        let ended = self.child.try_wait().unwrap();
        if ended.is_some() || self.begun.elapsed() > START_LIMIT {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let end: Vec<&str> = log.lines().rev().take(20).collect();
            panic!("it does not serve ({ended:?}); the end of its log, last line first:\n{}", end.join("\n"));
        }
    }

    /// Of all its processes; what they share is counted once.
    pub fn memory_kib(&self) -> u64 {
        let share = |pid: &u32| -> u64 {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
            line.trim().trim_end_matches(" kB").trim().parse().unwrap()
        };
        self.processes().iter().map(share).sum()
    }

    /// Of all its processes, in user and system mode.
    pub fn cpu(&self) -> Duration {
        let ticks = |pid: &u32| -> u64 {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields = text.rsplit_once(')').unwrap().1.split_whitespace();
            fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
        };
        let ticks: u64 = self.processes().iter().map(ticks).sum();
        Duration::from_millis(ticks * 1000 / TICKS)
    }

    /// From now on all its threads share these cores.
    pub fn pin(&self, cores: &str) {
        for pid in self.processes() {
            let output = Command::new("taskset").args(["-acp", cores, &pid.to_string()]).output().unwrap();
            assert!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut next = 0;
        while let Some(pid) = all.get(next) {
            for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
                let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                all.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
            }
            next += 1;
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let begun = Instant::now();
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).ok(); // it may have ended by itself
        }
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if begun.elapsed() > STOP_LIMIT {
                drop(self.child.kill());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn text(value: &serde_json::Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no {field}")).to_owned()
}
