//! Connections and streams that change their protocol: only when the server has, and then byte by byte.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::alone;
use crate::support::client::{PATIENCE, Raw};
use crate::support::h2::Frames;
use crate::support::rig::{Plan, Rig};
use crate::support::server::{Server, answer_h2};
use crate::support::starlock::{Starlock, local_root};

const ASK: &str = "GET /chat?x HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const YES: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

async fn mirror<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut bytes).await {
        if stream.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
    let _ = stream.write_all(b"bye").await;
}

/// Switches as it is asked, says the request's head first, and then sends everything back.
fn switching() -> Server {
    Server::raw(switch)
}

async fn switch<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let Some(head) = read_head(&mut stream).await else { return };
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
    let accept = key.map_or_else(String::new, |key| {
        use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
        use base64::Engine;
        let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        base64::engine::general_purpose::STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
    });
    let answer = YES.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &accept);
    // The first bytes of the new protocol in the same segment as the 101.
    stream.write_all(format!("{answer}{head}").as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    mirror(&mut stream).await;
}

/// Reads until `end` has come.
async fn until<S: tokio::io::AsyncRead + Unpin>(stream: &mut S, end: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    let wait = async {
        while !seen.ends_with(end) {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it does not come");
    seen
}

#[tokio::test]
async fn a_connection_becomes_a_tunnel_when_the_server_has_switched() {
    let server = switching();
    let rig = Plan::tls().forward("a.test", server.address).start().await;
    let mut tls = rig.tls("a.test", "http/1.1").await;
    // The client does not wait for the 101.
    tls.write_all(format!("{ASK}early").as_bytes()).await.unwrap();
    let seen = String::from_utf8(until(&mut tls, b"early").await).unwrap();
    let (answer, rest) = seen.split_once("\r\n\r\n").unwrap();
    let answer = answer.to_lowercase();
    for line in [
        "http/1.1 101 switching protocols",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-protocol: chat",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
    ] {
        assert!(answer.lines().any(|l| l == line), "{line} is not in {answer}");
    }
    let (asked, rest) = rest.split_once("\r\n\r\n").unwrap();
    for line in
        ["GET /chat?x HTTP/1.1", "connection: Upgrade", "upgrade: WebSocket", "sec-websocket-version: 13"]
    {
        assert!(asked.lines().any(|l| l == line), "{line} is not in {asked}");
    }
    assert_eq!(rest, "early");
    let more: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 11) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(tls);
    let write = async {
        writer.write_all(&more).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let mut back = Vec::new();
        reader.read_to_end(&mut back).await.unwrap();
        back
    };
    let ((), back) = tokio::join!(write, read);
    assert!(back.ends_with(b"bye") && back[..back.len() - 3] == more, "{} bytes came back", back.len());
    let line = rig.logged(|line| line["path"] == "/chat?x").await;
    assert_eq!((&line["status"], &line["method"]), (&101.into(), &"GET".into()));
    assert_eq!(line["received"].as_u64(), Some(5 + more.len() as u64));
    assert_eq!(line["sent"].as_u64(), Some((asked.len() + 4 + 5 + more.len() + 3) as u64));
    assert!(line.get("reason").is_none(), "{line}");
    rig.until("nothing is left", |rig| rig.traffic.open_connections() == 0).await;
    let in_flight =
        format!("starlock_upstream_requests_in_flight{{upstream=\"to-a.test\",server=\"{}\"}}", server.url());
    assert_eq!(rig.metric(&in_flight), 0);
}

#[tokio::test]
async fn servers_behind_tls_and_behind_sockets_switch_too() {
    // It would rather speak HTTP/2, which does not switch.
    let behind_tls = Server::tls(&["h2", "http/1.1"], switch);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(switch(stream));
        }
    });
    for (url, more) in [
        (format!("https://{}", behind_tls.address), "tls = { danger_skip_verify = true }"),
        (format!("unix:{}", path.display()), ""),
    ] {
        let rig = Plan::toml(&format!(
            "listen.https = [\"[::]:443\"]\n[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\nservers = [\"{url}\"]\n{more}"
        ))
        .start()
        .await;
        let mut plain = rig.tls("a.test", "http/1.1").await;
        plain.write_all(format!("{ASK}first").as_bytes()).await.unwrap();
        let seen = String::from_utf8(until(&mut plain, b"first").await).unwrap();
        assert!(seen.starts_with("HTTP/1.1 101 "), "{url}: {seen}");
        let mut stream = switched(h2(&rig).await.send_request(extended("websocket")).await.unwrap()).await;
        stream.write_all(b"second").await.unwrap();
        until(&mut stream, b"second").await;
    }
}

#[tokio::test]
async fn a_server_of_http2_alone_cannot_switch_and_is_no_worse_for_being_asked() {
    let (one, two) = (
        Server::tls(&["h2"], |stream| answer_h2(stream, 204)),
        Server::tls(&["h2"], |stream| answer_h2(stream, 204)),
    );
    for http in ["auto", "2"] {
        let rig = Plan::toml(&format!(
            "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [\"https://{}\", \"https://{}\"]\n\
             tls = {{ danger_skip_verify = true, http = \"{http}\" }}\npassive = {{ connect_errors = 1, failures = 1 }}\n",
            one.address, two.address
        ))
        .start()
        .await;
        let mut client = rig.connect().await;
        for _ in 0..10 {
            assert_eq!(client.ask(ASK).await.status, 502);
        }
        assert_eq!(rig.logged(|line| line["status"] == 502).await["reason"], "upstream_no_upgrade");
        for server in [&one, &two] {
            assert_eq!(rig.endpoint(server.address).condition().as_str(), "up", "{http}");
        }
        assert_eq!(client.get("a.test", "/").await.status, 204);
    }
}

#[tokio::test]
async fn a_server_that_declines_has_answered_and_what_follows_is_the_next_request() {
    let server = Server::echo();
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let mut client = rig.connect().await;
    // CVE-2026-2833: these must be seen as a request of its own, with a path of its own.
    client.send(format!("{ASK}GET /smuggled HTTP/1.1\r\nHost: b.test\r\n\r\n")).await;
    let first = client.answer(false).await;
    assert_eq!(first.status, 200);
    assert!(first.text().contains("\nupgrade: WebSocket\n"), "it was asked: {}", first.text());
    assert_eq!(first.field("upgrade"), None);
    assert_eq!(client.answer(false).await.status, 404, "b.test has no route");
    assert_eq!(client.get("a.test", "/after").await.status, 200, "the connection goes on");
    assert_eq!(server.connections(), 1, "and so does the one to the server");
    // Asked for by HTTP/1.0, with a body, or for HTTP itself: a request like any other.
    for request in [
        ASK.replace("HTTP/1.1", "HTTP/1.0"),
        ASK.replace("WebSocket\r\n", "h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n")
            .replace("Upgrade\r\n", "Upgrade, HTTP2-Settings\r\n"),
        ASK.replace("\r\n\r\n", "\r\nContent-Length: 2\r\n\r\nab"),
        ASK.replace("Upgrade: WebSocket", "Upgrade: websocket, foo"),
        ASK.replace("keep-alive, Upgrade", "keep-alive"),
    ] {
        let mut client = rig.connect().await;
        let answer = client.ask(&request).await;
        let text = answer.text().to_lowercase();
        assert!(
            answer.status == 200 && !text.contains("\nupgrade:") && !text.contains("http2-settings"),
            "{request}: {text}"
        );
    }
    // The end of a connection that once asked in vain is an orderly one.
    let mut client = rig.connect().await;
    let answer = client.ask(ASK.replace("keep-alive, Upgrade", "close, Upgrade")).await;
    assert!(answer.status == 200 && client.closed().await);
}

#[tokio::test]
async fn a_101_for_something_else_is_no_answer() {
    for (answer, asked) in [
        (YES, false),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", true),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n", true),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n", true),
    ] {
        let server = Server::canned(answer, false);
        let rig = Plan::clear().forward("a.test", server.address).start().await;
        let mut client = rig.connect().await;
        let request = if asked { ASK } else { "GET /chat?x HTTP/1.1\r\nHost: a.test\r\n\r\n" };
        let got = client.ask(request).await;
        assert_eq!(got.status, 502, "{answer}");
        assert_eq!(rig.logged(|line| line["path"] == "/chat?x").await["reason"], "upstream_malformed");
        assert_eq!(client.get("b.test", "/").await.status, 404, "the connection is still HTTP");
    }
}

#[tokio::test]
async fn a_tunnel_survives_a_reload_and_ends_when_it_is_silent_or_the_process_goes() {
    let server = switching();
    let plan = |tunnel: u64| {
        Plan::clear()
            .forward("a.test", server.address)
            .with(|plan| plan.proxy.tunnel_timeout = Duration::from_millis(tunnel))
    };
    let mut rig = plan(2_000).start().await;
    let mut client = TcpStream::connect(rig.http()).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    until(&mut client, b"\r\n\r\n").await;
    rig.load(&Plan::clear().respond("b.test", 200, None)).await;
    // The request that notices the reload lets go of servers that are gone.
    assert_eq!(rig.connect().await.get("a.test", "/").await.status, 404);
    let mut back = [0; 4];
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.write_all(b"ping").await.unwrap();
        until(&mut client, b"ping").await;
    }
    assert_eq!(client.read(&mut back).await.unwrap_or(0), 0, "it was silent for too long");
    assert_eq!(rig.logged(|line| line["path"] == "/chat?x").await["reason"], "tunnel_idle");

    let rig = plan(3_600_000).start().await;
    let mut client = TcpStream::connect(rig.http()).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    until(&mut client, b"\r\n\r\n").await;
    let drain = rig.traffic.drain(Duration::from_millis(500));
    let talk = async {
        client.write_all(b"still here").await.unwrap();
        until(&mut client, b"still here").await;
        client.read(&mut back).await.unwrap_or(0)
    };
    let (drained, end) = tokio::join!(drain, talk);
    assert_eq!((drained.cut, end), (1, 0));
    assert_eq!(rig.logged(|line| line["path"] == "/chat?x").await["reason"], "tunnel_cut");
}

#[tokio::test]
async fn a_tunnel_in_a_stream_survives_a_reload() {
    let server = switching();
    let mut rig = Plan::tls().forward("a.test", server.address).start().await;
    let mut sender = h2(&rig).await;
    let mut tunnel = switched(sender.send_request(extended("websocket")).await.unwrap()).await;
    until(&mut tunnel, b"\r\n\r\n").await;
    rig.load(&Plan::tls().respond("b.test", 200, None)).await;
    // The request that notices the reload comes on the same connection; its servers are gone.
    let after = Request::get("https://a.test/").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(after).await.unwrap().status(), 404);
    for _ in 0..3 {
        tunnel.write_all(b"ping").await.unwrap();
        until(&mut tunnel, b"ping").await;
    }
}

#[tokio::test]
async fn whoever_breaks_a_tunnel_breaks_it_for_both() {
    let server = Server::raw(|mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(YES.as_bytes()).await.unwrap();
        let mut byte = [0];
        let _ = stream.read(&mut byte).await;
        stream.set_zero_linger().unwrap(); // reset
    });
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let mut client = Raw::over(TcpStream::connect(rig.http()).await.unwrap());
    client.send(ASK).await;
    assert_eq!(client.answer(false).await.status, 101);
    client.send("x").await;
    client.closed().await;
    assert_eq!(rig.logged(|line| line["path"] == "/chat?x").await["reason"], "tunnel_broken");
}

/// Opens `count` WebSockets, a few at a time, and says something on each.
async fn open<S, F>(count: usize, connect: impl Fn() -> F) -> Vec<S>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    F: Future<Output = S>,
{
    let one = |_| async {
        let mut stream = connect().await;
        stream.write_all(format!("{}hello", ASK.replace("a.test", "a.localhost")).as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        until(&mut stream, b"hello").await;
        stream
    };
    futures_util::StreamExt::collect(futures_util::StreamExt::buffer_unordered(
        futures_util::stream::iter((0..count).map(one)),
        50,
    ))
    .await
}

#[test]
fn four_thousand_at_once_cost_less_than_40_kib_each() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(four_thousand());
}

async fn four_thousand() {
    const COUNT: usize = 4000;
    assert!(
        starlock::listen::raise_file_limit() > 3 * COUNT as u64,
        "both ends of all of them are files of this process"
    );
    let server = switching();
    let mut starlock = Starlock::start(&format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[log]\naccess = \"off\"\n[routes]\n\"a.localhost\" = \"{}\"\n",
        server.url()
    ));
    let (https, root) = (starlock.address("https"), local_root(&starlock));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let roots = &roots;
    let connect = || async move {
        let stream = TcpStream::connect(https).await.unwrap();
        Rig::handshake(stream, roots.clone(), "a.localhost", "http/1.1", None).await
    };
    drop(open(100, connect).await);
    let before = starlock.process().memory_kib();
    let held = open(COUNT, connect).await;
    let each = starlock.process().memory_kib().saturating_sub(before) * 1024 / COUNT as u64;
    eprintln!("{COUNT} WebSockets over TLS: {each} bytes each");
    assert!(each < 40 * 1024, "{each} bytes each");
    drop(held);
}

async fn h2(rig: &Rig) -> SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(rig.tls("a.test", "h2").await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn extended(protocol: &'static str) -> Request<Empty<Bytes>> {
    let request = Request::connect("https://a.test/chat?x").extension(Protocol::from_static(protocol));
    request.header("sec-websocket-version", "13").body(Empty::new()).unwrap()
}

async fn switched(response: Response<hyper::body::Incoming>) -> TokioIo<Upgraded> {
    assert_eq!(response.status(), StatusCode::OK, "{response:?}");
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

#[tokio::test]
async fn a_stream_of_http2_becomes_a_tunnel_too() {
    let server = switching();
    let mut plan = Plan::tls().forward("a.test", server.address);
    plan.listen.timeouts.idle = Duration::from_millis(300);
    let rig = plan.start().await;
    let (_, settings) = Frames::begin(rig.tls("a.test", "h2").await).await;
    assert!(settings.contains(&(8, 1)), "SETTINGS_ENABLE_CONNECT_PROTOCOL: {settings:?}");
    let mut sender = h2(&rig).await;
    let response = sender.send_request(extended("websocket")).await.unwrap();
    let fields = response.headers();
    assert_eq!(fields["sec-websocket-protocol"], "chat");
    assert!(!fields.contains_key("sec-websocket-accept") && !fields.contains_key("upgrade"), "{fields:?}");
    let mut tunnel = switched(response).await;
    let asked = String::from_utf8(until(&mut tunnel, b"\r\n\r\n").await).unwrap();
    assert!(asked.starts_with("GET /chat?x HTTP/1.1\r\n"), "{asked}");
    for line in
        ["connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13", "via: 2.0 starlock"]
    {
        assert!(asked.lines().any(|l| l == line), "{line} is not in {asked}");
    }
    // It is no idle connection, however quiet.
    tokio::time::sleep(Duration::from_millis(900)).await;
    // Two tunnels on one connection, and requests beside them.
    let mut other = switched(sender.send_request(extended("websocket")).await.unwrap()).await;
    until(&mut other, b"\r\n\r\n").await;
    let more: Vec<u8> = (0..1_000_000_u32).map(|n| (n * 13) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(tunnel);
    let write = async {
        writer.write_all(&more).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let mut back = Vec::new();
        reader.read_to_end(&mut back).await.unwrap();
        back
    };
    let ((), back) = tokio::join!(write, read);
    assert!(back.ends_with(b"bye") && back[..back.len() - 3] == more, "{} bytes came back", back.len());
    let line = rig.logged(|line| line["method"] == "GET" && line["received"] == more.len()).await;
    assert_eq!((&line["status"], &line["protocol"]), (&200.into(), &"HTTP/2".into()));
    other.write_all(b"other").await.unwrap();
    until(&mut other, b"other").await;
    // A client that leaves without a word.
    drop((other, sender));
    rig.logged(|line| line["method"] == "GET" && line["received"] == 5).await;
    rig.until("nothing is left", |rig| rig.traffic.open_connections() == 0).await;
}

#[tokio::test]
async fn a_server_that_does_not_switch_is_no_tunnel_over_http2() {
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 502),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403),
        (YES, 502), // for another key
    ] {
        let server = Server::canned(answer, false);
        let rig = Plan::tls().forward("a.test", server.address).start().await;
        let response = h2(&rig).await.send_request(extended("websocket")).await.unwrap();
        assert_eq!(response.status(), status, "{answer}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!body.is_empty(), "it is an answer: {answer}");
    }
    let server = switching();
    let rig = Plan::tls().forward("a.test", server.address).start().await;
    let mut sender = h2(&rig).await;
    assert_eq!(sender.send_request(extended("connect-udp")).await.unwrap().status(), 405);
    let plain = Request::connect("a.test:443").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(plain).await.unwrap().status(), 405);
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_client_of_http2_that_does_not_read_stops_its_server() {
    let (told, tell) = tokio::sync::watch::channel(0_usize);
    let told = std::sync::Arc::new(told);
    let server = Server::raw(move |mut stream| {
        let told = told.clone();
        async move {
            let Some(head) = read_head(&mut stream).await else { return };
            let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
            use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
            use base64::Engine;
            let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
            let accept = base64::engine::general_purpose::STANDARD
                .encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()));
            stream.write_all(YES.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &accept).as_bytes()).await.unwrap();
            let piece = vec![0; 64 * 1024];
            while let Ok(n) = stream.write(&piece).await {
                told.send_modify(|sum| *sum += n);
            }
        }
    });
    let rig = Plan::tls().forward("a.test", server.address).start().await;
    let mut sender = h2(&rig).await;
    let _tunnel = switched(sender.send_request(extended("websocket")).await.unwrap()).await;
    // What fits into the kernel's buffers and ours, and then nothing for a while.
    let mut tell = tell;
    let sum = loop {
        let before = *tell.borrow_and_update();
        if before > 0 && tokio::time::timeout(Duration::from_millis(700), tell.changed()).await.is_err() {
            break before;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(sum < 24 << 20, "{sum} bytes were taken from a server whose client reads nothing");
}
