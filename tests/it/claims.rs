//! What a client says of itself and of its request: none of it changes what a request is.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::rig::{Plan, Rig};
use crate::support::server::{Server, full};

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

async fn h2(rig: &Rig) -> SendRequest<Body> {
    let stream = TokioIo::new(rig.tls("a.test", "h2").await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn none() -> Body {
    Empty::new().boxed_unsync()
}

/// A body that is announced and never comes.
fn owed() -> Body {
    let frames = futures_util::stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>();
    StreamBody::new(frames).boxed_unsync()
}

const GRPC: &str = "Content-Type: application/grpc\r\n";

fn grpc_status(answer: &Response<Incoming>) -> Option<&str> {
    answer.headers().get("grpc-status").map(|status| status.to_str().unwrap())
}

#[tokio::test]
async fn no_content_type_makes_a_refusal_an_answer_over_http1() {
    let rig = Plan::clear().respond("a.test", 200, None).start().await;
    for (request, status, closes) in [
        (format!("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n{GRPC}\r\n"), 405, true),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip, chunked\r\n{GRPC}\r\n0\r\n\r\n"
            ),
            501,
            true,
        ),
        (format!("POST / HTTP/1.1\r\nHost: other.test\r\n{GRPC}Content-Length: 0\r\n\r\n"), 404, false),
    ] {
        let mut client = rig.connect().await;
        let answer = client.ask(&request).await;
        assert_eq!((answer.status, answer.field("grpc-status")), (status, None), "{request}");
        assert_eq!(answer.field("allow").is_some(), status == 405, "{request}");
        if closes {
            assert!(client.closed().await, "{request}");
        } else {
            assert_eq!(client.get("a.test", "/").await.status, 200);
        }
    }
}

#[tokio::test]
async fn over_http2_only_a_call_gets_a_status_of_grpc_and_nobody_keeps_it() {
    let rig = Plan::toml(
        "listen.https = [\"[::]:443\"]\n[routes]\n\"a.test\" = { respond = 204, rate_limit = { requests = 1, per = \"1h\" } }",
    )
    .start()
    .await;
    let mut sender = h2(&rig).await;
    let ask = |method: &str, path: &str, kind: &str, fields: usize| {
        let uri = format!("https://a.test{path}");
        let mut request = Request::builder().method(method).uri(uri).header("content-type", kind);
        for n in 0..fields {
            request = request.header(format!("x-{n}"), "1");
        }
        request.body(none()).unwrap()
    };
    let call = "application/grpc+proto";
    for (request, status, grpc) in [
        (ask("GET", "/", call, 120), 431, None),
        (ask("POST", "/", "application/grpc-web", 120), 431, None),
        (ask("TRACE", "/", call, 0), 405, None),
        (ask("POST", "/", call, 120), 200, Some("13")),
    ] {
        let text = format!("{request:?}");
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!((answer.status().as_u16(), grpc_status(&answer)), (status, grpc), "{text}");
        let kept = answer.headers().get("cache-control").is_none_or(|value| value != "no-store");
        assert_eq!(kept, status != 200, "{text}: {answer:?}");
        assert_eq!(answer.headers().contains_key("allow"), status == 405);
    }
    assert_eq!(sender.send_request(ask("GET", "/", "", 0)).await.unwrap().status(), 204);
    let limited = sender.send_request(ask("POST", "/", call, 0)).await.unwrap();
    assert_eq!((limited.status().as_u16(), grpc_status(&limited)), (200, Some("14")));
    assert!(limited.headers().contains_key("retry-after"), "{limited:?}");
}

#[tokio::test]
async fn no_content_type_gives_a_client_all_the_time_it_wants() {
    let server = Server::echo();
    let rig = Plan::toml(&format!(
        "listen.https = [\"[::]:443\"]\ntimeouts.body = \"300ms\"\n[routes]\n\"a.test\" = \"{}\"",
        server.url()
    ))
    .start()
    .await;
    let mut client = rig.connect_tls("a.test").await;
    let answer =
        client.ask(format!("POST / HTTP/1.1\r\nHost: a.test\r\n{GRPC}Content-Length: 10\r\n\r\n")).await;
    assert_eq!(answer.status, 408);
    // By HTTP/2, to a server of HTTP/1.1, to which there are no calls.
    let request =
        Request::post("https://a.test/").header("content-type", "application/grpc").body(owed()).unwrap();
    let answer = h2(&rig).await.send_request(request).await.unwrap();
    assert_eq!((answer.status().as_u16(), grpc_status(&answer)), (200, Some("4")));
}

#[tokio::test]
async fn trailers_say_nothing_that_a_route_or_a_certificate_says() {
    let (server, auth) = (Server::echo(), Server::http(|_| async { Response::new(full("")) }));
    let rig = Plan::toml(&format!(
        "[routes.\"a.test\"]\nto = \"{}\"\nrequest_headers = {{ set = {{ X-Zone = \"outside\" }}, remove = [\"X-Debug\"] }}\n\
         [routes.\"a.test\".forward_auth]\nurl = \"{}/\"\ncopy = [\"Remote-User\", \"Remote-Groups\"]\n",
        server.url(),
        auth.url()
    ))
    .start()
    .await;
    let trailers = [
        "Remote-User: root",
        "Remote_Groups: admins",
        "remote.user: root",
        "X_Zone: inside",
        "X-Debug: 1",
        "Client-Cert: :AAAA:",
        "X-Client_Cert-Verify: SUCCESS",
        "X-Forwarded-For: 6.6.6.6",
        "X-Sum: 7",
    ];
    let names: Vec<&str> = trailers.iter().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: {}\r\n\r\n2\r\nhi\r\n0\r\n{}\r\n\r\n",
        names.join(", "),
        trailers.join("\r\n")
    );
    let answer = rig.connect().await.ask(request).await;
    let (_, body) = answer.text().split_once("\n\n").unwrap();
    assert_eq!(body, "hi\nx-sum: 7");
}

/// Says yes, and of what it was asked.
fn decider() -> Server {
    Server::http(|request| async move {
        let asked = |name: &str| {
            let values = request.headers().get_all(name).iter();
            values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
        };
        let names = ["x-forwarded-method", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-uri"];
        let mut said = names.map(asked).join(" ");
        for name in request.headers().keys().map(http::HeaderName::as_str) {
            let plain = name.replace(['_', '.'], "-");
            let is_known = names.contains(&name);
            if ["x-original", "x-rewrite", "x-forwarded-uri", "x-forwarded-host", "remote"]
                .iter()
                .any(|begin| plain.starts_with(begin))
                && !is_known
            {
                said.push_str(&format!(" {name}"));
            }
        }
        let mut response = Response::new(full(""));
        response.headers_mut().insert("remote-asked", said.parse().unwrap());
        response
    })
}

const SPOOFED: &str = "X-Original-URL: https://a.test/public\r\nX_Original_Method: GET\r\nX-Rewrite.Url: /public\r\n\
                       X-Forwarded-Host: public.test\r\nX-Forwarded_Host: public.test\r\nX-Forwarded-Uri: /public\r\n\
                       X-Forwarded-Method: HEAD\r\nRemote-Asked: nothing\r\nRemote_Asked: nothing\r\n";

#[tokio::test]
async fn who_decides_is_asked_about_what_was_matched_through_trusted_proxies_too() {
    let (server, auth) = (Server::echo(), decider());
    for (trusted, client, proto) in [("[]", "127.0.0.1", "http"), ("[\"127.0.0.1\"]", "9.9.9.9", "https")] {
        let rig = Plan::toml(&format!(
            "listen.trusted_proxies = {trusted}\n[routes.\"a.test\"]\nto = \"{}\"\n\
             [routes.\"a.test\".forward_auth]\nurl = \"{}/verify\"\ncopy = [\"Remote-Asked\"]\n",
            server.url(),
            auth.url()
        ))
        .start()
        .await;
        let request = format!(
            "PUT /secret/../private?x=1 HTTP/1.1\r\nHost: a.test:81\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-For: 9.9.9.9\r\nContent-Length: 0\r\n{SPOOFED}\r\n"
        );
        let answer = rig.connect().await.ask(request).await;
        let asked = format!("\nremote-asked: PUT {proto} a.test:81 /private?x=1\n");
        assert!(answer.text().contains(&asked), "{trusted}: {}", answer.text());
        assert!(answer.text().contains(&format!("\nx-real-ip: {client}\n")), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_websocket_over_http2_is_the_get_that_it_would_be_over_http1() {
    let (server, auth) = (Server::echo(), decider());
    let rig = Plan::toml(&format!(
        "listen.https = [\"[::]:443\"]\n[routes]\n\"a.test\" = [\n\
         {{ when = {{ method = \"GET\" }}, to = \"{server}\", forward_auth = {{ url = \"{auth}/\", copy = [\"Remote-Asked\"] }} }},\n\
         {{ to = \"{server}\" }},\n]\n",
        server = server.url(),
        auth = auth.url()
    ))
    .start()
    .await;
    let plain = "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let answer = rig.connect_tls("a.test").await.ask(plain).await;
    let asked = "\nremote-asked: GET https a.test /chat\n";
    assert!(answer.text().contains(asked), "over HTTP/1.1: {}", answer.text());
    let stream = Request::connect("https://a.test/chat").extension(Protocol::from_static("websocket"));
    let answer = h2(&rig).await.send_request(stream.body(none()).unwrap()).await.unwrap();
    // The echo has not switched: nothing is granted, and it was asked all the same.
    assert_eq!(answer.status(), 502);
    let line = rig.logged(|line| line["protocol"] == "HTTP/2").await;
    assert_eq!((&line["method"], &line["path"]), (&"GET".into(), &"/chat".into()));
    assert!(auth.connections() > 0);
    let guarded = rig.metric(&format!(
        "starlock_http_requests_total{{route=\"a.test\",upstream=\"{}\",method=\"GET\",code=\"502\"}}",
        server.url()
    ));
    assert_eq!(guarded, 1);
}

#[tokio::test]
async fn what_is_asked_of_us_alone_is_read_like_any_request() {
    let rig = Plan::tls().respond("a.test", 200, None).start().await;
    for (host, more, status) in [
        ("Host: a.test\r\n", "", 204),
        ("", "", 400),
        ("Host: a.test\r\nHost: b.test\r\n", "", 400),
        ("Host: elsewhere.test\r\n", "", 421),
        ("Host: a.test\r\n", "Transfer-Encoding: gzip, chunked\r\n", 501),
    ] {
        let mut client = rig.connect_tls("a.test").await;
        let answer = client.ask(format!("OPTIONS * HTTP/1.1\r\n{host}{more}\r\n")).await;
        assert_eq!(answer.status, status, "{host}{more}");
        assert_eq!(answer.field("allow").is_some(), status == 204);
    }
}

#[tokio::test]
async fn a_trusted_proxys_client_is_who_the_field_says_that_the_proxy_writes() {
    let server = Server::echo();
    let front = |header: &str| {
        Plan::toml(&format!(
            "[listen]\ntrusted_proxies = [\"127.0.0.1\"]\n{header}\n\
             [routes]\n\"a.test\" = {{ to = \"{}\", deny = \"6.6.6.6\" }}",
            server.url()
        ))
    };
    const PLAIN: &str = "";
    const STANDARD: &str = "trusted_header = \"forwarded\"";
    for (header, fields, expected) in [
        (PLAIN, "X-Forwarded-For: 1.1.1.1\r\n", Ok("1.1.1.1")),
        (PLAIN, "X-Forwarded-For: 6.6.6.6, 1.1.1.1\r\n", Ok("1.1.1.1")),
        // An honest client of another proxy, and one that would be somebody else.
        (PLAIN, "Forwarded: for=192.168.0.7\r\nX-Forwarded-For: 1.1.1.1\r\n", Ok("1.1.1.1")),
        (PLAIN, "Forwarded: for=1.1.1.1\r\nX-Forwarded-For: 6.6.6.6\r\n", Err(403)),
        (PLAIN, "Forwarded: for=6.6.6.6\r\n", Ok("127.0.0.1")),
        (STANDARD, "Forwarded: for=1.1.1.1;proto=https\r\n", Ok("1.1.1.1")),
        (
            STANDARD,
            "X-Forwarded-For: 192.168.0.7\r\nForwarded: for=\"[::1]\", for=1.1.1.1\r\n",
            Ok("1.1.1.1"),
        ),
        (STANDARD, "X-Forwarded-For: 1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\nForwarded: for=6.6.6.6\r\n", Err(403)),
        (STANDARD, "X-Forwarded-For: 6.6.6.6\r\n", Ok("127.0.0.1")),
    ] {
        let rig = front(header).start().await;
        let answer = rig.connect().await.ask(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await;
        match expected {
            Ok(address) => {
                let text = answer.text();
                assert!(text.contains(&format!("\nx-real-ip: {address}\n")), "{fields}: {text}");
                let chain = if address == "127.0.0.1" { String::new() } else { format!("{address}, ") };
                assert!(text.contains(&format!("{chain}127.0.0.1\n")), "{fields}: {text}");
                assert!(text.contains("for=127.0.0.1;"), "{fields}: {text}");
                assert!(!text.contains("192.168.0.7"), "{fields}: what nobody vouches for: {text}");
                assert_eq!(
                    text.contains("\nx-forwarded-proto: https\n"),
                    fields.contains("proto=https"),
                    "{text}"
                );
                assert_eq!(rig.logged(|line| line["host"] == "a.test").await["client"], address);
            }
            Err(status) => assert_eq!(answer.status, status, "{fields}"),
        }
    }
}
