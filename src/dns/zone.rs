//! The zone that a record is written into: as configured, else found.

use std::sync::Arc;
use std::time::Duration;

use super::DnsError;
use crate::name::DnsName;
use crate::resolver::{LookupError, Resolver};

/// Several questions one after another, each with a deadline of its own.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(super) struct ZoneFinder {
    pub(super) fixed: Option<DnsName>,
    pub(super) resolver: Arc<Resolver>,
}

impl ZoneFinder {
    /// The zone of `name`, at each call anew: delegations move.
    pub(super) async fn zone_of(&self, name: &DnsName) -> Result<DnsName, DnsError> {
        if let Some(zone) = &self.fixed {
            return if name.is_in(zone) {
                Ok(zone.clone())
            } else {
                Err(DnsError::Refused(format!(
                    "{name} does not lie in `zone = \"{zone}\"`; leave `zone` out to have it found, or set it for this \
                     certificate's own `dns`"
                )))
            };
        }
        let found = tokio::time::timeout(LIMIT, self.resolver.zone_of(name)).await;
        match found {
            Ok(Ok(zone)) => Ok(zone.apex),
            Err(_) => Err(DnsError::Unavailable(format!(
                "the zone of {name} was not found within {} s; `zone` names it without looking",
                LIMIT.as_secs()
            ))),
            Ok(Err(error)) => {
                let message =
                    format!("cannot find the zone of {name}: {error}; `zone` names it without looking");
                Err(match error {
                    LookupError::NoResolver(_) | LookupError::BadAlias { .. } => DnsError::Refused(message),
                    _ => DnsError::Unavailable(message),
                })
            }
        }
    }
}
