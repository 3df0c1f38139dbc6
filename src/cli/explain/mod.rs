//! `starlock explain URL`: which route and why not the others, the policies, the certificate, the servers and how they are, the limits.

mod bounds;
mod servers;

pub(super) use bounds::human;

use std::fmt::Write;
use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use http::{HeaderName, HeaderValue, Method};

use self::servers::Running;
use super::options::SocketArgs;
use super::verdict::{self, Judged, Outcome};
use super::{FAILURE, USAGE, check, fail, print};
use crate::config::{ExpectRequest, Plan};
use crate::proxy::client::Client;
use crate::proxy::{Router, Verdict};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// For example https://app.example.com/api; without a scheme, https is meant.
    url: String,
    /// The method, for conditions.
    #[arg(long, short = 'X', default_value = "GET", value_name = "METHOD")]
    method: Method,
    /// A field of the request, for conditions and what trusted proxies say of the client: "X-Beta: 1". May be given several times.
    #[arg(long, short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// The address that the connection comes from: whether it may come, and whom it is taken for.
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let request = match ExpectRequest::parse_url(&arguments.url) {
        Ok(request) => ExpectRequest {
            method: arguments.method.clone(),
            headers: arguments.header.iter().cloned().collect(),
            ..request
        },
        Err(error) => return fail(USAGE, &format!("`{}`: {error}", arguments.url)),
    };
    let (_, loaded) = match arguments.socket.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let running = || arguments.socket.client().upstreams().map_err(|error| error.to_string());
    let (text, found) = explain(&loaded.plan, &request, arguments.from, running);
    let code = print(&text);
    if found { code } else { ExitCode::from(FAILURE) }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("a header is written \"NAME: VALUE\"")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|error| error.to_string())?;
    Ok((name, HeaderValue::from_str(value.trim()).map_err(|error| error.to_string())?))
}

/// The whole explanation, and whether something is there for the request. `running` is asked only if a server is to be shown.
fn explain(
    plan: &Plan,
    request: &ExpectRequest,
    from: Option<IpAddr>,
    running: impl FnOnce() -> Running,
) -> (String, bool) {
    let router = Router::new(&plan.proxy.routes);
    let mut judged = verdict::judge(plan, &router, request);
    let client = from.map(|peer| {
        Client::of(peer, &plan.proxy.trusted_proxies, plan.proxy.trusted_header, &request.headers)
    });
    if let (Some(client), Some(route)) = (client, judged.route)
        && let Some(why) = route.policy.access.refusal(client.address)
    {
        judged.outcome = refused(&judged, why);
    }
    let scheme = if request.tls { "https" } else { "http" };
    let port = request.port.map(|port| format!(":{port}")).unwrap_or_default();
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{scheme}://{}{port}{} {}",
        verdict::in_url(&request.host),
        request.target,
        judged.outcome
    );
    let raw = request.target.split('?').next().unwrap_or_default();
    if raw != judged.path {
        let _ = writeln!(out, "\nPath\n  {} after normalisation", judged.path);
    }
    if !request.tls && !plan.listen.https.is_empty() {
        let _ = writeln!(
            out,
            "\nIn clear every known host is redirected to https; `starlock explain https://...` goes on from there"
        );
    }
    if let Some(client) = client {
        said_of(&mut out, plan, &client);
    }
    routes(&mut out, &router, request, &judged);
    if let Some(route) = judged.route {
        let _ = writeln!(out, "\nAction\n  {}", check::action(plan, route));
        let steps = route.policy.steps();
        if !steps.is_empty() {
            let _ = writeln!(out, "\nPolicies, in this order");
            for step in steps {
                let _ = writeln!(out, "  {step}");
            }
        }
        servers::servers(&mut out, plan, route, running);
    }
    match judged.outcome {
        Outcome::Pass { .. } => {
            let _ = writeln!(out, "\nCertificate\n  the server's own: TLS does not end here");
        }
        _ => certificate(&mut out, plan, request),
    }
    if let Some(route) = judged.route {
        bounds::time_outs(&mut out, plan, route);
        bounds::limits(&mut out, plan, route);
    }
    let found = judged.route.is_some() || matches!(judged.outcome, Outcome::Redirect { .. });
    (out, found)
}

/// What `deny` and `allow` make of a request.
fn refused(judged: &Judged<'_>, why: String) -> Outcome {
    match judged.outcome {
        Outcome::Pass { .. } => Outcome::Closed { why },
        _ => Outcome::Respond { status: 403, why },
    }
}

/// Whom a connection is taken for.
fn said_of(out: &mut String, plan: &Plan, client: &Client) {
    let _ = writeln!(out, "\nClient");
    let Client { address, peer, trusted, .. } = client;
    let _ = match (trusted, address == peer) {
        (Some(_), false) => writeln!(out, "  {address}, says {peer}, which is one of trusted_proxies"),
        (Some(header), true) => writeln!(
            out,
            "  {peer}, one of trusted_proxies: `{}` would say who its client is (--header)",
            header.name()
        ),
        (None, _) => writeln!(out, "  {peer}; what it says in X-Forwarded-* and Forwarded is not believed"),
    };
    if plan.listen.proxy_protocol.iter().any(|net| net.contains(peer)) {
        let _ = writeln!(
            out,
            "  its connections begin with a PROXY header, and the address there takes the place of {peer}"
        );
    }
}

fn routes(out: &mut String, router: &Router, request: &ExpectRequest, judged: &Judged<'_>) {
    let _ = writeln!(out, "\nRoutes");
    let facts = request.facts();
    let candidates = router.explain(&request.host, &judged.path, &facts);
    let near: Vec<_> = candidates.iter().filter(|c| c.verdict != Verdict::OtherHost).collect();
    let width = near.iter().map(|c| c.route.key.chars().count()).max().unwrap_or(0).min(48);
    for candidate in &near {
        let mark = if candidate.verdict == Verdict::Taken { ">" } else { " " };
        let unmet = candidate.route.when.unmet(&facts).filter(|_| candidate.verdict == Verdict::Unmet);
        let why = unmet.map_or_else(|| candidate.verdict.to_string(), |unmet| unmet.to_string());
        let when = match candidate.route.when.is_always() {
            true => String::new(),
            false => format!(" (if {})", candidate.route.when),
        };
        let _ = writeln!(out, "{mark} {:<width$}  {why}{when}", candidate.route.key);
    }
    match candidates.len() - near.len() {
        0 => {}
        others if near.is_empty() => {
            let _ = writeln!(out, "  none: all {others} are for other hosts");
        }
        others => {
            let _ = writeln!(out, "  {others} more for other hosts");
        }
    }
    if candidates.is_empty() {
        let _ = writeln!(out, "  none at all");
    }
}

fn certificate(out: &mut String, plan: &Plan, request: &ExpectRequest) {
    if plan.listen.https.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nCertificate");
    match verdict::certificate_for(plan, &request.host) {
        Some((certificate, name)) => {
            let _ = writeln!(out, "  {} (by {name})", check::names(certificate));
            let _ = writeln!(out, "  {}", check::issuer(&certificate.issuer));
        }
        None => {
            let _ = writeln!(
                out,
                "  none is for {}: the handshake ends with the alert unrecognized_name",
                request.host
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    const FILE: &str = r#"
acme = "local"
[routes]
"app.example.com" = "http://10.0.0.1"
"app.example.com/api" = { to = "http://10.0.0.2", strip_prefix = true }
"*.example.com" = { respond = 404 }
"other.example.net" = { respond = 204 }
"db.example.net" = { passthrough = "10.0.0.5:5432" }
"v.example.com" = [
    { when = { method = ["POST"] }, to = "http://10.0.0.3", timeouts = { response = "9s" }, compress = true },
    { when = { header = { X-Beta = "1" } }, respond = 201 },
    { respond = 202 },
]
"#;

    fn nobody() -> Running {
        Err("no starlock is running".to_owned())
    }

    fn plan(file: &str) -> Plan {
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        parse(file, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan
    }

    fn explained(url: &str) -> (String, bool) {
        explain(&plan(FILE), &ExpectRequest::parse_url(url).unwrap(), None, nobody)
    }

    /// Whether a line begins with each of `parts`; columns are as wide as they have to be.
    fn holds(text: &str, parts: &[&str]) {
        let narrow = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            let found = text.lines().any(|line| narrow(line).starts_with(&narrow(part)));
            assert!(found, "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn the_route_and_why_not_the_others() {
        let (text, found) = explained("https://app.example.com/a/../api/x?y");
        assert!(found);
        let first = text.lines().next();
        assert_eq!(first, Some("https://app.example.com/a/../api/x?y goes to http://10.0.0.2:80 as /x?y"));
        let parts = [
            "  /api/x after normalisation",
            "> app.example.com/api  taken",
            "  app.example.com      matches, but a route with a longer path",
            "  *.example.com        matches, but a route that names the host more exactly",
            "  5 more for other hosts",
            "  http://10.0.0.2:80  condition unknown",
            "  (no starlock is running)",
            "  attempt        5 s    until an idempotent request",
            "  stall          5 min",
            "  body                 none     of a request's body, then 413",
            "  header               32 KiB   of a request's head, then 431",
        ];
        holds(&text, &parts);
        assert!(text.contains("Certificate\n  app.example.com (by app.example.com)\n"), "{text}");
    }

    #[test]
    fn conditions_are_explained() {
        let plan = plan(FILE);
        let explained = |method: Method, beta: &'static str| {
            let request = ExpectRequest::parse_url("https://v.example.com/").unwrap();
            let headers = [header(&format!("X-Beta: {beta}")).unwrap()].into_iter().collect();
            explain(&plan, &ExpectRequest { method, headers, ..request }, None, nobody).0
        };
        let text = explained(Method::POST, "1");
        let parts = [
            "> v.example.com  taken: the most exact host, and the longest path for it (if method POST)",
            "  v.example.com  matches, but one before it with the same host and path comes first (if header x-beta \"1\")",
            "  response       9 s",
            "  compress  zstd, br, gzip",
        ];
        holds(&text, &parts);
        let text = explained(Method::GET, "0");
        let parts = [
            "> v.example.com  taken",
            "  v.example.com  the method must be POST, not GET (if method POST)",
            "  v.example.com  the header x-beta must be \"1\"",
        ];
        holds(&text, &parts);
        assert!(header("X-Beta").is_err() && header("X Beta: 1").is_err() && header("X: \n").is_ok());
    }

    #[test]
    fn no_route_is_said_and_counts_as_none() {
        let (text, found) = explained("https://nobody.test/");
        assert!(!found);
        assert!(
            text.contains("none: all 8 are for other hosts") && text.contains("unrecognized_name"),
            "{text}"
        );
        assert!(explained("http://app.example.com/").1, "a redirect to https is an answer");
        let (text, found) = explained("https://db.example.net/");
        assert!(
            found && text.contains("with its TLS, unread") && text.contains("TLS does not end here"),
            "{text}"
        );
    }

    #[test]
    fn an_address_may_come_or_not_and_is_who_a_trusted_proxy_says() {
        let plan = plan(
            r#"
            acme = "local"
            [listen]
            trusted_proxies = ["10.0.0.0/8"]
            proxy_protocol = ["192.0.2.1"]
            [routes]
            "a.test" = { to = "http://127.0.0.1:1", deny = ["203.0.113.0/24"], allow = ["0.0.0.0/0"], max_body = "1MiB" }
            "db.test" = { passthrough = "127.0.0.1:5432", allow = ["198.51.100.0/24"] }
            "#,
        );
        let text = |url: &str, from: &str, said: &'static str| {
            let mut request = ExpectRequest::parse_url(url).unwrap();
            if !said.is_empty() {
                request.headers.insert("x-forwarded-for", HeaderValue::from_static(said));
            }
            explain(&plan, &request, Some(from.parse().unwrap()), nobody)
        };
        let (denied, found) = text("https://a.test/", "203.0.113.9", "");
        assert!(found, "there is a route all the same");
        let first =
            "https://a.test/ is answered with 403: 203.0.113.9 is in 203.0.113.0/24, which `deny` lists";
        holds(&denied, &[first, "  body                 1 MiB"]);
        let (six, _) = text("https://a.test/", "2001:db8::1", "");
        holds(
            &six,
            &[
                "https://a.test/ is answered with 403: 2001:db8::1 is in none of the networks that `allow` lists",
            ],
        );
        let (spoofed, _) = text("https://a.test/", "198.51.100.1", "203.0.113.9");
        holds(
            &spoofed,
            &[
                "https://a.test/ goes to",
                "  198.51.100.1; what it says in X-Forwarded-* and Forwarded is not believed",
            ],
        );
        let (told, _) = text("https://a.test/", "10.1.1.1", "203.0.113.9");
        holds(
            &told,
            &[
                "https://a.test/ is answered with 403",
                "  203.0.113.9, says 10.1.1.1, which is one of trusted_proxies",
            ],
        );
        let mut request = ExpectRequest::parse_url("https://a.test/").unwrap();
        request.headers = [("x-forwarded-for", "198.51.100.1"), ("forwarded", "for=198.51.100.2")]
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        let (both, _) = explain(&plan, &request, Some([10, 1, 1, 1].into()), nobody);
        holds(&both, &["  198.51.100.1, says 10.1.1.1, which is one of trusted_proxies"]);
        let (silent, _) = text("https://a.test/", "10.1.1.1", "");
        holds(
            &silent,
            &["  10.1.1.1, one of trusted_proxies: `x-forwarded-for` would say who its client is (--header)"],
        );
        let (passed, _) = text("https://db.test/", "192.0.2.1", "");
        holds(
            &passed,
            &[
                "https://db.test/ finds its connection closed: 192.0.2.1 is in none",
                "  its connections begin with a PROXY header",
            ],
        );
        assert!(!passed.contains("header_fields"), "nothing of HTTP is looked at: {passed}");
    }
}
