//! Why a route does not let a request in.

use http::StatusCode;

/// A request that a route's policy does not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The client's address is not one that may come.
    Address,
}

impl Denial {
    /// The status, and the word for the log and `starlock_rejected_total`.
    pub fn verdict(self) -> (StatusCode, &'static str) {
        match self {
            Self::Address => (StatusCode::FORBIDDEN, "address_denied"),
        }
    }
}
