//! `starlock explain URL`: which route, why not the others, which certificate, which upstream.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::{HeaderName, HeaderValue, Method};

use super::options::ConfigArgs;
use super::verdict::{self, Outcome};
use super::{FAILURE, USAGE, check, fail, print};
use crate::config::{ExpectRequest, Plan};
use crate::proxy::{ActionSpec, RouteTimeouts, Router, Verdict};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// For example https://app.example.com/api; without a scheme, https is meant.
    url: String,
    /// The method, for conditions.
    #[arg(long, short = 'X', default_value = "GET", value_name = "METHOD")]
    method: Method,
    /// A field of the request, for conditions: "X-Beta: 1". May be given several times.
    #[arg(long, short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    #[command(flatten)]
    config: ConfigArgs,
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
    let (_, loaded) = match arguments.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let (text, found) = explain(&loaded.plan, &request);
    let code = print(&text);
    if found { code } else { ExitCode::from(FAILURE) }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("a header is written \"NAME: VALUE\"")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|error| error.to_string())?;
    Ok((name, HeaderValue::from_str(value.trim()).map_err(|error| error.to_string())?))
}

/// The whole explanation, and whether something is there for the request.
fn explain(plan: &Plan, request: &ExpectRequest) -> (String, bool) {
    let router = Router::new(&plan.proxy.routes);
    let judged = verdict::judge(plan, &router, request);
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
    if let Some(route) = judged.route {
        let _ = writeln!(out, "\nAction\n  {}", check::action(plan, route));
        let steps = route.policy.steps();
        if !steps.is_empty() {
            let _ = writeln!(out, "\nPolicies, in this order");
            for step in steps {
                let _ = writeln!(out, "  {step}");
            }
        }
        if let ActionSpec::Forward(to) = &route.action {
            for share in &to.to {
                time_outs(&mut out, plan, &share.upstream, &to.timeouts, to.to.len() > 1);
            }
        }
    }
    match judged.outcome {
        Outcome::Pass { .. } => {
            let _ = writeln!(out, "\nCertificate\n  the server's own: TLS does not end here");
        }
        _ => certificate(&mut out, plan, request),
    }
    let found = judged.route.is_some() || matches!(judged.outcome, Outcome::Redirect { .. });
    (out, found)
}

fn time_outs(out: &mut String, plan: &Plan, upstream: &str, own: &RouteTimeouts, named: bool) {
    let Some(upstream) = plan.upstreams.iter().find(|u| *u.name == *upstream) else { return };
    let times = &upstream.timeouts;
    let of = if named { format!(" of {}", upstream.name) } else { String::new() };
    let _ = writeln!(out, "\nTime-outs{of}");
    for (name, time, what) in [
        ("connect", times.connect, "to reach a server"),
        ("response", own.response.unwrap_or(times.response), "until it begins to answer, then 504"),
        ("stall", own.stall.unwrap_or(times.stall), "without a byte of its answer"),
        ("body", own.body.unwrap_or(plan.proxy.body_timeout), "without a byte of the client's body"),
        ("write", plan.listen.timeouts.write, "without the client taking a byte"),
        ("tunnel", plan.proxy.tunnel_timeout, "without a byte either way of a WebSocket"),
    ] {
        let _ = writeln!(out, "  {name:<9} {:<6} {what}", human(time));
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
            let _ = writeln!(out, "  signed by {}", check::issuer(&certificate.issuer));
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

/// `90s` as `90 s`, whole minutes from ten on as `10 min`.
pub(super) fn human(time: Duration) -> String {
    match time {
        time if time.subsec_millis() > 0 => format!("{} ms", time.as_millis()),
        time if time.as_secs() >= 120 && time.as_secs().is_multiple_of(60) => {
            format!("{} min", time.as_secs() / 60)
        }
        time => format!("{} s", time.as_secs()),
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

    fn explained(url: &str) -> (String, bool) {
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        let plan = parse(FILE, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan;
        explain(&plan, &ExpectRequest::parse_url(url).unwrap())
    }

    #[test]
    fn the_route_and_why_not_the_others() {
        let (text, found) = explained("https://app.example.com/a/../api/x?y");
        assert!(found);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "https://app.example.com/a/../api/x?y goes to http://10.0.0.2:80 as /x?y");
        for part in [
            "  /api/x after normalisation",
            "> app.example.com/api  taken",
            "  app.example.com      matches, but a route with a longer path",
            "  *.example.com        matches, but a route that names the host more exactly",
            "  5 more for other hosts",
            "  stall     5 min",
        ] {
            assert!(lines.iter().any(|line| line.starts_with(part)), "{part:?} is not in\n{text}");
        }
        assert!(text.contains("Certificate\n  app.example.com (by app.example.com)\n"), "{text}");
    }

    #[test]
    fn conditions_are_explained() {
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        let plan = parse(FILE, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan;
        let explained = |method: Method, beta: &'static str| {
            let request = ExpectRequest::parse_url("https://v.example.com/").unwrap();
            let headers = [header(&format!("X-Beta: {beta}")).unwrap()].into_iter().collect();
            explain(&plan, &ExpectRequest { method, headers, ..request }).0
        };
        let text = explained(Method::POST, "1");
        for part in [
            "> v.example.com  taken: the most exact host, and the longest path for it (if method POST)",
            "  v.example.com  matches, but one before it with the same host and path comes first (if header x-beta \"1\")",
            "  response  9 s",
            "  compress  zstd, br, gzip",
        ] {
            assert!(text.lines().any(|line| line.starts_with(part)), "{part:?} is not in\n{text}");
        }
        let text = explained(Method::GET, "0");
        for part in [
            "> v.example.com  taken",
            "  v.example.com  the method must be POST, not GET (if method POST)",
            "  v.example.com  the header x-beta must be \"1\"",
        ] {
            assert!(text.lines().any(|line| line.starts_with(part)), "{part:?} is not in\n{text}");
        }
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
}
