//! What storage holds for a certificate, as PEM: for whoever passes it on.

use serde::Deserialize;

use super::record::{CertId, cert_key};
use crate::issuer::IssuerId;
use crate::name::HostPattern;
use crate::secret::Secret;
use crate::storage::{Storage, StorageError};
use crate::tls::Bundle;

/// A chain and its key, proven to belong together.
#[derive(Clone, Debug)]
pub struct StoredPem {
    /// Leaf first.
    pub chain_pem: String,
    /// In the form in which it was stored.
    pub key_pem: Secret,
    /// Of the leaf, as in [`super::CertView::serial`].
    pub serial: String,
}

/// The two parts of the stored value that matter here.
#[derive(Deserialize)]
struct Pem {
    chain: String,
    key: String,
}

/// Reads the current generation; `None` if there is none, or if it is damaged (which its worker tells).
pub async fn stored_pem(
    storage: &dyn Storage,
    issuer: &IssuerId,
    names: &[HostPattern],
) -> Result<Option<StoredPem>, StorageError> {
    let found = match storage.load(&cert_key(issuer, &CertId::of(names))).await {
        Ok(Some(found)) => found,
        Ok(None) | Err(StorageError::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Ok(pem) = serde_json::from_slice::<Pem>(&found.value) else { return Ok(None) };
    let Ok(bundle) = Bundle::from_pem(&pem.chain, &pem.key) else { return Ok(None) };
    let serial = bundle.serial().to_owned();
    Ok(Some(StoredPem { chain_pem: pem.chain, key_pem: Secret::new(pem.key), serial }))
}
