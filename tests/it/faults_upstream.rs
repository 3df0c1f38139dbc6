//! One of three servers fails in every way that there is, and no client notices.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::process::Process;
use crate::support::rig::Plan;
use crate::support::{alone, eventually, free_port, local};

/// Requests at a time; each client sends one every 20 ms: about 1,000 a second.
const CLIENTS: usize = 20;
const PACE: Duration = Duration::from_millis(20);
/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(3);

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

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    good: AtomicUsize,
    bad: std::sync::Mutex<Vec<String>>,
}

/// A client that never closes its connection.
fn client(proxy: SocketAddr, load: &Load) {
    use std::io::{Read, Write};
    let connect = || {
        let stream = std::net::TcpStream::connect(proxy).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    };
    let mut stream = connect();
    let mut buffer = [0; 4096];
    while !load.stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        let mut seen = Vec::new();
        // Small answers end with their body.
        while !seen.ends_with(b"fine") {
            match stream.read(&mut buffer) {
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
            load.good.fetch_add(1, Ordering::Relaxed);
        } else {
            load.bad.lock().unwrap().push(String::from_utf8_lossy(&seen).into_owned());
            stream = connect();
        }
        std::thread::sleep(PACE.saturating_sub(start.elapsed()));
    }
}

fn status(proxy: SocketAddr) -> (u16, Duration) {
    use std::io::{Read, Write};
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
    let plan = Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [{}]\n\
         timeouts = {{ attempt = \"500ms\", connect = \"2s\" }}\n",
        urls.join(", ")
    ));
    let rig = runtime.block_on(plan.start());
    let proxy = rig.http();
    let load = Arc::new(Load::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let load = load.clone();
            std::thread::spawn(move || client(proxy, &load))
        })
        .collect();
    let calm = |what: &str| {
        let before = load.good.load(Ordering::Relaxed);
        let start = Instant::now();
        while start.elapsed() < FAULT {
            std::thread::sleep(Duration::from_millis(50));
        }
        let good = load.good.load(Ordering::Relaxed) - before;
        let bad = load.bad.lock().unwrap().clone();
        eprintln!("{what}: {good} answers in {FAULT:?}, {} errors", bad.len());
        assert!(bad.is_empty(), "{what}: {} errors, such as {}", bad.len(), bad[0]);
        // A thousand a second are sent; half of that is the least that a busy machine must get through.
        assert!(good > 1_500, "{what}: only {good} answers");
    };
    calm("all are well");
    servers[0].process().kill();
    calm("one is killed");
    servers[0].run();
    servers[1].process().signal("STOP");
    calm("one hangs");
    servers[1].process().signal("CONT");
    servers[2].mark("reset");
    calm("one resets");
    servers[2].unmark("reset");
    servers[0].mark("ill");
    calm("one says 503");
    servers[0].unmark("ill");
    for server in &mut servers {
        server.process().kill();
        server.run();
    }
    calm("each is restarted in turn");
    load.stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());

    servers.iter_mut().for_each(|server| server.process().kill());
    for _ in 0..20 {
        let (status, took) = status(proxy);
        assert_eq!(status, 503, "all are down");
        assert!(took < Duration::from_secs(2), "{took:?}, which is more than the connect time-out");
    }
    servers.iter_mut().for_each(Nginx::run);
    let back = Instant::now();
    while status(proxy).0 != 200 {
        assert!(back.elapsed() < Duration::from_secs(2), "all are back");
    }
    eprintln!("first success {:?} after all were back", back.elapsed());
}
