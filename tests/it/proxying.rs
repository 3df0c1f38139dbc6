//! What is forwarded, what comes back, and what happens when a server does not do its part.

use std::time::Duration;

use starlock::balance::ServerHost;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::{PATIENCE, Raw};
use crate::support::rig::Plan;
use crate::support::server::{Dead, Server, full};

#[tokio::test]
async fn a_request_arrives_as_it_was_sent_with_what_a_server_must_know() {
    let server = Server::echo();
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let mut client = rig.connect().await;
    let answer = client
        .ask(
            "POST /p%61th/./x?q=%2f&r HTTP/1.1\r\nHost: A.test:8080\r\nAccept: */*\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Connection: x-hop\r\nX-Hop: 1\r\nContent-Length: 5\r\n\r\nhello",
        )
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.text(),
        "POST /path/x?q=%2f&r HTTP/1.1\naccept: */*\ncontent-length: 5\n\
         forwarded: for=127.0.0.1;host=\"a.test:8080\";proto=http\nhost: a.test:8080\nvia: 1.1 starlock\n\
         x-forwarded-for: 127.0.0.1\nx-forwarded-host: a.test:8080\nx-forwarded-proto: http\nx-real-ip: 127.0.0.1\n\nhello"
    );
    let line = rig.logged(|line| line["path"] == "/p%61th/./x?q=%2f&r").await;
    assert_eq!(
        (&line["status"], &line["received"], &line["host"]),
        (&200.into(), &5.into(), &"a.test".into())
    );
    assert_eq!((&line["route"], &line["upstream"]), (&"a.test".into(), &"to-a.test".into()));
    assert_eq!(line["server"], server.url());
    assert!(line.get("reason").is_none(), "{line}");
    assert_eq!(
        rig.metric("starlock_http_requests_total{route=\"a.test\",upstream=\"to-a.test\",method=\"POST\",code=\"200\"}"),
        1
    );
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let server = Server::echo();
    let rig = Plan::clear().forward("a.test", server.address).with(|plan| plan.workers = 1).start().await;
    let mut client = rig.connect().await;
    for n in 0..20 {
        let answer = client.get("a.test", &format!("/{n}")).await;
        assert!(answer.text().starts_with(&format!("GET /{n} ")));
    }
    assert_eq!((server.connections(), rig.traffic.open_connections()), (1, 1));
    let pipelined: String = (0..5).map(|n| format!("GET /p{n} HTTP/1.1\r\nHost: a.test\r\n\r\n")).collect();
    client.send(pipelined).await;
    for n in 0..5 {
        assert!(client.answer(false).await.text().starts_with(&format!("GET /p{n} ")));
    }
}

#[tokio::test]
async fn bodies_of_unknown_length_and_trailers_go_both_ways() {
    let server = Server::http(|request| async move {
        use http_body_util::BodyExt;
        let body = request.into_body().collect().await.unwrap();
        let sum = body.trailers().and_then(|t| t.get("x-sum")).cloned();
        let data = body.to_bytes();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-back", sum.unwrap_or_else(|| "none".parse().unwrap()));
        let frames = [Ok(http_body::Frame::data(data)), Ok(http_body::Frame::trailers(trailers))];
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        let response = http::Response::builder().header("trailer", "x-back");
        response.body(body.boxed_unsync()).unwrap()
    });
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    for method in ["POST", "GET"] {
        let mut client = rig.connect().await;
        let answer = client
            .ask(format!(
                "{method} / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5\r\nhello\r\n1;ext=1\r\n!\r\n0\r\nX-Sum: 42\r\n\r\n"
            ))
            .await;
        assert_eq!(answer.text(), "hello!\nx-back: 42", "{method}");
        assert_eq!(answer.field("trailer"), Some("x-back"));
    }
    let mut client = rig.connect().await;
    let answer = client.ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!(answer.text(), "hi", "trailers only for those who ask for them");
    let mut old = rig.connect().await;
    let answer = old.ask("POST / HTTP/1.0\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!((answer.text(), answer.field("transfer-encoding")), ("hi", None));
    assert!(answer.head.starts_with("HTTP/1.0 200"));
}

#[tokio::test]
async fn answers_without_a_body_keep_their_fields() {
    let server = Server::canned(
        "HTTP/1.1 200 Fine\r\nContent-Length: 1234\r\nETag: \"x\"\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\n\r\n",
        false,
    );
    let none = Server::canned("HTTP/1.1 204 No Content\r\nX-Is: here\r\n\r\n", false);
    let same = Server::canned("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", false);
    let rig = Plan::clear()
        .forward("a.test", server.address)
        .forward("b.test", none.address)
        .forward("c.test", same.address)
        .start()
        .await;
    let mut client = rig.connect().await;
    let answer = client.ask("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(
        (answer.status, answer.field("content-length"), answer.field("etag")),
        (200, Some("1234"), Some("\"x\""))
    );
    assert_eq!((answer.field("x-hop"), answer.field("keep-alive")), (None, None));
    let answer = client.get("b.test", "/").await;
    assert_eq!(
        (answer.status, answer.field("x-is"), answer.field("content-length")),
        (204, Some("here"), None)
    );
    assert_eq!(client.get("c.test", "/").await.status, 304);
    assert_eq!(
        client.ask("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.status,
        200,
        "all on one connection"
    );
}

#[tokio::test]
async fn continue_is_said_when_the_body_is_wanted_and_not_else() {
    let server = Server::echo();
    let rig = Plan::clear()
        .forward("a.test", server.address)
        .respond("b.test", 403, None)
        .with(|plan| plan.proxy.max_body = Some(10))
        .start()
        .await;
    let head = |host: &str, length: usize| {
        format!("PUT /x HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut client = rig.connect().await;
    assert_eq!(client.ask(head("a.test", 5)).await.status, 100);
    let answer = client.ask("hello").await;
    assert!(
        answer.status == 200 && answer.text().ends_with("\n\nhello") && !answer.text().contains("expect")
    );
    assert_eq!(client.ask(head("b.test", 5)).await.status, 403, "nobody wants that body");
    assert!(client.closed().await);
    let mut client = rig.connect().await;
    assert_eq!(client.ask(head("a.test", 11)).await.status, 413);
    assert!(client.closed().await);
}

#[tokio::test]
async fn starlock_answers_by_itself() {
    let server = Server::echo();
    let rig = Plan::clear()
        .respond("a.test", 200, Some("hello\n"))
        .respond("a.test/gone", 410, None)
        .respond("a.test/empty", 204, None)
        .redirect("b.test", "https://a.test:8443", None, 308)
        .redirect("c.test", "https://a.test", Some("/there?x=1"), 302)
        .forward_stripped("a.test/api", server.address)
        .start()
        .await;
    let mut client = rig.connect().await;
    let answer = client.get("a.test", "/").await;
    assert_eq!((answer.text(), answer.field("content-type")), ("hello\n", Some("text/plain; charset=utf-8")));
    let answer = client.ask("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!((answer.status, answer.field("content-length")), (200, Some("6")));
    assert!(client.get("a.test", "/gone").await.text().starts_with("410 Gone\nRequest "));
    assert_eq!(client.get("a.test", "/empty").await.status, 204);
    let answer = client.get("b.test", "/x/%7Ey?q=1").await;
    assert_eq!((answer.status, answer.field("location")), (308, Some("https://a.test:8443/x/~y?q=1")));
    let answer = client.get("c.test", "/x?q=1").await;
    assert_eq!((answer.status, answer.field("location")), (302, Some("https://a.test/there?x=1")));
    assert!(client.get("a.test", "/api/x?y").await.text().starts_with("GET /x?y HTTP/1.1"));
    assert!(client.get("a.test", "/api").await.text().starts_with("GET / HTTP/1.1"));
    assert!(client.get("a.test", "/apix").await.text().starts_with("hello"));
    let answer = client.ask("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!((answer.status, answer.field("allow").is_some()), (204, true));
}

#[tokio::test]
async fn clear_text_is_sent_to_https_when_there_is_one() {
    let rig = Plan::tls().respond("*.test", 200, Some("secure")).start().await;
    let mut client = rig.connect().await;
    let answer = client.get("a.test:80", "/x/../y?q=1").await;
    let port = rig.https().port();
    assert_eq!(
        (answer.status, answer.field("location")),
        (308, Some(&*format!("https://a.test:{port}/y?q=1")))
    );
    assert_eq!(client.get("a.example", "/").await.status, 404);
}

#[tokio::test]
async fn a_server_that_fails_is_a_gateway_error_with_an_id_and_a_reason() {
    let nobody = Dead::start();
    let closing = Server::raw(|_| async {});
    let garbage = Server::canned("SSH-2.0-dropbear\r\n\r\n", true);
    let switching = Server::canned(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        false,
    );
    let silent = Server::raw(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let fine = Server::echo();
    let rig = Plan::clear()
        .forward("refused.test", nobody.address())
        .forward("closed.test", closing.address)
        .forward("garbage.test", garbage.address)
        .forward("switching.test", switching.address)
        .forward("silent.test", silent.address)
        .forward("fine.test", fine.address)
        .forward_to_host("unresolved.test", ServerHost::Name("no..such..name".into()), 80, false)
        .with(|plan| {
            let silent = plan.upstreams.iter_mut().find(|upstream| upstream.name.contains("silent")).unwrap();
            silent.timeouts.response = Duration::from_millis(100);
        })
        .start()
        .await;
    for (host, status, reason) in [
        ("refused.test", 503, "upstream_connect_refused"),
        ("closed.test", 502, "upstream_closed"),
        ("garbage.test", 502, "upstream_malformed"),
        ("switching.test", 502, "upstream_malformed"),
        ("silent.test", 504, "upstream_timeout"),
        ("unresolved.test", 502, "upstream_unresolved"),
    ] {
        let mut client = rig.connect().await;
        let answer = client.get(host, "/").await;
        assert_eq!(answer.status, status, "{host}");
        let line = rig.logged(|line| line["host"] == host).await;
        assert_eq!((&line["reason"], &line["status"]), (&reason.into(), &status.into()));
        assert!(
            answer.text().ends_with(&format!("\nRequest {}\n", line["id"].as_str().unwrap())),
            "{}",
            answer.text()
        );
        assert_eq!(
            client.get("fine.test", "/").await.status,
            200,
            "the connection and the other routes are fine"
        );
    }
    let mut browser = rig.connect().await;
    let answer = browser.ask("GET / HTTP/1.1\r\nHost: refused.test\r\nAccept: text/html,*/*\r\n\r\n").await;
    assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_passed_off_as_whole() {
    let short = Server::canned("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", true);
    let chunked = Server::canned("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", true);
    let stuck = Server::canned("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", false);
    let rig = Plan::clear()
        .forward("short.test", short.address)
        .forward("chunked.test", chunked.address)
        .forward("stuck.test", stuck.address)
        .with(|plan| {
            let stuck = plan.upstreams.iter_mut().find(|upstream| upstream.name.contains("stuck")).unwrap();
            stuck.timeouts.stall = Duration::from_millis(100);
        })
        .start()
        .await;
    for (host, reason) in [
        ("short.test", "upstream_broken"),
        ("chunked.test", "upstream_broken"),
        ("stuck.test", "upstream_stalled"),
    ] {
        let mut client = rig.connect().await;
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let mut seen = String::new();
        let _ = client.stream.read_to_string(&mut seen).await;
        assert!(seen.contains("half") && !seen.contains("\r\n0\r\n"), "{seen}");
        let line = rig.logged(|line| line["host"] == host).await;
        assert_eq!((&line["reason"], &line["status"]), (&reason.into(), &200.into()));
    }
}

#[tokio::test]
async fn an_idle_connection_that_the_server_has_closed_costs_no_request() {
    // Each connection answers once and is then closed, without a word about it in the answer.
    let (told, mut closed) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::raw(move |mut stream| {
        let told = told.clone();
        async move {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut seen).await.unwrap();
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            // Not by dropping it: a child that another test is just starting may still hold a copy.
            let _ = stream.shutdown().await;
            let _ = told.send(());
        }
    });
    let hint = Server::canned(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: max=5, timeout=1\r\n\r\nok",
        false,
    );
    let rig = Plan::clear()
        .forward("a.test", server.address)
        .forward("b.test", hint.address)
        .with(|plan| plan.workers = 1)
        .start()
        .await;
    let mut client = rig.connect().await;
    for _ in 0..50 {
        assert_eq!(client.get("a.test", "/").await.text(), "ok");
        closed.recv().await.unwrap();
    }
    assert_eq!(server.connections(), 50);
    for _ in 0..3 {
        assert_eq!(client.get("b.test", "/").await.text(), "ok");
    }
    assert_eq!(hint.connections(), 3, "a second under one second is nothing");
}

#[tokio::test]
async fn a_client_that_leaves_is_499_and_its_server_is_let_go() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::raw(move |mut stream| {
        let told = told.clone();
        async move {
            let mut seen = Vec::new();
            while let Ok(1..) = stream.read_buf(&mut seen).await {
                if seen.ends_with(b"\r\n\r\n") {
                    told.send("asked").unwrap();
                }
            }
            told.send("left").unwrap();
        }
    });
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let mut client = rig.connect().await;
    client.send("GET /slow HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(heard.recv().await, Some("asked"));
    let in_flight =
        format!("starlock_upstream_requests_in_flight{{upstream=\"to-a.test\",server=\"{}\"}}", server.url());
    assert_eq!(rig.metric(&in_flight), 1);
    drop(client);
    assert_eq!(heard.recv().await, Some("left"));
    let line = rig.logged(|line| line["path"] == "/slow").await;
    assert_eq!((&line["status"], &line["reason"]), (&499.into(), &"client_closed".into()));
    assert_eq!(rig.metric(&in_flight), 0);
}

#[tokio::test]
async fn large_bodies_stream_and_push_back() {
    const SIZE: usize = 32 * 1024 * 1024;
    let server = Server::http(|request| async move {
        use http_body_util::BodyExt;
        let mut body = request.into_body();
        let mut sum = 0_u64;
        let mut count = 0;
        while let Some(Ok(frame)) = body.frame().await {
            let data = frame.into_data().unwrap();
            count += data.len();
            sum = data.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        }
        http::Response::new(full(format!("{count} {sum}")))
    });
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let mut client = Raw::connect(rig.http()).await;
    client.send(format!("PUT /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: {SIZE}\r\n\r\n")).await;
    let piece: Vec<u8> = (0..65_536_u32).map(|n| (n % 251) as u8).collect();
    let mut sum = 0_u64;
    for _ in 0..SIZE / piece.len() {
        sum = piece.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        client.send(&piece).await;
    }
    assert_eq!(client.answer(false).await.text(), format!("{SIZE} {sum}"));
    assert_eq!(rig.logged(|line| line["path"] == "/up").await["received"], SIZE);
}

#[tokio::test]
async fn what_nobody_takes_is_not_taken_from_the_other_side() {
    // Neither of the servers ever reads or is read from; what fits in the way is bounded by buffers, ours and the kernel's.
    const BOUND: usize = 16 * 1024 * 1024;
    let deaf = Server::raw(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let (told, mut heard) = tokio::sync::watch::channel(0);
    let pouring = Server::raw(move |mut stream| {
        let told = told.clone();
        async move {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
            while let Ok(n @ 1..) = stream.write(&[0; 65_536]).await {
                told.send_modify(|sum| *sum += n);
            }
        }
    });
    let rig = Plan::clear()
        .forward("deaf.test", deaf.address)
        .forward("pouring.test", pouring.address)
        .start()
        .await;
    let mut client = rig.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: deaf.test\r\nContent-Length: 1000000000\r\n\r\n").await;
    let mut sent = 0;
    let quiet = Duration::from_millis(500);
    while let Ok(written) = tokio::time::timeout(quiet, client.stream.write(&[0; 65_536])).await {
        sent += written.unwrap();
        assert!(sent < BOUND, "the upload is not pushed back");
    }
    let mut client = rig.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: pouring.test\r\n\r\n").await;
    tokio::time::timeout(PATIENCE, heard.changed()).await.unwrap().unwrap();
    while tokio::time::timeout(quiet, heard.changed()).await.is_ok() {
        assert!(*heard.borrow() < BOUND, "the download is not pushed back");
    }
    assert!(*heard.borrow() > 0);
}
