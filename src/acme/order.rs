//! One order, from its first request to the chain (RFC 8555 section 7.4).

use std::sync::Mutex;
use std::time::Duration;

use instant_acme::{Account, AuthorizationStatus, Error, Identifier, Order, OrderStatus, Problem};
use tokio::time::Instant;

use super::authorize::{VALIDATION_LIMIT, fetch_authorizations};
use super::chain;
use super::client::RecordingClient;
use super::journal::{self, OrderJournal, PendingOrder};
use super::key;
use super::problem::{self, Context};
use super::session::Session;
use super::signed;
use super::spec::AcmeSpec;
use crate::challenge::{Challenge, ChallengeSolver};
use crate::clock::Clock;
use crate::issuer::{FailureClass, IssueError, IssueRequest, IssuedCert, Progress, Retry, Spent, Step};
use crate::name::HostPattern;
use crate::storage::StorageError;
use crate::task;

/// A CA that has not signed by then is down; the order is resumed later.
const ISSUANCE_LIMIT: Duration = Duration::from_secs(600);
pub(super) const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(10);
/// A CA that asks for more is asked again after a day all the same.
const LONGEST_ABSENCE: Duration = Duration::from_secs(24 * 3600);

/// Everything one order needs.
pub(super) struct OrderRun<'a> {
    pub(super) account: &'a Account,
    pub(super) session: &'a Session,
    pub(super) spec: &'a AcmeSpec,
    /// What the CA counts; read when the order has ended, one way or the other.
    pub(super) spent: &'a Mutex<Spent>,
    pub(super) client: &'a RecordingClient,
    pub(super) journal: &'a OrderJournal<'a>,
    pub(super) solver: &'a dyn ChallengeSolver,
    pub(super) clock: &'a dyn Clock,
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

impl OrderRun<'_> {
    pub(super) async fn run(&self) -> Result<IssuedCert, OrderError> {
        self.before_order().await?;
        let (mut order, pending) = self.begin().await?;
        let result = self.complete(&mut order, &pending).await;
        if matches!(&result, Err(OrderError::Dead(error)) if error.class == FailureClass::Validation) {
            self.count_failures(&mut order).await;
        }
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
        // RSA takes seconds of a core.
        let kind = self.spec.key;
        let key_pem = task::blocking(move || key::generate(kind)).await;
        let key_pem = key_pem.map_err(|e| self.config(&format!("cannot make a key: {e}")))?;
        let mut pending = PendingOrder { key_pem, url: None, resumed: false };
        self.journal.save(&pending).await?;
        let order = self.place(&mut pending).await?;
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
            let csr = key::csr(&pending.key_pem, &self.request.names)
                .map_err(|e| self.config(&format!("cannot make the CSR: {e}")))?;
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
        // Counted, whatever becomes of it here.
        self.count(|spent| spent.signed = true);
        self.progress.step(Step::Download);
        if order.state().certificate.is_none() && order.state().status == OrderStatus::Valid {
            return Err(self.dead("the CA says that the order is valid and not where the certificate is"));
        }
        let chain = signed!(order.certificate()).map_err(|error| match self.is_about_the_order(&error) {
            true => self.dead(&format!("the CA does not have the certificate that it signed: {error}")),
            false => self.judge(&error, "fetching the certificate"),
        })?;
        let Some(mut chain_pem) = chain else {
            return Err(
                self.ca_down("the CA went back to processing after it had said the certificate is ready")
            );
        };
        if let Some(wanted) = &self.spec.preferred_chain {
            let alternates = self.client.alternates();
            chain_pem = chain::choose(self.session, chain_pem, &alternates, wanted).await;
        }
        let (key_pem, resumed) = (pending.key_pem.clone(), pending.resumed);
        Ok(IssuedCert { chain_pem, key_pem, resumed, spent: Spent::default() })
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
    pub(super) fn asked_to_wait(&self) -> Option<Duration> {
        self.client.retry_after().and_then(|moment| moment.duration_since(self.clock.now()).ok())
    }

    /// Waits as long as the CA asked, or a little longer each time.
    pub(super) async fn pause(&self, wait: &mut Duration, asked: Option<Duration>) {
        let pause = asked.map_or(*wait, |asked| asked.max(FIRST_POLL));
        *wait = (*wait * 2).min(LONGEST_POLL);
        tokio::time::sleep(pause).await;
    }

    pub(super) fn identifiers(&self) -> Result<Vec<Identifier>, OrderError> {
        let mut identifiers = Vec::with_capacity(self.request.names.len());
        for name in self.request.names.iter() {
            match name {
                HostPattern::Ip(_) => return Err(self.config("an address cannot be proven by DNS-01")),
                name => identifiers.push(Identifier::Dns(name.to_string())),
            }
        }
        Ok(identifiers)
    }

    pub(super) fn judge(&self, error: &Error, doing: &str) -> OrderError {
        if let Error::Api(problem) = error
            && problem::kind(problem) == "accountDoesNotExist"
        {
            return OrderError::AccountGone;
        }
        let context = Context { ca: self.ca, names: self.names, doing, validating: false };
        OrderError::Verdict(problem::judge(error, self.client.last().as_ref(), &context, self.clock.now()))
    }

    pub(super) fn refused(&self, problem: Option<&Problem>, challenge: &Challenge) -> IssueError {
        let Challenge { kind, name, .. } = challenge;
        let doing = format!("validating {name} by {kind}");
        let context = Context { ca: self.ca, names: self.names, doing: &doing, validating: true };
        self.failed(name);
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
            "{}: {} asked to come back in {} min while {doing}. The order is resumed then by itself.",
            self.names,
            self.ca,
            asked.as_secs().div_ceil(60)
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
        answered && self.client.says_gone()
    }

    pub(super) fn ca_down(&self, what: &str) -> OrderError {
        let message = format!("{}: {}: {what}. The order is resumed by itself.", self.names, self.ca);
        OrderError::Verdict(IssueError::new(FailureClass::CaDown, Retry::Backoff, message))
    }

    pub(super) fn config(&self, what: &str) -> OrderError {
        let message = format!("{}: {}: {what}.", self.names, self.ca);
        OrderError::Verdict(IssueError::new(FailureClass::Config, Retry::Park, message))
    }
}

async fn refresh(order: &mut Order) -> Result<(), Error> {
    order.refresh().await.map(|_| ())
}
