//! Says what is wrong with a key or a value: what it is called, what was meant, what to write.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::DeValue;

use super::decode::{Decoder, Extra, Node};
use super::error::{Problem, Span};
use super::scalar::{self, Wrong};
use super::sections;
use super::table::{Key, Kind, Section, nearest};

impl Decoder<'_> {
    pub(super) fn missing(&mut self, key: &Key, span: &Span, extra: &Extra, place: &str) {
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

    pub(super) fn unknown_key(
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

    pub(super) fn wrong_type(&mut self, value: &DeValue<'_>, span: Span, kind: Kind, subject: &Subject<'_>) {
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
    pub(super) fn place_inside(&self, section: &Section, text: &str, span: &Span) -> String {
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
