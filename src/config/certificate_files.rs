//! `[[certificates]] cert = ..., key = ...`: files that somebody else renews.

use super::certificates::Wanted;
use super::decode::Decoder;
use super::error::Problem;
use super::passing;
use super::plan::{CertificatePlan, FilesPlan, IssuerPlan};
use super::references::Reference;
use super::value::{At, Fields};
use crate::name::HostPattern;
use crate::tls::CertFiles;

/// A certificate from files, and the names that the configuration itself gives it.
pub(super) struct Listed {
    pub(super) wanted: Wanted,
    pub(super) given: Vec<At<HostPattern>>,
}

pub(super) fn are_meant(section: &Fields) -> bool {
    section.has("cert") || section.has("key")
}

/// Reads the file if the configuration does not say what it is for: other routes' certificates depend on it. Blocking.
pub(super) fn listed(decoder: &mut Decoder<'_>, section: &Fields) -> Option<Listed> {
    for (one, other) in [("cert", "key"), ("key", "cert")] {
        if section.has(one) && !section.has(other) {
            decoder.push(Problem::error(section.span_of(one), format!("`{one}` needs `{other}` beside it")));
        }
    }
    for key in ["acme", "dns"] {
        if section.has(key) {
            let problem =
                Problem::error(section.span_of(key), format!("`{key}` has no effect on this certificate"));
            decoder.push(problem.label("leave it out").also(section.span_of("cert"), "it comes from files"));
        }
    }
    let files = CertFiles { cert: section.value("cert")?, key: section.value("key")? };
    let given: Vec<At<HostPattern>> = match section.has("names") {
        true => section.list("names")?,
        false => Vec::new(),
    };
    let span = if given.is_empty() { section.span_of("cert") } else { section.span_of("names") };
    let mut names: Vec<HostPattern> = given.iter().map(|at| at.value.clone()).collect();
    let named = !names.is_empty();
    if !named {
        match files.read() {
            Ok(read) => names = read.bundle.names().to_vec(),
            Err(error) => {
                decoder.push(
                    Problem::error(section.span_of("cert"), error)
                        .label("what it is for is read from it")
                        .help("with `names` beside it, the file is needed only to serve"),
                );
                return None;
            }
        }
    }
    names.sort();
    names.dedup();
    if named {
        decoder.references.push((section.span_of("cert"), Reference::Files(files.clone(), names.clone())));
    }
    let issuer = IssuerPlan::Files(FilesPlan { files, named });
    let plan =
        Some(CertificatePlan { names: names.clone(), issuer, deploy: passing::deploy(decoder, section) });
    Some(Listed { wanted: Wanted { plan, names, span }, given })
}
