//! What a plan's state directory holds at a moment, for whoever only looks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;

use super::offline::block_on;
use crate::acme::{AcmeIssuer, AcmeSpec};
use crate::certs::Holding;
use crate::clock::SystemClock;
use crate::config::Plan;
use crate::issuer::IssuerId;
use crate::ledger::{Book, Ledger};
use crate::name::HostPattern;
use crate::storage::{FsStorage, Storage};

/// Certificates, books and accounts, by the numbers of what was asked for.
#[derive(Clone, Debug, Default)]
pub struct KeptState {
    /// Certificates that are held.
    pub held: BTreeMap<usize, Holding>,
    /// What is known to be counted by CAs; without those of which nothing is.
    pub counted: BTreeMap<usize, Book>,
    /// CAs that have an account of ours.
    pub registered: BTreeSet<usize>,
}

#[derive(Deserialize)]
struct Account {
    url: Option<String>,
}

impl KeptState {
    /// Reads what is there at `now` of `certificates` (sorted names, with the numbers of their CAs in `specs`), also beside a process
    /// that serves from it: nothing is made or changed. `None` if there is no state directory. Blocking. The error is for a person.
    pub fn read(
        plan: &Plan,
        specs: &[AcmeSpec],
        certificates: &[(&[HostPattern], &[usize])],
        now: SystemTime,
    ) -> Result<Option<Self>, String> {
        let path = &plan.storage.path;
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
            Ok(_) => {}
        }
        let storage: Arc<dyn Storage> = Arc::new(FsStorage::as_it_is(path).map_err(|e| e.to_string())?);
        block_on(async {
            let mut state = Self::default();
            let ids: Vec<IssuerId> = specs.iter().map(AcmeIssuer::id_of).collect();
            for (n, (names, cas)) in certificates.iter().enumerate() {
                let cas: Vec<IssuerId> = cas.iter().filter_map(|ca| ids.get(*ca).cloned()).collect();
                let held = Holding::read(&storage, &cas, names, now).await.map_err(|e| e.to_string())?;
                state.held.extend(held.map(|held| (n, held)));
            }
            let ledger = Ledger::new(storage.clone(), Arc::new(SystemClock));
            for (n, spec) in specs.iter().enumerate() {
                if let Some(budget) = AcmeIssuer::budget_of(spec) {
                    let book = ledger.book(&budget.ca).await;
                    state.counted.extend((!book.is_empty()).then_some((n, book)));
                }
                let account =
                    storage.load(&AcmeIssuer::account_key(spec)).await.map_err(|e| e.to_string())?;
                let account = account.and_then(|found| serde_json::from_slice::<Account>(&found.value).ok());
                state.registered.extend(account.and_then(|account| account.url).map(|_| n));
            }
            Ok(Some(state))
        })
    }
}
