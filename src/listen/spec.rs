//! What the configuration says about listeners.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::name::HostName;

/// Where clients come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenSpec {
    /// With TLS; h2 and http/1.1 by ALPN.
    pub https: Vec<SocketAddr>,
    /// In clear: redirects to https when `https` is not empty, else serves the routes (sidecar).
    pub http: Vec<SocketAddr>,
    /// The certificate for clients without SNI, when no certificate is for the local address.
    pub default_sni: Option<HostName>,
    /// Peers whose connections begin with a PROXY header, version 1 or 2, on every listener. From anybody else such a header is
    /// whatever it would be without this: a bad request.
    pub proxy_protocol: Vec<IpNet>,
    /// Whether clients in clear may speak HTTP/2 without asking first (RFC 9113 section 3.3).
    pub h2c: bool,
    /// How long a client may take.
    pub timeouts: ListenTimeouts,
    /// How much a client may send or hold.
    pub limits: Limits,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenTimeouts {
    /// PROXY header and TLS handshake together.
    pub handshake: Duration,
    /// From the first byte of a request to the end of its head.
    pub header: Duration,
    /// Between requests, and before the first one.
    pub idle: Duration,
    /// Without the client taking a byte of an answer.
    pub write: Duration,
    /// For requests in flight when shutting down.
    pub drain: Duration,
}

impl Default for ListenTimeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            idle: Duration::from_secs(180),
            write: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

/// How much a client may send or hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's head (431).
    pub header: usize,
    /// Fields of a request's head (431).
    pub header_fields: usize,
    /// Bytes of a request target (414).
    pub uri: usize,
    /// Concurrent streams of an HTTP/2 connection.
    pub h2_streams: u32,
    /// Open connections over all listeners; `None`: 90 % of half the file limit. From nine tenths of it on, those that are idle the
    /// longest are closed; accepting pauses there.
    pub connections: Option<usize>,
    /// Requests under way over all connections; `None`: 90 % of half the file limit. Beyond it new ones are 503.
    pub requests: Option<usize>,
    /// Bytes held for clients that do not read and servers that do not take, see [`crate::conn::Load`]; `None`: a quarter of the
    /// memory, at least 64 MiB. Beyond it new requests are 503.
    pub buffered: Option<usize>,
    /// Open connections of one address (IPv6: of one /64); `None` is unlimited.
    pub connections_per_ip: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header: 32 * 1024,
            header_fields: 100,
            uri: 8 * 1024,
            h2_streams: 100,
            connections: None,
            requests: None,
            buffered: None,
            connections_per_ip: None,
        }
    }
}
