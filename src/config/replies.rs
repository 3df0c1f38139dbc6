//! The keys of a route that answers by itself: `redirect` and `respond`.

use std::sync::Arc;

use super::blame::refusal;
use super::decode::Decoder;
use super::error::Problem;
use super::forwarding;
use super::routes::Action;
use super::scalar::{self, Wrong};
use super::value::{At, Fields};
use crate::proxy::{ActionSpec, RedirectSpec, path};

/// Reads `redirect` and what goes with it.
pub(super) fn redirect(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<Action> {
    let status = fields.slot::<u64>("status").given();
    if let Some(bad) = status.as_ref().filter(|s| ![301, 302, 303, 307, 308].contains(&s.value)) {
        decoder.push(
            Problem::error(bad.span.clone(), format!("status {} is not a redirect", bad.value))
                .help("one of 301, 302, 303, 307, 308"),
        );
    }
    let target: At<String> = fields.slot("redirect").given()?;
    let pattern = fields.slot::<String>("match").given();
    if fields.has("match") && pattern.is_none() {
        return None;
    }
    let read = scalar::web_url(&target.value).and_then(|url| match &pattern {
        Some(_) => Ok((Some(url.path.as_str().into()), url)),
        None => Ok((location(&url.path)?, url)),
    });
    let (location, url) = match read {
        Ok(read) => read,
        Err(wrong) => {
            decoder.push(refusal(
                &wrong,
                target.span,
                "`redirect` must be a URL that clients can go to",
                "redirect",
            ));
            return None;
        }
    };
    let status = status.and_then(|s| u16::try_from(s.value).ok()).unwrap_or(308);
    forwarding::captures(decoder, pattern.as_ref(), &url, &target)?;
    let pattern = pattern.map(|at| at.value.as_str().into());
    let spec = RedirectSpec { origin: url.origin().into(), path: location, pattern, status };
    Some(Action::Redirect { url: At { value: url, span: target.span }, spec })
}

/// Path and query as they stand in a Location field: ASCII only. `None` if there are none.
fn location(target: &str) -> Result<Option<Arc<str>>, Wrong> {
    if target.is_empty() {
        return Ok(None);
    }
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut location = path::normalise(path).map_err(|error| Wrong::new(error.to_string()))?.into_owned();
    if let Some(query) = query {
        location.push('?');
        location.extend(percent_encoding::utf8_percent_encode(query, percent_encoding::CONTROLS));
    }
    Ok(Some(location.into()))
}

/// Reads `respond` and what goes with it.
pub(super) fn respond(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<Action> {
    let body = fields.slot::<String>("body").given();
    let status = u16::try_from(fields.value::<u64>("respond")?).ok()?;
    if let Some(body) = body.as_ref().filter(|_| matches!(status, 204 | 205 | 304)) {
        decoder
            .push(Problem::error(body.span.clone(), format!("an answer with status {status} has no body")));
        return None;
    }
    let kind = fields.slot::<String>("content_type").given();
    if let Some(kind) = &kind {
        let good = kind.value.contains('/') && kind.value.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        if !good {
            decoder.push(
                Problem::error(kind.span.clone(), "`content_type` must be a media type")
                    .help("for example \"application/json\""),
            );
        } else if body.is_none() {
            decoder.push(Problem::error(
                kind.span.clone(),
                "`content_type` goes with `body`, which is not there",
            ));
        }
    }
    let body = body.map(|at| at.value.as_str().into());
    let content_type = kind.map(|at| at.value.as_str().into());
    Some(Action::Respond(ActionSpec::Respond { status, body, content_type }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_ascii() {
        let of = |target: &str| location(target).unwrap();
        assert_eq!(of(""), None);
        assert_eq!(of("/ü?q=ü&r=%20").as_deref(), Some("/%C3%BC?q=%C3%BC&r=%20"));
        assert_eq!(of("/a/../b").as_deref(), Some("/b"));
        assert!(location("/%zz").is_err());
    }
}
