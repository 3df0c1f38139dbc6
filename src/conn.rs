//! What is known of a client's connection: `listen` fills it in, `proxy` reads it.

mod introduction;
mod load;
mod peer;

use std::collections::HashMap;
use std::fmt::Write;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};

pub use introduction::{Element, Introduced, Introduction, Node};
pub use load::{Held, Load};
#[cfg(test)]
pub(crate) use peer::is_watched;
pub use peer::watch_peer;

use crate::name::{HostName, HostPattern};

/// What answers the requests of one worker's connections: the seam between `listen` and `proxy`.
pub trait Service: 'static {
    /// The body of an answer. Dropping it before its end means that the client left.
    type Body: AnswerBody;

    /// Answers one request. Never fails: an error is an answer too. Dropping the future means that the client left.
    fn call(
        self: Rc<Self>,
        request: Request<Incoming>,
        conn: Rc<ConnInfo>,
    ) -> impl Future<Output = Response<Self::Body>> + 'static;

    /// The answer to a request that the process has no room for ([`Load`]): 503, at once, and nobody else is asked.
    fn shed(self: Rc<Self>, request: Request<Incoming>, conn: Rc<ConnInfo>) -> Response<Self::Body>;

    /// Whether [`Service::pass_through`] may have an answer for some name: then each ClientHello is read before its handshake.
    fn passes_through(&self) -> bool {
        false
    }

    /// What becomes of a connection whose client asks for `name` by SNI, if its TLS is not ours to terminate. `conn.tls` is `None`.
    fn pass_through(&self, _name: &HostName, _conn: &ConnInfo) -> Option<TunnelOf<Self>> {
        None
    }

    /// Told of a request whose head could not be read; it got `status` already, and its connection ends.
    fn unreadable(&self, _conn: &ConnInfo, _status: u16, _reason: &'static str) {}
}

/// The tunnels of a service.
pub type TunnelOf<S> = <<S as Service>::Body as AnswerBody>::Tunnel;

/// The body of an answer.
pub trait AnswerBody: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Unpin + 'static {
    /// See [`Tunnel`].
    type Tunnel: Tunnel;

    /// What the connection (HTTP/1.1, status 101) or the stream (HTTP/2, CONNECT, status 200) becomes when the head of this answer
    /// has been sent. `Some` at most once, and only for an answer with one of these statuses.
    fn take_tunnel(&mut self) -> Option<Self::Tunnel>;
}

/// What goes on with a client's bytes when they are not HTTP any more, or never were.
pub trait Tunnel: 'static {
    /// Carries bytes to the end of both directions, `read` first: what was read from `io` already. Has deadlines of its own.
    /// Dropping the future cuts the tunnel.
    fn run<IO>(self, io: IO, read: Bytes) -> impl Future<Output = ()> + 'static
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static;
}

/// One accepted connection.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// The other end, as the socket says, or a PROXY header from one of the listed peers.
    pub peer: SocketAddr,
    /// Our end, or what that header says.
    pub local: SocketAddr,
    /// `None` in clear.
    pub tls: Option<TlsInfo>,
    /// What its requests must keep to.
    pub limits: RequestLimits,
    /// What the process carries, of which its requests are a part.
    pub load: Arc<Load>,
    /// What servers were told of its client.
    pub introduced: Introduced,
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
    /// What was asked of the client: a request for a host that asks for something else is 421, too.
    pub policy: TlsPolicy,
    /// The certificate that the client has shown and proven to hold. `None`: it has not, or was not asked.
    pub client_cert: Option<Arc<ClientCert>>,
}

/// What a handshake asks of a client. Two are equal only if what one connection has proven holds for the other: the same CA
/// certificates and the same strictness. A number is not used twice in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsPolicy(pub u64);

impl TlsPolicy {
    /// Nothing is asked of clients.
    pub const OPEN: Self = Self(0);
}

/// Which TLS policy each host has. Immutable: a reload makes a new one.
#[derive(Debug, Default)]
pub struct TlsPolicies {
    exact: HashMap<Box<str>, TlsPolicy>,
    /// Keyed by what stands behind `*.`.
    wildcard: HashMap<Box<str>, TlsPolicy>,
}

impl TlsPolicies {
    /// The policies of hosts; all others are open. A name comes before a wildcard. An address has no SNI and can have none.
    pub fn new(policies: impl IntoIterator<Item = (HostPattern, TlsPolicy)>) -> Self {
        let mut all = Self::default();
        for (host, policy) in policies {
            match host {
                HostPattern::Exact(host) => all.exact.insert(host.as_str().into(), policy),
                HostPattern::Wildcard(zone) => all.wildcard.insert(zone.as_str().into(), policy),
                HostPattern::Ip(_) => None,
            };
        }
        all
    }

    /// The policy of `host` (lower case, no port, no trailing dot). Allocates nothing.
    pub fn of(&self, host: &str) -> TlsPolicy {
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return TlsPolicy::OPEN;
        }
        let below = || host.split_once('.').and_then(|(_, zone)| self.wildcard.get(zone));
        self.exact.get(host).or_else(below).copied().unwrap_or_default()
    }
}

/// A client's certificate, in the forms in which servers are told of it; made once for each connection.
#[derive(Debug)]
pub struct ClientCert {
    /// The certificate as RFC 9440 writes it: DER in base64 between colons.
    pub der: HeaderValue,
    /// Its subject; what is not printable ASCII is percent-encoded.
    pub subject: HeaderValue,
    /// SHA-256 over the DER, in lower-case hexadecimal.
    pub sha256: HeaderValue,
}

impl ClientCert {
    /// Describes a certificate that was verified.
    pub fn new(der: &[u8], subject: &str, sha256: &[u8]) -> Self {
        let mut digest = String::with_capacity(64);
        for byte in sha256 {
            // Writing to a String does not fail.
            let _ = write!(digest, "{byte:02x}");
        }
        let escaped = percent_encoding::utf8_percent_encode(subject, UNPRINTABLE).to_string();
        // All three are printable ASCII.
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        Self {
            der: value(format!(":{}:", STANDARD.encode(der))),
            subject: value(escaped),
            sha256: value(digest),
        }
    }
}

/// Beside controls and what is not ASCII: the escape character itself.
const UNPRINTABLE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');

/// Whether a media type is gRPC's. gRPC-Web is none: it is spoken by browsers over plain HTTP.
pub fn is_grpc_type(kind: &[u8]) -> bool {
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// What one client can easily have: an IPv4 address, an IPv6 /64.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[4..].fill(0);
            Ipv6Addr::from(segments).into()
        }
    }
}

/// Application protocols we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `http/1.1`, also when the client offered nothing.
    Http1,
    /// `h2`.
    Http2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_before_a_wildcard_and_what_is_not_named_is_open() {
        let policies = [("admin.a.test", 1), ("*.a.test", 2)];
        let all =
            TlsPolicies::new(policies.map(|(host, n)| (HostPattern::parse(host).unwrap(), TlsPolicy(n))));
        for (host, policy) in
            [("admin.a.test", 1), ("x.a.test", 2), ("a.test", 0), ("x.y.a.test", 0), ("localhost", 0)]
        {
            assert_eq!(all.of(host), TlsPolicy(policy), "{host}");
        }
        assert_eq!(TlsPolicies::default().of("a.test"), TlsPolicy::OPEN);
    }

    #[test]
    fn a_certificate_is_told_in_ascii() {
        let cert = ClientCert::new(&[1, 2, 255], "CN=J\u{f6}rg 100%\r\nX: y, O=A", &[0, 171]);
        assert_eq!(cert.der, ":AQL/:");
        assert_eq!(cert.subject, "CN=J%C3%B6rg 100%25%0D%0AX: y, O=A");
        assert_eq!(cert.sha256, "00ab");
    }
}
