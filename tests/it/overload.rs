//! What happens when there is more to do than Starlock may do at once: those it works for already do not suffer.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use http::Response;
use starlock::listen::ListenSpec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::support::client::{Answer, Raw};
use crate::support::h2::{DATA, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, WINDOW_UPDATE, status};
use crate::support::rig::{Plan, Rig};
use crate::support::server::{Server, full};
use crate::support::starlock::Starlock;
use crate::support::{PATIENCE, eventually};

const MS: fn(u64) -> Duration = Duration::from_millis;
const ASK: &str = "GET /held HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// A server that answers when it is told to.
fn held() -> (Server, watch::Sender<bool>) {
    let (tell, told) = watch::channel(false);
    let server = Server::http(move |_| {
        let mut told = told.clone();
        async move {
            told.wait_for(|go| *go).await.unwrap();
            Response::new(full("held"))
        }
    });
    (server, tell)
}

/// A server whose answer never ends.
fn endless() -> Server {
    Server::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
        while stream.write_all(&[0; 65_536]).await.is_ok() {}
    })
}

fn plan(server: &Server, change: impl FnOnce(&mut ListenSpec)) -> Plan {
    Plan::tls()
        .forward("a.test/held", server.address)
        .respond("a.test", 200, Some("ok"))
        .with(|plan| change(&mut plan.listen))
}

/// What the sockets on the way still take is not held any more: only when they are full is it held for good.
async fn refused_at_last(rig: &Rig, why: &str) {
    let refused = |answer: &Answer| (answer.status, answer.field("retry-after")) == (503, Some("1"));
    let start = Instant::now();
    while !refused(&rig.connect_tls("a.test").await.get("a.test", "/").await) {
        assert!(start.elapsed() < PATIENCE, "{why}: all are let in\n{}", rig.metrics.render());
    }
}

#[tokio::test]
async fn idle_connections_make_room_and_busy_ones_do_not() {
    let (server, tell) = held();
    // Several workers give each a share, so that who has been idle the longest may stay if the others are all of another worker.
    let plan = plan(&server, |listen| listen.limits.connections = Some(20)).with(|plan| plan.workers = 1);
    let rig = plan.start().await;
    let mut busy = rig.connect_tls("a.test").await;
    busy.send(ASK).await;
    rig.until("the request", |_| server.connections() == 1).await;
    // The longest idle one is of HTTP/2, the next ones have had a request, the others have said nothing yet.
    let (mut oldest, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    oldest.request(1, END_STREAM, "GET", "/", &[]).await;
    assert_eq!(oldest.end_of(1).await.payload, b"ok");
    // In clear: their handshakes could take so long that the first ones are let go before the last ones come.
    let mut idle = Vec::new();
    for n in 0..18 {
        let mut client = rig.connect().await;
        if n < 9 {
            assert_eq!(client.get("a.test", "/").await.status, 308);
        }
        idle.push(client);
    }
    rig.until("all are there", |rig| rig.traffic.open_connections() == 20).await;
    // Locked out until somebody goes; the idle time-out would be 180 s.
    let start = Instant::now();
    assert_eq!(rig.connect_tls("a.test").await.get("a.test", "/").await.text(), "ok");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(oldest.next_of(GOAWAY).await.payload[4..8], [0; 4], "NO_ERROR");
    assert!(idle[0].closed().await, "the longest idle one of HTTP/1");
    rig.until("a tenth is free", |rig| rig.traffic.open_connections() < 18).await;
    assert!(idle[17].silent(MS(50)).await, "who has just come stays");
    let evicted = rig.metric("starlock_rejected_total{reason=\"crowded\"}");
    assert!((3..=6).contains(&evicted), "{evicted} of 18");
    tell.send_replace(true);
    assert_eq!(busy.answer(false).await.text(), "held");
    assert_eq!(busy.get("a.test", "/").await.text(), "ok", "and it goes on");
}

#[tokio::test]
async fn a_higher_limit_lets_those_in_who_wait() {
    let (server, tell) = held();
    let low = || {
        plan(&server, |listen| listen.limits.connections = Some(1)).with(|plan| {
            plan.listen.https = vec![];
            plan.workers = 1;
        })
    };
    let mut rig = low().start().await;
    let mut first = rig.connect().await;
    first.send(ASK).await;
    rig.until("the request", |_| server.connections() == 1).await;
    let mut second = rig.connect().await;
    second.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(second.silent(MS(100)).await);
    rig.load(&low().with(|plan| plan.listen.limits.connections = Some(2))).await;
    assert_eq!(second.answer(false).await.text(), "ok");
    tell.send_replace(true);
    assert_eq!(first.answer(false).await.text(), "held");
}

#[tokio::test]
async fn workers_and_listeners_share_one_limit() {
    let (server, tell) = held();
    let (limit, workers) = (3, 4);
    let rig = plan(&server, |listen| listen.limits.connections = Some(limit))
        .with(|plan| {
            plan.listen.https = vec![];
            plan.listen.http = vec![([127, 0, 0, 1], 0).into(); 2];
            plan.workers = workers;
        })
        .start()
        .await;
    let doors = rig.traffic.addresses().http;
    let mut clients = Vec::new();
    for n in 0..24 {
        let mut client = Raw::connect(doors[n % 2]).await;
        client.send(ASK).await;
        clients.push(client);
        let open = rig.traffic.open_connections();
        assert!(open < limit + workers, "{open}");
    }
    rig.until("the limit", |rig| rig.traffic.open_connections() >= limit).await;
    assert!(clients.last_mut().unwrap().silent(MS(100)).await);
    let open = rig.traffic.open_connections();
    assert!((limit..limit + workers).contains(&open), "{open}");
    tell.send_replace(true);
    let answers = clients.into_iter().map(|mut client| async move { client.answer(false).await.status });
    let all = futures_util::future::join_all(answers).await;
    assert_eq!(all, [200; 24], "nobody is turned away");
}

#[tokio::test]
async fn requests_beyond_the_cap_are_shed_at_once_in_each_protocol() {
    let (server, tell) = held();
    let rig = plan(&server, |listen| listen.limits.requests = Some(2)).start().await;
    let mut held = rig.connect_tls("a.test").await;
    held.send(ASK).await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    frames.request(1, END_STREAM, "GET", "/held", &[]).await;
    rig.until("both", |_| server.connections() == 2).await;
    assert_eq!(rig.metric("starlock_requests_in_flight"), 2);

    let mut client = rig.connect_tls("a.test").await;
    let answer = client.get("a.test", "/shed").await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
    let line = rig.logged(|line| line["path"] == "/shed").await;
    assert_eq!((&line["status"], &line["reason"]), (&503.into(), &"overload".into()));
    frames.request(3, END_STREAM, "GET", "/shed2", &[]).await;
    assert_eq!(status(&frames.next_of(HEADERS).await.payload), 503);
    frames.request(5, 0, "POST", "/shed3", &[("content-type", "application/grpc")]).await;
    let head = frames.next_of(HEADERS).await;
    assert_eq!((head.stream, status(&head.payload), head.flags & END_STREAM), (5, 200, END_STREAM));
    assert_eq!(rig.logged(|line| line["path"] == "/shed3").await["status"], 503, "UNAVAILABLE for gRPC");
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"overload\"}"), 3);

    tell.send_replace(true);
    assert_eq!(held.answer(false).await.text(), "held", "those under way go on");
    let data = frames.next_of(DATA).await;
    assert_eq!((data.stream, &*data.payload), (1, &b"held"[..]));
    rig.until("the end", |rig| rig.metric("starlock_requests_in_flight") == 0).await;
    assert_eq!(client.get("a.test", "/").await.text(), "ok", "and there is room again");
}

#[tokio::test]
async fn what_is_held_for_slow_clients_and_servers_has_a_cap() {
    let flood = endless();
    let (tell, told) = watch::channel(false);
    let deaf = Server::raw(move |mut stream| {
        let mut told = told.clone();
        async move {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = told.wait_for(|go| *go).await;
        }
    });
    let rig = Plan::tls()
        .forward("a.test/flood", flood.address)
        .forward("a.test/deaf", deaf.address)
        .respond("a.test", 200, Some("ok"))
        .with(|plan| plan.listen.limits.buffered = Some(50_000))
        .start()
        .await;
    let buffered = |rig: &Rig| rig.metric("starlock_buffered_bytes");
    assert_eq!(buffered(&rig), 0);

    // A client of HTTP/1 that does not read.
    let mut one = rig.connect_tls("a.test").await;
    one.send("GET /flood HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    refused_at_last(&rig, "a client that does not read").await;
    drop(one);
    rig.until("it is let go", |rig| buffered(rig) == 0).await;
    assert_eq!(rig.connect_tls("a.test").await.get("a.test", "/").await.text(), "ok");

    // A stream of HTTP/2 whose window is used up.
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    frames.more(0, 1_000_000).await;
    frames.request(1, END_STREAM, "GET", "/flood", &[]).await;
    refused_at_last(&rig, "a stream that is stalled").await;
    frames.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]).await;
    rig.until("it is let go", |rig| buffered(rig) == 0).await;

    // A server that does not take what a client sends.
    let (mut upload, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    upload.request(1, 0, "POST", "/deaf", &[]).await;
    let pump = async {
        for _ in 0..15 {
            upload.send(DATA, 0, 1, &[0; 16_384]).await;
        }
        loop {
            let more = upload.next_of(WINDOW_UPDATE).await;
            if more.stream == 1 {
                for _ in 0..u32::from_be_bytes(more.payload.try_into().unwrap()) / 16_384 {
                    upload.send(DATA, 0, 1, &[0; 16_384]).await;
                }
            }
        }
    };
    tokio::select! {
        () = pump => {}
        () = refused_at_last(&rig, "a server that does not read") => {}
    }
    tell.send_replace(true);
    rig.until("it is let go", |rig| buffered(rig) == 0).await;
    assert_eq!(rig.connect_tls("a.test").await.get("a.test", "/").await.text(), "ok");
}

#[test]
fn that_nobody_can_come_in_is_said_once() {
    let (server, tell) = held();
    let starlock = Starlock::start(&format!(
        "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\n[limits]\nconnections = 1\n[routes]\n\"a.test\" = \"http://{}\"\n",
        server.address
    ));
    use std::io::{Read, Write};
    let mut busy = TcpStream::connect(starlock.address("http")).unwrap();
    busy.write_all(ASK.as_bytes()).unwrap();
    let said = |starlock: &Starlock| starlock.log().matches("every connection is taken").count();
    eventually("it is said", || (said(&starlock) > 0).then_some(()));
    assert!(starlock.log().contains("limits.connections"), "and what to do");
    tell.send_replace(true);
    let mut answer = [0; 12];
    busy.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(said(&starlock), 1);
}
