//! Our HTTP client behind instant-acme, remembering the last answer: instant-acme hides `Retry-After` on errors, the
//! status behind a body that is not JSON, and the CA's clock.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{DATE, RETRY_AFTER};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient as AcmeHttp};

use super::facts::Facts;
use crate::clock::SharedClock;
use crate::http_client::{HttpClient, HttpError, Question};

/// A clock further away from the CA's than this is said aloud.
const SKEW_WORTH_SAYING: Duration = Duration::from_secs(600);

/// What the last exchange with the CA ended with.
#[derive(Clone, Debug)]
pub(super) enum LastAnswer {
    Answer {
        status: StatusCode,
        retry_after: Option<SystemTime>,
        /// The beginning of a body that is not JSON, for a person.
        text: Option<String>,
    },
    Failed(HttpError),
}

/// One order's view of the CA. Not shared between orders, so the last answer is its own.
#[derive(Clone, Debug)]
pub(super) struct RecordingClient {
    http: HttpClient,
    clock: SharedClock,
    last: Arc<Mutex<Option<LastAnswer>>>,
    facts: Arc<Mutex<Facts>>,
}

impl RecordingClient {
    pub(super) fn new(http: HttpClient, clock: SharedClock) -> Self {
        Self { http, clock, last: Arc::default(), facts: Arc::default() }
    }

    pub(super) fn last(&self) -> Option<LastAnswer> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the CA has said of itself.
    pub(super) fn facts(&self) -> Facts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the CA asked to be polled again, if its last answer said so.
    pub(super) fn retry_after(&self) -> Option<SystemTime> {
        match self.last() {
            Some(LastAnswer::Answer { retry_after, .. }) => retry_after,
            _ => None,
        }
    }

    fn record(&self, last: LastAnswer) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    }

    async fn exchange(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        let mut headers = parts.headers;
        headers.remove(http::header::USER_AGENT); // ours is the client's
        let question = Question { method: parts.method, url: parts.uri.to_string(), headers, body };
        let answer = match self.http.ask(question).await {
            Ok(answer) => answer,
            Err(error) => {
                self.record(LastAnswer::Failed(error.clone()));
                return Err(Error::Other(Box::new(error)));
            }
        };
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).notice(&answer.body);
        let now = self.clock.now();
        say_skew(&answer.headers, now);
        self.record(LastAnswer::Answer {
            status: answer.status,
            retry_after: retry_after(&answer.headers, now),
            text: not_json(&answer.body),
        });
        let mut response = Response::new(Full::new(answer.body));
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        Ok(BytesResponse::from(response))
    }
}

impl AcmeHttp for RecordingClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().exchange(request))
    }
}

/// Seconds or a date (RFC 9110 section 10.2.3), as a moment.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<SystemTime> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse::<u64>() {
        Ok(seconds) => now.checked_add(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok(),
    }
}

fn say_skew(headers: &HeaderMap, now: SystemTime) {
    let Some(theirs) =
        headers.get(DATE).and_then(|v| v.to_str().ok()).and_then(|t| httpdate::parse_http_date(t).ok())
    else {
        return;
    };
    let skew = now.duration_since(theirs).unwrap_or_else(|error| error.duration());
    if skew > SKEW_WORTH_SAYING {
        tracing::warn!(
            skew_seconds = skew.as_secs(),
            "this machine's clock and the CA's differ: certificates may look expired or not yet valid; check time synchronisation"
        );
    }
}

fn not_json(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if text.is_empty() || text.starts_with(['{', '[']) || text.starts_with("-----BEGIN") {
        return None;
    }
    Some(text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(parse("120"), Some(now + Duration::from_secs(120)));
        assert_eq!(parse("Sun, 09 Sep 2001 01:48:40 GMT"), Some(now + Duration::from_secs(120)));
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("18446744073709551615"), None);
    }

    #[test]
    fn only_text_that_is_not_json_is_kept_and_it_is_short_and_plain() {
        assert_eq!(not_json(b"{\"type\":\"x\"}"), None);
        assert_eq!(not_json(b" "), None);
        let text = not_json(format!("<h1>\x1b[31m{}", "x".repeat(1000)).as_bytes()).unwrap();
        assert!(text.len() == 200 && !text.contains('\x1b'));
    }
}
