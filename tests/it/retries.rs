//! Requests that a server does not answer go to another one, if that can do no harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;

use crate::support::rig::{Plan, Rig};
use crate::support::server::{Dead, Server, full};

/// The first of the servers is asked first: the other one is a backup.
async fn rig(first: &str, second: &str, rest: &str) -> Rig {
    Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\npassive = false\n\
         servers = [\"{first}\", {{ url = \"{second}\", backup = true }}]\n{rest}\n"
    ))
    .start()
    .await
}

/// Reads whatever comes and never answers.
fn silent() -> Server {
    Server::raw(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
}

/// Reads a whole request and hangs up.
fn closing() -> Server {
    Server::raw(|mut stream| async move {
        let (mut seen, mut wanted) = (Vec::new(), usize::MAX);
        while seen.len() < wanted && matches!(stream.read_buf(&mut seen).await, Ok(1..)) {
            let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            wanted = end + 4 + length.map_or(0, |length| length.trim().parse().unwrap());
        }
    })
}

fn answering(status: u16) -> (Server, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let server = Server::http(move |request| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            let mut response = Response::new(full(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        }
    });
    (server, count)
}

fn request(method: &str, body: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn retries(rig: &Rig, reason: &str) -> i64 {
    rig.metric(&format!("starlock_retries_total{{upstream=\"app\",reason=\"{reason}\"}}"))
}

#[tokio::test]
async fn without_a_connection_every_request_goes_to_the_next_server() {
    let (dead, (fine, _)) = (Dead::start(), answering(200));
    let rig = rig(&dead.url(), &fine.url(), "").await;
    let mut client = rig.connect().await;
    let large = "x".repeat(200_000);
    for (method, body) in [("GET", ""), ("POST", "once"), ("PUT", "again"), ("POST", &large)] {
        let answer = client.ask(request(method, body)).await;
        assert_eq!((answer.status, answer.text()), (200, body), "{method}");
    }
    assert_eq!((retries(&rig, "connect"), retries(&rig, "no_answer")), (4, 0));
    let chunked =
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(client.ask(chunked).await.text(), "abc");
}

#[tokio::test]
async fn what_a_server_has_had_is_repeated_only_if_that_does_no_harm_and_fits() {
    let (broken, (fine, count)) = (closing(), answering(200));
    let rig = rig(&broken.url(), &fine.url(), "").await;
    let (fits, large) = ("x".repeat(64 << 10), "x".repeat((64 << 10) + 1));
    for (method, body, status) in [
        ("GET", "", 200),
        ("HEAD", "", 200),
        ("PUT", "again", 200),
        ("DELETE", fits.as_str(), 200),
        ("POST", "once", 502),
        ("PATCH", "once", 502),
        ("PUT", large.as_str(), 502),
    ] {
        let before = count.load(Ordering::SeqCst);
        let answer = rig.connect().await.ask(request(method, body)).await;
        assert_eq!(answer.status, status, "{method} {}", body.len());
        if status == 200 && method != "HEAD" {
            assert_eq!(answer.text(), body, "the whole body, once");
        }
        assert_eq!(count.load(Ordering::SeqCst) - before, usize::from(status == 200), "{method}");
    }
    assert_eq!(retries(&rig, "no_answer"), 4);
}

#[tokio::test]
async fn a_hung_server_costs_an_idempotent_request_one_attempt() {
    let (hung, (fine, _)) = (silent(), answering(200));
    let times = "timeouts = { attempt = \"100ms\", response = \"400ms\" }";
    let rig = rig(&hung.url(), &fine.url(), times).await;
    let answer = rig.connect().await.ask(request("PUT", "body")).await;
    assert_eq!((answer.status, answer.text()), (200, "body"));
    assert_eq!(retries(&rig, "timeout"), 1);
    assert_eq!(rig.connect().await.ask(request("POST", "body")).await.status, 504);
    assert_eq!(rig.logged(|line| line["status"] == 504).await["reason"], "upstream_timeout");
}

#[tokio::test]
async fn an_answer_as_good_as_none_is_asked_for_elsewhere_and_the_last_one_is_passed_on() {
    let ((ill, ills), (fine, _), (odd, odds)) = (answering(503), answering(200), answering(500));
    let rig = rig(&ill.url(), &fine.url(), "").await;
    assert_eq!(rig.connect().await.ask(request("GET", "")).await.status, 200);
    assert_eq!(rig.connect().await.ask(request("POST", "x")).await.status, 503);
    assert_eq!((ills.load(Ordering::SeqCst), retries(&rig, "status")), (2, 1));
    let rig = self::rig(&odd.url(), &ill.url(), "retries = { on = [500] }").await;
    let answer = rig.connect().await.ask(request("PUT", "kept")).await;
    assert_eq!((answer.status, answer.text(), odds.load(Ordering::SeqCst)), (503, "kept", 1));
    let rig = self::rig(&odd.url(), &fine.url(), "").await;
    assert_eq!(rig.connect().await.ask(request("GET", "")).await.status, 500);
    let rig = self::rig(&ill.url(), &fine.url(), "retries = false").await;
    assert_eq!(rig.connect().await.ask(request("GET", "")).await.status, 503);
}

#[tokio::test]
async fn retries_end_with_their_budget() {
    let ((ill, _), (fine, count)) = (answering(503), answering(200));
    let rig = rig(&ill.url(), &fine.url(), "retries = { budget = 0 }").await;
    let mut client = rig.connect().await;
    let mut refused = 0;
    for _ in 0..200 {
        refused += usize::from(client.ask(request("GET", "")).await.status == 503);
    }
    let repeated = count.load(Ordering::SeqCst);
    assert_eq!(refused + repeated, 200);
    assert!(repeated >= 30, "thirty are saved from the start: {repeated}");
    assert!(refused > 0, "and three a second come in");
}

/// A rig in front of these servers, and what one request comes to.
async fn five(urls: &[String], method: &str) -> (u16, Rig) {
    let urls: Vec<String> = urls.iter().map(|url| format!("\"{url}\"")).collect();
    let rig = Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\npassive = false\nservers = [{}]\n",
        urls.join(", ")
    ))
    .start()
    .await;
    let status = rig.connect().await.ask(request(method, "")).await.status;
    (status, rig)
}

#[tokio::test]
async fn of_five_servers_no_more_are_tried_than_the_rules_say() {
    let closing: Vec<Server> = (0..5).map(|_| closing()).collect();
    let urls: Vec<String> = closing.iter().map(Server::url).collect();
    let (status, rig) = five(&urls, "GET").await;
    let reached: usize = closing.iter().map(Server::connections).sum();
    assert_eq!((status, retries(&rig, "no_answer"), reached), (502, 1, 2), "the first and one more");
    let (status, _) = five(&urls, "POST").await;
    let reached: usize = closing.iter().map(Server::connections).sum();
    assert_eq!((status, reached), (502, 3), "the first alone");
}

#[tokio::test]
async fn a_route_may_have_a_patience_of_its_own() {
    let (hung, (fine, _)) = (silent(), answering(200));
    let rig = Plan::toml(&format!(
        "[routes]\n\"a.test\" = {{ to = \"app\", timeouts = {{ attempt = \"100ms\" }} }}\n\
         \"a.test/usual\" = {{ to = \"app\", timeouts = {{ response = \"300ms\" }} }}\n[upstreams.app]\npassive = false\n\
         servers = [\"{}\", {{ url = \"{}\", backup = true }}]\n",
        hung.url(),
        fine.url()
    ))
    .start()
    .await;
    assert_eq!(rig.connect().await.ask(request("GET", "")).await.status, 200);
    assert_eq!((retries(&rig, "timeout"), retries(&rig, "no_answer")), (1, 0));
    assert_eq!(rig.connect().await.get("a.test", "/usual").await.status, 200);
    assert_eq!((retries(&rig, "timeout"), retries(&rig, "no_answer")), (1, 1), "five seconds are not over");
}

/// Answers after `time`.
fn slow(time: Duration) -> Server {
    Server::http(move |_| async move {
        tokio::time::sleep(time).await;
        Response::new(full("slow"))
    })
}

#[tokio::test]
async fn a_slow_answer_is_waited_for_if_no_other_server_is_up() {
    let slow = slow(Duration::from_millis(600));
    let dead = Dead::start();
    let dead_at = dead.address();
    let rig = Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nbalance = \"round_robin\"\n\
         passive = {{ connect_errors = 1, eject = \"1h\", eject_max = \"1h\" }}\nservers = [\"{}\", \"http://{dead_at}\"]\n\
         timeouts = {{ attempt = \"100ms\" }}\n",
        slow.url(),
    ))
    .start()
    .await;
    let mut client = rig.connect().await;
    for _ in 0..2 {
        assert_eq!(client.ask(request("POST", "")).await.status, 200);
    }
    assert_eq!(rig.endpoint(dead_at).condition().as_str(), "ejected");
    let before = retries(&rig, "connect");
    let answer = client.ask(request("GET", "")).await;
    assert_eq!((answer.status, answer.text()), (200, "slow"));
    assert_eq!((retries(&rig, "timeout"), retries(&rig, "connect")), (0, before));
}

#[tokio::test]
async fn a_server_that_is_slow_and_answers_has_not_failed() {
    let slow = slow(Duration::from_millis(300));
    // It has room for one request, which it never answers.
    let hung = silent();
    let rig = Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nbalance = \"round_robin\"\npassive = {{ failures = 1 }}\n\
         servers = [\"{}\", {{ url = \"{}\", max_requests = 1 }}]\ntimeouts = {{ attempt = \"50ms\" }}\n",
        slow.url(),
        hung.url()
    ))
    .start()
    .await;
    let mut held = Vec::new();
    while hung.connections() == 0 {
        let mut client = rig.connect().await;
        client.send(request("POST", "")).await;
        rig.until("it is at a server", |_| slow.connections() + hung.connections() > held.len()).await;
        held.push(client);
    }
    let mut client = rig.connect().await;
    for _ in 0..3 {
        assert_eq!(client.ask(request("GET", "")).await.status, 200);
    }
    assert_eq!(rig.endpoint(slow.address).condition().as_str(), "up");
    assert_eq!(retries(&rig, "timeout"), 0);
}
