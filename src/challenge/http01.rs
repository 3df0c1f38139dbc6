//! Answering http-01 (RFC 8555 section 8.3) in front of whatever else answers: before redirects, before routes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Either;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::answers::AnswerReader;
use crate::conn::{AnswerBody, ConnInfo, Service, TunnelOf};
use crate::name::HostName;

const PREFIX: &str = "/.well-known/acme-challenge/";
/// Tokens have at least 128 bits (section 8.3), so 22 characters; what is shorter or much longer is none.
const TOKEN: std::ops::RangeInclusive<usize> = 22..=128;

/// A service with the answers in front of it. Everything that no answer stands for goes on unchanged.
#[derive(Debug)]
pub struct WellKnown<S> {
    inner: Rc<S>,
    answers: AnswerReader,
}

impl<S: Service> WellKnown<S> {
    /// In front of `inner`.
    pub fn new(inner: S, answers: AnswerReader) -> Self {
        Self { inner: Rc::new(inner), answers }
    }
}

impl<S: Service> Service for WellKnown<S> {
    type Body = WellKnownBody<S::Body>;

    fn call(
        self: Rc<Self>,
        request: Request<Incoming>,
        conn: Rc<ConnInfo>,
    ) -> impl Future<Output = Response<Self::Body>> + 'static {
        let inner = |response: Response<S::Body>| response.map(WellKnownBody::Inner);
        let Some((host, token)) = asked(&request) else {
            return Either::Left(self.inner.clone().call(request, conn).map(inner));
        };
        // Boxed: all other requests need not carry room for it.
        Either::Right(Box::pin(async move {
            let answer = match self.answers.here(host.as_str(), &token) {
                Some(answer) => Some(answer),
                None => self.answers.elsewhere(host.as_str(), &token).await,
            };
            match answer {
                Some(answer) => {
                    tracing::info!(name = %host, client = %conn.peer.ip(), "answered an http-01 request");
                    response(answer, request.method())
                }
                None => inner(self.inner.clone().call(request, conn).await),
            }
        }))
    }

    /// A CA that comes while there is too much to do gets its answer all the same, if it is here: it comes rarely.
    fn shed(self: Rc<Self>, request: Request<Incoming>, conn: Rc<ConnInfo>) -> Response<Self::Body> {
        let answer = asked(&request).and_then(|(host, token)| self.answers.here(host.as_str(), &token));
        match answer {
            Some(answer) => response(answer, request.method()),
            None => self.inner.clone().shed(request, conn).map(WellKnownBody::Inner),
        }
    }

    fn passes_through(&self) -> bool {
        self.inner.passes_through()
    }

    fn pass_through(&self, name: &HostName, conn: &ConnInfo) -> Option<TunnelOf<S>> {
        self.inner.pass_through(name, conn)
    }

    fn unreadable(&self, conn: &ConnInfo, status: u16, reason: &'static str) {
        self.inner.unreadable(conn, status, reason);
    }
}

/// Host and token of a request that may be a CA's.
fn asked<B>(request: &Request<B>) -> Option<(HostName, Box<str>)> {
    let token = request.uri().path().strip_prefix(PREFIX)?;
    if ![Method::GET, Method::HEAD].contains(request.method()) || !is_token(token) {
        return None;
    }
    let mut fields = request.headers().get_all(HOST).iter();
    let authority = match (request.uri().authority(), fields.next(), fields.next()) {
        (Some(authority), ..) => authority.as_str(),
        (None, Some(field), None) => field.to_str().ok()?,
        _ => return None,
    };
    let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
    port.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| HostName::parse(host).ok())?
        .map(|host| (host, token.into()))
}

fn is_token(text: &str) -> bool {
    TOKEN.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn response<B>(answer: Bytes, method: &Method) -> Response<WellKnownBody<B>> {
    let body = if method == Method::HEAD { None } else { Some(answer) };
    let mut response = Response::new(WellKnownBody::Answer(body));
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The body of an answer, or of what stands behind.
pub enum WellKnownBody<B> {
    /// Ours, until it was taken.
    Answer(Option<Bytes>),
    /// The other service's.
    Inner(B),
}

impl<B: AnswerBody> AnswerBody for WellKnownBody<B> {
    type Tunnel = B::Tunnel;

    fn take_tunnel(&mut self) -> Option<B::Tunnel> {
        match self {
            Self::Answer(_) => None,
            Self::Inner(body) => body.take_tunnel(),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for WellKnownBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.get_mut() {
            Self::Answer(answer) => Poll::Ready(answer.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Inner(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Answer(answer) => answer.is_none(),
            Self::Inner(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Answer(answer) => SizeHint::with_exact(answer.as_ref().map_or(0, |a| a.len() as u64)),
            Self::Inner(body) => body.size_hint(),
        }
    }
}

impl<B> fmt::Debug for WellKnownBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(_) => f.write_str("WellKnownBody::Answer"),
            Self::Inner(_) => f.write_str("WellKnownBody::Inner"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA";

    fn ask(method: Method, target: &str, hosts: &[&str]) -> Option<(String, String)> {
        let mut request = Request::builder().method(method).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        asked(&request.body(()).unwrap()).map(|(host, token)| (host.to_string(), token.to_string()))
    }

    #[test]
    fn only_what_a_ca_may_ask_is_looked_at() {
        let path = format!("{PREFIX}{TOKEN}");
        let found = Some(("example.com".to_owned(), TOKEN.to_owned()));
        for host in ["example.com", "EXAMPLE.com:80", "example.com.", "example.com:5002"] {
            assert_eq!(ask(Method::GET, &path, &[host]), found, "{host}");
        }
        assert_eq!(ask(Method::GET, &format!("http://example.com{path}?x=1"), &["example.com"]), found);
        for host in ["", "127.0.0.1", "[::1]:80", "a b", "example.com:x", "*.example.com"] {
            assert_eq!(ask(Method::GET, &path, &[host]), None, "{host}");
        }
        assert_eq!(ask(Method::GET, &path, &[]), None);
        assert_eq!(ask(Method::GET, &path, &["example.com", "example.com"]), None);
        assert_eq!(ask(Method::POST, &path, &["example.com"]), None);
        for target in [
            "/",
            "/.well-known/acme-challenge",
            PREFIX,
            "/.well-known/acme-challenge/short",
            &format!("{path}/"),
            &format!("/x/..{path}"),
            &format!("/{path}"),
            &format!("{PREFIX}../{TOKEN}"),
            &format!("{PREFIX}%2e%2e%2f{TOKEN}"),
            &format!("{PREFIX}{}", "a".repeat(129)),
            &format!("{PREFIX}{TOKEN}."),
        ] {
            assert_eq!(ask(Method::GET, target, &["example.com"]), None, "{target}");
        }
    }
}
