//! What is known of a request when it has ended: one line of the log, one count.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};
use tokio::time::Instant;

use super::error::Refusal;
use super::handler::Shared;
use super::local::Local;
use super::snapshot::Target;
use super::spec::RouteTimeouts;
use crate::balance::{Balancer, Endpoint};
use crate::conn::ConnInfo;
use crate::policy::{Coding, Pass, Policy, RequestFacts};
use crate::telemetry::AccessRecord;
use crate::upstream::{BodyCopy, ClientAddresses, Exchange, ExchangeLimits};

/// The id of a request: on its error page and in its line of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestId([u8; 16]);

impl RequestId {
    /// `number` in hexadecimal.
    pub(super) fn new(number: u64) -> Self {
        let mut text = [0; 16];
        for (index, digit) in text.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(number >> (60 - 4 * index) & 15) as usize];
        }
        Self(text)
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A request under way. Dropping it writes it down; whatever has not been answered by then, the client has left.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) shared: Rc<Shared>,
    pub(super) local: Rc<Local>,
    pub(super) start: Instant,
    pub(super) id: RequestId,
    pub(super) client: IpAddr,
    /// Both ends of the connection that it came by: peer, local.
    pub(super) ends: (SocketAddr, SocketAddr),
    pub(super) method: Method,
    pub(super) host: Option<Box<str>>,
    pub(super) target: Option<PathAndQuery>,
    pub(super) version: Version,
    /// Whether an error page is to be HTML.
    pub(super) html: bool,
    /// Whether it is a gRPC call, to which an error is a trailer.
    pub(super) grpc: bool,
    pub(super) tls_resumed: Option<bool>,
    /// Index of the route.
    pub(super) route: Option<usize>,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) exchange: Option<Rc<Exchange>>,
    /// What its route's policies gave it; given back when it has ended.
    pub(super) pass: Pass,
    pub(super) status: u16,
    pub(super) reason: &'static str,
    /// Bytes from the client in a tunnel.
    pub(super) received: u64,
    /// Bytes of an answer that did not come from a server, or to the client in a tunnel.
    pub(super) sent: u64,
    /// `https` or `http`.
    pub(super) scheme: &'static str,
    /// In which coding the client may get its answer.
    pub(super) coding: Option<Coding>,
    /// Bytes of an answer that is not the one a server sent.
    pub(super) encoded: Option<u64>,
    /// Where a copy of the request's body goes.
    pub(super) copy: Option<Box<BodyCopy>>,
    /// Whether it is a connection that is passed through: nothing is known of what is said on it.
    pub(super) passed: bool,
    /// Whether it has become a tunnel: how long that lives says nothing of how fast anything was answered.
    pub(super) tunnelled: bool,
}

/// What a client that left before its answer gets in the log.
pub(super) const CLIENT_CLOSED: (u16, &str) = (499, "client_closed");

impl Record {
    /// The policies of the request's route, if it has one.
    pub(super) fn policy(&self) -> Option<&Policy> {
        self.route.map(|index| &self.local.snapshot.policies[index])
    }

    /// The largest body that the request may have.
    pub(super) fn max_body(&self) -> Option<u64> {
        self.policy().and_then(Policy::max_body).or(self.local.snapshot.max_body)
    }

    /// What a server may be told of the client. Behind a trusted proxy nobody knows its port.
    pub(super) fn addresses(&self) -> ClientAddresses {
        let (peer, to) = self.ends;
        let from = if peer.ip() == self.client { peer } else { SocketAddr::new(self.client, 0) };
        ClientAddresses { from, to }
    }

    /// What the exchange with one of `balancer`'s servers is held to.
    pub(super) fn limits(&self, balancer: &Balancer) -> ExchangeLimits {
        let mut limits = ExchangeLimits {
            timeouts: *balancer.timeouts(),
            body_timeout: self.local.snapshot.body_timeout,
            max_body: self.max_body(),
        };
        if let Some(own) = self.timeouts() {
            limits.timeouts.response = own.response.unwrap_or(limits.timeouts.response);
            limits.timeouts.stall = own.stall.unwrap_or(limits.timeouts.stall);
            limits.body_timeout = own.body.unwrap_or(limits.body_timeout);
        }
        limits
    }

    /// How long an attempt may take before another server is asked, if the route says so.
    pub(super) fn attempt(&self) -> Option<Duration> {
        self.timeouts().and_then(|own| own.attempt)
    }

    fn timeouts(&self) -> Option<&RouteTimeouts> {
        match &self.local.snapshot.targets[self.route?] {
            Target::Forward(forward) => Some(&forward.timeouts),
            _ => None,
        }
    }

    /// What header rules may say.
    pub(super) fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            client: self.client,
            host: self.host.as_deref().unwrap_or_default(),
            scheme: self.scheme,
            method: &self.method,
            id: self.id.as_str(),
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) -> StatusCode {
        let (status, reason) = refusal.verdict();
        if refusal.is_rejection() {
            self.shared.metrics.rejected(reason).inc();
        }
        self.answered(status);
        self.reason = reason;
        status
    }

    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        self.reason = "";
    }

    /// The answer's body ended before it was complete.
    pub(super) fn cut_short(&mut self) {
        if self.reason.is_empty() {
            let failure = self.exchange.as_ref().and_then(|exchange| exchange.failure());
            self.reason = failure.map_or(CLIENT_CLOSED.1, |failure| Refusal::Upstream(failure).verdict().1);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let duration = self.start.elapsed();
        let upstream = self.endpoint.as_ref().map(|e| e.upstream());
        let answered_in = Some(duration).filter(|_| !self.tunnelled);
        self.local.count(&self.shared, self.route, upstream, &self.method, self.status, answered_in);
        if !self.shared.access.is_on() {
            return;
        }
        let exchange = self.exchange.as_ref();
        self.shared.access.write(&AccessRecord {
            time: self.shared.clock.now(),
            id: self.id.as_str(),
            client: self.client,
            method: self.method.as_str(),
            host: self.host.as_deref().unwrap_or_default(),
            path: match &self.target {
                Some(target) => target.as_str(),
                None if self.passed => "-",
                None => "*",
            },
            protocol: match self.version {
                _ if self.passed => "TLS",
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            tls_resumed: self.tls_resumed,
            status: self.status,
            received: self.received + exchange.map_or(0, |e| e.received()),
            sent: self.encoded.unwrap_or_else(|| self.sent + exchange.map_or(0, |e| e.sent())),
            duration,
            route: self.route.map_or("", |index| &self.local.snapshot.router.routes()[index].key),
            upstream: upstream.map_or("", |name| name),
            server: self.endpoint.as_ref().map_or("", |e| e.label()),
            reason: self.reason,
        });
    }
}

/// Writes down a request whose head could not be read: nothing is known of it but where it came from.
pub(super) fn unreadable(shared: &Shared, id: RequestId, conn: &ConnInfo, status: u16, reason: &'static str) {
    if !shared.access.is_on() {
        return;
    }
    shared.access.write(&AccessRecord {
        time: shared.clock.now(),
        id: id.as_str(),
        client: conn.peer.ip(),
        method: "-",
        host: "",
        path: "-",
        protocol: "-",
        tls_resumed: conn.tls.as_ref().map(|tls| tls.resumed),
        status,
        received: 0,
        sent: 0,
        duration: Duration::ZERO,
        route: "",
        upstream: "",
        server: "",
        reason,
    });
}
