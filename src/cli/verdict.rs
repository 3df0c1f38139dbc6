//! What becomes of a request, worked out from a plan alone: for `check`, `explain` and their readers.

use std::net::SocketAddr;

use crate::config::{CertificatePlan, ExpectRequest, Plan, Want};
use crate::name::HostPattern;
use crate::proxy::{
    ActionSpec, ForwardSpec, NoRoute, RedirectSpec, Rewrite, Rewritten, RouteSpec, Router, path,
};

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// It goes to one of these upstreams, each with its part of a hundred, with this path and query.
    Forward { upstreams: Vec<(String, f64)>, target: String },
    /// Its connection goes to an upstream, which is who answers.
    Pass { upstream: String },
    /// The client is sent elsewhere.
    Redirect { status: u16, url: String },
    /// Its connection is closed.
    Closed { why: String },
    /// It is answered at once; `why` is empty if a route says so.
    Respond { status: u16, why: String },
}

/// An outcome and the route that decided it, if one did.
#[derive(Clone, Debug)]
pub(super) struct Judged<'a> {
    pub(super) outcome: Outcome,
    pub(super) route: Option<&'a RouteSpec>,
    /// The path that was matched.
    pub(super) path: String,
}

/// Judges `request`, made on a connection for its own host.
pub(super) fn judge<'a>(plan: &Plan, router: &'a Router, request: &ExpectRequest) -> Judged<'a> {
    let (raw, query) = match request.target.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (request.target.as_str(), String::new()),
    };
    let answer = |status: u16, why: String, path: String| Judged {
        outcome: Outcome::Respond { status, why },
        route: None,
        path,
    };
    let path = match path::normalise(raw) {
        Ok(path) => path.into_owned(),
        Err(error) => return answer(400, error.to_string(), raw.to_owned()),
    };
    if !request.tls && !plan.listen.https.is_empty() {
        if !router.knows_host(&request.host) {
            return answer(404, "no route is for this host".to_owned(), path);
        }
        let port = https_port(&plan.listen.https).map_or_else(String::new, |port| format!(":{port}"));
        let url = format!("https://{}{port}{path}{query}", in_url(&request.host));
        return Judged { outcome: Outcome::Redirect { status: 308, url }, route: None, path };
    }
    let matched = match router.route_unambiguous(&request.host, &path, &request.facts()) {
        Ok(matched) => matched,
        Err(NoRoute::Unmet) => {
            let why = "routes are for its host and path, and their conditions are not met";
            return answer(404, why.to_owned(), path);
        }
        Err(NoRoute::Unknown) => return answer(404, "no route is for it".to_owned(), path),
        Err(NoRoute::Ambiguous { reading }) => {
            let why =
                format!("ambiguous: a server might read the path as {reading}, which another route is for");
            return answer(400, why, path);
        }
    };
    let route = matched.route;
    let outcome = match &route.action {
        ActionSpec::Forward(to) => forwarded(to, &route.path, &path, &query),
        ActionSpec::Redirect(to) => redirected(to, &path, &query),
        ActionSpec::Passthrough { upstream } => Outcome::Pass { upstream: upstream.to_string() },
        ActionSpec::Respond { status, .. } => Outcome::Respond { status: *status, why: String::new() },
    };
    Judged { outcome, route: Some(route), path }
}

fn forwarded(to: &ForwardSpec, prefix: &str, path: &str, query: &str) -> Outcome {
    let sent = match &to.rewrite {
        _ if to.strip_prefix => path::without_prefix(path, prefix).to_owned(),
        None => path.to_owned(),
        Some(rewrite) => match rewritten(&rewrite.pattern, &rewrite.to, path) {
            Ok(new) => new.map_or_else(|| path.to_owned(), |new| new.path),
            Err(outcome) => return outcome,
        },
    };
    let sum: f64 = to.to.iter().map(|share| f64::from(share.weight)).sum();
    let part = |weight: u32| if to.to.len() == 1 { 100.0 } else { f64::from(weight) * 100.0 / sum };
    let upstreams = to.to.iter().map(|share| (share.upstream.to_string(), part(share.weight))).collect();
    Outcome::Forward { upstreams, target: format!("{sent}{query}") }
}

fn redirected(to: &RedirectSpec, path: &str, query: &str) -> Outcome {
    let rest = match (&to.path, &to.pattern) {
        (None, _) => format!("{path}{query}"),
        (Some(fixed), None) => fixed.to_string(),
        (Some(template), Some(pattern)) => match rewritten(pattern, template, path) {
            Ok(Some(Rewritten { path, query: Some(query) })) => format!("{path}?{query}"),
            Ok(Some(Rewritten { path, query: None })) => format!("{path}{query}"),
            Ok(None) => {
                return Outcome::Respond {
                    status: 404,
                    why: format!("`match` {pattern} does not match the path"),
                };
            }
            Err(outcome) => return outcome,
        },
    };
    Outcome::Redirect { status: to.status, url: format!("{}{rest}", to.origin) }
}

fn rewritten(pattern: &str, to: &str, path: &str) -> Result<Option<Rewritten>, Outcome> {
    // The plan holds no pattern that cannot be used.
    let Ok(rewrite) = Rewrite::new(pattern, to) else { return Ok(None) };
    rewrite.apply(path).map_err(|error| Outcome::Respond { status: 400, why: error.to_string() })
}

/// The port that clients in clear are sent to, if it has to be written.
fn https_port(https: &[SocketAddr]) -> Option<u16> {
    https.first().map(SocketAddr::port).filter(|port| *port != 443 && *port != 0)
}

/// A host as it stands in a URL.
pub(super) fn in_url(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

impl Outcome {
    /// Whether this is what was wanted; else what it is instead.
    pub(super) fn check(&self, want: &Want) -> Result<(), String> {
        let fits = match (want, self) {
            (Want::To(wanted), Self::Pass { upstream }) => wanted == upstream,
            (Want::To(wanted), Self::Forward { upstreams, .. }) => {
                upstreams.iter().any(|(upstream, part)| wanted == upstream && *part > 0.0)
            }
            (Want::Status(wanted), Self::Respond { status, .. } | Self::Redirect { status, .. }) => {
                wanted == status
            }
            (Want::Redirect(wanted), Self::Redirect { url, .. }) => wanted == url,
            _ => false,
        };
        if fits { Ok(()) } else { Err(self.to_string()) }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forward { upstreams, target } => match upstreams.as_slice() {
                [(upstream, _)] => write!(f, "goes to {upstream} as {target}"),
                several => {
                    let parts: Vec<String> =
                        several.iter().map(|(name, part)| format!("{name} ({part:.3}")).collect();
                    let parts: Vec<String> = parts
                        .iter()
                        .map(|part| format!("{} %)", part.trim_end_matches('0').trim_end_matches('.')))
                        .collect();
                    write!(f, "goes to {} as {target}", parts.join(" or "))
                }
            },
            Self::Pass { upstream } => write!(f, "goes to {upstream} with its TLS, unread"),
            Self::Redirect { status, url } => write!(f, "is redirected ({status}) to {url}"),
            Self::Closed { why } => write!(f, "finds its connection closed: {why}"),
            Self::Respond { status, why } if why.is_empty() => write!(f, "is answered with {status}"),
            Self::Respond { status, why } => write!(f, "is answered with {status}: {why}"),
        }
    }
}

/// The certificate that a client asking for `host` is shown: an exact name before a wildcard.
pub(super) fn certificate_for<'a>(
    plan: &'a Plan,
    host: &str,
) -> Option<(&'a CertificatePlan, &'a HostPattern)> {
    let all = || plan.certificates.iter().flat_map(|cert| cert.names.iter().map(move |name| (cert, name)));
    let matching = || all().filter(|(_, name)| name.matches(host));
    matching().find(|(_, name)| !name.is_wildcard()).or_else(|| matching().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    const FILE: &str = r#"
        acme = "local"
        listen = { https = ["[::]:8443"] }
        [routes]
        "app.example.com" = "http://10.0.0.1"
        "app.example.com/api" = { to = "http://10.0.0.2", strip_prefix = true }
        "old.example.com" = { redirect = "https://app.example.com" }
        "go.example.com" = { redirect = "https://app.example.com/start?x", status = 302 }
        "*.example.com" = { respond = 410 }
        "split.example.com" = [
            { when = { method = ["PUT"] }, respond = 405 },
            { when = { query = { v = "2" } }, to = { "http://10.0.0.1" = 95, "http://10.0.0.2" = 5 }, rewrite = { match = "^/(.)/(.*)$", to = "/$1$2" } },
        ]
        "moved.example.com" = { redirect = "https://app.example.com/new/$1", match = "^/old/(.*)$" }
    "#;

    fn outcome(method_url: &str) -> String {
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        let plan = parse(FILE, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan;
        let router = Router::new(&plan.proxy.routes);
        judge(&plan, &router, &ExpectRequest::parse_url(method_url).unwrap()).outcome.to_string()
    }

    #[test]
    fn requests_are_judged_as_the_proxy_decides_them() {
        for (url, expected) in [
            ("https://app.example.com/%61?b", "goes to http://10.0.0.1:80 as /a?b"),
            ("app.example.com/api/x?y", "goes to http://10.0.0.2:80 as /x?y"),
            ("https://app.example.com/api", "goes to http://10.0.0.2:80 as /"),
            ("https://old.example.com/a?b", "is redirected (308) to https://app.example.com/a?b"),
            ("https://go.example.com/a?b", "is redirected (302) to https://app.example.com/start?x"),
            ("https://x.example.com/", "is answered with 410"),
            ("https://example.com/", "is answered with 404: no route is for it"),
            ("http://app.example.com/a?b", "is redirected (308) to https://app.example.com:8443/a?b"),
            ("http://nobody.test/", "is answered with 404: no route is for this host"),
            (
                "split.example.com/.a/b?v=2",
                "goes to http://10.0.0.1:80 (95 %) or http://10.0.0.2:80 (5 %) as /.a/b?v=2",
            ),
            (
                "split.example.com/a/b?v=2",
                "goes to http://10.0.0.1:80 (95 %) or http://10.0.0.2:80 (5 %) as /ab?v=2",
            ),
            (
                "split.example.com/./?v=2",
                "goes to http://10.0.0.1:80 (95 %) or http://10.0.0.2:80 (5 %) as /?v=2",
            ),
            (
                "split.example.com/",
                "is answered with 404: routes are for its host and path, and their conditions are not met",
            ),
            ("moved.example.com/old/a?b", "is redirected (308) to https://app.example.com/new/a?b"),
            ("moved.example.com/a", "is answered with 404: `match` ^/old/(.*)$ does not match the path"),
            ("https://app.example.com/%00", "is answered with 400: the path holds a control byte"),
        ] {
            assert_eq!(outcome(url), expected, "{url}");
        }
        assert!(outcome("https://app.example.com//api").contains("ambiguous"));
    }
}
