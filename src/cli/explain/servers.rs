//! The servers a route leads to, and how the running process finds them.

use std::fmt::Write;

use super::bounds::upstreams;
use crate::admin::{ServerStatus, UpstreamStatus};
use crate::balance::{ServerSpec, UpstreamSpec};
use crate::config::Plan;
use crate::proxy::RouteSpec;

/// What the running process says of its upstreams, or why it says nothing.
pub(super) type Running = Result<Vec<UpstreamStatus>, String>;

pub(super) fn servers(out: &mut String, plan: &Plan, route: &RouteSpec, running: impl FnOnce() -> Running) {
    let upstreams = upstreams(plan, route);
    if upstreams.is_empty() {
        return;
    }
    let running = running();
    for upstream in upstreams {
        let _ = writeln!(out, "\nServers of {}", upstream.name);
        let found = running.as_ref().map(|all| all.iter().find(|status| *status.name == *upstream.name));
        match found {
            Ok(Some(status)) => known(out, upstream, status),
            Ok(None) => unknown(out, upstream, "the running process has no such upstream: reload it"),
            Err(why) => unknown(out, upstream, why),
        }
    }
}

fn known(out: &mut String, upstream: &UpstreamSpec, status: &UpstreamStatus) {
    let _ = writeln!(out, "  chosen by {}", status.balance);
    let width = status.servers.iter().map(|server| server.server.chars().count()).max().unwrap_or(0).min(60);
    for ServerStatus { server, condition, requests, connections } in &status.servers {
        // The process shows a name's addresses behind it.
        let plain = server.split('#').next().unwrap_or(server);
        let spec = upstream.servers.iter().find(|spec| spec.to_string() == plain);
        let words = spec.map(words).unwrap_or_default();
        let _ = writeln!(
            out,
            "  {server:<width$}  {condition:<7}  {requests} in flight, {connections} connected{words}"
        );
    }
    if status.servers.is_empty() {
        let _ = writeln!(out, "  none: its names do not resolve (yet)");
    }
}

fn unknown(out: &mut String, upstream: &UpstreamSpec, why: &str) {
    let width = upstream.servers.iter().map(|spec| spec.to_string().chars().count()).max().unwrap_or(0);
    for spec in &upstream.servers {
        let server = spec.to_string();
        let _ = writeln!(out, "  {server:<width$}  condition unknown{}", words(spec));
    }
    let _ = writeln!(out, "  ({why})");
}

/// What makes it different from the others.
fn words(spec: &ServerSpec) -> String {
    let mut text = String::new();
    if spec.weight != 1 {
        let _ = write!(text, ", weight {}", spec.weight);
    }
    if spec.backup {
        text.push_str(", backup");
    }
    if let Some(most) = spec.max_requests {
        let _ = write!(text, ", at most {most} requests");
    }
    if let Some(most) = spec.max_connections {
        let _ = write!(text, ", at most {most} connections");
    }
    text
}
