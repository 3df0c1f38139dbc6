//! `starlock status`: the running process.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use super::options::SocketArgs;
use super::{FAILURE, fail, json, print};
use crate::admin::Status;

pub(super) fn run(socket: &SocketArgs, as_json: bool) -> ExitCode {
    match socket.client().status() {
        Ok(status) if as_json => json(&status),
        Ok(status) => print(&text(&status)),
        Err(error) => fail(FAILURE, &error.to_string()),
    }
}

fn text(status: &Status) -> String {
    let mut out =
        format!("starlock {}, process {}, since {}\n", status.version, status.pid, status.started_at);
    if status.draining {
        out.push_str("DRAINING: it was told to stop, and ends when the requests under way have ended\n");
    }
    if !status.config_path.is_empty() {
        let _ = writeln!(out, "configuration  {}", status.config_path);
    }
    match &status.last_reload {
        Some(reload) if reload.ok => {
            let _ = writeln!(out, "last reload    {}, taken over", reload.at);
        }
        Some(reload) => {
            let _ = writeln!(
                out,
                "last reload    {}, REFUSED: the former configuration is still served",
                reload.at
            );
            for line in reload.error.as_deref().unwrap_or_default().lines() {
                let _ = writeln!(out, "  {line}");
            }
        }
        None => {}
    }
    for listener in &status.listeners {
        let _ = writeln!(out, "{:<13}  {}", listener.kind, listener.address);
    }
    let _ = writeln!(out, "connections    {} open", status.connections_open);
    let _ = writeln!(out, "requests       {} since the start", status.requests_total);
    let _ = writeln!(out, "servers        {}", counts(&status.servers));
    let _ = writeln!(out, "certificates   {}", counts(&status.certificates));
    out
}

fn counts(states: &BTreeMap<String, u64>) -> String {
    let states: Vec<String> =
        states.iter().filter(|(_, n)| **n > 0).map(|(state, n)| format!("{n} {state}")).collect();
    if states.is_empty() { "none".to_owned() } else { states.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{LastReload, ListenerStatus};

    #[test]
    fn a_refused_reload_is_loud() {
        let status = Status {
            version: "1.0.0".into(),
            last_reload: Some(LastReload {
                at: "now".into(),
                ok: false,
                error: Some("error: x\n --> f".into()),
            }),
            listeners: vec![ListenerStatus { address: "[::]:443".into(), kind: "https".into() }],
            servers: [("up".to_owned(), 3), ("drained".to_owned(), 1)].into(),
            certificates: [("valid".to_owned(), 2), ("parked".to_owned(), 0)].into(),
            draining: true,
            ..Status::default()
        };
        let text = text(&status);
        for line in [
            "  error: x",
            "   --> f",
            "https          [::]:443",
            "certificates   2 valid",
            "servers        1 drained, 3 up",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        assert!(text.contains("REFUSED") && text.contains("DRAINING"));
    }
}
