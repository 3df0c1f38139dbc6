//! What a file only points to: secrets, certificates, users and pages. Whether they can be read is looked at after the file is good.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::error::{Problem, Problems, Span};
use crate::name::HostPattern;
use crate::policy::{Page, check_users_file};
use crate::secret::SecretSource;
use crate::tls::CertFiles;

/// A bundle of every public root is a quarter of this.
const MAX_ROOTS: u64 = 1 << 20;

/// One thing that lies elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    Secret(SecretSource),
    Root(PathBuf),
    /// Certificates of those who may sign clients' certificates.
    ClientCa(PathBuf),
    /// Users and hashes of their passwords.
    Users(PathBuf),
    /// For TLS to servers.
    Certificates(PathBuf),
    Page(PathBuf),
    /// A certificate that somebody else renews, and what it has to be for.
    Files(CertFiles, Vec<HostPattern>),
}

/// Everything that a file points to, with its places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct References {
    file: String,
    /// Without the secrets that stand in it.
    text: Arc<str>,
    list: Vec<(Span, Reference)>,
}

impl References {
    pub(super) fn new(file: &str, text: &str, list: Vec<(Span, Reference)>) -> Self {
        Self { file: file.to_owned(), text: text.into(), list }
    }

    /// What of it cannot be read or used, with its places; no value is kept. Blocking.
    pub fn unreadable(&self) -> Problems {
        let problems = self.faults().map(|(span, _, fault)| {
            Problem::error(span, fault.what)
                .label(fault.why)
                .maybe_help((!fault.fix.is_empty()).then_some(fault.fix))
        });
        Problems::new(&self.file, &self.text, problems.collect())
    }

    /// The same, for whoever says it in words of their own. Blocking.
    pub fn faults_by_kind(&self) -> Vec<(ReferenceKind, Fault)> {
        let placed = self.faults().map(|(span, kind, mut fault)| {
            let line = 1 + self.text.get(..span.start).map_or(0, |before| before.matches('\n').count());
            fault.place = format!("{}, line {line}", self.file);
            (kind, fault)
        });
        placed.collect()
    }

    fn faults(&self) -> impl Iterator<Item = (Span, ReferenceKind, Fault)> {
        self.list.iter().filter_map(|(span, reference)| {
            let (kind, fault) = reference.fault()?;
            Some((span.clone(), kind, fault))
        })
    }
}

/// What is pointed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReferenceKind {
    /// A password, token or key.
    Secret,
    /// Roots for the connection to a CA.
    Root,
    /// Who may sign clients' certificates.
    ClientCa,
    /// Users and hashes of their passwords.
    Users,
    /// Roots for connections to servers, and what is shown to them.
    Certificates,
    /// A page for errors.
    Page,
    /// A certificate that somebody else renews.
    Files,
}

/// One thing that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is so.
    pub what: String,
    /// What it means.
    pub why: &'static str,
    /// What to do; may be empty.
    pub fix: &'static str,
    /// File and line.
    pub place: String,
}

impl Reference {
    /// Reads it. Blocking.
    fn fault(&self) -> Option<(ReferenceKind, Fault)> {
        const OFFLINE: &str = "`starlock check --offline` looks at the configuration alone";
        let fault = |what: String, why, fix| Fault { what, why, fix, place: String::new() };
        let unusable = |what: &str, path: &PathBuf, reason: String| {
            format!("the {what} in {} cannot be used: {reason}", path.display())
        };
        Some(match self {
            Self::Secret(source) => (
                ReferenceKind::Secret,
                fault(
                    source.resolve().err()?.to_string(),
                    "Starlock does not start without it",
                    "it has to be readable for the user that Starlock runs as; `starlock check --offline` looks at the file alone",
                ),
            ),
            Self::Root(path) => (
                ReferenceKind::Root,
                fault(
                    unusable("root certificates", path, root(path).err()?),
                    "Starlock does not start without them",
                    "wanted is a PEM file with the root of the CA's own HTTPS certificate",
                ),
            ),
            Self::ClientCa(path) => (
                ReferenceKind::ClientCa,
                fault(
                    unusable("CA certificates", path, root(path).err()?),
                    "Starlock does not start without them: nobody may come in unasked",
                    "wanted is a PEM file with the certificates of those who sign the clients'",
                ),
            ),
            Self::Users(path) => (
                ReferenceKind::Users,
                fault(check_users_file(path).err()?.to_string(), "Starlock does not start with it", ""),
            ),
            Self::Certificates(path) => (
                ReferenceKind::Certificates,
                fault(
                    unusable("certificates", path, root(path).err()?),
                    "Starlock does not start without them",
                    "wanted is a PEM file; `starlock check --offline` looks at the configuration alone",
                ),
            ),
            Self::Page(path) => (
                ReferenceKind::Page,
                fault(Page::read(path).err()?.to_string(), "Starlock does not start without it", OFFLINE),
            ),
            Self::Files(files, names) => (
                ReferenceKind::Files,
                fault(pair(files, names).err()?, "Starlock does not start without it", OFFLINE),
            ),
        })
    }
}

fn pair(files: &CertFiles, names: &[HostPattern]) -> Result<(), String> {
    let bundle = files.read()?.bundle;
    if bundle.covers(names) {
        return Ok(());
    }
    let list = |names: &[HostPattern]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(format!(
        "{} is for {} and not for all of {}",
        files.cert.display(),
        list(bundle.names()),
        list(names)
    ))
}

fn root(path: &Path) -> Result<(), String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_ROOTS + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_ROOTS {
        return Err(format!("it is over the limit of {MAX_ROOTS} bytes"));
    }
    match CertificateDer::pem_slice_iter(&bytes).next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("it holds no PEM certificate".to_owned()),
    }
}
