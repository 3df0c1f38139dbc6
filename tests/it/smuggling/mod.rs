//! Requests that two parsers could read differently: the server behind sees exactly what was meant, or nothing.

mod bodies;
mod downgrades;
mod heads;
mod upstream;

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::h2_conformance::script;
use crate::support::rig::{Plan, Rig};
use upstream::{Seen, Strict};

/// What must come, comes within this even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Name, what is sent, what must happen.
///
/// In what is sent, `|` is CRLF, each other character is the byte of its number; `.` or `>` in front stands for the head of a POST
/// or GET of `/p` at `a.test` up to its own fields. What must happen are words parted by `; ` (`%3b` is a semicolon): each answer as its status and, if the
/// server was asked, what it saw: `200 POST /p body`; `close` or `keep` for the connection afterwards; `shut` if our side ends after
/// sending; `+field: value` for what the server must be told, `-text` for what its heads must not hold. Without `close`, the
/// connection must serve another request.
type Case = (&'static str, &'static str, &'static str);

#[tokio::test]
async fn http1_is_read_one_way() {
    let upstream = Strict::start();
    let rig = one_worker(Plan::clear(), &upstream).start().await;
    let cases: Vec<Case> = [bodies::CASES, heads::CASES].concat();
    unique(cases.iter().map(|case| case.0));
    let mut failures = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        let mut problems = Vec::new();
        if let Err(problem) = ask(&rig, case.1, case.2).await {
            problems.push(problem);
        }
        settle(&rig, &upstream, n, &expected(case.2), case.2, &mut problems).await;
        failures.extend(problems.iter().map(|problem| format!("{}: {problem}", case.0)));
    }
    assert!(
        failures.is_empty(),
        "{} failures in {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    assert!(cases.len() + downgrades::CASES.len() >= 150, "{} and {}", cases.len(), downgrades::CASES.len());
}

#[tokio::test]
async fn http2_becomes_exactly_one_request() {
    let upstream = Strict::start();
    let rig = one_worker(Plan::tls(), &upstream).start().await;
    unique(downgrades::CASES.iter().map(|case| case.0));
    let mut failures = Vec::new();
    for (n, (name, send, expect, seen)) in downgrades::CASES.iter().enumerate() {
        let mut problems = Vec::new();
        let goes_on = script::run(&rig, send, expect).await.unwrap_or_else(|problem| {
            problems.push(problem);
            false
        });
        let mut wanted: Vec<String> = seen
            .split("; ")
            .filter(|s| !s.is_empty() && !s.starts_with(['+', '-']))
            .map(Into::into)
            .collect();
        // The script's own check that the connection goes on.
        if goes_on {
            wanted.push("GET /".into());
        }
        settle(&rig, &upstream, n, &wanted, seen, &mut problems).await;
        failures.extend(problems.iter().map(|problem| format!("{name}: {problem}")));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// One worker has one pool: what one request leaves behind on a connection, the next one meets.
fn one_worker(plan: Plan, upstream: &Strict) -> Plan {
    plan.forward("a.test", upstream.server.address).with(|plan| plan.workers = 1)
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) {
    let mut seen = BTreeSet::new();
    names.for_each(|name| assert!(seen.insert(name), "{name} is there twice"));
}

/// A request on a fresh connection is answered as itself; the server has seen what was meant and this, and nothing else.
async fn settle(
    rig: &Rig,
    upstream: &Strict,
    n: usize,
    wanted: &[String],
    fields: &str,
    problems: &mut Vec<String>,
) {
    let marker = format!("GET /marker/{n}");
    let tls = rig.traffic.addresses().https.is_empty();
    let answered = if tls {
        let mut client = Client::connect(rig).await;
        client.send(format!("{marker} HTTP/1.1\r\nHost: a.test\r\n\r\n").as_bytes()).await;
        client.answer(false).await
    } else {
        let mut client = rig.connect_tls("a.test").await;
        let answer = client.get("a.test", &format!("/marker/{n}")).await;
        Some((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    };
    if answered != Some((200, marker.clone())) {
        problems.push(format!("the marker got {answered:?}"));
    }
    let seen = upstream.take();
    let whats: Vec<&str> = seen.iter().map(|seen| seen.what.as_str()).collect();
    let mut wanted: Vec<&str> = wanted.iter().map(String::as_str).chain([&*marker]).collect();
    wanted.retain(|what| what.strip_prefix('?').is_none_or(|what| whats.contains(&what)));
    let wanted: Vec<&str> = wanted.iter().map(|what| what.trim_start_matches('?')).collect();
    if whats != wanted {
        problems.push(format!("the server saw {whats:?}, not {wanted:?}"));
    }
    let head = |seen: &[Seen]| seen.iter().map(|seen| format!("\n{}", seen.head)).collect::<String>();
    let head = head(&seen[..seen.len().saturating_sub(1)]);
    for word in fields.split("; ") {
        let wrong = match (word.strip_prefix('+'), word.strip_prefix('-')) {
            (Some(field), _) => !head.contains(&format!("\n{}\n", field.replace("%3b", ";"))),
            (_, Some(text)) => head.contains(text),
            _ => false,
        };
        if wrong {
            problems.push(format!("{word} in {head}"));
        }
    }
}

/// What the server is to see before the marker.
fn expected(words: &str) -> Vec<String> {
    let mut seen: Vec<String> = answers(words)
        .iter()
        .filter_map(|answer| answer.split_once(' '))
        .map(|(_, seen)| seen.to_owned())
        .collect();
    if !words.split("; ").any(|word| word == "close") {
        seen.push("GET /after".into());
    }
    seen
}

fn answers(words: &str) -> Vec<&str> {
    words.split("; ").filter(|word| word.starts_with(|c: char| c.is_ascii_digit())).collect()
}

async fn ask(rig: &Rig, request: &str, words: &str) -> Result<(), String> {
    let has = |wanted: &str| words.split("; ").any(|word| word == wanted);
    let mut client = Client::connect(rig).await;
    client.send(&wire(request)).await;
    if has("shut") {
        let _ = client.stream.shutdown().await;
    }
    let mut got = Vec::new();
    for answer in answers(words) {
        let (status, seen) = answer.split_once(' ').unwrap_or((answer, ""));
        let Some((got_status, body)) = client.answer(seen.starts_with("HEAD ")).await else {
            return Err(format!("no answer after {got:?}"));
        };
        got.push(got_status);
        if got_status.to_string() != status {
            return Err(format!("answered {got:?}: {body}"));
        }
        if got_status == 200 && !seen.starts_with("HEAD ") && body != seen {
            return Err(format!("answered with {body:?}"));
        }
    }
    if has("close") {
        return client.end().await.map_err(|rest| format!("not closed after {got:?}: {rest}"));
    }
    client.send(b"GET /after HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    match client.answer(false).await {
        Some((200, body)) if body == "GET /after" => Ok(()),
        other => Err(format!("afterwards there was {other:?}")),
    }
}

fn wire(request: &str) -> Vec<u8> {
    let (head, rest) = match request.chars().next() {
        Some('.') => ("POST /p HTTP/1.1|Host: a.test|", &request[1..]),
        Some('>') => ("GET /p HTTP/1.1|Host: a.test|", &request[1..]),
        _ => ("", request),
    };
    let mut bytes = Vec::new();
    let rest = rest.replace("LARGE", &"a".repeat(20_000));
    for character in head.chars().chain(rest.chars()) {
        match character {
            '|' => bytes.extend(b"\r\n"),
            other => bytes.push(u8::try_from(u32::from(other)).unwrap()),
        }
    }
    bytes
}

/// A client that takes whatever comes.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(rig: &Rig) -> Self {
        Self { stream: TcpStream::connect(rig.http()).await.unwrap(), buffer: Vec::new() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        // A server that has heard enough need not hear the rest.
        let _ = self.stream.write_all(bytes).await;
    }

    async fn fill(&mut self) -> bool {
        matches!(timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await, Ok(Ok(1..)))
    }

    /// Status and body of the next answer; `None` if there is none.
    async fn answer(&mut self, to_head: bool) -> Option<(u16, String)> {
        let end = loop {
            match self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None if self.fill().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8_lossy(&self.buffer.drain(..end).collect::<Vec<u8>>()).to_lowercase();
        let status = head.split(' ').nth(1)?.trim().parse().ok()?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let length: usize = if to_head { 0 } else { length.unwrap_or(0) };
        while self.buffer.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        Some((
            status,
            String::from_utf8_lossy(&self.buffer.drain(..length).collect::<Vec<u8>>()).into_owned(),
        ))
    }

    /// Waits for the end, before which nothing may come.
    async fn end(&mut self) -> Result<(), String> {
        let end = timeout(PATIENCE, self.stream.read_to_end(&mut self.buffer)).await;
        let rest = String::from_utf8_lossy(&self.buffer).into_owned();
        if end.is_ok() && rest.is_empty() { Ok(()) } else { Err(rest) }
    }
}
