//! Why a route does not let a request in.

use http::StatusCode;

use super::rate::Standing;

/// A request that a route's policy does not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The client's address is not one that may come.
    Address,
    /// The client came too often.
    Rate(Standing),
    /// As many requests as may be are under way.
    Concurrency,
    /// No name and password that are known.
    Credentials,
    /// More passwords wait to be verified than should.
    AuthBusy,
    /// Whoever decides about requests could not be asked.
    AuthFailed,
}

impl Denial {
    /// The status, and the word for the log and `starlock_rejected_total`.
    pub fn verdict(self) -> (StatusCode, &'static str) {
        match self {
            Self::Address => (StatusCode::FORBIDDEN, "address_denied"),
            Self::Rate(_) => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Self::Concurrency => (StatusCode::SERVICE_UNAVAILABLE, "concurrency"),
            Self::Credentials => (StatusCode::UNAUTHORIZED, "basic_auth"),
            Self::AuthBusy => (StatusCode::SERVICE_UNAVAILABLE, "basic_auth_busy"),
            Self::AuthFailed => (StatusCode::SERVICE_UNAVAILABLE, "forward_auth_failed"),
        }
    }
}
