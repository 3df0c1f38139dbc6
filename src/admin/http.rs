//! A small HTTP/1.1 server for few, trusted clients: bounded in connections, time and bytes.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::task::Shutdown;

/// Clients at a time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 32;
/// Time for one client from its first byte to our last, a reload included.
const CONNECTION_LIMIT: Duration = Duration::from_secs(90);
/// Time for the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Nobody has anything to say in a body.
const MAX_BODY: usize = 4096;
/// After the shutdown signal, answers under way may take so long.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

pub(super) type Answer = Response<Full<Bytes>>;

/// Serves what `accept` gives until the shutdown signal; `answer` gets method and path.
///
/// A failed accept is logged, and tried again after a second: it may be a passing lack of file descriptors.
pub(super) async fn serve<S, A, AFut, H, HFut>(shutdown: Shutdown, mut accept: A, answer: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: FnMut() -> AFut,
    AFut: Future<Output = std::io::Result<S>>,
    H: Fn(Method, String) -> HFut + Sync,
    HFut: Future<Output = Answer> + Send,
{
    let answer = &answer;
    let mut open: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = shutdown.wait() => break,
            Some(()) = open.next() => {}
            accepted = accept(), if open.len() < MAX_CONNECTIONS => match accepted {
                Ok(stream) => open.push(Box::pin(connection(stream, answer))),
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin interface could not be accepted");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
    let _ = tokio::time::timeout(DRAIN_LIMIT, async { while open.next().await.is_some() {} }).await;
}

async fn connection<S, H, HFut>(stream: S, answer: &H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Method, String) -> HFut + Sync,
    HFut: Future<Output = Answer> + Send,
{
    let service = service_fn(|request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        if Limited::new(body, MAX_BODY).collect().await.is_err() {
            return Ok::<_, Infallible>(refuse(StatusCode::PAYLOAD_TOO_LARGE, "no body is expected"));
        }
        Ok(answer(head.method, head.uri.path().to_owned()).await)
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_LIMIT, pin!(serving)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client of the admin interface went away"),
        Err(_) => tracing::debug!("a client of the admin interface took too long"),
    }
}

/// An answer with a JSON body.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(status, "application/json", body),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            answer(
                StatusCode::INTERNAL_SERVER_ERROR,
                "application/json",
                b"{\"error\":\"internal\"}".to_vec(),
            )
        }
    }
}

/// A refusal with words for a person.
pub(super) fn refuse(status: StatusCode, error: &str) -> Answer {
    json(status, &super::Refusal { error: error.to_owned() })
}

pub(super) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
