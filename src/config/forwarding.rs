//! The keys of a route that say how a request goes to its upstreams.

use super::decode::Decoder;
use super::error::Problem;
use super::routes::{Destination, read_destination};
use super::scalar::WebUrl;
use super::value::{At, Entry, Fields, Value};
use crate::proxy::{Rewrite, RewriteError, RewriteSpec, RouteTimeouts, StickSpec};

/// Where requests go, and in which shares.
pub(super) fn shares(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<Vec<(At<Destination>, u32)>> {
    let span = fields.span_of("to");
    match fields.any("to")? {
        Value::Text(text) => Some(vec![(read_destination(decoder, At { value: text.clone(), span })?, 1)]),
        Value::Map(entries) => {
            let entries = entries.clone();
            let mut shares = Vec::with_capacity(entries.len());
            let mut whole = true;
            for Entry { key, value } in entries {
                match (read_destination(decoder, key), value) {
                    (Some(to), Some(Value::Number(weight))) => {
                        shares.push((to, u32::try_from(weight).unwrap_or(u32::MAX)));
                    }
                    _ => whole = false,
                }
            }
            if whole && shares.iter().all(|(_, weight)| *weight == 0) {
                let problem = Problem::error(span, "no upstream of `to` gets anything");
                decoder.push(problem.help("give one of them a weight above 0: { app = 95, canary = 5 }"));
                return None;
            }
            whole.then_some(shares)
        }
        _ => None,
    }
}

/// What keeps a client at one of several upstreams.
pub(super) fn stick(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<StickSpec> {
    let stick = fields.slot::<String>("stick").given()?;
    if matches!(fields.any("to"), Some(Value::Text(_))) {
        let problem =
            Problem::error(stick.span.clone(), "`stick` goes with several upstreams, and `to` names one");
        decoder.push(problem.help("to keep a client at a server of one upstream, see [upstreams]"));
    }
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b))
    };
    match stick.value.split_once(':') {
        None if stick.value == "ip" => Some(StickSpec::Client),
        Some(("cookie", name)) if token(name) => Some(StickSpec::Cookie(name.into())),
        _ => {
            let problem = Problem::error(stick.span, "`stick` must be \"ip\" or \"cookie:NAME\"");
            decoder.push(problem.label("this is neither"));
            None
        }
    }
}

/// What paths become.
pub(super) fn rewrite(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<RewriteSpec> {
    let table = fields.slot::<Fields>("rewrite").given()?;
    if fields.value("strip_prefix") == Some(true) {
        decoder.push(
            Problem::error(table.span.clone(), "`rewrite` and `strip_prefix` do not go together")
                .also(fields.span_of("strip_prefix"), "beside this")
                .help("a pattern such as \"^/api(/.*)$\" can take the prefix off"),
        );
    }
    let pattern = table.value.slot::<String>("match").given()?;
    let to = table.value.slot::<String>("to").given()?;
    match Rewrite::new(&pattern.value, &to.value) {
        Ok(rewrite) if rewrite.has_query() => {
            let problem = Problem::error(to.span, "`to` of `rewrite` is a path without a query");
            decoder.push(problem.help("the query of the request stays as it is"));
            None
        }
        Ok(_) => Some(RewriteSpec { pattern: pattern.value.as_str().into(), to: to.value.as_str().into() }),
        Err(error) => {
            unusable(decoder, &error, &pattern, &to, "to");
            None
        }
    }
}

/// Looks whether `match` and the groups of `redirect` fit. `None` if not, which is said.
pub(super) fn captures(
    decoder: &mut Decoder<'_>,
    pattern: Option<&At<String>>,
    url: &WebUrl,
    target: &At<String>,
) -> Option<()> {
    let Some(pattern) = pattern else {
        let group = url
            .path
            .split('$')
            .skip(1)
            .any(|rest| rest.starts_with(|c: char| c == '{' || c.is_ascii_digit()));
        if group {
            let problem =
                Problem::error(target.span.clone(), "`redirect` has a group, and there is no `match`");
            decoder.push(problem.help("add match = \"^/old/(.*)$\", or write `%24` for a dollar"));
        }
        return (!group).then_some(());
    };
    if url.path.is_empty() {
        let problem = Problem::error(pattern.span.clone(), "`match` goes with a `redirect` that has a path");
        decoder.push(problem.help("for example redirect = \"https://example.com/$1\""));
        return None;
    }
    match Rewrite::new(&pattern.value, &url.path) {
        Ok(_) => Some(()),
        Err(error) => {
            unusable(decoder, &error, pattern, target, "redirect");
            None
        }
    }
}

fn unusable(
    decoder: &mut Decoder<'_>,
    error: &RewriteError,
    pattern: &At<String>,
    to: &At<String>,
    key: &str,
) {
    decoder.push(match error {
        RewriteError::Pattern(why) => {
            Problem::error(pattern.span.clone(), "`match` must be a regular expression")
                .label(why.clone())
                .help("the syntax is that of the regex crate: no look-around, no back-references")
        }
        other => Problem::error(to.span.clone(), format!("`{key}` and `match` do not fit"))
            .label(other.to_string()),
    });
}

/// Who gets copies, of how many of a hundred requests.
pub(super) fn mirror(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<(At<Destination>, u8)> {
    let table = fields.value::<Fields>("mirror")?;
    let percent = table.value::<u64>("percent").and_then(|n| u8::try_from(n).ok()).unwrap_or(100);
    let to = table.slot::<String>("to").given()?;
    Some((read_destination(decoder, to)?, percent))
}

/// The route's own time-outs.
pub(super) fn time_outs(fields: &Fields) -> RouteTimeouts {
    let table = fields.value::<Fields>("timeouts").unwrap_or_else(Fields::empty);
    RouteTimeouts {
        response: table.value("response"),
        stall: table.value("stall"),
        body: table.value("body"),
        attempt: table.value("attempt"),
    }
}
