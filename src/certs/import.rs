//! Certificates that another program got: taken over as if we had, when they are good.

use std::sync::Arc;
use std::time::SystemTime;

use super::record::{CertId, CertRecords, Found, HeldCert};
use crate::clock;
use crate::issuer::{IssuedCert, IssuerId, Spent};
use crate::name::HostPattern;
use crate::secret::Secret;
use crate::storage::Storage;

/// What became of a certificate that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is (or would be) served from the next start on.
    Taken {
        /// Its last moment.
        not_after: SystemTime,
    },
    /// Storage holds one that is good for as long.
    Held,
}

/// Proves a certificate (the key matches, it is for all of `names`, it is good at `now`) and stores it in the place of an order's.
/// With `dry`, all but the storing. The error is for a person. No process may serve from this storage meanwhile.
pub async fn import_certificate(
    storage: Arc<dyn Storage>,
    issuer: &IssuerId,
    names: &[HostPattern],
    chain_pem: &str,
    key_pem: &Secret,
    now: SystemTime,
    dry: bool,
) -> Result<Imported, String> {
    let issued = IssuedCert {
        chain_pem: chain_pem.to_owned(),
        key_pem: key_pem.clone(),
        resumed: true,
        spent: Spent::default(),
    };
    let mut cert = HeldCert::signed(&issued, names, now, 0, None)?;
    let (begin, end) = (cert.held.not_before, cert.held.not_after);
    if end <= now {
        return Err(format!("it expired at {}", clock::rfc3339(end)));
    }
    if begin > now {
        return Err(format!("it begins at {}, which is later than now", clock::rfc3339(begin)));
    }
    // Not now: a certificate that was just stored is not renewed for a quarter of its lifetime, and this one is not new.
    cert.held.stored_at = begin;
    let (records, id) = (CertRecords::new(storage), CertId::of(names));
    match records.load(issuer, &id, names, 0).await.map_err(|e| e.to_string())? {
        Found::Cert(held) if held.held.not_after >= end => return Ok(Imported::Held),
        Found::Cert(_) | Found::Nothing | Found::Damaged | Found::Lost(_) => {}
    }
    if !dry {
        records.store(issuer, &id, &issued, &cert).await.map_err(|e| e.to_string())?;
    }
    Ok(Imported::Taken { not_after: end })
}
