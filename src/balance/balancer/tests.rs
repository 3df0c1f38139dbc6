use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderMap, header};

use super::super::spec::{PassiveSpec, StickySpec};
use super::super::upstreams::Upstreams;
use super::*;
use crate::secret::{Secret, SecretSource};

const NONE: Tried = Tried { ids: [0; Tried::MOST], count: 0 };

fn server(port: u16) -> ServerSpec {
    ServerSpec::new(ServerHost::Ip([127, 0, 0, 1].into()), port)
}

fn spec(name: &str, ports: &[u16]) -> UpstreamSpec {
    let servers = ports.iter().map(|port| server(*port)).collect();
    UpstreamSpec::new(name, servers, UpstreamTimeouts::default())
}

fn build(specs: &[UpstreamSpec], previous: Option<&Upstreams>, metrics: &Arc<Metrics>) -> Upstreams {
    let upstreams = Upstreams::build(specs, previous, metrics).unwrap();
    upstreams.enforce();
    upstreams
}

fn one(spec: UpstreamSpec) -> Arc<Balancer> {
    build(&[spec], None, &Metrics::new("0")).balancers().next().unwrap().clone()
}

fn pick(balancer: &Balancer) -> Result<InFlight, NoEndpoint> {
    balancer.pick(&Preference::default(), &NONE)
}

/// How many of `count` picks, each dropped at once, go to each port.
fn ports(balancer: &Balancer, count: usize) -> BTreeMap<u16, usize> {
    let mut ports = BTreeMap::new();
    for _ in 0..count {
        *ports.entry(pick(balancer).unwrap().endpoint().spec().port).or_default() += 1;
    }
    ports
}

fn fail(balancer: &Balancer, port: u16, outcome: Outcome, times: usize) {
    let endpoint = balancer.endpoints().into_iter().find(|e| e.spec().port == port).unwrap();
    let taken = endpoint.admit(i64::MAX).unwrap();
    (0..times).for_each(|_| balancer.report(&taken, outcome));
}

#[test]
fn servers_outlive_a_reload_with_their_counts_and_their_health() {
    let metrics = Metrics::new("0");
    let first = build(&[spec("a", &[1, 2])], None, &metrics);
    let busy = pick(first.get("a").unwrap()).unwrap();
    first.get("a").unwrap().endpoints()[1].drain(true);
    let mut heavier = spec("a", &[2, 1, 3]);
    heavier.servers[0].weight = 7;
    let second = build(&[heavier, spec("b", &[1])], Some(&first), &metrics);
    first.retire(&second, &metrics);
    let ids = |u: &Upstreams, name: &str| -> Vec<u64> {
        u.get(name).unwrap().endpoints().iter().map(|e| e.id()).collect()
    };
    assert_eq!(ids(&first, "a"), [1, 2]);
    assert_eq!(ids(&second, "a"), [2, 1, 3], "another weight is the same server");
    assert_eq!(ids(&second, "b"), [4], "the same address under another name is another server");
    assert_eq!(second.get("a").unwrap().endpoints()[0].condition().as_str(), "drained");
    assert_eq!(second.endpoints().map(|e| e.in_flight()).sum::<i64>(), 1);
    drop(busy);
    assert_eq!(second.endpoints().map(|e| e.in_flight()).sum::<i64>(), 0);
    let third = build(&[spec("a", &[1])], Some(&second), &metrics);
    second.retire(&third, &metrics);
    let text = metrics.render();
    assert!(text.contains("upstream_up{upstream=\"a\",server=\"http://127.0.0.1:1\"} 1"));
    assert!(!text.contains(":2\"") && !text.contains(":3\"") && !text.contains("upstream=\"b\""), "{text}");
}

#[test]
fn a_busy_server_gets_less() {
    let balancer = one(spec("a", &[1, 2]));
    let held: Vec<_> = (0..100).map(|_| pick(&balancer).unwrap()).collect();
    let counts: Vec<i64> = balancer.endpoints().iter().map(|e| e.in_flight()).collect();
    assert_eq!(counts, [50, 50], "two choices of two are all");
    drop(held);
    assert_eq!(pick(&one(spec("x", &[]))).unwrap_err(), NoEndpoint::Unresolved);
}

#[test]
fn a_backup_serves_only_while_nobody_else_can() {
    let mut spec = spec("a", &[1, 2, 3]);
    spec.servers[2].backup = true;
    let balancer = one(spec);
    assert_eq!(ports(&balancer, 100).keys().copied().collect::<Vec<_>>(), [1, 2]);
    balancer.endpoints()[0].drain(true);
    fail(&balancer, 2, Outcome::Unreachable, 3);
    assert_eq!(ports(&balancer, 10), [(3, 10)].into());
    balancer.endpoints()[2].drain(true);
    assert_eq!(
        ports(&balancer, 10),
        [(2, 10)].into(),
        "if all are down, all are tried, but none that is drained"
    );
    balancer.endpoints()[1].drain(true);
    assert_eq!(pick(&balancer).unwrap_err(), NoEndpoint::Nobody);
}

#[test]
fn at_most_half_are_ejected_and_one_of_one_is_none() {
    let balancer = one(spec("a", &[1, 2, 3, 4, 5]));
    for port in 1..=5 {
        fail(&balancer, port, Outcome::Failed, 5);
    }
    let conditions: Vec<&str> = balancer.endpoints().iter().map(|e| e.condition().as_str()).collect();
    assert_eq!(conditions, ["ejected", "ejected", "up", "up", "up"]);
    assert_eq!(ports(&balancer, 100).keys().copied().collect::<Vec<_>>(), [3, 4, 5]);
    assert!(!balancer.has_untroubled(&NONE) && balancer.has_other(&NONE), "all are known to fail");
    fail(&balancer, 3, Outcome::Fine, 1);
    assert!(balancer.has_untroubled(&NONE));
    let mut tried = Tried::default();
    tried.add(balancer.endpoints()[2].id());
    assert!(!balancer.has_untroubled(&tried) && balancer.has_other(&tried));
    let alone = one(spec("a", &[1]));
    fail(&alone, 1, Outcome::Unreachable, 10);
    assert_eq!(alone.endpoints()[0].condition(), super::super::Condition::Up);
    let mut blind = spec("a", &[1, 2]);
    blind.passive = None;
    let blind = one(blind);
    fail(&blind, 1, Outcome::Unreachable, 10);
    assert_eq!(blind.endpoints()[0].condition(), super::super::Condition::Up);
}

#[test]
fn an_ejection_ends_by_itself() {
    let mut spec = spec("a", &[1, 2]);
    let eject = Duration::from_millis(30);
    spec.passive = Some(PassiveSpec { eject, ..PassiveSpec::default() });
    let balancer = one(spec);
    fail(&balancer, 1, Outcome::Unreachable, 3);
    assert_eq!(ports(&balancer, 10), [(2, 10)].into());
    let start = now_ms();
    while ports(&balancer, 10).len() < 2 {
        assert!(now_ms() < start + 10_000);
    }
    assert!(now_ms() >= start + 20);
}

#[test]
fn whoever_was_tried_is_not_asked_again() {
    let balancer = one(spec("a", &[1, 2, 3]));
    let mut tried = Tried::default();
    for _ in 0..3 {
        let taken = balancer.pick(&Preference::default(), &tried).unwrap();
        assert!(!tried.has(taken.endpoint().id()) && balancer.has_untroubled(&tried));
        tried.add(taken.endpoint().id());
    }
    assert_eq!(balancer.pick(&Preference::default(), &tried).unwrap_err(), NoEndpoint::Nobody);
    assert!(!balancer.has_untroubled(&tried) && balancer.others(&tried) == 0);
}

#[test]
fn full_servers_are_passed_over_exactly() {
    let mut spec = spec("a", &[1, 2]);
    spec.servers[0].max_requests = NonZeroU32::new(3);
    spec.servers[1].max_requests = NonZeroU32::new(5);
    spec.servers[1].max_connections = NonZeroU32::new(2);
    let balancer = one(spec);
    let held: Vec<_> = std::iter::from_fn(|| pick(&balancer).ok()).take(100).collect();
    assert_eq!(held.len(), 8);
    assert_eq!(pick(&balancer).unwrap_err(), NoEndpoint::Full);
    drop(held);
    assert!(pick(&balancer).is_ok());
    let endpoint = &balancer.endpoints()[1];
    let open: Vec<_> = std::iter::from_fn(|| endpoint.open()).take(10).collect();
    assert!(open.len() == 2 && !endpoint.may_idle(), "half of them may idle");
    drop(open);
    assert!(endpoint.may_idle() && endpoint.connections() == 0);
}

#[test]
fn one_key_one_server() {
    let mut spec = spec("a", &[1, 2, 3]);
    spec.balance = BalanceSpec::Hash(super::super::HashKey::Path);
    let balancer = one(spec);
    let headers = HeaderMap::new();
    let of = |path: &str| {
        let ask = Ask { client: [1, 2, 3, 4].into(), headers: &headers, path };
        balancer.pick(&balancer.prefer(&ask), &NONE).unwrap().endpoint().id()
    };
    let ids: std::collections::BTreeSet<u64> = (0..50)
        .map(|n| {
            let path = format!("/{n}");
            assert_eq!(of(&path), of(&path));
            of(&path)
        })
        .collect();
    assert_eq!(ids.len(), 3);
}

#[test]
fn a_cookie_holds_until_its_server_is_gone() {
    let mut spec = spec("a", &[1, 2, 3]);
    let secret = SecretSource::Plain(Secret::new("0123456789abcdef"));
    spec.sticky = Some(StickySpec { cookie: "srv".into(), secret, ttl: None });
    let balancer = one(spec);
    let mut headers = HeaderMap::new();
    let ask = |headers: &HeaderMap| balancer.prefer(&Ask { client: [1, 2, 3, 4].into(), headers, path: "/" });
    let fresh = ask(&headers);
    let first = balancer.pick(&fresh, &NONE).unwrap().endpoint().clone();
    let cookie = balancer.cookie(&first, &fresh, true).unwrap();
    let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
    headers.insert(header::COOKIE, pair.parse().unwrap());
    let bound = ask(&headers);
    for _ in 0..20 {
        assert_eq!(balancer.pick(&bound, &NONE).unwrap().endpoint().id(), first.id());
    }
    assert_eq!(balancer.cookie(&first, &bound, true), None, "it is there already");
    first.drain(true);
    let second = balancer.pick(&bound, &NONE).unwrap().endpoint().clone();
    assert_ne!(second.id(), first.id());
    assert!(balancer.cookie(&second, &bound, false).is_some());
    let forged = pair.replace(&pair[4..8], "AAAA");
    headers.insert(header::COOKIE, forged.parse().unwrap());
    assert!(balancer.cookie(&second, &ask(&headers), false).is_some(), "nobody's token is as good as none");
}

#[test]
fn a_newcomer_begins_slowly() {
    let metrics = Metrics::new("0");
    let slow = |ports: &[u16]| {
        let mut spec = spec("a", ports);
        spec.slow_start = Duration::from_secs(3600);
        spec
    };
    let first = build(&[slow(&[1, 2])], None, &metrics);
    let shares = ports(first.get("a").unwrap(), 1000);
    assert!(shares[&1] > 400 && shares[&2] > 400, "{shares:?}: all begin together");
    let second = build(&[slow(&[1, 2, 3])], Some(&first), &metrics);
    let shares = ports(second.get("a").unwrap(), 1000);
    assert!((1..150).contains(&shares[&3]), "{shares:?}");
    let balancer = second.get("a").unwrap();
    balancer.endpoints()[0].drain(true);
    balancer.endpoints()[1].drain(true);
    assert_eq!(ports(balancer, 10), [(3, 10)].into(), "better slow than not at all");
}

#[tokio::test]
async fn a_name_is_as_many_servers_as_it_has_addresses() {
    let metrics = Metrics::new("0");
    let mut spec = spec("a", &[]);
    spec.servers = vec![
        ServerSpec { weight: 3, ..ServerSpec::new(ServerHost::Name("app.test".into()), 80) },
        ServerSpec::new(ServerHost::Service("_http._tcp.test".into()), 0),
    ];
    let upstreams = build(std::slice::from_ref(&spec), None, &metrics);
    let balancer = upstreams.get("a").unwrap();
    assert_eq!(pick(balancer).unwrap_err(), NoEndpoint::Pending);
    balancer.found(0, vec![]);
    assert_eq!(pick(balancer).unwrap_err(), NoEndpoint::Pending, "the service is not known yet");
    balancer.found(1, vec![]);
    balancer.resolved().await;
    assert_eq!(pick(balancer).unwrap_err(), NoEndpoint::Unresolved);

    let at = |last: u8| Found { address: [192, 0, 2, last].into(), target: None };
    let version = upstreams.version();
    balancer.found(0, vec![at(1), at(2)]);
    assert!(upstreams.version() > version);
    let before = balancer.endpoints();
    assert_eq!(&**before[1].label(), "http://app.test:80#192.0.2.2");
    before[1].drain(true);
    balancer.found(0, vec![at(2), at(3)]);
    let after = balancer.endpoints();
    assert_eq!((after[0].id(), after.len()), (before[1].id(), 2), "who stays keeps what is known of it");
    assert_eq!(after[0].condition().as_str(), "drained");
    balancer.found(0, vec![]);
    assert_eq!(balancer.endpoints().len(), 2, "a name that does not resolve keeps its addresses");
    assert!(!metrics.render().contains("#192.0.2.1\""));

    let target = |name: &str, port, weight, backup| Target { name: name.into(), port, weight, backup };
    let service = |last: u8, target| Found { address: [192, 0, 2, last].into(), target: Some(target) };
    balancer.found(
        1,
        vec![service(4, target("x.test", 8001, 5, false)), service(5, target("y.test", 8002, 1, true))],
    );
    let labels: Vec<String> = balancer.endpoints().iter().map(|e| e.label().to_string()).collect();
    assert_eq!(labels[2..], ["http://x.test:8001#192.0.2.4", "http://y.test:8002#192.0.2.5"]);
    let shares = ports(balancer, 800);
    assert!(shares[&8001] > 300 && !shares.contains_key(&8002), "{shares:?}");

    let next = build(&[spec], Some(&upstreams), &metrics);
    upstreams.retire(&next, &metrics);
    let ids = |u: &Upstreams| u.endpoints().map(|e| e.id()).collect::<Vec<_>>();
    assert_eq!(ids(&next), ids(&upstreams), "a reload asks nothing anew");
    balancer.found(0, vec![at(9)]);
    assert!(!metrics.render().contains("192.0.2.9"), "the former plan changes nothing any more");
}
