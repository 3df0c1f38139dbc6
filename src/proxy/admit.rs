//! Who a request is of, before anything is forwarded: passwords are verified, and other servers asked.

use std::rc::Rc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, Method, Response, header};
use http_body_util::BodyExt;

use super::attempts::Attempts;
use super::body::Answer;
use super::client::Client;
use super::error::Refusal;
use super::host::Authority;
use super::record::Record;
use super::reply::refuse;
use super::{forward, headers};
use crate::balance::Ask;
use crate::conn::ConnInfo;
use crate::policy::{Authentication, Denial, ForwardAuthSpec, Identity, Matched, Opinion};
use crate::task;
use crate::upstream::{Exchange, ExchangeLimits, ResponseBody, Upload};

/// An answer of a forward-auth server is a page that says no, or a redirect to a log-in: no more than this is passed on.
const MAX_ANSWER: usize = 64 * 1024;

/// A request as far as authentication needs it.
#[derive(Clone, Copy)]
pub(super) struct Visit<'a> {
    pub(super) parts: &'a Parts,
    pub(super) authority: &'a Authority<'a>,
    /// Normalised.
    pub(super) path: &'a str,
    pub(super) conn: &'a ConnInfo,
    pub(super) client: Client,
}

/// Finishes what a route's policy has begun. `Err` is the answer for a client that may not go on.
pub(super) async fn authenticate(
    authentication: Result<Authentication<'_>, Denial>,
    visit: Visit<'_>,
    record: Box<Record>,
) -> Result<(Identity, Box<Record>), Box<Response<Answer>>> {
    let denied = |denial, record| Err(Box::new(refuse(Refusal::Denied(denial), record)));
    match authentication {
        Ok(Authentication::Done(identity)) => Ok((identity, record)),
        Ok(Authentication::Verify(auth, attempt)) => {
            let Some(turn) = record.local.snapshot.turns.take().await else {
                return denied(Denial::AuthBusy, record);
            };
            // Goes on when the client leaves, and so must the turn.
            let verified = task::blocking(move || {
                let verified = auth.verify(&attempt, Instant::now());
                drop(turn);
                verified
            });
            match verified.await {
                Some(identity) => Ok((identity, record)),
                None => denied(Denial::Credentials, record),
            }
        }
        Ok(Authentication::Ask(spec)) => {
            let answered = tokio::time::timeout(spec.timeout, ask(spec, visit, &record)).await;
            match answered {
                Ok(Ok(Said::Passes(identity))) => Ok((identity, record)),
                Ok(Ok(Said::Refused(answer))) => Err(Box::new(passed_on(answer, record))),
                Ok(Err(reason)) => {
                    tracing::debug!(server = %spec.upstream, reason, "forward_auth gave no answer; the request is denied");
                    denied(Denial::AuthFailed, record)
                }
                Err(_) => {
                    tracing::debug!(server = %spec.upstream, "forward_auth did not answer in time; the request is denied");
                    denied(Denial::AuthFailed, record)
                }
            }
        }
        Err(denial) => denied(denial, record),
    }
}

/// What another server said.
enum Said {
    Passes(Identity),
    Refused(Response<Bytes>),
}

async fn ask(spec: &ForwardAuthSpec, visit: Visit<'_>, record: &Record) -> Result<Said, &'static str> {
    let Visit { parts, authority, path, conn, client } = visit;
    let snapshot = &record.local.snapshot;
    let balancer = snapshot.upstreams.get(&spec.upstream).ok_or("its upstream is unknown")?;
    let introduction = client.introduce(conn, authority, &parts.headers).ok_or("the host is malformed")?;
    let target = forward::target(&parts.uri, path).ok_or("the path is malformed")?;
    let uri = target.path_and_query().map_or("/", |target| target.as_str());
    let uri = HeaderValue::from_str(uri).map_err(|_| "the path is malformed")?;
    let mut fields = parts.headers.clone();
    let incoming = headers::Incoming {
        client,
        scheme: conn.scheme(),
        introduction: &introduction,
        version: parts.version,
    };
    headers::to_server(&mut fields, &incoming);

    let ask = Ask { client: record.client, headers: &parts.headers, path };
    let preference = balancer.prefer(&ask);
    let limits = ExchangeLimits {
        timeouts: *balancer.timeouts(),
        body_timeout: snapshot.body_timeout,
        max_body: None,
    };
    let mut attempts = Attempts::new(balancer, &Method::GET, |_| Upload::none());
    let (answer, _in_flight) = loop {
        let in_flight =
            attempts.pick(&preference).await.map_err(|_| "it has no server that can be reached")?;
        let exchange = Rc::new(Exchange::new(attempts.limits(limits)));
        let matched =
            Matched { method: &parts.method, host: &introduction.host, uri: &uri, scheme: conn.scheme() };
        let question = spec.question(matched, fields.clone());
        let question = Box::new(question.map(|()| attempts.upload.body(exchange.clone())));
        let pool = record.shared.pools.to(in_flight.endpoint());
        let answer = attempts.send(&pool, &exchange, question, &in_flight).await;
        if let Some(answer) = answer.map_err(|_| "it cannot be reached, or says no HTTP")? {
            break (answer, in_flight);
        }
    };
    let (mut head, body) = answer.into_parts();
    match spec.opinion(head.status, &head.headers) {
        Opinion::Passes(identity) => {
            // Read to its end, the connection can be used again; a long one is not worth it.
            drop(read(body).await);
            Ok(Said::Passes(identity))
        }
        Opinion::Refused => {
            headers::to_client(&mut head.headers);
            head.headers.remove(header::CONTENT_LENGTH);
            let body = read(body).await.ok_or("its answer is too long, or broke off")?;
            Ok(Said::Refused(Response::from_parts(head, body)))
        }
        Opinion::Broken => Err("it answered neither yes nor no"),
    }
}

/// A whole body; `None` if it breaks off, or is longer than it should be.
async fn read(mut body: ResponseBody) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            if whole.len() + data.len() > MAX_ANSWER {
                return None;
            }
            whole.extend_from_slice(&data);
        }
    }
    Some(whole.freeze())
}

/// The other server's no is ours: a page, or the way to a log-in, with its cookies.
fn passed_on(answer: Response<Bytes>, mut record: Box<Record>) -> Response<Answer> {
    let (head, body) = answer.into_parts();
    record.shared.metrics.rejected(REFUSED).inc();
    record.answered(head.status);
    record.reason = REFUSED;
    let mut response = Response::new(Answer::full(body, record));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

/// The word for the log and `starlock_rejected_total`.
const REFUSED: &str = "forward_auth";
