//! What a request is held to: time-outs and limits.

use std::fmt::Write;
use std::time::Duration;

use crate::balance::UpstreamSpec;
use crate::config::Plan;
use crate::proxy::{ActionSpec, RouteSpec, RouteTimeouts};

/// One line: key, value, what it means.
type Line = (&'static str, String, &'static str);

/// Of the client's connection and of the route, then of each upstream it leads to.
pub(super) fn time_outs(out: &mut String, plan: &Plan, route: &RouteSpec) {
    let client = &plan.listen.timeouts;
    let (mut lines, own) = match &route.action {
        ActionSpec::Passthrough { .. } => (vec![], RouteTimeouts::default()),
        ActionSpec::Forward(to) => (of_client(plan), to.timeouts),
        ActionSpec::Redirect(_) | ActionSpec::Respond { .. } => (of_client(plan), RouteTimeouts::default()),
    };
    lines.insert(0, ("handshake", human(client.handshake), "for PROXY header and TLS"));
    match &route.action {
        ActionSpec::Forward(_) => {
            let body = own.body.unwrap_or(plan.proxy.body_timeout);
            lines.push(("body", human(body), "without a byte of the client's body, then 408"));
            lines.push(tunnel(plan, "without a byte either way of a WebSocket"));
        }
        ActionSpec::Passthrough { .. } => lines.push(tunnel(plan, "without a byte either way")),
        ActionSpec::Redirect(_) | ActionSpec::Respond { .. } => {}
    }
    section(out, "Time-outs", &lines);
    let upstreams = upstreams(plan, route);
    for upstream in &upstreams {
        let title = format!("Time-outs of {}", upstream.name);
        section(out, &title, &of_upstream(upstream, &own, matches!(route.action, ActionSpec::Forward(_))));
    }
}

fn of_client(plan: &Plan) -> Vec<Line> {
    let client = &plan.listen.timeouts;
    vec![
        ("header", human(client.header), "from a request's first byte to the end of its head"),
        ("idle", human(client.idle), "between requests, and before the first"),
        ("write", human(client.write), "without the client taking a byte"),
    ]
}

fn tunnel(plan: &Plan, what: &'static str) -> Line {
    ("tunnel", human(plan.proxy.tunnel_timeout), what)
}

fn of_upstream(upstream: &UpstreamSpec, own: &RouteTimeouts, http: bool) -> Vec<Line> {
    let times = &upstream.timeouts;
    let mut lines = vec![("connect", human(times.connect), "to reach a server, and again for TLS")];
    if http {
        let attempt = own.attempt.unwrap_or(upstream.retries.attempt);
        lines.extend([
            ("attempt", human(attempt), "until an idempotent request is tried at another server"),
            (
                "response",
                human(own.response.unwrap_or(times.response)),
                "until it begins to answer, then 504",
            ),
            ("stall", human(own.stall.unwrap_or(times.stall)), "without a byte of its answer"),
            ("upstream_idle", human(times.upstream_idle), "that a connection without requests is kept"),
        ]);
    }
    lines
}

/// How much a client may send and hold, and how much a server is given.
pub(super) fn limits(out: &mut String, plan: &Plan, route: &RouteSpec) {
    let limits = &plan.listen.limits;
    let mut lines = Vec::new();
    if !matches!(route.action, ActionSpec::Passthrough { .. }) {
        let body = route.policy.max_body.or(plan.proxy.max_body);
        lines.extend([
            ("header", size(limits.header as u64), "of a request's head, then 431"),
            ("header_fields", limits.header_fields.to_string(), "fields in a head, then 431"),
            ("uri", size(limits.uri as u64), "of path and query, then 414"),
            ("body", body.map_or_else(|| "none".to_owned(), size), "of a request's body, then 413"),
            ("h2_streams", limits.h2_streams.to_string(), "requests at a time on an HTTP/2 connection"),
        ]);
    }
    let number =
        |most: Option<usize>, else_: &str| most.map_or_else(|| else_.to_owned(), |most| most.to_string());
    let buffered = limits.buffered.map_or_else(|| "by memory".to_owned(), |most| size(most as u64));
    lines.extend([
        (
            "connections",
            number(limits.connections, "by files"),
            "over all listeners; by files: 90 % of half the file limit",
        ),
        (
            "requests",
            number(limits.requests, "by files"),
            "under way in all, then 503; by files: as connections",
        ),
        (
            "buffered",
            buffered,
            "held in all for clients and servers that stall, then 503; by memory: a quarter of it",
        ),
        ("connections_per_ip", number(limits.connections_per_ip, "none"), "of one address, of IPv6 of a /64"),
    ]);
    section(out, "Limits", &lines);
}

/// Those that a route leads to, without those that get copies.
pub(super) fn upstreams<'a>(plan: &'a Plan, route: &RouteSpec) -> Vec<&'a UpstreamSpec> {
    let names: Vec<&str> = match &route.action {
        ActionSpec::Forward(to) => to.to.iter().map(|share| &*share.upstream).collect(),
        ActionSpec::Passthrough { upstream } => vec![upstream],
        ActionSpec::Redirect(_) | ActionSpec::Respond { .. } => vec![],
    };
    names.iter().filter_map(|name| plan.upstreams.iter().find(|u| *u.name == **name)).collect()
}

fn section(out: &mut String, title: &str, lines: &[Line]) {
    let _ = writeln!(out, "\n{title}");
    let width = |of: fn(&Line) -> usize| lines.iter().map(of).max().unwrap_or(0);
    let (keys, values) = (width(|line| line.0.len()), width(|line| line.1.len()));
    for (key, value, what) in lines {
        let _ = writeln!(out, "  {key:<keys$}  {value:<values$}  {what}");
    }
}

/// `90s` as `90 s`, whole minutes from two on as `2 min`.
pub(in crate::cli) fn human(time: Duration) -> String {
    match time {
        time if time.subsec_millis() > 0 => format!("{} ms", time.as_millis()),
        time if time.as_secs() >= 120 && time.as_secs().is_multiple_of(60) => {
            format!("{} min", time.as_secs() / 60)
        }
        time => format!("{} s", time.as_secs()),
    }
}

/// In the largest unit that divides it.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = units.iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    fitting.map_or_else(|| format!("{bytes} bytes"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short_and_exact() {
        for (millis, text) in [(1_500, "1500 ms"), (90_000, "90 s"), (120_000, "2 min"), (121_000, "121 s")] {
            assert_eq!(human(Duration::from_millis(millis)), text);
        }
        for (bytes, text) in
            [(0, "0 bytes"), (1000, "1000 bytes"), (8192, "8 KiB"), (3 << 20, "3 MiB"), (1 << 30, "1 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
