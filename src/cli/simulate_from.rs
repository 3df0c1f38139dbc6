//! What a simulation starts from: what the state directory holds, or nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::count;
use crate::acme::{AcmeIssuer, AcmeSpec};
use crate::app;
use crate::certs::Holding;
use crate::clock::{self, SystemClock};
use crate::config::Plan;
use crate::issuer::IssuerId;
use crate::ledger::Ledger;
use crate::simulate::{Beginning, SimulatedCert};
use crate::storage::{Key, Storage};

/// Where the first moment comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nothing is held, since a person wants to see that.
    Asked,
    /// Nothing is held: there is no such directory.
    Missing(PathBuf),
    /// What this directory holds.
    State {
        path: PathBuf,
        held: usize,
        windows: usize,
        expired: usize,
        first_end: Option<SystemTime>,
        counted: usize,
    },
}

impl Origin {
    /// For a person, as one line.
    pub(super) fn line(&self, wanted: usize) -> String {
        match self {
            Self::Asked => "Starts with nothing held, as --empty says.".to_owned(),
            Self::Missing(path) => format!("Starts with nothing held: there is no {} yet.", path.display()),
            Self::State { path, held: 0, counted: 0, .. } => {
                format!("Starts with nothing held: {} holds none of these certificates.", path.display())
            }
            Self::State { path, held, windows, expired, first_end, counted } => {
                let mut text = format!(
                    "Starts from {}: {held} of {} held",
                    path.display(),
                    count(wanted, "certificate")
                );
                if let Some(end) = first_end {
                    text.push_str(&format!(" (the first ends at {})", clock::rfc3339(*end)));
                }
                if *expired > 0 {
                    text.push_str(&format!(", {expired} of them expired already"));
                }
                text.push_str(&format!(
                    ", {} known, the ledger of {}.",
                    count(*windows, "renewal window"),
                    count(*counted, "CA")
                ));
                text
            }
        }
    }

    /// For a program.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Asked | Self::Missing(_) => serde_json::json!({ "state": null, "held": 0 }),
            Self::State { path, held, windows, expired, counted, .. } => serde_json::json!({
                "state": path.display().to_string(),
                "held": held,
                "windows": windows,
                "expired": expired,
                "counted": counted,
            }),
        }
    }
}

/// Reads what is there at `now`, without disturbing a process that serves from it. Blocking. The error is for a person.
pub(super) fn read(
    plan: &Plan,
    specs: &[AcmeSpec],
    certificates: &[SimulatedCert],
    now: SystemTime,
) -> Result<(Origin, Beginning), String> {
    let path = plan.storage.path.clone();
    let ids: Vec<IssuerId> = specs.iter().map(AcmeIssuer::id_of).collect();
    let begins = app::look(plan, async |storage| {
        let mut begins = Beginning::default();
        for (n, certificate) in certificates.iter().enumerate() {
            let cas: Vec<IssuerId> = certificate.cas.iter().map(|ca| ids[*ca].clone()).collect();
            let held = Holding::read(&storage, &cas, &certificate.names, now).await;
            if let Some(holding) = held.map_err(|e| e.to_string())? {
                begins.held.insert(n, holding);
            }
        }
        let ledger = Ledger::new(storage.clone(), Arc::new(SystemClock));
        for (n, spec) in specs.iter().enumerate() {
            if let Some(budget) = AcmeIssuer::budget_of(spec) {
                let book = ledger.book(&budget.ca).await;
                if !book.is_empty() {
                    begins.counted.insert(n, book);
                }
            }
            if is_registered(&storage, &AcmeIssuer::account_key(spec)).await? {
                begins.registered.insert(n);
            }
        }
        Ok(begins)
    })
    .map_err(|error| {
        format!(
            "{error}\nRun this as the user that Starlock runs as, or with --empty as if nothing were held"
        )
    })?;
    let Some(begins) = begins else { return Ok((Origin::Missing(path), Beginning::default())) };
    let ends = || begins.held.values().map(Holding::not_after);
    let from = Origin::State {
        path,
        held: begins.held.len(),
        windows: begins.held.values().filter(|holding| holding.has_window()).count(),
        expired: ends().filter(|end| *end <= now).count(),
        first_end: ends().filter(|end| *end > now).min(),
        counted: begins.counted.len(),
    };
    Ok((from, begins))
}

async fn is_registered(storage: &Arc<dyn Storage>, account: &Key) -> Result<bool, String> {
    let found = storage.load(account).await.map_err(|e| e.to_string())?;
    let kept = found
        .and_then(|found| serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(&found.value).ok());
    Ok(kept.is_some_and(|kept| kept.get("url").is_some_and(serde_json::Value::is_string)))
}
