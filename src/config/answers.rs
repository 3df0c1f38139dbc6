//! The keys of a route that change fields and answers.

use http::header::{HOST, HeaderName};

use super::conditions::{header_name, twice};
use super::decode::Decoder;
use super::error::Problem;
use super::references::Reference;
use super::value::{At, Entry, Fields, Value};
use crate::policy::{Coding, Direction, FieldValue, FieldsSpec, PageFor, PagesSpec, untouchable};

/// Reads `request_headers` or `response_headers`.
pub(super) fn fields(
    decoder: &mut Decoder<'_>,
    route: &Fields,
    key: &str,
    direction: Direction,
) -> FieldsSpec {
    let Some(table) = route.value::<Fields>(key) else { return FieldsSpec::default() };
    let removed: Vec<At<String>> = table.list("remove").unwrap_or_default();
    let remove = removed.iter().filter_map(|key| name(decoder, key, "remove", direction)).collect();
    FieldsSpec {
        remove,
        set: values(decoder, &table, "set", direction),
        add: values(decoder, &table, "add", direction),
    }
}

fn values(
    decoder: &mut Decoder<'_>,
    table: &Fields,
    rule: &str,
    direction: Direction,
) -> Vec<(HeaderName, FieldValue)> {
    let mut fields: Vec<(HeaderName, FieldValue)> = Vec::new();
    for Entry { key, value } in table.value::<Vec<Entry>>(rule).unwrap_or_default() {
        let name = name(decoder, &key, rule, direction);
        let Some(Value::Text(text)) = value else { continue };
        let value = FieldValue::parse(&text);
        if let Err(error) = &value {
            let message = format!("this cannot be the value of `{}`", key.value);
            decoder.push(Problem::error(key.span.clone(), message).label(error.to_string()));
        }
        let (Some(name), Ok(value)) = (name, value) else { continue };
        if fields.iter().any(|(other, _)| *other == name) {
            twice(decoder, &key);
        } else {
            fields.push((name, value));
        }
    }
    fields
}

fn name(decoder: &mut Decoder<'_>, key: &At<String>, rule: &str, direction: Direction) -> Option<HeaderName> {
    let name = header_name(decoder, key)?;
    let why = match untouchable(&name, direction) {
        None if name == HOST && rule != "set" => {
            "a request has exactly one Host: it can be set, not removed or added"
        }
        None => return Some(name),
        Some(why) => why,
    };
    let message = format!("no rule may touch `{}`", key.value);
    decoder.push(Problem::error(key.span.clone(), message).label(why));
    None
}

/// Reads `compress`.
pub(super) fn compress(decoder: &mut Decoder<'_>, route: &Fields) -> Vec<Coding> {
    let words = match route.any("compress") {
        Some(Value::Flag(true)) => return Coding::ALL.to_vec(),
        Some(Value::List(_)) => route.list::<&'static str>("compress").unwrap_or_default(),
        _ => return Vec::new(),
    };
    let mut codings = Vec::new();
    for word in &words {
        match Coding::ALL.into_iter().find(|coding| coding.name() == word.value) {
            Some(coding) if codings.contains(&coding) => {
                decoder.push(Problem::error(word.span.clone(), format!("`{}` is there twice", word.value)));
            }
            Some(coding) => codings.push(coding),
            None => {}
        }
    }
    if words.is_empty()
        && decoder.text.get(route.span_of("compress")).is_some_and(super::resolve::is_empty_list)
    {
        let problem = Problem::error(route.span_of("compress"), "`compress` is empty");
        decoder.push(problem.help("write false, or leave it out"));
    }
    codings
}

/// Reads `error_pages`. The files themselves are read when the plan is put into force.
pub(super) fn pages(decoder: &mut Decoder<'_>, route: &Fields) -> PagesSpec {
    let mut spec = PagesSpec::default();
    for Entry { key, value } in route.value::<Vec<Entry>>("error_pages").unwrap_or_default() {
        match (PageFor::parse(&key.value), value) {
            (None, Some(Value::Flag(flag))) if key.value == "upstream" => spec.upstream = flag,
            (Some(wanted), Some(Value::Path(path))) => {
                decoder.references.push((key.span, Reference::Page(path.clone())));
                spec.files.push((wanted, path));
            }
            (_, None) => {}
            (Some(_), _) => {
                let problem = Problem::error(key.span, format!("the page for {} must be a path", key.value));
                decoder.push(problem.help("for example \"/etc/starlock/error.html\""));
            }
            (None, _) => {
                let message = format!("`{}` is no error that a page could be for", key.value);
                decoder.push(
                    Problem::error(key.span, message)
                        .help("keys are 400 to 599, 4xx, 5xx, and upstream = true"),
                );
            }
        }
    }
    if spec.upstream && spec.files.is_empty() {
        let problem = Problem::error(route.span_of("error_pages"), "`error_pages` has no page");
        decoder.push(problem.help("for example { \"5xx\" = \"/etc/starlock/error.html\", upstream = true }"));
    }
    spec
}
