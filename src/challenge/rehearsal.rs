//! A throw-away record: whether a provider's credentials can write where a challenge has to stand, before any order.

use std::sync::Arc;
use std::time::Duration;

use super::janitor::Janitor;
use super::propagation::{self, Watch};
use crate::dns::{DnsError, TxtProvider, TxtRecord};
use crate::resolver::{Resolver, TxtReply, Zone};

/// Between two looks for a record that was removed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How far a rehearsal came. The texts are for a person.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RehearsalError {
    /// The provider did not take the record.
    #[error("{0}")]
    Write(DnsError),
    /// Not every server showed it in time.
    #[error("{table}")]
    See {
        /// What each said.
        table: String,
        /// Whether some of them did.
        some: bool,
    },
    /// It was not gone from every server in time: which ones show it still.
    #[error("{0}")]
    Remove(String),
}

/// Writes `record`, waits until every server of `zone` shows it, removes it, waits until it is gone.
///
/// The record is journalled like every other, and goes to the janitor when the future is dropped. Takes at most `limit` each
/// for showing and for being gone, beside the provider's own calls.
pub async fn rehearse(
    provider: Arc<dyn TxtProvider>,
    resolver: &Resolver,
    janitor: &Janitor,
    record: &TxtRecord,
    zone: &Zone,
    limit: Duration,
) -> Result<(), RehearsalError> {
    let mut guard = janitor.hold(provider, vec![record.clone()]).await;
    guard.publish().await.map_err(RehearsalError::Write)?;
    let watch = Watch::new(&[(record.clone(), propagation::servers_of(zone))]);
    let seen = propagation::wait(resolver, &watch, limit).await;
    let some = seen.is_err() && !showing(resolver, record, zone).await.is_empty();
    guard.remove().await;
    seen.map_err(|table| RehearsalError::See { table, some })?;
    let gone = tokio::time::timeout(limit, async {
        while !showing(resolver, record, zone).await.is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    });
    if gone.await.is_ok() {
        return Ok(());
    }
    let left = showing(resolver, record, zone).await;
    if left.is_empty() { Ok(()) } else { Err(RehearsalError::Remove(left.join(", "))) }
}

/// The servers that show the record.
async fn showing(resolver: &Resolver, record: &TxtRecord, zone: &Zone) -> Vec<String> {
    let mut left = Vec::new();
    for server in &zone.servers {
        for address in &server.addresses {
            if let Ok(TxtReply::Values(values)) = resolver.txt(*address, &record.name).await
                && values.contains(&record.value)
            {
                left.push(format!("{} ({address})", server.name));
            }
        }
    }
    left
}
