//! DNS over HTTPS (RFC 8484): how a name looks from outside, where port 53 is blocked or shows another view.

use bytes::Bytes;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};

use super::reply::{TxtReply, code_text, txt_reply};
use crate::http_client::{HttpClient, HttpError, Question};
use crate::name::DnsName;

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/dns-message");

/// Asks resolvers by HTTPS. Keeps nothing between calls.
#[derive(Clone, Debug)]
pub struct Doh {
    client: HttpClient,
}

impl Doh {
    /// Reads the system's roots, so it blocks. Each question ends within `timeout`.
    pub fn new(timeout: std::time::Duration) -> Result<Self, HttpError> {
        Ok(Self { client: HttpClient::new(None, timeout)? })
    }

    /// What the resolver at `url` says about the TXT records of `name`. Ask only for what is published: resolvers keep a
    /// negative answer.
    pub async fn txt(&self, url: &str, name: &DnsName) -> Result<TxtReply, String> {
        doh_reply(&self.post(url, question(name, RecordType::TXT)?).await?, name)
    }

    /// What the resolver at `url` says about records of one type. Every response code is an answer.
    pub(super) async fn ask(&self, url: &str, name: &DnsName, kind: RecordType) -> Result<Message, String> {
        let body = self.post(url, question(name, kind)?).await?;
        message(&body, question(name, kind)?)
    }

    async fn post(&self, url: &str, asked: Query) -> Result<Bytes, String> {
        let mut query = Message::query();
        // RFC 8484 section 4.1: the same question is the same request.
        query.metadata.id = 0;
        query.metadata.recursion_desired = true;
        query.add_query(asked);
        let body = Bytes::from(query.to_vec().map_err(|e| e.to_string())?);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, MEDIA_TYPE);
        headers.insert(CONTENT_TYPE, MEDIA_TYPE);
        let question = Question { method: Method::POST, url: url.to_owned(), headers, body };
        let answer = self.client.ask(question).await.map_err(|e| e.to_string())?;
        if answer.status != http::StatusCode::OK {
            return Err(format!("HTTP {}", answer.status));
        }
        Ok(answer.body)
    }
}

/// What the body of a resolver's answer says about the TXT records of `name`, which it was asked for (RFC 8484 section 4.2).
pub fn doh_reply(body: &[u8], name: &DnsName) -> Result<TxtReply, String> {
    let message = message(body, question(name, RecordType::TXT)?)?;
    Ok(match (message.metadata.response_code, txt_reply(&message, name)) {
        // A resolver speaks without authority.
        (ResponseCode::NoError, TxtReply::Unhelpful(_) | TxtReply::Referral(_)) => TxtReply::Absent,
        (ResponseCode::NoError | ResponseCode::NXDomain, reply) => reply,
        (code, _) => TxtReply::Unhelpful(code_text(code)),
    })
}

fn message(body: &[u8], asked: Query) -> Result<Message, String> {
    let message = Message::from_vec(body).map_err(|e| format!("the answer is not DNS: {e}"))?;
    if message.queries == [asked] {
        Ok(message)
    } else {
        Err("the answer belongs to another question".to_owned())
    }
}

fn question(name: &DnsName, kind: RecordType) -> Result<Query, String> {
    let wire = Name::from_ascii(name.to_fqdn()).map_err(|e| e.to_string())?;
    Ok(Query::query(wire, kind))
}
