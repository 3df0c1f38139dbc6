//! What the request path does to each request, one part at a time: routing, the certificate's lookup, the fields' rewriting, the
//! choice of a server. `cargo bench --bench micro`; `docs/measurements.md` says what it printed.

#![allow(missing_docs, clippy::unwrap_used, reason = "a measurement, not the product")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use ipnet::IpNet;
use rand::seq::SliceRandom;
use rcgen::{CertificateParams, KeyPair};
use starlock::balance::{
    Ask, BalanceSpec, HashKey, ServerHost, ServerSpec, Tried, UpstreamSpec, UpstreamTimeouts, Upstreams,
};
use starlock::conn::Introduction;
use starlock::name::HostPattern;
use starlock::policy::PolicySpec;
use starlock::proxy::client::{Client, TrustedHeader};
use starlock::proxy::{ActionSpec, ConditionSpec, Facts, RouteHost, RouteSpec, Router, headers, path};
use starlock::telemetry::Metrics;
use starlock::tls::{Bundle, CertTable};

criterion_group!(benches, routing, normalising, certificates, fields, picks);
criterion_main!(benches);

/// Paths of one host; every tenth host is a wildcard.
const PATHS: [&str; 5] = ["/", "/api", "/api/v2/users", "/static", "/static/images/large"];
/// As many questions as are asked in turn, so that no answer is remembered by the processor alone.
const QUESTIONS: usize = 4096;

fn routing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    for count in [10, 1_000, 100_000] {
        let routes: Vec<RouteSpec> = (0..count).map(route).collect();
        let router = Router::new(&routes);
        let questions: Vec<(String, String)> = asked(count)
            .map(|n| {
                let host = n / PATHS.len();
                let name =
                    if is_wildcard(host) { format!("any.h{host}.test") } else { format!("h{host}.test") };
                (name, format!("{}/x/y", PATHS[n % PATHS.len()].trim_end_matches('/')))
            })
            .collect();
        let (method, fields) = (Method::GET, HeaderMap::new());
        let facts = Facts { method: &method, headers: &fields, query: None };
        let mut turn = questions.iter().cycle();
        group.bench_function(BenchmarkId::new("routes", count), |bench| {
            bench.iter(|| {
                let (host, path) = turn.next().unwrap();
                assert!(router.route_unambiguous(black_box(host), black_box(path), &facts).is_ok());
            });
        });
    }
    group.finish();
}

fn is_wildcard(host: usize) -> bool {
    host % 10 == 9
}

fn route(n: usize) -> RouteSpec {
    let (host, path) = (n / PATHS.len(), PATHS[n % PATHS.len()]);
    let name = if is_wildcard(host) { format!("*.h{host}.test") } else { format!("h{host}.test") };
    RouteSpec {
        key: format!("{name}{path}").into(),
        host: RouteHost::Pattern(HostPattern::parse(&name).unwrap()),
        path: path.into(),
        when: ConditionSpec::default(),
        policy: PolicySpec::default(),
        action: ActionSpec::Respond { status: 204, body: None, content_type: None },
    }
}

/// Numbers below `count`, in any order.
fn asked(count: usize) -> impl Iterator<Item = usize> {
    let mut all: Vec<usize> = (0..count).collect();
    all.shuffle(&mut rand::rng());
    all.truncate(QUESTIONS);
    all.into_iter()
}

fn normalising(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for (name, raw) in [
        ("normal", "/api/v2/users/4711/orders"),
        ("to be normalised", "/api/./v2/%75sers/../users/4711/%6frders"),
    ] {
        group.bench_function(name, |bench| bench.iter(|| path::normalise(black_box(raw)).is_ok()));
    }
    group.finish();
}

fn certificates(criterion: &mut Criterion) {
    let key = KeyPair::generate().unwrap();
    let mut group = criterion.benchmark_group("certificate");
    for count in [10, 1_000, 10_000] {
        let bundles: Vec<Arc<Bundle>> = (0..count)
            .map(|n| {
                let names = vec![if is_wildcard(n) { format!("*.h{n}.test") } else { format!("h{n}.test") }];
                let signed = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
                Arc::new(Bundle::from_pem(&signed.pem(), &key.serialize_pem()).unwrap())
            })
            .collect();
        let table = CertTable::new(bundles, None);
        let questions: Vec<String> = asked(count)
            .map(|n| if is_wildcard(n) { format!("any.h{n}.test") } else { format!("h{n}.test") })
            .collect();
        let mut turn = questions.iter().cycle();
        group.bench_function(BenchmarkId::new("names", count), |bench| {
            bench.iter(|| assert!(table.lookup(black_box(turn.next().unwrap())).is_some()));
        });
    }
    group.finish();
}

/// What a browser sends.
const BROWSER: [(&str, &str); 12] = [
    ("host", "app.example.com"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("cookie", "session=0123456789abcdef0123456789abcdef; theme=dark"),
    ("referer", "https://app.example.com/"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
    ("upgrade-insecure-requests", "1"),
    ("connection", "keep-alive"),
];
/// What a proxy in front adds, believed or not.
const FORWARDED: [(&str, &str); 4] = [
    ("x-forwarded-for", "198.51.100.7, 203.0.113.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "app.example.com"),
    ("forwarded", "for=198.51.100.7;proto=https"),
];

fn fields(criterion: &mut Criterion) {
    let list = |more: &[(&'static str, &'static str)]| -> HeaderMap {
        let all = BROWSER.iter().chain(more);
        all.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    };
    let host = HeaderValue::from_static("app.example.com");
    let trusted: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
    let mut group = criterion.benchmark_group("fields");
    for (name, peer, headers) in [
        ("a browser's", [203, 0, 113, 9], list(&[])),
        ("a stranger's, forged", [203, 0, 113, 9], list(&FORWARDED)),
        ("a trusted proxy's", [10, 0, 0, 1], list(&FORWARDED)),
    ] {
        let introduction = Introduction::new(IpAddr::from(peer), "https", host.clone());
        let rewrite = |mut headers: HeaderMap| {
            let client = Client::of(IpAddr::from(peer), &trusted, TrustedHeader::XForwardedFor, &headers);
            let incoming = headers::Incoming {
                client,
                scheme: "https",
                introduction: &introduction,
                version: Version::HTTP_2,
            };
            headers::to_server(&mut headers, &incoming);
            headers
        };
        group.bench_function(name, |bench| {
            bench.iter_batched(|| headers.clone(), rewrite, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn picks(criterion: &mut Criterion) {
    let metrics = Arc::new(Metrics::new("bench"));
    let headers = HeaderMap::new();
    let mut group = criterion.benchmark_group("pick");
    for (name, balance) in [
        ("p2c", BalanceSpec::P2c),
        ("round_robin", BalanceSpec::RoundRobin),
        ("random", BalanceSpec::Random),
        ("hash", BalanceSpec::Hash(HashKey::Ip)),
    ] {
        for count in [3_u8, 100] {
            let servers = (0..count)
                .map(|n| ServerSpec::new(ServerHost::Ip(Ipv4Addr::new(10, 0, 0, n).into()), 80))
                .collect();
            let spec = UpstreamSpec::new("app", servers, UpstreamTimeouts::default());
            let spec = UpstreamSpec { balance: balance.clone(), ..spec };
            let upstreams = Upstreams::build(&[spec], None, &metrics).unwrap();
            let balancer = upstreams.get("app").unwrap();
            let mut client = 0_u32;
            group.bench_function(BenchmarkId::new(name, count), |bench| {
                bench.iter(|| {
                    client = client.wrapping_add(1);
                    let ask =
                        Ask { client: Ipv4Addr::from_bits(client).into(), headers: &headers, path: "/" };
                    balancer.pick(&balancer.prefer(black_box(&ask)), &Tried::default()).is_ok()
                });
            });
        }
    }
    group.finish();
}
