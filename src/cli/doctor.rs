//! `starlock doctor`: the preflight, for people and as JSON.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::options::ConfigArgs;
use super::{FAILURE, fail, json, print, tell};
use crate::clock::{SharedClock, SystemClock};
use crate::config::Plan;
use crate::doctor::{self, Examination, Report, Severity};
use crate::task::{Shutdown, Supervisor};

/// TXT records that are still standing at the end get this long.
const END_LIMIT: Duration = Duration::from_secs(15);

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Write no throw-away TXT record, so that credentials are not tried.
    #[arg(long)]
    no_write: bool,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let (path, loaded) = match arguments.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let how = Examination { config: path, references: loaded.references.clone(), write: !arguments.no_write };
    let report = match examine(&loaded.plan, &how) {
        Ok(report) => report,
        Err(error) => return fail(FAILURE, &error),
    };
    let code = if arguments.json { json(&report) } else { print(&text(&report)) };
    if report.ok { code } else { ExitCode::from(FAILURE) }
}

/// Runs it on this thread; Ctrl-C ends it, and takes its records away too.
fn examine(plan: &Plan, how: &Examination) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    let shown = std::io::stderr().is_terminal();
    let progress = move |text: &str| {
        if shown {
            let mut out = std::io::stderr().lock();
            // A terminal that went away is no reason to stop.
            drop(write!(out, "\r\x1b[Klooking at {text} ...").and_then(|()| out.flush()));
        }
    };
    let report = runtime.block_on(async {
        let supervisor = Supervisor::new(Shutdown::new());
        let clock: SharedClock = Arc::new(SystemClock);
        let report = tokio::select! {
            report = doctor::examine(plan, how, &clock, &supervisor, &progress) => Ok(report),
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        };
        progress("what is left to take away");
        supervisor.shutdown().trigger();
        supervisor.join(END_LIMIT).await;
        report
    });
    if shown {
        tell("\r\x1b[K");
    }
    // A secret on a dead disk must not keep this process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    report
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let mut said: HashMap<(&str, &str), String> = HashMap::new();
    for (about, findings) in report.blocks() {
        let _ = writeln!(out, "{}", about.heading());
        for finding in findings {
            let note = &finding.note;
            let mark = match note.severity {
                Severity::Failure => "FAIL",
                Severity::Warning => "warn",
                Severity::Skipped => "skip",
                Severity::Ok => "ok",
            };
            paragraph(&mut out, &format!("  {mark:<4}  "), &note.what);
            if note.severity == Severity::Ok {
                continue;
            }
            // The same zone may hold the names of many certificates.
            if let Some(first) = said.get(&(note.id, note.what.as_str())) {
                let _ = writeln!(out, "        as above, {first}");
                continue;
            }
            said.insert((note.id, &note.what), about.heading());
            for (label, value) in [("why", &note.why), ("fix", &note.fix), ("in", &note.place)] {
                if !value.is_empty() {
                    paragraph(&mut out, &format!("        {label:<4}  "), value);
                }
            }
        }
        out.push('\n');
    }
    let _ = writeln!(out, "{}", report.summary);
    out
}

/// A text behind a margin, further lines below its first one.
fn paragraph(out: &mut String, margin: &str, text: &str) {
    let blank = " ".repeat(margin.len());
    for (index, line) in text.lines().enumerate() {
        let _ = writeln!(out, "{}{line}", if index == 0 { margin } else { &blank });
    }
}
