//! What was matched is exactly what is forwarded; what is unclear is refused.

use crate::support::client::Raw;
use crate::support::rig::Plan;
use crate::support::server::Server;

#[tokio::test]
async fn one_host_names_the_route_and_goes_to_the_server() {
    let server = Server::echo();
    let rig = Plan::clear().forward("a.test", server.address).respond("*", 200, Some("other")).start().await;
    let ask = async |head: &str| rig.connect().await.ask(format!("{head}\r\n\r\n")).await;
    for (head, host) in [
        ("GET / HTTP/1.1\r\nHost: a.test", "a.test"),
        ("GET / HTTP/1.1\r\nHost: A.TEST.:80", "a.test:80"),
        ("GET http://a.test/ HTTP/1.1\r\nHost: a.test", "a.test"),
        ("GET http://a.test:80/ HTTP/1.1\r\nHost: A.test", "a.test"),
        ("GET / HTTP/1.0\r\nHost: a.test", "a.test"),
    ] {
        let answer = ask(head).await;
        assert_eq!(answer.status, 200, "{head}");
        assert!(answer.text().starts_with("GET / HTTP/1.1\n"), "{head}: {}", answer.text());
        assert!(answer.text().contains(&format!("\nhost: {host}\n")), "{head}: {}", answer.text());
    }
    for head in [
        "GET / HTTP/1.1",
        "GET / HTTP/1.0",
        "GET / HTTP/1.1\r\nHost:",
        "GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test",
        "GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test",
        "GET / HTTP/1.1\r\nHost: a.test, b.test",
        "GET / HTTP/1.1\r\nHost: a.test/x",
        "GET / HTTP/1.1\r\nHost: u@a.test",
        "GET / HTTP/1.1\r\nHost: a.test:x",
        "GET / HTTP/1.1\r\nHost: a..test",
        "GET http://b.test/ HTTP/1.1\r\nHost: a.test",
        "GET http://a.test:81/ HTTP/1.1\r\nHost: a.test",
        "GET http://u@a.test/ HTTP/1.1\r\nHost: a.test",
    ] {
        assert_eq!(ask(head).await.status, 400, "{head}");
    }
}

#[tokio::test]
async fn one_path_names_the_route_and_goes_to_the_server() {
    let server = Server::echo();
    let rig =
        Plan::clear().forward("a.test", server.address).respond("a.test/admin", 403, None).start().await;
    let ask = async |path: &str| rig.connect().await.get("a.test", path).await;
    for (path, forwarded) in [
        ("/x%2fy", "/x%2Fy"),
        ("/%7Ex", "/~x"),
        ("/a/../b//c/./d", "/b//c/d"),
        ("/b;v=1", "/b;v=1"),
        ("/%E2%82%ac?%zz&x=//admin", "/%E2%82%AC?%zz&x=//admin"),
        ("/admin%2Fx/..", "/"),
        ("/adminx", "/adminx"),
    ] {
        let answer = ask(path).await;
        assert!(
            answer.text().starts_with(&format!("GET {forwarded} HTTP/1.1\n")),
            "{path}: {}",
            answer.text()
        );
    }
    for path in ["/admin", "/%61dmin", "/x/../admin", "/x/%2e%2E/admin/", "/admin/x", "/./admin;x/../admin"] {
        assert_eq!(ask(path).await.status, 403, "{path}");
    }
    for path in ["/a%00", "/a%0d%0aX:", "/%", "/%4", "/%zz", "/a\\b", "/%5cadmin", "/x%7f"] {
        assert_eq!(ask(path).await.status, 400, "{path}");
    }
    for path in ["//admin", "/%2Fadmin", "/x%2f..%2fadmin", "/x/..;/admin", "/admin;x", "/;/admin"] {
        assert_eq!(ask(path).await.status, 400, "{path}");
        let line = rig.logged(|line| line["path"] == path).await;
        assert_eq!(line["reason"], "ambiguous_path", "{path}");
    }
    let forwarded = |code: u16| {
        rig.metric(&format!(
            "starlock_http_requests_total{{route=\"a.test\",upstream=\"to-a.test\",method=\"GET\",code=\"{code}\"}}"
        ))
    };
    assert_eq!((forwarded(200), forwarded(400)), (7, 0), "nothing that was refused came through");
}

#[tokio::test]
async fn what_is_forwarded_is_the_normal_form_of_what_came_and_is_its_own() {
    let server = Server::echo();
    let rig = Plan::clear()
        .forward("a.test", server.address)
        .forward_stripped("a.test/p", server.address)
        .start()
        .await;
    let pieces = [
        "/", "a", "b", ".", "..", "%2e", "%2E%2e", "%2F", "%2f", "%41", "%7e", "%25", "%20", ";v=1", "//",
        "~", "!", "p", "/p/", "%C3%bc", "%5b", "+",
    ];
    let mut client = rig.connect().await;
    let (mut number, mut forwarded, mut stripped, mut refused) = (1_u64, 0, 0, 0);
    for _ in 0..600 {
        let mut path = "/".to_owned();
        for _ in 0..number % 7 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            path.push_str(pieces[(number >> 33) as usize % pieces.len()]);
        }
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 1;
        let normal = starlock::proxy::path::normalise(&path).unwrap().into_owned();
        let answer = client.get("a.test", &format!("{path}?{path}")).await;
        if answer.status == 400 {
            refused += 1;
            continue;
        }
        let target = answer.text().split(' ').nth(1).unwrap();
        let (got, query) = target.split_once('?').unwrap();
        assert_eq!(query, path, "the query is not touched");
        assert_eq!(starlock::proxy::path::normalise(got).as_deref(), Ok(got), "{path} went as {got}");
        match normal.strip_prefix("/p").filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            Some(rest) => {
                stripped += 1;
                assert_eq!(got, if rest.is_empty() { "/" } else { rest }, "{path}");
            }
            None => {
                forwarded += 1;
                assert_eq!(got, normal, "{path}");
            }
        }
    }
    assert!(forwarded > 300 && stripped > 5 && refused > 5, "{forwarded} {stripped} {refused}");
}

#[tokio::test]
async fn every_answer_is_dated_once_and_every_request_says_who_passed_it_on() {
    let dated = Server::canned(
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n",
        false,
    );
    let undated = Server::canned("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false);
    let echo = Server::echo();
    let rig = Plan::clear()
        .forward("a.test", dated.address)
        .forward("b.test", undated.address)
        .forward("c.test", echo.address)
        .start()
        .await;
    let mut client = rig.connect().await;
    assert_eq!(client.get("a.test", "/").await.field("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    assert!(client.get("b.test", "/").await.field("date").is_some_and(|date| date.ends_with(" GMT")));
    assert!(client.get("nobody.test", "/").await.field("date").is_some());
    for (version, via) in
        [("1.1", "\nvia: 1.0 other\nvia: 1.1 starlock\n"), ("1.0", "\nvia: 1.0 other\nvia: 1.0 starlock\n")]
    {
        let head = format!(
            "GET / HTTP/{version}\r\nHost: c.test\r\nConnection: keep-alive\r\nVia: 1.0 other\r\n\r\n"
        );
        let answer = client.ask(head).await;
        assert!(answer.text().contains(via), "{}", answer.text());
    }
}

#[tokio::test]
async fn unknown_hosts_learn_nothing_and_some_methods_are_not_done() {
    let rig = Plan::clear().respond("a.test", 200, Some("ok")).start().await;
    let mut client = rig.connect().await;
    let unknown = client.get("b.test", "/").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.text().starts_with("404 Not Found\nRequest "));
    assert_eq!(unknown.field("server"), None);
    for head in ["TRACE / HTTP/1.1", "CONNECT a.test:443 HTTP/1.1"] {
        let mut client = rig.connect().await;
        let answer = client.ask(format!("{head}\r\nHost: a.test:443\r\nX-Secret: 1\r\n\r\n")).await;
        assert_eq!(answer.status, 405, "{head}");
        assert!(answer.field("allow").is_some() && !answer.text().contains("Secret"));
    }
}

#[tokio::test]
async fn only_trusted_proxies_are_believed() {
    let server = Server::echo();
    for (trusted, forwarded, real) in
        [(vec![], "127.0.0.1", "127.0.0.1"), (vec!["127.0.0.0/8"], "6.6.6.6, 1.2.3.4, 127.0.0.1", "1.2.3.4")]
    {
        let rig = Plan::clear()
            .forward("a.test", server.address)
            .with(|plan| {
                plan.proxy.trusted_proxies = trusted.iter().map(|net| net.parse().unwrap()).collect();
            })
            .start()
            .await;
        let answer = rig
            .connect()
            .await
            .ask(
                "GET /x HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 1.2.3.4\r\n\
                 X_Forwarded_For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nConnection: X-Forwarded-For\r\n\r\n",
            )
            .await;
        assert!(answer.text().contains(&format!("\nx-forwarded-for: {forwarded}\n")), "{}", answer.text());
        assert!(answer.text().contains(&format!("\nx-real-ip: {real}\n")), "{}", answer.text());
        assert!(!answer.text().contains('_'));
        assert_eq!(rig.logged(|line| line["path"] == "/x").await["client"], real);
    }
}

/// Sends `bytes` and, as a second request on the same connection, one that would be answered with 200: what comes back of both.
async fn statuses(client: &mut Raw, bytes: &str) -> Vec<u16> {
    client.send(bytes).await;
    client.send("GET /second HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    let mut text = String::new();
    let _ = tokio::time::timeout(
        crate::support::client::PATIENCE,
        tokio::io::AsyncReadExt::read_to_string(&mut client.stream, &mut text),
    )
    .await
    .expect("not closed");
    text.split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().unwrap()).collect()
}

#[tokio::test]
async fn framing_that_two_readers_could_read_differently_is_refused_or_rewritten() {
    let server = Server::echo();
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let post = "POST /first HTTP/1.1\r\nHost: a.test\r\n";
    for (name, bytes) in [
        ("differing lengths", format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab")),
        ("a list of lengths", format!("{post}Content-Length: 1, 1\r\n\r\na")),
        ("a signed length", format!("{post}Content-Length: +1\r\n\r\na")),
        ("a length in hexadecimal", format!("{post}Content-Length: 0x1\r\n\r\na")),
        ("an empty length", format!("{post}Content-Length:\r\n\r\n")),
        ("a huge length", format!("{post}Content-Length: 99999999999999999999\r\n\r\n")),
        ("not chunked at last", format!("{post}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n")),
        ("an unknown coding", format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
        (
            "a coding in HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        ),
        ("a space before the colon", format!("{post}Content-Length : 1\r\n\r\na")),
        ("a folded line", format!("{post}X-A: 1\r\n 2\r\n\r\n")),
        ("a bare CR", format!("{post}X-A: 1\r2\r\n\r\n")),
        ("a NUL", format!("{post}X-A: \0\r\n\r\n")),
        ("an empty name", format!("{post}: 1\r\n\r\n")),
        ("a name with a bracket", format!("{post}X(A): 1\r\n\r\n")),
        ("no version", "GET /first\r\nHost: a.test\r\n\r\n".into()),
        ("a version from the future", "GET / HTTP/3.0\r\nHost: a.test\r\n\r\n".into()),
        ("two spaces", "GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        ("a control byte in the target", "GET /\x01 HTTP/1.1\r\nHost: a.test\r\n\r\n".into()),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
    ] {
        let mut client = rig.connect().await;
        let statuses = statuses(&mut client, &bytes).await;
        assert!(statuses.is_empty() || statuses == [400], "{name}: {statuses:?}");
    }
    for (name, bytes) in [
        ("a bad chunk size", format!("{post}Transfer-Encoding: chunked\r\n\r\nxyz\r\n")),
        ("a chunk without its end", format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n")),
        (
            "a bare LF in chunked framing",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n"),
        ),
        (
            "a chunk size that overflows",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\na"),
        ),
    ] {
        let mut client = rig.connect().await;
        let statuses = statuses(&mut client, &bytes).await;
        assert!(statuses.is_empty() || statuses == [400], "{name}: {statuses:?}");
    }
}

#[tokio::test]
async fn what_hyper_takes_within_the_rfc_is_pinned() {
    let server = Server::echo();
    let rig = Plan::clear().forward("a.test", server.address).start().await;
    let post = "POST /first HTTP/1.1\r\nHost: a.test\r\n";
    // Transfer-Encoding wins over Content-Length, which the server never sees.
    for head in [
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let mut client = rig.connect().await;
        let answer = client.ask(format!("{post}{head}\r\n1\r\na\r\n0\r\n\r\n")).await;
        assert!(answer.text().ends_with("\n\na"), "{}", answer.text());
        assert!(
            answer.text().contains("transfer-encoding: chunked") && !answer.text().contains("content-length")
        );
    }
    let mut client = rig.connect().await;
    let answer = client.ask(format!("{post}Content-Length: 1\r\nContent-Length: 1\r\n\r\na")).await;
    assert_eq!(answer.text().matches("content-length: 1\n").count(), 1, "equal lengths become one");
    let mut client = rig.connect().await;
    let answer = client.ask("GET / HTTP/1.1\nHost: a.test\nX-A: 1\n\n").await;
    assert!(answer.text().contains("x-a: 1"), "a bare LF ends a line of a head");
    let mut client = rig.connect().await;
    let answer = client.ask("\r\n\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(answer.status, 200, "empty lines before a request");
    let mut client = rig.connect().await;
    let answer = client
        .ask("GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        .await;
    assert_eq!(answer.status, 200, "an upgrade that the server declines is an answer like any other");
}
