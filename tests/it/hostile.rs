//! Clients that mean harm: what they cost is bounded, and honest clients hardly notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::repeat_with;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::load;
use crate::support::alone;
use crate::support::h2::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE,
};
use crate::support::server::{Server, full};
use crate::support::starlock::{Starlock, local_root};

const HOST: &str = "app.localhost";
/// How long each of them goes on.
const TIME: Duration = Duration::from_secs(3);
/// Requests a second of honest clients.
const RATE: u32 = 200;
/// Below these the 99th percentile is not compared with the quiet one, for the usual attack and for any: attackers, a server built
/// without optimisation and honest clients share the machine's cores, and perhaps with others.
const NOISE: Duration = Duration::from_millis(250);
const NOISE_WORST: Duration = Duration::from_secs(1);
/// More must never be resident, in KiB: with nobody hostile about it is some 30 MiB.
const MEMORY: u64 = 512 * 1024;

/// What a hostile client does.
enum Attack {
    /// Connections that send as fast as they can, each piece made for its number; they never read, and come again when closed.
    Flood(usize, fn(u32) -> Vec<u8>),
    /// Connections that send this, then neither read nor write.
    Hold(usize, fn() -> Vec<u8>),
    /// HTTP/1.1 connections that send a head and then a few bytes now and then, and never read.
    Drip(usize, &'static str, &'static str),
    /// Connections that say nothing at all.
    Idle(usize),
}

use Attack::{Drip, Flood, Hold, Idle};

const ATTACKS: &[(&str, Attack)] = &[
    ("8,000 idle connections", Idle(8_000)),
    ("slow heads", Drip(200, "GET /bad HTTP/1.1\r\nHost: app.localhost\r\n", "X-A: b\r\n")),
    (
        "slow bodies",
        Drip(200, "POST /bad/up HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 1000000\r\n\r\n", "x"),
    ),
    (
        "slow chunks",
        Drip(
            200,
            "POST /bad/up HTTP/1.1\r\nHost: app.localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            "1\r\nx\r\n",
        ),
    ),
    ("no reading", Drip(100, "GET /bad/big HTTP/1.1\r\nHost: app.localhost\r\n\r\n", "")),
    ("pipelines", Drip(20, "", PIPELINE)),
    ("no window", Hold(8, || hundred("/bad/big", &h2::frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])))),
    (
        "a window that is not read",
        Hold(8, || hundred("/bad/big", &h2::frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]))),
    ),
    ("bodies that stall", Hold(8, || (0..100).flat_map(stalled).collect())),
    ("rapid resets", Flood(4, |n| (n * 100..n * 100 + 100).flat_map(|n| reset(2 * n + 1)).collect())),
    (
        "resets that the server sends",
        Flood(4, |n| (n * 100..n * 100 + 100).flat_map(|n| malformed(2 * n + 1)).collect()),
    ),
    ("endless heads", Flood(4, |n| continued(n, &[0xa0; 8_000]))),
    ("endless empty heads", Flood(4, |n| continued(n, &[]))),
    ("pings", Flood(4, |_| h2::frame(PING, 0, 0, b"flooding").repeat(100))),
    ("settings", Flood(4, |_| h2::frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 9]).repeat(100))),
    ("empty settings", Flood(4, |_| h2::frame(SETTINGS, 0, 0, &[]).repeat(100))),
    ("priorities", Flood(4, |n| h2::frame(PRIORITY, 0, 2 * (n % 1_000) + 1, &[0, 0, 0, 0, 9]).repeat(100))),
    (
        "window updates",
        Flood(4, |n| if n == 0 { open() } else { h2::frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(100) }),
    ),
    ("empty data", Flood(4, |n| if n == 0 { open() } else { h2::frame(DATA, 0, 1, &[]).repeat(100) })),
    ("a byte of data", Flood(4, |n| if n == 0 { open() } else { h2::frame(DATA, 0, 1, b"x").repeat(100) })),
    ("many fields", Flood(4, |n| head(2 * n + 1, &[b"\0\x01x\0".repeat(3_000)].concat()))),
    (
        "a large field a thousand times",
        Flood(4, |n| head(2 * n + 1, &[large(), vec![0xbe; 10_000]].concat())),
    ),
    ("many tiny fields, held", Hold(8, || (0..100).flat_map(|n| head(2 * n + 1, &[0xa0; 800])).collect())),
    ("unknown frames", Flood(4, |_| h2::frame(0x77, 0, 0, &[0; 1_000]).repeat(10))),
];

const PIPELINE: &str = "GET /bad HTTP/1.1\r\nHost: app.localhost\r\n\r\nGET /bad HTTP/1.1\r\nHost: app.localhost\r\n\r\n\
    GET /bad HTTP/1.1\r\nHost: app.localhost\r\n\r\nGET /bad HTTP/1.1\r\nHost: app.localhost\r\n\r\n";

#[test]
fn hostile_clients_harm_nobody_but_themselves() {
    let _alone = alone();
    // What hostile clients ask has a server of its own: how that one fares is not what is measured.
    let server = Server::http(|_| async { Response::new(full("ok")) });
    let theirs = Server::http(|request| async move {
        thread_local!(static BACK: () = stand_back());
        BACK.with(|()| ());
        let big = request.uri().path() == "/bad/big";
        let _ = request.into_body().collect().await;
        if big {
            let endless = repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 16_384]))));
            return Response::new(StreamBody::new(endless).boxed_unsync());
        }
        Response::new(full("ok"))
    });
    let mut starlock = Starlock::start(&format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"127.0.0.1:0\"]\n[log]\naccess = \"off\"\n[routes]\n\
         \"{HOST}\" = \"{}\"\n\"{HOST}/bad\" = \"{}\"\n",
        server.url(),
        theirs.url()
    ));
    let root = local_root(&starlock);
    let (https, http) = (starlock.address("https"), starlock.address("http"));
    let mut root = root;
    let mut other = None;
    let (mut bad_https, mut bad_http) = (https, http);
    if std::env::var("CONTROL").is_ok() {
        let o = Starlock::start(&format!(
            "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"127.0.0.1:0\"]\n[log]\naccess = \"off\"\n[routes]\n\
         \"{HOST}\" = \"{}\"\n\"{HOST}/bad\" = \"{}\"\n",
            server.url(),
            theirs.url()
        ));
        root += &local_root(&o);
        (bad_https, bad_http) = (o.address("https"), o.address("http"));
        other = Some(o);
    }
    let load = load::Load::start(load::Spec {
        address: https,
        hosts: vec![HOST.to_owned()],
        path: "/".to_owned(),
        root_pem: root.clone(),
        rate: RATE,
    });
    std::thread::sleep(TIME);
    load.report.take_times();
    std::thread::sleep(TIME);
    let times = load.report.take_times();
    let quiet = p99(&times);
    eprintln!(
        "quiet: p50 {:?} p90 {:?} p99 {:?} max {:?}",
        at(&times, 500),
        at(&times, 900),
        at(&times, 990),
        at(&times, 1000)
    );
    let usual = starlock.process().memory_kib();
    eprintln!("quiet: p99 {quiet:?}, {} MiB", usual / 1024);

    let warned = warnings(&starlock);
    let mut slow = Vec::new();
    let only = std::env::var("ONLY").ok();
    for (name, attack) in ATTACKS {
        if only.as_ref().is_some_and(|only| !only.split(',').any(|o| o == *name)) {
            continue;
        }
        let door = Door { https: bad_https, http: bad_http, root: root.clone() };
        let attackers = std::thread::scope(|scope| {
            let attackers = scope.spawn(|| door.attack(attack));
            let mut most = 0;
            while !attackers.is_finished() {
                most = most.max(other.as_mut().unwrap_or(&mut starlock).process().memory_kib());
                std::thread::sleep(Duration::from_millis(50));
            }
            let connections = attackers.join().expect("the attackers ran");
            assert!(connections > 0, "{name}: nobody came in");
            (connections, most)
        });
        let (connections, most) = attackers;
        let times = load.report.take_times();
        let (p99, failed) = (p99(&times), load.report.failed.load(Ordering::Relaxed));
        eprintln!(
            "{name}: {connections} connections; {} honest requests, p50 {:?} p90 {:?} p99 {p99:?} max {:?}; {} MiB",
            times.len(),
            at(&times, 500),
            at(&times, 900),
            at(&times, 1000),
            most / 1024
        );
        assert!(most < MEMORY, "{name}: {most} KiB were resident");
        assert_eq!(failed, 0, "{name}: {:?}", load.report.errors());
        assert!(times.len() > 20, "{name}: {} honest requests", times.len());
        slow.push((p99, *name));
    }
    let report = load.stop();
    let failed = report.failed.load(Ordering::Relaxed) + report.failed_handshakes.load(Ordering::Relaxed);
    assert_eq!(failed, 0, "{:?}", report.errors());
    assert_eq!(warnings(&starlock), warned, "hostile clients write the log");
    slow.sort_unstable();
    assert!(slow[slow.len() / 2].0 < NOISE.max(3 * quiet), "quiet it was {quiet:?}, but {slow:#?}");
    assert!(slow[slow.len() - 1].0 < NOISE_WORST.max(3 * quiet), "quiet it was {quiet:?}, but {slow:#?}");
}

fn warnings(starlock: &Starlock) -> usize {
    starlock.log().lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).count()
}

/// The calling thread runs only while nobody else wants the core.
fn stand_back() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    let id = thread.file_name().unwrap().to_str().unwrap().to_owned();
    if std::env::var("NICE").is_ok() {
        return rustix::process::setpriority_process(None, 19).expect("a thread may always step back");
    }
    crate::support::process::output("chrt", &["--idle", "--pid", "0", &id]);
}

fn at(times: &[Duration], share: usize) -> Duration {
    times.get(times.len().saturating_sub(1) * share / 1000).copied().unwrap_or_default()
}

fn p99(times: &[Duration]) -> Duration {
    times.get(times.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
}

struct Door {
    https: SocketAddr,
    http: SocketAddr,
    root: String,
}

impl Door {
    /// Attacks for its time, from one thread; returns how many connections came about.
    fn attack(&self, attack: &Attack) -> usize {
        // Of a core that is shared with honest clients the latter get their part: it is the proxy's time that is fought for.
        stand_back();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let end = Instant::now() + TIME;
        let connections: Vec<usize> = runtime.block_on(async {
            match attack {
                Flood(n, piece) => join_all((0..*n).map(|_| self.flood(*piece, end))).await,
                Hold(n, piece) => join_all((0..*n).map(|_| self.hold(piece(), end))).await,
                Drip(n, head, drip) => join_all((0..*n).map(|_| self.drip(head, drip, end))).await,
                Idle(n) => {
                    let mut idle = Vec::new();
                    for _ in 0..*n {
                        idle.push(TcpStream::connect(self.http).await.expect("the file limit allows it"));
                    }
                    sleep(TIME).await;
                    vec![idle.len()]
                }
            }
        });
        connections.iter().sum()
    }

    async fn flood(&self, piece: fn(u32) -> Vec<u8>, end: Instant) -> usize {
        let mut connections = 0;
        while Instant::now() < end {
            let Some(mut stream) = self.connect("h2", end).await else { continue };
            connections += 1;
            if write(&mut stream, &greeting(), end).await {
                let mut n = 0;
                while write(&mut stream, &piece(n), end).await {
                    n += 1;
                }
            }
        }
        connections
    }

    async fn hold(&self, bytes: Vec<u8>, end: Instant) -> usize {
        let Some(mut stream) = self.connect("h2", end).await else { return 0 };
        write(&mut stream, &[greeting(), bytes].concat(), end).await;
        tokio::time::sleep_until(end.into()).await;
        1
    }

    async fn drip(&self, head: &str, drip: &str, end: Instant) -> usize {
        let Some(mut stream) = self.connect("http/1.1", end).await else { return 0 };
        write(&mut stream, head.as_bytes(), end).await;
        while Instant::now() < end {
            sleep(Duration::from_millis(50)).await;
            write(&mut stream, drip.as_bytes(), end).await;
        }
        1
    }

    async fn connect(&self, alpn: &str, end: Instant) -> Option<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.root.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let stream = TcpStream::connect(self.https).await.ok()?;
        let name = ServerName::try_from(HOST).unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        timeout_at(end.into(), connecting).await.ok()?.ok()
    }
}

/// Whether all of it was taken before the end.
async fn write(stream: &mut TlsStream<TcpStream>, bytes: &[u8], end: Instant) -> bool {
    let all = async { stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok() };
    timeout_at(end.into(), all).await.unwrap_or(false)
}

fn greeting() -> Vec<u8> {
    [PREFACE, &h2::frame(SETTINGS, 0, 0, &[])].concat()
}

/// The pseudo-fields of a request for `path`.
fn pseudo(method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)] {
        h2::field(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

/// A request with these further fields.
fn head(stream: u32, fields: &[u8]) -> Vec<u8> {
    h2::frame(HEADERS, END_STREAM | END_HEADERS, stream, &[&pseudo("GET", "/bad"), fields].concat())
}

fn hundred(path: &str, before: &[u8]) -> Vec<u8> {
    let requests =
        (0..100).flat_map(|n| h2::frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &pseudo("GET", path)));
    before.iter().copied().chain(requests).collect()
}

/// A request whose body begins and does not go on.
fn stalled(n: u32) -> Vec<u8> {
    let mut frames = h2::frame(HEADERS, END_HEADERS, 2 * n + 1, &pseudo("POST", "/bad/up"));
    frames.extend(h2::frame(DATA, 0, 2 * n + 1, &[b'x'; 600]));
    frames
}

fn open() -> Vec<u8> {
    h2::frame(HEADERS, END_HEADERS, 1, &pseudo("POST", "/bad/up"))
}

fn reset(stream: u32) -> Vec<u8> {
    [head(stream, &[]), h2::frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
}

/// A request that the server must reset, as one that frames a stream error would (CVE-2025-8671).
fn malformed(stream: u32) -> Vec<u8> {
    let mut fields = Vec::new();
    h2::field(&mut fields, b"connection", b"close");
    [
        h2::frame(HEADERS, END_HEADERS, stream, &[pseudo("POST", "/bad/up"), fields].concat()),
        h2::frame(WINDOW_UPDATE, 0, stream, &[0; 4]),
    ]
    .concat()
}

/// The `n`th part of a head that never ends.
fn continued(n: u32, part: &[u8]) -> Vec<u8> {
    match n {
        0 => h2::frame(HEADERS, END_STREAM, 1, &pseudo("GET", "/bad")),
        _ => h2::frame(CONTINUATION, 0, 1, part).repeat(if part.is_empty() { 100 } else { 1 }),
    }
}

/// A field of nearly 4 KiB that goes into the table.
fn large() -> Vec<u8> {
    let mut field = vec![0x40];
    h2::string(&mut field, b"x");
    h2::string(&mut field, &[b'a'; 4_000]);
    field
}
