//! Who the client is, seen through proxies that we trust.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use super::forwarded::{self, Hop};
use super::host::Authority;
use crate::conn::{ConnInfo, Introduction};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The field in which trusted proxies say who their client is. They pass the other one on as that client sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrustedHeader {
    /// `X-Forwarded-For`; beside it, `X-Forwarded-*` and `X-Real-IP` are theirs.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239), and nothing else.
    Forwarded,
}

impl TrustedHeader {
    /// Both, as the configuration spells them.
    pub const WORDS: [&'static str; 2] = ["x-forwarded-for", "forwarded"];

    /// One of [`Self::WORDS`].
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::XForwardedFor, Self::Forwarded].into_iter().find(|header| header.name() == word)
    }

    /// Its name.
    pub fn name(self) -> HeaderName {
        match self {
            Self::XForwardedFor => X_FORWARDED_FOR,
            Self::Forwarded => header::FORWARDED,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::XForwardedFor => Self::Forwarded,
            Self::Forwarded => Self::XForwardedFor,
        }
    }
}

/// The client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// If `peer` is one of the trusted proxies: where it says who the client is.
    pub trusted: Option<TrustedHeader>,
    /// What its client came by, `http` or `https`, if `Forwarded` says so.
    pub scheme: Option<&'static str>,
}

impl Client {
    /// Reads the field `header` from right to left, through trusted proxies, to the first address that is not one of them. What
    /// stands left of an entry that is no address is not believed, nor is what the other field says: who writes only one of them
    /// passes the other on as its client sent it.
    pub fn of(peer: IpAddr, trusted: &[IpNet], header: TrustedHeader, headers: &HeaderMap) -> Self {
        let peer = peer.to_canonical();
        let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        let mut client = Self { address: peer, peer, trusted: None, scheme: None };
        if trusted.is_empty() || !is_trusted(&peer) {
            return client;
        }
        client.trusted = Some(header);
        let values = headers.get_all(header.name()).iter().rev();
        match header {
            TrustedHeader::XForwardedFor => {
                let entries = values.flat_map(|value| value.as_bytes().rsplit(|b| *b == b','));
                client.walk(
                    entries.map(|entry| Hop { address: entry_address(entry), scheme: None }),
                    is_trusted,
                );
            }
            TrustedHeader::Forwarded => {
                client.walk(values.flat_map(|value| forwarded::hops(value.as_bytes())), is_trusted);
            }
        }
        client
    }

    /// Goes back from hop to hop for as long as they are trusted.
    fn walk(&mut self, hops: impl Iterator<Item = Hop>, is_trusted: impl Fn(&IpAddr) -> bool) {
        for Hop { address, scheme } in hops {
            let Some(address) = address else { return };
            (self.address, self.scheme) = (address, scheme);
            if !is_trusted(&address) {
                return;
            }
        }
    }

    /// Says, once, that its trusted proxy seems to write the other field: then all who come through it are taken for one client, and
    /// any of them can choose whom it is taken for.
    pub(super) fn look_for_mistake(&self, headers: &HeaderMap) {
        static SAID: AtomicBool = AtomicBool::new(false);
        let Some(header) = self.trusted else { return };
        let (name, other) = (header.name(), header.other().name());
        if !headers.contains_key(&name) && headers.contains_key(&other) && !SAID.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                peer = %self.peer,
                "one of listen.trusted_proxies sends `{other}` and no `{name}`: its clients are not told apart, and what they say of \
                 themselves in `{name}` would be believed; if it writes `{other}`, set listen.trusted_header = \"{other}\" (said once)"
            );
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
        let client = Client::of(peer.parse().unwrap(), &trusted, TrustedHeader::XForwardedFor, &headers);
        (client.address.to_string(), client.trusted.is_some())
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
    fn only_the_field_that_the_proxies_write_is_read() {
        use TrustedHeader::{Forwarded, XForwardedFor};
        for (header, plain, standard, expected) in [
            (Forwarded, &[][..], &["for=1.1.1.1"][..], ("1.1.1.1", None)),
            (
                Forwarded,
                &[],
                &["for=6.6.6.6;proto=http, for=1.1.1.1;proto=https, for=10.0.0.7;proto=http"],
                ("1.1.1.1", Some("https")),
            ),
            (
                Forwarded,
                &[],
                &["for=6.6.6.6", "For=\"1.1.1.1:4711\";Proto=\"HTTP\""],
                ("1.1.1.1", Some("http")),
            ),
            (Forwarded, &[], &["for=\"[2001:db8::1]:80\";proto=ftp"], ("2001:db8::1", None)),
            (Forwarded, &[], &["for=1.1.1.1, for=unknown"], ("10.0.0.1", None)),
            (Forwarded, &[], &["for=1.1.1.1, for=_hidden, for=10.0.0.7"], ("10.0.0.7", None)),
            (Forwarded, &[], &["for=1.1.1.1, proto=http"], ("10.0.0.1", None)),
            // Whatever a client leaves open ends where the proxy begins.
            (Forwarded, &[], &["for=\", for=1.1.1.1"], ("1.1.1.1", None)),
            (Forwarded, &[], &["for=\"\\, for=1.1.1.1"], ("1.1.1.1", None)),
            // The other field is the client's own, whatever it says.
            (XForwardedFor, &["1.1.1.1"], &["for=6.6.6.6;proto=https"], ("1.1.1.1", None)),
            (XForwardedFor, &["1.1.1.1"], &["for=unknown"], ("1.1.1.1", None)),
            (XForwardedFor, &["1.1.1.1"], &["for=10.0.0.7"], ("1.1.1.1", None)),
            (XForwardedFor, &["1.1.1.1, 10.0.0.7"], &["for=6.6.6.6"], ("1.1.1.1", None)),
            (XForwardedFor, &["unknown"], &["for=6.6.6.6"], ("10.0.0.1", None)),
            (XForwardedFor, &[], &["for=6.6.6.6"], ("10.0.0.1", None)),
            (Forwarded, &["6.6.6.6"], &["for=1.1.1.1"], ("1.1.1.1", None)),
            (Forwarded, &["nonsense"], &["for=1.1.1.1"], ("1.1.1.1", None)),
            (Forwarded, &["6.6.6.6, 10.0.0.7"], &["for=1.1.1.1, for=10.0.0.7"], ("1.1.1.1", None)),
            (Forwarded, &["6.6.6.6"], &[], ("10.0.0.1", None)),
        ] {
            let mut headers = HeaderMap::new();
            for (name, values) in [("x-forwarded-for", plain), ("forwarded", standard)] {
                for value in values {
                    headers.append(name, value.parse().unwrap());
                }
            }
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let client = Client::of([10, 0, 0, 1].into(), &trusted, header, &headers);
            let (address, scheme) = (expected.0.parse().unwrap(), expected.1);
            let wanted = Client { address, peer: [10, 0, 0, 1].into(), trusted: Some(header), scheme };
            assert_eq!(client, wanted, "{header:?} {plain:?} {standard:?}");
            let stranger = Client::of([9, 9, 9, 9].into(), &trusted, header, &headers);
            assert_eq!((stranger.address, stranger.trusted), (stranger.peer, None));
        }
        for word in TrustedHeader::WORDS {
            assert_eq!(TrustedHeader::from_word(word).unwrap().name(), word);
        }
    }

    proptest::proptest! {
        /// What `fuzz/fuzz_targets/forwarded.rs` looks at longer: left of the nearest hop that is not trusted anything may stand, and
        /// anything in the other field.
        #[test]
        fn what_a_stranger_says_changes_nothing(
            claim in r#"(for=|"|\\|,|;| |=|1\.1\.1\.1|10\.0\.0\.7|\[|\]|:|x){0,16}"#,
            hops in proptest::collection::vec(proptest::sample::select(vec!["for=10.0.0.7", "For=\"10.0.0.8:80\";proto=https"]), 0..3),
            plain in proptest::bool::ANY,
            both in proptest::bool::ANY,
        ) {
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let mut headers = HeaderMap::new();
            let header = if plain { TrustedHeader::XForwardedFor } else { TrustedHeader::Forwarded };
            let chain: Vec<&str> = std::iter::once("for=9.9.9.9").chain(hops).collect();
            let chain = if plain { "9.9.9.9".to_owned() } else { chain.join(", ") };
            headers.append(header.name(), format!("{claim}, {chain}").parse().unwrap());
            if both {
                headers.append(header.other().name(), claim.parse().unwrap());
            }
            let client = Client::of([10, 0, 0, 1].into(), &trusted, header, &headers);
            proptest::prop_assert_eq!(client.address.to_string(), "9.9.9.9");
        }
    }
}
