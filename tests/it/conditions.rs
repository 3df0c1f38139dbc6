//! Routes that share a key: the first whose condition is met.

use std::process::Command;

use crate::support::rig::Plan;
use crate::support::server::Server;

#[tokio::test]
async fn the_first_table_whose_condition_is_met_gets_the_request() {
    let (app, beta) = (Server::echo(), Server::echo());
    let rig = Plan::toml(&format!(
        r#"
        [routes]
        "a.test" = [
            {{ when = {{ method = ["PUT", "DELETE"] }}, respond = 405 }},
            {{ when = {{ header = {{ X-Beta = ["1", "yes"], X-Old = false }} }}, to = "beta" }},
            {{ when = {{ query = {{ v = "2" }} }}, respond = 202, body = "two" }},
            {{ to = "{}" }},
        ]
        "a.test/only" = {{ when = {{ method = "GET" }}, respond = 204 }}
        "*" = [{{ when = {{ header = {{ X-Health = true }} }}, respond = 200, body = "well" }}]
        [upstreams.beta]
        servers = ["{}"]
        "#,
        app.url(),
        beta.url()
    ))
    .start()
    .await;
    let mut client = rig.connect().await;
    for (line, host, fields, status, reached) in [
        ("PUT /", "a.test", "X-Beta: 1\r\n", 405, (0, 0)),
        ("GET /", "a.test", "X-Beta: yes\r\n", 200, (0, 1)),
        ("GET /", "a.test", "X-Beta: 0\r\nX-Beta: 1\r\n", 200, (0, 1)),
        ("GET /?v=2", "a.test", "X-Beta: 1\r\nX-Old: x\r\n", 202, (0, 1)),
        ("GET /?a=1&%76=2", "a.test", "", 202, (0, 1)),
        ("GET /?v=22", "a.test", "", 200, (1, 1)),
        ("GET /only/x", "a.test", "", 204, (1, 1)),
        ("POST /only", "a.test", "", 404, (1, 1)),
        ("POST //only", "a.test", "", 400, (1, 1)),
        ("GET /", "other.test", "X-Health: \r\n", 200, (1, 1)),
        ("GET /", "other.test", "", 404, (1, 1)),
    ] {
        let answer = client.ask(format!("{line} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).await;
        assert_eq!(answer.status, status, "{line} {host} {fields:?}");
        assert_eq!((app.connections(), beta.connections()), reached, "{line} {host} {fields:?}");
    }
    let count = |upstream: &str, code: u16| {
        rig.metric(&format!(
            "starlock_http_requests_total{{route=\"a.test\",upstream=\"{upstream}\",method=\"GET\",code=\"{code}\"}}"
        ))
    };
    assert_eq!(
        (count("beta", 200), count(&app.url(), 200), count("-", 202)),
        (2, 1, 2),
        "one label for all tables"
    );
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"no_route\"}"), 2);
    let refused = rig.logged(|line| line["reason"] == "no_route" && line["host"] == "other.test").await;
    assert_eq!(refused["status"], 404, "who was asked for is in the log");
}

const FILE: &str = r#"
acme.ca = "local"
[routes]
"a.localhost" = [
    { when = { method = ["POST"], query = { v = "2" } }, to = "http://127.0.0.1:3000" },
    { when = { header = { X-Beta = "1" } }, redirect = "https://b.localhost/new/$1", match = "^/old/(.*)$" },
    { respond = 204 },
]
[[expect]]
request = "POST https://a.localhost/x?v=2"
to = "http://127.0.0.1:3000"
[[expect]]
request = "POST https://a.localhost/x?v=3"
status = 204
[[expect]]
request = "GET https://a.localhost/old/x?q"
header = { X-Beta = "1" }
redirect = "https://b.localhost/new/x?q"
"#;

fn starlock(dir: &tempfile::TempDir, file: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let path = dir.path().join("starlock.toml");
    std::fs::write(&path, file).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_starlock"))
        .args(arguments)
        .arg("--config")
        .arg(path)
        .env("STATE_DIRECTORY", dir.path())
        .env("RUNTIME_DIRECTORY", dir.path())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn check_and_explain_judge_requests_with_their_conditions() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = starlock(&dir, FILE, &["check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("a.localhost  if method POST, query v \"2\": -> http://127.0.0.1:3000"), "{text}");
    assert!(text.contains("ok    line 16: GET https://a.localhost/old/x?q is redirected (308) to https://b.localhost/new/x?q"), "{text}");
    let wrong = FILE.replace("status = 204\n[[expect]]", "status = 205\n[[expect]]");
    let (code, text) = starlock(&dir, &wrong, &["check"]);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("1 of 3 expectations failed"), "{text}");
    let url = "https://a.localhost/old/1";
    let (code, text) = starlock(&dir, FILE, &["explain", url, "--method", "POST", "--header", "X-Beta: 1"]);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "> a.localhost  taken: the most exact host, and the longest path for it (if header x-beta \"1\")",
        "  a.localhost  matches, but one before it with the same host and path comes first",
        "  a.localhost  the query's v must be \"2\" (if method POST, query v \"2\")",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
    }
    let (code, text) = starlock(&dir, FILE, &["explain", url, "--header", "nonsense"]);
    assert_eq!(code, Some(64), "{text}");
}
