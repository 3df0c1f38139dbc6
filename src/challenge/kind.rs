//! The kinds of challenges, and where the record of one stands.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::name::{DnsName, HostName};

/// How a CA looks whether a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChallengeKind {
    /// A TXT record for this order (RFC 8555 section 8.4).
    Dns01,
    /// A file below `/.well-known/` on port 80 (RFC 8555 section 8.3).
    Http01,
    /// A certificate in a handshake on port 443 (RFC 8737).
    TlsAlpn01,
    /// As dns-01, at a name of the account's own (draft-ietf-acme-dns-account-label).
    DnsAccount01,
    /// A TXT record that a person added once and that stays (draft-ietf-acme-dns-persist).
    DnsPersist01,
}

impl ChallengeKind {
    /// All there are.
    pub const ALL: [Self; 5] =
        [Self::Dns01, Self::Http01, Self::TlsAlpn01, Self::DnsAccount01, Self::DnsPersist01];

    /// The word for it, as CAs and the configuration write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns01 => "dns-01",
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::DnsAccount01 => "dns-account-01",
            Self::DnsPersist01 => "dns-persist-01",
        }
    }

    /// The kind of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Whether somebody has to write TXT records for it.
    pub fn writes_records(self) -> bool {
        matches!(self, Self::Dns01 | Self::DnsAccount01)
    }

    /// Whether it can prove `*.example.com`. The others look at one host (RFC 8555 section 8.3, RFC 8737 section 3).
    pub fn proves_wildcards(self) -> bool {
        !matches!(self, Self::Http01 | Self::TlsAlpn01)
    }

    /// Whether what stands in DNS names the account: then another account would not do.
    pub fn pins_account(self) -> bool {
        matches!(self, Self::DnsAccount01 | Self::DnsPersist01)
    }
}

impl fmt::Display for ChallengeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the records of dns-account-01 stand: `_LABEL._acme-challenge.NAME`, where the label is the base32 of the first ten octets of the URL's digest.
pub fn account_challenge(account: &str, name: &HostName) -> DnsName {
    let label = base32(&Sha256::digest(account)[..10]);
    DnsName::acme_challenge(name).with_label(&format!("_{label}"))
}

/// RFC 4648 section 6 in lower case, for a multiple of five octets: there is no padding then.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::with_capacity(bytes.len() * 8 / 5);
    for chunk in bytes.chunks(5) {
        let bits = chunk.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        for place in (0..chunk.len() * 8 / 5).rev() {
            text.push(char::from(ALPHABET[usize::try_from(bits >> (place * 5) & 31).unwrap_or(0)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for kind in ChallengeKind::ALL {
            assert_eq!(ChallengeKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(ChallengeKind::parse("dns-02"), None);
    }

    /// The draft's own examples.
    #[test]
    fn the_label_of_an_account() {
        for (account, label) in [
            ("https://example.com/acme/acct/1", "vrr7uudrklshxb6l"),
            ("https://example.com/acme/acct/12345", "ao3pcvmacvwyw63b"),
            ("https://example.com/acme/acct/ExampleAccount", "ujmmovf2vn55tgye"),
        ] {
            let name = account_challenge(account, &HostName::parse("example.org").unwrap());
            assert_eq!(name.as_str(), format!("_{label}._acme-challenge.example.org"));
        }
    }
}
