//! Many certificates in one process: Starlock beside nginx and HAProxy, with the same chains and keys.
//!
//! `scripts/bench-names` installs what it needs and runs it; `docs/measurements.md` says what it printed and how to read it.
//!
//! Arguments: `--sizes 10,1000,10000`, `--rounds 3`, `--seconds 4` (of handshakes in each round). `STARLOCK` names the binary
//! that is measured; without it, it is the one that Cargo has built for the bench.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a measurement, not the product"
)]

#[path = "names/load.rs"]
mod load;
#[path = "names/servers.rs"]
mod servers;
#[path = "names/table.rs"]
mod table;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use load::{Client, Load};
use servers::{Fleet, Kind};

struct Options {
    sizes: Vec<usize>,
    rounds: usize,
    seconds: u64,
}

/// What one round showed of one server.
struct Sample {
    ready: Duration,
    memory_kib: u64,
    load: Load,
    cpu: Duration,
}

fn main() {
    let options = options();
    println!("{}", machine());
    for &size in &options.sizes {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (fleet, signing) = Fleet::sign(dir.path(), size);
        println!("\n### {size} certificates\n");
        println!(
            "First start: {size} certificates signed by the local CA, stored and served after {}.\n",
            seconds(signing)
        );
        println!(
            "| server | serving after (s) | memory (MiB) | full handshakes a second | server's CPU per handshake (us) |"
        );
        println!("|---|---|---|---|---|");
        let mut samples: Vec<(Kind, Vec<Sample>)> = Kind::ALL.map(|kind| (kind, Vec::new())).into();
        for round in 1..=options.rounds {
            for (kind, samples) in &mut samples {
                eprintln!("{size} certificates, round {round}: {}", kind.name());
                samples.push(measure(&fleet, *kind, options.seconds));
            }
        }
        for (kind, samples) in &samples {
            println!("{}", row(*kind, samples));
        }
        table::measure(&fleet);
    }
}

fn measure(fleet: &Fleet, kind: Kind, seconds: u64) -> Sample {
    let client = Client::new(fleet);
    let mut server = fleet.start(kind);
    let ready = server.until_it_serves(|address| client.sees_the_last_name(address));
    let memory_kib = server.memory_kib();
    server.pin("0");
    let before = server.cpu();
    let load = client.load(server.address(), Duration::from_secs(seconds));
    let cpu = server.cpu().checked_sub(before).unwrap();
    Sample { ready, memory_kib, load, cpu }
}

/// The median of each figure, and how far the rounds were apart.
fn row(kind: Kind, samples: &[Sample]) -> String {
    let column = |figure: &dyn Fn(&Sample) -> f64, digits: usize| {
        let mut all: Vec<f64> = samples.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        let (least, median, most) = (all[0], all[all.len() / 2], all[all.len() - 1]);
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    };
    let handshakes = |s: &Sample| s.load.handshakes as f64;
    format!(
        "| {} | {} | {} | {} | {} |",
        kind.name(),
        column(&|s| s.ready.as_secs_f64(), 2),
        column(&|s| s.memory_kib as f64 / 1024.0, 1),
        column(&|s| handshakes(s) / s.load.took.as_secs_f64(), 0),
        column(&|s| s.cpu.as_secs_f64() * 1e6 / handshakes(s), 0),
    )
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Where this was measured, and against what.
fn machine() -> String {
    let version = |program: &str, argument: &str| {
        let output =
            Command::new(program).arg(argument).output().unwrap_or_else(|e| panic!("{program}: {e}"));
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    };
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processor.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or(": unknown").to_owned();
    format!(
        "{} x{}; {}; {}; {}",
        model.trim_start_matches([':', ' ', '\t']),
        std::thread::available_parallelism().unwrap(),
        version(servers::starlock().to_str().unwrap(), "--version"),
        version(&servers::program("nginx"), "-v"),
        version(&servers::program("haproxy"), "-v"),
    )
}

fn options() -> Options {
    let mut options = Options { sizes: vec![10, 1_000, 10_000], rounds: 3, seconds: 4 };
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            "--sizes" => options.sizes = value().split(',').map(|n| n.parse().unwrap()).collect(),
            "--rounds" => options.rounds = value().parse::<usize>().unwrap().max(1),
            "--seconds" => options.seconds = value().parse::<u64>().unwrap().max(1),
            other => panic!("unknown argument {other}"),
        }
    }
    options
}

/// Where a file of a fleet lies. Names are safe in paths.
fn pem_path(dir: &Path, name: &str) -> std::path::PathBuf {
    dir.join("pem").join(format!("{name}.pem"))
}
