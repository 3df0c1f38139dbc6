//! The account at one CA: made once, kept, found again by its key.

use instant_acme::{Account, Error, Key as AccountKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};

use super::client::RecordingClient;
use super::problem;
use crate::issuer::{FailureClass, IssueError, IssuerId, Retry};
use crate::storage::{Expect, Key, Revision, Storage, StorageError};

/// What is kept. The key is written before the CA hears of it: a crash in between finds the same account again.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredAccount {
    pub(super) directory: String,
    /// PKCS#8 DER, base64.
    pub(super) key: String,
    /// The account's URL, once the CA has told it.
    pub(super) url: Option<String>,
}

/// Why there is no account.
pub(super) enum AccountError {
    Acme(Error),
    Issue(IssueError),
}

impl From<Error> for AccountError {
    fn from(error: Error) -> Self {
        Self::Acme(error)
    }
}

/// Loads the account, or makes it. The caller lets one task at a time in.
pub(super) async fn account(
    storage: &dyn Storage,
    issuer: &IssuerId,
    directory: &str,
    email: Option<&str>,
    names: &str,
    client: &RecordingClient,
) -> Result<Account, AccountError> {
    let key = storage_key(issuer);
    let unusable = |error: StorageError| unusable(names, &error);
    let (stored, revision) = load_or_make(storage, &key, directory, &unusable).await?;
    let der = decode(&stored.key).ok_or_else(|| {
        unusable(StorageError::Damaged { key: key.clone(), reason: "the account key is not base64".into() })
    })?;
    if let Some(url) = stored.url {
        return Ok(builder(client)
            .from_parts(url, PrivatePkcs8KeyDer::from(der), directory.to_owned())
            .await?);
    }
    let mut left = super::NONCE_RETRIES;
    let (account, _credentials) = loop {
        let parsed = AccountKey::from_pkcs8_der(PrivatePkcs8KeyDer::from(der.clone()))?;
        let pair = (parsed, PrivatePkcs8KeyDer::from(der.clone()).into());
        match builder(client).create_from_key(pair, directory.to_owned()).await {
            Err(error) if problem::is_bad_nonce(&error) && left > 0 => left -= 1,
            result => break result?,
        }
    };
    if let Some(email) = email {
        let contact = format!("mailto:{email}");
        super::signed!(account.update_contacts(&[&contact]))?;
    }
    let known =
        StoredAccount { directory: directory.into(), key: stored.key, url: Some(account.id().to_owned()) };
    match store(storage, &key, &known, Expect::Revision(revision)).await {
        // Another process registered the same key at the same time: the CA gave both the same account.
        Ok(_) | Err(StorageError::Conflict(_)) => {}
        // The key is kept; the next order asks the CA for the account's URL again.
        Err(error) => tracing::warn!(issuer = %issuer, %error, "the account's URL cannot be kept"),
    }
    tracing::info!(issuer = %issuer, account = account.id(), "account registered at the CA");
    Ok(account)
}

/// The kept account, or a new key that is kept before anybody hears of it. Of two processes that make one, the first wins.
async fn load_or_make(
    storage: &dyn Storage,
    key: &Key,
    directory: &str,
    unusable: &impl Fn(StorageError) -> AccountError,
) -> Result<(StoredAccount, Revision), AccountError> {
    for _ in 0..2 {
        if let Some(found) = storage.load(key).await.map_err(unusable)? {
            let account: StoredAccount = serde_json::from_slice(&found.value)
                .map_err(|e| unusable(StorageError::Damaged { key: key.clone(), reason: e.to_string() }))?;
            return Ok((account, found.revision));
        }
        let (_, der) = AccountKey::generate_pkcs8()?;
        let made =
            StoredAccount { directory: directory.into(), key: encode(der.secret_pkcs8_der()), url: None };
        match store(storage, key, &made, Expect::Absent).await {
            Ok(revision) => return Ok((made, revision)),
            Err(StorageError::Conflict(_)) => {}
            Err(error) => return Err(unusable(error)),
        }
    }
    Err(unusable(StorageError::Conflict(key.clone())))
}

/// Forgets the account's URL after `accountDoesNotExist`; the next call registers the same key again.
pub(super) async fn forget_url(storage: &dyn Storage, issuer: &IssuerId) -> Result<(), StorageError> {
    let key = storage_key(issuer);
    let Some(found) = storage.load(&key).await? else { return Ok(()) };
    if let Ok(mut account) = serde_json::from_slice::<StoredAccount>(&found.value) {
        account.url = None;
        let value = serde_json::to_vec(&account).map_err(|e| StorageError::Io {
            what: "cannot write the account".into(),
            reason: e.to_string(),
        })?;
        storage.store(&key, &value, Expect::Revision(found.revision)).await?;
    }
    Ok(())
}

fn builder(client: &RecordingClient) -> instant_acme::AccountBuilder {
    Account::builder_with_http(Box::new(client.clone()))
}

pub(super) fn storage_key(issuer: &IssuerId) -> Key {
    Key::new(&["accounts", issuer.as_str()])
}

pub(super) async fn store(
    storage: &dyn Storage,
    key: &Key,
    account: &StoredAccount,
    expect: Expect,
) -> Result<Revision, StorageError> {
    let value = serde_json::to_vec(account)
        .map_err(|e| StorageError::Io { what: "cannot write the account".into(), reason: e.to_string() })?;
    storage.store(key, &value, expect).await
}

/// The account is never replaced by itself: what pins the old one (CAA, limits) would not know the new one.
fn unusable(names: &str, error: &StorageError) -> AccountError {
    let advice = match error {
        StorageError::Damaged { .. } => {
            " Restore that file below the state directory, or move it away to register a new account."
        }
        StorageError::Conflict(_) | StorageError::Io { .. } => "",
    };
    let message = format!(
        "{names}: the account's key cannot be read or kept: {error}.{advice} No CA was asked; looked at again by itself."
    );
    AccountError::Issue(IssueError::new(FailureClass::Config, Retry::Backoff, message))
}

pub(super) fn encode(bytes: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    BASE64_STANDARD.encode(bytes)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::prelude::{BASE64_STANDARD, Engine};
    BASE64_STANDARD.decode(text).ok()
}
