//! Proving control of a name: what an order presents, and how it is always taken away again.

mod answers;
mod dns01;
mod http01;
mod janitor;
mod journal;
mod kind;
mod outside;
mod persist;
mod propagation;
mod rehearsal;
mod web;

use std::fmt;

use async_trait::async_trait;

use crate::name::{DnsName, HostName};

pub use answers::{Answers, answers};
pub use dns01::{Dns01Solver, OwnResponder};
pub use http01::{WellKnown, WellKnownBody};
pub use janitor::{Janitor, Swept, janitor};
pub use kind::{ChallengeKind, account_challenge};
pub use persist::{MissingRecord, PersistSolver, persist_name, persist_record};
pub use rehearsal::{RehearsalError, rehearse};
pub use web::WebSolver;

/// One challenge of an order (RFC 8555 section 8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// How the CA will look.
    pub kind: ChallengeKind,
    /// The name without `*.`; apex and wildcard give two challenges with the same name.
    pub name: HostName,
    /// Whether it is for `*.` of the name.
    pub wildcard: bool,
    /// The CA's token; empty for dns-persist-01.
    pub token: String,
    /// The token with the thumbprint of the account's key (section 8.1).
    pub key_authorization: String,
    /// base64url(sha256(key authorization)): what a TXT record holds.
    pub value: String,
    /// Whose challenge it is.
    pub account: AccountFacts,
}

/// What of an account and its CA some challenges are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccountFacts {
    /// The account's URL.
    pub url: String,
    /// base64url of the thumbprint of its key (RFC 7638).
    pub thumbprint: String,
    /// The names by which the CA calls itself in DNS; any one of them will do. Empty if it has not said.
    pub issuers: Vec<String>,
    /// What hashed account URIs begin with (draft-ietf-acme-dns-persist-02); `None` at a CA that reads the account's URL itself.
    pub hash_prefix: Option<String>,
}

impl Challenge {
    /// A dns-01 challenge. `value` is base64url(sha256(key authorization)).
    pub fn dns01(name: HostName, value: &str) -> Self {
        Self {
            kind: ChallengeKind::Dns01,
            name,
            wildcard: false,
            token: String::new(),
            key_authorization: String::new(),
            value: value.to_owned(),
            account: AccountFacts::default(),
        }
    }

    /// Where its TXT record stands: `_acme-challenge` before the name, and the account's label before that for dns-account-01.
    pub fn record_name(&self) -> DnsName {
        match self.kind {
            ChallengeKind::DnsAccount01 => kind::account_challenge(&self.account.url, &self.name),
            _ => DnsName::acme_challenge(&self.name),
        }
    }
}

/// Challenges that can stand at once.
pub type Batch = Vec<Challenge>;

/// Why challenges could not be presented. The CA was not told anything.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct PresentError {
    /// `true`: a person must change something; `false`: later it may work.
    pub permanent: bool,
    /// For a person; holds the table of what each name server said when it was about propagation.
    pub message: String,
}

/// Presents challenges.
#[async_trait]
pub trait ChallengeSolver: Send + Sync + fmt::Debug {
    /// What it can answer for `name`, best first; never empty. An order takes the first that the CA offers.
    fn kinds(&self, _name: &HostName) -> Vec<ChallengeKind> {
        vec![ChallengeKind::Dns01]
    }

    /// Splits an order's challenges into what can stand at once: one batch, or one by one for providers that hold a
    /// single value. Every challenge is in exactly one batch.
    fn batches(&self, challenges: &[Challenge]) -> Vec<Batch>;

    /// Looks at what has to be there before the CA hears of an order. `names` without `*.`, and whether it is for that.
    async fn before_order(
        &self,
        _names: &[(HostName, bool)],
        _account: &AccountFacts,
    ) -> Result<(), PresentError> {
        Ok(())
    }

    /// Publishes a batch and returns when the CA may look: every server that it may ask shows every value.
    ///
    /// What is written is journalled before it is created. On an error, and when the future is dropped, what was created is
    /// removed all the same.
    async fn present(&self, batch: &[Challenge]) -> Result<Box<dyn Presented>, PresentError>;

    /// The CA looked and was not content. Another kind may be preferred the next time.
    fn refused(&self, _challenge: &Challenge) {}
}

/// Answers that stand. Dropping it takes them away as well, and that outlives cancellation.
#[async_trait]
pub trait Presented: Send + Sync + fmt::Debug {
    /// Removes the answers now. What cannot be removed is logged and tried again.
    async fn clean_up(self: Box<Self>);
}
