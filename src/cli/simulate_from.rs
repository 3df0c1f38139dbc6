//! What a simulation starts from: what the state directory holds, or nothing.

use std::path::PathBuf;
use std::time::SystemTime;

use super::count;
use crate::acme::AcmeSpec;
use crate::app::KeptState;
use crate::clock;
use crate::config::Plan;
use crate::simulate::{Beginning, SimulatedCert};

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
    let certificates: Vec<_> = certificates.iter().map(|c| (&*c.names, c.cas.as_slice())).collect();
    let state = KeptState::read(plan, specs, &certificates, now).map_err(|error| {
        format!(
            "{error}\nRun this as the user that Starlock runs as, or with --empty as if nothing were held"
        )
    })?;
    let Some(KeptState { held, counted, registered }) = state else {
        return Ok((Origin::Missing(path), Beginning::default()));
    };
    let ends = || held.values().map(|holding| holding.not_after());
    let origin = Origin::State {
        path,
        held: held.len(),
        windows: held.values().filter(|holding| holding.has_window()).count(),
        expired: ends().filter(|end| *end <= now).count(),
        first_end: ends().filter(|end| *end > now).min(),
        counted: counted.len(),
    };
    Ok((origin, Beginning { held, counted, registered }))
}
