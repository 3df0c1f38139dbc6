//! `load ADDRESS HOST PATH ROOT.pem RATE SECONDS`: the demo's load. Prints one JSON object a second and a last one at the end.
//! Ends by itself after SECONDS, or when its standard input ends. Exits 0 if nothing failed.

#![allow(unreachable_pub, 
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a tool, not the product"
)]

#[path = "../benches/load/mod.rs"]
mod load;

use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, host, path, root, rate, seconds] = arguments.as_slice() else {
        println!("usage: load ADDRESS HOST[,HOST] PATH ROOT.pem RATE SECONDS");
        return ExitCode::from(64);
    };
    let spec = load::Spec {
        address: address.parse().unwrap(),
        hosts: host.split(',').map(ToOwned::to_owned).collect(),
        path: path.clone(),
        root_pem: std::fs::read_to_string(root).unwrap(),
        rate: rate.parse().unwrap(),
    };
    let end = Instant::now() + Duration::from_secs(seconds.parse().unwrap());
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    std::thread::spawn(move || {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        flag.store(true, Ordering::Relaxed);
    });
    let running = load::Load::start(spec);
    let mut tick = Instant::now();
    while Instant::now() < end && !ended.load(Ordering::Relaxed) {
        tick += Duration::from_secs(1);
        std::thread::sleep(tick.saturating_duration_since(Instant::now()));
        print(&running.report);
    }
    let report = running.stop();
    print(&report);
    let failures = report.failed.load(Ordering::Relaxed) + report.failed_handshakes.load(Ordering::Relaxed);
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(report: &load::Report) {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{}",
        serde_json::json!({
            "sent": count(&report.sent), "failed": count(&report.failed),
            "handshakes": count(&report.handshakes), "failed_handshakes": count(&report.failed_handshakes),
            "resumed": count(&report.resumed), "closed": count(&report.connections_closed),
            "serials": report.serials(), "errors": report.errors(),
        })
    );
}
