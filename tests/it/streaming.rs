//! Answers and bodies that take their time: events, 100-continue, HEAD, channels, HTTP/2 in clear.

use std::io;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::support::client::{PATIENCE, Raw};
use crate::support::h2::{self, Frames, GOAWAY};
use crate::support::rig::Plan;
use crate::support::server::{Server, full};

fn h2c(server: &Server) -> Plan {
    let mut plan = Plan::toml(&format!("[listen]\nh2c = true\n[routes]\n\"a.test\" = \"{}\"", server.url()));
    plan.listen.timeouts.header = Duration::from_secs(1);
    plan
}

#[tokio::test]
async fn events_go_on_over_a_reload_that_takes_their_server_away() {
    let (tell, told) = tokio::sync::watch::channel(0);
    let server = Server::raw(move |mut stream| {
        let mut told = told.clone();
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for n in 1..=3 {
                told.wait_for(|so_far| *so_far >= n).await.unwrap();
                stream.write_all(format!("9\r\ndata: {n}\n\n\r\n").as_bytes()).await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    });
    let mut rig = Plan::tls().forward("a.test", server.address).start().await;
    let mut h1 = rig.connect_tls("a.test").await;
    h1.send("GET /events HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (mut h2, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    h2.request(1, h2::END_STREAM, "GET", "/events", &[]).await;
    tell.send_replace(1);
    assert_eq!(h2.next_of(h2::DATA).await.payload, b"data: 1\n\n");
    rig.load(&Plan::tls().respond("b.test", 200, None)).await;
    h2.request(3, h2::END_STREAM, "GET", "/", &[]).await;
    assert_eq!(h2::status(&h2.next_of(h2::HEADERS).await.payload), 404, "it was noticed");
    // Each worker notices it by itself.
    for _ in 0..8 {
        assert_eq!(rig.connect_tls("a.test").await.get("a.test", "/").await.status, 404);
    }
    tell.send_replace(3);
    let mut events = Vec::new();
    while events.len() < 18 {
        let data = h2.next_of(h2::DATA).await;
        if data.stream == 1 {
            events.extend(data.payload);
        }
    }
    assert_eq!(events, b"data: 2\n\ndata: 3\n\n");
    assert_eq!(h1.answer(false).await.text(), "data: 1\n\ndata: 2\n\ndata: 3\n\n");
}

#[tokio::test]
async fn each_event_is_there_before_the_next_one_is_made() {
    let (told, tell) = mpsc::channel::<()>(1);
    let tell = std::sync::Arc::new(tokio::sync::Mutex::new(tell));
    let server = Server::raw(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut seen).await.unwrap();
            }
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for n in 0..5 {
                let event = format!("data: {n}\n\n");
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.unwrap();
                tell.lock().await.recv().await;
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    });
    let rig = Plan::tls().forward("a.test", server.address).start().await;
    let mut tls = rig.tls("a.test", "http/1.1").await;
    tls.write_all(b"GET /events HTTP/1.1\r\nHost: a.test\r\nAccept: text/event-stream\r\n\r\n")
        .await
        .unwrap();
    let mut seen = Vec::new();
    for n in 0..5 {
        let wanted = format!("data: {n}\n\n");
        let wait = async {
            while !String::from_utf8_lossy(&seen).contains(&wanted) {
                assert!(tls.read_buf(&mut seen).await.unwrap() > 0);
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the event comes although nothing follows it");
        told.send(()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_sends_its_body_when_the_server_takes_it() {
    let server = Server::echo();
    let denied =
        Plan::toml(&format!("[routes]\n\"a.test\" = {{ to = \"{}\", max_body = \"10B\" }}", server.url()))
            .with(|plan| plan.listen.https.clear());
    let (rig, denied) = (Plan::clear().forward("a.test", server.address).start().await, denied.start().await);
    let curl = |address: std::net::SocketAddr| {
        let output = Command::new("curl")
            .args([
                "-sSv",
                "--http1.1",
                "--expect100-timeout",
                "50",
                "--max-time",
                "20",
                "-H",
                "Host: a.test",
            ])
            .args(["-H", "Expect: 100-continue", "--data", "a body of some length"])
            .arg(format!("http://{address}/"))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let (body, log) = curl(rig.http());
    assert!(log.contains("< HTTP/1.1 100 Continue") && log.contains("< HTTP/1.1 200 OK"), "{log}");
    assert!(body.ends_with("\n\na body of some length") && !body.contains("expect:"), "{body}");
    // Nobody is asked for a body that is refused anyway.
    let (_, log) = curl(denied.http());
    assert!(log.contains("< HTTP/1.1 413") && !log.contains("100 Continue"), "{log}");
    // A server that is not there takes none either.
    let gone =
        Plan::clear().forward("a.test", ([127, 0, 0, 1], crate::support::free_port()).into()).start().await;
    let (_, log) = curl(gone.http());
    assert!(log.contains("< HTTP/1.1 503") && !log.contains("100 Continue"), "{log}");
}

#[tokio::test]
async fn the_answer_to_a_head_keeps_its_length_and_has_no_body() {
    let server = Server::canned("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: \"x\"\r\n\r\n", false);
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let mut client = rig.connect().await;
    for _ in 0..3 {
        let answer = client.ask("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!((answer.status, answer.field("content-length")), (200, Some("12345")));
    }
    let mut wrong = rig.connect().await;
    let refused = wrong.ask("HEAD / HTTP/1.1\r\nHost: b.test\r\n\r\n").await;
    assert_eq!(refused.status, 404);
    assert!(refused.field("content-length").is_some_and(|length| length != "0"), "{}", refused.head);
    assert!(wrong.silent(Duration::from_millis(100)).await, "no body follows");
}

#[tokio::test]
async fn http2_in_clear_begins_without_asking_beside_http1() {
    let server = Server::echo();
    let rig = h2c(&server).with(|plan| plan.listen.https.clear()).start().await;
    let stream = TcpStream::connect(rig.http()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://a.test/two").body(Full::<bytes::Bytes>::default()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"GET /two HTTP/1.1\n"), "{text:?}");
    assert_eq!(rig.logged(|line| line["path"] == "/two").await["protocol"], "HTTP/2");
    // Methods that begin like the preface, in single bytes.
    let mut slow = TcpStream::connect(rig.http()).await.unwrap();
    slow.set_nodelay(true).unwrap();
    for byte in b"PUT /one HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n" {
        slow.write_all(&[*byte]).await.unwrap();
    }
    assert!(Raw::over(slow).answer(false).await.text().starts_with("PUT /one "));
    // A client may take its time before the first byte, and not after it.
    let (mut silent, mut slow) = (rig.connect().await, rig.connect().await);
    let start = Instant::now();
    slow.send("P").await;
    assert!(slow.closed().await && start.elapsed() >= Duration::from_secs(1));
    assert!(silent.silent(Duration::from_millis(1)).await);
    assert_eq!(silent.get("a.test", "/").await.status, 200);
    drop((silent, sender));
    // Without the word for it, the preface is no HTTP/1.1.
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let mut client = rig.connect().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(client.closed().await, "no word of either version");
}

#[tokio::test]
async fn silent_connections_of_an_h2c_listener_end_with_the_process_and_by_the_idle_time() {
    let server = Server::echo();
    let plan = |idle| {
        let mut plan = h2c(&server).with(|plan| plan.listen.https.clear());
        plan.listen.timeouts.idle = idle;
        plan
    };
    let rig = plan(Duration::from_millis(300)).start().await;
    assert!(rig.connect().await.closed().await, "nothing was said");
    let rig = plan(Duration::from_secs(600)).start().await;
    let _silent = rig.connect().await;
    rig.until("it is there", |rig| rig.traffic.open_connections() == 1).await;
    assert_eq!(rig.traffic.drain(Duration::from_secs(20)).await.cut, 0);
}

#[tokio::test]
async fn a_grpc_channel_may_idle_and_others_may_not() {
    let server = Server::http(|_| async { http::Response::new(full("")) });
    let mut plan = Plan::tls().forward("a.test", server.address);
    plan.listen.timeouts.idle = Duration::from_millis(400);
    let rig = plan.start().await;
    let (mut grpc, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    let fields = [("content-type", "application/grpc+proto"), ("te", "trailers")];
    grpc.request(1, h2::END_STREAM, "POST", "/service/method", &fields).await;
    grpc.end_of(1).await;
    let (mut plain, _) = Frames::begin(rig.tls("a.test", "h2").await).await;
    plain.request(1, h2::END_STREAM, "GET", "/", &[]).await;
    plain.end_of(1).await;
    plain.next_of(GOAWAY).await;
    grpc.request(3, h2::END_STREAM, "POST", "/service/method", &fields).await;
    let end = grpc.end_of(3).await;
    assert_ne!(end.kind, h2::RST_STREAM, "{end:?}");
}

/// A socket that remembers what came in.
struct Tapped(TcpStream, Arc<Mutex<Vec<u8>>>);

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(cx, buf);
        self.1.lock().unwrap().extend(&buf.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The lengths of the TLS records in `bytes`.
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        lengths.push(length);
        bytes = &rest[length..];
    }
    lengths
}

#[tokio::test]
async fn answers_that_are_ready_together_leave_in_one_record() {
    const ANSWERS: u32 = 12;
    let body = "b".repeat(1000);
    let rig = Plan::tls().respond("a.test", 200, Some(&body)).start().await;
    let seen = Arc::default();
    let stream = Tapped(TcpStream::connect(rig.https()).await.unwrap(), Arc::clone(&seen));
    let (mut frames, _) = Frames::begin(rig.tls_over(stream, "a.test", "h2").await).await;
    let requests = (0..ANSWERS).flat_map(|n| h2::request(2 * n + 1, h2::END_STREAM, "GET", "/", &[]));
    frames.send_at_once(&requests.collect::<Vec<_>>()).await;
    for _ in 0..ANSWERS {
        while frames.next_of(h2::DATA).await.flags & h2::END_STREAM == 0 {}
    }
    let records = records(&seen.lock().unwrap());
    // The others hold the handshake, session tickets and SETTINGS.
    let full = records.iter().filter(|length| **length > 1000 * ANSWERS as usize).count();
    assert_eq!(full, 1, "{records:?}");
}
