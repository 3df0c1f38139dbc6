//! `starlock upstreams`: servers and their health, and draining one of them, through the running process.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::options::SocketArgs;
use super::{FAILURE, fail, json, print};
use crate::admin::UpstreamStatus;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    socket: SocketArgs,
    /// As JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// NAME is an upstream's; SERVER is as `list` shows it, with or without its scheme.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Every upstream with its servers (the default).
    List,
    /// Keep new requests away from a server until `undrain`, over reloads too; those it works on finish.
    Drain { name: String, server: String },
    /// Let requests come to it again.
    Undrain { name: String, server: String },
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let client = arguments.socket.client();
    let (name, server, drained) = match &arguments.verb {
        None | Some(Verb::List) => {
            return match client.upstreams() {
                Ok(upstreams) if arguments.json => json(&upstreams),
                Ok(upstreams) => print(&list(&upstreams)),
                Err(error) => fail(FAILURE, &error.to_string()),
            };
        }
        Some(Verb::Drain { name, server }) => (name, server, true),
        Some(Verb::Undrain { name, server }) => (name, server, false),
    };
    match client.drain(name, server, drained) {
        Ok(upstream) if arguments.json => json(&upstream),
        Ok(upstream) => print(&list(&[upstream])),
        Err(error) => fail(FAILURE, &error.to_string()),
    }
}

fn list(upstreams: &[UpstreamStatus]) -> String {
    if upstreams.is_empty() {
        return "no route leads to a server\n".to_owned();
    }
    let mut out = String::new();
    for upstream in upstreams {
        let _ = writeln!(out, "{}  ({})", upstream.name, upstream.balance);
        let width = upstream.servers.iter().map(|s| s.server.chars().count()).max().unwrap_or(0).min(60);
        for server in &upstream.servers {
            let _ = writeln!(
                out,
                "  {:<width$}  {:<7}  {} in flight, {} open",
                server.server,
                server.condition,
                super::count(usize::try_from(server.requests).unwrap_or(usize::MAX), "request"),
                super::count(usize::try_from(server.connections).unwrap_or(usize::MAX), "connection"),
            );
        }
        if upstream.servers.is_empty() {
            let _ = writeln!(out, "  no server: its names do not resolve (yet)");
        } else if upstream.servers.iter().all(|server| server.condition == "drained") {
            let _ = writeln!(out, "  every server is drained: requests get 503 until one is undrained");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::ServerStatus;

    #[test]
    fn people_see_who_gets_requests() {
        let server = ServerStatus {
            server: "http://10.0.0.1:80".into(),
            condition: "drained".into(),
            requests: 1,
            connections: 2,
        };
        let other = ServerStatus { condition: "up".into(), ..server.clone() };
        let half = UpstreamStatus { servers: vec![server.clone(), other], ..UpstreamStatus::default() };
        assert!(!list(&[half]).contains("503"));
        let app = UpstreamStatus { name: "app".into(), balance: "p2c".into(), servers: vec![server] };
        let text = list(&[app, UpstreamStatus { name: "b".into(), ..UpstreamStatus::default() }]);
        assert!(
            text.starts_with(
                "app  (p2c)\n  http://10.0.0.1:80  drained  1 request in flight, 2 connections open\n  \
                 every server is drained: requests get 503 until one is undrained\n"
            ),
            "{text}"
        );
        assert!(text.ends_with("  no server: its names do not resolve (yet)\n"), "{text}");
    }
}
