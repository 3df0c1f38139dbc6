//! What `starlock certs` does rather than shows: begin it, tell of its steps, say how it ended.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{FAILURE, fail, json, print, tell};
use crate::admin::{CertificateStatus, CertificateVerb, Client, ExportedCertificate, JobStatus};

/// A person does not notice, and an order takes seconds.
const LOOK: Duration = Duration::from_millis(200);

/// Why a certificate is revoked (RFC 5280 section 5.3.1; what CAs take from subscribers).
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Reason {
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
}

impl Reason {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct Export {
    /// A host, a name as it stands in a certificate, or an id.
    pub(super) name: String,
    /// Write DIR/fullchain.pem and DIR/privkey.pem, readable by this user only.
    #[arg(long, required_unless_present = "stdout")]
    dir: Option<PathBuf>,
    /// Print both.
    #[arg(long, conflicts_with = "dir")]
    stdout: bool,
}

pub(super) struct Doing {
    pub(super) client: Client,
    pub(super) json: bool,
}

impl Doing {
    /// Begins it and waits for its end. Interrupting the wait does not interrupt the work.
    pub(super) fn run(&self, certificate: &CertificateStatus, verb: CertificateVerb) -> ExitCode {
        let ended = self.client.command(&certificate.id, verb).and_then(|number| {
            let mut told = 0;
            loop {
                let job = self.client.job(number)?;
                for step in job.steps.iter().skip(told).filter(|_| !self.json) {
                    tell(&format!("  {step}\n"));
                }
                told = job.steps.len();
                if job.done {
                    return Ok(job);
                }
                std::thread::sleep(LOOK);
            }
        });
        match ended {
            Err(error) => fail(FAILURE, &error.to_string()),
            Ok(job) if self.json => finished(&job, json(&job)),
            Ok(job) if job.ok => print(&format!("{}: {}\n", certificate.names.join(", "), job.message)),
            Ok(job) => fail(FAILURE, &job.message),
        }
    }

    pub(super) fn export(&self, certificate: &CertificateStatus, to: &Export) -> ExitCode {
        let exported = match self.client.export(&certificate.id) {
            Ok(exported) => exported,
            Err(error) => return fail(FAILURE, &error.to_string()),
        };
        let Some(dir) = &to.dir else {
            return match self.json {
                true => json(&exported),
                false => print(&format!("{}{}", exported.chain, exported.key)),
            };
        };
        match write(dir, &exported) {
            Err(error) => fail(FAILURE, &format!("{}: {error}", dir.display())),
            Ok(files) if self.json => json(&files),
            Ok([chain, key]) => print(&format!("{}\n{}\n", chain.display(), key.display())),
        }
    }
}

fn finished(job: &JobStatus, printed: ExitCode) -> ExitCode {
    if job.ok { printed } else { ExitCode::from(FAILURE) }
}

fn write(dir: &Path, exported: &ExportedCertificate) -> std::io::Result<[PathBuf; 2]> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let files = [dir.join("fullchain.pem"), dir.join("privkey.pem")];
    let texts = [&exported.chain, &exported.key];
    // Both are written beside their places before either is moved there: never half of a pair for long.
    let fresh = files.each_ref().map(|file| file.with_extension("pem.new"));
    for (file, text) in fresh.iter().zip(texts) {
        let _ = std::fs::remove_file(file);
        let mut open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
    }
    for (from, to) in fresh.iter().zip(&files) {
        std::fs::rename(from, to)?;
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_exported_is_for_this_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("new/tls");
        for text in ["one", "two"] {
            let exported = ExportedCertificate { chain: text.into(), key: format!("{text} key") };
            let files = write(&to, &exported).unwrap();
            assert_eq!(std::fs::read_to_string(&files[1]).unwrap(), format!("{text} key"));
            for file in &files {
                assert_eq!(std::fs::metadata(file).unwrap().mode() & 0o777, 0o600);
            }
        }
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 2);
    }
}
