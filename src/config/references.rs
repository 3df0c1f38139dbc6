//! What a file only points to: secrets and root certificates. Whether they can be read is looked at after the file is good.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::error::{Problem, Problems, Span};
use crate::policy::{Page, check_users_file};
use crate::secret::SecretSource;

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
        let mut problems = Vec::new();
        for (span, reference) in &self.list {
            let problem = match reference {
                Reference::Secret(source) => source.resolve().err().map(|error| {
                    Problem::error(span.clone(), error.to_string()).label("Starlock does not start without it").help(
                        "it has to be readable for the user that Starlock runs as; `starlock check --offline` looks at the file alone",
                    )
                }),
                Reference::Root(path) => root(path).err().map(|reason| {
                    let what = format!("the root certificates in {} cannot be used: {reason}", path.display());
                    Problem::error(span.clone(), what)
                        .label("Starlock does not start without them")
                        .help("wanted is a PEM file with the root of the CA's own HTTPS certificate")
                }),
                Reference::ClientCa(path) => root(path).err().map(|reason| {
                    let what = format!("the CA certificates in {} cannot be used: {reason}", path.display());
                    Problem::error(span.clone(), what)
                        .label("Starlock does not start without them: nobody may come in unasked")
                        .help("wanted is a PEM file with the certificates of those who sign the clients'")
                }),
                Reference::Users(path) => check_users_file(path)
                    .err()
                    .map(|error| Problem::error(span.clone(), error.to_string()).label("Starlock does not start with it")),
                Reference::Certificates(path) => root(path).err().map(|reason| {
                    let what = format!("the certificates in {} cannot be used: {reason}", path.display());
                    Problem::error(span.clone(), what)
                        .label("Starlock does not start without them")
                        .help("wanted is a PEM file; `starlock check --offline` looks at the configuration alone")
                }),
                Reference::Page(path) => Page::read(path).err().map(|error| {
                    Problem::error(span.clone(), error.to_string())
                        .label("Starlock does not start without it")
                        .help("`starlock check --offline` looks at the configuration alone")
                }),
            };
            problems.extend(problem);
        }
        Problems::new(&self.file, &self.text, problems)
    }
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
