//! Certificates and attempts as storage holds them.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::inventory::{Noted, PartLocks};
use super::policy::Held;
use crate::clock;
use crate::issuer::{IssuedCert, Issuer, IssuerId};
use crate::name::HostPattern;
use crate::storage::{Expect, Key, Storage, StorageError, json_fault};
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

    /// The id of files that are for `names` now; `digest` is of their paths.
    pub(super) fn of_files(names: &[HostPattern], digest: &[u8]) -> Self {
        let short: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
        let first = names
            .first()
            .map_or_else(|| "none".to_owned(), ToString::to_string)
            .replace('*', "wildcard")
            .replace(':', "-");
        Self(format!("{first}-file-{short}").into())
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
    /// Proves that the parts belong together and are for `names`: what the CA number `issuer` signed at `now` in place of
    /// `predecessor`. The error is for a person.
    pub(super) fn signed(
        issued: &IssuedCert,
        names: &[HostPattern],
        now: SystemTime,
        issuer: u8,
        predecessor: Option<&Self>,
    ) -> Result<Self, String> {
        let bundle = prove(&issued.chain_pem, issued.key_pem.expose(), names)?;
        let dates = (bundle.not_before(), bundle.not_after());
        let held = Held::signed(dates, now, seed(&bundle), issuer, predecessor.map(|p| &p.held));
        Ok(Self { bundle: Arc::new(bundle), held })
    }

    /// Whether it is served rather than `other`: what a person went back to last, then what is valid, then what is valid longer.
    pub(super) fn is_better_than(&self, other: &Self, now: SystemTime) -> bool {
        let chosen = |a: &Self, b: &Self| {
            a.held.rolled_back && a.held.not_after > now && a.held.stored_at >= b.held.stored_at
        };
        match (chosen(self, other), chosen(other, self)) {
            (true, false) => true,
            (false, true) => false,
            _ => self.held.not_after > other.held.not_after,
        }
    }

    /// The leaf in DER.
    pub(super) fn leaf(&self) -> Arc<[u8]> {
        self.bundle.certified_key().cert.first().map_or_else(|| Arc::from([]), |leaf| leaf.as_ref().into())
    }
}

fn prove(chain_pem: &str, key_pem: &str, names: &[HostPattern]) -> Result<Bundle, String> {
    let bundle = Bundle::from_pem(chain_pem, key_pem).map_err(|e| e.to_string())?;
    if !bundle.covers(names) {
        return Err(format!("it is for {:?} and not for all of {names:?}", bundle.names()));
    }
    Ok(bundle)
}

fn seed(bundle: &Bundle) -> u64 {
    let digest = Sha256::digest(bundle.serial());
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// One value holds everything: storing it is one transaction.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredCert {
    names: Vec<String>,
    pub(super) chain: String,
    pub(super) key: String,
    /// By our clock; the moment at which a person went back to it, if one did.
    stored_at: u64,
    #[serde(default)]
    hurried: bool,
    #[serde(default)]
    rolled_back: bool,
    #[serde(default)]
    bunched: bool,
    /// Nothing could be made of it; the configuration of that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) useless: Option<String>,
}

impl StoredCert {
    /// What cannot be served at all, as it came.
    pub(super) fn useless(issued: &IssuedCert, names: &[HostPattern], now: SystemTime, config: &str) -> Self {
        Self {
            names: names.iter().map(ToString::to_string).collect(),
            chain: issued.chain_pem.clone(),
            key: issued.key_pem.expose().to_owned(),
            stored_at: seconds(now),
            hurried: false,
            rolled_back: false,
            bunched: false,
            useless: Some(config.to_owned()),
        }
    }

    pub(super) fn new(issued: &IssuedCert, cert: &HeldCert) -> Self {
        Self {
            names: cert.bundle.names().iter().map(ToString::to_string).collect(),
            chain: issued.chain_pem.clone(),
            key: issued.key_pem.expose().to_owned(),
            stored_at: seconds(cert.held.stored_at),
            hurried: cert.held.hurried,
            rolled_back: cert.held.rolled_back,
            bunched: cert.held.bunched,
            useless: None,
        }
    }

    /// What it is for, as far as that can be read.
    pub(super) fn names(&self) -> impl Iterator<Item = HostPattern> {
        self.names.iter().filter_map(|name| HostPattern::parse(name).ok())
    }
}

/// What storage holds for one set of names.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// What to serve.
    pub(super) best: Option<HeldCert>,
    /// The CAs that have signed for this set before.
    pub(super) signers: Vec<u8>,
    /// Something was stored and is gone. For a person.
    pub(super) lost: Option<String>,
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
    pub(super) parts: Arc<PartLocks>,
}

impl CertRecords {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, parts: Arc::default() }
    }

    /// Reads what is held of any of the CAs, and chooses the best of it.
    pub(super) async fn holdings(
        &self,
        issuers: &[Arc<dyn Issuer>],
        id: &CertId,
        names: &[HostPattern],
        now: SystemTime,
    ) -> Result<Holdings, StorageError> {
        let mut holdings = Holdings::default();
        for (issuer, number) in issuers.iter().zip(0u8..) {
            match self.load(issuer.id(), id, names, number).await? {
                Found::Cert(cert) => {
                    holdings.signers.push(number);
                    if holdings.best.as_ref().is_none_or(|best| cert.is_better_than(best, now)) {
                        holdings.best = Some(cert);
                    }
                }
                Found::Lost(message) => holdings.lost = holdings.lost.or(Some(message)),
                Found::Damaged => holdings.signers.push(number),
                Found::Nothing => {}
            }
        }
        Ok(holdings)
    }

    /// Reads a certificate. A damaged one is set aside and its previous generation used, if there is one.
    pub(super) async fn load(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        names: &[HostPattern],
        number: u8,
    ) -> Result<Found, StorageError> {
        let key = cert_key(issuer, id);
        let current = match self.storage.load(&key).await {
            Ok(Some(found)) => parse(&found.value, names, number),
            Ok(None) => {
                // Set aside by a former look; its predecessor is still the last good one.
                if let Some(cert) = self.previous(&key, id, names, number).await? {
                    return Ok(Found::Cert(cert));
                }
                return Ok(match self.noted(&key).await? {
                    Some(Noted::SetAside) => Found::Damaged,
                    Some(Noted::Stored) => Found::Lost(format!(
                        "storage held a certificate for {names:?} and does not any more ({key}). Nothing is ordered, so that a lost \
                         volume does not use up the CA's limits. Restore the state directory, or remove inventory.json and the \
                         directory inventory from it to begin anew"
                    )),
                    None => Found::Nothing,
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
        self.note(&key, Noted::SetAside).await?;
        let place = self.storage.set_aside(&key).await?;
        tracing::error!(certificate = %id, place, reason, "a stored certificate is damaged and was set aside");
        Ok(self.previous(&key, id, names, number).await?.map_or(Found::Damaged, Found::Cert))
    }

    async fn previous(
        &self,
        key: &Key,
        id: &CertId,
        names: &[HostPattern],
        number: u8,
    ) -> Result<Option<HeldCert>, StorageError> {
        let parsed = match self.storage.load_previous(key).await {
            Ok(Some(previous)) => parse(&previous.value, names, number),
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
        let stored = StoredCert::new(issued, cert);
        self.storage.store(&key, &encode(&stored)?, Expect::Anything).await?;
        self.note(&key, Noted::Stored).await
    }
}

/// Where a certificate is kept, and what a process takes the lease of before it orders.
pub(super) fn cert_key(issuer: &IssuerId, id: &CertId) -> Key {
    Key::new(&["certs", issuer.as_str(), id.as_str()])
}

pub(super) fn parse(value: &[u8], names: &[HostPattern], issuer: u8) -> Result<HeldCert, String> {
    let stored: StoredCert = serde_json::from_slice(value).map_err(|e| json_fault(&e))?;
    let bundle = prove(&stored.chain, &stored.key, names)?;
    let held = Held {
        not_before: bundle.not_before(),
        not_after: bundle.not_after(),
        stored_at: clock::at(stored.stored_at),
        seed: seed(&bundle),
        issuer,
        hurried: stored.hurried,
        rolled_back: stored.rolled_back,
        bunched: stored.bunched,
    };
    Ok(HeldCert { bundle: Arc::new(bundle), held })
}

pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>, StorageError> {
    serde_json::to_vec(value)
        .map_err(|e| StorageError::Io { what: "cannot encode".into(), reason: e.to_string() })
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
