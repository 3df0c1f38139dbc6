//! What a vendor's client has to do that is written here instead of in the crate.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dns_update::Error;
use http::{HeaderMap, Method};

use super::MakeError;
use crate::dns::TxtRecord;
use crate::http_client::{HttpClient, HttpError, Question};
use crate::name::DnsName;

/// Answers with the crate's errors, so that one function says whose turn it is.
#[async_trait]
pub(in crate::dns) trait OwnApi: Send + Sync + fmt::Debug {
    /// Adds the value, or, where one value can stand, sets it. Idempotent.
    async fn add(&self, zone: &DnsName, record: &TxtRecord) -> Result<(), Error>;

    /// Removes the value, or, where one value can stand, clears the name. Idempotent.
    async fn remove(&self, zone: &DnsName, record: &TxtRecord) -> Result<(), Error>;
}

/// A client for one vendor.
pub(super) fn client(timeout: Option<Duration>) -> Result<HttpClient, MakeError> {
    HttpClient::new(None, timeout.unwrap_or(Duration::from_secs(30)))
        .map_err(|error| MakeError::Crate(Error::Client(error.to_string())))
}

/// Asks, and gives the body of a 2xx; anything else in the crate's words.
pub(super) async fn ask(
    client: &HttpClient,
    method: Method,
    url: String,
    headers: HeaderMap,
    body: impl Into<Bytes>,
) -> Result<String, Error> {
    let question = Question { method, url, headers, body: body.into() };
    let answer = client.ask(question).await.map_err(|error: HttpError| Error::Api(error.to_string()))?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    match answer.status.as_u16() {
        200..=299 => Ok(text),
        401 => Err(Error::Unauthorized),
        404 => Err(Error::NotFound),
        status => Err(Error::Api(format!("HTTP {status}: {text}"))),
    }
}
