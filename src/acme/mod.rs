//! Ordering certificates by ACME (RFC 8555). The only room that names `instant_acme`.

mod account;
mod authorize;
mod chain;
mod client;
mod facts;
mod import;
mod journal;
mod jws;
mod kept;
mod key;
mod known;
mod limits;
mod manage;
mod order;
mod place;
mod problem;
mod renewal;
mod session;
mod spec;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use instant_acme::Error;
use serde_json::json;
use tokio::sync::Mutex;

use self::account::{AccountError, Opened, Opening};
use self::client::{RecordingClient, Skew};
use self::journal::OrderJournal;
use self::order::OrderError;
use self::problem::Context;
use self::session::Directory;
use crate::challenge::ChallengeSolver;
use crate::clock::SharedClock;
use crate::http_client::{HttpClient, HttpError};
use crate::issuer::{
    Budget, FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, IssuerId, Progress, RenewalHint,
    Retry, Spent, Step,
};
use crate::storage::{Key, Storage};

pub use facts::names_in_dns;
pub use import::{forget_account, import_account};
pub use known::{KNOWN_CAS, KnownCa, LETS_ENCRYPT, LETS_ENCRYPT_STAGING};
pub use manage::{AccountError as ManageError, AccountInfo, Accounts};
pub use renewal::{certificate_id, renewal_window};
pub use spec::{AcmeSpec, EabSpec};

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

/// One CA, one account, one way to answer a challenge.
#[derive(Debug)]
pub struct AcmeIssuer {
    id: IssuerId,
    /// The CA whatever the profile: accounts and limits are its.
    ca: IssuerId,
    budget: Option<Budget>,
    spec: AcmeSpec,
    http: HttpClient,
    solver: Arc<dyn ChallengeSolver>,
    storage: Arc<dyn Storage>,
    clock: SharedClock,
    skew: Arc<Skew>,
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
        let (id, ca) = (Self::id_of(&spec), ca_of(&spec));
        let budget = Self::budget_of(&spec);
        let (skew, registering) = (Arc::default(), Mutex::new(()));
        Ok(Self { id, ca, budget, spec, http, solver, storage, clock, skew, registering })
    }

    /// The identity of a CA as a certificate's issuer: its directory and the profile. The contact is no part of it.
    pub fn id_of(spec: &AcmeSpec) -> IssuerId {
        let ca = ca_of(spec);
        match &spec.profile {
            None => ca,
            Some(profile) => IssuerId::new(&format!("{ca}.profile.{profile}")),
        }
    }

    /// What the CA allows, and whom it is counted for; `None` if nobody counts.
    pub fn budget_of(spec: &AcmeSpec) -> Option<Budget> {
        let known = || spec.known().and_then(|known| known.limits).map(|limits| limits());
        spec.limits.clone().or_else(known).map(|limits| Budget { ca: ca_of(spec), limits })
    }

    /// Where the account at a CA is kept: a JSON object whose `url` is the account's, once it is registered.
    pub fn account_key(spec: &AcmeSpec) -> Key {
        kept::storage_key(&ca_of(spec))
    }

    fn host(&self) -> String {
        self.spec.host()
    }

    fn client(&self) -> RecordingClient {
        RecordingClient::new(self.http.clone(), self.clock.clone(), self.skew.clone())
    }

    fn judge(&self, error: &Error, client: &RecordingClient, names: &str, doing: &str) -> IssueError {
        let context = Context { ca: &self.host(), names, doing, validating: false };
        problem::judge(error, client.last().as_ref(), &context, self.clock.now())
    }

    async fn directory(&self, client: &RecordingClient, names: &str) -> Result<Directory, IssueError> {
        let directory = Directory::fetch(client, &self.spec.directory).await;
        directory.map_err(|e| self.judge(&e, client, names, "reading the directory"))
    }

    /// The profile is one that the CA offers: seen before anything is counted.
    fn check_profile(&self, directory: &Directory, names: &str) -> Result<(), IssueError> {
        let Some(profile) = &self.spec.profile else { return Ok(()) };
        let offered = &directory.meta.profiles;
        if offered.contains_key(profile) {
            return Ok(());
        }
        let offers = match offered.len() {
            0 => "it offers no profiles: leave acme.profile out".to_owned(),
            _ => {
                let all: Vec<String> = offered.keys().take(20).map(|p| format!("`{}`", plain(p))).collect();
                format!("it offers {}: correct acme.profile", all.join(", "))
            }
        };
        let message = format!(
            "{names}: {} has no profile `{profile}`; {offers}, then `starlock reload`. Nothing was ordered.",
            self.host()
        );
        Err(IssueError::new(FailureClass::Config, Retry::Park, message))
    }

    /// For orders: with a profile that the CA has.
    async fn open(&self, client: &RecordingClient, names: &str) -> Result<Opened, IssueError> {
        let directory = self.directory(client, names).await?;
        self.check_profile(&directory, names)?;
        self.open_at(client, names, directory).await
    }

    async fn open_at(
        &self,
        client: &RecordingClient,
        names: &str,
        directory: Directory,
    ) -> Result<Opened, IssueError> {
        let _one_at_a_time = self.registering.lock().await;
        let (storage, spec, host) = (&*self.storage, &self.spec, self.host());
        let opening = Opening { storage, ca: &self.ca, host: &host, spec, names, client, directory };
        opening.open().await.map_err(|error| match error {
            AccountError::Issue(error) => error,
            AccountError::Acme(error) => self.judge(&error, client, names, "opening the account"),
        })
    }

    async fn order(
        &self,
        request: &IssueRequest,
        progress: &dyn Progress,
        names: &str,
        spent: &StdMutex<Spent>,
    ) -> Result<IssuedCert, IssueError> {
        let client = self.client();
        let journal = OrderJournal::new(&*self.storage, &self.id, request);
        progress.step(Step::Account);
        let (mut forgotten, mut rolled) = (false, false);
        loop {
            let opened = self.open(&client, names).await?;
            if opened.registered {
                spent.lock().unwrap_or_else(PoisonError::into_inner).registered = true;
            }
            let order = order::OrderRun {
                account: &opened.account,
                session: &opened.session,
                spec: &self.spec,
                spent,
                client: &client,
                journal: &journal,
                solver: &*self.solver,
                clock: &*self.clock,
                ca: &self.host(),
                names,
                request,
                progress,
            };
            match order.run().await {
                Err(OrderError::AccountGone) if self.spec.pinned => {
                    return Err(self.pinned_account_gone(names, opened.account.id()));
                }
                Err(OrderError::AccountGone) if !forgotten => {
                    // Only the CA's word that the account does not exist gets here: the same key is registered again.
                    forgotten = true;
                    tracing::warn!(issuer = %self.id, "the CA does not know the account any more; registering its key again");
                    let forget = account::forget_url(&*self.storage, &self.ca);
                    forget.await.map_err(|e| journal::failed(names, &e))?;
                    journal.discard().await.map_err(|e| journal::failed(names, &e))?;
                }
                Err(OrderError::Verdict(error)) if !rolled && error.class == FailureClass::Config => {
                    rolled = true;
                    if !account::has_another_key(&*self.storage, &self.ca, &opened.session.key).await {
                        return Err(error);
                    }
                    tracing::info!(issuer = %self.id, "the account has another key since the order began; going on with it");
                }
                result => return result.map_err(|error| error.into_issue_error(names)),
            }
        }
    }

    /// Another account would be refused by what names the old one.
    fn pinned_account_gone(&self, names: &str, url: &str) -> IssueError {
        let message = format!(
            "{names}: {} does not know the account {url} any more, and {}. {}.",
            self.host(),
            account::PINNED,
            account::register_anew(&self.ca)
        );
        IssueError::new(FailureClass::Config, Retry::Park, message)
    }
}

#[async_trait]
impl Issuer for AcmeIssuer {
    fn id(&self) -> &IssuerId {
        &self.id
    }

    fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    async fn issue(&self, request: &IssueRequest, progress: &dyn Progress) -> Result<IssuedCert, IssueError> {
        let names = request.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let spent = StdMutex::new(Spent::default());
        let result = self.order(request, progress, &names, &spent).await;
        let spent = spent.into_inner().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(issued) => Ok(IssuedCert { spent: Spent { signed: true, ..spent }, ..issued }),
            Err(error) => {
                let spent = Spent { open: self.resumes(request).await, ..spent };
                Err(IssueError { spent, ..error })
            }
        }
    }

    /// A record that cannot be read may be of one.
    async fn resumes(&self, request: &IssueRequest) -> bool {
        match OrderJournal::new(&*self.storage, &self.id, request).load().await {
            Ok(kept) => kept.is_some_and(|order| order.url.is_some()),
            Err(_) => true,
        }
    }

    /// What cannot be read is no reason to count: the order says what is wrong with it.
    async fn registered(&self) -> bool {
        match kept::Kept::load(&*self.storage, &self.ca).await {
            Ok(kept) => kept.is_some_and(|kept| kept.account.url.is_some()),
            Err(_) => true,
        }
    }

    /// The next poll is when the CA said, within 1 h and 24 h. Spreading the polls is the caller's.
    async fn renewal_hint(&self, leaf: &[u8]) -> Result<Option<RenewalHint>, IssueError> {
        let client = self.client();
        let what = "renewal information";
        let directory = self.directory(&client, what).await?;
        let hint = renewal::hint(&client, &directory, leaf, self.clock.now()).await;
        hint.map_err(|e| self.judge(&e, &client, what, "asking when to renew"))
    }

    async fn revoke(&self, leaf: &[u8], reason: u8) -> Result<(), IssueError> {
        let (client, what) = (self.client(), "revocation");
        let directory = self.directory(&client, what).await?;
        let opened = self.open_at(&client, what, directory).await?;
        let Some(url) = opened.session.directory.revoke_cert.clone() else {
            let message = format!("{} does not revoke certificates by ACME", self.host());
            return Err(IssueError::new(FailureClass::Config, Retry::Park, message));
        };
        let payload = json!({ "certificate": jws::base64url(leaf), "reason": reason });
        match opened.session.post(&url, &payload).await {
            Ok(_) => Ok(()),
            Err(Error::Api(refusal)) if problem::kind(&refusal) == "alreadyRevoked" => Ok(()),
            Err(error) => Err(self.judge(&error, &client, what, "revoking the certificate")),
        }
    }

    async fn stored(&self, request: &IssueRequest) {
        let journal = OrderJournal::new(&*self.storage, &self.id, request);
        if let Err(error) = journal.discard().await {
            tracing::warn!(%error, "a finished order stays in the journal; the next renewal looks at it and starts anew");
        }
    }
}

/// The CA of a directory, whatever the profile.
fn ca_of(spec: &AcmeSpec) -> IssuerId {
    IssuerId::new(spec.directory.trim_start_matches("https://").trim_start_matches("http://"))
}

/// A CA's words go into logs and terminals.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
