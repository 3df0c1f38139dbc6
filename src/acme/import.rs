//! An account that another program registered: its key is ours from then on.

use super::kept::{Kept, StoredAccount, encode, storage_key};
use super::{AcmeSpec, ca_of};
use crate::storage::{Storage, StorageError};

/// Keeps an account for `spec`'s CA: `key_der` is an ECDSA key on P-256 (PKCS#8), the only kind that orders are signed with, or an RSA
/// key that is rolled over next. `url` is the account's; without it the CA is asked for it at the first order (RFC 8555 section
/// 7.3.1).
///
/// `Ok(false)`: there is an account already, and it is left alone. With `dry` nothing is written.
pub async fn import_account(
    storage: &dyn Storage,
    spec: &AcmeSpec,
    key_der: &[u8],
    url: Option<&str>,
    dry: bool,
) -> Result<bool, StorageError> {
    let ca = ca_of(spec);
    if Kept::load(storage, &ca).await?.is_some() {
        return Ok(false);
    }
    if dry {
        return Ok(true);
    }
    let account = StoredAccount {
        directory: spec.directory.clone(),
        key: encode(key_der),
        url: url.map(ToOwned::to_owned),
        next_key: None,
        next_since: None,
        deactivated: false,
    };
    match Kept::make(storage, &ca, account).await {
        Ok(_) => Ok(true),
        Err(StorageError::Conflict(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes back what [`import_account`] has kept.
pub async fn forget_account(storage: &dyn Storage, spec: &AcmeSpec) -> Result<(), StorageError> {
    storage.remove(&storage_key(&ca_of(spec))).await
}
