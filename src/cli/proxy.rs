//! `starlock proxy --from HOST --to URL`: one host, no file. The options become a configuration, read like any other.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;

use super::options::{ConfigSource, LogArgs};
use super::{CONFIG, USAGE, colours, fail};
use crate::config::LoadError;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The host that clients ask for; "*" stands for every host.
    #[arg(long, value_name = "HOST")]
    from: String,
    /// Where requests go, such as http://127.0.0.1:3000.
    #[arg(long, value_name = "URL")]
    to: String,
    /// Listen with TLS here [default: [::]:443]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "clear")]
    listen: Vec<String>,
    /// Listen in clear here [default: [::]:80]
    #[arg(long, value_name = "ADDRESS")]
    http: Vec<String>,
    /// No TLS at all: serve in clear, behind somebody else who has it.
    #[arg(long)]
    clear: bool,
    /// letsencrypt, letsencrypt-staging, local, or the URL of an ACME directory.
    #[arg(long, value_name = "CA")]
    ca: Option<String>,
    /// Contact for the CA.
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// Who answers DNS-01: a provider as in [dns].
    #[arg(long, value_name = "PROVIDER")]
    dns: Option<String>,
    /// A key of the provider; a value may be env:NAME, file:PATH or credential:NAME.
    #[arg(long, value_name = "KEY=VALUE", requires = "dns")]
    dns_key: Vec<String>,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let text = match configuration(arguments) {
        Ok(text) => text,
        Err(error) => return fail(USAGE, &error),
    };
    let source = ConfigSource::Text { name: "starlock proxy".to_owned(), text };
    match source.load() {
        Ok(_) => super::run::run(arguments.log.with(source)),
        Err(LoadError::Problems(problems)) => {
            let help =
                "help: above is what the options say; --ca, --dns with --dns-key, and --clear say more";
            fail(CONFIG, &format!("{}\n\n{help}", problems.render(colours())))
        }
        Err(error) => fail(CONFIG, &error.to_string()),
    }
}

/// The options as a configuration.
fn configuration(arguments: &Arguments) -> Result<String, String> {
    let mut out = String::new();
    let list = |addresses: &[String]| addresses.iter().map(|a| quoted(a)).collect::<Vec<_>>().join(", ");
    let _ = writeln!(out, "[listen]");
    if arguments.clear {
        let _ = writeln!(out, "https = []");
    } else if !arguments.listen.is_empty() {
        let _ = writeln!(out, "https = [{}]", list(&arguments.listen));
    }
    if !arguments.http.is_empty() {
        let _ = writeln!(out, "http = [{}]", list(&arguments.http));
    } else if !arguments.listen.is_empty() {
        // Who chose an address for TLS did not ask for port 80.
        let _ = writeln!(out, "http = []");
    }
    if arguments.ca.is_some() || arguments.email.is_some() {
        let _ = writeln!(out, "\n[acme]");
        for (key, value) in [("ca", &arguments.ca), ("email", &arguments.email)] {
            if let Some(value) = value {
                let _ = writeln!(out, "{key} = {}", quoted(value));
            }
        }
    }
    if let Some(provider) = &arguments.dns {
        let _ = writeln!(out, "\n[dns]\nprovider = {}", quoted(provider));
        for pair in &arguments.dns_key {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| "--dns-key takes KEY=VALUE, as in token=env:DNS_TOKEN".to_owned())?;
            if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err("--dns-key takes KEY=VALUE; a key has letters, digits and `_`".to_owned());
            }
            let secret = ["env", "file", "credential"]
                .into_iter()
                .find_map(|kind| Some((kind, value.strip_prefix(kind)?.strip_prefix(':')?)));
            let _ = match secret {
                Some((kind, place)) => writeln!(out, "{key} = {{ {kind} = {} }}", quoted(place)),
                None => writeln!(out, "{key} = {}", quoted(value)),
            };
        }
    }
    let _ = writeln!(out, "\n[routes]\n{} = {}", quoted(&arguments.from), quoted(&arguments.to));
    Ok(out)
}

/// `text` as a TOML string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Verb};
    use super::*;
    use crate::config::{Environment, IssuerPlan, Plan, parse};

    fn plan(options: &str) -> Plan {
        let words = format!("starlock proxy {options}");
        let Verb::Proxy(arguments) = Cli::try_parse_from(words.split(' ')).unwrap().verb else {
            panic!("{words}")
        };
        let text = configuration(&arguments).unwrap();
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        parse(&text, "starlock proxy", &env).unwrap_or_else(|problems| panic!("{problems}")).plan
    }

    #[test]
    fn options_become_a_plan() {
        let local = plan("--from app.localhost --to http://127.0.0.1:3000 --listen 127.0.0.1:8443");
        assert_eq!(local.certificates[0].issuer, IssuerPlan::Local);
        assert!(local.listen.http.is_empty());
        let clear = plan("--from * --to http://127.0.0.1:3000 --clear --http 127.0.0.1:8080");
        assert!(clear.listen.https.is_empty() && clear.certificates.is_empty());
        let public = plan(
            "--from app.example.com --to http://10.0.0.1 --dns cloudflare --dns-key token=env:CF --email a@b.example",
        );
        assert!(matches!(public.certificates[0].issuer, IssuerPlan::Acme(_)));
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        for text in ["a\"\n[listen]", "a\\", "a\u{7f}\u{0}b"] {
            let toml = format!("[routes]\n{} = {{ respond = 200 }}", quoted(text));
            let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
            let problems = parse(&toml, "f", &env).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems}");
            assert!(problems.to_string().contains("is not a host"), "{problems}");
        }
    }
}
