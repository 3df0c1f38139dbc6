//! `when`: what requests a route is for.

use http::Method;
use http::header::HeaderName;

use super::decode::Decoder;
use super::error::Problem;
use super::value::{At, Entry, Fields, Value};
use crate::proxy::{ConditionSpec, Wanted};

/// Reads the condition of a route; without one it is met by every request.
pub(super) fn read(decoder: &mut Decoder<'_>, fields: &Fields) -> ConditionSpec {
    let Some(when) = fields.slot::<Fields>("when").given() else { return ConditionSpec::default() };
    let span = when.span;
    let when = when.value;
    if when.entries.is_empty() {
        let problem = Problem::error(span, "`when` says nothing");
        decoder.push(problem.help("leave it out, or give it one of `method`, `header`, `query`"));
    }
    let mut condition = ConditionSpec::default();
    for method in when.list::<String>("method").unwrap_or_default() {
        let wrong =
            |why: &str| Problem::error(method.span.clone(), "this cannot be a method").label(why.to_owned());
        match Method::from_bytes(method.value.as_bytes()) {
            Ok(Method::CONNECT | Method::TRACE) => {
                decoder.push(wrong("Starlock does not do this one"));
            }
            Ok(_) if method.value.bytes().any(|b| b.is_ascii_lowercase()) => {
                let upper = method.value.to_ascii_uppercase();
                decoder.push(wrong("methods are in upper case").help(format!("write \"{upper}\"")));
            }
            Ok(known) => condition.methods.push(known),
            Err(_) => decoder.push(wrong("a method is a word such as GET")),
        }
    }
    for (key, wanted) in entries(&when, "header") {
        match header_name(decoder, &key) {
            Some(name) if condition.headers.iter().any(|(other, _)| *other == name) => twice(decoder, &key),
            Some(name) => condition.headers.push((name, wanted)),
            None => {}
        }
    }
    for (key, wanted) in entries(&when, "query") {
        condition.query.push((key.value.as_str().into(), wanted));
    }
    condition
}

/// The name of a field; what is wrong with it is said.
pub(super) fn header_name(decoder: &mut Decoder<'_>, key: &At<String>) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(key.value.as_bytes()).ok();
    if name.is_none() {
        let message = format!("`{}` cannot be the name of a header", key.value);
        decoder.push(Problem::error(key.span.clone(), message).label("names have letters, digits and `-`"));
    }
    name
}

/// Says that a field is there twice.
pub(super) fn twice(decoder: &mut Decoder<'_>, key: &At<String>) {
    let message = format!("`{}` is there twice", key.value);
    decoder.push(Problem::error(key.span.clone(), message).label("upper and lower case are the same here"));
}

fn entries(when: &Fields, key: &str) -> Vec<(At<String>, Wanted)> {
    let entries: Vec<Entry> = when.value(key).unwrap_or_default();
    let read = |entry: Entry| {
        let wanted = match entry.value? {
            Value::Flag(true) => Wanted::Present,
            Value::Flag(false) => Wanted::Absent,
            Value::List(values) => {
                let text =
                    |at: At<Value>| if let Value::Text(text) = at.value { Some(text.into()) } else { None };
                Wanted::OneOf(values.into_iter().filter_map(text).collect())
            }
            _ => return None,
        };
        Some((entry.key, wanted))
    };
    entries.into_iter().filter_map(read).collect()
}
