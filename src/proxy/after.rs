//! What a route's policies make of an answer before the client gets it.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::response::Parts;
use http::{HeaderValue, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;

use super::body::Answer;
use super::error;
use super::record::Record;
use crate::policy::Compressed;

/// So much of an error's body is read away before another takes its place, so that the connection to the server can be kept.
const DRAINED: u64 = 64 << 10;

/// Fields that speak of a body that was replaced.
const OF_THE_BODY: [HeaderName; 13] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_RANGE,
    header::CONTENT_DISPOSITION,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::TRAILER,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
];

/// The error page for `status`: the route's own, or the plain one.
pub(super) fn page(status: StatusCode, record: &Record) -> (HeaderValue, Bytes) {
    match record.policy().and_then(|policy| policy.page(status, false)) {
        Some(page) => page.fill(status, record.id.as_str()),
        None => {
            let (kind, page) = error::page(status, record.id.as_str(), record.html);
            (HeaderValue::from_static(kind), page)
        }
    }
}

/// Gives the route's policies the last word on an answer.
pub(super) async fn finish(head: &mut Parts, body: Answer) -> Answer {
    let Some((route, local)) = body.record().and_then(|r| Some((r.route?, r.local.clone()))) else {
        return body;
    };
    let policy = &local.snapshot.policies[route];
    let status = head.status;
    let mut body = body;
    if body.is_from_server()
        && (status.is_client_error() || status.is_server_error())
        && let Some(page) = policy.page(status, true)
    {
        let (kind, bytes) = page.fill(status, body.record().map_or("", |record| record.id.as_str()));
        body = replace(&mut head.headers, body, kind, bytes).await;
    }
    let Some(record) = body.record() else { return body };
    let length = match record.method == http::Method::HEAD && body.is_from_server() {
        true => content_length(&head.headers),
        false => body.size_hint().exact(),
    };
    let compressed = match body.is_switched() {
        true => None,
        false => policy.compress(&record.method, status, &mut head.headers, length, record.coding),
    };
    policy.finish(&mut head.headers, &record.facts());
    match compressed {
        Some(Compressed::Bytes(encoder)) => body.encode(encoder),
        // Its length would be that of other bytes.
        Some(Compressed::Head) if !body.is_from_server() => body = body.replaced(Bytes::new()),
        Some(Compressed::Head) | None => {}
    }
    body
}

async fn replace(headers: &mut HeaderMap, mut body: Answer, kind: HeaderValue, bytes: Bytes) -> Answer {
    if body.size_hint().exact().is_some_and(|length| length <= DRAINED) {
        while let Some(Ok(_)) = body.frame().await {}
    }
    for name in OF_THE_BODY {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_TYPE, kind);
    body.replaced(bytes)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
