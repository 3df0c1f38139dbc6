//! Ordering certificates by ACME (RFC 8555). The only room that names `instant_acme`.

mod account;
mod authorize;
mod client;
mod facts;
mod journal;
mod key;
mod order;
mod problem;
mod spec;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use self::account::AccountError;
use self::client::RecordingClient;
use self::journal::OrderJournal;
use self::problem::Context;
use crate::challenge::ChallengeSolver;
use crate::clock::SharedClock;
use crate::http_client::{HttpClient, HttpError};
use crate::issuer::{IssueError, IssueRequest, IssuedCert, Issuer, IssuerId, Progress, Step};
use crate::storage::Storage;

pub use spec::{AcmeSpec, LETS_ENCRYPT, LETS_ENCRYPT_STAGING};

/// For one exchange with the CA.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// instant-acme sends a request three times when its nonce is refused; a CA that refuses one in five still gets there with
/// this many more rounds (a request refused for its nonce was not processed, so sending it again is always right).
const NONCE_RETRIES: u32 = 8;

/// Awaits a signed request, again when only its nonce was refused.
macro_rules! signed {
    ($call:expr) => {{
        let mut left = crate::acme::NONCE_RETRIES;
        loop {
            match $call.await {
                Err(error) if crate::acme::problem::is_bad_nonce(&error) && left > 0 => left -= 1,
                result => break result,
            }
        }
    }};
}
use signed;

/// One CA, one account, one way to answer DNS-01.
#[derive(Debug)]
pub struct AcmeIssuer {
    id: IssuerId,
    spec: AcmeSpec,
    http: HttpClient,
    solver: Arc<dyn ChallengeSolver>,
    storage: Arc<dyn Storage>,
    clock: SharedClock,
    /// One task at a time looks for the account, so that two first orders do not register twice.
    registering: Mutex<()>,
}

impl AcmeIssuer {
    /// Asks nobody yet. Errors if `ca_root` cannot be read.
    pub fn new(
        spec: AcmeSpec,
        solver: Arc<dyn ChallengeSolver>,
        storage: Arc<dyn Storage>,
        clock: SharedClock,
    ) -> Result<Self, HttpError> {
        let http = HttpClient::new(spec.ca_root.as_deref(), EXCHANGE_TIMEOUT)?;
        let id = Self::id_of(&spec);
        Ok(Self { id, spec, http, solver, storage, clock, registering: Mutex::new(()) })
    }

    /// The identity of a CA: its directory. The account is one for each directory, and its contact is no part of it.
    pub fn id_of(spec: &AcmeSpec) -> IssuerId {
        IssuerId::new(spec.directory.trim_start_matches("https://").trim_start_matches("http://"))
    }

    fn ca(&self) -> String {
        let url = self.spec.directory.parse::<http::Uri>().ok();
        url.and_then(|u| u.host().map(ToOwned::to_owned)).unwrap_or_else(|| self.spec.directory.clone())
    }

    async fn account(
        &self,
        client: &RecordingClient,
        names: &str,
    ) -> Result<instant_acme::Account, IssueError> {
        let _one_at_a_time = self.registering.lock().await;
        let email = self.spec.email.as_deref();
        account::account(&*self.storage, &self.id, &self.spec.directory, email, names, client).await.map_err(
            |error| match error {
                AccountError::Issue(error) => error,
                AccountError::Acme(error) => {
                    let context =
                        Context { ca: &self.ca(), names, doing: "opening the account", validating: false };
                    problem::judge(&error, client.last().as_ref(), &context, self.clock.now())
                }
            },
        )
    }
}

#[async_trait]
impl Issuer for AcmeIssuer {
    fn id(&self) -> &IssuerId {
        &self.id
    }

    async fn issue(&self, request: &IssueRequest, progress: &dyn Progress) -> Result<IssuedCert, IssueError> {
        let names = request.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let client = RecordingClient::new(self.http.clone(), self.clock.clone());
        let journal = OrderJournal::new(&*self.storage, &self.id, request);
        progress.step(Step::Account);
        let mut forgotten = false;
        loop {
            let account = self.account(&client, &names).await?;
            let order = order::OrderRun {
                account: &account,
                client: &client,
                journal: &journal,
                solver: &*self.solver,
                clock: &*self.clock,
                key_kind: self.spec.key,
                ca: &self.ca(),
                names: &names,
                request,
                progress,
            };
            match order.run().await {
                Err(order::OrderError::AccountGone) if order.pins_account() => {
                    return Err(order.account_is_pinned());
                }
                Err(order::OrderError::AccountGone) if !forgotten => {
                    // Only the CA's word that the account does not exist gets here: the same key is registered again.
                    forgotten = true;
                    tracing::warn!(issuer = %self.id, "the CA does not know the account any more; registering its key again");
                    account::forget_url(&*self.storage, &self.id)
                        .await
                        .map_err(|e| journal::failed(&names, &e))?;
                    journal.discard().await.map_err(|e| journal::failed(&names, &e))?;
                }
                result => return result.map_err(|error| error.into_issue_error(&names)),
            }
        }
    }

    async fn stored(&self, request: &IssueRequest) {
        let journal = OrderJournal::new(&*self.storage, &self.id, request);
        if let Err(error) = journal.discard().await {
            tracing::warn!(%error, "a finished order stays in the journal; the next renewal looks at it and starts anew");
        }
    }
}
