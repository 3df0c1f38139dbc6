//! What is kept in the state directory, read without disturbing who owns it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::acme::{AcmeIssuer, AcmeSpec};
use crate::config::{IssuerPlan, Plan};
use crate::storage::{FsStorage, MemoryStorage, Storage};
use crate::task;

/// An account is a few hundred bytes.
const MAX_ACCOUNT: u64 = 64 << 10;

/// The account at a CA: its URL, none yet, or not to be read.
pub(super) type Account = Result<Option<String>, ()>;

/// The accounts at every CA of the plan, by directory.
pub(super) async fn accounts(plan: &Plan) -> BTreeMap<String, Account> {
    let (specs, state) = (specs(plan), plan.storage.path.clone());
    task::blocking(move || kept(&specs, &state)).await
}

/// Every CA of the plan, fallbacks included.
pub(super) fn specs(plan: &Plan) -> Vec<AcmeSpec> {
    let mut specs: Vec<AcmeSpec> = Vec::new();
    for certificate in &plan.certificates {
        let IssuerPlan::Acme(acme) = &certificate.issuer else { continue };
        for spec in std::iter::once(&acme.acme).chain(&acme.fallback) {
            if !specs.contains(spec) {
                specs.push(spec.clone());
            }
        }
    }
    specs
}

/// The accounts at `specs` in the state directory. Blocking.
pub(super) fn kept(specs: &[AcmeSpec], state: &Path) -> BTreeMap<String, Account> {
    let path = |spec: &AcmeSpec| state.join(format!("{}.json", AcmeIssuer::account_key(spec)));
    specs.iter().map(|spec| (spec.directory.clone(), account(&path(spec)))).collect()
}

fn account(path: &Path) -> Account {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(meta) if meta.len() <= MAX_ACCOUNT => {}
        _ => return Err(()),
    }
    let bytes = std::fs::read(path).map_err(|_| ())?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| ())?;
    Ok(json["url"].as_str().map(ToOwned::to_owned))
}

/// The state directory as storage. The errors are for a person.
#[derive(Debug)]
pub(super) struct Kept {
    /// For looking only.
    pub(super) reads: Result<Arc<dyn Storage>, String>,
    /// For the journal of TXT records, which the next start sweeps.
    pub(super) journal: Result<Arc<dyn Storage>, String>,
}

/// Makes nothing. What another user owns is only looked at: files of ours would be in the owner's way.
pub(super) async fn storage(plan: &Plan) -> Kept {
    let path = plan.storage.path.clone();
    task::blocking(move || {
        let Ok(meta) = std::fs::metadata(&path) else {
            // Nothing was counted and nothing can be journalled yet.
            let empty = || Ok(Arc::new(MemoryStorage::new()) as Arc<dyn Storage>);
            return Kept { reads: empty(), journal: empty() };
        };
        let (owner, we) = (meta.uid(), rustix::process::geteuid().as_raw());
        let there = FsStorage::as_it_is(&path).map(|storage| Arc::new(storage) as Arc<dyn Storage>);
        let there = there.map_err(|error| error.to_string());
        if owner == we {
            return Kept { reads: there.clone(), journal: there };
        }
        let reason = format!(
            "{} belongs to uid {owner}, and this is uid {we}; as the user that Starlock runs as: sudo -u '#{owner}' starlock doctor",
            path.display()
        );
        Kept { reads: if we == 0 { there } else { Err(reason.clone()) }, journal: Err(reason) }
    })
    .await
}
