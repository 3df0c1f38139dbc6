//! The account at one CA: registered once, kept, found again by its key.

use std::sync::Arc;

use instant_acme::{Account, Error};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_json::json;

use super::client::RecordingClient;
use super::jws::{AccountKey, external_binding};
use super::kept::{self, Kept, StoredAccount};
use super::problem;
use super::session::{Directory, Session};
use super::spec::{AcmeSpec, EabSpec};
use crate::issuer::{FailureClass, IssueError, IssuerId, Retry};
use crate::storage::{Storage, StorageError};
use crate::task;

/// Why a pinned account has no successor.
pub(super) const PINNED: &str = "your DNS names that account (CAA accounturi, dns-account-01 or dns-persist-01), so no other one is \
                                 registered by itself";

/// What a person does who wants another account after all.
pub(super) fn register_anew(ca: &IssuerId) -> String {
    format!(
        "To register a new one, move accounts/{ca}.json and registered/{ca}.json below the state directory away (what of them is \
         there), then `starlock reload`, and put its URL, which the log says, into DNS"
    )
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

/// An account that is ready for orders.
pub(super) struct Opened {
    pub(super) account: Account,
    pub(super) session: Session,
    /// Whether it was registered just now.
    pub(super) registered: bool,
}

/// Who asks, where, for what.
pub(super) struct Opening<'a> {
    pub(super) storage: &'a dyn Storage,
    /// The CA, whatever the profile.
    pub(super) ca: &'a IssuerId,
    /// Its host, for people.
    pub(super) host: &'a str,
    pub(super) spec: &'a AcmeSpec,
    pub(super) names: &'a str,
    pub(super) client: &'a RecordingClient,
    pub(super) directory: Directory,
}

impl Opening<'_> {
    /// Loads the account, or registers it. The caller lets one task at a time in.
    pub(super) async fn open(self) -> Result<Opened, AccountError> {
        if self.spec.pinned {
            self.refuse_a_second().await?;
        }
        let mut kept = Kept::load_or_make(self.storage, self.ca, &self.spec.directory)
            .await
            .map_err(|e| self.unusable(&e))?;
        if kept.account.deactivated {
            return Err(self.config(&format!(
                "the account was deactivated by `starlock accounts deactivate`. To register a new one, move {} below the \
                 state directory away; nothing is ordered before",
                kept.place()
            )));
        }
        let session = |kept: &Kept, account: Option<String>| -> Result<Session, AccountError> {
            let key = kept.key().map_err(|e| self.unusable(&e))?;
            let (client, directory) = (self.client.clone(), self.directory.clone());
            Ok(Session { client, directory, key: Arc::new(key), account })
        };
        if kept.account.next_key.is_some() {
            let asking = session(&kept, None)?;
            kept::settle(&mut kept, self.storage, &asking).await?.map_err(|e| self.unusable(&e))?;
        }
        let mut session = session(&kept, kept.account.url.clone())?;
        if !session.key.signs_orders() {
            return Err(self.config(
                "the account was taken over with an RSA key, and orders are signed with ECDSA on P-256 only. Give it such a key: \
                 `starlock accounts roll-key`; the program that it came from cannot use it any more then",
            ));
        }
        let mut registered = false;
        if session.account.is_none() {
            let url = self.register(&session, &mut registered).await?;
            self.keep(&mut kept, url.clone()).await;
            session.account = Some(url);
        }
        let der = PrivatePkcs8KeyDer::from(session.key.der().to_vec());
        let url = session.account.clone().unwrap_or_default();
        if let Err(error) = kept::note_registered(self.storage, self.ca, &url).await {
            tracing::debug!(issuer = %self.ca, %error, "that the account was registered cannot be noted");
        }
        let account = Account::builder_with_http(Box::new(self.client.clone()))
            .from_parts(url, der, self.spec.directory.clone())
            .await?;
        Ok(Opened { account, session, registered })
    }

    /// An account that DNS names and whose key was lost has no successor: the CA would refuse every order of it.
    async fn refuse_a_second(&self) -> Result<(), AccountError> {
        if Kept::load(self.storage, self.ca).await.map_err(|e| self.unusable(&e))?.is_some() {
            return Ok(());
        }
        let noted = kept::noted_registered(self.storage, self.ca).await.map_err(|e| self.unusable(&e))?;
        match noted {
            None => Ok(()),
            Some(url) => Err(self.config(&format!(
                "the account {url} was registered from here, its key (accounts/{}.json below the state directory) is gone, and {PINNED}. \
                 Restore that file. {}",
                self.ca,
                register_anew(self.ca)
            ))),
        }
    }

    async fn register(&self, session: &Session, registered: &mut bool) -> Result<String, AccountError> {
        let url = &self.directory.new_account;
        let mut payload = json!({ "termsOfServiceAgreed": true });
        if let Some(email) = &self.spec.email {
            payload["contact"] = json!([format!("mailto:{email}")]);
        }
        match &self.spec.eab {
            Some(eab) => payload["externalAccountBinding"] = self.binding(eab, &session.key).await?,
            None if self.directory.meta.external_account_required => {
                let how = self.spec.known().and_then(|ca| ca.eab).map(|how| format!(" ({how})"));
                return Err(self.config(&format!(
                    "the CA wants an external account binding: set acme.eab = {{ kid = \"...\", hmac = {{ file = \"...\" }} }} \
                     with what it gave you{}, then `starlock reload`. Nothing was asked for",
                    how.unwrap_or_default()
                )));
            }
            None => {}
        }
        let answer = match session.post(url, &payload).await {
            Ok(answer) => answer,
            Err(Error::Api(refusal))
                if self.spec.eab.is_some() && problem::is_about_external_account(&refusal) =>
            {
                return Err(self.config(&format!(
                    "the CA refused the external account binding: {}. Check acme.eab: kid and hmac belong together, and some CAs \
                     take them once, or for a few days, only. Get new ones, then `starlock reload`",
                    problem::plain(&refusal)
                )));
            }
            Err(error) => return Err(error.into()),
        };
        *registered = answer.status == http::StatusCode::CREATED;
        let url = answer.headers.get(http::header::LOCATION).and_then(|v| v.to_str().ok());
        let url = url.ok_or(Error::Str("the account's URL"))?.to_owned();
        let news = if *registered {
            "account registered at the CA"
        } else {
            "the CA knows the account's key already"
        };
        tracing::info!(issuer = %self.ca, account = url, "{news}");
        Ok(url)
    }

    async fn binding(&self, eab: &EabSpec, key: &AccountKey) -> Result<serde_json::Value, AccountError> {
        let source = eab.hmac.clone();
        let secret = task::blocking(move || source.resolve()).await;
        let secret = secret.map_err(|e| self.config(&format!("acme.eab.hmac: {e}. No CA was asked")))?;
        let hmac = decode_hmac(secret.expose()).ok_or_else(|| {
            self.config("acme.eab.hmac is not base64url: copy it as the CA shows it. No CA was asked")
        })?;
        Ok(external_binding(&eab.kid, &hmac, key, &self.directory.new_account))
    }

    async fn keep(&self, kept: &mut Kept, url: String) {
        kept.account.url = Some(url);
        match kept.save(self.storage).await {
            // Another process registered the same key at the same time: the CA gave both the same account.
            Ok(()) | Err(StorageError::Conflict(_)) => {}
            // The key is kept; the next order asks the CA for the account's URL again.
            Err(error) => tracing::warn!(issuer = %self.ca, %error, "the account's URL cannot be kept"),
        }
    }

    fn config(&self, what: &str) -> AccountError {
        let message = format!("{}: {}: {what}.", self.names, self.host);
        AccountError::Issue(IssueError::new(FailureClass::Config, Retry::Park, message))
    }

    /// The account is never replaced by itself: what pins the old one (CAA, limits) would not know the new one.
    fn unusable(&self, error: &StorageError) -> AccountError {
        let advice = match error {
            StorageError::Damaged { .. } => {
                " Restore that file below the state directory, or move it away to register a new account."
            }
            StorageError::Conflict(_) | StorageError::Io { .. } => "",
        };
        let message = format!(
            "{}: the account's key cannot be read or kept: {error}.{advice} No CA was asked; looked at again by itself.",
            self.names
        );
        AccountError::Issue(IssueError::new(FailureClass::Config, Retry::Backoff, message))
    }
}

/// Forgets the account's URL after `accountDoesNotExist`; the next call registers the same key again.
pub(super) async fn forget_url(storage: &dyn Storage, ca: &IssuerId) -> Result<(), StorageError> {
    let Some(mut kept) = Kept::load(storage, ca).await? else { return Ok(()) };
    kept.account = StoredAccount { url: None, ..kept.account };
    kept.save(storage).await
}

/// Whether somebody has given the account another key since: what was signed with the former one is refused for that alone.
pub(super) async fn has_another_key(storage: &dyn Storage, ca: &IssuerId, key: &AccountKey) -> bool {
    let kept = Kept::load(storage, ca).await.ok().flatten();
    kept.and_then(|kept| kept.key().ok()).is_some_and(|kept| kept.thumbprint() != key.thumbprint())
}

/// CAs show it in base64url; people paste it with padding, or from a tool that wrote plain base64.
fn decode_hmac(text: &str) -> Option<Vec<u8>> {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
    let text = text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_");
    BASE64_URL_SAFE_NO_PAD.decode(text).ok().filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hmac_key_is_taken_in_either_alphabet() {
        for text in ["-_8", "-_8=", " +/8=\n", "+/8"] {
            assert_eq!(decode_hmac(text).as_deref(), Some(&[0xfb, 0xff][..]), "{text}");
        }
        assert_eq!(decode_hmac("not base64!"), None);
        assert_eq!(decode_hmac(""), None);
    }
}
