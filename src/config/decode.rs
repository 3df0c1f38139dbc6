//! Walks the spanned TOML tree along the tables of keys; records every problem and goes on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Problem, Span};
use super::references::Reference;
use super::scalar::{self, Wrong};
use super::sections;
use super::table::{Key, Kind, More, Section, Words, nearest, vendor_keys};
use super::value::{At, Entry, Fields, Value};
use crate::dns::{VendorKind, vendors};
use crate::name::{HostName, HostPattern};

pub(super) type Node<'t> = Spanned<DeValue<'t>>;

/// Collects problems.
#[derive(Debug)]
pub(super) struct Decoder<'t> {
    pub(super) text: &'t str,
    pub(super) problems: Vec<Problem>,
    /// Places of texts that no report may show.
    pub(super) secrets: Vec<Span>,
    /// What the file only points to.
    pub(super) references: Vec<(Span, Reference)>,
}

impl<'t> Decoder<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, problems: Vec::new(), secrets: Vec::new(), references: Vec::new() }
    }

    pub(super) fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Decodes `table` as `section`; `place` names it in messages: `[acme]`.
    pub(super) fn section(
        &mut self,
        table: &DeTable<'_>,
        span: Span,
        section: &'static Section,
        place: &str,
    ) -> Fields {
        let extra = match section.more {
            More::Nothing => Extra::none(),
            More::Provider => self.provider(table),
        };
        let mut entries = BTreeMap::new();
        for (key, node) in sorted(table) {
            let name: &str = key.get_ref();
            let known = section.keys.iter().chain(&extra.keys).find(|known| known.name == name);
            match known {
                None if section.more == More::Provider => {
                    self.hide(node); // who knows what it was meant to be
                    if !extra.anything {
                        self.unknown_key(key, node, section, &extra, place);
                    }
                }
                None => self.unknown_key(key, node, section, &extra, place),
                Some(Key { kind: Kind::Later, .. }) => {
                    self.push(not_yet(key.span(), name));
                    entries.insert(known.map_or("", |k| k.name), At { value: None, span: node.span() });
                }
                Some(known) => {
                    let value = self.value(node, known.kind, &Subject { name, place, each: false });
                    entries.insert(known.name, At { value, span: node.span() });
                }
            }
        }
        for key in section.keys.iter().chain(&extra.keys).filter(|key| key.required) {
            if !entries.contains_key(key.name) {
                self.missing(key, &span, &extra, place);
            }
        }
        if let (Some(provider), [first, ..]) = (&extra.provider, extra.any_of)
            && !extra.any_of.iter().any(|key| entries.contains_key(key))
        {
            let keys = extra.any_of.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" or ");
            let message = format!("provider `{}` needs {keys}", provider.value);
            let doc = extra.keys.iter().find(|key| key.name == *first).map(|key| key.doc);
            let help = doc.map(|doc| format!("`{first}`: {doc}"));
            self.push(Problem::error(provider.span.clone(), message).label("for this one").maybe_help(help));
        }
        Fields { span, entries }
    }

    /// Keeps a value out of every report; a table that only says where a secret lies may be seen.
    fn hide(&mut self, node: &Node<'_>) {
        match node.get_ref() {
            DeValue::Table(table) => {
                for (key, inner) in table {
                    if !["env", "file", "credential"].contains(&key.get_ref().as_ref()) {
                        self.secrets.push(inner.span());
                    }
                }
            }
            _ => self.secrets.push(node.span()),
        }
    }

    fn missing(&mut self, key: &Key, span: &Span, extra: &Extra, place: &str) {
        let own = extra.keys.iter().any(|k| k.name == key.name);
        let problem = match &extra.provider {
            Some(provider) if own => Problem::error(
                provider.span.clone(),
                format!("provider `{}` needs `{}`", provider.value, key.name),
            )
            .label("for this one"),
            _ => Problem::error(span.clone(), format!("`{}` is missing in {place}", key.name)),
        };
        self.push(problem.help(format!("`{}` {}. {}", key.name, shape(&key.kind), key.doc)));
    }

    /// The keys of the provider that `table` names.
    fn provider(&mut self, table: &DeTable<'_>) -> Extra {
        let Some((text, span)) =
            table.get("provider").and_then(|n| n.get_ref().as_str().map(|t| (t, n.span())))
        else {
            return Extra { anything: true, ..Extra::none() };
        };
        let own =
            sections::OWN_PROVIDERS.iter().find(|(name, _)| *name == text).map(|(_, keys)| keys.to_vec());
        let vendor = || vendors().iter().find(|vendor| vendor.name == text).map(vendor_keys);
        if let Some(keys) = own.or_else(vendor) {
            let any_of =
                vendors().iter().find(|vendor| vendor.name == text).map_or(&[][..], |vendor| vendor.any_of);
            return Extra {
                keys,
                anything: false,
                any_of,
                provider: Some(At { value: text.to_owned(), span }),
            };
        }
        if sections::LATER_PROVIDERS.contains(&text) {
            self.push(not_yet(span, text));
        } else if !text.is_empty() {
            let problem = Problem::error(span, format!("unknown DNS provider `{text}`"));
            self.push(match nearest(text, provider_names()) {
                Some(near) => problem.label(format!("did you mean `{near}`?")),
                None => problem
                    .help("builtin answers DNS-01 by itself and needs no account anywhere")
                    .help("`starlock schema` lists every provider; rfc2136, exec and httpreq reach any other DNS server"),
            });
        }
        Extra { anything: true, ..Extra::none() }
    }

    fn unknown_key(
        &mut self,
        key: &Spanned<Cow<'_, str>>,
        node: &Node<'_>,
        section: &'static Section,
        extra: &Extra,
        place: &str,
    ) {
        let name: &str = key.get_ref();
        let known = || section.keys.iter().chain(&extra.keys);
        let top = std::ptr::eq(section, &raw const sections::FILE);
        let what = if top && node.get_ref().is_table() {
            format!("unknown section [{name}]")
        } else if top {
            format!("unknown key `{name}` outside of any section")
        } else {
            format!("unknown key `{name}` in {place}")
        };
        let problem = Problem::error(key.span(), what);
        if let Some(near) = nearest(name, known().map(|key| key.name)) {
            let choices = known().find(|key| key.name == near).and_then(|key| key.kind.choices());
            let later = known().any(|key| key.name == near && matches!(key.kind, Kind::Later));
            let but = if later { " It is not supported yet" } else { "" };
            self.push(problem.label(format!("did you mean `{near}`?{but}")).maybe_help(choices));
            return;
        }
        let elsewhere = sections::FILE.keys.iter().find(|outer| match outer.kind {
            Kind::Table(inner) | Kind::Or(_, inner) => inner.keys.iter().any(|key| key.name == name),
            _ => false,
        });
        let works = |key: &&Key| !matches!(key.kind, Kind::Later);
        let all = known().filter(works).map(|key| key.name).collect::<Vec<_>>().join(", ");
        self.push(match elsewhere {
            _ if top && (name.contains('.') || name == "*") => problem.label("a route stands in [routes]"),
            Some(outer) if top || (place.starts_with('[') && place != format!("[{}]", outer.name)) => {
                problem.label(format!("`{name}` belongs into [{}]", outer.name))
            }
            _ => problem.help(match &extra.provider {
                Some(provider) => format!("with provider `{}` the keys are {all}", provider.value),
                None if top => format!("the sections are {all}"),
                None => format!("the keys are {all}"),
            }),
        });
    }

    /// Decodes one value; `None` if it is wrong, which was said.
    pub(super) fn value(&mut self, node: &Node<'_>, kind: Kind, subject: &Subject<'_>) -> Option<Value> {
        let span = node.span();
        match (kind, node.get_ref()) {
            (Kind::Flag, DeValue::Boolean(flag)) => Some(Value::Flag(*flag)),
            (Kind::Vendor(wanted), DeValue::Boolean(_) | DeValue::Integer(_))
                if wanted != VendorKind::Text
                    && self.text.get(span.clone()).is_some_and(|t| wanted.check(t).is_ok()) =>
            {
                self.text.get(span).map(|text| Value::Text(text.to_owned()))
            }
            (Kind::Count { min, max }, DeValue::Integer(number)) => {
                let parsed = u64::from_str_radix(number.as_str(), number.radix()).ok();
                let fits = parsed.filter(|n| (min..=max).contains(n));
                if fits.is_none() {
                    self.push(
                        Problem::error(span, format!("{subject} must be from {min} to {max}"))
                            .label("out of range"),
                    );
                }
                fits.map(Value::Number)
            }
            (Kind::Secret, DeValue::String(text)) => self.plain_secret(text, span, subject),
            (Kind::PasswordHash, DeValue::String(text)) => self.password_hash(text, span, subject),
            (Kind::Secret, DeValue::Table(table)) => self.secret(table, span, subject),
            (Kind::List(element), DeValue::Array(array)) => {
                let each = Subject { each: true, ..*subject };
                let good = |node| Some(At { value: self.value(node, *element, &each)?, span: node.span() });
                Some(Value::List(array.iter().filter_map(good).collect()))
            }
            (Kind::OneOrMore(element), DeValue::Array(_)) => self.value(node, Kind::List(element), subject),
            (Kind::OneOrMore(element), _) => {
                let value = self.value(node, *element, subject)?;
                Some(Value::List(vec![At { value, span }]))
            }
            (Kind::Table(section) | Kind::Or(_, section), DeValue::Table(table)) => {
                let place = subject.place_inside(section, self.text, &span);
                Some(Value::Table(self.section(table, span, section, &place)))
            }
            (Kind::Or(scalar, section), other) if !section.grows_from.is_empty() && takes(*scalar, other) => {
                let key = Spanned::new(span.clone(), Cow::Borrowed(section.grows_from));
                let table: DeTable<'_> = std::iter::once((key, node.clone())).collect();
                let place = subject.place_inside(section, self.text, &span);
                Some(Value::Table(self.section(&table, span, section, &place)))
            }
            (Kind::Or(scalar, _), other) if takes(*scalar, other) => self.value(node, *scalar, subject),
            (Kind::Either(one, other), value) => {
                let kind = [one, other].into_iter().find(|kind| kind.is_written_as(value));
                if kind.is_none() {
                    self.wrong_type(value, span, Kind::Either(one, other), subject);
                }
                kind.and_then(|kind| self.value(node, *kind, subject))
            }
            (Kind::Map(element), DeValue::Table(table)) => {
                Some(Value::Map(self.map(table, *element, subject)))
            }
            (Kind::Hosts(element), DeValue::Table(table)) => Some(Value::Map(self.hosts(table, *element))),
            (_, DeValue::String(text)) => match text_value(text, kind) {
                Ok(value) => Some(value),
                Err(wrong) => {
                    self.push(refusal(
                        &wrong,
                        span,
                        &format!("{subject} must be {}", kind.wants()),
                        subject.name,
                    ));
                    None
                }
            },
            (_, other) => {
                self.wrong_type(other, span, kind, subject);
                None
            }
        }
    }

    fn wrong_type(&mut self, value: &DeValue<'_>, span: Span, kind: Kind, subject: &Subject<'_>) {
        let written = self.text.get(span.clone()).unwrap_or_default();
        let help = match (kind, value) {
            (Kind::Duration { .. }, DeValue::Integer(number)) => {
                Some(format!("write \"{number}s\" for seconds"))
            }
            (Kind::Duration { .. }, DeValue::Float(_)) => {
                Some("write whole numbers: \"1500ms\" is one and a half seconds".into())
            }
            (Kind::Size, DeValue::Integer(number)) => {
                number.as_str().parse().ok().map(|bytes| format!("write \"{}\"", scalar::human_size(bytes)))
            }
            (Kind::Listen(_), DeValue::Integer(port)) => {
                Some(format!("for every address write \"[::]:{port}\""))
            }
            (Kind::Text | Kind::Path, DeValue::Integer(_) | DeValue::Boolean(_)) => {
                Some(format!("write \"{written}\""))
            }
            (Kind::List(Kind::Table(_)), _) => Some(format!("write [[{}]] above each of them", subject.name)),
            (Kind::Table(section), DeValue::String(text))
                if std::ptr::eq(section, &raw const sections::UPSTREAM) =>
            {
                Some(format!("write {} = {{ servers = [{text:?}] }}", subject.name))
            }
            _ => None,
        };
        let found = match value {
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
            DeValue::String(_) => "a text",
        };
        let label = match (kind, value) {
            (Kind::Duration { .. } | Kind::Size, DeValue::Integer(_)) => "a unit is missing".to_owned(),
            _ => format!("this is {found}"),
        };
        let message = format!("{subject} must be {}", kind.wants());
        self.push(Problem::error(span, message).label(label).maybe_help(help));
    }

    fn map(&mut self, table: &DeTable<'_>, element: Kind, subject: &Subject<'_>) -> Vec<Entry> {
        let mut table = sorted(table);
        if subject.name == "mtls" {
            table.retain(|(key, node)| !self.is_unquoted_host(key, node, &sections::MTLS, "mtls"));
        }
        let entry = |(key, node): (&Spanned<Cow<'_, str>>, &Node<'_>)| {
            let name: &str = key.get_ref();
            let place = format!("[{}.{}]", subject.name, toml_key(name));
            let value = self.value(node, element, &Subject { name, place: &place, each: false });
            Entry { key: At { value: name.to_owned(), span: key.span() }, value }
        };
        table.into_iter().map(entry).collect()
    }
}

/// Whether a scalar of this kind is written like `value`, right or wrong.
fn takes(kind: Kind, value: &DeValue<'_>) -> bool {
    match value {
        DeValue::String(_) => true,
        DeValue::Boolean(_) => matches!(kind, Kind::Flag),
        DeValue::Integer(_) => matches!(kind, Kind::Count { .. }),
        DeValue::Array(_) => matches!(kind, Kind::List(_) | Kind::OneOrMore(_)),
        _ => false,
    }
}

/// What a value is called in messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject<'a> {
    pub(super) name: &'a str,
    pub(super) place: &'a str,
    pub(super) each: bool,
}

impl Subject<'_> {
    /// What a table at this place is called: by its header if it has one.
    fn place_inside(&self, section: &Section, text: &str, span: &Span) -> String {
        if text.get(span.clone()).is_some_and(|source| source.starts_with("[[")) {
            return format!("[[{}]]", self.name);
        }
        if self.place == sections::FILE.name {
            return if section.name.starts_with("[[") {
                section.name.to_owned()
            } else {
                format!("[{}]", self.name)
            };
        }
        let own = self.place.starts_with('[') && self.place.ends_with(&format!(".{}]", toml_key(self.name)));
        if own || self.place.starts_with("route ") {
            return self.place.to_owned();
        }
        format!("`{}` of {}", self.name, self.place)
    }
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, each, .. } = self;
        if *each { write!(f, "each of `{name}`") } else { write!(f, "`{name}`") }
    }
}

/// The keys of the provider that a table names.
struct Extra {
    keys: Vec<Key>,
    /// Nobody knows which keys are right.
    anything: bool,
    /// Keys of which one must be there.
    any_of: &'static [&'static str],
    provider: Option<At<String>>,
}

impl Extra {
    fn none() -> Self {
        Self { keys: Vec::new(), anything: false, any_of: &[], provider: None }
    }
}

/// Every provider by name.
pub(super) fn provider_names() -> impl Iterator<Item = &'static str> {
    let own = sections::OWN_PROVIDERS.iter().map(|(name, _)| *name);
    own.chain(vendors().iter().map(|vendor| vendor.name)).chain(sections::LATER_PROVIDERS.iter().copied())
}

/// The entries of `table` in the order of the file.
pub(super) fn sorted<'a, 't>(table: &'a DeTable<'t>) -> Vec<(&'a Spanned<Cow<'t, str>>, &'a Node<'t>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Something that is right but does not exist yet.
pub(super) fn not_yet(span: Span, what: &str) -> Problem {
    Problem::error(span, format!("`{what}` is not supported yet"))
        .help("leave it out until a later version has it")
}

/// A problem from what is wrong with a text.
pub(super) fn refusal(wrong: &Wrong, span: Span, message: &str, name: &str) -> Problem {
    if wrong.later {
        let what = if wrong.why.is_empty() { format!("`{name}`") } else { wrong.why.clone() };
        return Problem::error(span, format!("{what} is not supported yet")).maybe_help(wrong.fix.clone());
    }
    Problem::error(span, message).label(wrong.why.as_str()).maybe_help(wrong.fix.clone())
}

/// A name as TOML writes it in a header.
pub(super) fn toml_key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { format!("{name:?}") }
}

fn shape(kind: &Kind) -> String {
    match kind {
        Kind::List(_) => "is a list".to_owned(),
        other => format!("is {}", other.wants()),
    }
}

fn text_value(text: &str, kind: Kind) -> Result<Value, Wrong> {
    if text.trim().is_empty() {
        return Err(Wrong::new("this is empty"));
    }
    if text.trim() != text && !matches!(kind, Kind::Text | Kind::Vendor(_)) {
        return Err(Wrong::new("there is white space around it"));
    }
    match kind {
        Kind::Text => Ok(Value::Text(text.to_owned())),
        Kind::Vendor(wanted) => match wanted.check(text) {
            Ok(()) => Ok(Value::Text(text.to_owned())),
            Err(_) => Err(match wanted {
                VendorKind::Choice(words) => not_a_word(text, words.iter().copied()),
                _ => Wrong::new("this is not one"),
            }),
        },
        Kind::Path if text.contains('\0') => Err(Wrong::new("a path cannot hold a NUL")),
        Kind::Path => Ok(Value::Path(text.into())),
        Kind::Duration { zero } => match scalar::duration(text)? {
            Duration::ZERO if !zero => Err(Wrong::new("this is no time at all")),
            duration => Ok(Value::Duration(duration)),
        },
        Kind::Size => scalar::size(text).map(Value::Number),
        Kind::Listen(usual) => scalar::address(text, None, usual).map(Value::Address),
        Kind::Server(port) => match scalar::address(text, Some(port), port)? {
            address if address.port() == 0 => Err(Wrong::new("port 0 is nowhere")),
            address => Ok(Value::Address(address)),
        },
        Kind::Ip => scalar::ip(text).map(Value::Ip),
        Kind::Net => scalar::net(text).map(Value::Net),
        Kind::Host => HostName::parse(text).map(Value::Host).map_err(|e| scalar::bad_name(&e)),
        Kind::Dns => scalar::dns_name(text).map(Value::Dns),
        Kind::Pattern => HostPattern::parse(text).map(Value::Pattern).map_err(|e| scalar::bad_name(&e)),
        Kind::Word(words) => word(text, words),
        Kind::Flag if text == "true" || text == "false" => {
            Err(Wrong::new("this is a text").fix(format!("write {text} without quotes")))
        }
        Kind::Count { .. } if text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(Wrong::new("this is a text").fix(format!("write {text} without quotes")))
        }
        Kind::List(Kind::Table(_)) => Err(Wrong::new("this is a text")),
        Kind::List(_) => Err(Wrong::new("this is a single value").fix(format!("write [{text:?}]"))),
        _ => Err(Wrong::new("this is a text")),
    }
}

fn word(text: &str, words: &'static Words) -> Result<Value, Wrong> {
    if let Some(word) = words.now.iter().find(|word| **word == text) {
        return Ok(Value::Word(word));
    }
    if words.later.contains(&text) {
        let now = words.now.join(", ");
        return Err(Wrong::later(format!("`{text}`")).fix(match words.now {
            [one] => format!("for now there is only {one}"),
            _ => format!("for now it is one of {now}"),
        }));
    }
    Err(not_a_word(text, words.all()))
}

fn not_a_word(text: &str, words: impl Iterator<Item = &'static str>) -> Wrong {
    match nearest(text, words) {
        Some(near) => Wrong::new(format!("did you mean \"{near}\"?")),
        None => Wrong::new("this is none of them"),
    }
}
