//! An HTTP endpoint that writes the records: `POST {endpoint}/present` and `/cleanup`.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};

use super::build::BuildError;
use super::redact::Redactor;
use super::turns::ZoneTurns;
use super::{DnsError, TxtProvider, TxtRecord};
use crate::http_client::{HttpClient, Question};
use crate::secret::Secret;

pub(super) struct Httpreq {
    id: String,
    endpoint: String,
    authorization: Option<HeaderValue>,
    client: HttpClient,
    redactor: Redactor,
    turns: ZoneTurns,
}

impl fmt::Debug for Httpreq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Httpreq({})", self.id)
    }
}

impl Httpreq {
    /// `endpoint` is an http or https URL; a password without a user name is an error.
    pub(super) fn new(
        id: String,
        endpoint: &str,
        username: Option<&str>,
        password: Option<&Secret>,
        timeout: Duration,
        turns: ZoneTurns,
    ) -> Result<Self, BuildError> {
        let bad =
            |key, reason: &str| BuildError::BadKey { provider: "httpreq".into(), key, reason: reason.into() };
        let uri: http::Uri = endpoint
            .parse()
            .map_err(|_| bad("endpoint", "it is not a URL, as in `https://dns.example.net/acme`"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(bad("endpoint", "it is not a URL, as in `https://dns.example.net/acme`"));
        }
        let authorization = match (username, password) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(BuildError::MissingKey { provider: "httpreq".into(), key: "username" });
            }
            (Some(user), password) => {
                let pair = format!("{user}:{}", password.map_or("", Secret::expose));
                let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)))
                    .map_err(|_| bad("username", "it cannot stand in a header"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let client = HttpClient::new(None, timeout).map_err(|e| BuildError::Client(e.to_string()))?;
        let redactor = Redactor::new(password.map(Secret::expose));
        Ok(Self {
            id,
            endpoint: endpoint.trim_end_matches('/').into(),
            authorization,
            client,
            redactor,
            turns,
        })
    }

    async fn post(&self, verb: &str, record: &TxtRecord) -> Result<(), DnsError> {
        let _turn = self.turns.take(&self.id).await;
        let body = serde_json::json!({ "fqdn": record.name.to_fqdn(), "value": record.value });
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(value) = &self.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        let question = Question {
            method: Method::POST,
            url: format!("{}/{verb}", self.endpoint),
            headers,
            body: Bytes::from(body.to_string()),
        };
        let context = format!("httpreq /{verb} for {}", record.name);
        let answer = self.client.ask(question).await.map_err(|e| {
            DnsError::Unavailable(format!("{context}: {}", self.redactor.clean(&e.to_string())))
        })?;
        let status = answer.status;
        if status.is_success() {
            return Ok(());
        }
        let said = self.redactor.clean(&String::from_utf8_lossy(&answer.body));
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let message = format!("{context}: the endpoint answered {status}{said}");
        let later = status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 423 | 425 | 429);
        Err(if later { DnsError::Unavailable(message) } else { DnsError::Refused(message) })
    }
}

#[async_trait]
impl TxtProvider for Httpreq {
    fn id(&self) -> &str {
        &self.id
    }

    async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.post("present", record).await
    }

    async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.post("cleanup", record).await
    }
}
