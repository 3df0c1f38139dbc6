//! Orders under way, kept so that an interrupted one goes on instead of being paid for twice.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::issuer::{FailureClass, IssueError, IssueRequest, IssuerId, Retry};
use crate::secret::Secret;
use crate::storage::{Expect, Key, Storage, StorageError, json_fault};

/// What is kept of an order: the certificate's key before the CA is asked, the order's URL as soon as there is one.
pub(super) struct PendingOrder {
    pub(super) key_pem: Secret,
    pub(super) url: Option<String>,
    /// Whether a former run made it.
    pub(super) resumed: bool,
}

#[derive(Serialize, Deserialize)]
struct Record {
    names: Vec<String>,
    key: String,
    url: Option<String>,
}

/// The journal of one set of names at one CA.
pub(super) struct OrderJournal<'a> {
    storage: &'a dyn Storage,
    key: Key,
    names: Vec<String>,
}

impl<'a> OrderJournal<'a> {
    pub(super) fn new(storage: &'a dyn Storage, issuer: &IssuerId, request: &IssueRequest) -> Self {
        let names: Vec<String> = request.names.iter().map(ToString::to_string).collect();
        let digest = Sha256::digest(names.join(","));
        let short: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
        let first = names.first().map_or("none", |n| n.as_str());
        let key = Key::new(&["orders", issuer.as_str(), &format!("{first}-{short}")]);
        Self { storage, key, names }
    }

    /// The order under way, if there is a usable record of one.
    pub(super) async fn load(&self) -> Result<Option<PendingOrder>, StorageError> {
        let Some(found) = self.storage.load(&self.key).await? else { return Ok(None) };
        match serde_json::from_slice::<Record>(&found.value) {
            Ok(record) if record.names == self.names => {
                Ok(Some(PendingOrder { key_pem: Secret::new(record.key), url: record.url, resumed: true }))
            }
            Ok(_) => Ok(None),
            Err(error) => {
                let place = self.storage.set_aside(&self.key).await?;
                let error = json_fault(&error);
                tracing::warn!(
                    error,
                    place,
                    "the record of an order is damaged and was set aside; a new order is made"
                );
                Ok(None)
            }
        }
    }

    pub(super) async fn save(&self, order: &PendingOrder) -> Result<(), StorageError> {
        let record = Record {
            names: self.names.clone(),
            key: order.key_pem.expose().to_owned(),
            url: order.url.clone(),
        };
        let value = serde_json::to_vec(&record)
            .map_err(|e| StorageError::Io { what: "cannot write the order".into(), reason: e.to_string() })?;
        self.storage.store(&self.key, &value, Expect::Anything).await?;
        Ok(())
    }

    pub(super) async fn discard(&self) -> Result<(), StorageError> {
        self.storage.remove(&self.key).await
    }
}

/// Storage that does not work is the operator's turn, and no CA was asked.
pub(super) fn failed(names: &str, error: &StorageError) -> IssueError {
    let message =
        format!("{names}: {error}. Nothing is ordered while state cannot be kept; tried again by itself.");
    IssueError::new(FailureClass::Config, Retry::Backoff, message)
}
