//! `starlock certs`: certificates as the running process holds them.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::certs_do::{Doing, Export, Reason};
use super::options::SocketArgs;
use super::{FAILURE, USAGE, fail, json, print};
use crate::admin::{CertificateStatus, CertificateVerb};
use crate::name::HostPattern;

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

#[derive(Debug, Subcommand)]
enum Verb {
    /// All of them (the default).
    List,
    /// Those for a name, with everything known about them.
    Show {
        /// A host, a name as it stands in a certificate, or an id.
        name: String,
    },
    /// Order a new one now, and wait for it.
    Renew {
        /// A host, a name as it stands in a certificate, or an id.
        name: String,
        /// Whatever the CA's limits and the minimum gap say.
        #[arg(long)]
        force: bool,
        /// Order at the CA's staging instead, and serve nothing of it.
        #[arg(long, conflicts_with = "force")]
        dry_run: bool,
    },
    /// Have the CA revoke the served one, and order a new one at once.
    Revoke {
        /// A host, a name as it stands in a certificate, or an id.
        name: String,
        /// Why (RFC 5280).
        #[arg(long, value_enum)]
        reason: Reason,
        /// It cannot be taken back: nothing is done without this.
        #[arg(long)]
        yes: bool,
    },
    /// Write the served chain and its key as PEM.
    Export(Export),
    /// Serve the generation before, until the next renewal.
    Rollback {
        /// A host, a name as it stands in a certificate, or an id.
        name: String,
    },
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let all = match arguments.socket.client().certificates() {
        Ok(certificates) => certificates,
        Err(error) => return fail(FAILURE, &error.to_string()),
    };
    let doing = Doing { client: arguments.socket.client(), json: arguments.json };
    let begin = |name: &str, verb| match only(&all, name) {
        Ok(certificate) => doing.run(certificate, verb),
        Err(error) => fail(FAILURE, &error),
    };
    match &arguments.verb {
        None | Some(Verb::List) if arguments.json => json(&all),
        None | Some(Verb::List) => print(&list(&all)),
        Some(Verb::Show { name }) => {
            let found: Vec<_> = all.iter().filter(|certificate| is_for(certificate, name)).collect();
            match (found.is_empty(), arguments.json) {
                (true, _) => fail(FAILURE, &nobody(name)),
                (false, true) => json(&found),
                (false, false) => print(&found.iter().map(|c| show(c)).collect::<Vec<_>>().join("\n")),
            }
        }
        Some(Verb::Renew { name, dry_run: true, .. }) => begin(name, CertificateVerb::Rehearse),
        Some(Verb::Renew { name, force, .. }) => begin(name, CertificateVerb::Renew { force: *force }),
        Some(Verb::Rollback { name }) => begin(name, CertificateVerb::RollBack),
        Some(Verb::Revoke { yes: false, .. }) => fail(
            USAGE,
            "a revoked certificate stays revoked, and clients that look refuse it until the new one is there: add --yes to do it",
        ),
        Some(Verb::Revoke { name, reason, .. }) => {
            begin(name, CertificateVerb::Revoke { reason: reason.number() })
        }
        Some(Verb::Export(export)) => match only(&all, &export.name) {
            Ok(certificate) => doing.export(certificate, export),
            Err(error) => fail(FAILURE, &error),
        },
    }
}

fn nobody(name: &str) -> String {
    format!("no certificate is for `{name}`; `starlock certs` lists them all")
}

/// The one certificate that `name` means: the one that holds it literally before one that merely covers it.
fn only<'a>(all: &'a [CertificateStatus], name: &str) -> Result<&'a CertificateStatus, String> {
    let literal = |c: &&CertificateStatus| c.id == name || c.names.iter().any(|own| own == name);
    let mut found: Vec<_> = all.iter().filter(literal).collect();
    if found.is_empty() {
        found = all.iter().filter(|certificate| is_for(certificate, name)).collect();
    }
    match found[..] {
        [] => Err(nobody(name)),
        [one] => Ok(one),
        _ => {
            let ids: Vec<&str> = found.iter().map(|c| c.id.as_str()).collect();
            Err(format!("several certificates are for `{name}`; say which: {}", ids.join(", ")))
        }
    }
}

fn is_for(certificate: &CertificateStatus, name: &str) -> bool {
    let host = name.trim_end_matches('.').to_ascii_lowercase();
    certificate.id == name
        || certificate
            .names
            .iter()
            .any(|own| *own == host || HostPattern::parse(own).is_ok_and(|pattern| pattern.matches(&host)))
}

fn list(certificates: &[CertificateStatus]) -> String {
    if certificates.is_empty() {
        return "no certificates\n".to_owned();
    }
    let mut out = String::new();
    let names: Vec<String> = certificates.iter().map(|c| c.names.join(", ")).collect();
    let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0).clamp(5, 60);
    let _ = writeln!(out, "{:<width$}  {:<9}  {:<20}  NEXT", "NAMES", "STATE", "EXPIRES");
    for (names, certificate) in names.iter().zip(certificates) {
        let until = certificate.not_after.as_deref().unwrap_or("-");
        let _ = writeln!(
            out,
            "{names:<width$}  {:<9}  {until:<20}  {}",
            certificate.state, certificate.next_action
        );
        if let Some(error) = &certificate.last_error {
            for line in error.lines() {
                let _ = writeln!(out, "{:width$}  {line}", "");
            }
        }
    }
    out
}

fn show(certificate: &CertificateStatus) -> String {
    let mut out = format!("{}\n", certificate.names.join(", "));
    let attempts = (certificate.attempts > 0).then(|| format!("{} in a row", certificate.attempts));
    let rows = [
        ("id", Some(certificate.id.clone())),
        ("issuer", Some(certificate.issuer.clone())),
        ("serial", certificate.serial.clone()),
        ("from", certificate.not_before.clone()),
        ("until", certificate.not_after.clone()),
        ("state", Some(certificate.state.clone())),
        ("step", certificate.step.clone()),
        ("next", Some(certificate.next_action.clone())),
        ("at", certificate.next_action_at.clone()),
        ("failures", attempts),
        ("error", certificate.last_error.as_ref().map(|e| e.replace('\n', "\n            "))),
    ];
    for (name, value) in rows {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let _ = writeln!(out, "  {name:<8}  {value}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> CertificateStatus {
        CertificateStatus {
            names: vec!["*.example.com".into(), "example.com".into()],
            issuer: "letsencrypt".into(),
            serial: Some("0abc".into()),
            not_after: Some("2027-01-01T00:00:00Z".into()),
            state: "waiting".into(),
            next_action: "tried again at 2026-12-01T00:00:00Z".into(),
            attempts: 2,
            last_error: Some("first line\nsecond line".into()),
            ..CertificateStatus::default()
        }
    }

    #[test]
    fn people_see_names_state_and_what_is_next() {
        let text = list(&[certificate()]);
        assert!(
            text.contains("*.example.com, example.com  waiting    2027-01-01T00:00:00Z  tried again at"),
            "{text}"
        );
        assert!(text.lines().last().unwrap().ends_with("  second line"), "{text}");
        let text = show(&certificate());
        assert!(text.contains("  serial    0abc\n") && text.contains("  failures  2 in a row\n"), "{text}");
        assert!(!text.contains("step"), "{text}");
    }

    #[test]
    fn a_host_finds_its_certificate() {
        for name in ["example.com", "*.example.com", "APP.example.com."] {
            assert!(is_for(&certificate(), name), "{name}");
        }
        assert!(!is_for(&certificate(), "a.b.example.com"));
    }

    #[test]
    fn a_command_is_for_one_certificate() {
        let other = CertificateStatus {
            id: "app.example.com-1".into(),
            names: vec!["app.example.com".into()],
            ..CertificateStatus::default()
        };
        let all = [certificate(), other];
        assert_eq!(only(&all, "app.example.com").unwrap().id, "app.example.com-1");
        assert_eq!(only(&all, "other.example.com").unwrap().id, all[0].id);
        assert!(only(&all, "example.net").unwrap_err().contains("no certificate"));
        let twice = [certificate(), certificate()];
        assert!(only(&twice, "example.com").unwrap_err().contains("several"));
    }
}
