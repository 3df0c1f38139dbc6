//! Answers that are made smaller, and those that are not to be touched.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;

use crate::support::client::Answer;
use crate::support::rig::{Plan, Rig};
use crate::support::server::{Server, full};

/// Half a megabyte that compresses, but not to nothing.
fn text() -> String {
    (0..40_000_u32).map(|n| format!("{:x} lorem ", n.wrapping_mul(2_654_435_761) >> 12)).collect()
}

/// Answers each path with a body that is worth it and the fields that its query lists: `/x?content-type=a/b`, a `tag` with its quotes.
fn server() -> Server {
    Server::http(|request| async move {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let short = request.uri().path() == "/short";
        let status = request.uri().path().trim_start_matches('/').parse().unwrap_or(200);
        let mut response = Response::builder().status(status);
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            response = match name {
                "tag" => response.header("etag", format!("\"{value}\"")),
                name => response.header(name, value),
            };
        }
        let body = if short { "x".repeat(1023) } else { text() };
        response.body(full(if status == 204 || status == 304 { String::new() } else { body })).unwrap()
    })
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5000\r\nETag: \"1\"\r\n\r\n";

async fn rig(server: &Server, head: &Server) -> Rig {
    let text = format!(
        "[routes]\n\"a.test\" = {{ to = \"{0}\", compress = true }}\n\"a.test/gzip\" = {{ to = \"{0}\", compress = [\"gzip\"] }}\n\
         \"a.test/plain\" = \"{0}\"\n\"a.test/head\" = {{ to = \"{1}\", compress = true }}\n\
         \"a.test/own\" = {{ respond = 200, body = \"{2}\", compress = true }}",
        server.url(),
        head.url(),
        "own words ".repeat(200)
    );
    Plan::toml(&text).start().await
}

async fn ask(rig: &Rig, method: &str, target: &str, accept: &str) -> Answer {
    let head = format!("{method} {target} HTTP/1.1\r\nHost: a.test\r\nAccept-Encoding: {accept}\r\n\r\n");
    rig.connect().await.ask(head).await
}

/// What a program of the system makes of `bytes`.
fn through(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let mut out = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success(), "{program}");
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn real_decoders_get_back_what_the_server_sent() {
    let server = server();
    let head = Server::canned(HEAD, false);
    let rig = rig(&server, &head).await;
    let target = "/x?content-type=text/plain&tag=1&accept-ranges=bytes";
    for (accept, coding, program) in [
        ("gzip, deflate, br, zstd", "zstd", &["zstd", "-d"][..]),
        ("zstd;q=0.1, br;q=0.9", "br", &["brotli", "-d", "-c"]),
        ("gzip", "gzip", &["gzip", "-d"]),
    ] {
        let answer = ask(&rig, "GET", target, accept).await;
        assert_eq!(answer.field("content-encoding"), Some(coding), "{accept}");
        assert_eq!(answer.field("vary"), Some("accept-encoding"));
        assert_eq!(answer.field("etag"), Some("W/\"1\""));
        assert_eq!((answer.field("content-length"), answer.field("accept-ranges")), (None, None));
        assert!(answer.body.len() < text().len() / 2, "{coding}: {}", answer.body.len());
        assert!(through(program[0], &program[1..], &answer.body) == text().as_bytes(), "{coding}");
        let sent = answer.body.len() as u64;
        let line = rig.logged(|line| line["sent"] == sent).await;
        assert_eq!(line["status"], 200, "the log counts what the client gets");
        // curl has decoders of its own.
        let url = format!("http://{}{target}", rig.http());
        let field = format!("Accept-Encoding: {accept}");
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--compressed", "-H", "Host: a.test", "-H", &field, &url])
            .output()
            .unwrap();
        assert!(output.stdout == text().as_bytes(), "{coding}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let answer = ask(&rig, "GET", "/gzip?content-type=text/plain", "zstd, br, gzip").await;
    assert_eq!(answer.field("content-encoding"), Some("gzip"));
    let plain = ask(&rig, "GET", "/plain?content-type=text/plain", "zstd, br, gzip").await;
    assert_eq!((plain.field("content-encoding"), plain.field("vary")), (None, None));
}

#[tokio::test]
async fn what_must_stay_as_it_is_does() {
    let server = server();
    let head = Server::canned(HEAD, false);
    let rig = rig(&server, &head).await;
    for (target, accept, vary) in [
        ("/x?content-type=text/plain", "identity", true),
        ("/x?content-type=text/plain", "gzip;q=0, identity", true),
        ("/x?content-type=text/event-stream", "gzip", false),
        ("/x?content-type=application/grpc", "gzip", false),
        ("/x?content-type=application/grpc-web+proto", "gzip", false),
        ("/x?content-type=image/png", "gzip", false),
        ("/x", "gzip", false),
        ("/x?content-type=text/plain&content-encoding=br", "gzip", false),
        ("/x?content-type=text/plain&cache-control=public,no-transform", "gzip", false),
        ("/206?content-type=text/plain&content-range=bytes", "gzip", false),
        ("/206?content-type=text/plain", "gzip", false),
        ("/short?content-type=text/plain", "gzip", false),
    ] {
        let answer = ask(&rig, "GET", target, accept).await;
        let coding = if target.contains("content-encoding") { Some("br") } else { None };
        assert_eq!(answer.field("content-encoding"), coding, "{target} {accept}");
        assert_eq!(answer.field("vary").is_some(), vary, "{target} {accept}");
        let length = answer.body.len().to_string();
        assert_eq!(answer.field("content-length"), Some(&*length), "{target} {accept}");
    }
    let answer = ask(&rig, "GET", "/304?tag=1", "gzip").await;
    assert_eq!(
        (answer.status, answer.field("etag"), answer.field("vary")),
        (304, Some("W/\"1\""), Some("accept-encoding"))
    );
    let answer = ask(&rig, "GET", "/404?content-type=application/json", "gzip").await;
    assert_eq!((answer.status, answer.field("content-encoding")), (404, Some("gzip")));
    let answer = ask(&rig, "HEAD", "/head", "gzip").await;
    assert_eq!(
        (answer.field("content-encoding"), answer.field("content-length"), answer.field("etag")),
        (Some("gzip"), None, Some("W/\"1\"")),
        "the head of HEAD is that of GET"
    );
    let own = ask(&rig, "GET", "/own", "gzip").await;
    assert_eq!((own.field("content-encoding"), own.field("content-length")), (Some("gzip"), None));
    let own = ask(&rig, "HEAD", "/own", "gzip").await;
    assert_eq!((own.field("content-encoding"), own.field("content-length")), (Some("gzip"), None));
    let own = ask(&rig, "HEAD", "/own", "identity").await;
    assert_eq!((own.field("content-encoding"), own.field("content-length")), (None, Some("2000")));
    let keep = rig
        .connect()
        .await
        .ask("GET /x?content-type=text/plain HTTP/1.1\r\nHost: a.test\r\nAccept-Encoding: gzip\r\nCache-Control: no-transform\r\n\r\n")
        .await;
    assert_eq!(keep.field("content-encoding"), None);
}

#[tokio::test]
async fn a_stream_is_not_held_back_and_its_trailers_stay() {
    let (pieces, receiver) = mpsc::channel::<http_body::Frame<Bytes>>(4);
    let receiver = std::sync::Arc::new(std::sync::Mutex::new(Some(receiver)));
    let server = Server::http(move |_| {
        let mut receiver = receiver.lock().unwrap().take().unwrap();
        async move {
            let frames =
                futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|frame| frame.map(Ok)));
            let body = StreamBody::new(frames).boxed_unsync();
            let response =
                Response::builder().header("content-type", "text/plain").header("trailer", "x-sum");
            response.body(body).unwrap()
        }
    });
    let head = Server::canned(HEAD, false);
    let rig = rig(&server, &head).await;
    let mut client = rig.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nAccept-Encoding: gzip\r\nTE: trailers\r\n\r\n").await;
    let mut seen = Vec::new();
    for n in 0..3 {
        pieces.send(http_body::Frame::data(format!("event {n}\n").into())).await.unwrap();
        let wanted: String = (0..=n).map(|n| format!("event {n}\n")).collect();
        // The next piece is only sent when this one was readable.
        let read = async {
            while decoded(&seen) != wanted {
                let mut bytes = [0; 4096];
                let n = tokio::io::AsyncReadExt::read(&mut client.stream, &mut bytes).await.unwrap();
                assert!(n > 0, "closed");
                seen.extend_from_slice(&bytes[..n]);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .unwrap_or_else(|_| panic!("{wanted:?} was held back"));
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    pieces.send(http_body::Frame::trailers(trailers)).await.unwrap();
    drop(pieces);
    while !seen.ends_with(b"\r\nx-sum: 42\r\n\r\n") {
        let mut bytes = [0; 4096];
        let n = tokio::io::AsyncReadExt::read(&mut client.stream, &mut bytes).await.unwrap();
        assert!(n > 0, "closed without trailers: {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&bytes[..n]);
    }
}

/// What a client can read of a chunked and compressed answer so far.
fn decoded(answer: &[u8]) -> String {
    let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { return String::new() };
    let (mut rest, mut data) = (&answer[end + 4..], Vec::new());
    while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
        let Ok(size) = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16) else { break };
        if size == 0 || rest.len() < line + 2 + size {
            break;
        }
        data.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[(line + 4 + size).min(rest.len())..];
    }
    let mut text = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(&data[..]);
    let mut byte = [0; 1];
    while let Ok(1) = decoder.read(&mut byte) {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}
