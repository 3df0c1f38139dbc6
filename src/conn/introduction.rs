//! What servers are told of the client of a connection.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::HeaderValue;

/// What servers are told of a client that nobody else speaks for. The same for all requests of a connection for one host.
#[derive(Debug)]
pub struct Introduction {
    /// `Host`: what was matched, with its port.
    pub host: HeaderValue,
    /// The address, for `X-Forwarded-For` and `X-Real-IP`.
    pub address: HeaderValue,
    /// `Forwarded` (RFC 7239).
    pub forwarded: HeaderValue,
}

impl Introduction {
    /// Introduces the client at `peer`, which asks for `host` by `scheme`.
    pub fn new(peer: IpAddr, scheme: &str, host: HeaderValue) -> Self {
        let forwarded = Element { peer, host: &host, scheme }.to_string();
        // Both are of printable ASCII.
        let value = |text: String| {
            HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static(""))
        };
        Self { host, address: value(peer.to_string()), forwarded: value(forwarded) }
    }
}

/// An element of `Forwarded` (RFC 7239 section 4). The host was parsed: it holds nothing that a quoted string would have to escape.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    /// Who sent the request.
    pub peer: IpAddr,
    /// `Host`.
    pub host: &'a HeaderValue,
    /// `https` or `http`.
    pub scheme: &'a str,
}

impl fmt::Display for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.to_str().unwrap_or_default();
        write!(f, "for={};host=\"{host}\";proto={}", Node(self.peer), self.scheme)
    }
}

/// An address as `Forwarded` writes it (RFC 7239 section 6).
#[derive(Clone, Copy, Debug)]
pub struct Node(pub IpAddr);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => v4.fmt(f),
            IpAddr::V6(v6) => write!(f, "\"[{v6}]\""),
        }
    }
}

/// The introduction that a connection's last request was given: most connections ask for one host only.
#[derive(Clone, Debug, Default)]
pub struct Introduced(RefCell<Option<Rc<Introduction>>>);

impl Introduced {
    /// The last one if `fits` says so of its host, else a new one. `None` if `make` has none.
    pub fn get_or(
        &self,
        fits: impl FnOnce(&HeaderValue) -> bool,
        make: impl FnOnce() -> Option<Introduction>,
    ) -> Option<Rc<Introduction>> {
        let mut last = self.0.borrow_mut();
        if let Some(last) = last.as_ref().filter(|last| fits(&last.host)) {
            return Some(last.clone());
        }
        let new = Rc::new(make()?);
        *last = Some(new.clone());
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_introduction_is_made_once_for_each_host() {
        let introduced = Introduced::default();
        let ask = |host: &'static str| {
            let make =
                || Some(Introduction::new([10, 0, 0, 1].into(), "https", HeaderValue::from_static(host)));
            introduced.get_or(|last| *last == host, make).unwrap()
        };
        let first = ask("a.test");
        assert_eq!(first.address, "10.0.0.1");
        assert_eq!(first.forwarded, "for=10.0.0.1;host=\"a.test\";proto=https");
        assert!(Rc::ptr_eq(&first, &ask("a.test")));
        let other = ask("b.test");
        assert_eq!(other.forwarded, "for=10.0.0.1;host=\"b.test\";proto=https");
        assert!(!Rc::ptr_eq(&first, &ask("a.test")));
        let six =
            Introduction::new("2001:db8::1".parse().unwrap(), "http", HeaderValue::from_static("a.test:80"));
        assert_eq!(six.address, "2001:db8::1");
        assert_eq!(six.forwarded, "for=\"[2001:db8::1]\";host=\"a.test:80\";proto=http");
    }
}
