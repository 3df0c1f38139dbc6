//! Who the client is, seen through proxies that we trust.

use std::net::IpAddr;
use std::rc::Rc;

use http::{HeaderMap, header};
use ipnet::IpNet;

use super::forwarded;
use super::host::Authority;
use crate::conn::{ConnInfo, Introduction};

/// The client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// Whether `peer` is one of the trusted proxies: what it says of the client is believed.
    pub trusted: bool,
    /// `X-Forwarded-For` and `Forwarded` tell of different clients, so that `address` is no more than `peer`. A trusted proxy has
    /// written one of them, and whoever sent the other may be the client: the request cannot be attributed.
    pub disputed: bool,
}

impl Client {
    /// Reads `X-Forwarded-For` and `Forwarded` (RFC 7239) from right to left, through trusted proxies, to the first address that is
    /// not one of them. What stands left of an entry that is no address is not believed.
    ///
    /// If both are there they have to say the same of each hop, as far as both go: a proxy that writes only one of them passes
    /// the other on as its client sent it, and nothing in a request shows which one that is.
    pub fn of(peer: IpAddr, trusted: &[IpNet], headers: &HeaderMap) -> Self {
        let peer = peer.to_canonical();
        let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        let mut client = Self { address: peer, peer, trusted: false, disputed: false };
        if trusted.is_empty() || !is_trusted(&peer) {
            return client;
        }
        client.trusted = true;
        let values = headers.get_all("x-forwarded-for").iter().rev();
        let mut plain = values.flat_map(|value| value.as_bytes().rsplit(|b| *b == b',')).map(entry_address);
        let values = headers.get_all(header::FORWARDED).iter().rev();
        let mut standard = values.flat_map(|value| forwarded::hops(value.as_bytes()));
        loop {
            let hop = match (plain.next(), standard.next()) {
                (Some(one), Some(other)) if one != other => {
                    return Self { address: peer, disputed: true, ..client };
                }
                (one, other) => one.or(other),
            };
            let Some(Some(found)) = hop else { return client };
            client.address = found;
            if !is_trusted(&found) {
                return client;
            }
        }
    }

    /// What servers are told of the other end of `conn` in a request with `fields` for `authority`. `None`: it is no host.
    pub(super) fn introduce(
        &self,
        conn: &ConnInfo,
        authority: &Authority<'_>,
        fields: &HeaderMap,
    ) -> Option<Rc<Introduction>> {
        conn.introduced.get_or(
            |host| authority.is_text(host.as_bytes()),
            || {
                let host = authority.to_value(fields.get(header::HOST))?;
                Some(Introduction::new(self.peer, conn.scheme(), host))
            },
        )
    }
}

/// `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]` or `[::1]:5`.
fn entry_address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let address: IpAddr = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0.parse().ok()?,
        None => text.parse().ok().or_else(|| text.split_once(':')?.0.parse().ok())?,
    };
    Some(address.to_canonical())
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

    #[test]
    fn two_fields_have_to_say_the_same() {
        for (plain, standard, expected) in [
            (&[][..], &["for=1.1.1.1"][..], Some("1.1.1.1")),
            (&[], &["for=6.6.6.6, for=1.1.1.1;proto=https, for=10.0.0.7"], Some("1.1.1.1")),
            (&[], &["for=6.6.6.6", "For=\"1.1.1.1:4711\""], Some("1.1.1.1")),
            (&[], &["for=\"[2001:db8::1]:80\""], Some("2001:db8::1")),
            (&[], &["for=1.1.1.1, for=unknown"], Some("10.0.0.1")),
            (&[], &["for=1.1.1.1, for=_hidden, for=10.0.0.7"], Some("10.0.0.7")),
            (&[], &["for=1.1.1.1, proto=http"], Some("10.0.0.1")),
            // Whatever a client leaves open ends where the proxy begins.
            (&[], &["for=\", for=1.1.1.1"], Some("1.1.1.1")),
            (&[], &["for=\"\\, for=1.1.1.1"], Some("1.1.1.1")),
            // Both, from one proxy or from several of which some write only one.
            (&["6.6.6.6, 1.1.1.1"], &["for=7.7.7.7, for=1.1.1.1"], Some("1.1.1.1")),
            (&["1.1.1.1, 10.0.0.7"], &["for=10.0.0.7"], Some("1.1.1.1")),
            (&["10.0.0.7"], &["for=1.1.1.1, for=\"10.0.0.7\""], Some("1.1.1.1")),
            (&["unknown"], &["for=unknown"], Some("10.0.0.1")),
            (&["::ffff:1.1.1.1"], &["for=1.1.1.1"], Some("1.1.1.1")),
            // One of them is the client's own.
            (&["1.1.1.1"], &["for=6.6.6.6"], None),
            (&["6.6.6.6"], &["for=1.1.1.1"], None),
            (&["6.6.6.6, 10.0.0.7"], &["for=1.1.1.1, for=10.0.0.7"], None),
            (&["1.1.1.1"], &["for=10.0.0.7"], None),
            (&["1.1.1.1"], &["for=unknown"], None),
            (&["nonsense"], &["for=1.1.1.1"], None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, values) in [("x-forwarded-for", plain), ("forwarded", standard)] {
                for value in values {
                    headers.append(name, value.parse().unwrap());
                }
            }
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let client = Client::of([10, 0, 0, 1].into(), &trusted, &headers);
            let address = expected.unwrap_or("10.0.0.1").parse().unwrap();
            let wanted = Client { address, disputed: expected.is_none(), ..client };
            assert_eq!(client, wanted, "{plain:?} {standard:?}");
            let stranger = Client::of([9, 9, 9, 9].into(), &trusted, &headers);
            assert_eq!((stranger.address, stranger.disputed), (stranger.peer, false));
        }
    }

    proptest::proptest! {
        /// What `fuzz/fuzz_targets/forwarded.rs` looks at longer: left of the nearest hop that is not trusted anything may stand.
        #[test]
        fn what_a_stranger_says_changes_nothing(
            claim in r#"(for=|"|\\|,|;| |=|1\.1\.1\.1|10\.0\.0\.7|\[|\]|:|x){0,16}"#,
            hops in proptest::collection::vec(proptest::sample::select(vec!["for=10.0.0.7", "For=\"10.0.0.8:80\";proto=https"]), 0..3),
            plain in proptest::bool::ANY,
            both in proptest::bool::ANY,
        ) {
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let mut headers = HeaderMap::new();
            let name = if plain { "x-forwarded-for" } else { "forwarded" };
            let chain: Vec<&str> = std::iter::once("for=9.9.9.9").chain(hops).collect();
            let chain = if plain { "9.9.9.9".to_owned() } else { chain.join(", ") };
            headers.append(name, format!("{claim}, {chain}").parse().unwrap());
            let client = Client::of([10, 0, 0, 1].into(), &trusted, &headers);
            proptest::prop_assert_eq!((client.address.to_string(), client.disputed), ("9.9.9.9".to_owned(), false));
            if both {
                let other = if plain { "forwarded" } else { "x-forwarded-for" };
                headers.append(other, claim.parse().unwrap());
                let client = Client::of([10, 0, 0, 1].into(), &trusted, &headers);
                proptest::prop_assert!(client.disputed || client.address.to_string() == "9.9.9.9");
            }
        }
    }
}
