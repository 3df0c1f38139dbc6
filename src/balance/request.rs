//! What of a request decides its server.

use std::net::IpAddr;

use http::{HeaderMap, header};

use super::choice::hash;
use super::spec::HashKey;
use super::sticky::Token;

/// What is known of a request when its server is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The request's fields.
    pub headers: &'a HeaderMap,
    /// The path that is sent to the server.
    pub path: &'a str,
}

/// What a request says about its server. Made once for a request, good for all its attempts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preference {
    pub(super) key: u64,
    pub(super) token: Option<Token>,
}

/// Servers that a request was sent to already.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    pub(super) ids: [u64; Self::MOST],
    pub(super) count: usize,
}

impl Tried {
    /// More attempts than any configuration allows.
    pub const MOST: usize = 16;

    /// Takes note of a server's id.
    pub fn add(&mut self, id: u64) {
        if let Some(slot) = self.ids.get_mut(self.count) {
            *slot = id;
            self.count += 1;
        }
    }

    /// Whether the server was tried.
    pub fn has(&self, id: u64) -> bool {
        self.ids[..self.count].contains(&id)
    }

    /// How many were tried.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl HashKey {
    /// The place of a request on the ring.
    pub(super) fn of(&self, ask: &Ask<'_>) -> u64 {
        let own = match self {
            Self::Ip => None,
            Self::Header(name) => ask.headers.get(name).map(|value| hash(value.as_bytes())),
            Self::Cookie(name) => cookie(ask.headers, name).map(hash),
            Self::Path => Some(hash(ask.path.as_bytes())),
        };
        own.unwrap_or_else(|| match ask.client {
            IpAddr::V4(address) => hash(&address.octets()),
            IpAddr::V6(address) => hash(&address.octets()),
        })
    }
}

/// The value of the cookie `name`; of several, the first.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    // Bytes: what another cookie holds is no reason to overlook this one.
    let fields = headers.get_all(header::COOKIE).iter();
    let mut crumbs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    crumbs.find_map(|crumb| crumb.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_request_without_its_key_goes_by_its_address() {
        let mut headers = HeaderMap::new();
        headers.append("x-user", "ann".parse().unwrap());
        headers.append(header::COOKIE, "a=1; user=bob".parse().unwrap());
        headers.append(header::COOKIE, "user=carl; c".parse().unwrap());
        headers.append(header::COOKIE, HeaderValue::from_bytes(b"t=\xff\xe9; late=dora").unwrap());
        let ask = Ask { client: [192, 0, 2, 1].into(), headers: &headers, path: "/x" };
        let ip = hash(&[192, 0, 2, 1]);
        for (key, expected) in [
            (HashKey::Ip, ip),
            (HashKey::Header("x-user".parse().unwrap()), hash(b"ann")),
            (HashKey::Header("x-other".parse().unwrap()), ip),
            (HashKey::Cookie("user".into()), hash(b"bob")),
            (HashKey::Cookie("late".into()), hash(b"dora")),
            (HashKey::Cookie("t".into()), hash(b"\xff\xe9")),
            (HashKey::Cookie("use".into()), ip),
            (HashKey::Cookie("c".into()), ip),
            (HashKey::Path, hash(b"/x")),
        ] {
            assert_eq!(key.of(&ask), expected, "{key:?}");
        }
    }
}
