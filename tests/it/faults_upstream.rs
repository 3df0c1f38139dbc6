//! One of three servers fails in every way that there is, and no client notices.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::process::Process;
use crate::support::rig::{Plan, Rig};
use crate::support::starlock::Starlock;
use crate::support::{alone, eventually, free_port, local};

/// Requests for each fault, one due every millisecond whatever became of those before: a thousand a second.
const REQUESTS: u32 = 3_000;
const PACE: Duration = Duration::from_millis(1);
/// Connections. Who waits for a server that hangs holds one; there are enough of them for all others.
const CLIENTS: usize = 64;
/// When a fault sets in.
const FAULT: Duration = Duration::from_millis(300);
/// Until a request that a hung server has goes to another one.
const ATTEMPT: Duration = Duration::from_millis(500);

/// An nginx that answers, resets the connection (444) or says 503, as a file in its directory wants.
struct Nginx {
    address: SocketAddr,
    dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Nginx {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut this = Self { address: local(free_port()), dir, process: None };
        this.run();
        this
    }

    fn run(&mut self) {
        let dir = self.dir.path();
        let config = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;
             events {{ worker_connections 4096; }}
             http {{
               access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;
               fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
               server {{
                 listen {address} backlog=4096; keepalive_requests 1000000;
                 # So that 444 resets the connection instead of closing it.
                 reset_timedout_connection on;
                 location / {{
                   if (-f {dir}/reset) {{ return 444; }}
                   if (-f {dir}/ill) {{ return 503; }}
                   return 200 'fine';
                 }}
               }}
             }}",
            dir = dir.display(),
            address = self.address,
        );
        std::fs::write(dir.join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-p", dir.to_str().unwrap(), "-c", dir.join("nginx.conf").to_str().unwrap()]);
        self.process = Some(Process::start(&mut command, &dir.join("nginx.log")));
        eventually("nginx listens", || std::net::TcpStream::connect(self.address).ok());
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    fn mark(&self, name: &str) {
        std::fs::write(self.dir.path().join(name), "").unwrap();
    }

    fn unmark(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join(name)).unwrap();
    }
}

/// What came of the requests of one fault.
#[derive(Default)]
struct Load {
    /// Taken so far.
    taken: AtomicU32,
    /// The longest time from when a request was due until its answer was there, in microseconds.
    worst: AtomicU64,
    bad: std::sync::Mutex<Vec<String>>,
}

/// A client that never closes its connection.
struct Client {
    proxy: SocketAddr,
    stream: TcpStream,
}

impl Client {
    fn new(proxy: SocketAddr) -> Self {
        let stream = TcpStream::connect(proxy).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { proxy, stream }
    }

    /// Asks, and reads the whole answer.
    fn ask(&mut self) -> Result<(), String> {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        // Small answers end with their body.
        while !seen.ends_with(b"fine") {
            let asked = match seen.is_empty() {
                true => self.stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"),
                false => Ok(()),
            };
            match asked.and_then(|()| self.stream.read(&mut buffer)) {
                Ok(length @ 1..) => seen.extend_from_slice(&buffer[..length]),
                other => {
                    seen.extend_from_slice(format!("{other:?}").as_bytes());
                    break;
                }
            }
            if !seen.starts_with(b"HTTP/1.1 200") {
                break;
            }
        }
        if seen.starts_with(b"HTTP/1.1 200") && seen.ends_with(b"fine") {
            return Ok(());
        }
        *self = Self::new(self.proxy);
        Err(String::from_utf8_lossy(&seen).into_owned())
    }

    /// Takes requests as they become due, until none is left.
    fn run(&mut self, load: &Load, start: Instant) {
        loop {
            let n = load.taken.fetch_add(1, Ordering::Relaxed);
            if n >= REQUESTS {
                return;
            }
            let due = start + PACE * n;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if let Err(answer) = self.ask() {
                load.bad.lock().unwrap().push(answer);
            }
            load.worst.fetch_max(due.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
    }
}

/// What is tested: this build within the test, or the program that `STARLOCK` names, such as a release.
enum Front {
    Rig(Box<Rig>),
    Program(Box<Starlock>),
}

impl Front {
    fn start(runtime: &tokio::runtime::Runtime, upstream: &str) -> Self {
        if std::env::var_os("STARLOCK").is_some() {
            return Self::Program(Box::new(Starlock::start(&format!(
                "{upstream}[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\n[log]\naccess = \"off\"\n"
            ))));
        }
        Self::Rig(Box::new(runtime.block_on(Plan::toml(upstream).start())))
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Rig(rig) => rig.http(),
            Self::Program(starlock) => starlock.address("http"),
        }
    }

    /// How long the requests of a fault may take to be answered. A release keeps up with what is due, but for the last ones that a
    /// server holds. A build without optimisation, beside other tests and the load on the same two cores, has to keep up with a fifth of it.
    fn limit(&self) -> Duration {
        match self {
            Self::Rig(_) => PACE * REQUESTS * 5,
            Self::Program(_) => PACE * REQUESTS + ATTEMPT * 2,
        }
    }

    /// How soon it has to know what has become of its servers; see `limit`.
    fn soon(&self) -> Duration {
        match self {
            Self::Rig(_) => Duration::from_secs(10),
            Self::Program(_) => Duration::from_secs(2),
        }
    }
}

/// Runs the load and lets `fault` happen under it.
fn calm(front: &Front, clients: &mut [Client], what: &str, fault: impl FnOnce()) {
    let load = Load::default();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| client.run(&load, start));
        }
        std::thread::sleep(FAULT);
        fault();
    });
    let took = start.elapsed();
    let bad = load.bad.into_inner().unwrap();
    let worst = Duration::from_micros(load.worst.into_inner());
    let rate = f64::from(REQUESTS) / took.as_secs_f64();
    eprintln!(
        "{what}: {REQUESTS} requests, {rate:.0} a second, the slowest {worst:.1?}, {} errors",
        bad.len()
    );
    assert!(bad.is_empty(), "{what}: {} errors, such as {}", bad.len(), bad[0]);
    assert!(took < front.limit(), "{what}: {REQUESTS} requests took {took:?}");
}

fn status(proxy: SocketAddr) -> (u16, Duration) {
    let start = Instant::now();
    let mut stream = std::net::TcpStream::connect(proxy).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), start.elapsed())
}

#[test]
fn one_of_three_fails_in_every_way_under_load_and_no_client_sees_an_error() {
    assert!(Path::new("/usr/sbin/nginx").exists(), "scripts/test installs nginx");
    let _alone = alone();
    // The control plane has threads of its own: this one blocks.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let mut servers = [Nginx::start(), Nginx::start(), Nginx::start()];
    let urls: Vec<String> = servers.iter().map(|s| format!("\"http://{}\"", s.address)).collect();
    let front = Front::start(
        &runtime,
        &format!(
            "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [{}]\n\
             timeouts = {{ attempt = \"{}ms\", connect = \"2s\" }}\n",
            urls.join(", "),
            ATTEMPT.as_millis(),
        ),
    );
    let proxy = front.address();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(proxy)).collect();
    let [one, two, three] = &mut servers;
    calm(&front, &mut clients, "all are well", || {});
    calm(&front, &mut clients, "one is killed", || one.process().kill());
    one.run();
    calm(&front, &mut clients, "one hangs", || two.process().signal("STOP"));
    two.process().signal("CONT");
    calm(&front, &mut clients, "one resets", || three.mark("reset"));
    three.unmark("reset");
    calm(&front, &mut clients, "one says 503", || one.mark("ill"));
    one.unmark("ill");
    calm(&front, &mut clients, "each is restarted in turn", || {
        for server in [one, two, three] {
            server.process().kill();
            server.run();
        }
    });

    servers.iter_mut().for_each(|server| server.process().kill());
    for _ in 0..20 {
        let (status, took) = status(proxy);
        assert_eq!(status, 503, "all are down");
        assert!(took < front.soon(), "{took:?}, which is more than the connect time-out");
    }
    servers.iter_mut().for_each(Nginx::run);
    let (back, soon) = (Instant::now(), front.soon());
    while status(proxy).0 != 200 {
        assert!(back.elapsed() < soon, "all are back");
    }
    eprintln!("first success {:?} after all were back", back.elapsed());
}
