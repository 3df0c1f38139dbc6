//! The demo behind `scripts/demo`: a real ACME server, Starlock with its built-in responder, upstreams, load, renewals.
//!
//! `demo` runs until Ctrl-C; `demo --once` ends after three renewals under load and exits 0 only if nothing failed.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a demonstration, not the product"
)]

#[path = "../benches/load/mod.rs"]
mod load;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::io::{IsTerminal, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::local;
use support::pebble::{Options, Pebble};
use support::starlock::Starlock;

/// Requests a second while the certificates are renewed.
const RATE: u32 = 600;
const RENEWALS: usize = 3;
/// Certificates are for so long; Starlock renews at half of it.
const LIFETIME: u64 = 60;
/// `--once` gives up after this long.
const LONGEST: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let once = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--once") => true,
        Some(_) => {
            eprintln!("usage: demo [--once]");
            return ExitCode::from(64);
        }
    };
    let interrupted = on_interrupt();

    say("A real ACME server: Pebble, signing certificates that live one minute, refusing one nonce in five");
    let responder = local(port(5353));
    let pebble = Pebble::start(Options::with_dns(responder).valid_for(LIFETIME));
    println!("  directory {}", pebble.directory_url);

    say("Two small upstreams");
    let app = Starlock::start(&upstream("app"));
    let api = Starlock::start(&upstream("api"));
    let (app_url, api_url) = (app.address("http"), api.address("http"));
    println!("  app http://{app_url}\n  api http://{api_url}");

    say("Starlock, answering DNS-01 itself: no DNS provider, no DNS credential. Its whole configuration:");
    let (https, http) = (local(port(8443)), local(port(8080)));
    let config = format!(
        r#"[listen]
https = ["{https}"]
http  = ["{http}"]

[acme]
ca      = "{}"
ca_root = "{}"

[dns]
provider = "builtin"

[responder]
listen      = ["{responder}"]
nameservers = [{{ name = "ns.example.test", addresses = ["127.0.0.1"] }}]

[[certificates]]
names = ["example.test", "*.example.test"]

[routes]
"app.example.test"     = "http://{app_url}"
"app.example.test/api" = {{ to = "http://{api_url}", strip_prefix = true }}
"example.test"         = {{ redirect = "https://app.example.test:{}" }}
"*.example.test"       = {{ respond = 404 }}
"#,
        pebble.directory_url,
        pebble.ca_root.display(),
        https.port(),
    );
    for line in config.lines() {
        println!("  {line}");
    }

    say("The order, step by step");
    let starlock = Starlock::start(&config);
    let mut shown = 0;
    let first = loop {
        shown = show_steps(&starlock.log(), shown);
        if let Some(serial) = serial(&starlock) {
            break serial;
        }
        if interrupted.load(Ordering::Relaxed) {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    shown = show_steps(&starlock.log(), shown);

    let root = starlock.path("pebble-root.pem");
    std::fs::write(&root, pebble.root()).unwrap();
    let held = certificate(&starlock).unwrap();
    say("The certificate");
    println!(
        "  names    {}",
        held["names"].as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    );
    println!("  issuer   {}", held["issuer"].as_str().unwrap_or("?"));
    println!("  serial   {first}");
    println!("  until    {}", held["not_after"].as_str().unwrap_or("?"));
    println!("  next     {}", next(Some(&held)));

    say("Try it (each line works as it is, in another terminal)");
    let port = https.port();
    for (host, path, what) in [
        ("app.example.test", "/", "the app"),
        ("app.example.test", "/api/users", "the api, prefix stripped"),
        ("example.test", "/any/path", "a redirect"),
        ("other.example.test", "/", "any other name: 404"),
    ] {
        println!(
            "  curl -i --cacert {} --resolve {host}:{port}:127.0.0.1 https://{host}:{port}{path}   # {what}",
            root.display()
        );
    }

    say(&format!(
        "{RATE} requests a second: kept-alive and new connections, HTTP/1.1 and HTTP/2, every chain verified"
    ));
    let load = load::Load::start(load::Spec {
        address: https,
        hosts: vec!["app.example.test".to_owned()],
        path: "/".to_owned(),
        root_pem: pebble.root(),
        rate: RATE,
    });
    let begun = Instant::now();
    let mut seen = vec![first];
    let terminal = std::io::stdout().is_terminal();
    let mut last_line = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let certificate = certificate(&starlock);
        let now = certificate.as_ref().and_then(|c| c["serial"].as_str().map(ToOwned::to_owned));
        if let Some(serial) = now
            && seen.last() != Some(&serial)
        {
            if terminal {
                println!();
            }
            shown = show_steps(&starlock.log(), shown);
            println!("  renewed: serial {serial} ({} renewals)", seen.len());
            seen.push(serial);
        }
        let next = next(certificate.as_ref());
        if terminal || last_line.elapsed() > Duration::from_secs(5) {
            last_line = Instant::now();
            live_line(terminal, &load.report, seen.last().unwrap(), &next);
        }
        let done = once && seen.len() > RENEWALS && load.report.serials().len() > RENEWALS;
        if done || interrupted.load(Ordering::Relaxed) || (once && begun.elapsed() > LONGEST) {
            break;
        }
    }
    println!();
    summary(&load.stop(), &seen, begun.elapsed(), once)
}

fn summary(report: &load::Report, seen: &[String], took: Duration, once: bool) -> ExitCode {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let failures = count(&report.failed) + count(&report.failed_handshakes);
    say("Summary");
    println!("  requests           {} in {} s", count(&report.sent), took.as_secs());
    println!("  failed requests    {}", count(&report.failed));
    println!("  handshakes         {} ({} resumed)", count(&report.handshakes), count(&report.resumed));
    println!("  failed handshakes  {}", count(&report.failed_handshakes));
    println!("  connections closed {}", count(&report.connections_closed));
    println!("  renewals           {}", seen.len() - 1);
    println!(
        "  serials seen       {}",
        report.serials().into_iter().collect::<Vec<_>>().join("\n                     ")
    );
    for error in report.errors() {
        println!("  error: {error}");
    }
    if !once {
        return ExitCode::SUCCESS;
    }
    let ok = failures == 0 && seen.len() > RENEWALS && report.serials().len() > RENEWALS;
    println!("{}", if ok { "  every request was answered, through every renewal" } else { "  FAILED" });
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn live_line(terminal: bool, report: &load::Report, serial: &str, next: &str) {
    let line = format!(
        "  sent {:>7}  failed {}  serial {:.12}…  {next}",
        report.sent.load(Ordering::Relaxed),
        report.failed.load(Ordering::Relaxed) + report.failed_handshakes.load(Ordering::Relaxed),
        serial,
    );
    if terminal {
        print!("\r\x1b[K{line}");
        std::io::stdout().flush().unwrap();
    } else {
        println!("{line}");
    }
}

fn upstream(name: &str) -> String {
    format!(
        "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\n\n[log]\naccess = \"off\"\n\n[routes]\n\"*\" = {{ respond = 200, body = \"hello from {name}\\n\" }}\n"
    )
}

fn certificate(starlock: &Starlock) -> Option<Value> {
    starlock.certificates().into_iter().next()
}

fn serial(starlock: &Starlock) -> Option<String> {
    certificate(starlock)?["serial"].as_str().map(ToOwned::to_owned)
}

/// Prints what the log says of orders since byte `from`; gives where it ends now.
fn show_steps(log: &str, from: usize) -> usize {
    let end = log.rfind('\n').map_or(0, |i| i + 1);
    for line in log.get(from..end).unwrap_or_default().lines() {
        let clock = line.get(11..19).unwrap_or_default();
        let said = ["INFO", "WARN", "ERROR"].iter().find_map(|level| line.split_once(level));
        let Some((message, fields)) = said.and_then(|(_, rest)| rest.split_once(" certificate=")) else {
            continue;
        };
        let serial = fields.split_whitespace().find_map(|f| f.strip_prefix("serial=")).unwrap_or_default();
        let message = message.trim().trim_start_matches("task:").trim();
        println!(
            "  {clock}  {message}{}{}",
            if serial.is_empty() { "" } else { ": serial " },
            serial.trim_matches('"')
        );
    }
    end
}

/// `renewed in 12 s`, from the moment that `certs --json` gives.
fn next(certificate: Option<&Value>) -> String {
    let at = certificate
        .and_then(|c| c["next_action_at"].as_str())
        .and_then(|t| t.parse::<jiff::Timestamp>().ok());
    match at {
        Some(at) => {
            format!("next renewal in {:>2} s", at.duration_since(jiff::Timestamp::now()).as_secs().max(0))
        }
        None => certificate.and_then(|c| c["next_action"].as_str()).unwrap_or("?").to_owned(),
    }
}

/// `wanted` if it is free, so that the lines to paste look familiar; any free port otherwise.
fn port(wanted: u16) -> u16 {
    let free = TcpListener::bind(("127.0.0.1", wanted)).is_ok()
        && std::net::UdpSocket::bind(("127.0.0.1", wanted)).is_ok();
    if free { wanted } else { support::free_port() }
}

fn on_interrupt() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::signal::ctrl_c().await.unwrap();
            set.store(true, Ordering::Relaxed);
            // A second one does not wait for anybody.
            tokio::signal::ctrl_c().await.unwrap();
            std::process::exit(130);
        });
    });
    flag
}

fn say(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}
