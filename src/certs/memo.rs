//! What is remembered of a certificate beside itself: failed attempts, and what its CA said of it.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::policy::Window;
use super::record::{CertId, CertRecords, encode, seconds};
use super::state::{Ari, Attempts, Barred, Failure};
use crate::clock;
use crate::issuer::{FailureClass, IssuerId};
use crate::storage::{Expect, Key, StorageError};

#[derive(Serialize, Deserialize)]
struct StoredAttempts {
    failures: u32,
    /// Of what every CA would see.
    until: u64,
    parked: bool,
    class: String,
    message: String,
    /// Attempts of another configuration say nothing about this one.
    fingerprint: String,
    /// In the order of the configuration.
    #[serde(default)]
    lanes: Vec<StoredBarred>,
    /// Failures that every CA would see; all of them if there are no lanes.
    #[serde(default)]
    everywhere: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct StoredBarred {
    failures: u32,
    until: u64,
    parked: bool,
}

#[derive(Serialize, Deserialize)]
struct StoredAri {
    /// What was said of another certificate says nothing about this one.
    serial: String,
    window: Option<(u64, u64)>,
    /// Missing in what older releases wrote: chosen at the next poll.
    #[serde(default)]
    throw: Option<u8>,
    poll_at: u64,
    misses: u8,
    revoked: bool,
}

impl CertRecords {
    pub(super) async fn load_attempts(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        fingerprint: &str,
        now: SystemTime,
    ) -> Option<Attempts> {
        let found = match self.storage.load(&attempts_key(issuer, id)).await {
            Ok(found) => found?,
            Err(error) => {
                tracing::warn!(certificate = %id, %error, "former attempts cannot be read; the retry schedule begins anew");
                return None;
            }
        };
        let stored: StoredAttempts = serde_json::from_slice(&found.value).ok()?;
        let barred = |failures, until, parked| Barred::until(failures, clock::at(until), parked, now);
        (stored.fingerprint == fingerprint).then(|| Attempts {
            failures: stored.failures,
            everywhere: barred(stored.everywhere.unwrap_or(stored.failures), stored.until, stored.parked),
            lanes: stored.lanes.iter().map(|lane| barred(lane.failures, lane.until, lane.parked)).collect(),
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
        let lane = |barred: &Barred| StoredBarred {
            failures: barred.failures,
            until: seconds(barred.until),
            parked: barred.parked,
        };
        let stored = StoredAttempts {
            failures: attempts.failures,
            until: seconds(attempts.everywhere.until),
            parked: attempts.everywhere.parked,
            class: attempts.failure.class.as_str().to_owned(),
            message: attempts.failure.message.clone(),
            fingerprint: fingerprint.to_owned(),
            lanes: attempts.lanes.iter().map(lane).collect(),
            everywhere: Some(attempts.everywhere.failures),
        };
        self.storage.store(&key, &encode(&stored)?, Expect::Anything).await.map(|_| ())
    }

    /// What the CA said of the certificate with `serial`.
    pub(super) async fn load_ari(&self, issuer: &IssuerId, id: &CertId, serial: &str) -> Option<Ari> {
        let found = match self.storage.load(&ari_key(issuer, id)).await {
            Ok(found) => found?,
            Err(error) => {
                tracing::debug!(certificate = %id, %error, "the CA's window cannot be read; it is asked again");
                return None;
            }
        };
        let stored: StoredAri = serde_json::from_slice(&found.value).ok()?;
        (stored.serial == serial).then(|| Ari {
            window: stored.window.map(|(start, end)| Window { start: clock::at(start), end: clock::at(end) }),
            throw: stored.throw,
            poll_at: clock::at(stored.poll_at),
            misses: stored.misses,
            revoked: stored.revoked,
        })
    }

    pub(super) async fn store_ari(
        &self,
        issuer: &IssuerId,
        id: &CertId,
        serial: &str,
        ari: &Ari,
    ) -> Result<(), StorageError> {
        let stored = StoredAri {
            serial: serial.to_owned(),
            window: ari.window.map(|w| (seconds(w.start), seconds(w.end))),
            throw: ari.throw,
            poll_at: seconds(ari.poll_at),
            misses: ari.misses,
            revoked: ari.revoked,
        };
        self.storage.store(&ari_key(issuer, id), &encode(&stored)?, Expect::Anything).await.map(|_| ())
    }

    pub(super) async fn forget_ari(&self, issuer: &IssuerId, id: &CertId) -> Result<(), StorageError> {
        self.storage.remove(&ari_key(issuer, id)).await
    }

    /// Removes what is remembered of certificates that nobody wants any more. `wanted`: CAs with ids.
    pub(super) async fn sweep(&self, wanted: &[(IssuerId, CertId)]) -> Result<usize, StorageError> {
        let keep: BTreeSet<Key> =
            wanted.iter().flat_map(|(issuer, id)| [attempts_key(issuer, id), ari_key(issuer, id)]).collect();
        let mut swept = 0;
        for prefix in [ATTEMPTS, ARI] {
            for key in self.storage.list(prefix).await? {
                if !keep.contains(&key) {
                    self.storage.remove(&key).await?;
                    swept += 1;
                }
            }
        }
        Ok(swept)
    }
}

const ATTEMPTS: &str = "attempts";
const ARI: &str = "renewal-info";

fn attempts_key(issuer: &IssuerId, id: &CertId) -> Key {
    Key::new(&[ATTEMPTS, issuer.as_str(), id.as_str()])
}

fn ari_key(issuer: &IssuerId, id: &CertId) -> Key {
    Key::new(&[ARI, issuer.as_str(), id.as_str()])
}
