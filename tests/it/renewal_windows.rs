//! A drill for a mass revocation: the CA moves renewal windows (RFC 9773), and Starlock does as it says.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use serde_json::Value;

use crate::load;
use crate::support::pebble::{Options, Pebble};
use crate::support::starlock::Starlock;
use crate::support::stopper::{Stop, Stopper};
use crate::support::web::{Upstream, served_chain};
use crate::support::{eventually, free_port, local};

const HOSTS: [&str; 3] = ["a.example.test", "b.example.test", "c.example.test"];
/// Where Pebble tells of windows.
const WINDOWS: Stop = Stop { path: "/draft-ietf-acme-ari-03/renewalInfo/", after: false };

struct Drill {
    pebble: Pebble,
    stopper: Stopper,
    starlock: Starlock,
    _app: Upstream,
}

impl Drill {
    /// Three certificates of 400 s, so that a window is asked for every 8 to 22 s; nobody has been told of one yet.
    fn start() -> Self {
        let responder = local(free_port());
        let environment = vec![("PEBBLE_VA_ALWAYS_VALID".to_owned(), "1".to_owned())];
        let options = Options { newer: true, nonce_reject: 30, environment, ..Options::with_dns(responder) };
        let pebble = Pebble::start(options.valid_for(400));
        let stopper = Stopper::before(&pebble);
        stopper.arm(WINDOWS);
        let app = Upstream::start("app");
        let routes: String = HOSTS.iter().map(|host| format!("\"{host}\" = \"{}\"\n", app.url())).collect();
        let starlock = Starlock::start(&format!(
            "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[acme]\nca = \"{}\"\nca_root = \"{}\"\n[dns]\nprovider = \"builtin\"\n\
             [responder]\nlisten = [\"{responder}\"]\nnameservers = [{{ name = \"ns.example.test\", addresses = [\"127.0.0.1\"] }}]\n\
             [log]\naccess = \"off\"\n[routes]\n{routes}",
            stopper.directory_url,
            pebble.ca_root.display()
        ));
        Self { pebble, stopper, starlock, _app: app }
    }

    fn of(&self, host: &str) -> Value {
        let all = self.starlock.certificates();
        all.into_iter().find(|c| c["names"][0] == host).unwrap_or_else(|| panic!("no certificate for {host}"))
    }

    fn next(&self, host: &str) -> String {
        self.of(host)["next_action"].as_str().unwrap().to_owned()
    }

    /// Says from now on `response` of what is served for `host`.
    fn say(&self, host: &str, response: &str) {
        let chain = served_chain(self.starlock.address("https"), host);
        let end = "-----END CERTIFICATE-----\n";
        self.pebble.set_renewal_info(chain.split_inclusive(end).next().unwrap(), response);
    }

    /// For whom new orders were, and what they said that they replace, oldest first.
    fn orders(&self) -> Vec<(String, Option<String>)> {
        let orders = self.stopper.asked("/order-plz").into_iter();
        orders
            .map(|order| {
                let host = order["identifiers"][0]["value"].as_str().unwrap().to_owned();
                (host, order["replaces"].as_str().map(ToOwned::to_owned))
            })
            .collect()
    }
}

/// A window `from` to `to` seconds after `now`.
fn window(now: SystemTime, from: i64, to: i64, more: &str) -> String {
    let at = |seconds: i64| {
        let now = jiff::Timestamp::try_from(now).unwrap();
        (now + jiff::SignedDuration::from_secs(seconds)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    format!(r#"{{"suggestedWindow":{{"start":"{}","end":"{}"}}{more}}}"#, at(from), at(to))
}

#[test]
fn a_mass_revocation_is_ridden_out_and_remembered() {
    assert!(
        (0..3).any(|_| ridden_out(Drill::start())),
        "a serial that Pebble's ARI misses in each of three drills"
    );
}

/// False if Pebble gave a serial that its ARI does not find again.
fn ridden_out(mut drill: Drill) -> bool {
    let first = HOSTS.map(|host| drill.starlock.serial_other_than(host, None));
    if first.iter().any(|serial| odd(serial)) {
        return false;
    }
    let issued = drill.orders().len();
    let calm = window(SystemTime::now(), 260, 340, "");
    for host in HOSTS {
        drill.say(host, &calm);
    }
    drill.stopper.release();
    for host in HOSTS {
        eventually("the window is known", || drill.next(host).contains("ARI window").then_some(()));
    }

    // All of them are to be revoked, each window moved on its own as a CA does it. What is served until then stays served.
    let loads = HOSTS.map(|host| {
        load::Load::start(load::Spec {
            address: drill.starlock.address("https"),
            hosts: vec![host.to_owned()],
            path: "/".to_owned(),
            root_pem: drill.pebble.root(),
            rate: 30,
        })
    });
    drill.stopper.arm(Stop { path: "/order-plz", after: false });
    let why = r#","explanationURL":"https://ca.test/incident""#;
    let past = window(SystemTime::now(), -7200, -3600, why);
    for host in HOSTS {
        drill.say(host, &past);
    }
    eventually("all three are ordered", || {
        let orders = drill.orders().split_off(issued);
        HOSTS.iter().all(|host| orders.iter().any(|(of, _)| of == host)).then_some(())
    });
    for (host, serial) in HOSTS.iter().zip(&first) {
        let next = drill.next(host);
        assert!(
            next.contains("(ARI: the CA wants it replaced now: https://ca.test/incident)"),
            "{host}: {next}"
        );
        assert_eq!(
            drill.of(host)["serial"],
            serial.as_str(),
            "{host} is served while its order is under way"
        );
    }
    let listed = drill.starlock.command(&["certs"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("ARI"), "{listed:?}");
    drill.stopper.release();
    let second = [0, 1, 2].map(|n| drill.starlock.serial_other_than(HOSTS[n], Some(&first[n])));
    if second.iter().any(|serial| odd(serial)) {
        return false;
    }
    for load in loads {
        let report = load.stop();
        let failed =
            (report.failed.load(Ordering::Relaxed), report.failed_handshakes.load(Ordering::Relaxed));
        assert_eq!(failed, (0, 0), "{:?}", report.errors());
        assert!(report.sent.load(Ordering::Relaxed) > 0);
    }

    // A refused nonce sends the same order once more: each names the predecessor of its own host, and nothing else was ordered.
    let orders = drill.orders().split_off(issued);
    for (host, serial) in HOSTS.iter().zip(&first) {
        let own: Vec<_> = orders.iter().filter(|(of, _)| of == host).collect();
        assert!(!own.is_empty(), "{host}: {orders:?}");
        for (_, replaces) in own {
            let id = replaces.as_ref().expect("the order names its predecessor");
            let named = BASE64_URL_SAFE_NO_PAD.decode(id.split_once('.').unwrap().1).unwrap();
            let digits: String = named.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(digits.trim_start_matches("00"), serial.trim_start_matches("00"), "{host}");
        }
    }

    // Killed, and the CA silent: what it said last is remembered.
    let calm = window(SystemTime::now(), 260, 340, "");
    for host in HOSTS {
        drill.say(host, &calm);
    }
    for host in HOSTS {
        eventually("the successor's window is known", || {
            drill.next(host).contains("ARI window").then_some(())
        });
    }
    let due: Vec<Value> = HOSTS.iter().map(|host| drill.of(host)["next_action_at"].clone()).collect();
    drill.starlock.process().kill();
    drill.stopper.arm(Stop { path: "/", after: false });
    drill.starlock.start_again();
    for (n, host) in HOSTS.iter().enumerate() {
        let certificate = drill.of(host);
        assert_eq!(certificate["serial"], second[n].as_str(), "{host}");
        let next = certificate["next_action"].as_str().unwrap();
        assert!(next.contains("ARI window"), "{host}: {next}");
        assert_eq!(certificate["next_action_at"], due[n], "the same moment: {certificate}");
    }

    // Whatever the CA says that is no window: nothing changes.
    for (host, broken) in [(HOSTS[1], "{\"suggestedWindow\":"), (HOSTS[2], "[]")] {
        drill.say(host, broken);
    }
    let misses = || drill.starlock.log().matches("the CA does not say when it wants a renewal").count();
    drill.stopper.arm(WINDOWS);
    drill.stopper.release();
    let before = misses();
    eventually("both were asked about", || (misses() >= before + 2).then_some(()));
    for (n, host) in HOSTS.iter().enumerate().skip(1) {
        let certificate = drill.of(host);
        assert_eq!(certificate["serial"], second[n].as_str());
        assert_eq!(certificate["next_action_at"], due[n], "{certificate}");
        assert_eq!((&certificate["state"], &certificate["attempts"]), (&"valid".into(), &0.into()));
        assert!(certificate["last_error"].is_null(), "{certificate}");
    }
    true
}

/// As `ari_misses`: of a serial in hexadecimal, which is shown without the sign byte.
fn odd(serial: &str) -> bool {
    u8::from_str_radix(&serial[..2], 16).unwrap() >= 0x80
}
