//! What becomes of a request, worked out from a plan alone: for `check`, `explain` and their readers.

use std::net::SocketAddr;

use crate::config::{CertificatePlan, ExpectRequest, Plan, Want};
use crate::name::HostPattern;
use crate::proxy::{ActionSpec, NoRoute, RouteSpec, Router, path};

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes to an upstream, with this path and query.
    Forward { upstream: String, target: String },
    /// Its connection goes to an upstream, which is who answers.
    Pass { upstream: String },
    /// The client is sent elsewhere.
    Redirect { status: u16, url: String },
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
    let matched = match router.route_unambiguous(&request.host, &path) {
        Ok(matched) => matched,
        Err(NoRoute::Unknown) => return answer(404, "no route is for it".to_owned(), path),
        Err(NoRoute::Ambiguous { reading }) => {
            let why =
                format!("ambiguous: a server might read the path as {reading}, which another route is for");
            return answer(400, why, path);
        }
    };
    let route = matched.route;
    let outcome = match &route.action {
        ActionSpec::Forward { upstream, strip_prefix } => {
            let sent = if *strip_prefix { path::without_prefix(&path, &route.path) } else { &path };
            Outcome::Forward { upstream: upstream.to_string(), target: format!("{sent}{query}") }
        }
        ActionSpec::Passthrough { upstream } => Outcome::Pass { upstream: upstream.to_string() },
        ActionSpec::Redirect(to) => {
            let rest = to.path.as_deref().map_or_else(|| format!("{path}{query}"), ToOwned::to_owned);
            Outcome::Redirect { status: to.status, url: format!("{}{rest}", to.origin) }
        }
        ActionSpec::Respond { status, .. } => Outcome::Respond { status: *status, why: String::new() },
    };
    Judged { outcome, route: Some(route), path }
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
            (Want::To(wanted), Self::Forward { upstream, .. } | Self::Pass { upstream }) => {
                wanted == upstream
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
            Self::Forward { upstream, target } => write!(f, "goes to {upstream} as {target}"),
            Self::Pass { upstream } => write!(f, "goes to {upstream} with its TLS, unread"),
            Self::Redirect { status, url } => write!(f, "is redirected ({status}) to {url}"),
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
            ("https://app.example.com/%00", "is answered with 400: the path holds a control byte"),
        ] {
            assert_eq!(outcome(url), expected, "{url}");
        }
        assert!(outcome("https://app.example.com//api").contains("ambiguous"));
    }
}
