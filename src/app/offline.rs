//! What is done to the state directory while nothing serves from it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::issuers;
use crate::clock::SystemClock;
use crate::config::{IssuerPlan, Plan};
use crate::local_ca::LocalRoot;
use crate::storage::{FsStorage, Storage};

/// The local CA's roots that a plan needs, made if they are missing. Blocking. The error is for a person.
pub fn local_roots(plan: &Plan) -> Result<Vec<LocalRoot>, String> {
    block_on(async {
        let path = &plan.storage.path;
        let ours = is_ours(path);
        let needed = plan.certificates.iter().any(|certificate| certificate.issuer == IssuerPlan::Local);
        if !needed && !path.join("local-ca").exists() {
            return Err("no certificate is signed by the local CA: there is no root to trust".to_owned());
        }
        if !ours && !path.join("local-ca/root.json").exists() {
            return Err(format!(
                "the local CA of {} has no root yet, and the directory belongs to another user: start Starlock there once, or run this as that user",
                path.display()
            ));
        }
        let storage = open(plan)?;
        let ca = issuers::local_ca(plan, storage, Arc::new(SystemClock));
        // Files that we make in somebody else's directory could not be read by whom they are for.
        let roots = if ours && needed { ca.needed_roots().await } else { ca.roots().await };
        roots.map_err(|e| e.to_string())
    })
}

/// Opens a plan's state directory for writing: only as the user whose files it holds.
pub(super) fn open_as_owner(plan: &Plan) -> Result<Arc<dyn Storage>, String> {
    match is_ours(&plan.storage.path) {
        true => open(plan),
        false => Err(format!(
            "{} belongs to another user, who could not read what is written there now: run this as that user",
            plan.storage.path.display()
        )),
    }
}

/// Opens a plan's state directory; warnings go to the log.
fn open(plan: &Plan) -> Result<Arc<dyn Storage>, String> {
    let (storage, warnings) = FsStorage::open(&plan.storage).map_err(|e| e.to_string())?;
    for warning in warnings {
        tracing::debug!("{warning}");
    }
    Ok(Arc::new(storage))
}

/// Whether what this process makes in `path` belongs to the user that will read it. A directory that does not exist is made.
fn is_ours(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |meta| meta.uid() == rustix::process::geteuid().as_raw())
}

pub(super) fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("no runtime: {e}"))?.block_on(work)
}
