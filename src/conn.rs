//! What is known of a client's connection: `listen` fills it in, `proxy` reads it.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;

use crate::name::{HostName, HostPattern};

/// What answers the requests of one worker's connections: the seam between `listen` and `proxy`.
pub trait Service: 'static {
    /// The body of an answer. Dropping it before its end means that the client left.
    type Body: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Unpin + 'static;

    /// Answers one request. Never fails: an error is an answer too. Dropping the future means that the client left.
    fn call(
        self: Rc<Self>,
        request: Request<Incoming>,
        conn: Rc<ConnInfo>,
    ) -> impl Future<Output = Response<Self::Body>> + 'static;

    /// Told of a request whose head could not be read; it got `status` already, and its connection ends.
    fn unreadable(&self, _conn: &ConnInfo, _status: u16, _reason: &'static str) {}
}

/// One accepted connection.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// The other end, as the socket says.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// `None` in clear.
    pub tls: Option<TlsInfo>,
    /// What its requests must keep to.
    pub limits: RequestLimits,
}

/// Limits of a request that HTTP itself does not have; the service answers 414 and 431.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of a request target.
    pub uri: usize,
    /// Fields of a head; the crumbs of a cookie count once.
    pub fields: usize,
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
