//! `forward_auth`: another server says whether a request may pass (Authelia, Authentik and their kin). The decision and the
//! fields; sending is the proxy's.

use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};
use http::{Method, Request, StatusCode};

use super::identity::Identity;
use super::spelling::{begins_with_spelling, is_spelling};

/// About the request's body, or about the resource that it asks for: a question has neither.
const NOT_ASKED: [HeaderName; 10] = [
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    EXPECT,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    IF_RANGE,
    RANGE,
];
const METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What else deciders read the request from; some of them first. Nothing of the kind is for a client to say.
const ELSEWHERE: [&str; 2] = ["x-original-", "x-rewrite-"];
/// What is said of the request itself, and no proxy's word counts in, since none decides what is matched here.
const OF_THE_REQUEST: [HeaderName; 3] = [METHOD, URI, FORWARDED_HOST];

/// Who is asked, and what is taken over from its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardAuthSpec {
    /// Name of the upstream that the URL makes.
    pub upstream: Arc<str>,
    /// Host and port of the URL.
    pub host: Arc<str>,
    /// Path and query of the URL.
    pub target: Arc<str>,
    /// Fields of its answer that the server is told; a client's own are removed.
    pub copy: Vec<HeaderName>,
    /// For the whole answer; after it the request is denied.
    pub timeout: Duration,
}

/// A request as it was matched: what another server decides about.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    /// Its method.
    pub method: &'a Method,
    /// With its port.
    pub host: &'a HeaderValue,
    /// Normalised path, and query.
    pub uri: &'a HeaderValue,
    /// `https` or `http`.
    pub scheme: &'static str,
}

/// What an answer means.
#[derive(Debug)]
pub enum Opinion {
    /// The request may pass, as this.
    Passes(Identity),
    /// It may not: the client gets the answer.
    Refused,
    /// The server did not do its work: the request is denied.
    Broken,
}

impl ForwardAuthSpec {
    /// The question about a request. `fields` are its own, already made fit for a server. It has no body.
    ///
    /// What is asked about is what was matched, whoever says otherwise; only the scheme is a trusted proxy's, which alone knows what
    /// the client speaks to it, if it says `http` or `https`.
    pub fn question(&self, matched: Matched<'_>, mut fields: HeaderMap) -> Request<()> {
        for name in NOT_ASKED {
            fields.remove(name);
        }
        let is_claim = |name: &str| {
            ELSEWHERE.iter().any(|begin| begins_with_spelling(name, begin))
                || OF_THE_REQUEST.iter().any(|field| is_spelling(name, field.as_str()))
        };
        let claims: Vec<HeaderName> = fields.keys().filter(|name| is_claim(name.as_str())).cloned().collect();
        for name in &claims {
            fields.remove(name);
        }
        Identity::default().tell(&self.copy, &mut fields);
        let mut protos = fields.get_all(FORWARDED_PROTO).iter();
        let is_said = |proto: &HeaderValue| proto == "http" || proto == "https";
        if !(protos.next().is_some_and(is_said) && protos.next().is_none()) {
            fields.insert(FORWARDED_PROTO, HeaderValue::from_static(matched.scheme));
        }
        // Methods and hosts are tokens.
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        fields.insert(HOST, value(&self.host));
        fields.insert(METHOD, value(matched.method.as_str()));
        fields.insert(URI, matched.uri.clone());
        fields.insert(FORWARDED_HOST, matched.host.clone());
        let mut question = Request::new(());
        *question.uri_mut() = self.target.parse().unwrap_or_default();
        *question.headers_mut() = fields;
        question
    }

    /// What an answer means. A redirect or an error of the client's is for the client; anything else but a 2xx is nobody's yes.
    pub fn opinion(&self, status: StatusCode, fields: &HeaderMap) -> Opinion {
        match status.as_u16() {
            200..=299 => {
                let copied = self.copy.iter().flat_map(|name| {
                    fields.get_all(name).iter().map(move |value| (name.clone(), value.clone()))
                });
                Opinion::Passes(Identity { fields: copied.collect(), spent_credentials: false })
            }
            // Nothing is known to the client that could be unmodified.
            304 => Opinion::Broken,
            300..=499 => Opinion::Refused,
            _ => Opinion::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        let spec = ForwardAuthSpec {
            upstream: "auth".into(),
            host: "auth.test:9091".into(),
            target: "/api/verify?x=1".into(),
            copy: vec![HeaderName::from_static("remote-user"), HeaderName::from_static("remote-groups")],
            timeout: Duration::from_secs(5),
        };
        let mut fields = HeaderMap::new();
        for (name, value) in
            [("remote-user", "alice"), ("remote-groups", "a"), ("remote-groups", "b"), ("x", "y")]
        {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        for (status, kind) in [
            (200, "yes"),
            (204, "yes"),
            (302, "no"),
            (401, "no"),
            (403, "no"),
            (304, "broken"),
            (500, "broken"),
            (101, "broken"),
        ] {
            let said = match spec.opinion(StatusCode::from_u16(status).unwrap(), &fields) {
                Opinion::Passes(identity) => {
                    assert_eq!(identity.fields.len(), 3);
                    "yes"
                }
                Opinion::Refused => "no",
                Opinion::Broken => "broken",
            };
            assert_eq!(said, kind, "{status}");
        }
        let mut own = HeaderMap::new();
        own.insert(CONTENT_LENGTH, HeaderValue::from_static("5"));
        own.insert(IF_NONE_MATCH, HeaderValue::from_static("\"x\""));
        own.insert("cookie", HeaderValue::from_static("s=1"));
        own.insert("x-forwarded-method", HeaderValue::from_static("GET"));
        // A trusted proxy's words stay in the fields; what its client slipped in may be among them.
        for name in [
            "x-forwarded-host",
            "x-forwarded_uri",
            "x-original-url",
            "x_original_method",
            "x.rewrite-url",
            "remote-user",
            "remote_groups",
        ] {
            own.append(HeaderName::from_static(name), HeaderValue::from_static("evil"));
        }
        own.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        let host = HeaderValue::from_static("a.test:8443");
        let uri = HeaderValue::from_static("/a?b");
        let matched = Matched { method: &Method::POST, host: &host, uri: &uri, scheme: "http" };
        let question = spec.question(matched, own.clone());
        let told = question.headers();
        assert!(told.values().all(|value| value != "evil"), "{told:?}");
        assert_eq!(
            (&told["x-forwarded-host"], &told["x-forwarded-proto"]),
            (&host, &"https".parse().unwrap())
        );
        for odd in ["gopher", "https, http", ""] {
            own.insert("x-forwarded-proto", HeaderValue::from_static(odd));
            assert_eq!(spec.question(matched, own.clone()).headers()["x-forwarded-proto"], "http", "{odd}");
        }
        own.append("x-forwarded-proto", HeaderValue::from_static("https"));
        own.append("x-forwarded-proto", HeaderValue::from_static("https"));
        let values = spec.question(matched, own).headers().get_all("x-forwarded-proto").iter().count();
        assert_eq!(values, 1);
        assert_eq!(
            (told["host"].as_bytes(), question.uri().to_string()),
            (&b"auth.test:9091"[..], spec.target.to_string())
        );
        assert_eq!(
            (&told["x-forwarded-method"], &told["x-forwarded-uri"]),
            (&HeaderValue::from_static("POST"), &HeaderValue::from_static("/a?b"))
        );
        assert!(
            told.contains_key("cookie")
                && !told.contains_key("content-length")
                && !told.contains_key("if-none-match")
        );
    }
}
