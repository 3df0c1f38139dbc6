//! `starlock simulate` on a real configuration: it starts from what its state directory holds, or says that nothing is there.

use std::time::SystemTime;

use serde_json::Value;

use crate::issuance::builtin;
use crate::support::pebble::{Options, Pebble};
use crate::support::starlock::{Starlock, command, write_config};
use crate::support::{free_port, local};

const DAY: f64 = 24.0 * 3600.0;
const CALM: [&str; 6] = ["--days", "60", "--down", "0", "--restarts", "0"];

/// When a certificate for `name` is ordered first, in days from now.
fn first_order(simulated: &Value, name: &str) -> f64 {
    let renewals = simulated["renewals"].as_array().unwrap();
    let of_name = |r: &&Value| r["names"].as_array().unwrap().iter().any(|n| n == name);
    let at = renewals.iter().find(of_name).unwrap_or_else(|| panic!("{name}: {simulated}"))["at"]
        .as_str()
        .unwrap();
    let at = SystemTime::from(at.parse::<jiff::Timestamp>().unwrap());
    let now = SystemTime::now();
    at.duration_since(now).map_or_else(|e| -e.duration().as_secs_f64(), |d| d.as_secs_f64()) / DAY
}

#[test]
fn a_simulation_starts_from_what_is_held_and_counted() {
    let responder = local(free_port());
    let pebble = Pebble::start(Options::with_dns(responder).valid_for(30 * 24 * 3600));
    let config = builtin(&pebble, responder, "\"example.test\" = { respond = 204 }")
        .replace("[dns]", "limits = { domain = { burst = 1, every = \"100h\" } }\n\n[dns]");
    let simulate = |dir: &std::path::Path, more: &[&str]| {
        let output = command(dir, &[&["simulate"], &CALM[..], more].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let json = |dir: &std::path::Path, more: &[&str]| -> Value {
        serde_json::from_str(&simulate(dir, &[more, &["--json"]].concat())).unwrap()
    };

    let nowhere = tempfile::tempdir().unwrap();
    write_config(nowhere.path(), &config);
    let said = simulate(nowhere.path(), &[]);
    assert!(said.starts_with("Starts with nothing held: there is no "), "{said}");
    assert!(first_order(&json(nowhere.path(), &[]), "example.test") < 0.1);
    assert!(!nowhere.path().join("state").exists(), "looking makes nothing");

    // Beside a process that serves from it.
    let starlock = Starlock::start(&config);
    starlock.serial_other_than("*.example.test", None);
    let dir = starlock.path("");
    let said = simulate(&dir, &[]);
    assert!(said.contains(": 1 of 1 certificate held (the first ends at "), "{said}");
    assert!(said.contains(": 1 certificate, "), "{said}");
    let simulated = json(&dir, &[]);
    assert_eq!(
        (&simulated["from"]["held"], &simulated["from"]["counted"]),
        (&1.into(), &1.into()),
        "{simulated}"
    );
    let renewed = first_order(&simulated, "example.test");
    assert!((15.0..27.0).contains(&renewed), "after {renewed} days, of a certificate of thirty");

    // Another one of the same domain waits for what the CA has counted.
    let wider = config.replace("[routes]", "[[certificates]]\nnames = [\"a.b.example.test\"]\n\n[routes]");
    write_config(&dir, &wider);
    let simulated = json(&dir, &[]);
    assert_eq!((&simulated["from"]["held"], &simulated["certificates"]), (&1.into(), &2.into()));
    let first = first_order(&simulated, "a.b.example.test");
    assert!((4.1..4.6).contains(&first), "after {first} days: one each 100 hours");
    assert_eq!(simulated["late"], 0);

    let said = simulate(&dir, &["--empty"]);
    assert!(said.starts_with("Starts with nothing held, as --empty says"), "{said}");
    let simulated = json(&dir, &["--empty"]);
    assert_eq!(simulated["from"]["held"], 0);
    assert!(first_order(&simulated, "example.test") < 5.0);
}
