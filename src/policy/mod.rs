//! What a route asks of requests before they go anywhere, and what it adds to answers. Knows no server and no route.
//!
//! A policy is one of three kinds, each with a file of its own: it lets a request in or denies it ([`Policy::admit`]), it bounds
//! what goes to a server ([`Policy::max_body`]), or it changes an answer ([`Policy::finish`]).

mod access;
mod denial;
mod hsts;
mod spec;

use http::HeaderMap;
use std::net::IpAddr;

use access::Access;
pub use denial::Denial;
use hsts::Hsts;
pub use spec::{AccessSpec, HstsSpec, PolicySpec};

/// The policies of one route, ready to be asked. Immutable: a reload makes a new one.
#[derive(Debug, Default)]
pub struct Policy {
    access: Access,
    hsts: Option<Hsts>,
    max_body: Option<u64>,
}

impl Policy {
    /// Makes the policies of a route.
    pub fn new(spec: &PolicySpec) -> Self {
        Self {
            access: Access::new(&spec.access),
            hsts: spec.hsts.as_ref().map(Hsts::new),
            max_body: spec.max_body,
        }
    }

    /// Whether a request of `client` may go on. `client` is the address after trusted proxies.
    pub fn admit(&self, client: IpAddr) -> Result<(), Denial> {
        self.access.admit(client)
    }

    /// The largest body of a request, if the route has a bound of its own.
    pub fn max_body(&self) -> Option<u64> {
        self.max_body
    }

    /// Changes the fields of an answer, whoever made it. `tls`: whether the client came by https.
    pub fn finish(&self, headers: &mut HeaderMap, tls: bool) {
        if let Some(hsts) = self.hsts.as_ref().filter(|_| tls) {
            hsts.finish(headers);
        }
    }
}
