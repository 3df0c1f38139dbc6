//! What storage has of a certificate, for whoever only looks: nothing is set aside, noted or served.

use std::sync::Arc;
use std::time::SystemTime;

use super::policy::Held;
use super::record::{CertId, CertRecords, HeldCert, cert_key, parse};
use super::state::Ari;
use crate::issuer::IssuerId;
use crate::name::HostPattern;
use crate::storage::{Storage, StorageError, Stored};

/// A certificate that is held, as far as time is concerned.
#[derive(Clone, Debug)]
pub struct Holding {
    pub(crate) held: Held,
    /// What its CA has said of it.
    pub(crate) ari: Option<Ari>,
    /// The CAs that have signed for these names, by number.
    pub(crate) signers: Vec<u8>,
}

impl Holding {
    /// What a start at `now` would serve for the sorted `names`, of what any of `cas` has signed; `None` if there is nothing. What is
    /// damaged counts as not there.
    pub async fn read(
        storage: &Arc<dyn Storage>,
        cas: &[IssuerId],
        names: &[HostPattern],
        now: SystemTime,
    ) -> Result<Option<Self>, StorageError> {
        let (id, mut best, mut signers) = (CertId::of(names), None::<HeldCert>, Vec::new());
        for (ca, number) in cas.iter().zip(0u8..) {
            let key = cert_key(ca, &id);
            let whole =
                |found: Option<Stored>| found.and_then(|found| parse(&found.value, names, number).ok());
            let mut cert = whole(readable(storage.load(&key).await)?);
            if cert.is_none() {
                cert = whole(readable(storage.load_previous(&key).await)?);
            }
            let Some(cert) = cert else { continue };
            signers.push(number);
            if best.as_ref().is_none_or(|best| cert.is_better_than(best, now)) {
                best = Some(cert);
            }
        }
        let (Some(cert), Some(preferred)) = (best, cas.first()) else { return Ok(None) };
        let records = CertRecords::new(storage.clone());
        let ari = records.load_ari(preferred, &id, cert.bundle.serial()).await;
        Ok(Some(Self { held: cert.held, ari, signers }))
    }

    /// Its last moment.
    pub fn not_after(&self) -> SystemTime {
        self.held.not_after
    }

    /// Whether its CA has said when it wants it to be renewed.
    pub fn has_window(&self) -> bool {
        self.ari.is_some_and(|ari| ari.window.is_some())
    }
}

fn readable(found: Result<Option<Stored>, StorageError>) -> Result<Option<Stored>, StorageError> {
    match found {
        Err(StorageError::Damaged { .. }) => Ok(None),
        found => found,
    }
}
