//! One order, from its first request to the chain (RFC 8555 section 7.4).

use std::time::Duration;

use http::StatusCode;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeStatus, ChallengeType, Error, Identifier, NewOrder, Order,
    OrderStatus, Problem,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use tokio::time::Instant;

use super::client::{LastAnswer, RecordingClient};
use super::journal::{self, OrderJournal, PendingOrder};
use super::problem::{self, Context};
use super::signed;
use crate::challenge::{Challenge, ChallengeSolver};
use crate::clock::Clock;
use crate::issuer::{FailureClass, IssueError, IssueRequest, IssuedCert, KeyKind, Progress, Retry, Step};
use crate::name::{HostName, HostPattern};
use crate::secret::Secret;
use crate::storage::StorageError;

/// A CA that has not looked by then is down.
const VALIDATION_LIMIT: Duration = Duration::from_secs(300);
/// A CA that has not signed by then is down; the order is resumed later.
const ISSUANCE_LIMIT: Duration = Duration::from_secs(600);
const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(10);
/// A CA that asks for more is asked again after a day all the same.
const LONGEST_ABSENCE: Duration = Duration::from_secs(24 * 3600);

/// Everything one order needs.
pub(super) struct OrderRun<'a> {
    pub(super) account: &'a Account,
    pub(super) client: &'a RecordingClient,
    pub(super) journal: &'a OrderJournal<'a>,
    pub(super) solver: &'a dyn ChallengeSolver,
    pub(super) clock: &'a dyn Clock,
    pub(super) key_kind: KeyKind,
    pub(super) ca: &'a str,
    pub(super) names: &'a str,
    pub(super) request: &'a IssueRequest,
    pub(super) progress: &'a dyn Progress,
}

/// Why an order did not end with a certificate.
pub(super) enum OrderError {
    /// `accountDoesNotExist`: the caller registers again, once.
    AccountGone,
    Storage(StorageError),
    Verdict(IssueError),
    /// As a verdict, and this order will never end well: the next attempt makes a new one.
    Dead(IssueError),
}

impl OrderError {
    pub(super) fn into_issue_error(self, names: &str) -> IssueError {
        match self {
            Self::Verdict(error) | Self::Dead(error) => error,
            Self::Storage(error) => journal::failed(names, &error),
            Self::AccountGone => IssueError::new(
                FailureClass::Config,
                Retry::Backoff,
                format!(
                    "{names}: the CA does not know the account, although it was just registered. Tried again by itself."
                ),
            ),
        }
    }
}

impl From<StorageError> for OrderError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

/// An authorization that is not valid yet.
struct Open {
    index: usize,
    challenge: Challenge,
    /// Whether the CA was told in an earlier run.
    told: bool,
}

impl OrderRun<'_> {
    pub(super) async fn run(&self) -> Result<IssuedCert, OrderError> {
        let (mut order, pending) = self.begin().await?;
        let result = self.complete(&mut order, &pending).await;
        let dead = match &result {
            Err(OrderError::Dead(_)) => true,
            Err(OrderError::Verdict(_)) => order.state().status == OrderStatus::Invalid,
            _ => false,
        };
        if dead && let Err(error) = self.journal.discard().await {
            // Told beside what went wrong at the CA, not instead of it.
            tracing::warn!(%error, "an order that failed stays in the journal; the next attempt looks at it first");
        }
        result
    }

    /// The order to work on: the one under way if the CA still knows it, else a new one.
    async fn begin(&self) -> Result<(Order, PendingOrder), OrderError> {
        let kept = self.journal.load().await?;
        if let Some(PendingOrder { key_pem, url: Some(url), .. }) = kept {
            match signed!(self.account.order(url.clone())) {
                Ok(mut order) => {
                    if self.can_go_on(&mut order).await? {
                        self.progress.step(Step::Order { url: url.clone(), resumed: true });
                        return Ok((order, PendingOrder { key_pem, url: Some(url), resumed: true }));
                    }
                    tracing::info!(%url, "the interrupted order cannot end well any more; a new one is made");
                }
                Err(error) if self.is_about_the_order(&error) => {
                    tracing::info!(%url, %error, "the CA does not know the interrupted order any more; a new one is made");
                }
                Err(error) => return Err(self.judge(&error, "resuming the order")),
            }
            self.journal.discard().await?;
        }
        let mut pending = PendingOrder { key_pem: self.new_key()?, url: None, resumed: false };
        self.journal.save(&pending).await?;
        let identifiers = self.identifiers()?;
        let new_order = NewOrder::new(&identifiers);
        let order =
            signed!(self.account.new_order(&new_order)).map_err(|e| self.judge(&e, "creating the order"))?;
        pending.url = Some(order.url().to_owned());
        self.journal.save(&pending).await?;
        self.progress.step(Step::Order { url: order.url().to_owned(), resumed: false });
        Ok((order, pending))
    }

    /// Whether an interrupted order may still end with a certificate. An authorization that is neither pending nor valid never
    /// becomes valid, even where the CA has not said so of the order.
    async fn can_go_on(&self, order: &mut Order) -> Result<bool, OrderError> {
        match order.state().status {
            OrderStatus::Invalid => return Ok(false),
            OrderStatus::Valid => return Ok(order.state().certificate.is_some()),
            OrderStatus::Ready | OrderStatus::Processing => return Ok(true),
            OrderStatus::Pending => {}
        }
        signed!(fetch_authorizations(order)).map_err(|e| self.judge(&e, "reading the authorizations"))?;
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let authorization = next.map_err(|e| self.judge(&e, "reading the authorizations"))?;
            if !matches!(authorization.status, AuthorizationStatus::Pending | AuthorizationStatus::Valid) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn complete(&self, order: &mut Order, pending: &PendingOrder) -> Result<IssuedCert, OrderError> {
        if order.state().status == OrderStatus::Pending {
            self.authorize(order).await?;
            self.wait_for(order, VALIDATION_LIMIT, "waiting for the order to become ready", |status| {
                !matches!(status, OrderStatus::Pending)
            })
            .await?;
        }
        if order.state().status == OrderStatus::Ready {
            self.progress.step(Step::Finalize);
            let csr = self.csr(pending)?;
            signed!(order.finalize_csr(&csr)).map_err(|e| {
                match (&e, self.judge(&e, "finalising the order")) {
                    // The key is the order's: with another kind in the configuration, only another order helps.
                    (Error::Api(problem), OrderError::Verdict(error))
                        if matches!(problem::kind(problem), "badCSR" | "badPublicKey") =>
                    {
                        OrderError::Dead(error)
                    }
                    (_, judged) => judged,
                }
            })?;
        }
        self.wait_for(order, ISSUANCE_LIMIT, "waiting for the certificate", |status| {
            !matches!(status, OrderStatus::Processing | OrderStatus::Ready)
        })
        .await?;
        self.progress.step(Step::Download);
        if order.state().certificate.is_none() && order.state().status == OrderStatus::Valid {
            return Err(self.dead("the CA says that the order is valid and not where the certificate is"));
        }
        let chain = signed!(order.certificate()).map_err(|error| match self.is_about_the_order(&error) {
            true => self.dead(&format!("the CA does not have the certificate that it signed: {error}")),
            false => self.judge(&error, "fetching the certificate"),
        })?;
        match chain {
            Some(chain_pem) => {
                Ok(IssuedCert { chain_pem, key_pem: pending.key_pem.clone(), resumed: pending.resumed })
            }
            None => {
                Err(self.ca_down("the CA went back to processing after it had said the certificate is ready"))
            }
        }
    }

    /// Proves every name whose authorization is not valid yet, batch by batch; records are always taken away again.
    async fn authorize(&self, order: &mut Order) -> Result<(), OrderError> {
        let open = self.open_authorizations(order).await?;
        let challenges: Vec<Challenge> = open.iter().map(|o| o.challenge.clone()).collect();
        for batch in self.solver.batches(&challenges) {
            self.progress.step(Step::Present { records: batch.len() });
            let presented = self.solver.present(&batch).await.map_err(|error| {
                let (class, retry) = match error.permanent {
                    true => (FailureClass::Config, Retry::Park),
                    false => (FailureClass::Dns, Retry::Backoff),
                };
                OrderError::Verdict(IssueError::new(
                    class,
                    retry,
                    format!("{}: {}", self.names, error.message),
                ))
            })?;
            self.progress.step(Step::Validate);
            let outcome = self.validate(order, open.iter().filter(|o| batch.contains(&o.challenge))).await;
            presented.clean_up().await;
            outcome?;
        }
        Ok(())
    }

    async fn open_authorizations(&self, order: &mut Order) -> Result<Vec<Open>, OrderError> {
        signed!(fetch_authorizations(order)).map_err(|e| self.judge(&e, "reading the authorizations"))?;
        let mut open = Vec::new();
        let mut index = 0;
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut authorization = next.map_err(|e| self.judge(&e, "reading the authorizations"))?;
            let status = authorization.status;
            index += 1;
            if status == AuthorizationStatus::Valid {
                continue;
            }
            let name = match authorization.identifier().identifier {
                Identifier::Dns(name) => HostName::parse(name).ok(),
                _ => None,
            };
            let offered = authorization.challenge(ChallengeType::Dns01);
            let (Some(name), Some(challenge)) = (name, offered) else {
                return Err(self.config("the CA does not offer dns-01 for one of the names"));
            };
            open.push(Open {
                index: index - 1,
                challenge: Challenge { name, value: challenge.key_authorization().dns_value() },
                told: challenge.status != ChallengeStatus::Pending,
            });
        }
        Ok(open)
    }

    async fn validate<'o>(
        &self,
        order: &mut Order,
        batch: impl Iterator<Item = &'o Open>,
    ) -> Result<(), OrderError> {
        let batch: Vec<&Open> = batch.collect();
        for open in batch.iter().filter(|o| !o.told) {
            signed!(tell(order, open.index))
                .map_err(|e| self.judge(&e, "telling the CA that the records are there"))?;
        }
        let deadline = Instant::now() + VALIDATION_LIMIT;
        for open in batch {
            let mut wait = FIRST_POLL;
            loop {
                let (status, problem) = signed!(look(order, open.index))
                    .map_err(|e| self.judge(&e, "asking for the validation's result"))?;
                match (status, problem) {
                    (AuthorizationStatus::Valid, _) => break,
                    (AuthorizationStatus::Pending, _) if Instant::now() < deadline => {
                        // Not left before the deadline, whatever the CA asks for: the records stand here.
                        let left = deadline.saturating_duration_since(Instant::now());
                        let asked = self.asked_to_wait().map(|asked| asked.min(left));
                        self.pause(&mut wait, asked).await;
                    }
                    (AuthorizationStatus::Pending, _) => {
                        return Err(self.ca_down("the CA did not finish validating within 5 minutes"));
                    }
                    (_, problem) => {
                        // What the CA says of the order may lag behind; the authorization alone decides.
                        return Err(OrderError::Dead(self.refused(problem.as_ref(), &open.challenge.name)));
                    }
                }
            }
        }
        Ok(())
    }

    async fn wait_for(
        &self,
        order: &mut Order,
        limit: Duration,
        doing: &str,
        done: impl Fn(OrderStatus) -> bool,
    ) -> Result<(), OrderError> {
        let deadline = Instant::now() + limit;
        let mut wait = FIRST_POLL;
        while !done(order.state().status) {
            if Instant::now() >= deadline {
                return Err(
                    self.ca_down(&format!("nothing happened for {} s while {doing}", limit.as_secs()))
                );
            }
            let asked = self.asked_to_wait();
            if let Some(asked) = asked.filter(|asked| Instant::now() + *asked > deadline) {
                return Err(self.come_back(asked, doing));
            }
            self.pause(&mut wait, asked).await;
            signed!(refresh(order)).map_err(|e| self.judge(&e, doing))?;
        }
        match order.state() {
            state if state.status != OrderStatus::Invalid => Ok(()),
            state => {
                let context = Context { ca: self.ca, names: self.names, doing, validating: true };
                let none = || self.ca_down("the order became invalid and the CA gave no reason");
                Err(state.error.as_ref().map_or_else(none, |problem| {
                    let last = self.client.last();
                    OrderError::Verdict(problem::judge_problem(
                        problem,
                        last.as_ref(),
                        &context,
                        self.clock.now(),
                    ))
                }))
            }
        }
    }

    /// How long the CA's last answer asked to wait.
    fn asked_to_wait(&self) -> Option<Duration> {
        self.client.retry_after().and_then(|moment| moment.duration_since(self.clock.now()).ok())
    }

    /// Waits as long as the CA asked, or a little longer each time.
    async fn pause(&self, wait: &mut Duration, asked: Option<Duration>) {
        let pause = asked.map_or(*wait, |asked| asked.max(FIRST_POLL));
        *wait = (*wait * 2).min(LONGEST_POLL);
        tokio::time::sleep(pause).await;
    }

    fn identifiers(&self) -> Result<Vec<Identifier>, OrderError> {
        let mut identifiers = Vec::with_capacity(self.request.names.len());
        for name in self.request.names.iter() {
            match name {
                HostPattern::Ip(_) => return Err(self.config("an address cannot be proven by DNS-01")),
                name => identifiers.push(Identifier::Dns(name.to_string())),
            }
        }
        Ok(identifiers)
    }

    fn new_key(&self) -> Result<Secret, OrderError> {
        let algorithm = match self.key_kind {
            KeyKind::P256 => &PKCS_ECDSA_P256_SHA256,
            KeyKind::P384 => &PKCS_ECDSA_P384_SHA384,
        };
        let key =
            KeyPair::generate_for(algorithm).map_err(|e| self.config(&format!("cannot make a key: {e}")))?;
        Ok(Secret::new(key.serialize_pem()))
    }

    fn csr(&self, pending: &PendingOrder) -> Result<Vec<u8>, OrderError> {
        let bad = |e: rcgen::Error| self.config(&format!("cannot make the CSR: {e}"));
        let key = KeyPair::from_pem(pending.key_pem.expose()).map_err(bad)?;
        let names: Vec<String> = self.request.names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).map_err(bad)?;
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&key).map_err(bad)?.der().to_vec())
    }

    fn judge(&self, error: &Error, doing: &str) -> OrderError {
        if let Error::Api(problem) = error
            && problem::kind(problem) == "accountDoesNotExist"
        {
            return OrderError::AccountGone;
        }
        let context = Context { ca: self.ca, names: self.names, doing, validating: false };
        OrderError::Verdict(problem::judge(error, self.client.last().as_ref(), &context, self.clock.now()))
    }

    fn refused(&self, problem: Option<&Problem>, name: &HostName) -> IssueError {
        let doing = format!("validating {name}");
        let context = Context { ca: self.ca, names: self.names, doing: &doing, validating: true };
        match problem {
            Some(problem) => {
                problem::judge_problem(problem, self.client.last().as_ref(), &context, self.clock.now())
            }
            None => IssueError::new(
                FailureClass::Validation,
                Retry::Backoff,
                format!(
                    "{}: {} refused {name} and gave no reason. Tried again by itself.",
                    self.names, self.ca
                ),
            ),
        }
    }

    /// The CA wants more time than we wait in one go.
    fn come_back(&self, asked: Duration, doing: &str) -> OrderError {
        let moment = self.clock.now() + asked.min(LONGEST_ABSENCE);
        let message = format!(
            "{}: {} asked to come back in {} s while {doing}. The order is resumed then by itself.",
            self.names,
            self.ca,
            asked.as_secs()
        );
        OrderError::Verdict(IssueError::new(FailureClass::CaDown, Retry::At(moment), message))
    }

    fn dead(&self, what: &str) -> OrderError {
        let message = format!("{}: {}: {what}. A new order is made by itself.", self.names, self.ca);
        OrderError::Dead(IssueError::new(FailureClass::CaDown, Retry::Backoff, message))
    }

    /// Whether the CA's answer was about what the URL stands for rather than about the request or the CA's health. A gateway
    /// before the CA may say it in HTML.
    fn is_about_the_order(&self, error: &Error) -> bool {
        if let Error::Api(problem) = error
            && matches!(problem::kind(problem), "malformed" | "unauthorized")
        {
            return true;
        }
        let answered = matches!(error, Error::Api(_) | Error::Json(_));
        let gone = [StatusCode::NOT_FOUND, StatusCode::GONE];
        answered
            && matches!(self.client.last(), Some(LastAnswer::Answer { status, .. }) if gone.contains(&status))
    }

    fn ca_down(&self, what: &str) -> OrderError {
        let message = format!("{}: {}: {what}. The order is resumed by itself.", self.names, self.ca);
        OrderError::Verdict(IssueError::new(FailureClass::CaDown, Retry::Backoff, message))
    }

    fn config(&self, what: &str) -> OrderError {
        let message = format!("{}: {}: {what}.", self.names, self.ca);
        OrderError::Verdict(IssueError::new(FailureClass::Config, Retry::Park, message))
    }
}

/// Fetches what is not known of the authorizations; what was fetched is kept in the order.
async fn fetch_authorizations(order: &mut Order) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

async fn tell(order: &mut Order, index: usize) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    for _ in 0..index {
        authorizations.next().await.transpose()?;
    }
    let Some(mut authorization) = authorizations.next().await.transpose()? else { return Ok(()) };
    match authorization.challenge(ChallengeType::Dns01) {
        Some(mut challenge) => challenge.set_ready().await,
        None => Ok(()),
    }
}

async fn look(order: &mut Order, index: usize) -> Result<(AuthorizationStatus, Option<Problem>), Error> {
    let mut authorizations = order.authorizations();
    for _ in 0..index {
        authorizations.next().await.transpose()?;
    }
    let Some(mut authorization) = authorizations.next().await.transpose()? else {
        return Err(Error::Str("an authorization of the order"));
    };
    let state = authorization.refresh().await?;
    Ok((state.status, state.challenges.iter().find_map(|c| c.error.clone())))
}

async fn refresh(order: &mut Order) -> Result<(), Error> {
    order.refresh().await.map(|_| ())
}
