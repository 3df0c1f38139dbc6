//! What goes wrong between Starlock and the CA: whose turn it is, when it is tried again, what a person reads. Traffic is unharmed.
//!
//! `faults.expected` holds the whole table, ports masked. `STARLOCK_BLESS=1` writes it anew: read it as the person would.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::pebble::{Options, Pebble, verify_chain};
use crate::support::starlock::{Starlock, local_root, set_clock, write_config};
use crate::support::web::{curl, served_chain};
use crate::support::{PATIENCE, eventually, free_port, local};

const DAY: i64 = 86_400;

const FAULTS: &[(&str, Fault)] = &[
    ("every answer comes 300 ms late", Fault::Latency(Duration::from_millis(300))),
    ("the connection is reset in the middle of the answer to a new order", Fault::Reset),
    ("503 in HTML with Retry-After: 120", Fault::Unavailable),
    ("429 with Retry-After: 7200", Fault::TooMany),
    ("the directory's JSON is truncated", Fault::Truncated),
    ("the directory's certificate has expired", Fault::ExpiredCertificate),
    ("the CA says in its answers that it is a day later", Fault::Clock(DAY)),
    ("the CA says in its answers that it is a day earlier", Fault::Clock(-DAY)),
    ("the order becomes invalid", Fault::OrderInvalid),
    ("the challenge becomes invalid", Fault::ChallengeInvalid),
    ("the order stays in processing, with Retry-After: 7200", Fault::Processing),
];

#[test]
fn every_fault_has_its_class_its_next_attempt_and_its_words() {
    let environment = vec![("PEBBLE_VA_ALWAYS_VALID".to_owned(), "1".to_owned())];
    let mut pebble =
        Pebble::start(Options { environment, nonce_reject: 0, ..Options::with_dns(local(free_port())) });
    let mut table = String::new();
    for (what, fault) in FAULTS {
        table.push_str(&format!("{what}\n{}\n", outcome(&pebble, *fault)));
        pebble.restart();
    }
    for (what, seconds) in [("our clock is a day ahead", DAY), ("our clock is a day behind", -DAY)] {
        table.push_str(&format!("{what}\n{}\n", with_our_clock_off_by(seconds)));
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults.expected");
    if std::env::var_os("STARLOCK_BLESS").is_some() {
        std::fs::write(&golden, &table).unwrap();
    }
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    assert!(table == expected, "the table differs from faults.expected:\n{table}");
}

fn outcome(pebble: &Pebble, fault: Fault) -> String {
    let orders = || pebble.log().matches("Added order ").count(); // of all processes so far
    let before = orders();
    let proxy = FaultProxy::before(pebble, fault);
    let starlock = Starlock::start_with(&config(&proxy.directory_url), |dir, _| {
        std::fs::write(dir.join("root.pem"), &proxy.root_pem).unwrap();
    });
    let (https, root) = (starlock.address("https"), local_root(&starlock));
    let end = Instant::now() + PATIENCE;
    let certificate = loop {
        let answer = curl(https, &root, "https://app.localhost/", &["-o", "/dev/null", "-w", "%{http_code}"]);
        assert_eq!(answer.as_deref(), Ok("204"), "{fault:?}: what is served is served on");
        let found = starlock.certificates().into_iter().find(|c| c["names"][0] == "example.test").unwrap();
        if found["last_error"].is_string() && found["state"] != "ordering" || found["serial"].is_string() {
            break found;
        }
        assert!(Instant::now() < end, "{fault:?}: nothing became of it: {found}\n{}", starlock.log());
    };
    let text = told(&certificate, &starlock.log(), 0);
    // An answer that was lost on its way may hide an order; nothing else makes a second one.
    assert!(orders() - before <= 1, "{fault:?}: {} orders", orders() - before);
    text
}

/// A certificate is held and another one is wanted; then our clock is wrong, and right again.
fn with_our_clock_off_by(seconds: i64) -> String {
    let environment = vec![("PEBBLE_VA_ALWAYS_VALID".to_owned(), "1".to_owned())];
    let options = Options { environment, nonce_reject: 0, ..Options::with_dns(local(free_port())) };
    let pebble = Pebble::start(options.valid_for(90 * 86_400));
    let orders = || pebble.log().matches("Added order ").count();
    let config = config(&pebble.directory_url);
    let mut starlock = Starlock::start_with(&config, |dir, _| {
        std::fs::copy(&pebble.ca_root, dir.join("root.pem")).unwrap();
    });
    let held = starlock.serial_other_than("example.test", None);
    stop(&mut starlock);

    let two = format!("{config}[[certificates]]\nnames = [\"later.test\"]\n");
    write_config(starlock.path("").as_path(), &two);
    starlock.start_again_with(|process| set_clock(process, seconds));
    let find = |starlock: &Starlock, name: &str| {
        starlock.certificates().into_iter().find(|c| c["names"][0] == name).unwrap()
    };
    let settled = |starlock: &Starlock| {
        eventually("something became of the new certificate", || {
            let new = find(starlock, "later.test");
            (new["serial"].is_string() || new["last_error"].is_string() && new["state"] != "ordering")
                .then_some(new)
        })
    };
    let serves = |starlock: &Starlock, name: &str| {
        let https = starlock.address("https");
        verify_chain(&served_chain(https, name), &pebble.root(), name);
        let answer =
            curl(https, &pebble.root(), "https://example.test/", &["-o", "/dev/null", "-w", "%{http_code}"]);
        assert_eq!(answer.as_deref(), Ok("204"), "{name}, off by {seconds}: what is served is served on");
    };
    let new = settled(&starlock);
    let mut text = told(&new, &starlock.log(), seconds);
    serves(&starlock, "example.test");
    assert_eq!(
        find(&starlock, "example.test")["serial"],
        held.as_str(),
        "nothing is renewed for a wrong clock"
    );
    assert_eq!(orders(), 2, "one for each name");

    let renewed = starlock.command(&["certs", "renew", "example.test"]);
    let said = match renewed.status.success() {
        true => "done".to_owned(),
        false => {
            let text = String::from_utf8_lossy(&renewed.stderr).into_owned();
            let line = text.lines().last().unwrap_or_default();
            let (before, rest) = line.split_once("is valid from ").expect("a reason with dates");
            let (_dates, after) = rest.split_once(", and").expect("a reason with dates");
            masked(&format!("{before}is valid from then to then, and{after}"))
        }
    };
    text.push_str(&format!("  a renewal that is asked for: {said}\n"));
    serves(&starlock, "example.test");
    let after = orders();
    assert!(after <= 3, "{after} orders");
    stop(&mut starlock);

    starlock.start_again();
    for name in ["example.test", "later.test"] {
        eventually("it is served by the right clock", || find(&starlock, name)["serial"].as_str().map(drop));
        serves(&starlock, name);
        let certificate = find(&starlock, name);
        assert_eq!(certificate["state"], "valid", "{certificate}");
        let next: jiff::Timestamp = certificate["next_action_at"].as_str().unwrap().parse().unwrap();
        let days = (next.as_second() - jiff::Timestamp::now().as_second()) / DAY;
        assert!(
            (55..=60).contains(&days),
            "the time under the wrong clock leaves nothing behind: {certificate}"
        );
    }
    assert_eq!(orders(), after, "and nothing is ordered again");
    text
}

fn stop(starlock: &mut Starlock) {
    starlock.process().signal("TERM");
    assert!(starlock.process().wait().success());
}

/// What a person reads of a certificate, by a clock that is off by so many seconds.
fn told(certificate: &serde_json::Value, log: &str, off: i64) -> String {
    let said: Vec<&str> = log.lines().filter(|line| line.contains("clock and the CA's differ")).collect();
    assert!(said.len() <= 1, "a wrong clock is said once: {said:?}");
    let mut text = String::new();
    if let Some(line) = said.first() {
        let direction = if line.contains("ahead=true") { "ahead" } else { "behind" };
        text.push_str(&format!("  warned: the clocks differ, ours is {direction}\n"));
    }
    match certificate["last_error"].as_str() {
        None => text.push_str("  issued\n"),
        Some(error) => {
            let mut marked = log.lines().filter(|line| line.contains("next_attempt="));
            let line = marked.next_back().unwrap_or_default();
            let class = line.split("class=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("?");
            let next =
                certificate["next_action_at"].as_str().map_or_else(|| "never".to_owned(), |at| wait(at, off));
            let state = certificate["state"].as_str().unwrap_or_default();
            text.push_str(&format!("  {class}, {state}, next attempt in {next}\n  {}\n", masked(error)));
        }
    }
    text
}

fn config(directory: &str) -> String {
    let port = free_port();
    format!(
        r#"
[listen]
https = ["127.0.0.1:0"]
http = []
[acme]
ca = "{directory}"
ca_root = "{{dir}}/root.pem"
[dns]
provider = "builtin"
[responder]
listen = ["127.0.0.1:{port}"]
nameservers = [{{ name = "ns.example.test", addresses = ["127.0.0.1"] }}]
[log]
access = "off"
[[certificates]]
names = ["example.test"]
[routes]
"app.localhost" = {{ respond = 204 }}
"example.test" = {{ respond = 204 }}
"#
    )
}

/// How long from now, by a clock that is off by so many seconds, in words that jitter does not change.
fn wait(at: &str, off: i64) -> String {
    let at: jiff::Timestamp = at.parse().unwrap();
    let seconds = at.as_second() - jiff::Timestamp::now().as_second() - off;
    match seconds {
        0..40 => "less than a minute".to_owned(),
        40..80 => "a minute".to_owned(),
        80..3_600 => format!("{} minutes", (seconds + 30) / 60),
        3_600..72_000 => format!("{} hours", (seconds + 1800) / 3600),
        _ => "a day".to_owned(),
    }
}

/// Ports and moments are others each time: numbers of four digits and more, which the status and counts are not.
fn masked(text: &str) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        out.push_str(if digits.len() > 3 { "N" } else { &digits });
        digits.clear();
        out.push(c);
    }
    out.trim_end_matches('\0').to_owned()
}
