//! What a certificate authority looks like to the rest of the house.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::name::{HostName, HostPattern};
use crate::secret::Secret;

/// Who signs, and as whom: part of every storage key, so that a staging certificate is never taken for a real one.
/// Lower-case letters, digits, `-` and `.` only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IssuerId(Arc<str>);

impl IssuerId {
    /// Makes `text` safe for a storage key: other characters become `-`.
    pub fn new(text: &str) -> Self {
        let safe: String = text
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' })
            .collect();
        Self(safe.trim_matches(|c| c == '-' || c == '.').into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IssuerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kind of a certificate's private key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// ECDSA on P-256.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 4096 bits.
    Rsa4096,
}

/// What to sign.
#[derive(Clone, Debug)]
pub struct IssueRequest {
    /// Sorted, without duplicates, not empty.
    pub names: Arc<[HostPattern]>,
    /// The leaf (DER) whose place the new certificate takes. A CA that knows ARI is told (RFC 9773 section 5).
    pub replaces: Option<Arc<[u8]>>,
}

impl IssueRequest {
    /// For names that replace nothing.
    pub fn new(names: Arc<[HostPattern]>) -> Self {
        Self { names, replaces: None }
    }
}

/// What came back. The chain starts with the leaf; the key matches it (the issuer has checked).
#[derive(Clone, Debug)]
pub struct IssuedCert {
    /// PEM, leaf first.
    pub chain_pem: String,
    /// PKCS#8 PEM.
    pub key_pem: Secret,
    /// Whether it comes from an order of an earlier call: it may be old, or known already.
    pub resumed: bool,
    /// What the CA counted for it in this call.
    pub spent: Spent,
}

/// What a CA has counted against its limits during one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// An account was registered.
    pub registered: bool,
    /// A new order was taken.
    pub ordered: bool,
    /// The order was taken as the successor of another certificate (ARI's `replaces`).
    pub replaced: bool,
    /// A certificate was signed, whether or not it came.
    pub signed: bool,
    /// The order is under way still: the next call for the same names goes on with it.
    pub open: bool,
    /// Names whose authorization failed.
    pub failed: Vec<HostName>,
}

/// When the CA wants a certificate to be renewed (RFC 9773 section 4.2). The issuer has checked that the window is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewalHint {
    /// Beginning of the window.
    pub start: SystemTime,
    /// Its end, after `start`.
    pub end: SystemTime,
    /// Where the CA says why, if it does.
    pub explanation: Option<String>,
    /// Ask again then.
    pub again_at: SystemTime,
}

/// So many at once, and one more each `every` (RFC 8555 knows no such thing; CAs document it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many may be used at once.
    pub burst: u32,
    /// After this time one more may be.
    pub every: Duration,
}

/// A CA's limits as it publishes them. `None`: not limited, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CaLimits {
    /// Certificates for one exact set of names.
    pub names: Option<Rate>,
    /// Certificates for one registered domain.
    pub domain: Option<Rate>,
    /// Orders of one account.
    pub orders: Option<Rate>,
    /// Failed authorizations of one name.
    pub failures: Option<Rate>,
    /// Accounts of one address.
    pub accounts: Option<Rate>,
    /// Failures in a row after which the CA pauses a name.
    pub pause_after: Option<u32>,
}

/// Whom the limits of an issuer are counted for: one CA, whatever the profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The CA.
    pub ca: IssuerId,
    /// What it allows.
    pub limits: CaLimits,
}

/// Signs certificates.
///
/// `issue` may take minutes. It is safe to cancel by dropping the future: TXT records go to the janitor, and what the CA
/// has already counted is found again by the next call for the same names. It never retries a refused order by itself.
#[async_trait]
pub trait Issuer: Send + Sync + fmt::Debug {
    /// Its identity, stable over restarts.
    fn id(&self) -> &IssuerId;

    /// Gets one certificate for all names of the request, or says whose fault it was and when to come back.
    async fn issue(&self, request: &IssueRequest, progress: &dyn Progress) -> Result<IssuedCert, IssueError>;

    /// Whether `issue` asks nobody and takes milliseconds: a start may wait for it.
    fn is_instant(&self) -> bool {
        false
    }

    /// What the CA allows; `None` if nobody counts.
    fn budget(&self) -> Option<&Budget> {
        None
    }

    /// Whether the account that orders is registered already, as far as is kept; asks nobody. An order registers it else,
    /// which CAs count.
    async fn registered(&self) -> bool {
        true
    }

    /// Whether an order of an earlier call for the same names is kept that `issue` goes on with; asks nobody. What the CA counts
    /// for that one was counted when it was made.
    async fn resumes(&self, _request: &IssueRequest) -> bool {
        false
    }

    /// When the CA wants `leaf` (DER) to be renewed; `None` if it does not say such things. Asks the CA once.
    async fn renewal_hint(&self, _leaf: &[u8]) -> Result<Option<RenewalHint>, IssueError> {
        Ok(None)
    }

    /// Has `leaf` (DER) revoked (RFC 8555 section 7.6) with a reason of RFC 5280 section 5.3.1. Revoking twice is fine.
    async fn revoke(&self, _leaf: &[u8], _reason: u8) -> Result<(), IssueError> {
        let message = format!("{} does not revoke certificates", self.id());
        Err(IssueError::new(FailureClass::Config, Retry::Park, message))
    }

    /// Once a certificate is stored durably, or is of no use: forgets what was kept to resume its order, so that the next
    /// `issue` makes a new one. Idempotent.
    async fn stored(&self, request: &IssueRequest);
}

/// Told what an order is doing, for logs and for people who watch.
pub trait Progress: Send + Sync {
    /// Called at the beginning of each step.
    fn step(&self, step: Step);
}

/// The steps of an order, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Finding or making the account.
    Account,
    /// The order exists at the CA.
    Order {
        /// Its URL.
        url: String,
        /// Whether an interrupted order goes on.
        resumed: bool,
    },
    /// TXT records are being published.
    Present {
        /// How many.
        records: usize,
    },
    /// Every server that the CA may ask shows them; the CA was told.
    Validate,
    /// The CSR is being sent.
    Finalize,
    /// The CA signed; the chain is fetched.
    Download,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account => f.write_str("opening the account"),
            Self::Order { resumed: false, .. } => f.write_str("order created"),
            Self::Order { resumed: true, .. } => f.write_str("order resumed"),
            Self::Present { records } => write!(f, "presenting {records} challenge(s)"),
            Self::Validate => f.write_str("the challenges stand, the CA validates"),
            Self::Finalize => f.write_str("validated, sending the CSR"),
            Self::Download => f.write_str("signed, fetching the chain"),
        }
    }
}

/// Whose turn it is after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// The operator: the configuration or a credential is wrong. No CA was asked.
    Config,
    /// DNS or its provider. No CA was asked to validate.
    Dns,
    /// The CA looked and did not find what it wanted.
    Validation,
    /// The CA counts, and we are over.
    RateLimited,
    /// The CA or the way to it is down.
    CaDown,
}

impl FailureClass {
    /// One word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Dns => "dns",
            Self::Validation => "validation",
            Self::RateLimited => "rate_limited",
            Self::CaDown => "ca_down",
        }
    }

    /// The class that [`FailureClass::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Config, Self::Dns, Self::Validation, Self::RateLimited, Self::CaDown]
            .into_iter()
            .find(|class| class.as_str() == text)
    }
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Not before a person has changed something; looked at again within a day.
    Park,
    /// As [`Retry::Park`], and asked once a day at most, however little time is left: the CA wants a person first.
    Pause,
    /// On the schedule.
    Backoff,
    /// Not before this moment, because the CA said so.
    At(SystemTime),
}

/// Why there is no certificate. Never guessed from text: the place that knows makes the verdict.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct IssueError {
    /// Whose turn it is.
    pub class: FailureClass,
    /// When to come back.
    pub retry: Retry,
    /// For a person: what happened, to which name, what it means, what to do.
    pub message: String,
    /// What the CA counted all the same.
    pub spent: Spent,
}

impl IssueError {
    /// An error with a verdict, of which the CA counted nothing.
    pub fn new(class: FailureClass, retry: Retry, message: impl Into<String>) -> Self {
        Self { class, retry, message: message.into(), spent: Spent::default() }
    }
}
