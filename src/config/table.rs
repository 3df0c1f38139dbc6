//! The words in which sections are described: one static table of keys decodes, suggests, and feeds schema and reference.

use std::borrow::Cow;
use std::fmt;

use toml::de::DeValue;

use crate::dns::{Vendor, VendorKind};

/// A section, or a table that stands inside one.
#[derive(Debug)]
pub(super) struct Section {
    /// As in messages: `[acme]`, `health`.
    pub(super) name: &'static str,
    /// One line for the reference.
    pub(super) doc: &'static str,
    /// Its keys, in the order of the reference.
    pub(super) keys: &'static [Key],
    /// Keys that depend on what the table says.
    pub(super) more: More,
    /// The key that a scalar in the table's place stands for; empty: none.
    pub(super) grows_from: &'static str,
}

/// Keys that depend on what a table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    /// None.
    Nothing,
    /// Those of the provider that `provider` names.
    Provider,
}

/// A key of a section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// As written.
    pub(super) name: &'static str,
    /// What its value may be.
    pub(super) kind: Kind,
    /// What holds without it, as it would be written; empty: nothing.
    pub(super) default: &'static str,
    /// One line for the reference.
    pub(super) doc: &'static str,
    /// Whether leaving it out is an error.
    pub(super) required: bool,
}

impl Key {
    /// A key that may be left out.
    pub(super) const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self { name, kind, default, doc, required: false }
    }

    /// A key that must be there.
    pub(super) const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self { name, kind, default: "", doc, required: true }
    }

    /// A key whose feature does not exist yet: refused, never ignored.
    pub(super) const fn later(name: &'static str, doc: &'static str) -> Self {
        Self { name, kind: Kind::Later, default: "", doc, required: false }
    }
}

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Text that is not empty.
    Text,
    /// What a vendor's key takes: text, a number or a boolean, as written.
    Vendor(VendorKind),
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Count {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// `"10s"`; `zero` if nothing at all is allowed too.
    Duration {
        /// Whether `"0s"` is fine.
        zero: bool,
    },
    /// `"32KiB"`.
    Size,
    /// A file or a directory.
    Path,
    /// `address:port`, where port 0 lets the system choose; the number is the usual port.
    Listen(u16),
    /// `address:port`, or an address with this port.
    Server(u16),
    /// An address.
    Ip,
    /// A network in CIDR notation, or an address.
    Net,
    /// A host name.
    Host,
    /// A DNS name.
    Dns,
    /// A host name, `*.name`, or an address.
    Pattern,
    /// A secret.
    Secret,
    /// A hash of a password; kept out of reports.
    PasswordHash,
    /// One of the words.
    Word(&'static Words),
    /// Any number of these.
    List(&'static Kind),
    /// One of these, or a list of them.
    OneOrMore(&'static Kind),
    /// A table.
    Table(&'static Section),
    /// A scalar that may grow into a table.
    Or(&'static Kind, &'static Section),
    /// This or that, which are written differently.
    Either(&'static Kind, &'static Kind),
    /// A table whose keys are names that the author chooses.
    Map(&'static Kind),
    /// A table whose keys are hosts and paths, which need quotes.
    Hosts(&'static Kind),
    /// Nothing yet.
    Later,
}

/// Words of which a value is one.
#[derive(Debug)]
pub(super) struct Words {
    /// Those that work.
    pub(super) now: &'static [&'static str],
    /// Those that are refused until their feature exists.
    pub(super) later: &'static [&'static str],
}

impl Words {
    /// All of them, those that work first.
    pub(super) fn all(&self) -> impl Iterator<Item = &'static str> {
        self.now.iter().chain(self.later).copied()
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.now.join(", "))?;
        match self.later {
            [] => Ok(()),
            later => write!(f, " (not yet: {})", later.join(", ")),
        }
    }
}

impl Kind {
    /// What it must be, for "`key` must be ...".
    pub(super) fn wants(&self) -> Cow<'static, str> {
        match self {
            Self::Text => "a text in quotes".into(),
            Self::Vendor(VendorKind::Text) => "a text in quotes".into(),
            Self::Vendor(VendorKind::Number) => "a whole number".into(),
            Self::Vendor(VendorKind::Bool) => "true or false".into(),
            Self::Vendor(VendorKind::Choice(words)) => format!("one of {}", words.join(", ")).into(),
            Self::Flag => "true or false".into(),
            Self::Count { .. } => "a whole number without quotes".into(),
            Self::Duration { .. } => "a duration such as \"10s\"".into(),
            Self::Size => "a size such as \"32KiB\"".into(),
            Self::Path => "a path in quotes".into(),
            Self::Listen(port) => format!("an address with a port, such as \"[::]:{port}\"").into(),
            Self::Server(port) => format!("an address with a port, such as \"192.0.2.53:{port}\"").into(),
            Self::Ip => "an IP address such as \"192.0.2.7\"".into(),
            Self::Net => "a network such as \"10.0.0.0/8\"".into(),
            Self::Host => "a host name such as \"example.com\"".into(),
            Self::Dns => "a DNS name such as \"acme.example.net\"".into(),
            Self::Pattern => "a host name such as \"example.com\" or \"*.example.com\"".into(),
            Self::Secret => "a secret such as { file = \"/path\" }".into(),
            Self::PasswordHash => "a hash of a password".into(),
            Self::Word(words) => format!("one of {words}").into(),
            Self::List(Kind::Table(_)) => "a list of tables".into(),
            Self::List(_) => "a list in [ ]".into(),
            Self::OneOrMore(element) => format!("{}, or a list of them", element.wants()).into(),
            Self::Table(_) | Self::Map(_) | Self::Hosts(_) => "a table".into(),
            Self::Or(scalar, _) => format!("{}, or a table", scalar.wants()).into(),
            Self::Either(one, other) => format!("{}, or {}", one.wants(), other.wants()).into(),
            Self::Later => "left out".into(),
        }
    }

    /// Whether `value` has the TOML type of this kind.
    pub(super) fn is_written_as(&self, value: &DeValue<'_>) -> bool {
        match self {
            Self::Either(one, other) => one.is_written_as(value) || other.is_written_as(value),
            Self::OneOrMore(element) => value.is_array() || element.is_written_as(value),
            Self::Or(scalar, _) => value.is_table() || scalar.is_written_as(value),
            Self::Table(_) | Self::Map(_) | Self::Hosts(_) => value.is_table(),
            Self::List(_) => value.is_array(),
            Self::Flag => value.is_bool(),
            Self::Count { .. } => value.is_integer(),
            _ => value.is_str(),
        }
    }

    /// What help to show beside a key of this kind.
    pub(super) fn choices(&self) -> Option<String> {
        match self {
            Self::Word(words) => Some(format!("one of {}", words.all().collect::<Vec<_>>().join(", "))),
            Self::Vendor(VendorKind::Choice(words)) => Some(format!("one of {}", words.join(", "))),
            Self::Or(scalar, _) => scalar.choices(),
            _ => None,
        }
    }
}

/// The keys of a vendor's row as keys of a section.
pub(super) fn vendor_keys(vendor: &'static Vendor) -> Vec<Key> {
    let key = |key: &crate::dns::VendorKey| Key {
        name: key.name,
        kind: if key.secret { Kind::Secret } else { Kind::Vendor(key.kind) },
        default: "",
        doc: key.doc,
        required: key.required,
    };
    vendor.keys.iter().map(key).collect()
}

/// The word among `known` that `text` was probably meant to be.
pub(super) fn nearest<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_ascii_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for word in known {
        let distance = strsim::damerau_levenshtein(&text, word);
        let contained = (word.len() >= 4 && text.contains(word)) || (text.len() >= 4 && word.contains(&text));
        let limit = (text.chars().count().max(word.len()) / 3).max(1);
        if distance > limit && !contained {
            continue;
        }
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, word));
        }
    }
    best.map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near_or_contained_and_never_far() {
        let keys = ["balance", "servers", "health", "to", "strip_prefix"];
        let of = |text: &str| nearest(text, keys.into_iter());
        assert_eq!(of("load_balance"), Some("balance"));
        assert_eq!(of("server"), Some("servers"));
        assert_eq!(of("strip-prefix"), Some("strip_prefix"));
        assert_eq!(of("Healht"), Some("health"));
        assert_eq!(of("ot"), Some("to"));
        assert_eq!(of("colour"), None);
        assert_eq!(of(""), None);
    }
}
