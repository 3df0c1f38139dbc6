//! What is kept of an account, and a key roll-over that was interrupted.

use std::time::{Duration, SystemTime};

use instant_acme::Error;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::jws::AccountKey;
use super::problem;
use super::session::Session;
use crate::issuer::IssuerId;
use crate::storage::{Expect, Key, Revision, Storage, StorageError, json_fault};

/// A request that was cut off has been taken, or lost, after this time: its nonce has grown old too.
const ON_ITS_WAY: Duration = Duration::from_secs(600);

/// The key is written before the CA hears of it: a crash in between finds the same account again.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoredAccount {
    pub(super) directory: String,
    /// PKCS#8 DER, base64.
    pub(super) key: String,
    /// The account's URL, once the CA has told it.
    pub(super) url: Option<String>,
    /// The key of a roll-over that the CA has not answered yet: one of the two is the account's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next_key: Option<String>,
    /// When the CA was asked to take it, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next_since: Option<u64>,
    /// A person has deactivated it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) deactivated: bool,
}

/// An account as it stands in storage.
pub(super) struct Kept {
    pub(super) account: StoredAccount,
    key: Key,
    revision: Revision,
}

impl Kept {
    /// The account at `ca`, if one is kept.
    pub(super) async fn load(storage: &dyn Storage, ca: &IssuerId) -> Result<Option<Self>, StorageError> {
        let key = storage_key(ca);
        let Some(found) = storage.load(&key).await? else { return Ok(None) };
        let account = serde_json::from_slice(&found.value)
            .map_err(|e| StorageError::Damaged { key: key.clone(), reason: json_fault(&e) })?;
        Ok(Some(Self { account, key, revision: found.revision }))
    }

    /// The kept account, or a new key that is kept before anybody hears of it. Of two processes that make one, the first wins.
    pub(super) async fn load_or_make(
        storage: &dyn Storage,
        ca: &IssuerId,
        directory: &str,
    ) -> Result<Self, StorageError> {
        let key = storage_key(ca);
        for _ in 0..2 {
            if let Some(kept) = Self::load(storage, ca).await? {
                return Ok(kept);
            }
            let made = AccountKey::generate()
                .map_err(|e| StorageError::Io { what: "cannot make a key".into(), reason: e.to_string() })?;
            let account = StoredAccount {
                directory: directory.to_owned(),
                key: encode(made.der()),
                url: None,
                next_key: None,
                next_since: None,
                deactivated: false,
            };
            match Self::make(storage, ca, account).await {
                Err(StorageError::Conflict(_)) => {}
                made => return made,
            }
        }
        Err(StorageError::Conflict(key))
    }

    /// Keeps the first account of `ca`; a conflict if there is one already.
    pub(super) async fn make(
        storage: &dyn Storage,
        ca: &IssuerId,
        account: StoredAccount,
    ) -> Result<Self, StorageError> {
        let key = storage_key(ca);
        let revision = storage.store(&key, &bytes(&account)?, Expect::Absent).await?;
        Ok(Self { account, key, revision })
    }

    /// Writes it, if nobody else has meanwhile.
    pub(super) async fn save(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let expect = Expect::Revision(self.revision.clone());
        self.revision = storage.store(&self.key, &bytes(&self.account)?, expect).await?;
        Ok(())
    }

    /// The account's key.
    pub(super) fn key(&self) -> Result<AccountKey, StorageError> {
        self.parse(&self.account.key)
    }

    /// Where it is kept, for a person.
    pub(super) fn place(&self) -> String {
        format!("{}.json", self.key.as_str())
    }

    fn parse(&self, key: &str) -> Result<AccountKey, StorageError> {
        let damaged = |reason: String| StorageError::Damaged { key: self.key.clone(), reason };
        let der = decode(key).ok_or_else(|| damaged("the account key is not base64".into()))?;
        AccountKey::from_der(der).map_err(|e| damaged(e.to_string()))
    }

    /// Takes `next` in hand before the CA hears of it.
    pub(super) fn offer(&mut self, next: &AccountKey, now: SystemTime) {
        self.account.next_key = Some(encode(next.der()));
        self.account.next_since = Some(seconds(now));
    }

    /// Ends a roll-over with what the CA said.
    pub(super) fn conclude(&mut self, rolled: bool) {
        if let (Some(next), true) = (self.account.next_key.take(), rolled) {
            self.account.key = next;
        }
        self.account.next_since = None;
    }
}

/// Finds out how an interrupted roll-over ended: the CA knows either key. While the request may still be on its way, a CA that
/// does not know the new key yet decides nothing: the old one is gone on with. The outer error is the CA's, the inner storage's.
pub(super) async fn settle(
    kept: &mut Kept,
    storage: &dyn Storage,
    session: &Session,
) -> Result<Result<(), StorageError>, Error> {
    let Some(next) = kept.account.next_key.clone() else { return Ok(Ok(())) };
    let key = match kept.parse(&next) {
        Ok(key) => key,
        Err(error) => return Ok(Err(error)),
    };
    let asking = Session { key: key.into(), account: None, ..session.clone() };
    let rolled =
        match asking.post(&asking.directory.new_account, &json!({ "onlyReturnExisting": true })).await {
            Ok(_) => true,
            Err(Error::Api(refusal)) if problem::kind(&refusal) == "accountDoesNotExist" => false,
            Err(error) => return Err(error),
        };
    let now = seconds(session.client.now());
    if !rolled && kept.account.next_since.is_some_and(|since| now.abs_diff(since) < ON_ITS_WAY.as_secs()) {
        return Ok(Ok(()));
    }
    tracing::info!(rolled, "an interrupted roll-over of the account's key was settled with the CA");
    kept.conclude(rolled);
    Ok(kept.save(storage).await)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn bytes(account: &StoredAccount) -> Result<Vec<u8>, StorageError> {
    serde_json::to_vec(account)
        .map_err(|e| StorageError::Io { what: "cannot write the account".into(), reason: e.to_string() })
}

pub(super) fn encode(bytes: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    BASE64_STANDARD.encode(bytes)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::prelude::{BASE64_STANDARD, Engine};
    BASE64_STANDARD.decode(text).ok()
}

/// That an account was registered from here, apart from its key: it shows that the key was lost.
#[derive(Serialize, Deserialize)]
struct Registered {
    url: String,
}

/// The URL of the account that was last seen registered at `ca`.
pub(super) async fn noted_registered(
    storage: &dyn Storage,
    ca: &IssuerId,
) -> Result<Option<String>, StorageError> {
    let key = registered_key(ca);
    let Some(found) = storage.load(&key).await? else { return Ok(None) };
    let noted: Registered = serde_json::from_slice(&found.value)
        .map_err(|e| StorageError::Damaged { key, reason: json_fault(&e) })?;
    Ok(Some(noted.url))
}

/// Notes it, if it is not noted so already.
pub(super) async fn note_registered(
    storage: &dyn Storage,
    ca: &IssuerId,
    url: &str,
) -> Result<(), StorageError> {
    if noted_registered(storage, ca).await.is_ok_and(|noted| noted.as_deref() == Some(url)) {
        return Ok(());
    }
    let value = serde_json::to_vec(&Registered { url: url.to_owned() })
        .map_err(|e| StorageError::Io { what: "cannot write the account".into(), reason: e.to_string() })?;
    storage.store(&registered_key(ca), &value, Expect::Anything).await.map(|_| ())
}

/// A person has ended the account: another one may be registered.
pub(super) async fn forget_registered(storage: &dyn Storage, ca: &IssuerId) -> Result<(), StorageError> {
    storage.remove(&registered_key(ca)).await
}

fn registered_key(ca: &IssuerId) -> Key {
    Key::new(&["registered", ca.as_str()])
}

/// Where the account of a CA is kept.
pub(super) fn storage_key(ca: &IssuerId) -> Key {
    Key::new(&["accounts", ca.as_str()])
}
