//! Proving control of a name: what an order presents, and how it is always taken away again.

mod dns01;
mod janitor;
mod journal;
mod outside;
mod propagation;
mod rehearsal;

use std::fmt;

use async_trait::async_trait;

use crate::name::HostName;

pub use dns01::{Dns01Solver, OwnResponder};
pub use janitor::{Janitor, Swept, janitor};
pub use rehearsal::{RehearsalError, rehearse};

/// One DNS-01 challenge of an order (RFC 8555 section 8.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The name without `*.`; apex and wildcard give two challenges with the same name.
    pub name: HostName,
    /// base64url(sha256(key authorization)).
    pub value: String,
}

/// Challenges that can stand in DNS at once.
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
    /// Splits an order's challenges into what can stand in DNS at once: one batch, or one by one for providers that hold a
    /// single value. Every challenge is in exactly one batch.
    fn batches(&self, challenges: &[Challenge]) -> Vec<Batch>;

    /// Publishes a batch and returns when the CA may look: every server that it may ask shows every value.
    ///
    /// Each record is journalled before it is created. On an error, and when the future is dropped, what was created is
    /// removed by the janitor.
    async fn present(&self, batch: &[Challenge]) -> Result<Box<dyn Presented>, PresentError>;
}

/// Records that stand in DNS. Dropping it hands the removal to the janitor, which outlives cancellation.
#[async_trait]
pub trait Presented: Send + Sync + fmt::Debug {
    /// Removes the records now. What cannot be removed stays in the journal and with the janitor, and is logged.
    async fn clean_up(self: Box<Self>);
}
