//! `starlock certs`: certificates as the running process holds them.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::options::SocketArgs;
use super::{FAILURE, USAGE, fail, json, print};
use crate::admin::CertificateStatus;
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
        /// A host, or a name as it stands in a certificate.
        name: String,
    },
    /// Not supported yet.
    #[command(hide = true)]
    Renew { name: Option<String> },
    /// Not supported yet.
    #[command(hide = true)]
    Revoke { name: Option<String> },
    /// Not supported yet.
    #[command(hide = true)]
    Export { name: Option<String> },
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let name = match &arguments.verb {
        None | Some(Verb::List) => None,
        Some(Verb::Show { name }) => Some(name),
        Some(Verb::Renew { .. } | Verb::Revoke { .. } | Verb::Export { .. }) => {
            return fail(
                USAGE,
                "renew, revoke and export are not supported yet; certificates are renewed by themselves",
            );
        }
    };
    let mut certificates = match arguments.socket.client().certificates() {
        Ok(certificates) => certificates,
        Err(error) => return fail(FAILURE, &error.to_string()),
    };
    if let Some(name) = name {
        certificates.retain(|certificate| is_for(certificate, name));
        if certificates.is_empty() {
            return fail(
                FAILURE,
                &format!("no certificate is for `{name}`; `starlock certs` lists them all"),
            );
        }
    }
    match (arguments.json, name) {
        (true, _) => json(&certificates),
        (false, None) => print(&list(&certificates)),
        (false, Some(_)) => print(&certificates.iter().map(show).collect::<Vec<_>>().join("\n")),
    }
}

fn is_for(certificate: &CertificateStatus, name: &str) -> bool {
    let host = name.trim_end_matches('.').to_ascii_lowercase();
    certificate
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
        ("issuer", Some(certificate.issuer.clone())),
        ("serial", certificate.serial.clone()),
        ("from", certificate.not_before.clone()),
        ("until", certificate.not_after.clone()),
        ("state", Some(certificate.state.clone())),
        ("step", certificate.step.clone()),
        ("next", Some(certificate.next_action.clone())),
        ("at", certificate.next_action_at.clone()),
        ("failures", attempts),
        ("deploy", certificate.deploy.as_ref().map(|d| d.replace('\n', "\n            "))),
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
}
