//! HTTP/2 from clients, HTTP/1.1 to servers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use starlock::task::{Shutdown, Supervisor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::PATIENCE;
use crate::support::h2::{self, DATA, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM};
use crate::support::rig::{Plan, Rig};
use crate::support::server::{Body, Server, full};

/// Runs hyper's own tasks.
#[derive(Clone)]
struct Tasks(Supervisor);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Some(future);
        self.0.spawn("h2".into(), starlock::task::OnExit::Done, move |_| {
            let future = future.take();
            async move {
                if let Some(future) = future {
                    future.await;
                }
            }
        });
    }
}

async fn connect(rig: &Rig, name: &str) -> SendRequest<Body> {
    let tasks = Tasks(Supervisor::new(Shutdown::new()));
    let stream = TokioIo::new(rig.tls(name, "h2").await);
    let (sender, connection) = http2::handshake(tasks.clone(), stream).await.unwrap();
    hyper::rt::Executor::execute(&tasks, async {
        let _ = connection.await;
    });
    sender
}

fn get(url: &str) -> Request<Body> {
    Request::get(url).body(full("")).unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_stream_becomes_a_request_of_its_own() {
    let server = Server::echo();
    let rig = Plan::tls().forward("a.test", server.address).start().await;
    let mut sender = connect(&rig, "a.test").await;
    let request = Request::post("https://a.test/x?y")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(Full::new(Bytes::from("hello")).boxed_unsync())
        .unwrap();
    let answer = text(sender.send_request(request).await.unwrap()).await;
    assert_eq!(
        answer,
        "POST /x?y HTTP/1.1\nconnection: te\ncontent-length: 5\ncookie: a=1; b=2\n\
         forwarded: for=127.0.0.1;host=\"a.test\";proto=https\nhost: a.test\nte: trailers\nvia: 2.0 starlock\n\
         x-forwarded-for: 127.0.0.1\nx-forwarded-host: a.test\nx-forwarded-proto: https\nx-real-ip: 127.0.0.1\n\nhello"
    );
    let line = rig.logged(|line| line["path"] == "/x?y").await;
    assert_eq!(
        (&line["protocol"], &line["tls"], &line["host"]),
        (&"HTTP/2".into(), &true.into(), &"a.test".into())
    );
    let answers = join_all((0..100).map(|n| {
        let mut sender = sender.clone();
        async move { text(sender.send_request(get(&format!("https://a.test/{n}"))).await.unwrap()).await }
    }))
    .await;
    for (n, answer) in answers.iter().enumerate() {
        assert!(answer.starts_with(&format!("GET /{n} HTTP/1.1\n")), "{answer}");
    }
    let listener = rig.https();
    assert_eq!(
        rig.metric(&format!("starlock_connections_open{{listener=\"{listener}\",protocol=\"h2\"}}")),
        1
    );
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let server = Server::http(|request| async move {
        let body = request.into_body().collect().await.unwrap();
        let mut trailers = body.trailers().cloned().unwrap_or_default();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = [Ok(Frame::data(body.to_bytes())), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        Response::builder().header("trailer", "grpc-status, x-sum").body(body).unwrap()
    });
    let rig = Plan::tls().forward("a.test", server.address).start().await;
    let mut sender = connect(&rig, "a.test").await;
    let mut sum = HeaderMap::new();
    sum.insert("x-sum", "42".parse().unwrap());
    let frames = [Ok(Frame::data(Bytes::from("hello"))), Ok(Frame::trailers(sum))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let request = Request::post("https://a.test/").header("te", "trailers").header("trailer", "x-sum");
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().unwrap();
    assert!(trailers["x-sum"] == "42" && trailers["grpc-status"] == "0", "{trailers:?}");
    assert_eq!(body.to_bytes(), "hello");
}

#[tokio::test]
async fn a_host_that_the_certificate_does_not_cover_is_misdirected() {
    let rig = Plan::tls().respond("*", 200, Some("ok")).start().await;
    let mut sender = connect(&rig, "a.test").await;
    for (host, status) in [
        ("a.test", 200),
        ("b.test", 200),
        ("x.wild.test", 200),
        ("127.0.0.1", 200),
        ("c.test", 421),
        ("y.x.wild.test", 421),
    ] {
        let response = sender.send_request(get(&format!("https://{host}/"))).await.unwrap();
        assert_eq!(response.status(), status, "{host}");
    }
    let mut stream = rig.tls("a.test", "http/1.1").await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: c.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"misdirected\"}"), 3);
}

#[tokio::test]
async fn large_heads_are_refused_and_crumbs_count_once() {
    let rig = Plan::tls().respond("*", 200, Some("ok")).start().await;
    let mut sender = connect(&rig, "a.test").await;
    let mut status = async |count: usize, name: &str, value: &str| {
        let mut request = get("https://a.test/");
        for n in 0..count {
            let name = if name == "cookie" { name.to_owned() } else { format!("{name}{n}") };
            request.headers_mut().append(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        sender.send_request(request).await.unwrap().status().as_u16()
    };
    assert_eq!(status(99, "x-", "1").await, 200);
    assert_eq!(status(101, "x-", "1").await, 431);
    assert_eq!(status(300, "cookie", "a=1").await, 200);
    assert_eq!(status(1, "x-", &"y".repeat(8 * 1024)).await, 200);
    let (mut frames, settings) = Frames::begin(rig.tls("a.test", "h2").await).await;
    // Streams, stream window, largest header list: what the clients are told.
    for setting in [(3, 100), (4, 256 * 1024), (6, 32 * 1024)] {
        assert!(settings.contains(&setting), "{settings:?}");
    }
    let (half, path) = ("y".repeat(10_000), format!("/{}", "x".repeat(9_000)));
    frames.request(1, END_STREAM, "GET", "/", &[("x", &half)]).await;
    assert_eq!(frames.next_of(HEADERS).await.payload[0], 0x88, ":status 200 of the static table");
    frames.request(3, END_STREAM, "GET", &path, &[]).await;
    frames.end_of(3).await;
    rig.logged(|line| line["status"] == 414).await;
}

#[tokio::test]
async fn a_body_must_be_as_long_as_announced() {
    let server = Server::echo();
    let rig = Plan::tls().forward("a.test", server.address).start().await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    frames.request(1, 0, "POST", "/short", &[("content-length", "10")]).await;
    frames.send(DATA, END_STREAM, 1, b"four").await;
    assert_eq!(frames.end_of(1).await.kind, RST_STREAM);
    frames.request(3, 0, "POST", "/long", &[("content-length", "2")]).await;
    frames.send(DATA, END_STREAM, 3, b"four").await;
    assert_eq!(frames.end_of(3).await.kind, RST_STREAM);
    frames.request(11, END_STREAM, "POST", "/none", &[("content-length", "2")]).await;
    assert_eq!(frames.end_of(11).await.kind, RST_STREAM);
    frames.request(13, 0, "POST", "/right", &[("content-length", "4")]).await;
    frames.send(DATA, END_STREAM, 13, b"four").await;
    assert_eq!(frames.end_of(13).await.kind, DATA);
    rig.logged(|line| line["path"] == "/right" && line["status"] == 200).await;
    frames.request(15, END_STREAM, "GET", "/two", &[("host", "b.test")]).await;
    frames.end_of(15).await;
    rig.logged(|line| line["path"] == "/two" && line["reason"] == "bad_host").await;
    frames.request(17, END_STREAM, "TRACE", "/trace", &[]).await;
    frames.end_of(17).await;
    rig.logged(|line| line["path"] == "/trace" && line["status"] == 405).await;
}

#[tokio::test]
async fn a_stream_that_stalls_ends_alone() {
    let server = Server::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
        while stream.write_all(&[0; 65_536]).await.is_ok() {}
    });
    let rig = Plan::tls()
        .forward("a.test", server.address)
        .respond("a.test/ok", 200, Some("ok"))
        .with(|plan| plan.listen.timeouts.write = Duration::from_millis(300))
        .start()
        .await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    // Room on the connection, but none on the stream beyond its first window.
    frames.more(0, 1_000_000).await;
    frames.request(1, END_STREAM, "GET", "/flood", &[]).await;
    let end = frames.end_of(1).await;
    assert_eq!((end.kind, end.payload), (RST_STREAM, vec![0, 0, 0, 8]), "CANCEL");
    frames.request(3, END_STREAM, "GET", "/ok", &[]).await;
    assert_eq!(frames.end_of(3).await.payload, b"ok");
    assert_eq!(rig.logged(|line| line["path"] == "/flood").await["reason"], "client_closed");
}

const SMALL_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 1];

#[tokio::test]
async fn what_was_handed_over_to_its_end_is_watched_until_the_client_takes_it() {
    let text = "an answer in one piece";
    let rig = Plan::tls()
        .respond("a.test", 200, Some(text))
        .with(|plan| plan.listen.timeouts.write = Duration::from_secs(2))
        .start()
        .await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    frames.send(h2::SETTINGS, 0, 0, &SMALL_WINDOW).await;
    for n in 0..20 {
        frames.request(2 * n + 1, END_STREAM, "GET", "/stuck", &[]).await;
    }
    for n in 0..20 {
        let end = frames.end_of(2 * n + 1).await;
        assert_eq!((end.kind, end.payload), (RST_STREAM, vec![0, 0, 0, 8]), "CANCEL of {n}");
    }
    rig.until("nothing is held", |rig| rig.traffic.load().buffered() == 0).await;
    // One byte of room more than it has taken yet, and so on: it moves.
    frames.request(41, END_STREAM, "GET", "/", &[]).await;
    let mut read = Vec::new();
    while read.len() < text.len() {
        let frame = frames.next().await.expect("the connection ended");
        assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
        if frame.kind == DATA {
            read.extend(frame.payload);
            frames.more(41, 1).await;
        }
    }
    assert_eq!(read, text.as_bytes());
}

#[tokio::test]
async fn a_client_that_takes_little_at_a_time_is_let_be() {
    let server = Server::http(|_| async { Response::new(full(vec![b'x'; 1 << 20])) });
    let rig = Plan::tls()
        .forward("a.test", server.address)
        .with(|plan| plan.listen.timeouts.write = Duration::from_secs(3))
        .start()
        .await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    frames.more(0, 10_000_000).await;
    frames.send(h2::SETTINGS, 0, 0, &SMALL_WINDOW).await;
    frames.request(1, END_STREAM, "GET", "/", &[]).await;
    let mut taken = 0;
    // Two pieces of usual size at a moderate pace, then as slowly as a kibibyte in a third of the time that it has.
    for (times, pause) in [(40, 20), (5, 1000)] {
        for _ in 0..times {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            frames.more(1, 1024).await;
            let data = frames.next_of(DATA).await;
            taken += data.payload.len();
        }
    }
    assert!(taken > 40 * 1024, "{taken}");
    let end = frames.end_of(1).await;
    assert_eq!((end.kind, end.payload), (RST_STREAM, vec![0, 0, 0, 8]), "until it stops");
}

#[tokio::test]
async fn what_a_client_begins_to_say_it_says_in_time() {
    let (ask, asked) = tokio::sync::watch::channel(false);
    let server = Server::http(move |_| {
        let mut asked = asked.clone();
        async move {
            asked.wait_for(|go| *go).await.unwrap();
            Response::new(full("at last"))
        }
    });
    let rig = Plan::tls()
        .forward("a.test", server.address)
        .with(|plan| plan.listen.timeouts.header = Duration::from_millis(300))
        .start()
        .await;
    let (mut waiting, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    waiting.request(1, END_STREAM, "GET", "/", &[]).await;
    deaf_has_it(&server).await;
    let head = h2::request(1, END_STREAM, "GET", "/", &[]);
    let open_block = {
        let mut open = head.clone();
        open[4] &= !h2::END_HEADERS;
        open
    };
    let continued = [open_block.clone(), h2::frame(h2::CONTINUATION, 0, 1, b"")].concat();
    for (what, bytes) in [
        ("half a frame", &head[..head.len() - 1]),
        ("the head of a frame", &head[..8]),
        ("an open block", &open_block),
        ("a block that goes on", &continued),
        ("a ping", &h2::frame(h2::PING, 0, 0, &[0; 8])[..12]),
    ] {
        let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
        let start = std::time::Instant::now();
        frames.send_at_once(bytes).await;
        while frames.next().await.is_some() {}
        let time = start.elapsed();
        assert!(time >= Duration::from_millis(300) && time < Duration::from_secs(5), "{what}: {time:?}");
    }
    let mut frames = Frames::over(rig.tls("a.test", "h2").await);
    assert!(frames.try_send(&h2::PREFACE[..20]).await);
    while frames.next().await.is_some() {}
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"header_timeout\"}"), 6);
    // Who has said nothing that has to be gone on with stays.
    let (mut quiet, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    let end = async { while quiet.any().await.is_some() {} };
    assert!(tokio::time::timeout(Duration::from_millis(600), end).await.is_err());
    ask.send_replace(true);
    assert_eq!(waiting.end_of(1).await.payload, b"at last");
    quiet.request(1, END_STREAM, "GET", "/", &[]).await;
    assert_eq!(quiet.end_of(1).await.payload, b"at last");
}

#[tokio::test]
async fn a_client_that_takes_nothing_from_its_socket_is_dropped() {
    let server = Server::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
        while stream.write_all(&[0; 65_536]).await.is_ok() {}
    });
    let rig = Plan::tls()
        .forward("a.test", server.address)
        .with(|plan| plan.listen.timeouts.write = Duration::from_millis(300))
        .start()
        .await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    // Its windows are as wide as can be: what stops is the socket.
    frames.more(0, 1 << 30).await;
    frames.send(h2::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]).await;
    frames.request(1, END_STREAM, "GET", "/flood", &[]).await;
    rig.until("the end", |rig| rig.traffic.open_connections() == 0).await;
    assert_eq!(rig.logged(|line| line["path"] == "/flood").await["reason"], "client_closed");
    let dropped = rig.metric("starlock_rejected_total{reason=\"write_timeout\"}");
    assert!(dropped <= 1, "{dropped}: by the socket, or by the stream");
    rig.until("nothing is held", |rig| rig.traffic.load().buffered() == 0).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408_and_the_connection_goes_on() {
    let server = Server::echo();
    let rig = Plan::tls()
        .forward("a.test", server.address)
        .with(|plan| plan.proxy.body_timeout = Duration::from_secs(2))
        .start()
        .await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    frames.request(1, 0, "PUT", "/stuck", &[("content-length", "10")]).await;
    frames.send(DATA, 0, 1, b"half").await;
    let head = frames.next_of(HEADERS).await;
    assert_eq!((head.stream, h2::status(&head.payload)), (1, 408));
    assert_eq!(rig.logged(|line| line["path"] == "/stuck").await["reason"], "client_body_timeout");
    frames.request(3, 0, "PUT", "/slow", &[("content-length", "12")]).await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        frames.send(DATA, 0, 3, b"x").await;
    }
    frames.send(DATA, END_STREAM, 3, b"").await;
    loop {
        let frame = frames.next().await.expect("the connection ended");
        if frame.stream == 3 && frame.kind == HEADERS {
            assert_eq!(h2::status(&frame.payload), 200);
            break;
        }
    }
}

#[tokio::test]
async fn one_stalled_upload_does_not_block_the_others() {
    // Reads the head and nothing else, for as long as the test lasts.
    let deaf = Server::raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        std::future::pending::<()>().await;
    });
    let server = Server::echo();
    let rig =
        Plan::tls().forward("a.test", server.address).forward("a.test/deaf", deaf.address).start().await;
    let mut sender = connect(&rig, "a.test").await;
    let endless = futures_util::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 16_384]))));
    let stuck = Request::put("https://a.test/deaf").body(StreamBody::new(endless).boxed_unsync()).unwrap();
    let stuck = sender.send_request(stuck);
    let others = async {
        let mut sender = sender.clone();
        deaf_has_it(&deaf).await;
        for n in 0..20 {
            let body = Full::new(Bytes::from(vec![b'x'; 100_000])).boxed_unsync();
            let request = Request::put(format!("https://a.test/{n}")).body(body).unwrap();
            let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("blocked");
            let status = answer.unwrap().status();
            if status != 200 {
                panic!("{status}: {}", rig.logged(|line| line["status"] == status.as_u16()).await);
            }
        }
    };
    tokio::select! {
        _ = stuck => panic!("nobody answers that"),
        () = others => {}
    }
}

async fn deaf_has_it(server: &Server) {
    let start = std::time::Instant::now();
    while server.connections() == 0 {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_reset_stream_is_a_client_that_left() {
    let server = Server::raw(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let rig =
        Plan::tls().forward("a.test", server.address).respond("a.test/ok", 200, Some("ok")).start().await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    frames.request(1, END_STREAM, "GET", "/left", &[]).await;
    deaf_has_it(&server).await;
    frames.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]).await;
    assert_eq!(rig.logged(|line| line["path"] == "/left").await["status"], 499);
    frames.request(3, END_STREAM, "GET", "/ok", &[]).await;
    assert_eq!(frames.end_of(3).await.payload, b"ok");
    frames.request(5, END_STREAM, "GET", "/gone", &[]).await;
    rig.until("the request", |_| server.connections() == 2).await;
    drop(frames);
    assert_eq!(rig.logged(|line| line["path"] == "/gone").await["status"], 499);
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go() {
    let rig = Plan::tls()
        .respond("a.test", 200, Some("ok"))
        .with(|plan| plan.listen.timeouts.idle = Duration::from_millis(300))
        .start()
        .await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    // It is idle from its answer on, which may be heard late.
    let start = std::time::Instant::now();
    frames.request(1, END_STREAM, "GET", "/", &[]).await;
    frames.end_of(1).await;
    assert_eq!(frames.next_of(GOAWAY).await.payload[4..8], [0; 4], "NO_ERROR");
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
    while frames.next().await.is_some() {}
    drop(frames);
    rig.until("the end", |rig| rig.traffic.open_connections() == 0).await;
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let rig = Plan::tls().respond("a.test", 200, Some("ok")).start().await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    let flood: Vec<u8> = (0..200)
        .flat_map(|n| {
            let mut pair = h2::request(2 * n + 1, END_STREAM, "GET", "/", &[]);
            pair.extend(h2::frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]));
            pair
        })
        .collect();
    frames.send_at_once(&flood).await;
    assert_eq!(frames.next_of(GOAWAY).await.payload[4..8], [0, 0, 0, 11], "ENHANCE_YOUR_CALM");
    rig.until("the end", |rig| rig.traffic.open_connections() == 0).await;
}

#[tokio::test]
async fn a_new_certificate_leaves_connections_alone() {
    let mut rig = Plan::tls().respond("*", 200, Some("ok")).start().await;
    let mut sender = connect(&rig, "a.test").await;
    sender.send_request(get("https://a.test/")).await.unwrap();
    rig.renew(&["a.test", "new.test"]);
    assert_eq!(sender.send_request(get("https://a.test/")).await.unwrap().status(), 200);
    assert_eq!(
        sender.send_request(get("https://new.test/")).await.unwrap().status(),
        421,
        "it has the old one"
    );
    let mut sender = connect(&rig, "new.test").await;
    assert_eq!(sender.send_request(get("https://new.test/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_drain_says_goaway_and_lets_streams_end() {
    let (ask, asked) = tokio::sync::watch::channel(false);
    let server = Server::http(move |_| {
        let mut asked = asked.clone();
        async move {
            asked.wait_for(|go| *go).await.unwrap();
            Response::new(full("at last"))
        }
    });
    let rig = Plan::tls().forward("a.test", server.address).start().await;
    let (mut frames, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    frames.request(1, END_STREAM, "GET", "/slow", &[]).await;
    deaf_has_it(&server).await;
    let drained = rig.traffic.drain(Duration::from_secs(15));
    let client = async {
        frames.next_of(GOAWAY).await;
        ask.send(true).unwrap();
        assert_eq!(frames.end_of(1).await.payload, b"at last");
        drop(frames);
    };
    let (drained, ()) = tokio::join!(drained, client);
    assert_eq!(drained.cut, 0);
}
