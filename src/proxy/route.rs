//! Which route a request takes. Pure; the cost does not grow with the number of routes.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use super::path;
use super::spec::{RouteHost, RouteSpec};
use crate::name::HostPattern;

/// All routes, ready to be asked. Immutable: a reload makes a new one.
#[derive(Debug, Default)]
pub struct Router {
    routes: Box<[RouteSpec]>,
    exact: HashMap<Box<str>, PathTree>,
    /// Keyed by what stands behind `*.`.
    wildcard: HashMap<Box<str>, PathTree>,
    addresses: HashMap<IpAddr, PathTree>,
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
            Self::ShorterPath => "matches, but a route with a longer path comes first",
            Self::LessExactHost => "matches, but a route that names the host more exactly comes first",
            Self::OtherPath => "its path is not a prefix of this one",
            Self::OtherHost => "it is for another host",
        })
    }
}

impl Router {
    /// Builds a router. If two routes have the same host and path, the first one gets them (`config` refuses such files).
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
    /// the one with the longest path: `a.test/api` leaves `a.test/x` to `*.test`.
    pub fn route(&self, host: &str, path: &str) -> Option<Matched<'_>> {
        let index = self.exact.get(host).and_then(|tree| tree.find(path)).or_else(|| {
            self.address(host)
                .and_then(|tree| tree.find(path))
                .or_else(|| {
                    let (first, zone) = host.split_once('.')?;
                    if first.is_empty() { None } else { self.wildcard.get(zone)?.find(path) }
                })
                .or_else(|| self.any.find(path))
        })?;
        Some(Matched { index, route: &self.routes[index] })
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
    pub fn route_unambiguous(&self, host: &str, path: &str) -> Result<Matched<'_>, NoRoute> {
        let matched = self.route(host, path);
        for reading in path::other_readings(path) {
            let other = self.route(host, &reading);
            let same = match (&matched, &other) {
                (Some(a), Some(b)) => a.index == b.index || a.route.does_the_same_as(b.route),
                // What no route is for now cannot be protected by one.
                (None, _) => true,
                (Some(_), None) => false,
            };
            if !same {
                return Err(NoRoute::Ambiguous { reading });
            }
        }
        matched.ok_or(NoRoute::Unknown)
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
    pub fn explain(&self, host: &str, path: &str) -> Vec<Candidate<'_>> {
        let taken = self.route(host, path);
        let mut candidates: Vec<_> = self
            .routes
            .iter()
            .enumerate()
            .map(|(index, route)| {
                let verdict = match taken {
                    Some(taken) if taken.index == index => Verdict::Taken,
                    _ if !host_matches(&route.host, host) => Verdict::OtherHost,
                    _ if !path::has_prefix(path, &route.path) => Verdict::OtherPath,
                    Some(taken) if rank(&taken.route.host) == rank(&route.host) => Verdict::ShorterPath,
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
    route: Option<usize>,
    children: HashMap<Box<str>, PathTree>,
}

impl PathTree {
    fn insert(&mut self, prefix: &str, index: usize) {
        let mut node = self;
        if prefix != "/" {
            for segment in prefix.split('/').skip(1) {
                node = node.children.entry(segment.into()).or_default();
            }
        }
        node.route.get_or_insert(index);
    }

    fn find(&self, path: &str) -> Option<usize> {
        let mut node = self;
        let mut best = self.route;
        for segment in path.split('/').skip(1) {
            if node.children.is_empty() {
                break;
            }
            let Some(child) = node.children.get(segment) else { break };
            node = child;
            best = node.route.or(best);
        }
        best
    }

    fn is_empty(&self) -> bool {
        self.route.is_none() && self.children.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::spec::ActionSpec;
    use super::*;
    use crate::policy::PolicySpec;

    fn route(key: &str) -> RouteSpec {
        let (host, path) = key.split_once('/').map_or((key, "/".to_owned()), |(h, p)| (h, format!("/{p}")));
        let host = match host {
            "*" => RouteHost::Any,
            host => RouteHost::Pattern(host.parse().unwrap()),
        };
        let action = ActionSpec::Forward { upstream: key.into(), strip_prefix: false };
        RouteSpec { key: key.into(), host, path: path.into(), policy: PolicySpec::default(), action }
    }

    fn routes(keys: &[&str]) -> Vec<RouteSpec> {
        keys.iter().map(|key| route(key)).collect()
    }

    /// What the words of the manual say, word by word.
    fn linear<'a>(routes: &'a [RouteSpec], host: &str, path: &str) -> Option<&'a Arc<str>> {
        routes
            .iter()
            .filter(|r| match &r.host {
                RouteHost::Any => true,
                RouteHost::Pattern(pattern) => pattern.matches(host),
            })
            .filter(|r| &*r.path == "/" || path == &*r.path || path.starts_with(&format!("{}/", r.path)))
            .min_by_key(|r| {
                let class = match &r.host {
                    RouteHost::Any => 2,
                    RouteHost::Pattern(pattern) if pattern.is_wildcard() => 1,
                    RouteHost::Pattern(_) => 0,
                };
                (class, std::cmp::Reverse(r.path.len()))
            })
            .map(|r| &r.key)
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
            let found = router.route(host, path).map(|m| &*m.route.key);
            assert_eq!(found, Some(expected), "{host}{path}");
            assert_eq!(found, linear(&specs, host, path).map(|k| &**k), "{host}{path}");
        }
        assert!(Router::new(&routes(&["a.test/x"])).route("a.test", "/").is_none());
        assert!(Router::new(&routes(&["*.a.test"])).route(".a.test", "/").is_none());
    }

    #[test]
    fn readings_that_would_take_another_route_are_refused() {
        let router = Router::new(&routes(&["a.test", "a.test/admin"]));
        for path in
            ["//admin", "/%2Fadmin", "/x/..;/admin", "/x%2F..%2Fadmin/users", "/admin;a/x", "/admin/..;/x"]
        {
            let found = router.route_unambiguous("a.test", path);
            assert!(matches!(found, Err(NoRoute::Ambiguous { .. })), "{path}: {found:?}");
        }
        for path in ["/a%2Fb", "/a;b/c", "/a//b", "/admin/x;y", "/admin//x", "/admin/a%2Fb", "/admin/"] {
            assert!(router.route_unambiguous("a.test", path).is_ok(), "{path}");
        }
        assert_eq!(router.route_unambiguous("b.test", "//admin").unwrap_err(), NoRoute::Unknown);
        let mut same = routes(&["a.test", "a.test/admin"]);
        same[1].action = same[0].action.clone();
        assert!(Router::new(&same).route_unambiguous("a.test", "//admin").is_ok(), "both do the same");
    }

    #[test]
    fn explain_gives_every_route_a_reason() {
        let router = Router::new(&routes(&["*", "b.test", "a.test/x", "a.test", "a.test/api", "*.test"]));
        let verdicts: Vec<_> =
            router.explain("a.test", "/api/1").iter().map(|c| (&*c.route.key, c.verdict)).collect();
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

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(
            keys in prop::collection::hash_set(key(), 0..20),
            host in host(),
            path in r"(/(a|b|ab|)){1,4}",
        ) {
            let specs: Vec<_> = keys.iter().map(|key| route(key)).collect();
            let router = Router::new(&specs);
            let found = router.route(&host, &path).map(|m| &m.route.key);
            prop_assert_eq!(found, linear(&specs, &host, &path));
            let explained = router.explain(&host, &path);
            prop_assert_eq!(explained.len(), specs.len());
            let taken = explained.first().filter(|c| c.verdict == Verdict::Taken).map(|c| &c.route.key);
            prop_assert_eq!(found, taken);
        }
    }
}
