//! Who may use a route: names and passwords, and other servers that decide.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine;
use http::{Request, Response};
use hyper::body::Incoming;

use crate::support::client::Raw;
use crate::support::rig::{Plan, Rig};
use crate::support::server::{Body, Server, full};
use crate::support::starlock::{binary, command, write_config};
use crate::support::{PATIENCE, process};

fn basic(user: &str, password: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
}

/// A GET of `path` at a.test with more fields.
fn get(path: &str, fields: &[(&str, &str)]) -> String {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")
}

async fn status(rig: &Rig, path: &str, user: &str, password: &str) -> u16 {
    let ask = get(path, &[("Authorization", &format!("Basic {}", basic(user, password)))]);
    rig.connect().await.ask(ask).await.status
}

/// A line of a file of users, as Apache's own tool writes it.
fn htpasswd(user: &str, password: &str, cost: u32) -> String {
    process::output("htpasswd", &["-nbB", "-C", &cost.to_string(), user, password]).trim().to_owned()
}

fn hash_password(dir: &Path, password: &str) -> String {
    let mut child = binary(dir)
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), format!("{password}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn users_of_the_configuration_and_of_htpasswd_come_in_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("htpasswd");
    std::fs::write(&file, format!("# users\n{}\n", htpasswd("bob", "p:w", 5))).unwrap();
    let hash = hash_password(dir.path(), "correct horse");
    assert!(hash.starts_with("$argon2id$"), "{hash}");
    let server = Server::echo();
    let rig = Plan::toml(&format!(
        r#"
        [routes]
        "a.test/open" = "{url}"
        [routes."a.test"]
        to = "{url}"
        basic_auth = {{ users = {{ alice = "{hash}" }}, file = "{file}", realm = "inner", user_header = "Remote-User" }}
        [routes."a.test/both"]
        to = "{url}"
        basic_auth = {{ users = {{ alice = "{hash}" }}, forward_credentials = true }}
        "#,
        url = server.url(),
        file = file.display()
    ))
    .start()
    .await;
    let refused = rig.connect().await.get("a.test", "/").await;
    assert_eq!(
        (refused.status, refused.field("www-authenticate")),
        (401, Some("Basic realm=\"inner\", charset=\"UTF-8\""))
    );
    for (user, password, expected) in [
        ("alice", "correct horse", 200),
        ("alice", "correct horse ", 401),
        ("alice", "", 401),
        ("bob", "p:w", 200),
        ("bob", "p", 401),
        ("carol", "correct horse", 401),
        ("", "", 401),
    ] {
        assert_eq!(status(&rig, "/", user, password).await, expected, "{user} {password}");
    }
    let credentials = format!("Basic {}", basic("bob", "p:w"));
    let fields = [
        ("Authorization", &*credentials),
        ("Remote_User", "root"),
        ("remote.user", "root"),
        ("Remote-User", "root"),
    ];
    let mut client = rig.connect().await;
    // A Connection field does not take our own away.
    let answer = client.ask(get("/", &[&fields[..], &[("Connection", "Remote-User")]].concat())).await;
    assert!(answer.text().contains("\nremote-user: bob\n"), "{}", answer.text());
    assert!(!answer.text().contains("root") && !answer.text().contains("authorization"), "{}", answer.text());
    assert_eq!(client.ask(get("/both", &fields[..1])).await.status, 401, "bob is none of theirs");
    let credentials = format!("Basic {}", basic("alice", "correct horse"));
    let answer = client.ask(get("/both", &[("Authorization", &credentials)])).await;
    assert!(answer.text().contains(&format!("\nauthorization: {credentials}\n")), "{}", answer.text());
    assert_eq!(rig.logged(|line| line["status"] == 401).await["reason"], "basic_auth");
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"basic_auth\"}"), 7);
}

#[tokio::test]
async fn a_file_of_users_is_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("htpasswd");
    std::fs::write(&file, htpasswd("bob", "one", 4)).unwrap();
    let text = format!(
        "[routes]\n\"a.test\" = {{ respond = 204, basic_auth = {{ file = \"{}\" }} }}",
        file.display()
    );
    let rig = Plan::toml(&text).start().await;
    assert_eq!(status(&rig, "/", "bob", "one").await, 204);
    std::fs::write(dir.path().join("new"), htpasswd("bob", "two", 4)).unwrap();
    std::fs::rename(dir.path().join("new"), &file).unwrap();
    let start = Instant::now();
    while status(&rig, "/", "bob", "two").await != 204 {
        assert!(start.elapsed() < PATIENCE, "the new password never works");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status(&rig, "/", "bob", "one").await, 401, "what was remembered is forgotten");
    // A file that is being replaced keeps nobody out.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(status(&rig, "/", "bob", "two").await, 204);
}

#[test]
fn a_file_of_weak_hashes_is_refused_at_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let weak = process::output("htpasswd", &["-nbm", "bob", "pw"]);
    std::fs::write(dir.path().join("htpasswd"), format!("{}\n{weak}", htpasswd("alice", "pw", 4))).unwrap();
    write_config(
        dir.path(),
        "acme.ca = \"local\"\n[routes]\n\"a.test\" = { respond = 204, basic_auth = { file = \"{dir}/htpasswd\" } }",
    );
    let output = command(dir.path(), &["check"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("line 2: an MD5 hash protects no password"), "{said}");
    let output = binary(dir.path()).arg("hash-password").stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("is empty"));
}

#[tokio::test]
async fn guessing_costs_the_same_for_known_and_unknown_names_and_does_not_stop_others() {
    let hash = htpasswd("bob", "right", 10).split_once(':').unwrap().1.to_owned();
    let rig = Plan::toml(&format!(
        "[routes]\n\"a.test\" = {{ respond = 204, basic_auth = {{ users = {{ bob = \"{hash}\" }} }} }}\n\"a.test/open\" = {{ respond = 200 }}"
    ))
    .start()
    .await;
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for round in 0..9 {
        for (user, times) in [("bob", &mut known), ("nobody", &mut unknown)] {
            let start = Instant::now();
            assert_eq!(status(&rig, "/", user, &format!("wrong{round}")).await, 401);
            times.push(start.elapsed());
        }
    }
    known.sort();
    unknown.sort();
    let ratio = known[4].as_secs_f64() / unknown[4].as_secs_f64();
    assert!((0.4..2.5).contains(&ratio), "{known:?} {unknown:?}");
    assert!(known[4] > Duration::from_millis(5), "a password was not verified: {known:?}");

    // Once it was verified, it costs nothing.
    assert_eq!(status(&rig, "/", "bob", "right").await, 204);
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(status(&rig, "/", "bob", "right").await, 204);
    }
    assert!(start.elapsed() < known[4] * 10, "{:?} for 20 requests", start.elapsed());

    let mut crowd = Vec::new();
    for number in 0..120 {
        let mut client = rig.connect().await;
        client
            .send(get(
                "/",
                &[("Authorization", &format!("Basic {}", basic("bob", &format!("guess{number}"))))],
            ))
            .await;
        crowd.push(client);
    }
    assert_eq!(rig.connect().await.get("a.test", "/open").await.status, 200);
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for client in &mut crowd {
        let answer = client.answer(false).await;
        if answer.status == 503 {
            assert_eq!(answer.field("retry-after"), Some("1"));
        }
        *statuses.entry(answer.status).or_default() += 1;
    }
    assert!(statuses[&401] >= 64 && statuses[&503] >= 1 && statuses.len() == 2, "{statuses:?}");
    assert_eq!(
        rig.metric("starlock_rejected_total{reason=\"basic_auth_busy\"}"),
        i64::try_from(statuses[&503]).unwrap()
    );
}

/// What Authelia's `/api/authz/forward-auth` documents, and strict about it: a question that is not exactly right is a 400.
async fn authelia(request: Request<Incoming>) -> Response<Body> {
    let one = |name: &str| -> Option<String> {
        let mut values = request.headers().get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Some(value.to_str().unwrap().to_owned()),
            _ => None,
        }
    };
    let answer = |status: u16| Response::builder().status(status);
    let said = |text: &str| full(text.to_owned());
    let (method, scheme, host, uri, client) = (
        one("x-forwarded-method"),
        one("x-forwarded-proto"),
        one("x-forwarded-host"),
        one("x-forwarded-uri"),
        one("x-forwarded-for"),
    );
    let (Some(method), Some(scheme), Some(host), Some(uri), Some(_)) = (method, scheme, host, uri, client)
    else {
        return answer(400).body(said("a field is missing, or there twice")).unwrap();
    };
    let right = request.method() == "GET"
        && request.uri() == "/api/authz/forward-auth?x=1"
        && !["content-length", "transfer-encoding", "content-type", "expect", "connection", "if-none-match"]
            .iter()
            .any(|name| request.headers().contains_key(*name));
    if !right {
        return answer(400).body(said(&format!("{request:?}"))).unwrap();
    }
    let cookie = one("cookie").unwrap_or_default();
    if cookie.contains("authelia_session=good") {
        let long = if uri.contains("long") { "x".repeat(100_000) } else { String::new() };
        return answer(200)
            .header("Remote-User", "alice")
            .header("Remote-Groups", "admins")
            .header("Remote-Groups", "dev")
            .header("Remote-Secret", "not copied")
            .body(said(&long))
            .unwrap();
    }
    if cookie.contains("authelia_session=broken") {
        return answer(500).body(said("Internal Server Error")).unwrap();
    }
    if cookie.contains("authelia_session=long") {
        return answer(401).body(said(&"x".repeat(100_000))).unwrap();
    }
    if cookie.contains("authelia_session=hung") {
        std::future::pending::<()>().await;
    }
    if one("x-requested-with").as_deref() == Some("XMLHttpRequest") {
        return answer(401).body(said("401 Unauthorized")).unwrap();
    }
    answer(if method == "GET" { 302 } else { 303 })
        .header("Location", format!("https://auth.test/?rd={scheme}://{host}{uri}&rm={method}"))
        .header("Set-Cookie", "authelia_session=new; Secure")
        .header("Connection", "x-hop")
        .header("X-Hop", "gone")
        .body(said("<a href>Found</a>"))
        .unwrap()
}

#[tokio::test]
async fn another_server_decides_and_says_who_it_is() {
    let (server, auth) = (Server::echo(), Server::http(authelia));
    let rig = Plan::toml(&format!(
        r#"
        [routes."a.test/app"]
        to = "{}"
        strip_prefix = true
        rate_limit = "1000/1s"
        [routes."a.test/app".forward_auth]
        url = "{}/api/authz/forward-auth?x=1"
        copy = ["Remote-User", "Remote-Groups", "Remote-Email"]
        timeout = "3s"
        "#,
        server.url(),
        auth.url()
    ))
    .start()
    .await;
    let mut client = rig.connect().await;
    let good = ("Cookie", "authelia_session=good");
    let spoofed = [
        good,
        ("Remote-User", "root"),
        ("Remote_Groups", "root"),
        ("Remote.Email", "root@a.test"),
        ("X-Forwarded-Method", "PUT"),
        ("X-Forwarded-Uri", "/public"),
        ("X_Forwarded_Uri", "/public"),
        ("Connection", "Remote-User, X-Forwarded-For"),
        ("If-None-Match", "\"x\""),
    ];
    let answer = client.ask(get("/app/x/../y?z=1", &spoofed)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    assert!(text.starts_with("GET /y?z=1 HTTP/1.1\n"), "{text}");
    for line in [
        "\nremote-groups: admins\nremote-groups: dev\nremote-user: alice\n",
        "\ncookie: authelia_session=good\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(
        !text.contains("root") && !text.contains("not copied") && !text.contains("x-forwarded-uri"),
        "{text}"
    );

    // A body goes past the other server and reaches the one it is for.
    let body = "x".repeat(100_000);
    let ask = format!(
        "POST /app/up HTTP/1.1\r\nHost: a.test\r\nCookie: authelia_session=good\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = client.ask(ask).await;
    assert_eq!((answer.status, answer.text().ends_with(&format!("\n\n{body}"))), (200, true));
    assert_eq!(client.ask(get("/app/long", &[good])).await.status, 200, "a long yes is a yes");

    let answer = client.ask(get("/app/x/../y?z=1", &[])).await;
    assert_eq!((answer.status, answer.text()), (302, "<a href>Found</a>"));
    assert_eq!(answer.field("location"), Some("https://auth.test/?rd=http://a.test/app/y?z=1&rm=GET"));
    assert_eq!(answer.field("set-cookie"), Some("authelia_session=new; Secure"));
    assert_eq!(answer.field("x-hop"), None);
    assert!(answer.field("ratelimit").is_some());
    let answer = client.ask("POST /app HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!((answer.status, answer.field("location").unwrap().ends_with("rm=POST")), (303, true));
    let mut client = rig.connect().await;
    assert_eq!(client.ask(get("/app", &[("X-Requested-With", "XMLHttpRequest")])).await.status, 401);
    assert_eq!(rig.logged(|line| line["status"] == 401).await["reason"], "forward_auth");

    let asked = server.connections();
    for session in ["broken", "long", "hung"] {
        let cookie = format!("authelia_session={session}");
        let start = Instant::now();
        let answer = client.ask(get("/app", &[("Cookie", &cookie)])).await;
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{session}");
        assert!(start.elapsed() < Duration::from_secs(30), "{session}");
        assert!(!answer.text().contains("Internal"), "what went wrong there is nobody's business");
    }
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"forward_auth_failed\"}"), 3);
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"forward_auth\"}"), 3);
    assert_eq!(server.connections(), asked, "the server heard nothing of them");
    let kept = auth.connections();
    for _ in 0..20 {
        assert_eq!(client.ask(get("/app", &[good])).await.status, 200);
    }
    assert!(auth.connections() <= kept + 1, "connections to it are used again");
    drop(auth);
    let mut gone = Raw::connect(rig.http()).await;
    let start = Instant::now();
    loop {
        let answer = gone.ask(get("/app", &[good])).await;
        if answer.status == 503 {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{answer:?}");
    }
}

#[test]
fn explain_says_who_may_come_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let hash = htpasswd("bob", "pw", 4).split_once(':').unwrap().1.to_owned();
    write_config(
        dir.path(),
        &format!(
            r#"
            acme.ca = "local"
            [mtls]
            "a.test" = "/etc/ca.pem"
            [routes."a.test"]
            respond = 204
            deny = "192.0.2.0/24"
            rate_limit = {{ requests = 100, per = "1m", burst = 20, by = "header:X-Api-Key" }}
            concurrency = {{ requests = 5, by = "ip" }}
            basic_auth = {{ users = {{ bob = "{hash}" }} }}
            "#
        ),
    );
    let output = command(dir.path(), &["explain", "https://a.test/"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = "Policies, in this order
  client certificate  required at a.test, signed by /etc/ca.pem
  deny   192.0.2.0/24
  rate_limit  100 in 60s, 20 at once, by header:x-api-key
  concurrency  5 at a time, by ip
  basic_auth  bob
";
    assert!(said.contains(expected), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains(&hash));
}
