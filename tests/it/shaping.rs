//! What a route changes: paths, fields, answers, and where a request goes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::BodyExt;

use crate::support::client::Answer;
use crate::support::free_port;
use crate::support::rig::{Plan, Rig};
use crate::support::server::{Server, full};

async fn get(rig: &Rig, host: &str, target: &str) -> Answer {
    rig.connect().await.get(host, target).await
}

fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn paths_become_others_and_the_query_stays() {
    let server = Server::echo();
    let rig = Plan::toml(&format!(
        r#"
        [routes]
        "a.test" = {{ to = "{0}", rewrite = {{ match = "^/old/([a-z]+)/(.*)$", to = "/new/$2/${{1}}x" }} }}
        "a.test/api" = {{ to = "{0}", strip_prefix = true }}
        "a.test/cut" = {{ to = "{0}", rewrite = {{ match = "^/cut(.*)$", to = "$1" }} }}
        "*" = {{ to = "{0}", rewrite = {{ match = "^/(.*)$", to = "/any/$1" }} }}
        "#,
        server.url()
    ))
    .start()
    .await;
    for (host, target, forwarded) in [
        ("a.test", "/old/ab/1/2?q=%2f&$1", "/new/1/2/abx?q=%2f&$1"),
        ("a.test", "/x/../old/%61/%7e%2F", "/new/~%2F/ax"),
        ("a.test", "/old/1/2", "/old/1/2"),
        ("a.test", "/cut/x", "/x"),
        ("other.test", "/a?b", "/any/a?b"),
        ("a.test", "/api", "/"),
        ("a.test", "/api/../api/%78?y", "/x?y"),
    ] {
        let answer = get(&rig, host, target).await;
        assert!(
            answer.text().starts_with(&format!("GET {forwarded} HTTP/1.1\n")),
            "{target}: {}",
            answer.text()
        );
    }
    assert_eq!(get(&rig, "a.test", "/cut").await.status, 400, "nothing is left of the path");
    assert_eq!(rig.logged(|line| line["path"] == "/cut").await["reason"], "bad_rewrite");
}

#[tokio::test]
async fn redirects_take_captures_along() {
    let rig = Plan::toml(
        r#"
        [routes]
        "a.test" = { redirect = "https://b.test/new/$1", match = "^/old/(.*)$" }
        "a.test/find" = { redirect = "https://b.test/search?q=$1", match = "^/find/(.*)$", status = 302 }
        "a.test/all" = { redirect = "https://b.test" }
        "c.test" = { respond = 200, body = "{}", content_type = "application/json" }
        "#,
    )
    .start()
    .await;
    for (target, status, location) in [
        ("/old/a%2fb?x=1", 308, Some("https://b.test/new/a%2Fb?x=1")),
        ("/old//evil.test", 308, Some("https://b.test/new//evil.test")),
        ("/find/a&b=c?x", 302, Some("https://b.test/search?q=a%26b%3Dc")),
        ("/all/x?y", 308, Some("https://b.test/all/x?y")),
        ("/other", 404, None),
    ] {
        let answer = get(&rig, "a.test", target).await;
        assert_eq!((answer.status, answer.field("location")), (status, location), "{target}");
    }
    let answer = get(&rig, "c.test", "/").await;
    assert_eq!((answer.field("content-type"), answer.text()), (Some("application/json"), "{}"));
}

#[tokio::test]
async fn fields_are_set_added_and_removed_both_ways() {
    let server = Server::http(|request| async move {
        let mut lines: Vec<String> =
            request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        lines.sort();
        Response::builder()
            .header("server", "backend/1.0")
            .header("x-powered-by", "x")
            .header("x-frame-options", "ALLOWALL")
            .body(full(lines.join("\n")))
            .unwrap()
    });
    let rig = Plan::toml(&format!(
        r#"
        [listen]
        trusted_proxies = ["127.0.0.1"]
        [routes]
        "a.test" = {{ to = "{}", deny = "10.9.9.9", request_headers.set = {{ X-User = "none", Host = "internal.test", X-Who = "{{client_ip}} {{host}} {{scheme}} {{method}}", X-Id = "{{request_id}}" }}, request_headers.add = {{ X-Tag = "b" }}, request_headers.remove = ["X-Secret", "accept-language"], response_headers = {{ set = {{ X-Frame-Options = "DENY", X-Id = "{{request_id}}" }}, remove = ["Server", "X-Powered-By"], add = {{ Vary = "Origin" }} }} }}
        "#,
        server.url()
    ))
    .start()
    .await;
    let answer = rig
        .connect()
        .await
        .ask(
            "GET /f HTTP/1.1\r\nHost: a.test:80\r\nX-Forwarded-For: 192.0.2.7\r\nX-User: root\r\nX_User: root\r\nx.user: root\r\n\
             X_Id: 1\r\nX-Tag: a\r\nX-Secret: 1\r\nX_Secret: 1\r\nAccept-Language: de\r\nConnection: x-tag-not, close\r\n\r\n",
        )
        .await;
    let line = rig.logged(|line| line["path"] == "/f").await;
    let id = line["id"].as_str().unwrap();
    assert_eq!(
        answer.text(),
        format!(
            "forwarded: for=192.0.2.7, for=127.0.0.1;host=\"a.test:80\";proto=http\nhost: internal.test\nvia: 1.1 starlock\n\
             x-forwarded-for: 192.0.2.7, 127.0.0.1\nx-forwarded-host: a.test:80\nx-forwarded-proto: http\nx-id: {id}\n\
             x-real-ip: 192.0.2.7\nx-tag: a\nx-tag: b\nx-user: none\nx-who: 192.0.2.7 a.test http GET"
        )
    );
    assert_eq!((answer.field("server"), answer.field("x-powered-by")), (None, None));
    assert_eq!(
        (answer.field("x-frame-options"), answer.field("vary"), answer.field("x-id")),
        (Some("DENY"), Some("Origin"), Some(id))
    );
    let denied =
        rig.connect().await.ask("GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 10.9.9.9\r\n\r\n").await;
    assert_eq!(
        (denied.status, denied.field("x-frame-options")),
        (403, Some("DENY")),
        "on Starlock's own answers, too"
    );
}

#[tokio::test]
async fn errors_have_pages_of_the_routes_own() {
    let dir = tempfile::tempdir().unwrap();
    let page = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (html, json) =
        (page("e.html", "<h1>{status}</h1>{request_id}"), page("e.json", "{\"status\":{status}}"));
    let server = Server::http(|request| async move {
        let status: u16 = request.uri().path().trim_start_matches('/').parse().unwrap();
        let response = Response::builder().status(status).header("etag", "\"x\"").header("set-cookie", "a=1");
        response.body(full("the server's own words")).unwrap()
    });
    let down = format!("http://127.0.0.1:{}", free_port());
    let plan = || {
        Plan::toml(&format!(
            r#"
            [routes]
            "a.test" = {{ to = "{0}", error_pages = {{ "404" = "{html}", "5xx" = "{json}", upstream = true }} }}
            "b.test" = {{ to = "{0}", error_pages = {{ "4xx" = "{html}" }}, deny = "192.0.2.0/24" }}
            "c.test" = {{ to = "{down}", error_pages = {{ "5xx" = "{json}" }}, response_headers = {{ set = {{ X-Is = "here" }} }} }}
            "d.test" = {{ respond = 404, body = "its own", error_pages = {{ "4xx" = "{html}" }} }}
            "*" = {{ respond = 404, error_pages = {{ "404" = "{html}" }} }}
            "#,
            server.url()
        ))
        .with(|plan| plan.workers = 1)
    };
    let mut rig = plan().start().await;
    for (host, target, status, kind, begins) in [
        ("a.test", "/404", 404, "text/html; charset=utf-8", "<h1>404</h1>"),
        ("a.test", "/503", 503, "application/json", "{\"status\":503}"),
        ("a.test", "/403", 403, "", "the server's own words"),
        ("a.test", "/200", 200, "", "the server's own words"),
        ("b.test", "/404", 404, "", "the server's own words"),
        ("b.test", "/%00", 400, "text/plain; charset=utf-8", "400 Bad Request"),
        ("c.test", "/", 503, "application/json", "{\"status\":503}"),
        ("d.test", "/", 404, "text/plain; charset=utf-8", "its own"),
        ("nobody.test", "/", 404, "text/html; charset=utf-8", "<h1>404</h1>"),
    ] {
        let answer = get(&rig, host, target).await;
        assert_eq!(
            (answer.status, answer.field("content-type").unwrap_or_default()),
            (status, kind),
            "{host}{target}"
        );
        assert!(answer.text().starts_with(begins), "{host}{target}: {}", answer.text());
        assert_eq!(answer.field("x-is"), (host == "c.test").then_some("here"));
        if begins.starts_with('<') {
            let id = answer.text().trim_start_matches("<h1>404</h1>").to_owned();
            rig.logged(|line| line["id"] == id && line["sent"] == answer.body.len()).await;
        }
        if host == "a.test" && status == 404 {
            assert_eq!((answer.field("etag"), answer.field("set-cookie")), (None, Some("a=1")));
        }
    }
    assert_eq!(server.connections(), 1, "an error that is replaced costs no connection");
    page("e.html", "<p>new {status}</p>");
    assert!(get(&rig, "a.test", "/404").await.text().starts_with("<h1>"), "files are read at a reload");
    rig.load(&plan()).await;
    assert_eq!(get(&rig, "a.test", "/404").await.text(), "<p>new 404</p>");
}

#[tokio::test]
async fn copies_go_elsewhere_and_nobody_waits_for_them() {
    let server = Server::echo();
    let copies = Arc::new(Mutex::new(Vec::new()));
    let seen = copies.clone();
    let shadow = Server::http(move |request| {
        let seen = seen.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let mark = parts.headers.get("x-starlock-mirror").map(|v| v.to_str().unwrap().to_owned());
            let kept = parts.headers.get("x-kept").is_some();
            seen.lock().unwrap().push((format!("{} {}", parts.method, parts.uri), body.len(), mark, kept));
            Response::builder().status(500).body(full("nobody sees this")).unwrap()
        }
    });
    let hung = Server::raw(|stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    });
    let rig = Plan::toml(&format!(
        r#"
        [routes]
        "a.test" = {{ to = "{0}", mirror = "shadow", rewrite = {{ match = "^/x(.*)$", to = "/y$1" }} }}
        "b.test" = {{ to = "{0}", mirror = {{ to = "{1}" }} }}
        "c.test" = {{ to = "{0}", mirror = {{ to = "shadow", percent = 20 }} }}
        [upstreams.shadow]
        servers = ["{2}"]
        "#,
        server.url(),
        hung.url(),
        shadow.url()
    ))
    .with(|plan| plan.workers = 1)
    .start()
    .await;
    let counted = |result: &str| {
        rig.metric(&format!("starlock_mirrored_total{{upstream=\"shadow\",result=\"{result}\"}}"))
    };
    let mut client = rig.connect().await;
    for (line, length, chunked) in [
        ("GET /x/1?q", 0, false),
        ("POST /p", 64 << 10, false),
        ("POST /c", 10, true),
        ("POST /large", (64 << 10) + 1, false),
        ("PUT /large", 70_000, true),
    ] {
        let body = "b".repeat(length);
        let framing = match (length, chunked) {
            (0, _) => "\r\n".to_owned(),
            (_, false) => format!("Content-Length: {length}\r\n\r\n{body}"),
            (_, true) => format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
        };
        let head = format!(
            "{line} HTTP/1.1\r\nHost: a.test\r\nX-Kept: 1\r\nX-Starlock-Mirror: spoofed\r\n{framing}"
        );
        let answer = client.ask(head).await;
        assert_eq!(answer.status, 200, "{line}");
        assert!(answer.text().ends_with(&body) && field(&answer, "x-starlock-mirror").is_none(), "{line}");
    }
    rig.until("three copies", |_| counted("sent") == 3 && counted("too_large") == 2).await;
    let mut got = std::mem::take(&mut *copies.lock().unwrap());
    got.sort();
    let mark = || Some("1".to_owned());
    assert_eq!(
        got,
        [
            ("GET /y/1?q".into(), 0, mark(), true),
            ("POST /c".into(), 10, mark(), true),
            ("POST /p".into(), 64 << 10, mark(), true)
        ]
    );
    let start = Instant::now();
    for _ in 0..80 {
        assert_eq!(client.get("b.test", "/").await.status, 200);
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "a shadow that hangs delays nobody: {:?}",
        start.elapsed()
    );
    let busy = format!("starlock_mirrored_total{{upstream=\"{}\",result=\"busy\"}}", hung.url());
    rig.until("copies beyond the bound", |rig| rig.metric(&busy) == 80 - 64).await;
    drop(hung);
    let failed = busy.replace("busy", "failed");
    rig.until("the others fail", |rig| rig.metric(&failed) == 64).await;
    for _ in 0..200 {
        assert_eq!(client.get("c.test", "/").await.status, 200);
    }
    rig.until("a share", |_| (4..100).contains(&(counted("sent") - 3))).await;
    drop(shadow);
    for _ in 0..40 {
        assert_eq!(client.get("c.test", "/").await.status, 200, "a shadow that is down harms nobody");
    }
}

#[tokio::test]
async fn requests_are_dealt_by_weight_and_clients_can_be_kept() {
    let named = |name: &'static str| Server::http(move |_| async move { Response::new(full(name)) });
    let (app, canary) = (named("app"), named("canary"));
    let rig = Plan::toml(&format!(
        r#"
        listen.trusted_proxies = ["127.0.0.1"]
        [routes]
        "a.test" = {{ to = {{ app = 90, "{1}" = 10 }} }}
        "b.test" = {{ to = {{ app = 50, "{1}" = 50 }}, stick = "ip" }}
        "c.test" = {{ to = {{ app = 50, "{1}" = 50 }}, stick = "cookie:id" }}
        "*" = {{ to = {{ app = 0, "{1}" = 1 }} }}
        [upstreams.app]
        servers = ["{0}"]
        "#,
        app.url(),
        canary.url()
    ))
    .start()
    .await;
    let mut client = rig.connect().await;
    let mut canaries = 0;
    for _ in 0..1000 {
        canaries += usize::from(client.get("a.test", "/").await.text() == "canary");
    }
    assert!((50..180).contains(&canaries), "{canaries} of 1000 where 100 were meant");
    let count = |upstream: &str| {
        rig.metric(&format!(
            "starlock_http_requests_total{{route=\"a.test\",upstream=\"{upstream}\",method=\"GET\",code=\"200\"}}"
        ))
    };
    assert_eq!(
        (count("app"), count(&canary.url())),
        (1000 - canaries as i64, canaries as i64),
        "each under its name"
    );
    for host in ["b.test", "c.test"] {
        let mut reached = std::collections::HashSet::new();
        for n in 0..20 {
            let mut of_one = std::collections::HashSet::new();
            for _ in 0..5 {
                let head = format!(
                    "GET / HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 192.0.2.{n}\r\nCookie: x=1; id={n}\r\n\r\n"
                );
                of_one.insert(client.ask(head).await.text().to_owned());
            }
            assert_eq!(of_one.len(), 1, "{host} {n}");
            reached.extend(of_one);
        }
        assert_eq!(reached.len(), 2, "{host}");
    }
    for _ in 0..20 {
        assert_eq!(client.get("last.test", "/").await.text(), "canary");
    }
}

#[tokio::test]
async fn a_route_has_time_outs_of_its_own() {
    let slow = Server::raw(|mut stream| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut seen = Vec::new();
        while let Ok(1..) = stream.read_buf(&mut seen).await {
            if seen.starts_with(b"GET /stall") && seen.ends_with(b"\r\n\r\n") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
            }
        }
    });
    let rig = Plan::toml(&format!(
        r#"
        [routes]
        "a.test" = {{ to = "slow", timeouts = {{ response = "200ms", stall = "300ms", body = "250ms" }} }}
        "b.test" = {{ to = "slow" }}
        [upstreams.slow]
        servers = ["{}"]
        timeouts = {{ response = "30s", stall = "30s" }}
        "#,
        slow.url()
    ))
    .start()
    .await;
    let start = Instant::now();
    assert_eq!(get(&rig, "a.test", "/").await.status, 504);
    assert!((180..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    let mut client = rig.connect().await;
    let start = Instant::now();
    client.send("GET /stall HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(!client.closed().await, "the head and half of the body came");
    assert!((250..5000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(rig.logged(|line| line["path"] == "/stall").await["reason"], "upstream_stalled");
    let mut client = rig.connect().await;
    let answer = client.ask("POST /body HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhe").await;
    assert_eq!(
        (answer.status, rig.logged(|line| line["path"] == "/body").await["reason"].clone()),
        (408, "client_body_timeout".into())
    );
    let mut client = rig.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n").await;
    assert!(
        client.silent(Duration::from_millis(600)).await,
        "its neighbour waits as long as the upstream may take"
    );
}
