//! Our HTTP client behind instant-acme, remembering the last answer: instant-acme hides `Retry-After` on errors, the
//! status behind a body that is not JSON, alternate chains, an order behind an answer that it does not like, and the CA's clock.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{DATE, LINK, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient as AcmeHttp};

use crate::clock::SharedClock;
use crate::http_client::{Answer, HttpClient, HttpError, Question};

/// A clock further away from the CA's than this is said aloud.
const SKEW_WORTH_SAYING: Duration = Duration::from_secs(600);
/// Alternate chains of one certificate that are looked at.
const MAX_ALTERNATES: usize = 8;

/// What the last exchange with the CA ended with.
#[derive(Clone, Debug)]
pub(super) enum LastAnswer {
    Answer {
        status: StatusCode,
        retry_after: Option<SystemTime>,
        /// The beginning of a body that is not JSON, for a person.
        text: Option<String>,
        /// Where what was created is.
        location: Option<String>,
        /// Where the same certificate is under other roots.
        alternates: Vec<String>,
    },
    Failed(HttpError),
}

/// How far this machine's clock is from a CA's, so that it is said once and not with each answer.
#[derive(Debug, Default)]
pub(super) struct Skew(Mutex<Option<Duration>>);

/// What is to be said of a clock.
#[derive(Debug, PartialEq, Eq)]
enum SkewNews {
    Differs(Duration),
    AgreesAgain,
}

impl Skew {
    /// Says it once each time that it begins, changes by more than ten minutes, or ends.
    fn look(&self, headers: &HeaderMap, now: SystemTime) {
        let theirs = headers.get(DATE).and_then(|v| v.to_str().ok());
        let Some(theirs) = theirs.and_then(|t| httpdate::parse_http_date(t).ok()) else { return };
        match self.news(theirs, now) {
            Some(SkewNews::Differs(skew)) => tracing::warn!(
                skew_seconds = skew.as_secs(),
                ahead = now > theirs,
                "this machine's clock and the CA's differ: certificates may look expired or not yet valid; check time \
                 synchronisation. Nothing is ordered because of it"
            ),
            Some(SkewNews::AgreesAgain) => tracing::info!("this machine's clock and the CA's agree again"),
            None => {}
        }
    }

    fn news(&self, theirs: SystemTime, now: SystemTime) -> Option<SkewNews> {
        let skew = now.duration_since(theirs).unwrap_or_else(|error| error.duration());
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *said {
            None if skew > SKEW_WORTH_SAYING => {
                *said = Some(skew);
                Some(SkewNews::Differs(skew))
            }
            Some(_) if skew <= SKEW_WORTH_SAYING => {
                *said = None;
                Some(SkewNews::AgreesAgain)
            }
            Some(before) if skew.abs_diff(before) > SKEW_WORTH_SAYING => {
                *said = Some(skew);
                Some(SkewNews::Differs(skew))
            }
            _ => None,
        }
    }
}

/// One order's view of the CA. Not shared between orders, so the last answer is its own.
#[derive(Clone, Debug)]
pub(super) struct RecordingClient {
    http: HttpClient,
    clock: SharedClock,
    skew: Arc<Skew>,
    last: Arc<Mutex<Option<LastAnswer>>>,
    /// The directory as it was fetched: instant-acme asks for it again.
    directory: Arc<Mutex<Option<(String, Bytes)>>>,
}

impl RecordingClient {
    pub(super) fn new(http: HttpClient, clock: SharedClock, skew: Arc<Skew>) -> Self {
        Self { http, clock, skew, last: Arc::default(), directory: Arc::default() }
    }

    pub(super) fn last(&self) -> Option<LastAnswer> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When the CA asked to be polled again, if its last answer said so.
    pub(super) fn retry_after(&self) -> Option<SystemTime> {
        match self.last() {
            Some(LastAnswer::Answer { retry_after, .. }) => retry_after,
            _ => None,
        }
    }

    /// Whether the last answer was that there is no such thing.
    pub(super) fn says_gone(&self) -> bool {
        let gone = [StatusCode::NOT_FOUND, StatusCode::GONE];
        matches!(self.last(), Some(LastAnswer::Answer { status, .. }) if gone.contains(&status))
    }

    /// The URL of what the last request created, whatever else there was to say of the answer.
    pub(super) fn created(&self) -> Option<String> {
        match self.last() {
            Some(LastAnswer::Answer { status: StatusCode::CREATED, location, .. }) => location,
            _ => None,
        }
    }

    /// The alternate chains that the last answer named.
    pub(super) fn alternates(&self) -> Vec<String> {
        match self.last() {
            Some(LastAnswer::Answer { alternates, .. }) => alternates,
            _ => Vec::new(),
        }
    }

    /// What instant-acme is given when it asks for `url`.
    pub(super) fn keep_directory(&self, url: &str, body: Bytes) {
        *self.directory.lock().unwrap_or_else(PoisonError::into_inner) = Some((url.to_owned(), body));
    }

    fn kept_directory(&self, method: &Method, url: &str) -> Option<Bytes> {
        let kept = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref()
            .filter(|(known, _)| *method == Method::GET && known == url)
            .map(|(_, body)| body.clone())
    }

    /// Asks once and remembers the answer.
    pub(super) async fn ask(&self, question: Question) -> Result<Answer, HttpError> {
        let url = question.url.clone();
        let answer = match self.http.ask(question).await {
            Ok(answer) => answer,
            Err(error) => {
                self.record(LastAnswer::Failed(error.clone()));
                return Err(error);
            }
        };
        let now = self.clock.now();
        self.skew.look(&answer.headers, now);
        self.record(LastAnswer::Answer {
            status: answer.status,
            retry_after: retry_after(&answer.headers, now),
            text: not_json(&answer.body),
            location: answer.headers.get(LOCATION).and_then(|v| v.to_str().ok()).map(ToOwned::to_owned),
            alternates: alternates(&answer.headers, &url),
        });
        Ok(answer)
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
        let url = parts.uri.to_string();
        if let Some(body) = self.kept_directory(&parts.method, &url) {
            return Ok(BytesResponse::from(Response::new(Full::new(body))));
        }
        let question = Question { method: parts.method, url, headers, body };
        let answer = self.ask(question).await.map_err(|error| Error::Other(Box::new(error)))?;
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

/// The targets of `Link: <...>;rel="alternate"` (RFC 8555 section 7.4.2), several in a field or one in each; relative ones are
/// taken as they stand at the host of `base`.
fn alternates(headers: &HeaderMap, base: &str) -> Vec<String> {
    let mut found = Vec::new();
    for field in headers.get_all(LINK).iter().filter_map(|v| v.to_str().ok()) {
        // A target may hold a comma, so that the beginning of the next link is looked for.
        for link in field.split('<').skip(1) {
            let Some((target, parameters)) = link.split_once('>') else { continue };
            let alternate =
                parameters.split([';', ',']).filter_map(|p| p.trim().split_once('=')).any(|(name, value)| {
                    let mut kinds = value.trim().trim_matches('"').split_ascii_whitespace();
                    name.trim().eq_ignore_ascii_case("rel")
                        && kinds.any(|kind| kind.eq_ignore_ascii_case("alternate"))
                });
            if alternate && let Some(url) = absolute(target.trim(), base) {
                found.push(url);
            }
        }
    }
    found.truncate(MAX_ALTERNATES);
    found
}

fn absolute(target: &str, base: &str) -> Option<String> {
    if target.contains("://") {
        return Some(target.to_owned());
    }
    let base: http::Uri = base.parse().ok()?;
    let path = target.strip_prefix('/')?;
    Some(format!("{}://{}/{path}", base.scheme_str()?, base.authority()?))
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
    fn alternate_chains_are_found_in_one_field_or_many() {
        let mut headers = HeaderMap::new();
        for value in [
            "<https://ca.test/dir>;rel=\"index\"",
            "<https://ca.test/a,b>;rel=\"alternate\", </c/2>; title=x; rel=alternate, <d>;rel=\"alternate\"",
            "<https://ca.test/e>;rel=\"up alternate\"",
            "nonsense",
        ] {
            headers.append(LINK, value.parse().unwrap());
        }
        let found = alternates(&headers, "https://ca.test:14000/cert/1");
        assert_eq!(found, ["https://ca.test/a,b", "https://ca.test:14000/c/2", "https://ca.test/e"]);
    }

    #[test]
    fn a_wrong_clock_is_said_once_for_each_change() {
        let (skew, ours) = (Skew::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        let day = Duration::from_secs(86_400);
        assert_eq!(skew.news(ours, ours), None);
        assert_eq!(skew.news(ours - Duration::from_secs(600), ours), None);
        assert_eq!(skew.news(ours + day, ours), Some(SkewNews::Differs(day)));
        assert_eq!(skew.news(ours + day + Duration::from_secs(5), ours), None);
        assert_eq!(skew.news(ours + day * 2, ours), Some(SkewNews::Differs(day * 2)));
        assert_eq!(skew.news(ours, ours), Some(SkewNews::AgreesAgain));
        assert_eq!(skew.news(ours, ours), None);
        assert_eq!(skew.news(ours - day, ours), Some(SkewNews::Differs(day)));
    }

    #[test]
    fn only_text_that_is_not_json_is_kept_and_it_is_short_and_plain() {
        assert_eq!(not_json(b"{\"type\":\"x\"}"), None);
        assert_eq!(not_json(b" "), None);
        let text = not_json(format!("<h1>\x1b[31m{}", "x".repeat(1000)).as_bytes()).unwrap();
        assert!(text.len() == 200 && !text.contains('\x1b'));
    }
}
