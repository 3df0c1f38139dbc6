//! `deploy` of a certificate and `[notify]`: who else gets certificates, and who hears of them.

use std::time::Duration;

use super::blame::refusal;
use super::decode::Decoder;
use super::error::Problem;
use super::scalar;
use super::value::{At, Fields, Slot};
use crate::deploy::DeploySpec;
use crate::notify::NotifySpec;

const HOUR: Duration = Duration::from_secs(3600);

/// Reads every `deploy` of a certificate.
pub(super) fn deploy(decoder: &mut Decoder<'_>, certificate: &Fields) -> Vec<DeploySpec> {
    let targets: Vec<At<Fields>> = certificate.list("deploy").unwrap_or_default();
    let mut specs: Vec<At<DeploySpec>> = Vec::new();
    for At { value: fields, span } in targets {
        let Some(spec) = target(decoder, &fields) else { continue };
        if !fields.has("dir") && !fields.has("run") {
            decoder.push(
                Problem::error(span, "this `deploy` does nothing")
                    .help("`dir` is where the files go, `run` is a program that is told"),
            );
            continue;
        }
        let twice = specs.iter().find(|other| other.value.dir.is_some() && other.value.dir == spec.dir);
        if let Some(first) = twice {
            decoder.push(
                Problem::error(fields.span_of("dir"), "two `deploy` write into one directory")
                    .label("again here")
                    .also(first.span.clone(), "first here"),
            );
        }
        specs.push(At { value: spec, span });
    }
    specs.into_iter().map(|at| at.value).collect()
}

fn target(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<DeploySpec> {
    let run: Vec<At<String>> = fields.list("run").unwrap_or_default();
    if fields.has("run") && fields.any("run").is_some() && run.is_empty() {
        decoder.push(Problem::error(fields.span_of("run"), "`run` names no program"));
        return None;
    }
    if let Some(program) = run.first().filter(|program| !program.value.starts_with('/')) {
        decoder.push(
            Problem::error(program.span.clone(), "`run` must begin with the whole path of a program")
                .label("no shell looks for it")
                .help(
                    "write run = [\"/usr/bin/systemctl\", \"reload\", \"postfix\"], a word for each argument",
                ),
        );
        return None;
    }
    let mode = match fields.slot::<String>("mode") {
        Slot::Absent => Some(0o600),
        Slot::Broken => None,
        Slot::Given(at) => mode(decoder, &at),
    };
    for key in ["owner", "mode"] {
        if fields.has(key) && !fields.has("dir") {
            let message = format!("`{key}` is about files, and `dir` is missing");
            decoder.push(Problem::error(fields.span_of(key), message));
        }
    }
    Some(DeploySpec {
        dir: fields.value("dir"),
        run: run.into_iter().map(|at| at.value).collect(),
        owner: fields.value("owner"),
        mode: mode?,
        timeout: fields.value("timeout").unwrap_or(Duration::from_secs(60)),
    })
}

fn mode(decoder: &mut Decoder<'_>, at: &At<String>) -> Option<u32> {
    let parsed = u32::from_str_radix(&at.value, 8).ok().filter(|mode| *mode <= 0o777 && at.value.len() >= 3);
    match parsed {
        Some(mode) if mode & 0o004 != 0 => {
            decoder.push(
                Problem::warning(at.span.clone(), "everybody on this machine may read the private key")
                    .help("give the files a group instead: owner = \":mail\", mode = \"0640\""),
            );
        }
        Some(_) => {}
        None => decoder.push(
            Problem::error(at.span.clone(), "`mode` must be the rights of a file in octal")
                .help("write it like \"0640\""),
        ),
    }
    parsed
}

/// Reads `[notify]`.
pub(super) fn notify(decoder: &mut Decoder<'_>, file: &Fields) -> Option<NotifySpec> {
    let fields = file.value::<Fields>("notify")?;
    let url: At<String> = fields.slot("webhook").given()?;
    let parsed = match scalar::web_url(&url.value) {
        Ok(parsed) => parsed,
        Err(wrong) => {
            decoder.push(refusal(&wrong, url.span, "`webhook` must be a URL", "webhook"));
            return None;
        }
    };
    let near = matches!(parsed.host, crate::name::HostPattern::Ip(address) if address.is_loopback());
    if !parsed.tls && !near {
        decoder.push(
            Problem::warning(url.span, "what the webhook is told travels in clear")
                .help("use https:// if you can"),
        );
    }
    Some(NotifySpec {
        webhook: url.value,
        secret: fields.value("secret"),
        ca_root: fields.value("ca_root"),
        repeat: fields.value("repeat").unwrap_or(24 * HOUR),
        before_expiry: fields.value("before_expiry").unwrap_or(24 * HOUR),
    })
}
