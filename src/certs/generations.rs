//! The generations of a certificate: the current one, the one before it, and one that was signed and not proven yet.

use std::time::SystemTime;

use super::policy::Held;
use super::record::{CertId, CertRecords, HeldCert, StoredCert, cert_key, encode, parse};
use crate::issuer::{IssuedCert, IssuerId, Spent};
use crate::name::HostPattern;
use crate::secret::Secret;
use crate::storage::{Expect, Key, StorageError, json_fault};

const UNPROVEN: &str = "unproven";

/// What was signed and is not served.
pub(super) enum Unproven {
    /// It may be served once it is proven.
    Cert(IssuedCert, HeldCert),
    /// Nothing can be made of it.
    Useless {
        /// The configuration that it was ordered under.
        config: String,
        /// For a person.
        reason: String,
    },
}

impl CertRecords {
    /// Keeps what was signed before anything else is done with it; on return it survives a crash.
    pub(super) async fn store_unproven(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        issued: &IssuedCert,
        cert: &HeldCert,
    ) -> Result<(), StorageError> {
        let value = encode(&StoredCert::new(issued, cert))?;
        self.storage.store(&unproven_key(issuer, id), &value, Expect::Anything).await.map(|_| ())
    }

    /// Whether something was signed and is not proven.
    pub(super) async fn has_unproven(&self, issuer: &IssuerId, id: &CertId) -> Result<bool, StorageError> {
        Ok(self.storage.load(&unproven_key(issuer, id)).await?.is_some())
    }

    /// Keeps what was signed and cannot be served at all, under the configuration `config`.
    pub(super) async fn store_useless(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        (issued, names): (&IssuedCert, &[HostPattern]),
        (config, now): (&str, SystemTime),
    ) -> Result<(), StorageError> {
        let value = encode(&StoredCert::useless(issued, names, now, config))?;
        self.storage.store(&unproven_key(issuer, id), &value, Expect::Anything).await.map(|_| ())
    }

    /// What was signed and is not proven. A damaged one is set aside.
    pub(super) async fn unproven(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        names: &[HostPattern],
        number: u8,
    ) -> Result<Option<Unproven>, StorageError> {
        let key = unproven_key(issuer, id);
        let reason = match self.storage.load(&key).await {
            Ok(None) => return Ok(None),
            Ok(Some(found)) => match (stored(&found.value), parse(&found.value, names, number)) {
                (Ok(stored), Ok(cert)) => return Ok(Some(Unproven::Cert(issued(stored), cert))),
                (Ok(StoredCert { useless: Some(config), .. }), Err(reason)) => {
                    return Ok(Some(Unproven::Useless { config, reason }));
                }
                (Err(reason), _) | (_, Err(reason)) => reason,
            },
            Err(StorageError::Damaged { reason, .. }) => reason,
            Err(error) => return Err(error),
        };
        let place = self.storage.set_aside(&key).await?;
        tracing::error!(certificate = %id, place, reason, "a certificate that was signed and not served yet is damaged and was set aside");
        Ok(None)
    }

    /// Puts what was signed out of the way, for a person to look at. Where it is now.
    pub(super) async fn set_unproven_aside(
        &self,
        issuer: &IssuerId,
        id: &CertId,
    ) -> Result<String, StorageError> {
        self.storage.set_aside(&unproven_key(issuer, id)).await
    }

    pub(super) async fn forget_unproven(&self, issuer: &IssuerId, id: &CertId) -> Result<(), StorageError> {
        self.storage.remove(&unproven_key(issuer, id)).await
    }

    /// Makes the previous generation the current one, and the current one the previous. `None` if there is none that can be
    /// served at `now`.
    pub(super) async fn roll_back(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        names: &[HostPattern],
        number: u8,
        now: SystemTime,
    ) -> Result<Option<HeldCert>, StorageError> {
        let key = cert_key(issuer, id);
        let previous = match self.storage.load_previous(&key).await {
            Ok(Some(found)) => found.value,
            Ok(None) | Err(StorageError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (Ok(stored), Ok(cert)) = (stored(&previous), parse(&previous, names, number)) else {
            return Ok(None);
        };
        if cert.held.not_after <= now {
            return Ok(None);
        }
        let cert = HeldCert { held: Held { stored_at: now, rolled_back: true, ..cert.held }, ..cert };
        self.store(issuer, id, &issued(stored), &cert).await?;
        Ok(Some(cert))
    }

    /// Chain and key of the current generation.
    pub(super) async fn pem(
        &self,
        issuer: &IssuerId,
        id: &CertId,
    ) -> Result<Option<IssuedCert>, StorageError> {
        let key = cert_key(issuer, id);
        let Some(found) = self.storage.load(&key).await? else { return Ok(None) };
        stored(&found.value)
            .map(|stored| Some(issued(stored)))
            .map_err(|reason| StorageError::Damaged { key, reason })
    }
}

fn stored(value: &[u8]) -> Result<StoredCert, String> {
    serde_json::from_slice(value).map_err(|e| json_fault(&e))
}

fn issued(stored: StoredCert) -> IssuedCert {
    let (chain_pem, key_pem) = (stored.chain, Secret::new(stored.key));
    IssuedCert { chain_pem, key_pem, resumed: true, spent: Spent::default() }
}

fn unproven_key(issuer: &IssuerId, id: &CertId) -> Key {
    Key::new(&[UNPROVEN, issuer.as_str(), id.as_str()])
}
