//! Posting: signed, tried again, given up in the end with words.

use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::NotifySpec;
use crate::backoff::{self, Backoff};
use crate::http_client::{HttpClient, HttpError, Question};
use crate::task;

const TIMEOUT: Duration = Duration::from_secs(15);
/// So many tries, with these waits between them.
const TRIES: u32 = 6;
const WAITS: Backoff = Backoff::new(&[
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1200),
]);
const SIGNATURE: HeaderName = HeaderName::from_static("x-starlock-signature");

/// A webhook that can be posted to.
#[derive(Debug)]
pub(super) struct Webhook {
    spec: NotifySpec,
    client: HttpClient,
}

impl Webhook {
    /// Reads `ca_root`. Blocking.
    pub(super) fn new(spec: NotifySpec) -> Result<Self, HttpError> {
        let client = HttpClient::new(spec.ca_root.as_deref(), TIMEOUT)?;
        Ok(Self { spec, client })
    }

    /// Posts until it is taken or there is no use. The error is for the log and holds no part of the URL but its host.
    pub(super) async fn deliver(&self, body: &str) -> Result<(), String> {
        let mut failures = 0;
        loop {
            let error = match self.post(body).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            failures += 1;
            if failures >= TRIES {
                return Err(format!("{error}; tried {failures} times"));
            }
            tracing::debug!(failures, "the webhook was not told yet: {error}");
            tokio::time::sleep(backoff::jitter(WAITS.after(failures), 10.0, backoff::dice())).await;
        }
    }

    async fn post(&self, body: &str) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(source) = self.spec.secret.clone() {
            // Read each time: a secret in a file may have been changed.
            let secret = task::blocking(move || source.resolve()).await.map_err(|e| e.to_string())?;
            let value = HeaderValue::from_str(&signature(secret.expose().as_bytes(), body.as_bytes()));
            headers.insert(SIGNATURE, value.map_err(|e| e.to_string())?);
        }
        let url = self.spec.webhook.clone();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let answer = self.client.ask(Question { method: Method::POST, url, headers, body }).await;
        let status = answer.map_err(|e| e.to_string())?.status;
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("the webhook answered {status}")),
        }
    }
}

/// `sha256=` and the HMAC-SHA256 of the body, as other webhooks write it.
fn signature(secret: &[u8], body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), body);
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_rfc() {
        // RFC 4231, test case 2.
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(b"Jefe", b"what do ya want for nothing?"), expected);
    }

    #[tokio::test]
    async fn what_fails_for_good_says_why_and_never_the_path() {
        // Nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let spec = NotifySpec {
            webhook: format!("http://127.0.0.1:{port}/hunter2"),
            secret: None,
            ca_root: None,
            repeat: TIMEOUT,
            before_expiry: TIMEOUT,
        };
        assert!(!format!("{spec:?}").contains("hunter2"));
        let webhook = Webhook::new(spec).unwrap();
        let error = webhook.post("{}").await.unwrap_err();
        assert!(error.contains("127.0.0.1") && !error.contains("hunter2"), "{error}");
    }
}
