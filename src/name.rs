//! Names: parsed once at the edge of the program, then compared as bytes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// A host name as it stands in a certificate: A-labels (IDNA 2008), lower case, no trailing dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("the name is empty")]
    Empty,
    /// Over the 253 octets of RFC 1035.
    #[error("the name is longer than 253 characters")]
    TooLong,
    /// A label is empty, over 63 octets, or has a character that host names do not have.
    #[error("`{0}` is not a valid host name label")]
    BadLabel(String),
    /// A `*` that is not the whole first label.
    #[error("`*` must be the whole first label, as in `*.example.com`")]
    BadWildcard,
    /// IDNA refused it.
    #[error("not a valid internationalised name")]
    Idna,
    /// An IP address where a name was wanted.
    #[error("`{0}` is an IP address, not a host name")]
    Address(IpAddr),
}

impl HostName {
    /// Parses what a person or a client wrote: any case, U-labels, one trailing dot allowed.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Err(NameError::Address(address));
        }
        let ascii = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_strict(text).map_err(|_| NameError::Idna)?
        };
        if ascii.len() > 253 {
            return Err(NameError::TooLong);
        }
        if let Some(bad) = ascii.split('.').find(|label| !is_host_label(label)) {
            return Err(NameError::BadLabel(bad.to_owned()));
        }
        // A name whose last label is numeric is read as an IPv4 address by browsers (WHATWG URL): refuse it.
        if ascii.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return Err(NameError::BadLabel(ascii.rsplit('.').next().unwrap_or_default().to_owned()));
        }
        Ok(Self(ascii.into()))
    }

    /// The name without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without its first label; `None` for a single label.
    pub fn parent(&self) -> Option<HostName> {
        self.0.split_once('.').map(|(_, rest)| Self(rest.into()))
    }

    /// Whether this name is `zone` or lies below it.
    pub fn is_in(&self, zone: &HostName) -> bool {
        is_in_zone(self.as_str(), zone.as_str())
    }
}

/// One `*` stands for exactly one label; addresses are names too, since certificates hold them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This name alone.
    Exact(HostName),
    /// Every name with exactly one label in front of this one.
    Wildcard(HostName),
    /// An address literal.
    Ip(IpAddr),
}

impl HostPattern {
    /// Parses `example.com`, `*.example.com`, `127.0.0.1`, `::1` or `[::1]`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Ip(address));
        }
        match text.strip_prefix("*.") {
            Some(rest) if rest.contains('*') => Err(NameError::BadWildcard),
            Some(rest) => HostName::parse(rest).map(Self::Wildcard),
            None if text.contains('*') => Err(NameError::BadWildcard),
            None => HostName::parse(text).map(Self::Exact),
        }
    }

    /// Whether a certificate for `self` is good for every host that `other` stands for.
    pub fn covers(&self, other: &HostPattern) -> bool {
        match (self, other) {
            (Self::Wildcard(zone), Self::Exact(name)) => name.parent().is_some_and(|parent| parent == *zone),
            _ => self == other,
        }
    }

    /// Every pattern that covers this one: itself, and the wildcard beside it.
    pub fn coverers(&self) -> impl Iterator<Item = HostPattern> + use<> {
        let wildcard = match self {
            Self::Exact(name) => name.parent().map(Self::Wildcard),
            _ => None,
        };
        [self.clone()].into_iter().chain(wildcard)
    }

    /// Whether `host` (lower case, no port, no trailing dot) is meant by this pattern. Allocates nothing.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name.as_str() == host,
            Self::Wildcard(zone) => {
                host.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && rest == zone.as_str())
            }
            Self::Ip(address) => host.parse::<IpAddr>().is_ok_and(|a| a == *address),
        }
    }

    /// The name that DNS-01 proves: `example.com` for itself and for `*.example.com`. `None` for an address.
    pub fn base(&self) -> Option<&HostName> {
        match self {
            Self::Exact(name) | Self::Wildcard(name) => Some(name),
            Self::Ip(_) => None,
        }
    }

    /// Whether this is `*.something`.
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Wildcard(_))
    }

    /// Whether this is a wildcard right below the root, such as `*.localhost`: no client takes one.
    pub fn is_below_root(&self) -> bool {
        matches!(self, Self::Wildcard(zone) if !zone.as_str().contains('.'))
    }

    /// Names that no public CA signs: `localhost`, `*.localhost`, `.internal`, addresses.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Ip(_) => true,
            Self::Exact(name) | Self::Wildcard(name) => {
                ["localhost", "internal"].iter().any(|zone| is_in_zone(name.as_str(), zone))
            }
        }
    }
}

/// A name in DNS, where labels such as `_acme-challenge` are allowed: lower case, no trailing dot, never empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName(Arc<str>);

impl DnsName {
    /// Parses a name of letters, digits, `-` and `_`, in any case, with or without the trailing dot.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > 253 {
            return Err(NameError::TooLong);
        }
        if let Some(bad) = text.split('.').find(|label| !is_dns_label(label)) {
            return Err(NameError::BadLabel(bad.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// `_acme-challenge.` in front of `base` (RFC 8555 section 8.4).
    pub fn acme_challenge(base: &HostName) -> Self {
        Self(format!("_acme-challenge.{base}").into())
    }

    /// `label` in front of this name.
    pub fn with_label(&self, label: &str) -> Self {
        Self(format!("{label}.{}", self.0).into())
    }

    /// The name without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name with the trailing dot.
    pub fn to_fqdn(&self) -> String {
        format!("{}.", self.0)
    }

    /// The name without its first label; `None` for a single label.
    pub fn parent(&self) -> Option<DnsName> {
        self.0.split_once('.').map(|(_, rest)| Self(rest.into()))
    }

    /// Whether this name is `zone` or lies below it.
    pub fn is_in(&self, zone: &DnsName) -> bool {
        is_in_zone(self.as_str(), zone.as_str())
    }
}

fn is_in_zone(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

fn is_host_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_dns_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

impl From<&HostName> for DnsName {
    fn from(name: &HostName) -> Self {
        Self(name.0.clone())
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(name) => write!(f, "*.{name}"),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl FromStr for HostPattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

macro_rules! text_type {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
    )*};
}

text_type!(HostName, DnsName);

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_normalises_and_refuses() {
        let same = |a: &str, b: &str| assert_eq!(HostName::parse(a).unwrap().as_str(), b);
        same("Example.COM.", "example.com");
        same("bücher.example", "xn--bcher-kva.example");
        same("localhost", "localhost");
        for bad in [
            "",
            ".",
            "a..b",
            "-a.example",
            "a_b.example",
            "1.2.3.4",
            "example.1",
            "a b",
            "*.x",
            "a.example/..",
        ] {
            assert!(HostName::parse(bad).is_err(), "{bad}");
        }
        assert!(HostName::parse(&format!("{}.example", "a".repeat(64))).unwrap_err().to_string().len() > 10);
        assert!(HostName::parse(&["abcdefg."; 40].concat()).is_err());
    }

    #[test]
    fn a_wildcard_is_one_whole_first_label() {
        assert!(matches!(HostPattern::parse("*.example.com"), Ok(HostPattern::Wildcard(_))));
        assert!(matches!(HostPattern::parse("[::1]"), Ok(HostPattern::Ip(_))));
        for bad in ["*", "*.*.example.com", "a.*.example.com", "*a.example.com", "*."] {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn covering_is_one_label_deep() {
        let p = |t: &str| HostPattern::parse(t).unwrap();
        assert!(p("*.example.com").covers(&p("a.example.com")));
        assert!(p("*.example.com").covers(&p("*.example.com")));
        assert!(!p("*.example.com").covers(&p("example.com")));
        assert!(!p("*.example.com").covers(&p("a.b.example.com")));
        assert!(!p("*.example.com").covers(&p("*.a.example.com")));
        for name in ["a.example.com", "*.example.com", "localhost", "::1"].map(p) {
            let coverers: Vec<HostPattern> = name.coverers().collect();
            assert!(coverers.iter().all(|have| have.covers(&name)), "{name}: {coverers:?}");
            assert_eq!(
                coverers.len(),
                if name == p("a.example.com") { 2 } else { 1 },
                "{name}: {coverers:?}"
            );
        }
        assert!(p("*.example.com").matches("a.example.com"));
        assert!(!p("*.example.com").matches(".example.com"));
        assert!(!p("*.example.com").matches("example.com"));
        assert!(!p("*.example.com").matches("a.b.example.com"));
    }

    #[test]
    fn local_names() {
        for local in ["localhost", "a.localhost", "*.localhost", "db.internal", "127.0.0.1", "::1"] {
            assert!(HostPattern::parse(local).unwrap().is_local(), "{local}");
        }
        for public in ["example.com", "notlocalhost", "internal.example.com"] {
            assert!(!HostPattern::parse(public).unwrap().is_local(), "{public}");
        }
    }

    #[test]
    fn challenge_names_share_apex_and_wildcard() {
        let base = |t: &str| HostPattern::parse(t).unwrap().base().map(DnsName::acme_challenge).unwrap();
        assert_eq!(base("example.com"), base("*.example.com"));
        assert_eq!(base("example.com").to_fqdn(), "_acme-challenge.example.com.");
    }
}
