//! What a route asks of requests before they go anywhere, and what it adds to answers. Knows no server and no route.
//!
//! A policy is one of three kinds, each with a file of its own: it lets a request in or denies it ([`Policy::admit`],
//! [`Policy::authenticate`]), it bounds or changes what goes to a server ([`Policy::max_body`], [`Policy::prepare`]), or it
//! changes an answer ([`Policy::page`], [`Policy::compress`], [`Policy::finish`]).

mod access;
mod basic;
pub mod client_cert;
mod compress;
mod concurrency;
mod denial;
mod encode;
mod fields;
mod forward_auth;
mod hsts;
mod identity;
mod pages;
mod rate;
mod spec;
pub mod spelling;
mod users;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use access::Access;
use basic::Sight;
pub use basic::{
    Attempt, BasicAuth, BasicAuthSpec, Turn, Turns, check_hash, check_user, check_users_file, hash_password,
};
pub use client_cert::ClientCertSpec;
pub use compress::Coding;
use concurrency::Concurrency;
pub use concurrency::{ConcurrencySpec, Permit};
pub use denial::Denial;
pub use encode::{Encoder, MAX_ENCODERS};
use fields::Fields;
pub use fields::{Direction, FieldError, FieldValue, FieldsSpec, RequestFacts, untouchable};
pub use forward_auth::{ForwardAuthSpec, Matched, Opinion};
use hsts::Hsts;
pub use identity::Identity;
pub use pages::{MAX_PAGE, Page, PageError, PageFiles, PageFor, Pages, PagesSpec};
use rate::RateLimit;
pub use rate::{RateKey, RateSpec, Standing};
pub use spec::{AccessSpec, HstsSpec, PolicySpec};
pub use users::UsersError;

/// The policies of one route, ready to be asked. Immutable, but for what they remember of clients: a reload makes a new one.
#[derive(Debug, Default)]
pub struct Policy {
    access: Access,
    rate: Option<Arc<RateLimit>>,
    concurrency: Option<Arc<Concurrency>>,
    basic: Option<Arc<BasicAuth>>,
    forward_auth: Option<ForwardAuthSpec>,
    /// Fields that only authentication may set.
    owned: Box<[HeaderName]>,
    hsts: Option<Hsts>,
    max_body: Option<u64>,
    request_fields: Option<Fields>,
    response_fields: Option<Fields>,
    codings: Box<[Coding]>,
    pages: Pages,
}

/// How an answer is compressed.
#[derive(Debug)]
pub enum Compressed {
    /// It answers HEAD: only its head is that of a compressed one.
    Head,
    /// Its bytes go through this.
    Bytes(Encoder),
}

/// A request that was let in, and what it holds until its answer has ended.
#[derive(Debug, Default)]
pub struct Pass {
    standing: Option<Standing>,
    _permit: Option<Permit>,
}

/// What a route's authentication says to a request.
#[derive(Debug)]
pub enum Authentication<'a> {
    /// It may go on, as this.
    Done(Identity),
    /// A password has to be verified: [`BasicAuth::verify`], away from traffic and within a [`Turn`].
    Verify(Arc<BasicAuth>, Attempt),
    /// Another server is to be asked.
    Ask(&'a ForwardAuthSpec),
}

/// What the policies of a route remember: a reload hands it to those that take their place, as long as their rule is the same.
#[derive(Debug, Default)]
pub struct Memory {
    rates: Vec<Arc<RateLimit>>,
    concurrencies: Vec<Arc<Concurrency>>,
    basics: Vec<Arc<BasicAuth>>,
}

impl Policy {
    /// Makes the policies of a route; what `memory` has of the same rules is taken out of it and kept, and `pages` are its error
    /// pages, read. Reads files of users: blocking, and an error if one is wrong.
    pub fn new(spec: &PolicySpec, pages: Pages, memory: &mut Memory) -> Result<Self, UsersError> {
        let rate = spec.rate.as_ref().map(|spec| {
            take(&mut memory.rates, |rate| rate.is(spec)).unwrap_or_else(|| Arc::new(RateLimit::new(spec)))
        });
        let concurrency = spec.concurrency.as_ref().map(|spec| {
            take(&mut memory.concurrencies, |rule| rule.is(spec))
                .unwrap_or_else(|| Arc::new(Concurrency::new(spec)))
        });
        let basic = match &spec.basic_auth {
            None => None,
            Some(spec) => Some(match take(&mut memory.basics, |basic| basic.is(spec)) {
                Some(basic) => {
                    basic.look(Instant::now())?;
                    basic
                }
                None => Arc::new(BasicAuth::new(spec)?),
            }),
        };
        let user = basic.as_ref().and_then(|basic| basic.owned());
        let fields = |spec: &FieldsSpec, direction| (!spec.is_empty()).then(|| Fields::new(spec, direction));
        let copied = spec.forward_auth.iter().flat_map(|spec| &spec.copy);
        Ok(Self {
            access: Access::new(&spec.access),
            rate,
            concurrency,
            owned: user.into_iter().chain(copied).cloned().collect(),
            basic,
            forward_auth: spec.forward_auth.clone(),
            hsts: spec.hsts.as_ref().map(Hsts::new),
            max_body: spec.max_body,
            request_fields: fields(&spec.request_headers, Direction::Request),
            response_fields: fields(&spec.response_headers, Direction::Response),
            codings: spec.compress.clone().into(),
            pages,
        })
    }

    /// Adds what it remembers to `memory`.
    pub fn remember(&self, memory: &mut Memory) {
        memory.rates.extend(self.rate.clone());
        memory.concurrencies.extend(self.concurrency.clone());
        memory.basics.extend(self.basic.clone());
    }

    /// Whether a request of `client` may go on, as far as can be told at once; the cheapest refusals come first. `client` is the
    /// address after trusted proxies.
    pub fn admit(&self, client: IpAddr, headers: &HeaderMap, now: Instant) -> Result<Pass, Denial> {
        self.access.admit(client)?;
        let standing = match &self.rate {
            Some(rate) => Some(rate.admit(client, headers, now).map_err(Denial::Rate)?),
            None => None,
        };
        let permit = match &self.concurrency {
            Some(concurrency) => Some(concurrency.enter(client).ok_or(Denial::Concurrency)?),
            None => None,
        };
        Ok(Pass { standing, _permit: permit })
    }

    /// Who a request that was admitted is of; `None`: the route does not ask.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        now: Instant,
    ) -> Option<Result<Authentication<'_>, Denial>> {
        if let Some(spec) = &self.forward_auth {
            return Some(Ok(Authentication::Ask(spec)));
        }
        let basic = self.basic.as_ref()?;
        Some(match basic.sight(headers, now) {
            Sight::Nothing => Err(Denial::Credentials),
            Sight::Known(identity) => Ok(Authentication::Done(identity)),
            Sight::Unknown(attempt) => Ok(Authentication::Verify(basic.clone(), attempt)),
        })
    }

    /// Tells a server who the client is, after the client's own words about it are gone. For fields that are otherwise ready.
    pub fn identify(&self, identity: &Identity, headers: &mut HeaderMap) {
        if self.basic.is_some() || self.forward_auth.is_some() {
            identity.tell(&self.owned, headers);
        }
    }

    /// Takes from a client's trailers what only the route says in a request's head: servers may add trailers to it.
    pub fn sift_trailers(&self, trailers: &mut HeaderMap) {
        Identity::default().tell(&self.owned, trailers);
        if let Some(fields) = &self.request_fields {
            fields.take_all(trailers);
        }
    }

    /// The largest body of a request, if the route has a bound of its own.
    pub fn max_body(&self) -> Option<u64> {
        self.max_body
    }

    /// Tells a client that was let in where it stands.
    pub fn standing(&self, pass: &Pass, headers: &mut HeaderMap) {
        if let (Some(rate), Some(standing)) = (&self.rate, pass.standing) {
            rate.tell(standing, headers);
        }
    }

    /// Tells a client that was denied what it can do about it.
    pub fn explain(&self, denial: Denial, headers: &mut HeaderMap) {
        match denial {
            Denial::Address => {}
            Denial::Credentials => {
                if let Some(basic) = &self.basic {
                    headers.insert(WWW_AUTHENTICATE, basic.challenge());
                }
            }
            Denial::Rate(standing) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(standing.retry));
                if let Some(rate) = &self.rate {
                    rate.tell(standing, headers);
                }
            }
            Denial::Concurrency | Denial::AuthBusy | Denial::AuthFailed => {
                headers.insert(RETRY_AFTER, HeaderValue::from(1));
            }
        }
    }

    /// Changes the fields of a request that is ready for a server.
    pub fn prepare(&self, headers: &mut HeaderMap, facts: &RequestFacts<'_>) {
        if let Some(fields) = &self.request_fields {
            fields.apply(headers, facts);
        }
    }

    /// The coding in which a client with these fields may get its answer.
    pub fn coding(&self, request: &HeaderMap) -> Option<Coding> {
        if self.codings.is_empty() { None } else { compress::negotiate(&self.codings, request) }
    }

    /// Makes the head of an answer that of a compressed one; `None` if it stays as it is. `coding` is what [`Policy::coding`]
    /// said, `length` that of the body if it is known.
    pub fn compress(
        &self,
        method: &http::Method,
        status: StatusCode,
        headers: &mut HeaderMap,
        length: Option<u64>,
        coding: Option<Coding>,
    ) -> Option<Compressed> {
        if self.codings.is_empty() {
            return None;
        }
        if status == StatusCode::NOT_MODIFIED {
            compress::vary(headers);
            if coding.is_some() {
                compress::weaken(headers);
            }
            return None;
        }
        if !compress::is_compressible(status, headers, length) {
            return None;
        }
        compress::vary(headers);
        let compressed = match *method {
            http::Method::HEAD => Compressed::Head,
            _ => Compressed::Bytes(Encoder::new(coding?)?),
        };
        compress::mark(headers, coding?);
        Some(compressed)
    }

    /// The route's own page for an error. `upstream`: a server made the answer.
    pub fn page(&self, status: StatusCode, upstream: bool) -> Option<&Page> {
        self.pages.page(status, upstream)
    }

    /// Changes the fields of an answer, whoever made it: the last word on it.
    pub fn finish(&self, headers: &mut HeaderMap, facts: &RequestFacts<'_>) {
        if let Some(hsts) = self.hsts.as_ref().filter(|_| facts.scheme == "https") {
            hsts.finish(headers);
        }
        if let Some(fields) = &self.response_fields {
            fields.apply(headers, facts);
        }
    }
}

fn take<T>(from: &mut Vec<Arc<T>>, wanted: impl Fn(&T) -> bool) -> Option<Arc<T>> {
    let place = from.iter().position(|held| wanted(held))?;
    Some(from.remove(place))
}
