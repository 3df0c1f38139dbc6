//! A proxy before Pebble that can be told to stop at a step of an order: before the request gets there, or before the answer
//! comes back.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::eventually;
use super::pebble::Pebble;

/// Where to stop: the beginning of a path of Pebble's, and on which side of Pebble.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    pub path: &'static str,
    pub after: bool,
}

pub struct Stopper {
    pub directory_url: String,
    state: Arc<State>,
    _runtime: tokio::runtime::Runtime,
}

struct State {
    stop: Mutex<Option<Stop>>,
    hits: Mutex<u32>,
    /// Path and payload of every signed request, as it came.
    asked: Mutex<Vec<(String, Value)>>,
    /// Counts up when everything that is stopped may go on.
    released: watch::Sender<u32>,
    client: reqwest::Client,
    upstream: String,
}

impl Stopper {
    pub fn before(pebble: &Pebble) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let root = std::fs::read(&pebble.ca_root).unwrap();
        let client = runtime.block_on(async {
            let roots = reqwest::Certificate::from_pem_bundle(&root).unwrap();
            reqwest::Client::builder().http1_only().tls_certs_only(roots).build().unwrap()
        });
        let state = Arc::new(State {
            stop: Mutex::default(),
            hits: Mutex::default(),
            asked: Mutex::default(),
            released: watch::Sender::new(0),
            client,
            upstream: pebble.directory_url.trim_end_matches("/dir").to_owned(),
        });
        let acceptor = acceptor(&pebble.directory());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = state.clone();
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| forward(state.clone(), request));
                    drop(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self { directory_url: format!("https://localhost:{port}/dir"), state, _runtime: runtime }
    }

    /// From now on requests for `stop` are held.
    pub fn arm(&self, stop: Stop) {
        *self.state.hits.lock().unwrap() = 0;
        *self.state.stop.lock().unwrap() = Some(stop);
    }

    /// Waits until a request is being held.
    pub fn wait_for_hit(&self) {
        eventually("a request is held before Pebble", || {
            (*self.state.hits.lock().unwrap() > 0).then_some(())
        });
    }

    /// How many requests were held since `arm`.
    pub fn hits(&self) -> u32 {
        *self.state.hits.lock().unwrap()
    }

    /// The payloads of signed requests (RFC 8555 section 6.2) for paths that begin so, held ones too, oldest first.
    pub fn asked(&self, path: &str) -> Vec<Value> {
        let asked = self.state.asked.lock().unwrap();
        asked.iter().filter(|(of, _)| of.starts_with(path)).map(|(_, payload)| payload.clone()).collect()
    }

    /// Lets everything through again, what is held included.
    pub fn release(&self) {
        *self.state.stop.lock().unwrap() = None;
        self.state.released.send_modify(|n| *n += 1);
    }
}

async fn forward(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let stop = (*state.stop.lock().unwrap()).filter(|stop| path.starts_with(stop.path));
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    if let Some(payload) = payload(&body) {
        state.asked.lock().unwrap().push((path.clone(), payload));
    }
    if stop.is_some_and(|stop| !stop.after) {
        hold(&state).await;
    }
    let mut headers = parts.headers;
    headers.remove("content-length");
    let answer = state
        .client
        .request(parts.method, format!("{}{path}", state.upstream))
        .headers(headers)
        .body(body)
        .send()
        .await;
    let Ok(answer) = answer else {
        return Ok(Response::builder().status(502).body(Full::default()).unwrap());
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().await.unwrap_or_default();
    if stop.is_some_and(|stop| stop.after) {
        hold(&state).await;
    }
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().remove("transfer-encoding");
    Ok(response)
}

fn payload(body: &[u8]) -> Option<Value> {
    let jws: Value = serde_json::from_slice(body).ok()?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(jws["payload"].as_str()?).ok()?;
    serde_json::from_slice(&payload).ok()
}

async fn hold(state: &State) {
    let mut released = state.released.subscribe();
    *state.hits.lock().unwrap() += 1;
    drop(released.changed().await);
}

fn acceptor(directory: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(directory.join("directory.pem")).unwrap();
    let chain: Vec<_> = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(directory.join("directory.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}
