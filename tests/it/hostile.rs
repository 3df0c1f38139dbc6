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
use crate::support::cores;
use crate::support::h2::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE,
};
use crate::support::server::{Server, full};
use crate::support::starlock::{Starlock, local_root};

const HOST: &str = "app.localhost";
/// How long each of them goes on.
const TIME: Duration = Duration::from_millis(2_500);
/// The same where a build is measured. Virtual machines stand still for some milliseconds every few seconds, and in a short time that
/// decides about the 99th percentile.
const MEASURED: Duration = Duration::from_secs(8);
/// What comes of their leaving belongs to it.
const PARTING: Duration = Duration::from_millis(250);
/// Requests a second of honest clients: the 99th percentile of one attack is about the fifth worst of them, or the sixteenth.
const RATE: u32 = 200;
/// So many quiet times are looked at, of which the best counts, and an attack may be tried so often until honest clients do not mind
/// it: what others do on the machine passes, what it does stays.
const TRIES: usize = 3;
/// A proxy built without optimisation, among other tests: below this the 99th percentile is not compared with the quiet one.
const NOISE: Duration = Duration::from_millis(100);
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

/// What is measured is how the proxy shares out its time. So it has a core for itself, or half of them; on the others honest clients
/// and their server come first, and hostile ones have what is left. `STARLOCK_TEST_ELSEWHERE=1` sends the attacks to a second proxy
/// on the same cores: what honest clients then see is what any busy neighbour would cost them. `STARLOCK_TEST_ATTACK` is a part of
/// the names of those that are tried.
#[test]
fn hostile_clients_harm_nobody_but_themselves() {
    let _alone = alone();
    let halves = cores::halves();
    let [ours, proxys] = halves.clone().unwrap_or_default();
    let keep_to = |half: &str| halves.iter().for_each(|_| cores::keep_to(half));
    keep_to(&ours);
    // What hostile clients ask has a server of its own: how that one fares is not what is measured.
    let server = first(|| Server::http(|_| async { Response::new(full("ok")) }));
    let theirs = Server::http(|request| async move {
        thread_local!(static BEHIND: () = stand_back());
        BEHIND.with(|()| {});
        let big = request.uri().path() == "/bad/big";
        let _ = request.into_body().collect().await;
        if big {
            let endless = repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 16_384]))));
            return Response::new(StreamBody::new(endless).boxed_unsync());
        }
        Response::new(full("ok"))
    });
    let start = || {
        Starlock::start(&format!(
            "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"127.0.0.1:0\"]\n[log]\naccess = \"off\"\n[routes]\n\
             \"{HOST}\" = \"{}\"\n\"{HOST}/bad\" = \"{}\"\n",
            server.url(),
            theirs.url()
        ))
    };
    keep_to(&proxys);
    let mut starlock = start();
    let mut elsewhere = std::env::var_os("STARLOCK_TEST_ELSEWHERE").map(|_| start());
    keep_to(&ours);
    let spec = load::Spec {
        address: starlock.address("https"),
        hosts: vec![HOST.to_owned()],
        path: "/".to_owned(),
        root_pem: local_root(&starlock),
        rate: RATE,
    };
    let load = first(|| load::Load::start(spec));
    let rest = || {
        load.report.take_times();
        std::thread::sleep(time());
        load.report.take_times()
    };
    std::thread::sleep(time());
    let mut quiet = Duration::MAX;
    for _ in 0..TRIES {
        let times = rest();
        eprintln!("quiet: {}; {} MiB", said(&times), starlock.process().memory_kib() / 1024);
        quiet = quiet.min(p99(&times));
    }
    let strict = measures() && halves.is_some();
    let (limit, tries) = if strict { (3 * quiet, TRIES) } else { (NOISE.max(3 * quiet), 2 * TRIES) };

    let warned = warnings(&starlock);
    let target = elsewhere.as_mut().unwrap_or(&mut starlock);
    let door =
        Door { https: target.address("https"), http: target.address("http"), root: local_root(target) };
    let mut slow = Vec::new();
    let wanted = std::env::var("STARLOCK_TEST_ATTACK").unwrap_or_default();
    for (name, attack) in ATTACKS.iter().filter(|(name, _)| name.contains(&wanted)) {
        let mut least = Duration::MAX;
        for _ in 0..tries {
            let (connections, most) = std::thread::scope(|scope| {
                let attackers = scope.spawn(|| door.attack(attack));
                let mut most = 0;
                while !attackers.is_finished() {
                    most = most.max(target.process().memory_kib());
                    std::thread::sleep(Duration::from_millis(50));
                }
                (attackers.join().expect("the attackers ran"), most)
            });
            // They are gone, and what they leave behind is cleared up: that is theirs, too.
            std::thread::sleep(PARTING);
            let times = load.report.take_times();
            let failed = load.report.failed.load(Ordering::Relaxed);
            eprintln!("{name}: {connections} connections; {}; {} MiB", said(&times), most / 1024);
            assert!(most < MEMORY, "{name}: {most} KiB were resident");
            assert_eq!(failed, 0, "{name}: {:?}", load.report.errors());
            assert!(times.len() > 20, "{name}: {} honest requests", times.len());
            // An attack that got no time at all is none.
            if connections > 0 {
                least = least.min(p99(&times));
            }
            if least < limit {
                break;
            }
            rest();
        }
        slow.push((least, *name));
    }
    let report = load.stop();
    let failed = report.failed.load(Ordering::Relaxed) + report.failed_handshakes.load(Ordering::Relaxed);
    assert_eq!(failed, 0, "{:?}", report.errors());
    assert_eq!(warnings(&starlock), warned, "hostile clients write the log");
    slow.sort_unstable();
    let worst = slow.last().expect("an attack has this name");
    assert!(worst.0 < limit, "quiet it was {quiet:?}, but {slow:#?}");
}

/// Whether a build is measured that somebody made for it, on a machine that does nothing else.
fn measures() -> bool {
    std::env::var_os("STARLOCK").is_some()
}

fn time() -> Duration {
    if measures() { MEASURED } else { TIME }
}

/// Starts honest clients, or their server: where it is measured, nothing keeps them from their half of the cores.
fn first<T>(start: impl FnOnce() -> T) -> T {
    if measures() { cores::before_all_others(start) } else { start() }
}

/// Lets honest clients and their server go first.
fn stand_back() {
    if measures() {
        cores::only_when_idle();
    } else {
        // Among other tests it would never run.
        rustix::process::setpriority_process(None, 19).expect("a thread may always step back");
    }
}

fn warnings(starlock: &Starlock) -> usize {
    starlock.log().lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).count()
}

fn p99(times: &[Duration]) -> Duration {
    at(times, 99)
}

fn at(times: &[Duration], percent: usize) -> Duration {
    times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}

fn said(times: &[Duration]) -> String {
    let [half, p99, most] = [50, 99, 100].map(|percent| at(times, percent).as_secs_f64() * 1000.0);
    format!("{} honest requests, p50 {half:.1}, p99 {p99:.1}, max {most:.1} ms", times.len())
}

struct Door {
    https: SocketAddr,
    http: SocketAddr,
    root: String,
}

impl Door {
    /// Attacks for its time, from one thread; returns how many connections came about.
    fn attack(&self, attack: &Attack) -> usize {
        // It is the proxy's time that is fought for, not that of the cores that honest clients and their server have.
        stand_back();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let end = Instant::now() + time();
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
                    sleep(time()).await;
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
    // What can be written at once is written, however late it is.
    timeout_at(end.into(), all).await.unwrap_or(false) && Instant::now() < end
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
