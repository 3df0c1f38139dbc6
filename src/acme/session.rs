//! One conversation with a CA: its directory, and requests signed by an account's key.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use instant_acme::{Error, Problem};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::client::RecordingClient;
use super::jws::AccountKey;
use super::problem;
use crate::http_client::{Answer, Question};

/// RFC 8555 section 7.1.1.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Directory {
    pub(super) new_nonce: String,
    pub(super) new_account: String,
    pub(super) revoke_cert: Option<String>,
    pub(super) key_change: Option<String>,
    /// RFC 9773 section 3.
    pub(super) renewal_info: Option<String>,
    #[serde(default)]
    pub(super) meta: Meta,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) external_account_required: bool,
    /// Names, and words for people that are of no use here.
    pub(super) profiles: BTreeMap<String, IgnoredAny>,
}

impl Directory {
    /// Asks for it; instant-acme is given the same one when it asks through `client`.
    pub(super) async fn fetch(client: &RecordingClient, url: &str) -> Result<Self, Error> {
        let answer = ask(client, Method::GET, url, HeaderMap::new(), Bytes::new()).await?;
        let body = good(answer)?.body;
        let directory = serde_json::from_slice(&body)?;
        client.keep_directory(url, body);
        Ok(directory)
    }
}

/// An account that talks. Its URL is not known before it is registered.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: RecordingClient,
    pub(super) directory: Directory,
    pub(super) key: Arc<AccountKey>,
    pub(super) account: Option<String>,
}

impl Session {
    /// POST of a JSON value.
    pub(super) async fn post(&self, url: &str, payload: &Value) -> Result<Answer, Error> {
        self.send(url, &payload.to_string()).await
    }

    /// POST-as-GET (RFC 8555 section 6.3).
    pub(super) async fn get(&self, url: &str) -> Result<Answer, Error> {
        self.send(url, "").await
    }

    /// An unsigned GET, for ARI.
    pub(super) async fn get_plain(client: &RecordingClient, url: &str) -> Result<Answer, Error> {
        good(ask(client, Method::GET, url, HeaderMap::new(), Bytes::new()).await?)
    }

    async fn send(&self, url: &str, payload: &str) -> Result<Answer, Error> {
        let mut left = super::NONCE_RETRIES * 3; // as often as instant-acme and what stands around it
        loop {
            match self.attempt(url, payload).await {
                Err(error) if problem::is_bad_nonce(&error) && left > 0 => left -= 1,
                result => return result,
            }
        }
    }

    async fn attempt(&self, url: &str, payload: &str) -> Result<Answer, Error> {
        let fresh =
            ask(&self.client, Method::HEAD, &self.directory.new_nonce, HeaderMap::new(), Bytes::new())
                .await?;
        let nonce = fresh.headers.get("replay-nonce").and_then(|v| v.to_str().ok());
        let nonce = nonce.ok_or(Error::Str("a nonce of the CA"))?;
        let header = match &self.account {
            Some(account) => json!({ "kid": account, "nonce": nonce, "url": url }),
            None => json!({ "jwk": self.key.jwk(), "nonce": nonce, "url": url }),
        };
        let jws = self.key.sign(header, payload).map_err(|e| Error::Other(Box::new(e)))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/jose+json"));
        good(ask(&self.client, Method::POST, url, headers, jws.to_string().into()).await?)
    }
}

async fn ask(
    client: &RecordingClient,
    method: Method,
    url: &str,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Answer, Error> {
    let question = Question { method, url: url.to_owned(), headers, body };
    client.ask(question).await.map_err(|error| Error::Other(Box::new(error)))
}

/// A redirect is no success: ACME has none.
fn good(answer: Answer) -> Result<Answer, Error> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    Err(match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) => Error::Api(problem),
        Err(error) => Error::Json(error),
    })
}
