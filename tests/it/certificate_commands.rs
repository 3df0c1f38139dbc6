//! What a person may do with a certificate: renew, rehearse, revoke, export, go back.

use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::issuance::builtin;
use crate::support::pebble::{Options, Pebble, verify_chain};
use crate::support::starlock::Starlock;
use crate::support::{eventually, free_port, local};

fn told(starlock: &Starlock, arguments: &[&str]) -> Result<String, String> {
    let output = starlock.command(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn shown(starlock: &Starlock) -> Value {
    let text = told(starlock, &["certs", "show", "example.test", "--json"]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

#[test]
fn a_person_renews_goes_back_exports_and_revokes() {
    let responder = local(free_port());
    let pebble = Pebble::start(Options::with_dns(responder));
    let mut starlock = Starlock::start(&builtin(&pebble, responder, "\"example.test\" = { respond = 204 }"));
    let first = starlock.serial_other_than("*.example.test", None);
    let refused = told(&starlock, &["certs", "rollback", "example.test"]).unwrap_err();
    assert!(refused.contains("no previous generation"), "{refused}");

    let renewed = starlock.command(&["certs", "renew", "app.example.test"]);
    assert!(renewed.status.success(), "{renewed:?}");
    let steps = String::from_utf8_lossy(&renewed.stderr);
    assert!(steps.contains("order created") && steps.contains("signed, fetching the chain"), "{steps}");
    let second = starlock.serial_other_than("*.example.test", Some(&first));
    assert!(String::from_utf8_lossy(&renewed.stdout).contains(&second), "{renewed:?}");

    let text = told(&starlock, &["certs", "rollback", "*.example.test"]).unwrap();
    assert!(text.contains(&first), "{text}");
    assert_eq!(starlock.serial_other_than("*.example.test", Some(&second)), first);
    assert!(shown(&starlock)["next_action"].as_str().unwrap().contains("rolled back"));
    starlock.process().kill();
    starlock.start_again();
    assert_eq!(starlock.serial_other_than("*.example.test", None), first, "after a restart too");

    let dir = starlock.path("exported");
    let id = shown(&starlock)["id"].as_str().unwrap().to_owned();
    told(&starlock, &["certs", "export", &id, "--dir", dir.to_str().unwrap()]).unwrap();
    let chain = std::fs::read_to_string(dir.join("fullchain.pem")).unwrap();
    verify_chain(&chain, &pebble.root(), "example.test");
    for file in ["fullchain.pem", "privkey.pem"] {
        assert_eq!(std::fs::metadata(dir.join(file)).unwrap().mode() & 0o777, 0o600, "{file}");
    }
    let both = told(&starlock, &["certs", "export", "example.test", "--stdout"]).unwrap();
    assert_eq!(both, chain + &std::fs::read_to_string(dir.join("privkey.pem")).unwrap());

    let revoke = ["certs", "revoke", "example.test", "--reason", "key-compromise", "--yes"];
    assert!(told(&starlock, &revoke[..5]).unwrap_err().contains("--yes"));
    assert_eq!(pebble.status_of(&first).as_deref(), Some("Valid"));
    told(&starlock, &revoke).unwrap();
    assert_eq!(pebble.status_of(&first).as_deref(), Some("Revoked"));
    let third = starlock.serial_other_than("*.example.test", Some(&first));
    assert_eq!(pebble.status_of(&third).as_deref(), Some("Valid"));

    let refused = told(&starlock, &["certs", "renew", "example.test", "--dry-run"]).unwrap_err();
    assert!(refused.contains("no staging is known"), "{refused}");
    let unknown = told(&starlock, &["certs", "renew", "example.org"]).unwrap_err();
    assert!(unknown.contains("no certificate is for"), "{unknown}");
}

#[test]
fn a_renewal_that_fails_says_why_and_changes_nothing() {
    let responder = local(free_port());
    let mut pebble = Pebble::start(Options::with_dns(responder));
    let starlock = Starlock::start(&builtin(&pebble, responder, "\"example.test\" = { respond = 204 }"));
    let first = starlock.serial_other_than("*.example.test", None);
    pebble.stop();
    let error = told(&starlock, &["certs", "renew", "example.test"]).unwrap_err();
    assert!(error.contains("cannot connect"), "{error}");
    assert_eq!(shown(&starlock)["state"], "valid", "it is renewed when it is due");
    assert_eq!(starlock.serial_other_than("*.example.test", None), first);
    let json = starlock.command(&["certs", "renew", "example.test", "--json"]);
    let ended: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(!json.status.success() && ended["ok"] == false && ended["done"] == true, "{ended}");
}

#[test]
fn another_ca_takes_over_when_the_first_is_down() {
    let responder = local(free_port());
    let (mut first, second) =
        (Pebble::start(Options::with_dns(responder)), Pebble::start(Options::with_dns(responder)));
    let fallback = format!(
        "fallback = [{{ ca = \"{}\", ca_root = \"{}\" }}]\nemail =",
        second.directory_url,
        second.ca_root.display()
    );
    let config = builtin(&first, responder, "\"example.test\" = { respond = 204 }");
    let config = config.replacen("email =", &fallback, 1);
    first.stop();
    let starlock = Starlock::start(&config);
    let serial = starlock.serial_other_than("*.example.test", None);
    assert_eq!(second.status_of(&serial).as_deref(), Some("Valid"));
    let port = second.directory_url.rsplit(':').next().unwrap().trim_end_matches("/dir").to_owned();
    assert!(shown(&starlock)["issuer"].as_str().unwrap().contains(&port), "{}", shown(&starlock));
    // The preferred one is gone back to.
    first.restart();
    told(&starlock, &["certs", "renew", "example.test"]).unwrap();
    let serial = starlock.serial_other_than("*.example.test", Some(&serial));
    eventually("the first CA knows it", || first.status_of(&serial));
}
