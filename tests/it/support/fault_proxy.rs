//! A proxy before Pebble that does one thing wrong.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::pebble::Pebble;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Every answer comes late.
    Latency(Duration),
    /// The connection ends in the middle of the answer to a new order.
    Reset,
    /// A balancer's page instead of the answer to a new order.
    Unavailable,
    /// The CA counts new orders.
    TooMany,
    /// The directory ends in its middle.
    Truncated,
    /// The directory's own certificate has expired.
    ExpiredCertificate,
    /// The CA's clock differs from ours by so many seconds.
    Clock(i64),
    /// The order becomes invalid once it is finalised.
    OrderInvalid,
    /// The CA looks and finds nothing.
    ChallengeInvalid,
    /// The order is never signed, and the CA says when to ask again.
    Processing,
}

pub struct FaultProxy {
    pub directory_url: String,
    /// Trust this for the directory.
    pub root_pem: String,
    _runtime: tokio::runtime::Runtime,
}

struct State {
    fault: Fault,
    client: reqwest::Client,
    upstream: String,
    told: AtomicBool,
    finalised: AtomicBool,
}

impl FaultProxy {
    pub fn before(pebble: &Pebble, fault: Fault) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let root = std::fs::read(&pebble.ca_root).unwrap();
        let client = runtime.block_on(async {
            let roots = reqwest::Certificate::from_pem_bundle(&root).unwrap();
            reqwest::Client::builder().http1_only().tls_certs_only(roots).build().unwrap()
        });
        let state = Arc::new(State {
            fault,
            client,
            upstream: pebble.directory_url.trim_end_matches("/dir").to_owned(),
            told: AtomicBool::default(),
            finalised: AtomicBool::default(),
        });
        let (acceptor, root_pem) = acceptor(fault == Fault::ExpiredCertificate);
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), state.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let builder = hyper::server::conn::http1::Builder::new();
                    drop(builder.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { directory_url: format!("https://localhost:{port}/dir"), root_pem, _runtime: runtime }
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Piece>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let new_order = path == "/order-plz";
    match state.fault {
        Fault::Latency(wait) => tokio::time::sleep(wait).await,
        Fault::Unavailable if new_order => {
            let answer = Response::builder().status(503).header("retry-after", "120");
            return Ok(answer.body(Piece::whole("<html><h1>Back soon</h1></html>".into())).unwrap());
        }
        Fault::TooMany if new_order => {
            let body = json!({ "type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many new orders recently" });
            let answer = Response::builder().status(429).header("retry-after", "7200");
            return Ok(answer
                .header("replay-nonce", "bm9uY2U")
                .body(Piece::whole(body.to_string().into()))
                .unwrap());
        }
        _ => {}
    }
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let mut headers = parts.headers;
    headers.remove("content-length");
    let request = state.client.request(parts.method, format!("{}{path}", state.upstream));
    let Ok(answer) = request.headers(headers).body(body).send().await else {
        return Ok(Response::builder().status(502).body(Piece::whole(Bytes::new())).unwrap());
    };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().await.unwrap_or_default();
    if status.is_success() {
        state.told.fetch_or(path.starts_with("/chalZ/"), Ordering::SeqCst);
        state.finalised.fetch_or(path.starts_with("/finalize-order/"), Ordering::SeqCst);
    }
    headers.remove("transfer-encoding");
    headers.remove("content-length");
    let mut piece = Piece::whole(body.clone());
    let told = state.told.load(Ordering::SeqCst);
    let of_order = path.starts_with("/my-order/") || path.starts_with("/finalize-order/");
    let finalised = state.finalised.load(Ordering::SeqCst) && of_order && status.is_success();
    match state.fault {
        Fault::Reset if new_order => {
            piece = Piece { body: Some(body.slice(..body.len() / 2)), breaks: true, length: body.len() };
            headers.remove("location"); // it was to follow
        }
        Fault::Truncated if path == "/dir" => piece = Piece::whole(body.slice(..body.len() / 2)),
        Fault::Clock(seconds) => {
            let shift = Duration::from_secs(seconds.unsigned_abs());
            let now = SystemTime::now();
            let theirs = if seconds > 0 { now + shift } else { now - shift };
            headers.insert("date", HeaderValue::from_str(&httpdate::fmt_http_date(theirs)).unwrap());
        }
        Fault::OrderInvalid if finalised => {
            let mut order: Value = serde_json::from_slice(&body).unwrap();
            order["status"] = "invalid".into();
            order["error"] =
                json!({ "type": "urn:ietf:params:acme:error:caa", "detail": "CAA forbids issuance" });
            piece = Piece::whole(order.to_string().into());
        }
        Fault::ChallengeInvalid if told && path.starts_with("/authZ/") => {
            let mut authorization: Value = serde_json::from_slice(&body).unwrap();
            authorization["status"] = "invalid".into();
            for challenge in authorization["challenges"].as_array_mut().unwrap() {
                let error =
                    json!({ "type": "urn:ietf:params:acme:error:dns", "detail": "NXDOMAIN looking up TXT" });
                (challenge["status"], challenge["error"]) = ("invalid".into(), error);
            }
            piece = Piece::whole(authorization.to_string().into());
        }
        Fault::Processing if finalised => {
            let mut order: Value = serde_json::from_slice(&body).unwrap();
            order["status"] = "processing".into();
            piece = Piece::whole(order.to_string().into());
            headers.insert("retry-after", HeaderValue::from_static("7200"));
        }
        _ => {}
    }
    let mut response = Response::new(piece);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A body that may end before its time.
struct Piece {
    body: Option<Bytes>,
    breaks: bool,
    length: usize,
}

impl Piece {
    fn whole(body: Bytes) -> Self {
        Self { length: body.len(), body: Some(body), breaks: false }
    }
}

impl Body for Piece {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match (self.body.take(), self.breaks) {
            (Some(body), _) => Poll::Ready(Some(Ok(Frame::data(body)))),
            (None, true) => Poll::Ready(Some(Err(std::io::Error::other("on purpose")))),
            (None, false) => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length as u64)
    }
}

/// For `localhost`, below a root of its own.
fn acceptor(expired: bool) -> (TlsAcceptor, String) {
    let root_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root of the fault proxy");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(params, root_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    if expired {
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    }
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = builder.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
    (TlsAcceptor::from(Arc::new(config)), root.pem())
}
