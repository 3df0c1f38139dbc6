//! The world's HTTPS hosts on one loopback address: a CONNECT proxy that ends the tunnel itself, with a certificate minted for
//! the host. Programs find it by `HTTPS_PROXY` and trust it by `SSL_CERT_FILE`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A request to a host.
#[derive(Debug)]
pub struct Asked {
    pub host: String,
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer: a status, further header fields, a body.
#[derive(Clone, Debug)]
pub struct Said {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

pub type Answer = Arc<dyn Fn(&Asked) -> Said + Send + Sync>;

impl Said {
    #[allow(clippy::needless_pass_by_value, reason = "bodies are made on the spot")]
    pub fn new(status: u16, body: impl ToString) -> Self {
        Self { status, headers: Vec::new(), body: body.to_string() }
    }

    pub fn with(mut self, field: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((field, value.into()));
        self
    }
}

impl Asked {
    /// A header field; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The path in its parts, without the empty one in front.
    pub fn parts(&self) -> Vec<&str> {
        self.path.trim_start_matches('/').split('/').collect()
    }

    pub fn query(&self) -> BTreeMap<String, String> {
        form(&self.query)
    }

    pub fn form(&self) -> BTreeMap<String, String> {
        form(&String::from_utf8_lossy(&self.body))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn form(text: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

/// A CA of its own.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
    minted: Mutex<BTreeMap<String, Arc<ServerConfig>>>,
}

impl Ca {
    /// Makes the CA; its root goes to `root` as PEM.
    pub fn new(root: &Path) -> Self {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "The hosts of these tests");
        std::fs::write(root, params.self_signed(&root_key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, root_key), key, minted: Mutex::default() }
    }

    fn config(&self, host: &str) -> Arc<ServerConfig> {
        let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
        minted.entry(host.to_owned()).or_insert_with(|| self.mint(host)).clone()
    }

    fn mint(&self, host: &str) -> Arc<ServerConfig> {
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&self.key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// Serves tunnels for ever.
pub async fn serve(listener: TcpListener, ca: Arc<Ca>, answer: Answer) -> Infallible {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (ca, answer) = (ca.clone(), answer.clone());
        tokio::spawn(async move { tunnel(stream, &ca, answer).await });
    }
}

/// One tunnel. Whatever breaks is the client's to report.
async fn tunnel(mut stream: TcpStream, ca: &Ca, answer: Answer) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let target = head.strip_prefix("CONNECT ")?.split(' ').next()?;
    let host: Arc<str> = target.strip_suffix(":443")?.into();
    stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.ok()?;
    let stream = TlsAcceptor::from(ca.config(&host)).accept(stream).await.ok()?;
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, host) = (answer.clone(), host.clone());
        async move { Ok::<_, Infallible>(respond(request, &host, &answer).await) }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    served.await.ok()
}

async fn respond(request: Request<Incoming>, host: &str, answer: &Answer) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let asked = Asked {
        host: host.to_owned(),
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: body.collect().await.map(|body| body.to_bytes()).unwrap_or_default(),
    };
    let said = answer(&asked);
    let mut response = Response::builder().status(said.status);
    for (field, value) in said.headers {
        response = response.header(field, value);
    }
    response.body(Full::new(Bytes::from(said.body))).unwrap()
}

/// A command that reaches the world through the proxy at `address`, and trusts its root.
pub fn through(command: &mut std::process::Command, address: SocketAddr, root: &Path) {
    command.env("HTTPS_PROXY", format!("http://{address}")).env("SSL_CERT_FILE", root);
}
