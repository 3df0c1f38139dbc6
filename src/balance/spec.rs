//! What the configuration says about upstreams.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::transport::{ProxyProtocol, Transport};
use crate::secret::SecretSource;

/// An `[upstreams.NAME]` section, or the URL of a route that names its server directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSpec {
    /// The name in the file; for a direct URL, that URL. Metric label.
    pub name: Arc<str>,
    /// At least one.
    pub servers: Vec<ServerSpec>,
    /// How long to wait for them.
    pub timeouts: UpstreamTimeouts,
    /// How one of them is chosen.
    pub balance: BalanceSpec,
    /// Keeps a client at its server.
    pub sticky: Option<StickySpec>,
    /// A server that comes (back) gets its full share only after this time; zero: at once.
    pub slow_start: Duration,
    /// What is learnt of servers from the requests they get; `None`: nothing.
    pub passive: Option<PassiveSpec>,
    /// How they are asked whether they are well; `None`: they are not.
    pub active: Option<ActiveSpec>,
    /// When a request is tried elsewhere.
    pub retries: RetrySpec,
}

impl UpstreamSpec {
    /// An upstream with the defaults of everything but its name, servers and time-outs.
    pub fn new(name: impl Into<Arc<str>>, servers: Vec<ServerSpec>, timeouts: UpstreamTimeouts) -> Self {
        Self {
            name: name.into(),
            servers,
            timeouts,
            balance: BalanceSpec::P2c,
            sticky: None,
            slow_start: Duration::ZERO,
            passive: Some(PassiveSpec::default()),
            active: None,
            retries: RetrySpec::default(),
        }
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerSpec {
    /// Where it is.
    pub host: ServerHost,
    /// Its port. Of a service it is what the service's record says; 0 for a socket in the file system.
    pub port: u16,
    /// What is spoken to it.
    pub transport: Transport,
    /// Whether it is told who the client is, at the start of each connection.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The address that `host` resolved to; the configuration has none.
    pub address: Option<IpAddr>,
    /// Its share of requests, 1 to 256, against those of the others.
    pub weight: u16,
    /// Whether it gets requests only when no other server can take them.
    pub backup: bool,
    /// Open connections at a time, over all workers.
    pub max_connections: Option<NonZeroU32>,
    /// Requests at a time, over all workers.
    pub max_requests: Option<NonZeroU32>,
}

impl ServerSpec {
    /// A server like all others, that speaks HTTP/1.1 in clear.
    pub fn new(host: ServerHost, port: u16) -> Self {
        Self {
            host,
            port,
            transport: Transport::Http,
            proxy_protocol: None,
            address: None,
            weight: 1,
            backup: false,
            max_connections: None,
            max_requests: None,
        }
    }

    /// Where it is, without what this plan makes of it: what is known of a server is kept as long as this stays the same.
    pub fn place(&self) -> Self {
        Self { weight: 1, backup: false, max_connections: None, max_requests: None, ..self.clone() }
    }

    /// Its address, if it is known: as configured, or as its name resolved.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.host {
            ServerHost::Ip(address) => Some(address),
            _ => self.address,
        }
    }

    /// Whether there is nothing to look up: an address, or a socket in the file system.
    pub fn is_fixed(&self) -> bool {
        matches!(self.host, ServerHost::Ip(_) | ServerHost::Unix(_))
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerHost {
    /// At an address.
    Ip(IpAddr),
    /// At every address that this name resolves to; resolved while running, so a name that does not resolve stops nothing else.
    Name(Arc<str>),
    /// At every target of this service's SRV records (RFC 2782): `_http._tcp.example.com`. The lowest priority is used first,
    /// the others are backups.
    Service(Arc<str>),
    /// At a socket in this machine's file system.
    Unix(Arc<Path>),
}

impl fmt::Display for ServerSpec {
    /// The URL, and after `#` the address that its name resolved to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.transport.scheme();
        match &self.host {
            ServerHost::Ip(IpAddr::V6(address)) => write!(f, "{scheme}://[{address}]:{}", self.port)?,
            ServerHost::Ip(address) => write!(f, "{scheme}://{address}:{}", self.port)?,
            ServerHost::Name(name) => write!(f, "{scheme}://{name}:{}", self.port)?,
            ServerHost::Service(name) if self.transport == Transport::Http => write!(f, "srv://{name}")?,
            ServerHost::Service(name) => write!(f, "srv+{scheme}://{name}")?,
            ServerHost::Unix(path) => write!(f, "unix:{}", path.display())?,
        }
        match self.address {
            Some(address) => write!(f, "#{address}"),
            None => Ok(()),
        }
    }
}

/// Bounds of an exchange with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamTimeouts {
    /// TCP connect, and as long again for TLS.
    pub connect: Duration,
    /// From the request's last byte to the first byte of the answer's head.
    pub response: Duration,
    /// Without a byte of the answer's body.
    pub stall: Duration,
    /// How long an idle connection is kept.
    pub upstream_idle: Duration,
}

impl Default for UpstreamTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            response: Duration::from_secs(60),
            stall: Duration::from_secs(300),
            upstream_idle: Duration::from_secs(60),
        }
    }
}

/// How a server is chosen. Weights count in all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BalanceSpec {
    /// Of two at random, the one with fewer requests in flight for its weight.
    P2c,
    /// One after the other; heavier ones more often, spread evenly.
    RoundRobin,
    /// Any.
    Random,
    /// The same one for the same key, by consistent hashing with bounded loads.
    Hash(HashKey),
}

/// What of a request decides its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address.
    Ip,
    /// A field of its head; requests without it go by the client's address.
    Header(HeaderName),
    /// A cookie; requests without it go by the client's address.
    Cookie(Arc<str>),
    /// The path that is sent to the server, without its query.
    Path,
}

/// A cookie that keeps a client at its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySpec {
    /// The cookie's name.
    pub cookie: Arc<str>,
    /// Signs the cookie. The same on all machines, so that they understand each other's.
    pub secret: SecretSource,
    /// How long a browser keeps it; `None`: until it is closed.
    pub ttl: Option<Duration>,
}

/// When a server that fails requests is left out for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassiveSpec {
    /// Connections in a row that could not be made.
    pub connect_errors: u8,
    /// Failed requests in a row: no answer, an answer cut short before its head, or 502, 504.
    pub failures: u8,
    /// The time within which `failures` must happen.
    pub within: Duration,
    /// How long it is left out. Doubles each time it fails again soon after its return.
    pub eject: Duration,
    /// At most this long.
    pub eject_max: Duration,
}

impl Default for PassiveSpec {
    fn default() -> Self {
        Self {
            connect_errors: 3,
            failures: 5,
            within: Duration::from_secs(10),
            eject: Duration::from_secs(10),
            eject_max: Duration::from_secs(300),
        }
    }
}

/// How servers are asked whether they are well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveSpec {
    /// What is asked.
    pub question: Question,
    /// From one question to the next, give or take a tenth.
    pub every: Duration,
    /// For the connection and the answer together.
    pub timeout: Duration,
    /// Bad answers in a row that make it down.
    pub fall: u8,
    /// Good answers in a row that make it up again.
    pub rise: u8,
}

/// What a server is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// `GET path`.
    Http {
        /// Begins with `/`.
        path: Arc<str>,
        /// Statuses that are well; empty: 200 to 299.
        status: Vec<u16>,
    },
    /// `grpc.health.v1.Health/Check` over HTTP/2 in clear; SERVING is well.
    Grpc {
        /// The service asked about; empty: the server as a whole.
        service: Arc<str>,
    },
    /// Whether it takes a connection.
    Tcp,
}

/// When a request is tried elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySpec {
    /// Other servers that are tried when no connection was had, or when the request provably never started.
    pub connect: u8,
    /// Other servers that an idempotent request is sent to when the first gave no answer, or one of `statuses`.
    pub idempotent: u8,
    /// Answers that are as good as none.
    pub statuses: Vec<u16>,
    /// How long a server may take to its first byte before an idempotent request is tried elsewhere.
    pub attempt: Duration,
    /// Largest share of requests, in percent, that `idempotent` may repeat; three a second are always allowed.
    pub budget: u8,
}

impl Default for RetrySpec {
    fn default() -> Self {
        Self {
            connect: 2,
            idempotent: 1,
            statuses: vec![502, 503, 504],
            attempt: Duration::from_secs(5),
            budget: 20,
        }
    }
}
