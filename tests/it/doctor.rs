//! The preflight: every planted mistake is found, with its severity and the line that mends it; what is right raises no alarm.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::dns::{Recursor, loopback, script, txt};
use crate::support::pebble::{Options, Pebble};
use crate::support::starlock::{Starlock, binary, command, write_config};
use crate::support::zones::{
    Authority, Bind, Validator, Zone, port_53, signed_by_tools, signed_long_ago, udp_only,
};
use crate::support::{eventually, free_port};

/// What `doctor --json` said.
struct Diagnosis {
    json: Value,
    code: Option<i32>,
    _dir: TempDir,
}

impl Diagnosis {
    /// Runs it on a configuration in a directory of its own.
    fn of(config: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_config(dir.path(), config);
        Self::within(dir, more)
    }

    fn within(dir: TempDir, more: &[&str]) -> Self {
        let begun = Instant::now();
        let output = command(dir.path(), &[&["doctor", "--json"], more].concat());
        assert!(begun.elapsed() < Duration::from_secs(100), "it took {:?}", begun.elapsed());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        Self { json, code: output.status.code(), _dir: dir }
    }

    fn findings(&self) -> &Vec<Value> {
        self.json["findings"].as_array().unwrap()
    }

    /// The finding `id` of this severity whose text and fix hold all of `words`; the fix is never empty.
    #[track_caller]
    fn has(&self, id: &str, severity: &str, words: &[&str]) -> &Self {
        let fits = |finding: &&Value| {
            let text = |key: &str| finding[key].as_str().unwrap().to_owned();
            let all = [text("what"), text("why"), text("fix"), text("place")].join("\n");
            finding["id"] == id
                && finding["severity"] == severity
                && words.iter().all(|word| all.contains(word))
        };
        let found = self.findings().iter().find(fits);
        let Some(found) = found else { panic!("no {severity} {id} with {words:?} in\n{:#}", self.json) };
        for key in ["what", "why", "fix", "place"] {
            assert!(!found[key].as_str().unwrap().is_empty(), "{key} is empty: {found}");
        }
        assert_eq!(self.json["ok"] == true, self.code == Some(0));
        assert!(severity != "failure" || self.code == Some(1), "{:?}", self.code);
        self
    }

    /// Nothing else is wrong.
    #[track_caller]
    fn only(&self, ids: &[&str]) -> &Self {
        let bad = |finding: &&Value| ["failure", "warning"].iter().any(|s| finding["severity"] == *s);
        let others: Vec<_> =
            self.findings().iter().filter(bad).filter(|f| !ids.iter().any(|id| f["id"] == *id)).collect();
        assert!(others.is_empty(), "a false alarm: {others:#?}");
        self
    }

    /// Nothing is wrong, and each of these was looked at.
    #[track_caller]
    fn good(&self, looked_at: &[&str]) {
        self.only(&[]);
        assert_eq!(self.code, Some(0));
        for id in looked_at {
            assert!(
                self.findings().iter().any(|f| f["id"] == *id && f["severity"] == "ok"),
                "{id}: {:#}",
                self.json
            );
        }
    }
}

/// A CA that calls itself `ca.test` in CAA records. It is never asked to sign.
fn pebble() -> Pebble {
    Pebble::start(Options {
        newer: true,
        caa_identities: vec!["ca.test".into()],
        ..Options::with_dns(([127, 0, 0, 1], 1).into())
    })
}

fn base(pebble: &Pebble, dns: &str, names: &str) -> String {
    format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[acme]\nca = \"{}\"\nca_root = \"{}\"\n{dns}\n[[certificates]]\n\
         names = [{names}]\n[routes]\n\"a.localhost\" = {{ respond = 200 }}\n",
        pebble.directory_url,
        pebble.ca_root.display()
    )
}

/// The names are proven by DNS UPDATE at `authority`.
fn update(pebble: &Pebble, authority: &Authority, resolver: SocketAddr, names: &str) -> String {
    let dns = format!(
        "[dns]\nprovider = \"rfc2136\"\nserver = \"{}:53\"\nkey_name = \"acme.\"\nsecret = {{ file = \"{{dir}}/key\" }}\n\
         resolvers = [\"{resolver}\"]\n",
        authority.ip
    );
    base(pebble, &dns, names)
}

/// A directory with the configuration and the key.
fn directory(config: &str, secret: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), config);
    mode(&dir.path().join("starlock.toml"), 0o600);
    fs::write(dir.path().join("key"), secret).unwrap();
    mode(&dir.path().join("key"), 0o600);
    dir
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn examine(authority: &Authority, config: &str) -> Diagnosis {
    Diagnosis::within(directory(config, &authority.secret), &[])
}

/// `test` with a delegation for each of these zones to name servers inside of it.
fn top(ip: Ipv4Addr, body: &str) -> Authority {
    Authority::start(ip, &[Zone::new("test", ip, body)])
}

/// A delegation of `zone` (below `test`) to `ns` in it.
fn delegate(zone: &str, ip: Ipv4Addr) -> String {
    let label = zone.strip_suffix(".test").unwrap();
    format!("{label} NS ns.{label}\nns.{label} A {ip}\n")
}

const BOTH: &str = "\"example.test\", \"*.example.test\"";

#[test]
fn a_zone_that_takes_updates_is_right() {
    let (parent, child, pebble) = (loopback(), loopback(), pebble());
    let zone = Zone::new(
        "example.test",
        child,
        "@ CAA 0 issue \"ca.test; validationmethods=dns-01\"\n* CNAME www\nwww A 192.0.2.1",
    );
    let authority = Authority::start(child, &[zone]);
    let top = top(parent, &delegate("example.test", child));
    let unbound = Recursor::unbound("test", top.ip.into());
    let diagnosis = examine(&authority, &update(&pebble, &authority, unbound.address, BOTH));
    diagnosis.good(&[
        "zone.servers",
        "challenge.name",
        "challenge.wildcard-cname",
        "caa.allowed",
        "provider.works",
        "ca.directory",
        "listener.free",
        "state.good",
        "config.good",
    ]);
    // Nothing is left behind, and nobody was asked too early.
    assert!(txt((child, 53).into(), "_acme-challenge.example.test").is_empty());
    let told = examine(&authority, &update(&pebble, &authority, unbound.address, BOTH));
    told.good(&["provider.works"]);
    let quiet = Diagnosis::within(
        directory(&update(&pebble, &authority, unbound.address, BOTH), &authority.secret),
        &["--no-write"],
    );
    quiet.only(&[]);
    assert!(quiet.findings().iter().any(|f| f["id"] == "provider.not-tried" && f["severity"] == "skipped"));
}

#[test]
fn a_cname_to_another_zone_is_right() {
    let (parent, child, other, pebble) = (loopback(), loopback(), loopback(), pebble());
    let _site = Authority::start(
        child,
        &[Zone::new("example.test", child, "_acme-challenge CNAME example.test.acme.test.")],
    );
    let acme = Authority::start(other, &[Zone::new("acme.test", other, "")]);
    let body = delegate("example.test", child) + &delegate("acme.test", other);
    let top = top(parent, &body);
    let bind = Recursor::bind("test", top.ip.into());
    let diagnosis = examine(&acme, &update(&pebble, &acme, bind.address, BOTH));
    diagnosis.good(&["challenge.name", "provider.works", "zone.servers"]);
    assert!(
        diagnosis
            .findings()
            .iter()
            .any(|f| f["what"].as_str().unwrap().contains("stand at example.test.acme.test"))
    );
}

#[test]
fn a_signed_zone_with_a_whole_chain_is_right_and_a_broken_one_is_bogus() {
    let (parent, ip, pebble) = (loopback(), loopback(), pebble());
    let signed = |name: &str| Zone::new(name, ip, "").with(|zone| zone.signed = true);
    let expired = Zone::new("expired.test", ip, "");
    let (expired_file, expired_ds) = signed_long_ago(&expired);
    let zones = [
        ("good.test", signed("good.test").file(), true),
        ("other.test", signed("other.test").file(), true),
        ("bare.test", Zone::new("bare.test", ip, "").file(), false),
        ("expired.test", expired_file, false),
    ];
    let child = Authority::start_files(ip, &zones);
    let good = child.ds("good.test");
    let mut body = good.clone() + "\n" + &expired_ds + "\n";
    for (zone, ..) in &zones {
        body += &delegate(zone, ip);
    }
    // Keys of another zone, for one that is signed and for one that is not.
    for zone in ["other", "bare"] {
        body += &good.replace("good.test.", &format!("{zone}.test.")).replace("\n", "");
        body += "\n";
    }
    let top = Authority::start(parent, &[Zone::new("test", parent, &body).with(|zone| zone.signed = true)]);
    let unbound = Validator::start("test", parent, &top.ds("test"));
    examine(&child, &update(&pebble, &child, unbound.address, "\"good.test\""))
        .good(&["dnssec.valid", "provider.works"]);
    let names = "\"bare.test\", \"expired.test\", \"other.test\"";
    // A resolver that believes everything does not hide it.
    let credulous = Recursor::unbound("test", parent.into());
    for resolver in [unbound.address, credulous.address] {
        let diagnosis = examine(&child, &update(&pebble, &child, resolver, names));
        diagnosis
            .has(
                "dnssec.bogus",
                "failure",
                &[
                    "bare.test is signed (it has a DS record), and the zone has no key",
                    "take the DS records of bare.test. away",
                ],
            )
            .has("dnssec.bogus", "failure", &["the DS records of other.test", "dnssec-dsfromkey"])
            .has(
                "dnssec.bogus",
                "failure",
                &["expired.test", "have signatures that have ended", "sign expired.test again"],
            )
            .only(&["dnssec.bogus", "caa.unanswered", "challenge.refused"]);
    }
}

#[test]
fn an_algorithm_that_is_not_known_here_is_no_alarm_and_ended_signatures_of_it_are() {
    let (parent, ip, pebble) = (loopback(), loopback(), pebble());
    let (good, good_ds) =
        signed_by_tools(&Zone::new("good.test", ip, ""), "ED448", ["20260101000000", "20880101000000"]);
    let (over, over_ds) =
        signed_by_tools(&Zone::new("over.test", ip, ""), "ED448", ["20200101000000", "20200201000000"]);
    let child = Authority::start_files(ip, &[("good.test", good, false), ("over.test", over, false)]);
    let body = format!("{good_ds}\n{over_ds}\n{}{}", delegate("good.test", ip), delegate("over.test", ip));
    let top = Authority::start(parent, &[Zone::new("test", parent, &body).with(|zone| zone.signed = true)]);
    let unbound = Recursor::unbound("test", top.ip.into());
    // Its signatures would no longer hold if a record were written.
    let look = |name: &str| {
        let config = update(&pebble, &child, unbound.address, &format!("\"{name}\""));
        Diagnosis::within(directory(&config, &child.secret), &["--no-write"])
    };
    let diagnosis = look("good.test");
    diagnosis.only(&[]);
    let unseen = |finding: &&Value| finding["id"] == "dnssec.unknown" && finding["severity"] == "skipped";
    let found = diagnosis.findings().iter().find(unseen).unwrap_or_else(|| panic!("{:#}", diagnosis.json));
    assert!(found["why"].as_str().unwrap().contains("algorithm 16"), "{found}");
    look("over.test").has("dnssec.bogus", "failure", &["signatures that have ended"]).only(&["dnssec.bogus"]);
}

/// One zone is right and four are not, all at the same BIND.
#[test]
fn mistakes_in_zones_of_bind() {
    let (parent, ip, pebble) = (loopback(), loopback(), pebble());
    let zone = |name: &str| Zone::new(name, ip, "");
    let grant = "grant acme. wildcard * TXT;";
    let addressed = |name: &str, ip: Ipv4Addr| Zone::new(name, ip, "");
    let late = loopback();
    let bind = Bind::start(
        &[
            (zone("good.test"), grant),
            (zone("other-key.test"), "grant acme. name elsewhere.other-key.test. TXT;"),
            (zone("broken.test").with(|zone| zone.body.push_str("\n( a line that never ends")), grant),
            (addressed("no-tcp.test", late).with(|zone| zone.body = "ns A 127.0.0.1".into()), grant),
        ],
        "good.test",
        ip,
    );
    let no_tcp = udp_only(bind.address);
    let body: String =
        ["good.test", "other-key.test", "broken.test", "lame.test"].map(|zone| delegate(zone, ip)).concat()
            + &delegate("no-tcp.test", no_tcp);
    let top = top(parent, &body);
    let unbound = Recursor::unbound("test", top.ip.into());
    let dns = format!(
        "[dns]\nprovider = \"rfc2136\"\nserver = \"{}\"\nkey_name = \"acme.\"\nsecret = {{ file = \"{{dir}}/key\" }}\nresolvers = [\"{}\"]\n",
        bind.address, unbound.address
    );
    let look = |names: &str| Diagnosis::within(directory(&base(&pebble, &dns, names), &bind.secret), &[]);
    look("\"good.test\", \"*.good.test\"").good(&["provider.works", "zone.servers"]);
    look("\"other-key.test\"")
        .has("provider.refused", "failure", &["grant acme. name _acme-challenge.other-key.test. TXT;"])
        .only(&["provider.refused"]);
    let broken = look("\"broken.test\", \"lame.test\"");
    broken.has("challenge.no-server", "failure", &["broken.test", "SERVFAIL"]).has(
        "challenge.no-server",
        "failure",
        &["lame.test", "REFUSED"],
    );
    look("\"no-tcp.test\"").has("zone.tcp-blocked", "warning", &["dig +tcp +norecurse"]);
}

/// What the ledger has counted is told before an order is; and what cannot be written is told as another user.
#[test]
fn a_budget_that_is_spent_and_a_state_that_cannot_be_written() {
    let (ip, pebble) = (loopback(), pebble());
    let top = top(ip, "");
    let unbound = Recursor::unbound("test", top.ip.into());
    let signing = Pebble::start(Options::with_dns(unbound.address));
    let limits = "limits = { names = { burst = 1, every = \"168h\" } }\nca_root =";
    let config = update(&signing, &top, unbound.address, "\"example.test\"").replace("ca_root =", limits);
    let mut starlock = Starlock::start_with(&config, |dir, _| {
        fs::write(dir.join("key"), &top.secret).unwrap();
        mode(&dir.join("key"), 0o600);
        mode(&dir.join("starlock.toml"), 0o600);
    });
    starlock.serial_other_than("example.test", None);
    starlock.process().signal("TERM");
    assert!(starlock.process().wait().success());
    let output = starlock.command(&["doctor", "--json", "--no-write"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e} {output:?}"));
    Diagnosis { json, code: output.status.code(), _dir: tempfile::tempdir().unwrap() }
        .has("budget.spent", "warning", &["exactly example.test is used up", "fallback"])
        .only(&["budget.spent"]);

    let dir = directory(&update(&pebble, &top, unbound.address, "\"example.test\""), &top.secret);
    fs::create_dir(dir.path().join("state")).unwrap();
    for (path, wide) in [(dir.path().to_owned(), 0o777), (dir.path().join("state"), 0o700)] {
        mode(&path, wide);
    }
    for name in ["key", "starlock.toml"] {
        std::os::unix::fs::chown(dir.path().join(name), Some(65534), Some(65534)).unwrap();
    }
    let usual = binary(dir.path());
    let mut other = std::process::Command::new("setpriv");
    other.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(usual.get_program());
    other.args(["doctor", "--json", "--no-write"]).current_dir(dir.path()).env_clear();
    other.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = other.output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e} {output:?}"));
    Diagnosis { json, code: output.status.code(), _dir: dir }.has(
        "state.unwritable",
        "failure",
        &["uid 65534 cannot write to", "chown -R 65534"],
    );
}

#[test]
fn a_provider_that_does_not_take_away_and_a_delegation_without_glue_to_the_responder() {
    let (ip, pebble) = (loopback(), pebble());
    let top = top(ip, "_acme-challenge.example NS ns._acme-challenge.example");
    let unbound = Recursor::unbound("test", top.ip.into());
    let hook = format!(
        "#!/bin/sh\nset -eu\ntest $1 = present || exit 0\n\
         printf 'server {ip} 53\\nzone test\\nupdate add %s 1 TXT \"%s\"\\nsend\\n' $2 \"$3\" | nsupdate -v -y hmac-sha256:acme:{}\n",
        top.secret
    );
    let dns = format!(
        "[dns]\nprovider = \"exec\"\nprogram = \"{{dir}}/hook\"\nresolvers = [\"{}\"]\n",
        unbound.address
    );
    let dir = directory(&base(&pebble, &dns, "\"other.test\""), "x");
    script(&dir.path().join("hook"), &hook);
    Diagnosis::within(dir, &[])
        .has("provider.not-removed", "warning", &["_acme-challenge.other.test", "credentials may delete too"])
        .only(&["provider.not-removed"]);

    let responder = loopback();
    let name = "ns._acme-challenge.example.test";
    let config = builtin(&pebble, responder, name, unbound.address, "");
    Diagnosis::of(&config, &[]).has(
        "delegation.glue-missing",
        "failure",
        &["without glue nobody finds its address", &format!("{name}.  A  {responder}")],
    );
}

#[test]
fn aliases_that_lead_nowhere() {
    let (ip, pebble) = (loopback(), pebble());
    let body = "_acme-challenge.loop CNAME again\nagain CNAME _acme-challenge.loop\n\
                _acme-challenge.gone CNAME x.nobody\nnobody NS ns.nobody\nns.nobody A 127.64.0.1\n\
                _acme-challenge.far CNAME x.example.invalid.\n";
    let top = top(ip, body);
    let unbound = Recursor::unbound("test", ip.into());
    let names = "\"loop.test\", \"gone.test\", \"far.test\"";
    examine(&top, &update(&pebble, &top, unbound.address, names))
        .has(
            "challenge.loop",
            "failure",
            &[
                "_acme-challenge.loop.test -> again.test",
                "delete the CNAME: _acme-challenge.loop.test.  CNAME  again.test.",
            ],
        )
        .has(
            "challenge.dangling",
            "failure",
            &[
                "nobody.test",
                "serve the zone of nobody.test, or delete the CNAME at _acme-challenge.gone.test.",
            ],
        )
        .has(
            "challenge.dangling",
            "failure",
            &["x.example.invalid", "delete the CNAME at _acme-challenge.far.test."],
        )
        .only(&["challenge.loop", "challenge.dangling"]);
}

#[test]
fn servers_that_are_down_refuse_are_lame_or_forgot_tcp() {
    let (parent, first, pebble) = (loopback(), loopback(), pebble());
    let (silent, refusing) = (loopback(), loopback());
    let udp = udp_only((first, 53));
    let ns = |n: usize| format!("ns{n}");
    let addresses = [first, silent, refusing, parent, udp];
    let glue: String = addresses.iter().enumerate().map(|(n, ip)| format!("ns{n} A {ip}\n")).collect();
    let zone = Zone::new("example.test", first, &glue).with(|zone| {
        zone.servers = (0..addresses.len()).map(ns).chain(["nowhere.test.".to_owned()]).collect();
    });
    let authority = Authority::start(first, &[zone]);
    let _refusing = Authority::start(refusing, &[Zone::new("unrelated.test", refusing, "")]);
    let mut body = String::from("example NS nowhere\n");
    for (n, ip) in addresses.iter().enumerate() {
        body += &format!("example NS ns{n}.example\nns{n}.example A {ip}\n");
    }
    let top = top(parent, &body);
    let unbound = Recursor::unbound("test", top.ip.into());
    let config = update(&pebble, &authority, unbound.address, BOTH);
    let take = |n: usize| format!("take `example.test. NS ns{n}.example.test.` out of example.test");
    let check = |diagnosis: &Diagnosis, severity: &str| {
        diagnosis
            .has("zone.server-silent", severity, &[&silent.to_string(), &take(1), "open its port 53 for UDP"])
            .has("zone.server-refuses", severity, &[&refusing.to_string(), "answers REFUSED", &take(2)])
            .has("zone.server-lame", severity, &[&parent.to_string(), "(lame)", &take(3)])
            .has("zone.server-unresolved", severity, &["nowhere.test", "nowhere.test.  A  (its address)"])
            .has("zone.tcp-blocked", "warning", &[&udp.to_string(), "dig +tcp +norecurse"]);
    };
    let diagnosis = examine(&authority, &config);
    check(&diagnosis, "failure");
    diagnosis.has("provider.not-seen", "warning", &["not every server of the zone showed it"]);
    // An order that waits for nobody goes through.
    let diagnosis =
        examine(&authority, &config.replace("resolvers =", "propagation = { check = \"off\" }\nresolvers ="));
    check(&diagnosis, "warning");
    assert_eq!(diagnosis.code, Some(0), "{:#}", diagnosis.json);
}

#[test]
fn servers_and_parents_that_disagree() {
    let (parent, one, two, pebble) = (loopback(), loopback(), loopback(), pebble());
    let zone = |ip, serial| {
        Zone::new("example.test", ip, &format!("ns1 A {one}\nns2 A {two}")).with(|zone| {
            zone.serial = serial;
            zone.minimum = 7200;
            zone.servers = vec!["ns1".into(), "ns2".into()];
        })
    };
    let authority = Authority::start(one, &[zone(one, 7)]);
    let _lagging = Authority::start(two, &[zone(two, 3).with(|zone| zone.servers = vec!["ns1".into()])]);
    // ns2 is missing above; ns3 is long gone from the zone, and has the address of ns1.
    let top = top(
        parent,
        &format!(
            "example NS ns1.example\nns1.example A {one}\nexample NS ns3.example\nns3.example A {two}\n"
        ),
    );
    let unbound = Recursor::unbound("test", top.ip.into());
    let diagnosis = examine(&authority, &update(&pebble, &authority, unbound.address, BOTH));
    diagnosis
        .has(
            "zone.serials-differ",
            "warning",
            &["7 at ns1.example.test", "3 at ns", "dig +nssearch example.test"],
        )
        .has("zone.answers-differ", "warning", &["ns1.example.test", "from one primary"])
        .has(
            "zone.ns-mismatch",
            "warning",
            &[
                "add at the parent: example.test.  NS  ns2.example.test.",
                "take away at the parent: example.test.  NS  ns3.example.test.",
            ],
        )
        .has(
            "zone.negative-ttl",
            "warning",
            &["7200 s", "set the last number of the SOA of example.test. to 300"],
        )
        .only(&[
            "zone.serials-differ",
            "zone.answers-differ",
            "zone.ns-mismatch",
            "zone.negative-ttl",
            "provider.not-seen",
        ]);
}

#[test]
fn a_delegation_without_glue() {
    let (parent, child, pebble) = (loopback(), loopback(), pebble());
    let authority = Authority::start(child, &[Zone::new("example.test", child, "")]);
    let top = top(parent, "example NS ns.example\n");
    let unbound = Recursor::unbound("test", top.ip.into());
    examine(&authority, &update(&pebble, &authority, unbound.address, "\"example.test\"")).has(
        "zone.glue-missing",
        "failure",
        &["ns.example.test", "ns.example.test.  A  (its address)"],
    );
}

#[test]
fn caa_records_that_forbid() {
    let (ip, pebble) = (loopback(), pebble());
    let body = "other CAA 0 issue \"elsewhere.test\"\n\
                wild CAA 0 issue \"ca.test\"\nwild CAA 0 issuewild \";\"\n\
                account CAA 0 issue \"ca.test; accounturi=https://ca.test/acct/1\"\n\
                method CAA 0 issue \"ca.test; validationmethods=http-01\"\n\
                odd CAA 128 strange \"x\"\n\
                fine CAA 0 issue \"CA.test\"\ndeep.fine A 192.0.2.1\n";
    let top = top(ip, body);
    let unbound = Recursor::unbound("test", ip.into());
    let names = "\"other.test\", \"*.wild.test\", \"wild.test\", \"account.test\", \"method.test\", \"odd.test\", \"deep.fine.test\"";
    let diagnosis = examine(&top, &update(&pebble, &top, unbound.address, names));
    diagnosis
        .has(
            "caa.forbidden",
            "failure",
            &["let elsewhere.test sign other.test", "other.test.  CAA  0 issue \"ca.test\""],
        )
        .has(
            "caa.forbidden",
            "failure",
            &["let nobody sign *.wild.test", "wild.test.  CAA  0 issuewild \"ca.test\""],
        )
        .has(
            "caa.account",
            "failure",
            &[
                "only the account https://ca.test/acct/1",
                "account.test.  CAA  0 issue \"ca.test; validationmethods=dns-01\"",
            ],
        )
        .has(
            "caa.method",
            "failure",
            &["allows http-01", "method.test.  CAA  0 issue \"ca.test; validationmethods=dns-01\""],
        )
        .has("caa.critical", "failure", &["`strange`", "odd.test.  CAA  0 strange \"x\""])
        .only(&["caa.forbidden", "caa.account", "caa.method", "caa.critical"]);
    let allowed = |what: &str| {
        diagnosis
            .findings()
            .iter()
            .any(|f| f["id"] == "caa.allowed" && f["what"].as_str().unwrap().ends_with(what))
    };
    assert!(allowed("sign wild.test") && allowed("sign deep.fine.test"), "{:#}", diagnosis.json);
}

#[test]
fn credentials_that_do_not_work() {
    let (ip, hidden, pebble) = (loopback(), loopback(), pebble());
    let top = Authority::start(ip, &[Zone::new("test", ip, "")]);
    let elsewhere = Authority::start(hidden, &[Zone::new("test", hidden, "")]);
    let unbound = Recursor::unbound("test", ip.into());
    let config = update(&pebble, &top, unbound.address, "\"example.test\"");
    examine(&elsewhere, &config)
        .has(
            "provider.refused",
            "failure",
            &["_acme-challenge.example.test", "grant acme. name _acme-challenge.example.test. TXT;"],
        )
        .only(&["provider.refused"]);
    let config = update(&pebble, &elsewhere, unbound.address, "\"example.test\"");
    examine(&elsewhere, &config)
        .has("provider.not-seen", "failure", &["no server of the zone showed it", "dig +nssearch test"])
        .only(&["provider.not-seen"]);
    assert!(txt((hidden, 53).into(), "_acme-challenge.example.test").is_empty());
    let nobody = loopback();
    let config = config.replace(&hidden.to_string(), &nobody.to_string());
    examine(&elsewhere, &config)
        .has("provider.unavailable", "failure", &[&format!("dig +tcp @{nobody} -p 53")])
        .only(&["provider.unavailable"]);
    // A key that is not there.
    let dir = directory(&config, "x");
    fs::remove_file(dir.path().join("key")).unwrap();
    Diagnosis::within(dir, &[])
        .has("secret.unreadable", "failure", &["/key", "[dns] secret"])
        .only(&["secret.unreadable"]);
}

#[test]
fn each_challenge_is_judged_by_what_it_needs() {
    let (ip, pebble) = (loopback(), pebble());
    let top = top(
        ip,
        "www A 192.0.2.1\nwww CAA 0 issue \"ca.test; validationmethods=tls-alpn-01\"\n\
         _acme-challenge.www CNAME gone.nowhere.invalid.\n",
    );
    let unbound = Recursor::unbound("test", top.ip.into());
    // The provider is for other certificates: it would fail, and nobody asks it.
    let by = |challenge: &str| {
        let dns = format!(
            "challenge = \"{challenge}\"\n[dns]\nprovider = \"exec\"\nprogram = \"/bin/false\"\nresolvers = [\"{}\"]",
            unbound.address
        );
        let config = base(&pebble, &dns, "\"www.test\"").replace("http = []", "http = [\"127.0.0.1:0\"]");
        Diagnosis::of(&config, &[])
    };
    let listeners = by("tls-alpn-01");
    listeners.good(&["host.there", "caa.allowed"]);
    assert!(!listeners.json.to_string().contains("_acme-challenge"), "{:#}", listeners.json);
    by("http-01")
        .has("caa.method", "failure", &["proves it by http-01", "validationmethods=http-01"])
        .only(&["caa.method"]);
    by("dns-account-01")
        .has("caa.method", "failure", &["validationmethods=dns-account-01"])
        .has("challenge.unlabelled", "skipped", &["no account is registered yet"])
        .only(&["caa.method"]);
    by("dns-persist-01")
        .has("caa.method", "failure", &["validationmethods=dns-persist-01"])
        .has(
            "persist.unknown",
            "skipped",
            &["_validation-persist.www.test.  TXT  \"", "; accounturi=ACCOUNT\""],
        )
        .only(&["caa.method"]);
}

/// The names are proven by the built-in responder at `ip`.
fn builtin(pebble: &Pebble, ip: Ipv4Addr, nameserver: &str, resolver: SocketAddr, more: &str) -> String {
    let dns = format!(
        "[dns]\nprovider = \"builtin\"\nresolvers = [\"{resolver}\"]\n[responder]\nlisten = [\"{ip}:53\"]\n{more}\n\
         nameservers = [{{ name = \"{nameserver}\", addresses = [\"{ip}\"] }}]\n"
    );
    base(pebble, &dns, BOTH)
}

#[test]
fn the_responder_with_its_records_is_right() {
    let (ip, responder) = (loopback(), loopback());
    let body = format!("_acme-challenge.example NS ns.edge\nns.edge A {responder}\n");
    let top = top(ip, &body);
    let unbound = Recursor::unbound("test", top.ip.into());
    let pebble = Pebble::start(Options {
        newer: true,
        caa_identities: vec!["ca.test".into()],
        ..Options::with_dns(unbound.address)
    });
    let config = builtin(&pebble, responder, "ns.edge.test", unbound.address, "");
    let diagnosis = Diagnosis::of(&config, &[]);
    diagnosis.good(&["delegation.there", "delegation.nameserver", "listener.free", "caa.advice"]);
    let advice = diagnosis.findings().iter().find(|finding| finding["id"] == "caa.advice").unwrap();
    assert_eq!(advice["fix"], "example.test.  CAA  0 issue \"ca.test; validationmethods=dns-01\"");
    // Beside the process that it is about.
    let starlock = Starlock::start(
        &config
            .replace("https = [\"127.0.0.1:0\"]", "https = [\"{dir}:0\"]")
            .replace("{dir}:0", "127.0.0.1:0"),
    );
    starlock.serial_other_than("example.test", None);
    let output = starlock.command(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for words in [
        "held by the running Starlock",
        "answers over UDP and TCP",
        "example.test.  CAA  0 issue \"ca.test; validationmethods=dns-01; accounturi=https://",
        "leads to Starlock",
        "nothing is wrong; ",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    assert!(!text.contains("warn") && !text.contains("FAIL"), "{text}");
}

#[test]
fn records_that_do_not_lead_to_the_responder() {
    let (ip, responder, pebble) = (loopback(), loopback(), pebble());
    let top = top(ip, "ns.edge A 192.0.2.9\n_acme-challenge.away NS ns.other\nns.other A 192.0.2.8");
    let unbound = Recursor::unbound("test", top.ip.into());
    let config = builtin(&pebble, responder, "ns.edge.test", unbound.address, "");
    let line = "_acme-challenge.example.test.  NS  ns.edge.test.";
    Diagnosis::of(&config, &[])
        .has("delegation.missing", "failure", &["is not delegated to Starlock yet", line])
        .has(
            "delegation.nameserver-address",
            "failure",
            &["192.0.2.9", &format!("ns.edge.test.  A  {responder}")],
        )
        .only(&["delegation.missing", "delegation.nameserver-address"]);
    let away = config.replace("example.test", "away.test");
    Diagnosis::of(&away, &[])
        .has(
            "delegation.elsewhere",
            "failure",
            &["NS ns.other.test", "replace it by:\n_acme-challenge.away.test.  NS  ns.edge.test."],
        )
        .only(&["delegation.elsewhere", "delegation.nameserver-address"]);
}

#[test]
fn ports_files_and_directories() {
    let (ip, pebble) = (loopback(), pebble());
    let top = top(ip, "");
    let unbound = Recursor::unbound("test", top.ip.into());
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = loopback();
    let dns = port_53(|| UdpSocket::bind((nobody, 53)));
    let (web, name) = (web.local_addr().unwrap(), (web, dns.local_addr().unwrap()));
    let me = format!("(process {})", std::process::id());
    let config = builtin(&pebble, loopback(), "ns.edge.test", unbound.address, "")
        .replace("https = [\"127.0.0.1:0\"]", &format!("https = [\"{web}\", \"192.0.2.1:443\"]"));
    let config =
        config.replace("http = []", &format!("http = []\nmetrics = \"{web}\"", web = "198.51.100.1:9464"));
    let start = config.find("listen = [\"127.").unwrap();
    let end = start + config[start..].find('\n').unwrap();
    let config = format!("{}listen = [\"{}\"]{}", &config[..start], name.1, &config[end..]);
    Diagnosis::of(&config, &[])
        .has(
            "listener.in-use",
            "failure",
            &[&web.to_string(), &me, &format!("ss -lntp 'sport = :{}'", web.port()), "[listen] https"],
        )
        .has("listener.in-use", "failure", &[&name.1.to_string(), "(udp)", &me, "[responder] listen"])
        .has("listener.not-here", "failure", &["192.0.2.1", "ip -brief address"])
        .has("listener.not-here", "failure", &["198.51.100.1", "[listen] metrics"]);
    drop(name);

    // Low ports are for the privileged.
    let config = "acme = \"local\"\nlisten = { https = [\"127.0.0.1:443\"], http = [] }\nroutes.\"a.localhost\" = { respond = 200 }\n\
                  storage.path = \"/dev/shm/starlock-doctor\"\n";
    let dir = directory(config, "x");
    mode(dir.path(), 0o755);
    mode(&dir.path().join("starlock.toml"), 0o644);
    let program = binary(dir.path()).get_program().to_owned();
    let mut unprivileged = std::process::Command::new("setpriv");
    unprivileged
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set", "-all", "--"])
        .arg(program);
    unprivileged.current_dir(dir.path()).args(["doctor", "--json", "--config", "starlock.toml"]);
    let output = unprivileged.output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e} {output:?}"));
    let diagnosis = Diagnosis { json, code: output.status.code(), _dir: dir };
    diagnosis
        .has(
            "listener.denied",
            "failure",
            &[
                "port 443",
                "AmbientCapabilities=CAP_NET_BIND_SERVICE",
                "net.ipv4.ip_unprivileged_port_start=443",
            ],
        )
        .has(
            "state.not-durable",
            "warning",
            &["/dev/shm/starlock-doctor lies in memory", "[storage] path = \"/var/lib/starlock\""],
        )
        .has("admin.unusable", "failure", &["nothing can be made in", "RuntimeDirectory=starlock"])
        .only(&["listener.denied", "state.not-durable", "admin.unusable"]);

    let config = update(&pebble, &top, unbound.address, "\"example.test\"")
        .replace("{ file = \"{dir}/key\" }", &format!("\"{}\"", top.secret));
    let dir = directory(&config, "x");
    mode(&dir.path().join("starlock.toml"), 0o644);
    fs::create_dir(dir.path().join("state")).unwrap();
    mode(&dir.path().join("state"), 0o755);
    let place = dir.path().join("state").display().to_string();
    Diagnosis::within(dir, &[])
        .has("config.secrets-exposed", "warning", &["mode 0644", "chmod o-r "])
        .has("state.rights", "warning", &["mode 0755", &format!("chmod 0700 {place}")])
        .only(&["config.secrets-exposed", "state.rights"]);
    let dir = directory(&update(&pebble, &top, unbound.address, "\"example.test\""), &top.secret);
    mode(&dir.path().join("key"), 0o644);
    Diagnosis::within(dir, &[]).has("secret.exposed", "warning", &["chmod 0600 "]).only(&["secret.exposed"]);
}

#[test]
fn what_another_user_keeps_is_read_and_nothing_is_written_beside_it() {
    let (ip, pebble) = (loopback(), pebble());
    let top = top(ip, "");
    let unbound = Recursor::unbound("test", top.ip.into());
    // Limits of its own, so that somebody counts.
    let limits = "limits = { names = { burst = 5, every = \"168h\" } }\nca_root =";
    let config = update(&pebble, &top, unbound.address, "\"example.test\"").replace("ca_root =", limits);
    let dir = directory(&config, &top.secret);
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    mode(&state, 0o700);
    std::os::unix::fs::chown(&state, Some(65534), Some(65534)).unwrap();
    let diagnosis = Diagnosis::within(dir, &[]);
    diagnosis.only(&[]);
    let skipped = |finding: &&Value| finding["id"] == "provider.not-tried";
    let found = diagnosis.findings().iter().find(skipped).unwrap_or_else(|| panic!("{:#}", diagnosis.json));
    assert!(found["why"].as_str().unwrap().contains("sudo -u '#65534' starlock doctor"), "{found}");
    assert!(diagnosis.findings().iter().any(|f| f["id"] == "budget.left"), "{:#}", diagnosis.json);
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
}

#[test]
fn what_a_ca_demands_and_whether_it_is_one() {
    let ip = loopback();
    let top = top(ip, "");
    let unbound = Recursor::unbound("test", top.ip.into());
    let demanding = Pebble::start(Options {
        external_account: Some((
            "kid-1".into(),
            "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W".into(),
        )),
        ..Options::with_dns(([127, 0, 0, 1], 1).into())
    });
    let config = update(&demanding, &top, unbound.address, "\"example.test\"");
    examine(&top, &config)
        .has("ca.external-account", "failure", &["[acme] eab = { kid = "])
        .only(&["ca.external-account"]);
    let url = &demanding.directory_url;
    examine(&top, &config.replace(url.as_str(), &url.replace("/dir", "/nothing")))
        .has("ca.not-acme", "failure", &["answers 404", "curl -s https://localhost"])
        .only(&["ca.not-acme"]);
    let untrusting =
        config.lines().filter(|line| !line.starts_with("ca_root")).collect::<Vec<_>>().join("\n");
    examine(&top, &untrusting).has("ca.tls", "failure", &["[acme] ca_root = "]).only(&["ca.tls"]);
    let root = demanding.ca_root.display().to_string();
    examine(&top, &config.replace(&root, "/nowhere/root.pem"))
        .has("ca.root", "failure", &["/nowhere/root.pem", "ls -l /nowhere/root.pem"])
        .only(&["ca.root"]);
    let closed = free_port();
    examine(&top, &config.replace(url.as_str(), &format!("https://localhost:{closed}/dir")))
        .has("ca.unreachable", "failure", &["let this machine connect to it: curl -v https://localhost"])
        .only(&["ca.unreachable"]);
    // The external account is there, and a profile that is not.
    let eab = "profile = \"brief\"\neab = { kid = \"kid-1\", hmac = { file = \"{dir}/key\" } }\nca_root =";
    examine(&top, &config.replace("ca_root =", eab))
        .has("ca.profile", "failure", &["offers no profiles", "take `profile` out of [acme]"])
        .only(&["ca.profile"]);
    let offering = Pebble::start(Options {
        newer: true,
        profiles: vec![("shortlived".into(), 600)],
        ..Options::with_dns(([127, 0, 0, 1], 1).into())
    });
    let config = update(&offering, &top, unbound.address, "\"example.test\"");
    examine(&top, &config.replace("ca_root =", "profile = \"brief\"\nca_root ="))
        .has("ca.profile", "failure", &["`brief`", "[acme] profile = \"default\""])
        .only(&["ca.profile"]);
    examine(&top, &config.replace("ca_root =", "profile = \"shortlived\"\nca_root ="))
        .good(&["ca.directory"]);
    // A clock that is a day ahead.
    let plain = pebble();
    let dir = directory(&update(&plain, &top, unbound.address, "\"example.test\""), &top.secret);
    let wanted = binary(dir.path());
    let mut ahead = std::process::Command::new("faketime");
    ahead.args(["-m", "-f", "+1d"]).arg(wanted.get_program()).current_dir(dir.path());
    ahead.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    for (name, value) in wanted.get_envs() {
        if let Some(value) = value {
            ahead.env(name, value);
        }
    }
    let output = ahead.args(["doctor", "--json", "--no-write"]).output().expect("faketime is installed");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e} {output:?}"));
    let diagnosis = Diagnosis { json, code: output.status.code(), _dir: dir };
    diagnosis
        .has("ca.clock", "failure", &["min ahead of the CA's", "timedatectl set-ntp true"])
        .only(&["ca.clock"]);
}

#[test]
fn a_broken_network_ends_soon_and_says_so() {
    let pebble = pebble();
    let (nobody, authority) = (loopback(), loopback());
    let top = Authority::start(authority, &[Zone::new("test", authority, "")]);
    let names: Vec<String> = (0..40).map(|n| format!("\"n{n}.test\"")).collect();
    let config = update(&pebble, &top, (nobody, 53).into(), &names.join(", "));
    // Somebody takes the questions and never answers.
    let _silent = UdpSocket::bind((nobody, 53)).unwrap();
    examine(&top, &config).has("challenge.no-answer", "failure", &["[dns] resolvers = "]);
}

#[test]
fn what_the_running_process_gave_up_on() {
    let (ip, pebble) = (loopback(), pebble());
    let top = top(ip, "");
    let unbound = Recursor::unbound("test", top.ip.into());
    let config = update(&pebble, &top, unbound.address, "\"example.test\"");
    let starlock = Starlock::start_with(&config, |dir, _| fs::write(dir.join("key"), "AAAA").unwrap());
    let parked = || starlock.certificates().iter().any(|c| c["state"] == "parked").then_some(());
    eventually("the order fails", parked);
    let health = starlock.command(&["health"]);
    let said = String::from_utf8_lossy(&health.stderr).into_owned();
    assert!(health.status.code() == Some(1) && said.contains("there is no certificate"), "{said}");
    let output = starlock.command(&["doctor", "--json", "--no-write"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["id"].as_str().unwrap().starts_with("certificate."));
    let found = found.unwrap_or_else(|| panic!("{json:#}"));
    assert!(found["fix"].as_str().unwrap().contains("starlock certs show example.test"), "{found}");
}

/// A self-signed pair for `host` that ends in so many days.
fn pair(dir: &Path, name: &str, host: &str, days: i64) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(100);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    fs::write(dir.join(format!("{name}.crt")), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    mode(&dir.join(format!("{name}.key")), 0o600);
}

/// One that is right needs every file that `POINTING` names.
const POINTING: &str = r#"
listen = { https = ["127.0.0.1:0"], http = [], admin = "{dir}/run/admin.sock" }
acme = "local"
log = { access = { file = "{dir}/access.log" } }
notify = { webhook = "http://127.0.0.1:1/", secret = { file = "{dir}/notify" } }

[[certificates]]
names = ["files.test"]
cert = "{dir}/site.crt"
key = "{dir}/site.key"

[routes]
"files.test" = { respond = 204, error_pages = { "404" = "{dir}/page.html" } }
"mtls.localhost" = { respond = 204 }
"users.localhost" = { respond = 204, basic_auth = { file = "{dir}/users" } }
"app.localhost" = "app"

[upstreams.app]
servers = ["https://127.0.0.1:1"]
sticky = { cookie = "srv", secret = { file = "{dir}/sticky" } }
tls = { ca = "{dir}/servers.crt", cert = "{dir}/us.crt", key = "{dir}/us.key" }

[mtls."mtls.localhost"]
ca = "{dir}/clients.crt"
"#;

#[test]
fn whatever_would_keep_it_from_starting_is_a_finding() {
    let plant = |change: &dyn Fn(&Path)| {
        let dir = directory(POINTING, "x");
        pair(dir.path(), "site", "files.test", 30);
        pair(dir.path(), "clients", "clients.test", 30);
        pair(dir.path(), "servers", "servers.test", 30);
        pair(dir.path(), "us", "us.test", 30);
        for (name, text) in [
            ("notify", "secret"),
            ("sticky", "0123456789abcdef0123456789abcdef"),
            ("page.html", "<p>gone"),
            (
                "users",
                "ada:$argon2id$v=19$m=4096,t=3,p=1$c2FsdHNhbHQ$WTvZF2bZ0b5nJ8RZ0wG4q9H3oFkxJ7k1gR3rFr8sDxk\n",
            ),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
            mode(&dir.path().join(name), 0o600);
        }
        change(dir.path());
        Diagnosis::within(dir, &[])
    };
    plant(&|_| {}).good(&["cert-files.good", "admin.free", "config.good"]);
    type Plant<'a> = (&'a dyn Fn(&Path), &'a str, &'a [&'a str]);
    let remove = |name: &'static str| move |dir: &Path| fs::remove_file(dir.join(name)).unwrap();
    let write =
        |name: &'static str, text: &'static str| move |dir: &Path| fs::write(dir.join(name), text).unwrap();
    let cases: &[Plant<'_>] = &[
        (&remove("site.key"), "cert-files.unusable", &["site.key", "[[certificates]]"]),
        (&|dir| pair(dir, "site", "other.test", 30), "cert-files.names", &["other.test", "files.test"]),
        (&|dir| pair(dir, "site", "files.test", -1), "cert-files.expired", &["site.crt has expired"]),
        (
            &|dir| assert!(fs::copy(dir.join("us.key"), dir.join("site.key")).is_ok()),
            "cert-files.unusable",
            &["does not belong", "openssl pkey"],
        ),
        (&remove("notify"), "secret.unreadable", &["notify", "starlock.toml, line 5"]),
        (&remove("sticky"), "secret.unreadable", &["sticky"]),
        (&remove("clients.crt"), "client-ca.unusable", &["clients.crt"]),
        (&remove("users"), "users.unusable", &["users"]),
        (&write("users", "nonsense"), "users.unusable", &["users"]),
        (&write("servers.crt", "nonsense"), "upstream-ca.unusable", &["servers.crt"]),
        (&remove("page.html"), "page.unusable", &["page.html"]),
        (&|dir| pair(dir, "us", "us.test", 30), "config.good", &[]),
        (
            &|dir| assert!(fs::copy(dir.join("site.key"), dir.join("us.key")).is_ok()),
            "upstream-tls.unusable",
            &["us.crt"],
        ),
        (
            &write("run", "a file where the directory should be"),
            "admin.unusable",
            &["run is no directory", "install -d"],
        ),
        (
            &|dir| {
                fs::create_dir(dir.join("run")).unwrap();
                fs::write(dir.join("run/admin.sock"), "").unwrap();
            },
            "admin.unusable",
            &["is not a socket", "mv "],
        ),
        (&|dir| fs::create_dir(dir.join("access.log")).unwrap(), "access-log.unwritable", &["access.log"]),
    ];
    for (change, id, words) in cases {
        let diagnosis = plant(change);
        match *id {
            "config.good" => diagnosis.good(&[id]),
            id => drop(diagnosis.has(id, "failure", words).only(&[id])),
        }
    }
}

#[test]
fn check_and_run_say_what_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[acme]\nca = \"https://ca.test/dir\"\nca_root = \"{dir}/root.pem\"\n[dns]\nprovider = \"cloudflare\"\n\
                  token = { file = \"{dir}/token\" }\n[routes]\n\"example.test\" = { respond = 200 }\n";
    write_config(dir.path(), config);
    for arguments in [&["check"][..], &["run"]] {
        let output = command(dir.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        for words in [
            "starlock.toml:3:11",
            "root.pem cannot be used: No such file",
            "starlock.toml:6:9",
            "cannot read the secret in",
        ] {
            assert!(said.contains(words), "{words}\n{said}");
        }
    }
    assert_eq!(command(dir.path(), &["check", "--offline"]).status.code(), Some(0));
    fs::write(dir.path().join("token"), "x").unwrap();
    fs::write(dir.path().join("root.pem"), "nothing").unwrap();
    let output = command(dir.path(), &["check"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("it holds no PEM certificate"), "{output:?}");
    let pebble = Pebble::start(Options::with_dns(([127, 0, 0, 1], 1).into()));
    fs::copy(&pebble.ca_root, dir.path().join("root.pem")).unwrap();
    assert_eq!(command(dir.path(), &["check"]).status.code(), Some(0));
}
