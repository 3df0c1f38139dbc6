//! One question to one server.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::balance::{Endpoint, Question, ServerHost, ServerSpec, Transport};
use crate::upstream::{ReachedIo, TlsReader, Unreached, reach};

/// What a health service answers is a few bytes.
const MESSAGE: usize = 4096;
/// grpc.health.v1.HealthCheckResponse.ServingStatus.
const SERVING: u64 = 1;

/// Whether the server says within `limit` that it is well; if not, why, for people.
pub(super) async fn ask(
    endpoint: &Arc<Endpoint>,
    tls: &TlsReader,
    question: &Question,
    limit: Duration,
) -> Result<(), Unreached> {
    let server = endpoint.spec();
    let scheme = if matches!(server.transport, Transport::Tls(_)) { "https" } else { "http" };
    let answer = async {
        let reached = reach(endpoint, tls).await?;
        let origin = Origin { scheme, authority: authority(server) };
        let said = match question {
            Question::Tcp => Ok(()),
            Question::Http { path, status } if reached.http2 => {
                h2_get(reached.io, &origin, path, status).await
            }
            Question::Http { path, status } => http(reached.io, &origin.authority, path, status).await,
            // In clear it is asked for without asking, whatever requests get.
            Question::Grpc { service } if reached.http2 || scheme == "http" => {
                grpc(reached.io, &origin, service).await
            }
            Question::Grpc { .. } => Err("it does not speak HTTP/2".to_owned()),
        };
        said.map_err(Unreached::Theirs)
    };
    timeout(limit, answer).await.unwrap_or_else(|_| Err(Unreached::Theirs("no answer in time".to_owned())))
}

/// Where a question by HTTP/2 goes.
struct Origin {
    scheme: &'static str,
    authority: String,
}

impl Origin {
    fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.authority)
    }
}

fn authority(server: &ServerSpec) -> String {
    match &server.host {
        ServerHost::Name(name) | ServerHost::Service(name) => format!("{name}:{}", server.port),
        ServerHost::Ip(address) => SocketAddr::new(*address, server.port).to_string(),
        ServerHost::Unix(_) => "localhost".to_owned(),
    }
}

/// Runs a connection as long as an exchange on it needs it.
async fn drive<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    let (mut exchange, connection) = (pin!(exchange), pin!(connection));
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // It may have ended with the answer.
        _ = connection => exchange.await,
    }
}

async fn http(stream: Box<dyn ReachedIo>, authority: &str, path: &str, wanted: &[u16]) -> Result<(), String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, "starlock-health")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let status = drive(sender.send_request(request), connection).await.map_err(text)?.status();
    judge(status, wanted)
}

async fn h2_get(
    stream: Box<dyn ReachedIo>,
    origin: &Origin,
    path: &str,
    wanted: &[u16],
) -> Result<(), String> {
    let text = |error: h2::Error| error.to_string();
    let (sender, connection) = h2::client::handshake(stream).await.map_err(text)?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(text)?;
        let request = Request::get(origin.url(path))
            .header(header::USER_AGENT, "starlock-health")
            .body(())
            .map_err(|error| error.to_string())?;
        let (response, _) = sender.send_request(request, true).map_err(text)?;
        judge(response.await.map_err(text)?.status(), wanted)
    };
    drive(exchange, connection).await
}

/// `wanted`: empty for every 2xx.
fn judge(status: StatusCode, wanted: &[u16]) -> Result<(), String> {
    let good = match wanted {
        [] => status.is_success(),
        wanted => wanted.contains(&status.as_u16()),
    };
    if good { Ok(()) } else { Err(format!("it answers {status}")) }
}

async fn grpc(stream: Box<dyn ReachedIo>, origin: &Origin, service: &str) -> Result<(), String> {
    let text = |error: h2::Error| error.to_string();
    let (sender, connection) = h2::client::handshake(stream).await.map_err(text)?;
    let exchange = async {
        let mut sender = sender.ready().await.map_err(text)?;
        let request = Request::post(origin.url("/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, "starlock-health")
            .body(())
            .map_err(|error| error.to_string())?;
        let (response, mut body) = sender.send_request(request, false).map_err(text)?;
        body.send_data(check_request(service), true).map_err(text)?;
        let (head, mut body) = response.await.map_err(text)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(format!("it answers {}", head.status));
        }
        let mut message = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(text)?;
            let _ = body.flow_control().release_capacity(data.len());
            if message.len() + data.len() > MESSAGE {
                return Err("its answer is too long".to_owned());
            }
            message.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.map_err(text)?.unwrap_or_default();
        grpc_status(&head.headers, &trailers)?;
        match serving_status(&message) {
            Some(SERVING) => Ok(()),
            Some(other) => Err(format!("its serving status is {other}")),
            None => Err("its answer is no HealthCheckResponse".to_owned()),
        }
    };
    drive(exchange, connection).await
}

/// Refuses what is not OK. An answer without a message has its status in the head.
fn grpc_status(head: &HeaderMap, trailers: &HeaderMap) -> Result<(), String> {
    match trailers.get("grpc-status").or_else(|| head.get("grpc-status")) {
        Some(status) if status == "0" => Ok(()),
        Some(status) => Err(format!("grpc-status {}", String::from_utf8_lossy(status.as_bytes()))),
        None => Err("it does not speak gRPC".to_owned()),
    }
}

/// A HealthCheckRequest: field 1 is the service's name.
fn check_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Field 1 of a HealthCheckResponse; 0, which is UNKNOWN, if it is left out. `None`: this is none.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (0, rest) = framed.split_first().map(|(flag, rest)| (*flag, rest))? else { return None };
    let (length, mut message) = rest.split_first_chunk::<4>()?;
    if usize::try_from(u32::from_be_bytes(*length)).ok()? != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_health_protocol() {
        assert_eq!(check_request(""), &[0, 0, 0, 0, 0][..]);
        assert_eq!(check_request("ab"), &[0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b'][..]);
        assert_eq!(check_request(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        for (framed, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 3, 8, 1], None),
            (&[0, 0, 0, 0, 3, 0x12, 9, 8], None),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 1, 8], None),
            (&[], None),
        ] {
            assert_eq!(serving_status(framed), expected, "{framed:?}");
        }
    }
}
