//! Certificates and attempts as storage holds them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::policy::Held;
use super::state::{Attempts, Failure};
use crate::issuer::{FailureClass, IssuedCert, IssuerId, Spent};
use crate::name::HostPattern;
use crate::secret::Secret;
use crate::storage::{Expect, Key, Storage, StorageError};
use crate::tls::Bundle;

/// One set of names: the first name and a digest of all of them. Safe in a storage key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertId(Arc<str>);

impl CertId {
    /// The id of a sorted set of names.
    pub fn of(names: &[HostPattern]) -> Self {
        let all: Vec<String> = names.iter().map(ToString::to_string).collect();
        let digest = Sha256::digest(all.join(","));
        let short: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
        let first = all.first().map_or("none", |n| n.as_str()).replace('*', "wildcard").replace(':', "-");
        Self(format!("{first}-{short}").into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A certificate that was read or is about to be written.
#[derive(Clone, Debug)]
pub(super) struct HeldCert {
    pub(super) bundle: Arc<Bundle>,
    pub(super) held: Held,
}

impl HeldCert {
    /// Proves that the parts belong together and are for `names`. The error is for a person.
    pub(super) fn prove(
        issued: &IssuedCert,
        names: &[HostPattern],
        stored_at: SystemTime,
    ) -> Result<Self, String> {
        let bundle =
            Bundle::from_pem(&issued.chain_pem, issued.key_pem.expose()).map_err(|e| e.to_string())?;
        if !bundle.covers(names) {
            return Err(format!("it is for {:?} and not for all of {names:?}", bundle.names()));
        }
        Ok(Self::new(bundle, stored_at))
    }

    fn new(bundle: Bundle, stored_at: SystemTime) -> Self {
        let spread = Sha256::digest(bundle.serial());
        let held = Held {
            not_before: bundle.not_before(),
            not_after: bundle.not_after(),
            stored_at,
            spread: u16::from_be_bytes([spread[0], spread[1]]) % 1001,
        };
        Self { bundle: Arc::new(bundle), held }
    }
}

/// One value holds everything: storing it is one transaction.
#[derive(Serialize, Deserialize)]
struct StoredCert {
    names: Vec<String>,
    chain: String,
    key: String,
    stored_at: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredAttempts {
    failures: u32,
    until: u64,
    parked: bool,
    class: String,
    message: String,
    /// Attempts of another configuration say nothing about this one.
    fingerprint: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Inventory {
    /// Keys of the certificates that were stored: one that is missing later was lost, not never ordered.
    certificates: Vec<String>,
    /// Those among them whose value was damaged and set aside by us: missing, but not lost.
    #[serde(default)]
    set_aside: Vec<String>,
}

impl Inventory {
    fn note_stored(&mut self, key: &Key) -> bool {
        let known = self.certificates.iter().any(|k| k == key.as_str());
        let before = self.set_aside.len();
        self.set_aside.retain(|k| k != key.as_str());
        if !known {
            self.certificates.push(key.as_str().to_owned());
        }
        !known || self.set_aside.len() != before
    }

    fn note_set_aside(&mut self, key: &Key) -> bool {
        let known = self.set_aside.iter().any(|k| k == key.as_str());
        if !known {
            self.set_aside.push(key.as_str().to_owned());
        }
        !known
    }
}

/// What storage says about a certificate.
#[derive(Debug)]
pub(super) enum Found {
    Cert(HeldCert),
    /// Never stored.
    Nothing,
    /// Was stored, could not be read as a certificate, and neither could its previous generation; both were kept aside.
    Damaged,
    /// Was stored and is gone. For a person.
    Lost(String),
}

/// One issuer's certificates in storage.
#[derive(Clone, Debug)]
pub(super) struct CertRecords {
    pub(super) storage: Arc<dyn Storage>,
}

impl CertRecords {
    /// Reads a certificate. A damaged one is set aside and its previous generation used, if there is one.
    pub(super) async fn load(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        names: &[HostPattern],
    ) -> Result<Found, StorageError> {
        let key = cert_key(issuer, id);
        let current = match self.storage.load(&key).await {
            Ok(Some(found)) => parse(&found.value, names),
            Ok(None) => {
                // Set aside by a former look; its predecessor is still the last good one.
                if let Some(cert) = self.previous(&key, id, names).await? {
                    return Ok(Found::Cert(cert));
                }
                let inventory = self.inventory().await?.0;
                return Ok(if inventory.set_aside.iter().any(|k| k == key.as_str()) {
                    Found::Damaged
                } else if inventory.certificates.iter().any(|k| k == key.as_str()) {
                    Found::Lost(format!(
                        "storage held a certificate for {names:?} and does not any more ({key}). Nothing is ordered, so that a lost \
                         volume does not use up the CA's limits. Restore the state directory, or remove inventory.json from it to \
                         begin anew"
                    ))
                } else {
                    Found::Nothing
                });
            }
            Err(StorageError::Damaged { reason, .. }) => Err(reason),
            Err(error) => return Err(error),
        };
        let reason = match current {
            Ok(cert) => return Ok(Found::Cert(cert)),
            Err(reason) => reason,
        };
        // Noted first: what is missing later without a note was lost, and is not ordered.
        self.note(|inventory| inventory.note_set_aside(&key)).await?;
        let place = self.storage.set_aside(&key).await?;
        tracing::error!(certificate = %id, place, reason, "a stored certificate is damaged and was set aside");
        Ok(self.previous(&key, id, names).await?.map_or(Found::Damaged, Found::Cert))
    }

    async fn previous(
        &self,
        key: &Key,
        id: &CertId,
        names: &[HostPattern],
    ) -> Result<Option<HeldCert>, StorageError> {
        let parsed = match self.storage.load_previous(key).await {
            Ok(Some(previous)) => parse(&previous.value, names),
            Ok(None) => return Ok(None),
            Err(StorageError::Damaged { reason, .. }) => Err(reason),
            Err(error) => return Err(error),
        };
        Ok(match parsed {
            Ok(cert) => {
                tracing::warn!(certificate = %id, serial = cert.bundle.serial(), "serving the previous generation");
                Some(cert)
            }
            Err(reason) => {
                tracing::error!(certificate = %id, reason, "the previous generation is damaged too");
                None
            }
        })
    }

    /// Stores a certificate durably; on return it survives a crash.
    pub(super) async fn store(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        issued: &IssuedCert,
        cert: &HeldCert,
    ) -> Result<(), StorageError> {
        let key = cert_key(issuer, id);
        let stored = StoredCert {
            names: cert.bundle.names().iter().map(ToString::to_string).collect(),
            chain: issued.chain_pem.clone(),
            key: issued.key_pem.expose().to_owned(),
            stored_at: seconds(cert.held.stored_at),
        };
        self.storage.store(&key, &encode(&stored)?, Expect::Anything).await?;
        self.note(|inventory| inventory.note_stored(&key)).await
    }

    /// Changes the inventory; `change` says whether there was anything to change.
    async fn note(&self, change: impl Fn(&mut Inventory) -> bool) -> Result<(), StorageError> {
        for _ in 0..8 {
            let (mut inventory, expect) = self.inventory().await?;
            if !change(&mut inventory) {
                return Ok(());
            }
            match self.storage.store(&inventory_key(), &encode(&inventory)?, expect).await {
                Err(StorageError::Conflict(_)) => {}
                result => return result.map(|_| ()),
            }
        }
        Err(StorageError::Conflict(inventory_key()))
    }

    /// Certificates of this issuer that are for at least one of `names`: good enough until the right one is there.
    pub(super) async fn stand_ins(
        &self,
        issuer: &IssuerId,
        names: &[HostPattern],
    ) -> Result<Vec<Arc<Bundle>>, StorageError> {
        let mut found = Vec::new();
        for key in self.storage.list(&format!("certs/{}", Key::new(&[issuer.as_str()]))).await? {
            let stored = match self.storage.load(&key).await {
                Ok(Some(stored)) => stored,
                // One that is damaged is told of when its own turn comes.
                Ok(None) | Err(StorageError::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            if let Ok(cert) = parse(&stored.value, &[])
                && names.iter().any(|name| cert.bundle.covers(std::slice::from_ref(name)))
            {
                found.push(cert.bundle);
            }
        }
        Ok(found)
    }

    pub(super) async fn load_attempts(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        fingerprint: &str,
    ) -> Option<Attempts> {
        let found = match self.storage.load(&attempts_key(issuer, id)).await {
            Ok(found) => found?,
            Err(error) => {
                tracing::warn!(certificate = %id, %error, "former attempts cannot be read; the retry schedule begins anew");
                return None;
            }
        };
        let stored: StoredAttempts = serde_json::from_slice(&found.value).ok()?;
        (stored.fingerprint == fingerprint).then(|| Attempts {
            failures: stored.failures,
            until: SystemTime::UNIX_EPOCH + Duration::from_secs(stored.until),
            parked: stored.parked,
            failure: Failure {
                class: FailureClass::parse(&stored.class).unwrap_or(FailureClass::Config),
                message: stored.message,
            },
        })
    }

    pub(super) async fn store_attempts(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        fingerprint: &str,
        attempts: Option<&Attempts>,
    ) -> Result<(), StorageError> {
        let key = attempts_key(issuer, id);
        let Some(attempts) = attempts else { return self.storage.remove(&key).await };
        let stored = StoredAttempts {
            failures: attempts.failures,
            until: seconds(attempts.until),
            parked: attempts.parked,
            class: attempts.failure.class.as_str().to_owned(),
            message: attempts.failure.message.clone(),
            fingerprint: fingerprint.to_owned(),
        };
        self.storage.store(&key, &encode(&stored)?, Expect::Anything).await.map(|_| ())
    }

    async fn inventory(&self) -> Result<(Inventory, Expect), StorageError> {
        match self.storage.load(&inventory_key()).await? {
            None => Ok((Inventory::default(), Expect::Absent)),
            Some(found) => {
                let damaged = |e: serde_json::Error| StorageError::Damaged {
                    key: inventory_key(),
                    reason: e.to_string(),
                };
                Ok((serde_json::from_slice(&found.value).map_err(damaged)?, Expect::Revision(found.revision)))
            }
        }
    }
}

/// Where a certificate is kept, and what a process takes the lease of before it orders.
pub(super) fn cert_key(issuer: &IssuerId, id: &CertId) -> Key {
    Key::new(&["certs", issuer.as_str(), id.as_str()])
}

fn attempts_key(issuer: &IssuerId, id: &CertId) -> Key {
    Key::new(&["attempts", issuer.as_str(), id.as_str()])
}

fn inventory_key() -> Key {
    Key::new(&["inventory"])
}

fn parse(value: &[u8], names: &[HostPattern]) -> Result<HeldCert, String> {
    let stored: StoredCert = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    let issued = IssuedCert {
        chain_pem: stored.chain,
        key_pem: Secret::new(stored.key),
        resumed: true,
        spent: Spent::default(),
    };
    HeldCert::prove(&issued, names, SystemTime::UNIX_EPOCH + Duration::from_secs(stored.stored_at))
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, StorageError> {
    serde_json::to_vec(value)
        .map_err(|e| StorageError::Io { what: "cannot encode".into(), reason: e.to_string() })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
