//! Who the client is, seen through proxies that we trust.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

/// The client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// Whether `peer` is one of the trusted proxies: what it says of the client is believed.
    pub trusted: bool,
}

impl Client {
    /// Reads `X-Forwarded-For` from right to left, through trusted proxies, to the first address that is not one of them. What
    /// stands left of an entry that is no address is not believed.
    pub fn of(peer: IpAddr, trusted: &[IpNet], headers: &HeaderMap) -> Self {
        let peer = peer.to_canonical();
        let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        if trusted.is_empty() || !is_trusted(&peer) {
            return Self { address: peer, peer, trusted: false };
        }
        let mut address = peer;
        'chain: for value in headers.get_all("x-forwarded-for").iter().rev() {
            for entry in value.as_bytes().rsplit(|b| *b == b',') {
                let Some(found) = std::str::from_utf8(entry).ok().and_then(|text| entry_address(text.trim()))
                else {
                    break 'chain;
                };
                address = found.to_canonical();
                if !is_trusted(&address) {
                    break 'chain;
                }
            }
        }
        Self { address, peer, trusted: true }
    }
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]` or `[::1]:5`.
fn entry_address(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']')?.0.parse().ok();
    }
    text.parse().ok().or_else(|| text.split_once(':')?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, trusted: &[&str], forwarded: &[&str]) -> (String, bool) {
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let client = Client::of(peer.parse().unwrap(), &trusted, &headers);
        (client.address.to_string(), client.trusted)
    }

    #[test]
    fn the_first_address_that_is_not_trusted_from_the_right() {
        let (lan, six) = ("10.0.0.0/8", "2001:db8::/32");
        for (peer, trusted, forwarded, expected) in [
            ("10.0.0.1", &[][..], &["1.1.1.1"][..], ("10.0.0.1", false)),
            ("9.9.9.9", &[lan], &["1.1.1.1"], ("9.9.9.9", false)),
            ("10.0.0.1", &[lan], &[], ("10.0.0.1", true)),
            ("10.0.0.1", &[lan], &["1.1.1.1"], ("1.1.1.1", true)),
            ("10.0.0.1", &[lan], &["6.6.6.6, 1.1.1.1"], ("1.1.1.1", true)),
            ("10.0.0.1", &[lan], &["6.6.6.6, 1.1.1.1, 10.0.0.7"], ("1.1.1.1", true)),
            ("10.0.0.1", &[lan], &["6.6.6.6", "1.1.1.1,10.0.0.7"], ("1.1.1.1", true)),
            ("10.0.0.1", &[lan], &["10.0.0.5,10.0.0.7"], ("10.0.0.5", true)),
            ("10.0.0.1", &[lan], &["1.1.1.1, nonsense, 10.0.0.7"], ("10.0.0.7", true)),
            ("10.0.0.1", &[lan], &["1.1.1.1:4711"], ("1.1.1.1", true)),
            ("10.0.0.1", &[lan], &["[2001:db8::1]:80"], ("2001:db8::1", true)),
            ("10.0.0.1", &[lan, six], &["::1, [2001:db8::1]"], ("::1", true)),
            ("::ffff:10.0.0.1", &[lan], &["::ffff:1.1.1.1"], ("1.1.1.1", true)),
        ] {
            let (address, is_trusted) = client(peer, trusted, forwarded);
            assert_eq!((&*address, is_trusted), expected, "{peer} {trusted:?} {forwarded:?}");
        }
    }
}
