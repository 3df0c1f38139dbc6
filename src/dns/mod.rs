//! Writing TXT records where somebody else's name servers serve them.

mod acme_dns;
mod bridge;
mod build;
mod exec;
mod httpreq;
mod redact;
mod rfc2136;
mod spec;
mod turns;
mod vendors;
mod zone;

use std::fmt;

use async_trait::async_trait;

use crate::name::DnsName;

pub use build::{BuildError, Surroundings, build};
pub use spec::{
    CommonKeys, DEFAULT_DOH, Propagation, PropagationCheck, Proven, ProviderKind, ProviderSpec, Vendor,
    VendorKey, VendorKind, VendorValue,
};
pub use turns::ZoneTurns;
pub use vendors::vendors;

/// One TXT record of an ACME challenge. Several values may stand at one name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TxtRecord {
    /// The owner name, CNAMEs already followed.
    pub name: DnsName,
    /// The value, without quotes.
    pub value: String,
}

/// Why a record could not be written or removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DnsError {
    /// Credentials, zone or settings are wrong: a person has to act.
    #[error("{0}")]
    Refused(String),
    /// A time-out, a 5xx, a lost connection: later it may work.
    #[error("{0}")]
    Unavailable(String),
}

/// Writes TXT records, by value: never "set", since `example.com` and `*.example.com` share one owner name.
///
/// Both calls are idempotent, and removing what is gone is fine. Calls for one zone are serialised by the implementation;
/// other calls may run concurrently. Dropping a call's future may leave it carried out or not. Nothing is kept in memory
/// that removal needs: after a crash `remove_txt` works with the record alone.
#[async_trait]
pub trait TxtProvider: Send + Sync + fmt::Debug {
    /// Names this provider in the journal; the same configuration gives the same id after a restart. Holds no secret.
    fn id(&self) -> &str;

    /// Whether only one value can stand at a name (DuckDNS and its like): challenges are then taken one by one.
    fn holds_one_value(&self) -> bool {
        false
    }

    /// Whether values go only when newer ones come (acme-dns): a record for trial would stay behind.
    fn keeps_values(&self) -> bool {
        false
    }

    /// Adds the value to what stands at the name. Returns when the provider has accepted it; it may not be visible yet.
    async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError>;

    /// Removes this value and leaves others alone.
    async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError>;
}
