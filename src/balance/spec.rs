//! What the configuration says about upstreams.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::transport::{ProxyProtocol, Transport};

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
    /// Its port; 0 for a socket in the file system.
    pub port: u16,
    /// What is spoken to it.
    pub transport: Transport,
    /// Whether it is told who the client is, at the start of each connection.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl ServerSpec {
    /// A server that speaks HTTP/1.1 in clear.
    pub fn new(host: ServerHost, port: u16) -> Self {
        Self { host, port, transport: Transport::Http, proxy_protocol: None }
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerHost {
    /// At an address.
    Ip(IpAddr),
    /// At whatever this name resolves to; resolved while running, so a name that does not resolve stops nothing else.
    Name(Arc<str>),
    /// At a socket in this machine's file system.
    Unix(Arc<Path>),
}

impl fmt::Display for ServerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.transport.scheme();
        match &self.host {
            ServerHost::Ip(IpAddr::V6(address)) => write!(f, "{scheme}://[{address}]:{}", self.port),
            ServerHost::Ip(address) => write!(f, "{scheme}://{address}:{}", self.port),
            ServerHost::Name(name) => write!(f, "{scheme}://{name}:{}", self.port),
            ServerHost::Unix(path) => write!(f, "unix:{}", path.display()),
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
