//! How long a client may take, how much it may send, how many may come.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::Raw;
use crate::support::rig::Plan;
use crate::support::server::Server;

const MS: fn(u64) -> Duration = Duration::from_millis;

#[tokio::test]
async fn a_slow_head_is_cut_off_and_a_slow_start_is_not() {
    let rig = Plan::clear()
        .respond("a.test", 200, Some("ok"))
        .with(|plan| {
            plan.listen.timeouts.header = MS(1_000);
            plan.listen.timeouts.idle = MS(60_000);
        })
        .start()
        .await;
    let mut waiting = rig.connect().await;
    let mut used = rig.connect().await;
    assert_eq!(used.get("a.test", "/").await.text(), "ok");
    for first in [true, false] {
        let mut slow = rig.connect().await;
        if !first {
            slow.get("a.test", "/").await;
        }
        let start = Instant::now();
        slow.send("GET / HTTP/1.1\r\n").await;
        while start.elapsed() < MS(300) {
            // A byte now and then does not help.
            let _ = slow.stream.write_all(b"X-").await;
            assert!(slow.silent(MS(20)).await, "cut off too early");
        }
        assert!(slow.closed().await, "nothing is said to it");
        assert!(start.elapsed() >= MS(1_000) && start.elapsed() < MS(5_000), "{:?}", start.elapsed());
    }
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"header_timeout\"}"), 2);
    assert!(waiting.silent(MS(100)).await && used.silent(MS(100)).await);
    assert_eq!(waiting.get("a.test", "/").await.text(), "ok", "preconnected, long past the time for a head");
    assert_eq!(used.get("a.test", "/").await.text(), "ok");
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_its_time() {
    let rig = Plan::clear()
        .respond("a.test", 200, Some("ok"))
        .with(|plan| plan.listen.timeouts.idle = MS(300))
        .start()
        .await;
    let mut client = rig.connect().await;
    let start = Instant::now();
    client.get("a.test", "/").await;
    assert!(client.closed().await);
    assert!(start.elapsed() >= MS(300) && start.elapsed() < MS(5_000), "{:?}", start.elapsed());
    drop(client);
    rig.until("the end", |rig| rig.traffic.open_connections() == 0).await;
}

#[tokio::test]
async fn a_handshake_that_never_comes_ends() {
    let rig = Plan::tls()
        .respond("a.test", 200, None)
        .with(|plan| plan.listen.timeouts.handshake = MS(150))
        .start()
        .await;
    let mut client = Raw::connect(rig.https()).await;
    assert!(client.closed().await);
    rig.until("the count", |rig| rig.metric("starlock_tls_handshakes_total{result=\"timeout\"}") == 1).await;
    rig.tls("a.test", "http/1.1").await;
    rig.until("the count", |rig| rig.metric("starlock_tls_handshakes_total{result=\"ok\"}") == 1).await;
}

#[tokio::test]
async fn a_stuck_upload_is_408_and_a_slow_one_goes_through() {
    let server = Server::echo();
    let rig = Plan::clear()
        .forward("a.test", server.address)
        .with(|plan| {
            plan.proxy.body_timeout = MS(1_200);
            plan.listen.timeouts.header = MS(100);
        })
        .start()
        .await;
    let mut slow = rig.connect().await;
    slow.send("PUT /slow HTTP/1.1\r\nHost: a.test\r\nContent-Length: 24\r\n\r\n").await;
    for _ in 0..24 {
        assert!(slow.silent(MS(60)).await);
        slow.send("x").await;
    }
    assert_eq!(slow.answer(false).await.status, 200);
    let mut stuck = rig.connect().await;
    stuck.send("PUT /stuck HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nhalf").await;
    let answer = stuck.answer(false).await;
    assert_eq!((answer.status, answer.field("connection")), (408, Some("close")));
    assert!(stuck.closed().await);
    assert_eq!(rig.logged(|line| line["path"] == "/stuck").await["reason"], "client_body_timeout");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let server = Server::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
        while stream.write_all(&[0; 65_536]).await.is_ok() {}
    });
    let rig = Plan::clear()
        .forward("a.test", server.address)
        .with(|plan| plan.listen.timeouts.write = MS(300))
        .start()
        .await;
    let mut client = rig.connect().await;
    client.send("GET /flood HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let line = rig.logged(|line| line["path"] == "/flood").await;
    assert_eq!(line["reason"], "client_closed");
    let taken = line["sent"].as_u64().unwrap();
    assert!((64 * 1024..1024 * 1024).contains(&taken), "{taken} bytes were kept for it");
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"write_timeout\"}"), 1);
    assert_eq!(rig.traffic.open_connections(), 0);
}

#[tokio::test]
async fn too_large_heads_are_refused_each_with_its_status() {
    let rig = Plan::clear().respond("a.test", 200, Some("ok")).start().await;
    let ask = async |head: String| {
        let mut client = rig.connect().await;
        client.send(head).await;
        client.answer(false).await.status
    };
    let fields = |n: usize| (0..n).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let sized = |n: usize| format!("X-Large: {}\r\n", "y".repeat(n));
    let get = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n{more}\r\n");
    assert_eq!(ask(get("/", &fields(99))).await, 200);
    assert_eq!(ask(get("/", &fields(100))).await, 431);
    assert_eq!(ask(get("/", &sized(32 * 1024 - 100))).await, 200);
    assert_eq!(ask(get("/", &sized(32 * 1024))).await, 431);
    assert_eq!(ask(get("/", &sized(300 * 1024))).await, 431, "said although we stopped reading");
    assert_eq!(ask(get(&format!("/{}", "x".repeat(8 * 1024 - 1)), "")).await, 200);
    assert_eq!(ask(get(&format!("/{}", "x".repeat(8 * 1024)), "")).await, 414);
    assert_eq!(ask(get(&format!("/?{}", "x".repeat(20 * 1024)), "")).await, 414);
}

#[tokio::test]
async fn too_large_bodies_are_413_announced_or_not() {
    let server = Server::echo();
    let rig = Plan::clear()
        .forward("a.test", server.address)
        .with(|plan| plan.proxy.max_body = Some(10))
        .start()
        .await;
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\n";
    let mut client = rig.connect().await;
    let answer = client.ask(format!("{head}Content-Length: 10\r\n\r\n0123456789")).await;
    assert_eq!(answer.status, 200);
    let answer =
        client.ask(format!("{head}Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n")).await;
    assert_eq!(answer.status, 200);
    let before = server.connections();
    let answer = client.ask(format!("{head}Content-Length: 11\r\n\r\n01234567890")).await;
    assert_eq!((answer.status, answer.field("connection")), (413, Some("close")));
    assert!(client.closed().await);
    assert_eq!(server.connections(), before, "the server never heard of it");
    let mut client = rig.connect().await;
    let answer =
        client.ask(format!("{head}Transfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n")).await;
    assert_eq!(answer.status, 413);
    assert!(client.closed().await);
    // An answer is read even by a client that goes on sending.
    let mut client = rig.connect().await;
    client.send(format!("{head}Content-Length: 500000\r\n\r\n")).await;
    client.send(vec![b'x'; 500_000]).await;
    assert_eq!(client.answer(false).await.status, 413);
}

#[tokio::test]
async fn accepting_pauses_at_the_limit_and_nobody_is_turned_away() {
    let rig = Plan::clear()
        .respond("a.test", 200, Some("ok"))
        .with(|plan| {
            plan.listen.limits.connections = Some(2);
            plan.workers = 1;
        })
        .start()
        .await;
    let (mut one, mut two) = (rig.connect().await, rig.connect().await);
    one.get("a.test", "/").await;
    two.get("a.test", "/").await;
    let mut three = rig.connect().await;
    three.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(three.silent(MS(100)).await);
    assert_eq!(rig.traffic.open_connections(), 2);
    drop(one);
    assert_eq!(three.answer(false).await.text(), "ok");
}

#[tokio::test]
async fn one_address_gets_its_share() {
    let rig = Plan::clear()
        .respond("a.test", 200, Some("ok"))
        .with(|plan| plan.listen.limits.connections_per_ip = Some(2))
        .start()
        .await;
    let (mut one, mut two) = (rig.connect().await, rig.connect().await);
    one.get("a.test", "/").await;
    two.get("a.test", "/").await;
    let mut three = rig.connect().await;
    assert!(three.closed().await);
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"connections_per_ip\"}"), 1);
    drop(one);
    rig.until("room", |rig| rig.traffic.open_connections() < 2).await;
    assert_eq!(rig.connect().await.get("a.test", "/").await.text(), "ok");
}

#[tokio::test]
async fn what_never_became_a_request_is_in_the_log_too() {
    let rig = Plan::clear().respond("a.test", 200, Some("ok")).start().await;
    let long = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n", "x".repeat(40 * 1024));
    for (head, status, reason) in
        [("GE\0T / HTTP/1.1\r\n\r\n", 400, "bad_request"), (long.as_str(), 431, "header_size")]
    {
        assert_eq!(rig.connect().await.ask(head).await.status, status);
        let line = rig.logged(|line| line["reason"] == reason).await;
        assert_eq!(
            (line["status"].as_u64(), line["client"].as_str()),
            (Some(u64::from(status)), Some("127.0.0.1"))
        );
        assert_eq!(rig.metric(&format!("starlock_rejected_total{{reason=\"{reason}\"}}")), 1);
    }
}
