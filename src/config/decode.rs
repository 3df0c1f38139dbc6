//! Walks the spanned TOML tree along the tables of keys; records every problem and goes on.

use std::borrow::Cow;
use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::blame::{Subject, not_yet, refusal, toml_key};
use super::error::{Problem, Span};
use super::references::Reference;
use super::sections;
use super::table::{Key, Kind, More, Section, nearest, vendor_keys};
use super::text::text_value;
use super::value::{At, Entry, Fields, Value};
use crate::dns::{VendorKind, vendors};

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

/// The keys of the provider that a table names.
pub(super) struct Extra {
    pub(super) keys: Vec<Key>,
    /// Nobody knows which keys are right.
    anything: bool,
    /// Keys of which one must be there.
    any_of: &'static [&'static str],
    pub(super) provider: Option<At<String>>,
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
