//! What a person does to an account: look, roll the key, change the contact, deactivate. Nothing here happens by itself.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::Error;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::RecordingClient;
use super::jws::AccountKey;
use super::kept::{self, Kept};
use super::session::{Directory, Session};
use super::spec::AcmeSpec;
use super::{EXCHANGE_TIMEOUT, ca_of, plain, problem};
use crate::clock::SharedClock;
use crate::http_client::{HttpClient, HttpError};
use crate::storage::{Storage, StorageError};

/// A person waits no longer than this for a CA.
const COMMAND_LIMIT: Duration = Duration::from_secs(55);

/// Why nothing was done, or not everything. For a person.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is nothing to do it to.
    #[error("no account is registered at {0} yet; the first order registers one")]
    None(String),
    /// It was deactivated before.
    #[error("the account at {0} is deactivated")]
    Deactivated(String),
    /// The last roll-over was cut off, and the CA may still get to hear of it.
    #[error(
        "the last roll-over of the key at {0} was cut off and has not ended yet; try again in ten minutes"
    )]
    Rolling(String),
    /// The CA cannot do it.
    #[error("{0} does not support this")]
    Unsupported(String),
    /// The CA said no, or could not be reached.
    #[error("{0}")]
    Ca(String),
    /// The CA did it, or may have, and we could not write it down.
    #[error("{0}")]
    Storage(#[from] StorageError),
    /// `ca_root` cannot be read.
    #[error("{0}")]
    Http(#[from] HttpError),
    /// The CA takes too long.
    #[error("{0} did not answer in time; `starlock accounts show` says what became of it")]
    Slow(String),
}

/// An account as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountInfo {
    /// The CA's word in the configuration, or its host.
    pub ca: String,
    /// Its directory.
    pub directory: String,
    /// The account's URL, for CAA; `None` before it is registered.
    pub url: Option<String>,
    /// RFC 7638 thumbprint of its key.
    pub thumbprint: Option<String>,
    /// `valid`, `deactivated` or `revoked` as the CA says; `None` where it was not asked.
    pub status: Option<String>,
    /// As the CA has them.
    pub contacts: Vec<String>,
    /// Whether a roll-over of the key has not ended yet.
    pub rolling: bool,
}

/// The accounts of a state directory.
#[derive(Clone, Debug)]
pub struct Accounts {
    storage: Arc<dyn Storage>,
    clock: SharedClock,
}

/// RFC 8555 section 7.1.2.
#[derive(Deserialize)]
struct AtTheCa {
    status: String,
    #[serde(default)]
    contact: Vec<String>,
}

/// An account that is registered, and a way to talk about it.
struct Open {
    kept: Kept,
    session: Session,
    url: String,
    host: String,
}

impl Accounts {
    /// Over what orders use.
    pub fn new(storage: Arc<dyn Storage>, clock: SharedClock) -> Self {
        Self { storage, clock }
    }

    /// What is kept of the account at the CA of `spec`. Asks no CA.
    pub async fn kept(&self, spec: &AcmeSpec) -> Result<AccountInfo, AccountError> {
        let kept = Kept::load(&*self.storage, &ca_of(spec)).await?;
        Ok(info(spec, kept.as_ref()))
    }

    /// As [`Accounts::kept`], with what the CA says. Asks it.
    pub async fn show(&self, spec: &AcmeSpec) -> Result<AccountInfo, AccountError> {
        self.in_time(spec, async {
            let open = self.open(spec).await?;
            let answer = open.session.get(&open.url).await;
            let answer = answer.map_err(|e| open.failed(&e, "looking at the account"))?;
            open.told(spec, &answer.body)
        })
        .await
    }

    /// Replaces the account's key (RFC 8555 section 7.3.5). Both keys are kept until the CA has answered: whenever this ends,
    /// the account can still be used. Orders under way go on with the new key.
    pub async fn roll_key(&self, spec: &AcmeSpec) -> Result<AccountInfo, AccountError> {
        self.in_time(spec, async {
            let mut open = self.open(spec).await?;
            let Some(url) = open.session.directory.key_change.clone() else {
                return Err(AccountError::Unsupported(open.host));
            };
            let next = AccountKey::generate().map_err(|e| AccountError::Ca(e.to_string()))?;
            let payload = json!({ "account": open.url, "oldKey": open.session.key.jwk() }).to_string();
            let inner = next.sign(json!({ "jwk": next.jwk(), "url": url }), &payload);
            let inner = inner.map_err(|e| AccountError::Ca(e.to_string()))?;
            if open.kept.account.next_key.is_some() {
                return Err(AccountError::Rolling(open.host));
            }
            open.kept.offer(&next, self.clock.now());
            open.kept.save(&*self.storage).await?;
            match open.session.post(&url, &inner).await {
                Ok(_) => open.kept.conclude(true),
                Err(error @ Error::Api(_)) => {
                    open.kept.conclude(false);
                    open.kept.save(&*self.storage).await?;
                    return Err(open.failed(&error, "rolling the key over; the old key stays"));
                }
                Err(error) => {
                    let doing =
                        "rolling the key over; both keys are kept, and the next order asks which one holds";
                    return Err(open.failed(&error, doing));
                }
            }
            open.kept.save(&*self.storage).await?;
            tracing::info!(account = open.url, thumbprint = next.thumbprint(), "the account has a new key");
            Ok(info(spec, Some(&open.kept)))
        })
        .await
    }

    /// Replaces the contact; `None` takes it away.
    pub async fn contact(&self, spec: &AcmeSpec, email: Option<&str>) -> Result<AccountInfo, AccountError> {
        self.in_time(spec, async {
            let open = self.open(spec).await?;
            let contact: Vec<String> = email.iter().map(|email| format!("mailto:{email}")).collect();
            let answer = open.session.post(&open.url, &json!({ "contact": contact })).await;
            let answer = answer.map_err(|e| open.failed(&e, "changing the contact"))?;
            tracing::info!(account = open.url, "the account's contact was changed");
            open.told(spec, &answer.body)
        })
        .await
    }

    /// Ends the account at the CA (RFC 8555 section 7.3.6). It cannot be undone. Certificates stay valid; nothing can be ordered
    /// or revoked with it any more, and no other one is registered by itself.
    pub async fn deactivate(&self, spec: &AcmeSpec) -> Result<AccountInfo, AccountError> {
        self.in_time(spec, async {
            let mut open = self.open(spec).await?;
            let payload: Value = json!({ "status": "deactivated" });
            let answer = open.session.post(&open.url, &payload).await;
            let answer = answer.map_err(|e| open.failed(&e, "deactivating the account"))?;
            tracing::warn!(account = open.url, "the account was deactivated");
            open.kept.account.deactivated = true;
            open.kept.save(&*self.storage).await?;
            kept::forget_registered(&*self.storage, &ca_of(spec)).await?;
            open.told(spec, &answer.body)
        })
        .await
    }

    async fn in_time<T>(
        &self,
        spec: &AcmeSpec,
        work: impl Future<Output = Result<T, AccountError>>,
    ) -> Result<T, AccountError> {
        let slow = |_| Err(AccountError::Slow(spec.host()));
        tokio::time::timeout(COMMAND_LIMIT, work).await.unwrap_or_else(slow)
    }

    async fn open(&self, spec: &AcmeSpec) -> Result<Open, AccountError> {
        let host = spec.host();
        let kept = Kept::load(&*self.storage, &ca_of(spec)).await?;
        let Some(mut kept) = kept else { return Err(AccountError::None(host)) };
        let Some(url) = kept.account.url.clone() else { return Err(AccountError::None(host)) };
        if kept.account.deactivated {
            return Err(AccountError::Deactivated(host));
        }
        let http = HttpClient::new(spec.ca_root.as_deref(), EXCHANGE_TIMEOUT)?;
        let client = RecordingClient::new(http, self.clock.clone(), Arc::default());
        let failed = |e: &Error, doing: &str| {
            AccountError::Ca(problem::for_a_command(e, client.last().as_ref(), &host, doing))
        };
        let directory = Directory::fetch(&client, &spec.directory).await;
        let directory = directory.map_err(|e| failed(&e, "reading the directory"))?;
        let key = Arc::new(kept.key()?);
        let mut session = Session { client: client.clone(), directory, key, account: Some(url.clone()) };
        kept::settle(&mut kept, &*self.storage, &session)
            .await
            .map_err(|e| failed(&e, "asking which key the account has"))??;
        session.key = Arc::new(kept.key()?);
        Ok(Open { kept, session, url, host })
    }
}

impl Open {
    fn failed(&self, error: &Error, doing: &str) -> AccountError {
        let last = self.session.client.last();
        AccountError::Ca(problem::for_a_command(error, last.as_ref(), &self.host, doing))
    }

    fn told(&self, spec: &AcmeSpec, body: &[u8]) -> Result<AccountInfo, AccountError> {
        let told: AtTheCa =
            serde_json::from_slice(body).map_err(|e| self.failed(&Error::Json(e), "reading the account"))?;
        let contacts = told.contact.iter().take(10).map(|contact| plain(contact)).collect();
        Ok(AccountInfo { status: Some(plain(&told.status)), contacts, ..info(spec, Some(&self.kept)) })
    }
}

fn info(spec: &AcmeSpec, kept: Option<&Kept>) -> AccountInfo {
    let account = kept.map(|kept| &kept.account);
    AccountInfo {
        ca: spec.word(),
        directory: spec.directory.clone(),
        url: account.and_then(|account| account.url.clone()),
        thumbprint: kept.and_then(|kept| kept.key().ok()).map(|key| key.thumbprint()),
        status: account.filter(|account| account.deactivated).map(|_| "deactivated".to_owned()),
        contacts: Vec::new(),
        rolling: account.is_some_and(|account| account.next_key.is_some()),
    }
}
