//! What is spoken to a server.

use std::path::PathBuf;
use std::sync::Arc;

use crate::name::HostName;

/// What lies between HTTP and the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HTTP/1.1 in clear: `http://` and `unix:`.
    #[default]
    Http,
    /// HTTP/2 in clear, by prior knowledge (RFC 9113 section 3.3): `h2c://`.
    H2c,
    /// TLS, and in it what both ends agree on: `https://`.
    Tls(Arc<TlsSpec>),
}

impl Transport {
    /// Whether nothing but HTTP/2 is spoken, which cannot switch to another protocol.
    pub fn is_only_h2(&self) -> bool {
        match self {
            Self::Http => false,
            Self::H2c => true,
            Self::Tls(tls) => tls.http == TlsHttp::Two,
        }
    }

    /// The scheme of its URLs.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Tls(_) => "https",
        }
    }
}

/// The `tls` table of an upstream. The default verifies against the system's roots and presents nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsSpec {
    /// PEM file with the only roots that are trusted; without it the system's.
    pub ca: Option<PathBuf>,
    /// What is presented to servers that ask for a certificate.
    pub identity: Option<TlsIdentity>,
    /// The name that is asked for and verified, if it is not the URL's host.
    pub sni: Option<HostName>,
    /// `danger_skip_verify`: any certificate will do. Whoever gets in between reads and changes everything.
    pub skip_verify: bool,
    /// Which HTTP is spoken.
    pub http: TlsHttp,
}

/// PEM files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsIdentity {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Which HTTP is spoken inside TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsHttp {
    /// What the server picks by ALPN; HTTP/1.1 if it does not pick.
    #[default]
    Auto,
    /// Only HTTP/1.1 is offered.
    One,
    /// Only HTTP/2 is offered; a server that does not pick it is not spoken to.
    Two,
}

/// The header that tells a server who the client is, before anything else on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}
