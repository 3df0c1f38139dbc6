//! Certificates from files: there, whole, for the right names, and not over.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::finding::{About, Finding, Note};
use crate::clock;
use crate::config::{IssuerPlan, Plan};
use crate::name::HostPattern;

/// What the two files of a certificate hold.
#[derive(Clone, Debug)]
pub(super) struct CertFileFacts {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    /// What the configuration wants it for; empty if that is left to the file.
    pub(super) wanted: Vec<HostPattern>,
    pub(super) read: Result<CertFile, String>,
    /// Whether everybody may read the key.
    pub(super) exposed: bool,
}

/// What a good pair says.
#[derive(Clone, Debug)]
pub(super) struct CertFile {
    pub(super) names: Vec<HostPattern>,
    pub(super) covers: bool,
    pub(super) from: SystemTime,
    pub(super) to: SystemTime,
}

/// Reads every pair of the plan, with the names of its certificate. Blocking.
pub(super) fn gather(plan: &Plan) -> Vec<(About, CertFileFacts)> {
    let mut all = Vec::new();
    for certificate in &plan.certificates {
        let IssuerPlan::Files(from) = &certificate.issuer else { continue };
        let wanted = if from.named { certificate.names.clone() } else { Vec::new() };
        let read = from.files.read().map(|read| CertFile {
            names: read.bundle.names().to_vec(),
            covers: read.bundle.covers(&wanted),
            from: read.bundle.not_before(),
            to: read.bundle.not_after(),
        });
        let names: Vec<String> = certificate.names.iter().map(ToString::to_string).collect();
        let (cert, key) = (from.files.cert.clone(), from.files.key.clone());
        let exposed = exposed(&key);
        all.push((About::Certificate(names.join(", ")), CertFileFacts { cert, key, wanted, read, exposed }));
    }
    all
}

fn exposed(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o004 != 0)
}

pub(super) fn judge(all: &[(About, CertFileFacts)], now: SystemTime) -> Vec<Finding> {
    all.iter()
        .flat_map(|(about, facts)| judge_one(facts, now).into_iter().map(|note| note.about(about)))
        .collect()
}

fn judge_one(facts: &CertFileFacts, now: SystemTime) -> Vec<Note> {
    let (cert, key) = (facts.cert.display(), facts.key.display());
    let place = |note: Note| vec![note.place("[[certificates]] cert, key")];
    let starts = "Starlock does not start without it";
    let held = match &facts.read {
        Ok(held) => held,
        Err(reason) => {
            return place(
                Note::failure("cert-files.unusable", reason.clone())
                    .why(starts)
                    .fix(format!(
                        "both have to be PEM, belong together, and be readable for the user that Starlock runs as: ls -l {cert} {key}\n\
                         see whether they belong together: openssl x509 -noout -pubkey -in {cert}; openssl pkey -pubout -in {key}"
                    )),
            );
        }
    };
    if !held.covers {
        return place(
            Note::failure(
                "cert-files.names",
                format!("{cert} is for {:?} and not for all of {:?}", held.names, facts.wanted),
            )
            .why(starts)
            .fix("put a certificate for these names there, or write into `names` what it is for"),
        );
    }
    let renew = format!("whoever writes {cert} has to renew it; Starlock takes it over within seconds");
    let tenth = held.to.duration_since(held.from).unwrap_or_default() / 10;
    let dated = if held.to <= now {
        Note::failure("cert-files.expired", format!("{cert} has expired at {}", clock::rfc3339(held.to)))
            .why("clients refuse it")
            .fix(renew)
    } else if held.from > now {
        Note::failure("cert-files.early", format!("{cert} is valid only from {}", clock::rfc3339(held.from)))
            .why("clients refuse it until then, unless the clock of this machine is wrong")
            .fix(format!("look at the clock: timedatectl; or put the former certificate back into {cert}"))
    } else if held.to.duration_since(now).unwrap_or(Duration::ZERO) <= tenth {
        Note::warning("cert-files.ending", format!("{cert} expires at {}", clock::rfc3339(held.to)))
            .why("less than a tenth of its lifetime is left, and nobody has renewed it")
            .fix(renew)
    } else {
        Note::ok(
            "cert-files.good",
            format!("{cert} and {key} belong together and are valid until {}", clock::rfc3339(held.to)),
        )
    };
    let mut notes = vec![dated];
    if facts.exposed {
        notes.push(
            Note::warning("cert-files.exposed", format!("everybody may read the key in {key}"))
                .why("whoever has the key can be taken for these hosts")
                .fix(format!("chmod o-r {key}")),
        );
    }
    notes.into_iter().flat_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn each_way_of_being_useless_is_told_apart() {
        let now = clock::at(1_000_000);
        let name = HostPattern::parse("a.test").unwrap();
        let held = |from, to| CertFile {
            names: vec![name.clone()],
            covers: true,
            from: clock::at(from),
            to: clock::at(to),
        };
        let good = held(0, 2_000_000);
        let cases = [
            (Ok(good.clone()), false, "cert-files.good", Severity::Ok),
            (Ok(good.clone()), true, "cert-files.exposed", Severity::Warning),
            (Err("no".to_owned()), true, "cert-files.unusable", Severity::Failure),
            (Ok(CertFile { covers: false, ..good }), false, "cert-files.names", Severity::Failure),
            (Ok(held(0, 1_000_000)), false, "cert-files.expired", Severity::Failure),
            (Ok(held(1_000_001, 2_000_000)), false, "cert-files.early", Severity::Failure),
            (Ok(held(0, 1_050_000)), false, "cert-files.ending", Severity::Warning),
        ];
        for (read, exposed, id, severity) in cases {
            let facts = CertFileFacts {
                cert: "/c.pem".into(),
                key: "/k.pem".into(),
                wanted: vec![name.clone()],
                read,
                exposed,
            };
            let notes = judge_one(&facts, now);
            let last = notes.last().unwrap();
            assert_eq!((last.id, last.severity), (id, severity), "{notes:?}");
            assert!(
                severity == Severity::Ok
                    || !(last.why.is_empty() || last.fix.is_empty() || last.place.is_empty())
            );
        }
    }
}
