//! Which route a request takes. Pure; the cost does not grow with the number of routes.

use std::fmt;
use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::condition::Facts;
use super::path;
use super::spec::{RouteHost, RouteSpec};
use crate::name::HostPattern;

/// All routes, ready to be asked. Immutable: a reload makes a new one, so no client can fill its tables with keys that collide.
#[derive(Debug, Default)]
pub struct Router {
    routes: Box<[RouteSpec]>,
    exact: FxHashMap<Box<str>, PathTree>,
    /// Keyed by what stands behind `*.`.
    wildcard: FxHashMap<Box<str>, PathTree>,
    addresses: FxHashMap<IpAddr, PathTree>,
    any: PathTree,
}

/// The route of a request.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    /// Its place in the list that the router was made of.
    pub index: usize,
    /// The route.
    pub route: &'a RouteSpec,
}

/// Why there is no route for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// None is for it: 404.
    Unknown,
    /// One has its host and path, but a condition that the request does not meet: 404.
    Unmet,
    /// A server behind us might read the path as `reading`, for which another route does something else: 400.
    Ambiguous {
        /// The other path.
        reading: String,
    },
}

/// A route as seen from one request, for `explain`.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its place in the list that the router was made of.
    pub index: usize,
    /// The route.
    pub route: &'a RouteSpec,
    /// Whether it is taken, and why not.
    pub verdict: Verdict,
}

/// Whether a route is taken, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// This one.
    Taken,
    /// It has the same host and path as the one that is taken, and its condition is met, but it comes later.
    Later,
    /// It has the host and path that are taken, but its condition is not met.
    Unmet,
    /// It matches, but another one for the same host has a longer path.
    ShorterPath,
    /// It matches, but another one names the host more exactly.
    LessExactHost,
    /// Its host matches, its path does not.
    OtherPath,
    /// It is for other hosts.
    OtherHost,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Taken => "taken: the most exact host, and the longest path for it",
            Self::Later => "matches, but one before it with the same host and path comes first",
            Self::Unmet => "its condition is not met",
            Self::ShorterPath => "matches, but a route with a longer path comes first",
            Self::LessExactHost => "matches, but a route that names the host more exactly comes first",
            Self::OtherPath => "its path is not a prefix of this one",
            Self::OtherHost => "it is for another host",
        })
    }
}

impl Router {
    /// Builds a router. Routes with the same host and path are tried in the order given.
    pub fn new(routes: &[RouteSpec]) -> Self {
        let mut router = Self { routes: routes.into(), ..Self::default() };
        for (index, route) in routes.iter().enumerate() {
            let tree = match &route.host {
                RouteHost::Any => &mut router.any,
                RouteHost::Pattern(HostPattern::Exact(host)) => {
                    router.exact.entry(host.as_str().into()).or_default()
                }
                RouteHost::Pattern(HostPattern::Wildcard(zone)) => {
                    router.wildcard.entry(zone.as_str().into()).or_default()
                }
                RouteHost::Pattern(HostPattern::Ip(address)) => router.addresses.entry(*address).or_default(),
            };
            tree.insert(&route.path, index);
        }
        router
    }

    /// The routes, in the order they were given.
    pub fn routes(&self) -> &[RouteSpec] {
        &self.routes
    }

    /// The route for `host` (lower case, no port, no trailing dot, no brackets) and a normal `path`. Allocates nothing.
    ///
    /// Of the routes that match, the one with the most exact host wins (a name or an address, then a wildcard, then any), then
    /// the one with the longest path: `a.test/api` leaves `a.test/x` to `*.test`. Of several with this host and path, the first
    /// whose condition is met; if none is, there is no route: others do not step in.
    pub fn route(&self, host: &str, path: &str, facts: &Facts<'_>) -> Option<Matched<'_>> {
        self.first_met(self.variants(host, path), facts)
    }

    fn first_met(&self, variants: &[usize], facts: &Facts<'_>) -> Option<Matched<'_>> {
        let met = |index: &&usize| self.routes[**index].when.is_met(facts);
        let index = *variants.iter().find(met)?;
        Some(Matched { index, route: &self.routes[index] })
    }

    /// The routes of the host and path that a request has, in the order of trying them. Empty: there is none.
    fn variants(&self, host: &str, path: &str) -> &[usize] {
        let found = self.exact.get(host).and_then(|tree| tree.find(path)).or_else(|| {
            self.address(host)
                .and_then(|tree| tree.find(path))
                .or_else(|| {
                    let (first, zone) = host.split_once('.')?;
                    if first.is_empty() { None } else { self.wildcard.get(zone)?.find(path) }
                })
                .or_else(|| self.any.find(path))
        });
        found.unwrap_or_default()
    }

    /// Whether a route names `host` itself, as opposed to a wildcard.
    pub(super) fn names(&self, host: &str) -> bool {
        self.exact.contains_key(host)
    }

    fn address(&self, host: &str) -> Option<&PathTree> {
        if self.addresses.is_empty() {
            return None;
        }
        self.addresses.get(&host.parse().ok()?)
    }

    /// Like [`Router::route`], and refuses a path that a server behind us might read as one of another route, as long as the
    /// two do different things. Allocates only for paths with `;`, `//` or `%2F`.
    pub fn route_unambiguous(
        &self,
        host: &str,
        path: &str,
        facts: &Facts<'_>,
    ) -> Result<Matched<'_>, NoRoute> {
        let variants = self.variants(host, path);
        if variants.is_empty() {
            // What no route is for now cannot be protected by one.
            return Err(NoRoute::Unknown);
        }
        for reading in path::other_readings(path) {
            if !self.do_the_same(variants, self.variants(host, &reading)) {
                return Err(NoRoute::Ambiguous { reading });
            }
        }
        self.first_met(variants, facts).ok_or(NoRoute::Unmet)
    }

    /// Whether any request gets the same from both, whatever conditions it meets.
    fn do_the_same(&self, some: &[usize], others: &[usize]) -> bool {
        let same = |(a, b): (&usize, &usize)| a == b || self.routes[*a].does_the_same_as(&self.routes[*b]);
        some.len() == others.len() && some.iter().zip(others).all(same)
    }

    /// Whether some route is for `host`, whatever the path.
    pub fn knows_host(&self, host: &str) -> bool {
        !self.any.is_empty()
            || self.exact.contains_key(host)
            || self.address(host).is_some()
            || host
                .split_once('.')
                .is_some_and(|(first, zone)| !first.is_empty() && self.wildcard.contains_key(zone))
    }

    /// Every route with a verdict, best first. Looks at all of them: for people, not for requests.
    pub fn explain(&self, host: &str, path: &str, facts: &Facts<'_>) -> Vec<Candidate<'_>> {
        let variants = self.variants(host, path);
        let taken = self.first_met(variants, facts);
        let best = variants.first().map(|index| rank(&self.routes[*index].host));
        let mut candidates: Vec<_> = self
            .routes
            .iter()
            .enumerate()
            .map(|(index, route)| {
                let verdict = match taken {
                    Some(taken) if taken.index == index => Verdict::Taken,
                    _ if variants.contains(&index) && route.when.is_met(facts) => Verdict::Later,
                    _ if variants.contains(&index) => Verdict::Unmet,
                    _ if !host_matches(&route.host, host) => Verdict::OtherHost,
                    _ if !path::has_prefix(path, &route.path) => Verdict::OtherPath,
                    _ if best == Some(rank(&route.host)) => Verdict::ShorterPath,
                    _ => Verdict::LessExactHost,
                };
                Candidate { index, route, verdict }
            })
            .collect();
        candidates.sort_by_key(|c| {
            (c.verdict, rank(&c.route.host), std::cmp::Reverse(c.route.path.len()), c.index)
        });
        candidates
    }
}

fn host_matches(pattern: &RouteHost, host: &str) -> bool {
    match pattern {
        RouteHost::Any => true,
        RouteHost::Pattern(pattern) => pattern.matches(host),
    }
}

/// Smaller is more exact.
fn rank(host: &RouteHost) -> u8 {
    match host {
        RouteHost::Pattern(HostPattern::Exact(_) | HostPattern::Ip(_)) => 0,
        RouteHost::Pattern(HostPattern::Wildcard(_)) => 1,
        RouteHost::Any => 2,
    }
}

/// The paths of one host, by segments: a lookup reads a path once and never deeper than the deepest route.
#[derive(Debug, Default)]
struct PathTree {
    routes: Vec<usize>,
    children: FxHashMap<Box<str>, PathTree>,
}

impl PathTree {
    fn insert(&mut self, prefix: &str, index: usize) {
        let mut node = self;
        if prefix != "/" {
            for segment in prefix.split('/').skip(1) {
                node = node.children.entry(segment.into()).or_default();
            }
        }
        node.routes.push(index);
    }

    fn find(&self, path: &str) -> Option<&[usize]> {
        let mut node = self;
        let mut best = &self.routes;
        for segment in path.split('/').skip(1) {
            if node.children.is_empty() {
                break;
            }
            let Some(child) = node.children.get(segment) else { break };
            node = child;
            if !node.routes.is_empty() {
                best = &node.routes;
            }
        }
        Some(&**best).filter(|routes| !routes.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.children.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use http::{HeaderMap, Method};
    use proptest::prelude::*;

    use super::super::condition::ConditionSpec;
    use super::super::spec::{ActionSpec, ForwardSpec};
    use super::*;
    use crate::policy::PolicySpec;

    fn route(key: &str) -> RouteSpec {
        let (host, path) = key.split_once('/').map_or((key, "/".to_owned()), |(h, p)| (h, format!("/{p}")));
        let host = match host {
            "*" => RouteHost::Any,
            host => RouteHost::Pattern(host.parse().unwrap()),
        };
        let action = ActionSpec::Forward(ForwardSpec::to(key.into()));
        let when = ConditionSpec::default();
        RouteSpec { key: key.into(), host, path: path.into(), when, policy: PolicySpec::default(), action }
    }

    fn routes(keys: &[&str]) -> Vec<RouteSpec> {
        keys.iter().map(|key| route(key)).collect()
    }

    static NOTHING: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

    fn asked(method: &Method) -> Facts<'_> {
        Facts { method, headers: &NOTHING, query: None }
    }

    /// A route like `key`, for `methods` alone.
    fn variant(key: &str, methods: &[Method], upstream: &str) -> RouteSpec {
        let mut spec = route(key);
        spec.when.methods = methods.to_vec();
        spec.action = ActionSpec::Forward(ForwardSpec::to(upstream.into()));
        spec
    }

    /// What the words of the manual say, word by word.
    fn linear<'a>(routes: &'a [RouteSpec], host: &str, path: &str, method: &Method) -> Option<usize> {
        let matching = |r: &&'a RouteSpec| {
            let for_host = match &r.host {
                RouteHost::Any => true,
                RouteHost::Pattern(pattern) => pattern.matches(host),
            };
            for_host && (&*r.path == "/" || path == &*r.path || path.starts_with(&format!("{}/", r.path)))
        };
        let exactness = |r: &RouteSpec| {
            let class = match &r.host {
                RouteHost::Any => 2,
                RouteHost::Pattern(pattern) if pattern.is_wildcard() => 1,
                RouteHost::Pattern(_) => 0,
            };
            (class, std::cmp::Reverse(r.path.len()))
        };
        let best = routes.iter().filter(matching).map(exactness).min()?;
        routes.iter().position(|r| {
            matching(&r)
                && exactness(r) == best
                && (r.when.methods.is_empty() || r.when.methods.contains(method))
        })
    }

    #[test]
    fn the_most_exact_host_then_the_longest_path() {
        let keys = [
            "*",
            "*.a.test",
            "x.a.test",
            "x.a.test/api",
            "x.a.test/api/v2",
            "y.a.test/only",
            "127.0.0.1",
            "::1/p",
        ];
        let specs = routes(&keys);
        let router = Router::new(&specs);
        for (host, path, expected) in [
            ("x.a.test", "/", "x.a.test"),
            ("x.a.test", "/apix", "x.a.test"),
            ("x.a.test", "/api", "x.a.test/api"),
            ("x.a.test", "/api/", "x.a.test/api"),
            ("x.a.test", "/api/v2/z", "x.a.test/api/v2"),
            ("x.a.test", "/api/v22", "x.a.test/api"),
            ("x.a.test", "//api", "x.a.test"),
            ("z.a.test", "/api", "*.a.test"),
            ("y.a.test", "/only/1", "y.a.test/only"),
            ("y.a.test", "/other", "*.a.test"),
            ("b.z.a.test", "/", "*"),
            ("a.test", "/", "*"),
            ("127.0.0.1", "/", "127.0.0.1"),
            ("::1", "/p", "::1/p"),
            ("0:0::1", "/p/q", "::1/p"),
            ("::1", "/", "*"),
        ] {
            let found = router.route(host, path, &asked(&Method::GET));
            assert_eq!(found.map(|m| &*m.route.key), Some(expected), "{host}{path}");
            assert_eq!(found.map(|m| m.index), linear(&specs, host, path, &Method::GET), "{host}{path}");
        }
        assert!(Router::new(&routes(&["a.test/x"])).route("a.test", "/", &asked(&Method::GET)).is_none());
        assert!(Router::new(&routes(&["*.a.test"])).route(".a.test", "/", &asked(&Method::GET)).is_none());
    }

    #[test]
    fn readings_that_would_take_another_route_are_refused() {
        let router = Router::new(&routes(&["a.test", "a.test/admin"]));
        for path in
            ["//admin", "/%2Fadmin", "/x/..;/admin", "/x%2F..%2Fadmin/users", "/admin;a/x", "/admin/..;/x"]
        {
            let found = router.route_unambiguous("a.test", path, &asked(&Method::GET));
            assert!(matches!(found, Err(NoRoute::Ambiguous { .. })), "{path}: {found:?}");
        }
        for path in ["/a%2Fb", "/a;b/c", "/a//b", "/admin/x;y", "/admin//x", "/admin/a%2Fb", "/admin/"] {
            assert!(router.route_unambiguous("a.test", path, &asked(&Method::GET)).is_ok(), "{path}");
        }
        assert_eq!(
            router.route_unambiguous("b.test", "//admin", &asked(&Method::GET)).unwrap_err(),
            NoRoute::Unknown
        );
        let mut same = routes(&["a.test", "a.test/admin"]);
        same[1].action = same[0].action.clone();
        assert!(
            Router::new(&same).route_unambiguous("a.test", "//admin", &asked(&Method::GET)).is_ok(),
            "both do the same"
        );
    }

    #[test]
    fn of_one_key_the_first_whose_condition_is_met() {
        let get = [Method::GET];
        let specs = [
            variant("a.test/x", &get, "one"),
            variant("a.test/x", &[Method::GET, Method::POST], "two"),
            variant("a.test", &[], "all"),
            variant("b.test/y", &get, "one"),
            variant("b.test/y", &[], "two"),
            variant("b.test/z", &get, "one"),
            variant("b.test/z", &[], "two"),
            variant("b.test", &get, "one"),
        ];
        let router = Router::new(&specs);
        for (path, method, expected) in [
            ("/x", Method::GET, Ok(0)),
            ("/x", Method::POST, Ok(1)),
            ("/x", Method::PUT, Err(NoRoute::Unmet)),
            ("/", Method::PUT, Ok(2)),
            ("//x", Method::GET, Err(NoRoute::Ambiguous { reading: "/x".into() })),
            ("//x", Method::PUT, Err(NoRoute::Ambiguous { reading: "/x".into() })),
        ] {
            let found = router.route_unambiguous("a.test", path, &asked(&method)).map(|m| m.index);
            assert_eq!(found, expected, "{method} {path}");
        }
        let verdicts: Vec<_> = router
            .explain("a.test", "/x", &asked(&Method::POST))
            .iter()
            .map(|c| (c.index, c.verdict))
            .collect();
        assert_eq!(verdicts[..3], [(1, Verdict::Taken), (0, Verdict::Unmet), (2, Verdict::ShorterPath)]);
        assert_eq!(router.explain("a.test", "/x", &asked(&Method::GET))[1].verdict, Verdict::Later);
        let none = router.explain("a.test", "/x", &asked(&Method::PUT));
        assert_eq!(
            (none[0].verdict, none[1].verdict, none[2].verdict),
            (Verdict::Unmet, Verdict::Unmet, Verdict::ShorterPath)
        );
        // Two keys whose variants are the same are one to whoever reads the path in another way; fewer variants are not.
        assert_eq!(
            router.route_unambiguous("b.test", "/y/..%2Fz", &asked(&Method::GET)).map(|m| m.index),
            Ok(3)
        );
        assert!(router.route_unambiguous("b.test", "/;/z", &asked(&Method::GET)).is_err());
    }

    #[test]
    fn explain_gives_every_route_a_reason() {
        let router = Router::new(&routes(&["*", "b.test", "a.test/x", "a.test", "a.test/api", "*.test"]));
        let verdicts: Vec<_> = router
            .explain("a.test", "/api/1", &asked(&Method::GET))
            .iter()
            .map(|c| (&*c.route.key, c.verdict))
            .collect();
        assert_eq!(
            verdicts,
            [
                ("a.test/api", Verdict::Taken),
                ("a.test", Verdict::ShorterPath),
                ("*.test", Verdict::LessExactHost),
                ("*", Verdict::LessExactHost),
                ("a.test/x", Verdict::OtherPath),
                ("b.test", Verdict::OtherHost),
            ]
        );
        assert!(router.knows_host("a.test") && router.knows_host("other.example"));
        assert!(!Router::new(&routes(&["a.test/x"])).knows_host("b.test"));
    }

    fn host() -> impl Strategy<Value = String> {
        prop::sample::select(vec![
            "a.test",
            "b.test",
            "x.a.test",
            "y.a.test",
            "c.x.a.test",
            "127.0.0.1",
            "::1",
        ])
        .prop_map(str::to_owned)
    }

    fn key() -> impl Strategy<Value = String> {
        let pattern = prop_oneof![
            3 => host(),
            2 => prop::sample::select(vec!["*.test", "*.a.test", "*.x.a.test"]).prop_map(str::to_owned),
            1 => Just("*".to_owned()),
        ];
        (pattern, prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", ""]), 0..3)).prop_map(
            |(host, segments)| {
                let path = segments.iter().map(|s| format!("/{s}")).collect::<String>();
                format!("{host}{}", path.trim_end_matches('/'))
            },
        )
    }

    fn methods() -> impl Strategy<Value = Vec<Method>> {
        prop::sample::subsequence(vec![Method::GET, Method::PUT], 0..3)
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(
            keys in prop::collection::vec((key(), methods()), 0..24),
            host in host(),
            path in r"(/(a|b|ab|)){1,4}",
            method in prop::sample::select(vec![Method::GET, Method::PUT, Method::POST]),
        ) {
            let specs: Vec<_> = keys.iter().map(|(key, methods)| variant(key, methods, key)).collect();
            let router = Router::new(&specs);
            let facts = asked(&method);
            let found = router.route(&host, &path, &facts).map(|m| m.index);
            prop_assert_eq!(found, linear(&specs, &host, &path, &method));
            let explained = router.explain(&host, &path, &facts);
            prop_assert_eq!(explained.len(), specs.len());
            let taken = explained.first().filter(|c| c.verdict == Verdict::Taken).map(|c| c.index);
            prop_assert_eq!(found, taken);
            if let Ok(matched) = router.route_unambiguous(&host, &path, &facts) {
                prop_assert_eq!(Some(matched.index), found);
                for reading in path::other_readings(&path) {
                    let other = router.route(&host, &reading, &facts);
                    prop_assert!(other.is_some_and(|o| o.route.does_the_same_as(matched.route)));
                }
            }
        }
    }
}
