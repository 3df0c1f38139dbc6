//! The answers that Starlock makes itself: error pages, gRPC errors, redirects, and what `OPTIONS` gets.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::body::Answer;
use super::error::{self, Refusal};
use super::record::Record;
use super::{after, path};

/// Methods that Starlock does not do, and those it does.
const ALLOW: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// The error page for `refusal`.
pub(super) fn refuse(refusal: Refusal, mut record: Box<Record>) -> Response<Answer> {
    let status = record.refuse(refusal);
    let mut response = if record.grpc {
        grpc(status, record)
    } else {
        let (kind, page) = after::page(status, &record);
        full(status, kind, page, record)
    };
    if let Refusal::Denied(denial) = refusal {
        let mut fields = HeaderMap::new();
        if let Some(policy) = response.body().record().and_then(Record::policy) {
            policy.explain(denial, &mut fields);
        }
        response.headers_mut().extend(fields);
    }
    if refusal == Refusal::Method {
        response.headers_mut().insert(header::ALLOW, ALLOW);
    }
    if refusal.is_transient() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal.closes() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A gRPC error: all of it in the head, which then is the trailers too. The log has the status that others would have got.
fn grpc(status: StatusCode, record: Box<Record>) -> Response<Answer> {
    let (code, name) = error::grpc_status(status);
    let message = format!("{name}: request {}", record.id.as_str());
    let mut response = bare(StatusCode::OK, record);
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    // Its status alone would let it be kept.
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert("grpc-status", HeaderValue::from_static(code));
    if let Ok(message) = HeaderValue::try_from(message) {
        fields.insert("grpc-message", message);
    }
    response
}

pub(super) fn redirect(
    status: StatusCode,
    origin: String,
    path: &str,
    query: Option<&str>,
    mut record: Box<Record>,
) -> Response<Answer> {
    let mut location = origin;
    location.push_str(path);
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    let Ok(location) = HeaderValue::from_maybe_shared(Bytes::from(location)) else {
        return refuse(Refusal::Path(path::PathError::Control), record);
    };
    record.answered(status);
    let mut response = bare(status, record);
    response.headers_mut().insert(header::LOCATION, location);
    response
}

pub(super) fn allow(status: StatusCode, mut record: Box<Record>) -> Response<Answer> {
    record.answered(status);
    let mut response = bare(status, record);
    response.headers_mut().insert(header::ALLOW, ALLOW);
    response
}

pub(super) fn bare(status: StatusCode, record: Box<Record>) -> Response<Answer> {
    let mut response = Response::new(Answer::full(Bytes::new(), record));
    *response.status_mut() = status;
    response
}

pub(super) fn full(
    status: StatusCode,
    kind: HeaderValue,
    body: Bytes,
    record: Box<Record>,
) -> Response<Answer> {
    let mut response = Response::new(Answer::full(body, record));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
