//! Clients and upstreams for tests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

/// An HTTP/1.1 server that says who it is and what it saw. Lives as long as the value.
pub struct Upstream {
    pub address: SocketAddr,
    pub requests: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

impl Upstream {
    /// Answers every request with `name`, the method and the path; a body is read to its end and counted. `/bytes/N` answers
    /// with N zero bytes.
    pub fn start(name: &'static str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let count = requests.clone();
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let count = count.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(name, count.clone(), request));
                    let mut builder = hyper::server::conn::http1::Builder::new();
                    builder.timer(TokioTimer::new());
                    // A client that hangs up is none of the upstream's business.
                    drop(builder.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, requests, _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn answer(
    name: &'static str,
    count: Arc<AtomicU64>,
    request: Request<Incoming>,
) -> Result<Response<Either<Full<Bytes>, Zeros>>, Infallible> {
    count.fetch_add(1, Ordering::Relaxed);
    if let Some(n) = request.uri().path().strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
        return Ok(Response::new(Either::Right(Zeros(n))));
    }
    let (parts, mut body) = request.into_parts();
    let mut received = 0;
    while let Some(Ok(frame)) = body.frame().await {
        received += frame.data_ref().map_or(0, Bytes::len);
    }
    let mut text = format!("{name} {} {}\nreceived {received}\n", parts.method, parts.uri);
    for (field, value) in &parts.headers {
        text.push_str(&format!("{field}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    Ok(Response::new(Either::Left(Full::new(Bytes::from(text)))))
}

/// A body of so many zero bytes, made as it is read.
pub struct Zeros(u64);

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let n = self.0.min(ZEROS.len() as u64);
        self.0 -= n;
        Poll::Ready((n > 0).then(|| Ok(Frame::data(Bytes::from_static(&ZEROS[..n as usize])))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

/// `curl` that resolves every host of `example.test` and `localhost` to `address`. Gives the whole output.
pub fn curl(address: SocketAddr, root: &str, url: &str, more: &[&str]) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let root_file = dir.path().join("root.pem");
    std::fs::write(&root_file, root).unwrap();
    let host = url.split("//").nth(1).unwrap().split(['/', ':']).next().unwrap();
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert"])
        .arg(&root_file)
        .arg("--connect-to")
        .arg(format!("{host}::{address}"))
        .args(more)
        .arg(url)
        .output()
        .expect("curl is installed");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The chain that is served for `host`, as PEM.
pub fn served_chain(address: SocketAddr, host: &str) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-servername", host, "-showcerts"])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut chain = String::new();
    let mut inside = false;
    for line in text.lines() {
        inside |= line == "-----BEGIN CERTIFICATE-----";
        if inside {
            chain.push_str(line);
            chain.push('\n');
        }
        inside &= line != "-----END CERTIFICATE-----";
    }
    chain
}
