//! Requests that ask for another protocol: `Upgrade` in HTTP/1.1 (RFC 9110 section 7.8), WebSocket on a stream of HTTP/2 (RFC 8441).
//!
//! Nothing a client sends is another protocol before its server has switched to it and said so by a 101 that names the protocol
//! that was asked for. Until then bytes behind the head are the next request, and so they are for good if the server declines.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, TE, UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode, Version};
use hyper::ext::Protocol;

/// What a server appends to a key before it digests it (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const SWITCH: HeaderValue = HeaderValue::from_static("Upgrade");

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// This protocol, on an HTTP/1.1 connection.
    Connection(HeaderValue),
    /// WebSocket, on a stream of HTTP/2; its server is asked over HTTP/1.1, with a key of ours.
    Stream {
        /// `Sec-WebSocket-Key`.
        key: HeaderValue,
    },
}

/// Whether a request is an extended CONNECT for WebSocket. To routes, policies and servers it is the GET that it would be in HTTP/1.1.
pub(super) fn is_websocket_stream(parts: &Parts) -> bool {
    parts.method == Method::CONNECT
        && parts.version == Version::HTTP_2
        && parts.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket")
}

impl Upgrade {
    /// What a request asks for. `None`: it is forwarded as a request like any other, without its `Upgrade`. That is so for one with
    /// a body, since the other protocol would begin behind it; for one that names several protocols, since the answer could
    /// mean any; and for other versions of HTTP, since whatever is said in them goes past routes and policies.
    ///
    /// `is_stream`: it is what [`is_websocket_stream`] says yes to.
    pub(super) fn asked(parts: &Parts, has_body: bool, is_stream: bool) -> Option<Self> {
        if is_stream {
            let key = STANDARD.encode(rand::random::<[u8; 16]>());
            return Some(Self::Stream { key: HeaderValue::from_maybe_shared(bytes::Bytes::from(key)).ok()? });
        }
        if parts.version != Version::HTTP_11 || has_body || !wants_to_switch(&parts.headers) {
            return None;
        }
        let mut protocols = parts.headers.get_all(UPGRADE).iter();
        let (Some(protocol), None) = (protocols.next(), protocols.next()) else { return None };
        is_foreign(protocol).then(|| Self::Connection(protocol.clone()))
    }

    /// Makes a request that is ready for the server ask for it.
    pub(super) fn ask(&self, headers: &mut HeaderMap) {
        // Its value would have to share Connection, and some servers read only one word of that.
        headers.remove(TE);
        headers.insert(CONNECTION, SWITCH);
        match self {
            Self::Connection(protocol) => drop(headers.insert(UPGRADE, protocol.clone())),
            Self::Stream { key } => {
                headers.insert(UPGRADE, WEBSOCKET);
                headers.insert(SEC_WEBSOCKET_KEY, key.clone());
                headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
            }
        }
    }

    /// Whether a 101 with these fields switches to what was asked for, and to nothing else.
    pub(super) fn is_granted(&self, headers: &HeaderMap) -> bool {
        let only = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
        };
        let wanted = match self {
            Self::Connection(protocol) => protocol.as_bytes(),
            Self::Stream { .. } => b"websocket",
        };
        let named = only(&UPGRADE).is_some_and(|protocol| protocol.eq_ignore_ascii_case(wanted));
        named
            && match self {
                Self::Connection(_) => true,
                Self::Stream { key } => only(&SEC_WEBSOCKET_ACCEPT) == Some(accept(key).as_bytes()),
            }
    }

    /// Makes the head of a 101 that is ready for the client say so in the client's version of HTTP.
    pub(super) fn grant(self, headers: &mut HeaderMap) -> StatusCode {
        match self {
            Self::Connection(protocol) => {
                headers.insert(CONNECTION, SWITCH);
                headers.insert(UPGRADE, protocol);
                StatusCode::SWITCHING_PROTOCOLS
            }
            Self::Stream { .. } => {
                headers.remove(SEC_WEBSOCKET_ACCEPT);
                StatusCode::OK
            }
        }
    }

    /// Whether `status` would mean to the client that it was granted although the server has not switched.
    pub(super) fn is_mistaken_by(&self, status: StatusCode) -> bool {
        matches!(self, Self::Stream { .. }) && status.is_success()
    }
}

fn wants_to_switch(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| {
        value
            .to_str()
            .unwrap_or_default()
            .split(',')
            .any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
    })
}

/// Whether `protocol` is one protocol, and not HTTP in another version or behind TLS.
fn is_foreign(protocol: &HeaderValue) -> bool {
    let Ok(text) = protocol.to_str() else { return false };
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let (name, version) = text.split_once('/').map_or((text, None), |(name, version)| (name, Some(version)));
    token(name)
        && version.is_none_or(token)
        && !["h2", "h2c", "h3", "http", "tls"].iter().any(|http| name.eq_ignore_ascii_case(http))
}

/// What a server that has understood `key` answers (RFC 6455 section 4.2.2).
fn accept(key: &HeaderValue) -> String {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(fields: &[(&'static str, &'static str)]) -> Parts {
        let mut request = Request::get("/chat").body(()).unwrap();
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request.into_parts().0
    }

    #[test]
    fn only_one_foreign_protocol_that_is_really_asked_for_goes_on() {
        let asked = |fields: &[(&'static str, &'static str)]| Upgrade::asked(&parts(fields), false, false);
        for protocol in ["websocket", "WebSocket", "tcp", "foo/2", "derp"] {
            let found = asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", protocol)]);
            assert_eq!(found, Some(Upgrade::Connection(HeaderValue::from_static(protocol))));
        }
        for protocol in [
            "h2c",
            "H2C",
            "HTTP/2.0",
            "TLS/1.2",
            "websocket, h2c",
            "web socket",
            "",
            "a/",
            "/2",
            "h2",
            "x/1/2",
        ] {
            assert_eq!(asked(&[("connection", "upgrade"), ("upgrade", protocol)]), None, "{protocol:?}");
        }
        assert_eq!(asked(&[("upgrade", "websocket")]), None, "Connection does not say it");
        assert_eq!(asked(&[("connection", "upgraded"), ("upgrade", "websocket")]), None);
        assert_eq!(asked(&[("connection", "upgrade")]), None);
        let twice = [("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")];
        assert_eq!(asked(&twice), None);
        let mut plain = parts(&twice[..2]);
        assert_eq!(Upgrade::asked(&plain, true, false), None, "a body comes first");
        plain.version = Version::HTTP_10;
        assert_eq!(Upgrade::asked(&plain, false, false), None);
        plain.version = Version::HTTP_2;
        assert_eq!(Upgrade::asked(&plain, false, false), None);
    }

    #[test]
    fn a_stream_is_asked_for_and_granted_as_rfc_8441_says() {
        let mut parts = parts(&[("te", "trailers"), ("connection", "te"), ("sec-websocket-key", "theirs")]);
        (parts.method, parts.version) = (Method::CONNECT, Version::HTTP_2);
        assert!(!is_websocket_stream(&parts), "a plain CONNECT");
        parts.extensions.insert(Protocol::from_static("websocket"));
        assert!(is_websocket_stream(&parts));
        let upgrade = Upgrade::asked(&parts, false, true).unwrap();
        upgrade.ask(&mut parts.headers);
        assert_eq!(parts.headers[UPGRADE].as_bytes(), b"websocket");
        assert_eq!((&parts.headers[CONNECTION], parts.headers.get(TE)), (&SWITCH, None));
        assert_eq!(parts.headers[SEC_WEBSOCKET_VERSION], "13");
        let key = &parts.headers[SEC_WEBSOCKET_KEY];
        assert_eq!(STANDARD.decode(key).unwrap().len(), 16);
        let mut answer = HeaderMap::new();
        answer.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        assert!(!upgrade.is_granted(&answer), "no key was understood");
        answer.insert(SEC_WEBSOCKET_ACCEPT, accept(key).parse().unwrap());
        assert!(upgrade.is_granted(&answer));
        assert!(upgrade.is_mistaken_by(StatusCode::OK) && !upgrade.is_mistaken_by(StatusCode::FORBIDDEN));
        assert_eq!(upgrade.grant(&mut answer), StatusCode::OK);
        assert!(!answer.contains_key(SEC_WEBSOCKET_ACCEPT));
        parts.extensions.insert(Protocol::from_static("connect-udp"));
        assert!(!is_websocket_stream(&parts));
    }

    #[test]
    fn a_101_has_to_name_what_was_asked_for_and_nothing_else() {
        // The example of RFC 6455 section 1.3.
        assert_eq!(
            accept(&HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==")),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let upgrade = Upgrade::Connection(HeaderValue::from_static("websocket"));
        for (fields, granted) in [
            (&["websocket"][..], true),
            (&["WEBSOCKET"], true),
            (&[], false),
            (&["h2c"], false),
            (&["websocket, h2c"], false),
            (&["websocket", "h2c"], false),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(UPGRADE, HeaderValue::from_static(field));
            }
            assert_eq!(upgrade.is_granted(&headers), granted, "{fields:?}");
        }
        assert!(!upgrade.is_mistaken_by(StatusCode::OK));
    }
}
