//! What is known of a client's connection: `listen` fills it in, `proxy` reads it.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::name::{HostName, HostPattern};

/// One accepted connection.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// The other end, as the socket says.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// `None` in clear.
    pub tls: Option<TlsInfo>,
}

impl ConnInfo {
    /// `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// What the handshake settled.
#[derive(Clone, Debug)]
pub struct TlsInfo {
    /// The name the client asked for.
    pub sni: Option<HostName>,
    /// The names of the certificate that was served: a request for any other host is 421 (RFC 9110 15.5.20).
    pub cert_names: Arc<[HostPattern]>,
    /// The protocol that ALPN chose.
    pub alpn: Alpn,
    /// Whether a ticket was resumed.
    pub resumed: bool,
}

/// Application protocols we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `http/1.1`, also when the client offered nothing.
    Http1,
    /// `h2`.
    Http2,
}
