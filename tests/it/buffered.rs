//! `limits.buffered` is looked at when a request begins: by how much those under way can exceed it, in what is counted and in memory.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::support::alone;
use crate::support::client::Raw;
use crate::support::server::Server;
use crate::support::starlock::Starlock;

/// Requests that all begin while nothing is held.
const COUNT: usize = 32;
/// What docs/overload.md says of each: an answer, and a body.
const ANSWER: i64 = 256 << 10;
const BODY: i64 = 384 << 10;
/// What else may have come to the process meanwhile, in KiB.
const BESIDE: u64 = 8 << 10;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn front(server: SocketAddr) -> Starlock {
    Starlock::start(&format!(
        "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\nmetrics = \"127.0.0.1:0\"\nh2c = true\n\
         [limits]\nbuffered = \"1MiB\"\n[log]\naccess = \"off\"\n\
         [routes]\n\"a.test\" = \"http://{server}\"\n\"b.test\" = {{ respond = 200, body = \"ok\" }}\n"
    ))
}

async fn held(metrics: SocketAddr) -> i64 {
    let answer = Raw::connect(metrics).await.get("x", "/metrics").await;
    let mut lines = answer.text().lines();
    lines.find_map(|line| line.strip_prefix("starlock_buffered_bytes ")?.parse().ok()).unwrap()
}

/// What is held when it does not grow any more, and that it does not make room for anything new.
async fn most_held(starlock: &Starlock, http: SocketAddr) -> i64 {
    let metrics = starlock.address("metrics");
    let (mut before, mut calm) = (0, 0);
    while calm < 5 {
        sleep(Duration::from_millis(200)).await;
        let now = held(metrics).await;
        calm = if now == before && now > 1 << 20 { calm + 1 } else { 0 };
        before = now;
    }
    let refused = Raw::connect(http).await.get("b.test", "/").await;
    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")), "nothing new is let in");
    before
}

/// With small buffers of the kernel, so that what is stuck is stuck with us.
fn small() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket
}

fn fits(what: &str, starlock: &mut Starlock, usual_kib: u64, held: i64, each: i64) {
    let grown = starlock.process().memory_kib().saturating_sub(usual_kib);
    let most = (1 << 20) + COUNT as i64 * each;
    eprintln!(
        "{what}: {COUNT} under way hold {} KiB, and {grown} KiB of memory more than before",
        held >> 10
    );
    assert!(held <= most, "{what}: {held} bytes are held, more than {most}");
    // The count is honest: memory grows by what is counted, and by what waits in each connection to a server besides.
    let known = (held as u64 >> 10) + BESIDE + COUNT as u64 * 64;
    assert!(grown < known, "{what}: memory has grown by {grown} KiB, of which {known} are accounted for");
}

#[test]
fn answers_under_way_exceed_the_cap_by_what_each_may_hold() {
    let _alone = alone();
    runtime().block_on(answers());
}

async fn answers() {
    let (tell, told) = watch::channel(false);
    let flood = Server::raw(move |mut stream| {
        let mut told = told.clone();
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            told.wait_for(|go| *go).await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
            while stream.write_all(&[0; 65_536]).await.is_ok() {}
        }
    });
    let mut starlock = front(flood.address);
    let http = starlock.address("http");
    let mut clients = Vec::new();
    for _ in 0..COUNT {
        let mut client = small().connect(http).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
        clients.push(client);
    }
    let all = async {
        while flood.connections() < COUNT {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), all).await.expect("all are at the server");
    let usual = starlock.process().memory_kib();
    assert_eq!(held(starlock.address("metrics")).await, 0);
    tell.send_replace(true);
    let most = most_held(&starlock, http).await;
    fits("answers", &mut starlock, usual, most, ANSWER);
    assert_eq!(flood.connections(), COUNT, "those under way go on");
    drop(clients);
}

/// A server that takes connections and nothing more than their first bytes.
async fn deaf() -> (TcpListener, SocketAddr) {
    let socket = small();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(256).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn bodies_under_way_exceed_the_cap_by_what_each_may_hold() {
    let _alone = alone();
    runtime().block_on(bodies());
}

async fn bodies() {
    let (listener, address) = deaf().await;
    let mut starlock = front(address);
    let http = starlock.address("http");
    let (mut uploads, mut running, mut at_server) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..COUNT {
        let stream = TcpStream::connect(http).await.unwrap();
        let (mut send, connection) = h2::client::Builder::new().handshake::<_, Bytes>(stream).await.unwrap();
        running.push(tokio::spawn(connection));
        // Idempotent: what fits is kept for a second attempt, too.
        let (answer, body) =
            send.send_request(Request::put("http://a.test/").body(()).unwrap(), false).unwrap();
        uploads.push((send, answer, body));
        let mut taken = timeout(Duration::from_secs(20), listener.accept()).await.unwrap().unwrap().0;
        let _ = taken.read(&mut [0; 4096]).await.unwrap();
        at_server.push(taken);
    }
    let usual = starlock.process().memory_kib();
    assert_eq!(held(starlock.address("metrics")).await, 0);
    for (_, _, body) in &mut uploads {
        loop {
            body.reserve_capacity(64 << 10);
            let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
            let Ok(Some(Ok(room))) = timeout(Duration::from_millis(100), room).await else { break };
            body.send_data(vec![0; room].into(), false).unwrap();
        }
    }
    let most = most_held(&starlock, http).await;
    fits("bodies", &mut starlock, usual, most, BODY);
    drop((uploads, at_server));
    running.iter().for_each(tokio::task::JoinHandle::abort);
}
