//! `request_headers` and `response_headers`: fields that a route sets, adds and removes.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::spelling::{is_proxy, is_spelling};

/// What is known of a request when its fields, or those of its answer, are written.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The client, after trusted proxies.
    pub client: IpAddr,
    /// Lower case, no port.
    pub host: &'a str,
    /// `https` or `http`.
    pub scheme: &'static str,
    /// The method.
    pub method: &'a Method,
    /// The request's id.
    pub id: &'a str,
}

/// Rules for fields, applied in this order: remove, set, add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldsSpec {
    /// Fields that go.
    pub remove: Vec<HeaderName>,
    /// Fields that have this value and no other.
    pub set: Vec<(HeaderName, FieldValue)>,
    /// Fields that are there once more.
    pub add: Vec<(HeaderName, FieldValue)>,
}

/// A value with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldValue(Arc<[Piece]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Place(Place),
}

/// What a placeholder stands for. All of it was parsed by us: it holds nothing that a field could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    ClientIp,
    Host,
    Scheme,
    Method,
    RequestId,
}

const PLACES: [(&str, Place); 5] = [
    ("client_ip", Place::ClientIp),
    ("host", Place::Host),
    ("scheme", Place::Scheme),
    ("method", Place::Method),
    ("request_id", Place::RequestId),
];

/// Why a value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// No such placeholder.
    #[error(
        "there is no placeholder {{{0}}}; there are {{client_ip}}, {{host}}, {{scheme}}, {{method}} and {{request_id}}, and {{{{ is a brace"
    )]
    Placeholder(String),
    /// A brace alone.
    #[error("a brace stands alone; {{{{ and }}}} are braces")]
    Brace,
    /// Not a value.
    #[error("a header's value holds visible ASCII, spaces between, and nothing else")]
    Value,
}

impl FieldValue {
    /// Reads `text {client_ip} text`; `{{` and `}}` are braces.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        if text.trim() != text || !text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return Err(FieldError::Value);
        }
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let (brace, after) = rest[at..].split_at(1);
            if let Some(after) = after.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            let (name, after) = match brace {
                "{" => after.split_once('}').ok_or(FieldError::Brace)?,
                _ => return Err(FieldError::Brace),
            };
            let known = PLACES.iter().find(|(known, _)| *known == name);
            let (_, place) = known.ok_or_else(|| FieldError::Placeholder(name.to_owned()))?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
            }
            pieces.push(Piece::Place(*place));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.into()));
        }
        Ok(Self(pieces.into()))
    }

    /// The text, if there are no placeholders in it.
    pub fn constant(&self) -> Option<&str> {
        match &*self.0 {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    fn fill(&self, facts: &RequestFacts<'_>) -> Option<HeaderValue> {
        use std::fmt::Write;
        let mut text = String::with_capacity(48);
        for piece in &*self.0 {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Place(Place::ClientIp) => drop(write!(text, "{}", facts.client)),
                Piece::Place(Place::Host) => text.push_str(facts.host),
                Piece::Place(Place::Scheme) => text.push_str(facts.scheme),
                Piece::Place(Place::Method) => text.push_str(facts.method.as_str()),
                Piece::Place(Place::RequestId) => text.push_str(facts.id),
            }
        }
        HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
    }
}

/// Whose fields rules are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a server.
    Request,
    /// To a client.
    Response,
}

/// Why no rule may touch a field; `None` if one may.
pub fn untouchable(name: &HeaderName, direction: Direction) -> Option<&'static str> {
    let text = name.as_str();
    match name {
        &header::CONNECTION
        | &header::TE
        | &header::TRANSFER_ENCODING
        | &header::UPGRADE
        | &header::TRAILER => Some("it concerns one connection only, and Starlock writes it itself"),
        _ if text == "keep-alive" => Some("it concerns one connection only"),
        _ if is_proxy(text) => Some("fields that begin with `proxy` are not passed on"),
        &header::CONTENT_LENGTH => Some("it says how long the body is, which a rule does not know"),
        &header::EXPECT => Some("Starlock answers it itself"),
        &header::HOST if direction == Direction::Response => Some("answers have no Host"),
        _ => None,
    }
}

/// The rules of a route in one direction, ready to be applied.
#[derive(Debug, Default)]
pub(super) struct Fields {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, Filled)]>,
    add: Box<[(HeaderName, Filled)]>,
    /// Whether `_` and `.` in the name of a field that comes in are as good as `-`: CGI and its heirs read them so.
    aliases: bool,
}

#[derive(Debug)]
enum Filled {
    Constant(HeaderValue),
    For(FieldValue),
}

impl Filled {
    fn new(value: &FieldValue) -> Self {
        match value.constant().and_then(|text| HeaderValue::from_str(text).ok()) {
            Some(value) => Self::Constant(value),
            None => Self::For(value.clone()),
        }
    }

    fn value(&self, facts: &RequestFacts<'_>) -> Option<HeaderValue> {
        match self {
            Self::Constant(value) => Some(value.clone()),
            Self::For(value) => value.fill(facts),
        }
    }
}

impl Fields {
    pub(super) fn new(spec: &FieldsSpec, direction: Direction) -> Self {
        let allowed = |name: &&HeaderName| untouchable(name, direction).is_none();
        let values = |list: &[(HeaderName, FieldValue)]| {
            let kept = list.iter().filter(|(name, _)| allowed(&name));
            kept.map(|(name, value)| (name.clone(), Filled::new(value))).collect()
        };
        Self {
            remove: spec
                .remove
                .iter()
                .filter(allowed)
                .filter(|name| **name != header::HOST)
                .cloned()
                .collect(),
            set: values(&spec.set),
            add: values(&spec.add).into_vec().into_iter().filter(|(name, _)| *name != header::HOST).collect(),
            aliases: direction == Direction::Request,
        }
    }

    pub(super) fn apply(&self, headers: &mut HeaderMap, facts: &RequestFacts<'_>) {
        for name in &self.remove {
            self.take(headers, name);
        }
        for (name, value) in &self.set {
            self.take(headers, name);
            if let Some(value) = value.value(facts) {
                headers.insert(name, value);
            }
        }
        for (name, value) in &self.add {
            if let Some(value) = value.value(facts) {
                headers.append(name, value);
            }
        }
    }

    /// Removes every field that any of the rules is about.
    pub(super) fn take_all(&self, headers: &mut HeaderMap) {
        let written = self.set.iter().chain(&self.add).map(|(name, _)| name);
        for name in self.remove.iter().chain(written) {
            self.take(headers, name);
        }
    }

    fn take(&self, headers: &mut HeaderMap, name: &HeaderName) {
        headers.remove(name);
        if self.aliases && name.as_str().contains(['-', '_', '.']) {
            let spelt: Vec<HeaderName> =
                headers.keys().filter(|other| is_spelling(other.as_str(), name.as_str())).cloned().collect();
            for other in spelt {
                headers.remove(other);
            }
        }
    }
}

impl FieldsSpec {
    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// `remove a, b; set c; add d`: names, not values.
impl fmt::Display for FieldsSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |list: &[(HeaderName, FieldValue)]| {
            list.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        };
        let removed: Vec<String> = self.remove.iter().map(ToString::to_string).collect();
        let parts = [("remove", removed), ("set", names(&self.set)), ("add", names(&self.add))];
        let parts = parts.iter().filter(|(_, names)| !names.is_empty());
        let text: Vec<String> = parts.map(|(what, names)| format!("{what} {}", names.join(", "))).collect();
        f.write_str(&text.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> HeaderName {
        HeaderName::from_bytes(text.as_bytes()).unwrap()
    }

    fn rules(remove: &[&str], set: &[(&str, &str)], add: &[(&str, &str)]) -> FieldsSpec {
        let values = |list: &[(&str, &str)]| {
            list.iter().map(|(n, v)| (name(n), FieldValue::parse(v).unwrap())).collect()
        };
        FieldsSpec { remove: remove.iter().map(|n| name(n)).collect(), set: values(set), add: values(add) }
    }

    const FACTS: RequestFacts<'static> = RequestFacts {
        client: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)),
        host: "a.test",
        scheme: "https",
        method: &Method::GET,
        id: "00ff",
    };

    fn applied(spec: &FieldsSpec, direction: Direction, fields: &[(&str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (n, value) in fields {
            headers.append(name(n), value.parse().unwrap());
        }
        Fields::new(spec, direction).apply(&mut headers, &FACTS);
        let mut lines: Vec<String> =
            headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    #[test]
    fn remove_set_add_in_this_order() {
        let spec = rules(
            &["X-Gone", "server"],
            &[
                ("X-User", "{client_ip} {host} {scheme} {method} {request_id} {{}}"),
                ("Host", "b.test"),
                ("X-Gone", "again"),
            ],
            &[("X-User", "2")],
        );
        let fields = [
            ("x-gone", "1"),
            ("server", "x"),
            ("x-user", "evil"),
            ("x_user", "evil"),
            ("X.User", "evil"),
            ("host", "a.test"),
            ("k", "v"),
        ];
        assert_eq!(
            applied(&spec, Direction::Request, &fields),
            [
                "host: b.test",
                "k: v",
                "x-gone: again",
                "x-user: 192.0.2.7 a.test https GET 00ff {}",
                "x-user: 2"
            ]
        );
        assert_eq!(applied(&FieldsSpec::default(), Direction::Request, &fields).len(), 7);
        assert_eq!(spec.to_string(), "remove x-gone, server; set x-user, host, x-gone; add x-user");
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(FieldValue::parse("{nope}").unwrap_err(), FieldError::Placeholder("nope".into()));
        for bad in ["{host", "}", "a{", "{{}"] {
            assert_eq!(FieldValue::parse(bad).unwrap_err(), FieldError::Brace, "{bad}");
        }
        for bad in ["a\r\nB: c", "ü", " a", "a\t", "\u{7f}"] {
            assert_eq!(FieldValue::parse(bad).unwrap_err(), FieldError::Value, "{bad}");
        }
        assert_eq!(FieldValue::parse("{{x}}").unwrap().constant(), Some("{x}"));
    }

    const UNTOUCHABLE: [&str; 12] = [
        "connection",
        "keep-alive",
        "te",
        "transfer-encoding",
        "upgrade",
        "trailer",
        "proxy-authorization",
        "proxy",
        "proxy_connection",
        "content-length",
        "expect",
        "proxy-x",
    ];

    proptest! {
        #[test]
        fn no_rule_touches_what_a_rule_must_not(
            remove in prop::collection::vec(prop::sample::select(UNTOUCHABLE.to_vec()), 0..4),
            set in prop::collection::vec(prop::sample::select(UNTOUCHABLE.to_vec()), 0..4),
            add in prop::collection::vec(prop::sample::select(UNTOUCHABLE.to_vec()), 0..4),
        ) {
            let values = |names: &[&'static str]| names.iter().map(|n| (*n, "ours")).collect::<Vec<_>>();
            let spec = rules(&remove, &values(&set), &values(&add));
            for direction in [Direction::Request, Direction::Response] {
                let before: Vec<(&str, &str)> = UNTOUCHABLE.iter().map(|n| (*n, "theirs")).collect();
                let after = applied(&spec, direction, &before);
                prop_assert_eq!(after.len(), before.len());
                prop_assert!(after.iter().all(|line| line.ends_with(": theirs")), "{:?}", after);
            }
        }

        #[test]
        fn no_spelling_of_a_field_that_is_set_gets_through(
            field in "[a-z]{1,4}(-[a-z]{1,4}){0,3}",
            separators in prop::collection::vec(prop::sample::select(vec!['-', '_', '.']), 4),
        ) {
            prop_assume!(untouchable(&name(&field), Direction::Request).is_none() && field != "host");
            let mut separator = separators.into_iter();
            let spelt: String = field.chars().map(|c| if c == '-' { separator.next().unwrap_or('-') } else { c }).collect();
            let set = rules(&[], &[(&field, "ours")], &[]);
            prop_assert_eq!(applied(&set, Direction::Request, &[(&spelt, "evil")]), [format!("{field}: ours")]);
            let remove = rules(&[&field], &[], &[]);
            prop_assert!(applied(&remove, Direction::Request, &[(&spelt, "evil")]).is_empty());
        }
    }
}
