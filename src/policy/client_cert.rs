//! Client certificates: what a server behind us is told of them, and what no client may say of itself.
//!
//! Whether a client may come at all is settled in the handshake, and whether a connection may ask for a host by its TLS policy.

use std::fmt;
use std::path::PathBuf;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::spelling::begins_with_spelling;
use crate::conn::{TlsInfo, TlsPolicy};
use crate::name::HostPattern;

/// RFC 9440.
const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
const FINGERPRINT: HeaderName = HeaderName::from_static("x-client-cert-fingerprint");
const VERIFY: HeaderName = HeaderName::from_static("x-client-cert-verify");

/// That hosts of a route ask for a client certificate. Only for people: the handshake enforces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertSpec {
    /// Which hosts.
    pub host: HostPattern,
    /// Who has to have signed it.
    pub ca: PathBuf,
    /// Whether clients without one may come too.
    pub optional: bool,
}

impl fmt::Display for ClientCertSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.optional { "asked for" } else { "required" };
        write!(f, "{word} at {}, signed by {}", self.host, self.ca.display())
    }
}

/// Whether a field says something of a client's certificate, in any spelling that a server may take for it. Such fields are
/// ours alone: they are removed from every request, whoever sent it.
pub fn is_claim(name: &str) -> bool {
    begins_with_spelling(name, "client-cert") || begins_with_spelling(name, "x-client-cert")
}

/// Tells a server what the client has shown, if its host asks for certificates. The client's own words are gone already.
pub fn tell(tls: &TlsInfo, headers: &mut HeaderMap) {
    if tls.policy == TlsPolicy::OPEN {
        return;
    }
    match &tls.client_cert {
        Some(cert) => {
            headers.insert(VERIFY, HeaderValue::from_static("SUCCESS"));
            headers.insert(CLIENT_CERT, cert.der.clone());
            headers.insert(SUBJECT, cert.subject.clone());
            headers.insert(FINGERPRINT, cert.sha256.clone());
        }
        None => drop(headers.insert(VERIFY, HeaderValue::from_static("NONE"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_a_claim_and_nothing_else_is() {
        for claim in [
            "client-cert",
            "client-cert-chain",
            "client_cert",
            "client.cert-chain",
            "x-client-cert-subject",
            "x_client_cert_subject",
            "x.client-cert.verify",
            "x-client-cert",
            "x-client-certificate",
        ] {
            assert!(is_claim(claim), "{claim}");
        }
        for other in [
            "",
            "x",
            "x-",
            "c",
            "client",
            "client-certain"[..9].as_ref(),
            "xclient-cert",
            "x-client-id",
            "cookie",
        ] {
            assert!(!is_claim(other), "{other}");
        }
    }
}
