//! Certificates from a real ACME server, through the built-in responder.

use std::net::SocketAddr;
use std::process::Command;

use crate::support::pebble::{Options, Pebble, verify_chain};
use crate::support::process::output;
use crate::support::starlock::Starlock;
use crate::support::stopper::{Stop, Stopper};
use crate::support::web::{Upstream, curl, served_chain};
use crate::support::{eventually, free_port, local};

/// A configuration for `example.test` and its wildcard through the responder at `responder`.
pub fn builtin(pebble: &Pebble, responder: SocketAddr, routes: &str) -> String {
    format!(
        r#"
[listen]
https = ["127.0.0.1:0"]
http = ["127.0.0.1:0"]
metrics = "127.0.0.1:0"

[acme]
ca = "{}"
ca_root = "{}"
email = "ops@example.test"

[dns]
provider = "builtin"

[responder]
listen = ["{responder}"]
nameservers = [{{ name = "ns.example.test", addresses = ["127.0.0.1"] }}]

[log]
access = {{ file = "{{dir}}/access.log" }}

[[certificates]]
names = ["example.test", "*.example.test"]

[routes]
{routes}
"#,
        pebble.directory_url,
        pebble.ca_root.display()
    )
}

/// The TXT values at the challenge name, as the responder answers.
pub fn txt_at(responder: SocketAddr, name: &str) -> Vec<String> {
    let output = Command::new("dig")
        .args([
            &format!("@{}", responder.ip()),
            "-p",
            &responder.port().to_string(),
            "+short",
            "+tries=1",
            "+time=5",
            "TXT",
            name,
        ])
        .output()
        .expect("dig is installed");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|l| !l.starts_with(';'))
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn apex_and_wildcard_in_one_order_through_the_responder() {
    let responder = local(free_port());
    let pebble = Pebble::start(Options::with_dns(responder));
    let app = Upstream::start("app");
    let config = builtin(
        &pebble,
        responder,
        &format!("\"app.example.test\" = \"{}\"\n\"example.test\" = {{ respond = 204 }}", app.url()),
    );
    let limits = "[acme]\nlimits = { names = { burst = 5, every = \"1h\" } }";
    let starlock = Starlock::start(&config.replace("[acme]", limits));
    let serial = starlock.serial_other_than("*.example.test", None);
    assert_eq!(pebble.status_of(&serial).as_deref(), Some("Valid"));

    let https = starlock.address("https");
    let root = pebble.root();
    for host in ["example.test", "app.example.test", "anything.example.test"] {
        let chain =
            eventually("the chain is served", || Some(served_chain(https, host)).filter(|c| !c.is_empty()));
        verify_chain(&chain, &root, host);
    }
    let answer = curl(https, &root, "https://app.example.test/hello", &["--http2"]).unwrap();
    assert!(answer.starts_with("app GET /hello"), "{answer}");
    assert_eq!(
        starlock.certificates().len(),
        1,
        "the route's host is covered by the wildcard and orders nothing"
    );
    let orders = pebble.log().matches("order-place").count();
    assert!(orders <= 1, "one order was enough, {orders} were made");

    let metrics = output("curl", &["-sf", &format!("http://{}/metrics", starlock.address("metrics"))]);
    for series in [
        "starlock_certificate_not_after_timestamp_seconds{name=\"example.test\"}",
        "starlock_certificate_not_after_timestamp_seconds{name=\"*.example.test\"}",
        "starlock_certificate_next_action_timestamp_seconds{name=\"example.test\"}",
        "starlock_certificate_renewals_total{name=\"*.example.test\",result=\"success\"} 1",
        "starlock_http_requests_total{route=\"app.example.test\"",
        "starlock_tls_handshakes_total{result=\"ok\"}",
        "starlock_acme_budget_remaining{ca=\"localhost-",
        "limit=\"names\"} 4",
        "starlock_build_info{version=\"",
    ] {
        assert!(metrics.contains(series), "{series} is not in:\n{metrics}");
    }

    assert_eq!(txt_at(responder, "_acme-challenge.example.test"), Vec::<String>::new());
    let refused = curl(https, &root, "https://example.org/", &[]).unwrap_err();
    assert!(refused.contains("unrecognized name"), "{refused}");
}

#[test]
fn an_order_that_fails_or_is_cancelled_leaves_no_record_behind() {
    let responder = local(free_port());
    // Pebble asks a port where nobody answers: the records are there, the CA never finds them.
    let pebble = Pebble::start(Options::with_dns(local(free_port())));
    let mut starlock = Starlock::start(&builtin(&pebble, responder, "\"example.test\" = { respond = 204 }"));
    let error = eventually("the failure is told", || {
        starlock.certificates()[0]["last_error"].as_str().map(ToOwned::to_owned)
    });
    assert!(error.contains("example.test") && error.contains("_acme-challenge"), "{error}");
    assert_eq!(txt_at(responder, "_acme-challenge.example.test"), Vec::<String>::new());
    assert_eq!(starlock.certificates()[0]["state"], "waiting");

    // Cancelled while records stand: the process is told to end just before it tells the CA to look.
    let stopper = Stopper::before(&pebble);
    stopper.arm(Stop { path: "/chalZ/", after: false });
    let config = builtin(&pebble, local(free_port()), "\"example.test\" = { respond = 204 }");
    let mut again = Starlock::start(&config.replace(&pebble.directory_url, &stopper.directory_url));
    stopper.wait_for_hit();
    assert_eq!(txt_at(again.address("responder"), "_acme-challenge.example.test").len(), 2, "records stand");
    again.process().signal("TERM");
    assert!(again.process().wait().success());
    let journal: Vec<_> = walkdir::WalkDir::new(again.path("state"))
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.to_string_lossy().contains("journal") && path.is_file())
        .collect();
    assert!(journal.is_empty(), "no record is left to sweep: {journal:?}");
    starlock.process().signal("TERM");
    assert!(starlock.process().wait().success());
}

#[test]
fn a_ca_that_forgot_the_account_gets_the_same_key_again() {
    let responder = local(free_port());
    let mut pebble = Pebble::start(Options::with_dns(responder).valid_for(20));
    let starlock = Starlock::start(&builtin(&pebble, responder, "\"example.test\" = { respond = 204 }"));
    let first = starlock.serial_other_than("example.test", None);
    let accounts = || std::fs::read_to_string(walk(&starlock, "accounts")).unwrap();
    let key = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["key"].clone();
    let before = key(&accounts());
    pebble.restart();
    starlock.serial_other_than("example.test", Some(&first));
    assert_eq!(key(&accounts()), before);
    assert!(starlock.log().contains("does not know the account"));
}

fn walk(starlock: &Starlock, part: &str) -> std::path::PathBuf {
    let found = walkdir::WalkDir::new(starlock.path("state"))
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .find(|path| {
            path.is_file() && path.to_string_lossy().contains(part) && !path.to_string_lossy().contains('~')
        });
    found.unwrap_or_else(|| panic!("nothing in {part}"))
}
