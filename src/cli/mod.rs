//! What a person types: one file a verb. The only room that prints.

#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::bare_urls,
    reason = "doc comments of arguments are help texts"
)]

mod accounts;
mod certs;
mod certs_do;
mod check;
mod completions;
mod doctor;
mod explain;
mod hash_password;
mod health;
mod import;
mod man;
mod options;
mod proxy;
mod reload;
mod run;
mod schema;
mod simulate;
mod simulate_from;
mod status;
mod trust;
mod upstreams;
mod verdict;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use options::{ConfigArgs, LogArgs, SocketArgs};
pub use options::{ConfigSource, RunOptions};

/// Something went wrong, or the answer is no.
pub const FAILURE: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// The configuration is wrong.
pub const CONFIG: u8 = 78;

/// Reverse proxy with built-in automatic TLS: wildcard certificates by DNS-01, swapped under live traffic.
#[derive(Debug, Parser)]
#[command(name = "starlock", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve. SIGHUP reloads, SIGTERM and SIGINT drain (twice: at once), SIGUSR1 opens log files again.
    Run {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Validate the configuration, run its [[expect]] blocks, print what it would serve.
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// Read no secret and no root certificate, on a machine that has none of them.
        #[arg(long)]
        offline: bool,
    },
    /// Look at everything that certificates and listeners need, before any CA is asked. Exit code 1 if something would fail.
    Doctor(doctor::Arguments),
    /// Say which route a URL takes and why, with which certificate, upstream and time-outs.
    Explain(explain::Arguments),
    /// Show certificates as the running process holds them; renew, revoke, export them, or go back to the one before.
    Certs(certs::Arguments),
    /// Show and change accounts at CAs.
    Accounts(accounts::Arguments),
    /// Show the running process.
    Status {
        #[command(flatten)]
        socket: SocketArgs,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show upstreams and how their servers are; keep requests away from one of them.
    Upstreams(upstreams::Arguments),
    /// Make the running process read its configuration again, and wait for the outcome.
    Reload {
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Ask the running process whether it does its work.
    Health {
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Run the configuration's certificates through months of model CAs in seconds, and print the calendar.
    Simulate(simulate::Arguments),
    /// Take certificates and ACME accounts over from certbot, Caddy, acme.sh or Traefik.
    Import(import::Arguments),
    /// Print the local CA's root, or have the system and browsers trust it.
    Trust(trust::Arguments),
    /// Serve one host without any file.
    Proxy(proxy::Arguments),
    /// Print the JSON Schema of the configuration.
    Schema {
        /// Every key as text instead.
        #[arg(long)]
        text: bool,
    },
    /// Print completions for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
    /// Print the argon2id hash of a password for `basic_auth`; the password is asked for, or read from standard input.
    HashPassword,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.verb {
        Verb::Run { config, log } => match config.find() {
            Ok(path) => run::run(log.with(ConfigSource::File(path))),
            Err(error) => fail(CONFIG, &error),
        },
        Verb::Proxy(arguments) => proxy::run(&arguments),
        Verb::Check { config, offline } => check::run(&config, offline),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Explain(arguments) => explain::run(&arguments),
        Verb::Certs(arguments) => certs::run(&arguments),
        Verb::Accounts(arguments) => accounts::run(&arguments),
        Verb::Status { socket, json } => status::run(&socket, json),
        Verb::Upstreams(arguments) => upstreams::run(&arguments),
        Verb::Reload { socket } => reload::run(&socket),
        Verb::Health { socket } => health::run(&socket),
        Verb::Simulate(arguments) => simulate::run_verb(&arguments),
        Verb::Import(arguments) => import::run(&arguments),
        Verb::Trust(arguments) => trust::run(&arguments),
        Verb::Schema { text } => schema::run(text),
        Verb::Completions { shell } => completions::run(shell),
        Verb::Man => man::run(),
        Verb::HashPassword => hash_password::run(),
    }
}

/// Writes to standard output. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            fail(FAILURE, &format!("cannot write to standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Says what is wrong; `error: ` in front unless the text has it.
fn fail(code: u8, error: &str) -> ExitCode {
    let said = error.starts_with("error: ") || error.starts_with("warning: ");
    tell(&format!("{}{error}\n", if said { "" } else { "error: " }));
    ExitCode::from(code)
}

/// Writes to standard error. A reader that went away (`2>&1 | head`) has read enough: what is done goes on, and its exit code stands.
fn tell(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}

fn json(value: &impl serde::Serialize) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => fail(FAILURE, &error.to_string()),
    }
}

/// Whether a report to standard error may have colours.
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `1 route`, `2 routes`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        assert_eq!((count(1, "route"), count(0, "route")), ("1 route".into(), "0 routes".into()));
    }
}
