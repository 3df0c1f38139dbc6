//! DNS-01 where the DNS is not as in the book: aliases over several zones, servers that are down or wrong, IPv6 only, several
//! views. With real name servers wherever one can be made to behave so.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use starlock::challenge::{ChallengeSolver, Dns01Solver};
use starlock::dns::{CommonKeys, Propagation, PropagationCheck};
use starlock::resolver::{Here, LookupError, Resolver};

use crate::challenge::{Rig, challenges, rfc2136};
use crate::responder::name;
use crate::support::dns::{Knot, Recursor, datagram, loopback, txt};
use crate::support::pebble::{Options, Pebble};
use crate::support::starlock::Starlock;

/// A server that gives every question the same answer without a record: a response code, with authority or without.
struct Broken {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Broken {
    fn start(ip: Ipv4Addr, code: u8, authoritative: bool) -> Self {
        let socket = UdpSocket::bind((ip, 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::SeqCst) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                // The question without the client's EDNS.
                let end = 12 + buffer[12..length].iter().position(|b| *b == 0).unwrap_or(0) + 5;
                let mut answer = buffer[..end.min(length)].to_vec();
                answer[2] = 0x80 | if authoritative { 4 } else { 0 };
                answer[3] = code;
                answer[6..12].fill(0);
                drop(socket.send_to(&answer, from));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.thread.take().map(std::thread::JoinHandle::join));
    }
}

fn delegation(zone: &str, servers: &[Ipv4Addr]) -> String {
    let lines = servers.iter().enumerate();
    lines.map(|(n, ip)| format!("{zone} NS ns{n}.{zone}\nns{n}.{zone} A {ip}\n")).collect()
}

#[tokio::test]
async fn aliases_lead_through_zones_of_other_servers() {
    let (a, b) = (loopback(), loopback());
    let top = format!("{}{}two CNAME final.b.test.", delegation("a", &[a]), delegation("b", &[b]));
    let top = Knot::start(&[("test", &top)]);
    let _a = Knot::start_at(
        a,
        &[(
            "a.test",
            "_acme-challenge CNAME one.b.test.\n_acme-challenge.loop CNAME round.b.test.\n*.wild CNAME web.b.test.\n\
             _acme-challenge.out CNAME gone.nowhere.test.",
        )],
    );
    let b = Knot::start_at(
        b,
        &[(
            "b.test",
            "one CNAME two.test.\nround CNAME _acme-challenge.loop.a.test.\nweb A 192.0.2.1\nfinal A 192.0.2.1",
        )],
    );
    let unbound = Recursor::unbound("test", top.address.ip());
    let rig = Rig::new(unbound.address);
    let follow = async |host: &str| {
        rig.resolver.follow(&name(&format!("_acme-challenge.{host}")), &Here::default()).await
    };
    let target = follow("a.test").await.unwrap();
    assert_eq!((target.name, target.zone.unwrap().apex), (name("final.b.test"), name("b.test")));
    match follow("loop.a.test").await {
        Err(LookupError::Aliases { chain, .. }) => assert!(chain.contains("round.b.test"), "{chain}"),
        other => panic!("{other:?}"),
    }
    // Made by a wildcard: the TXT record will hide it.
    for host in ["wild.a.test", "deep.wild.a.test"] {
        let target = follow(host).await.unwrap();
        assert_eq!(
            (target.name, target.zone.unwrap().apex),
            (name(&format!("_acme-challenge.{host}")), name("a.test"))
        );
    }
    // Presented where the way ends, at that zone's server.
    let solver = rig.solver(rig.provider(rfc2136(&b)));
    let standing = solver.present(&challenges("a.test", &["apex", "wild"])).await.unwrap();
    assert_eq!(txt(b.address, "final.b.test"), ["apex", "wild"]);
    assert_eq!(txt(unbound.address, "_acme-challenge.a.test"), ["apex", "wild"]);
    standing.clean_up().await;
    assert!(txt(b.address, "final.b.test").is_empty());
    assert_eq!(rig.end().await, 0);
}

#[tokio::test]
async fn a_recursive_resolver_never_hears_the_name_before_it_is_published() {
    let knot = Knot::start(&[("test", ""), ("example.test", "www A 192.0.2.1")]);
    let unbound = Recursor::unbound("test", knot.address.ip());
    let rig = Rig::new(unbound.address);
    // The provider finds its zone by itself too.
    let solver = rig.solver(rig.provider(rfc2136(&knot)));
    let standing = solver.present(&challenges("www.example.test", &["apex", "wild"])).await.unwrap();
    let heard = unbound.log();
    assert!(heard.contains("example.test. SOA IN"), "the log shows no question at all: {heard}");
    assert!(!heard.contains("_acme-challenge"), "{heard}");
    // So who asks now hears the truth, and no negative answer from a cache.
    assert_eq!(txt(unbound.address, "_acme-challenge.www.example.test"), ["apex", "wild"]);
    standing.clean_up().await;
    assert_eq!(rig.end().await, 0);
}

/// The name of dns-account-01 has the challenge's own name above it.
#[tokio::test]
async fn a_recursive_resolver_never_hears_a_labelled_name_or_the_one_above_it() {
    let knot = Knot::start(&[("test", ""), ("example.test", "www A 192.0.2.1")]);
    let unbound = Recursor::unbound("test", knot.address.ip());
    let rig = Rig::new(unbound.address);
    let labelled = name("_ao3pcvmacvwyw63b._acme-challenge.www.example.test");
    let target = rig.resolver.follow(&labelled, &Here::default()).await.unwrap();
    assert_eq!((target.name, target.zone.unwrap().apex), (labelled, name("example.test")));
    let heard = unbound.log();
    assert!(heard.contains("example.test. SOA IN"), "the log shows no question at all: {heard}");
    assert!(!heard.contains("_acme-challenge"), "{heard}");
    assert_eq!(rig.end().await, 0);
}

/// Passes questions on to `server`, but for names with a random first label: those it fails.
fn forgetful(server: SocketAddr) -> Ipv4Addr {
    let ip = loopback();
    let socket = UdpSocket::bind((ip, 53)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = &mut buffer[..length];
            if query[12] == 17 {
                (query[2], query[3]) = (0x80, 2);
                drop(socket.send_to(query, from));
            } else if let Some(answer) = datagram(server, query, Duration::from_secs(2)) {
                drop(socket.send_to(&answer, from));
            }
        }
    });
    ip
}

#[tokio::test]
async fn an_alias_that_may_be_a_wildcards_is_not_followed_on_a_guess() {
    let good = loopback();
    let knot = Knot::start_at(good, &[("wild.test", "* CNAME web\nweb A 192.0.2.1")]);
    let bad = forgetful(knot.address);
    let challenge = name("_acme-challenge.wild.test");
    let alone = Knot::start(&[("test", &delegation("wild", &[bad]))]);
    match Resolver::new(vec![alone.address]).follow(&challenge, &Here::default()).await {
        Err(LookupError::NoServer { reason, .. }) => {
            assert!(reason.contains("whether a wildcard made its CNAME cannot be told"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let rig = Rig::new(alone.address);
    let error =
        rig.solver(rig.provider(rfc2136(&knot))).present(&challenges("wild.test", &["v"])).await.unwrap_err();
    assert!(!error.permanent && error.message.contains("No CA was asked"), "{error}");
    // Another server of the zone can tell.
    let both = Knot::start(&[("test", &delegation("wild", &[bad, good]))]);
    for _ in 0..4 {
        let target = Resolver::new(vec![both.address]).follow(&challenge, &Here::default()).await.unwrap();
        assert_eq!(target.name, challenge, "a wildcard made it");
    }
    assert_eq!(rig.end().await, 0);
}

/// A resolver that asked a lame server for the zone's NS records tells that there are none, and keeps it.
#[tokio::test]
async fn a_resolver_that_knows_no_server_of_a_zone_is_not_the_last_to_be_asked() {
    let ip = loopback();
    let _knot = Knot::start_at(ip, &[("example.test", "_acme-challenge.www CNAME else\nelse A 192.0.2.1")]);
    let top = Knot::start(&[("test", &delegation("example", &[ip]))]);
    let more = "  local-zone: \"example.test.\" static\n  local-data: \"example.test. SOA ns.example.test. a.test. 1 60 60 60 1\"\n";
    let unbound = Recursor::unbound_at(loopback(), "test", top.address.ip(), more);
    let resolver = Resolver::new(vec![unbound.address]);
    let target = resolver.follow(&name("_acme-challenge.www.example.test"), &Here::default()).await.unwrap();
    assert_eq!(target.name, name("else.example.test"));
    assert_eq!(target.zone.unwrap().servers[0].addresses, [(ip, 53).into()]);
    assert!(unbound.log().contains("example.test. NS IN"), "it was not asked: {}", unbound.log());
}

/// Six servers with an IPv6 address first, where nobody answers; their IPv4 addresses do.
#[tokio::test]
async fn glue_that_begins_with_ipv6_does_not_keep_a_zone_from_being_asked() {
    let ip = loopback();
    let _knot = Knot::start_at(ip, &[("six.test", "_acme-challenge CNAME else\nelse A 192.0.2.1")]);
    let servers = (0..7).map(|n| format!("six NS ns{n}.six\nns{n}.six AAAA 100::{n}\nns{n}.six A {ip}\n"));
    let top = Knot::start(&[("test", &servers.collect::<String>())]);
    let resolver = Resolver::new(vec![top.address]);
    let target = resolver.follow(&name("_acme-challenge.six.test"), &Here::default()).await.unwrap();
    assert_eq!(target.name, name("else.six.test"));
}

#[tokio::test]
async fn name_servers_that_are_reached_by_ipv6_only() {
    let top = Knot::start(&[("test", "six NS ns.six\nns.six AAAA ::1")]);
    let six = Knot::start_at(Ipv6Addr::LOCALHOST, &[("six.test", "")]);
    let rig = Rig::new(top.address);
    let zone = rig.resolver.zone_of(&name("_acme-challenge.six.test")).await.unwrap();
    assert_eq!((&zone.apex, &zone.servers[0].addresses[..]), (&name("six.test"), &[six.address][..]));
    let solver = rig.solver(rig.provider(rfc2136(&six)));
    let standing = solver.present(&challenges("six.test", &["v"])).await.unwrap();
    standing.clean_up().await;
    assert_eq!(rig.end().await, 0);
}

#[tokio::test]
async fn one_good_server_is_enough_to_find_the_way_and_not_to_be_believed() {
    let (good, failing, refusing, lame, down) = (loopback(), loopback(), loopback(), loopback(), loopback());
    let servers = [failing, refusing, lame, down, good];
    let top = Knot::start(&[("test", &delegation("mixed", &servers))]);
    let _servfail = Broken::start(failing, 2, false);
    let _refused = Broken::start(refusing, 5, false);
    let _lame = Broken::start(lame, 0, false);
    let knot = Knot::start_at(good, &[("mixed.test", "_acme-challenge.www CNAME else\nelse A 192.0.2.1")]);
    let rig = Rig::new(top.address);
    let target =
        rig.resolver.follow(&name("_acme-challenge.www.mixed.test"), &Here::default()).await.unwrap();
    assert_eq!(target.name, name("else.mixed.test"));
    // The CA may ask any of them: the order fails before it, and the table says who is at fault.
    let solver = rig.solver_with(rig.provider(rfc2136(&knot)), Duration::from_secs(3), None);
    let error = solver.present(&challenges("mixed.test", &["v"])).await.unwrap_err();
    assert!(!error.permanent);
    let line =
        |ip: Ipv4Addr| error.message.lines().find(|l| l.contains(&format!(" {ip}:53"))).unwrap_or_default();
    for (ip, said) in [
        (good, "shows all of them"),
        (failing, "SERVFAIL"),
        (refusing, "REFUSED"),
        (lame, "lame"),
        (down, "nothing listens there"),
    ] {
        assert!(line(ip).contains(said), "{ip} {said}\n{error}");
    }
    // With none that is any good, nothing is guessed.
    let bad = Knot::start(&[("test", &delegation("bad", &[failing, refusing]))]);
    let resolver = Resolver::new(vec![bad.address]);
    match resolver.follow(&name("_acme-challenge.bad.test"), &Here::default()).await {
        Err(LookupError::NoServer { reason, .. }) => {
            assert!(reason.contains("SERVFAIL") && reason.contains("REFUSED"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.end().await, 0);
}

#[tokio::test]
async fn a_fixed_wait_or_none_asks_nobody() {
    let knot = Knot::start(&[("example.test", "")]);
    let rig = Rig::new(knot.address);
    // Nothing that could be asked would show the records: the provider writes elsewhere.
    let elsewhere = Knot::start(&[("example.test", "")]);
    for (check, wait) in [(PropagationCheck::Wait, 1), (PropagationCheck::Off, 0)] {
        let propagation = Propagation {
            check,
            wait: Duration::from_secs(1),
            timeout: Duration::from_secs(60),
            ..Propagation::default()
        };
        let common = CommonKeys { zone: Some(name("example.test")), ..CommonKeys::default() };
        let provider = rig.provider_with(rfc2136(&elsewhere), common);
        let solver = Dns01Solver::new(provider, rig.resolver.clone(), rig.janitor.clone(), propagation, None);
        let start = Instant::now();
        let standing = solver.present(&challenges("example.test", &["v"])).await.unwrap();
        assert!((wait..wait + 30).contains(&start.elapsed().as_secs()), "{check:?} {:?}", start.elapsed());
        standing.clean_up().await;
    }
    assert_eq!(rig.end().await, 0);
}

/// Inside, the zone is another one that nobody writes into; what counts is what a resolver outside shows.
#[test]
fn split_horizon_is_checked_from_outside_over_https() {
    // The alias stands outside only.
    let public = Knot::start(&[
        ("test", ""),
        ("example.test", "_acme-challenge.www.cname CNAME behind.example.test."),
    ]);
    let inside = Knot::start(&[("example.test", "intranet A 192.0.2.1")]);
    let (ip, dir) = (loopback(), tempfile::tempdir().unwrap());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![ip.to_string()]).unwrap().self_signed(&key).unwrap();
    let (pem, key_file) = (dir.path().join("doh.pem"), dir.path().join("doh.key"));
    std::fs::write(&pem, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let https = format!(
        "  interface: {ip}@8443\n  https-port: 8443\n  tls-service-pem: \"{}\"\n  tls-service-key: \"{}\"\n",
        pem.display(),
        key_file.display()
    );
    let outside = Recursor::unbound_at(ip, "test", public.address.ip(), &https);
    let pebble = Pebble::start(Options::with_dns(outside.address));
    let config = |check: &str| {
        format!(
            "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[acme]\nca = \"{}\"\nca_root = \"{}\"\n[dns]\nprovider = \"rfc2136\"\n\
             server = \"{}\"\nkey_name = \"{}\"\nsecret = \"{}\"\nttl = \"1s\"\nresolvers = [\"{}\"]\nzone = \"example.test\"\n\
             propagation = {check}\n[[certificates]]\nnames = [\"example.test\", \"*.example.test\", \"www.cname.example.test\"]\n\
             [routes]\n\"example.test\" = {{ respond = 204 }}\n",
            pebble.directory_url,
            pebble.ca_root.display(),
            public.address,
            public.key_name,
            public.secret,
            inside.address
        )
    };
    // Asked inside, nobody shows the records.
    let starlock = Starlock::start_with(&config("{ timeout = \"2s\" }"), |_, command| {
        command.env("SSL_CERT_FILE", &pem);
    });
    let certificate = crate::support::eventually("the inside view is told", || {
        Some(starlock.certificates().remove(0)).filter(|c| c["last_error"].is_string())
    });
    assert!(certificate["last_error"].to_string().contains("no TXT record there"), "{certificate}");
    assert_eq!(pebble.log().matches("POST /chalZ/").count(), 0, "the CA was told to look");
    // Asked outside, they are there. The first question comes when they are: no "no" is kept anywhere.
    let doh = config(&format!("{{ check = \"doh\", doh = [\"https://{ip}:8443/dns-query\"] }}"));
    let output = starlock.reload(&doh);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let serial = starlock.serial_other_than("*.example.test", None);
    assert_eq!(pebble.status_of(&serial).as_deref(), Some("Valid"));
    let records: SocketAddr = public.address;
    assert!(txt(records, "_acme-challenge.example.test").is_empty());
}
