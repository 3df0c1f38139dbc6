//! What the configuration says about upstreams.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// An `[upstreams.NAME]` section, or the URL of a route that names its server directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSpec {
    /// The name in the file; for a direct URL, that URL. Metric label.
    pub name: Arc<str>,
    /// At least one.
    pub servers: Vec<ServerSpec>,
    /// How long to wait for them.
    pub timeouts: UpstreamTimeouts,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerSpec {
    /// Where it is.
    pub host: ServerHost,
    /// Its port.
    pub port: u16,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerHost {
    /// At an address.
    Ip(IpAddr),
    /// At whatever this name resolves to; resolved while running, so a name that does not resolve stops nothing else.
    Name(Arc<str>),
}

impl fmt::Display for ServerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            ServerHost::Ip(IpAddr::V6(address)) => write!(f, "http://[{address}]:{}", self.port),
            ServerHost::Ip(address) => write!(f, "http://{address}:{}", self.port),
            ServerHost::Name(name) => write!(f, "http://{name}:{}", self.port),
        }
    }
}

/// Bounds of an exchange with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamTimeouts {
    /// TCP connect.
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
