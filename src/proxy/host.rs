//! Which host a request is for. One answer, or none.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::header::HOST;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Uri};

/// Host and port of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Lower case, no port, no trailing dot, no brackets.
    pub host: Cow<'a, str>,
    /// As the client named it.
    pub port: Option<u16>,
}

/// Why it is not clear which host a request is for. The client is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Neither the target nor a field names one.
    #[error("the request names no host")]
    Missing,
    /// More than one Host field (RFC 9112 section 3.2).
    #[error("the request names several hosts")]
    Multiple,
    /// Not `host[:port]`, or with user information.
    #[error("the host is not a name or an address with an optional port")]
    Malformed,
    /// The target and the Host field disagree.
    #[error("the request target and the Host field name different hosts")]
    Different,
}

impl<'a> Authority<'a> {
    /// Parses `host[:port]`. User information is refused.
    pub fn parse(text: &'a str) -> Result<Self, HostError> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or(HostError::Malformed)?;
                let address: Ipv6Addr = address.parse().map_err(|_| HostError::Malformed)?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':').ok_or(HostError::Malformed)?),
                };
                (Cow::Owned(address.to_string()), port)
            }
            None => {
                let (host, port) = match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                };
                (name(host)?, port)
            }
        };
        let port = match port {
            None | Some("") => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| HostError::Malformed)?)
            }
            Some(_) => return Err(HostError::Malformed),
        };
        Ok(Self { host, port })
    }

    /// The host of a request, from its target and its Host fields.
    pub fn of(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Self, HostError> {
        let mut fields = headers.get_all(HOST).iter();
        let field = fields.next().map(text).transpose()?;
        if fields.next().is_some() {
            return Err(HostError::Multiple);
        }
        match (uri.authority(), field) {
            (None, None) => Err(HostError::Missing),
            (None, Some(host)) => Self::parse(host),
            // HTTP/2 has its `:authority` here, and needs no Host.
            (Some(authority), None) => Self::parse(authority.as_str()),
            (Some(authority), Some(host)) => {
                let (target, field) = (Self::parse(authority.as_str())?, Self::parse(host)?);
                let default = match uri.scheme() {
                    Some(scheme) if *scheme == Scheme::HTTP => 80,
                    _ => 443,
                };
                let same = target.host == field.host
                    && target.port.unwrap_or(default) == field.port.unwrap_or(default);
                if same { Ok(field) } else { Err(HostError::Different) }
            }
        }
    }

    /// `host[:port]` as it is forwarded: what was matched, with its port.
    pub fn to_text(&self) -> String {
        let mut text = bracketed(&self.host).into_owned();
        if let Some(port) = self.port {
            text.push(':');
            text.push_str(&port.to_string());
        }
        text
    }

    /// Whether `text` is what [`Authority::to_text`] says. Allocates nothing.
    pub fn is_text(&self, text: &[u8]) -> bool {
        let rest = match text.strip_prefix(b"[") {
            Some(rest) if self.host.contains(':') => {
                rest.strip_prefix(self.host.as_bytes()).and_then(|rest| rest.strip_prefix(b"]"))
            }
            Some(_) => None,
            None => text.strip_prefix(self.host.as_bytes()).filter(|_| !self.host.contains(':')),
        };
        match (rest, self.port) {
            (Some([]), None) => true,
            (Some([b':', digits @ ..]), Some(port)) => {
                let canonical =
                    digits.iter().all(u8::is_ascii_digit) && (!digits.starts_with(b"0") || digits == b"0");
                canonical && std::str::from_utf8(digits).is_ok_and(|digits| digits.parse() == Ok(port))
            }
            _ => false,
        }
    }

    /// [`Authority::to_text`] as a field value; takes `given` over if it says the same.
    pub fn to_value(&self, given: Option<&HeaderValue>) -> Option<HeaderValue> {
        match given {
            Some(value) if self.is_text(value.as_bytes()) => Some(value.clone()),
            _ => HeaderValue::from_maybe_shared(bytes::Bytes::from(self.to_text())).ok(),
        }
    }
}

/// `host` as it stands in a URL.
pub(super) fn bracketed(host: &str) -> Cow<'_, str> {
    if host.contains(':') { Cow::Owned(format!("[{host}]")) } else { Cow::Borrowed(host) }
}

fn text(value: &HeaderValue) -> Result<&str, HostError> {
    value.to_str().map_err(|_| HostError::Malformed)
}

fn name(text: &str) -> Result<Cow<'_, str>, HostError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut upper = false;
    let mut label = 0;
    for byte in text.bytes() {
        match byte {
            b'.' if label == 0 => return Err(HostError::Malformed),
            b'.' => label = 0,
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
            b'A'..=b'Z' => {
                upper = true;
                label += 1;
            }
            _ => return Err(HostError::Malformed),
        }
    }
    if label == 0 || text.len() > 253 {
        return Err(HostError::Malformed);
    }
    Ok(if upper { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(target: &str, hosts: &[&str]) -> Result<(String, Option<u16>), HostError> {
        let uri: Uri = target.parse().unwrap();
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        Authority::of(&uri, &headers).map(|a| (a.host.into_owned(), a.port))
    }

    #[test]
    fn what_a_host_is() {
        for (text, host, port, forwarded) in [
            ("a.test", "a.test", None, "a.test"),
            ("A.Test.", "a.test", None, "a.test"),
            ("a.test.:8443", "a.test", Some(8443), "a.test:8443"),
            ("a.test:", "a.test", None, "a.test"),
            ("127.0.0.1:80", "127.0.0.1", Some(80), "127.0.0.1:80"),
            ("[0:0::1]:80", "::1", Some(80), "[::1]:80"),
            ("[::1]", "::1", None, "[::1]"),
            ("my_host", "my_host", None, "my_host"),
        ] {
            let authority = Authority::parse(text).unwrap();
            assert_eq!((&*authority.host, authority.port), (host, port), "{text}");
            assert_eq!(authority.to_text(), forwarded, "{text}");
            assert!(authority.is_text(forwarded.as_bytes()), "{text}");
            for other in [
                "",
                "[",
                "a.tes",
                "a.test:",
                "a.test:08443",
                "a.test:+8443",
                "b.test",
                "[a.test]",
                "::1",
                "[::1]:",
            ] {
                assert!(!authority.is_text(other.as_bytes()), "{text} {other}");
            }
        }
        let long = format!("{}.test", "a.".repeat(130));
        for bad in [
            "",
            ".",
            ":80",
            "a..b",
            ".a",
            "a b",
            "a/b",
            "user@a.test",
            "a.test:80:80",
            "a.test:+80",
            "a.test:99999",
            "::1",
            "[::1",
            "[::1]80",
            "[a.test]",
            "a%2eb",
            "ü.test",
            "a,b",
            &long,
        ] {
            assert_eq!(Authority::parse(bad), Err(HostError::Malformed), "{bad}");
        }
    }

    #[test]
    fn one_host_and_only_one() {
        assert_eq!(of("/", &["a.test"]), Ok(("a.test".into(), None)));
        assert_eq!(of("/", &[]), Err(HostError::Missing));
        assert_eq!(of("/", &["a.test", "a.test"]), Err(HostError::Multiple));
        assert_eq!(of("/", &["a\u{fc}"]), Err(HostError::Malformed));
        assert_eq!(of("http://a.test/", &["A.test"]), Ok(("a.test".into(), None)));
        assert_eq!(of("http://a.test:80/", &["a.test"]), Ok(("a.test".into(), None)));
        assert_eq!(of("https://a.test/", &["a.test:443"]), Ok(("a.test".into(), Some(443))));
        assert_eq!(of("http://a.test:443/", &["a.test"]), Err(HostError::Different));
        assert_eq!(of("http://b.test/", &["a.test"]), Err(HostError::Different));
        assert_eq!(of("http://u@a.test/", &["a.test"]), Err(HostError::Malformed));
        assert_eq!(of("https://a.test/", &[]), Ok(("a.test".into(), None)), "as HTTP/2 does");
    }
}
