//! Servers behind Starlock that do as they are told.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use starlock::task::{self, Shutdown};
use tokio::io::AsyncReadExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A server with a thread of its own; stops when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    stop: Shutdown,
}

impl Server {
    /// Gives each connection to `serve`.
    pub(crate) fn raw<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, stop) = (Arc::new(AtomicUsize::new(0)), Shutdown::new());
        let (count, stopped) = (connections.clone(), stop.clone());
        task::spawn_thread("server", move || async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap(),
                    () = stopped.wait() => return,
                };
                count.fetch_add(1, Ordering::SeqCst);
                task::spawn_local(serve(stream));
            }
        })
        .unwrap();
        Self { address, connections, stop }
    }

    /// Gives each connection to `serve` behind TLS. It picks of `alpn`, and shakes no hands with who offers none of them; its
    /// certificate is its own work.
    pub(crate) fn tls<F, Fut>(alpn: &[&str], serve: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["app.internal.test".to_owned()]).unwrap();
        let chain = vec![cert.self_signed(&key).unwrap().der().clone()];
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::raw(move |stream| {
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream).await;
                }
            }
        })
    }

    /// Reads a head, sends `answer`, then reads on; closes if `close`.
    pub(crate) fn canned(answer: &'static str, close: bool) -> Self {
        Self::raw(move |mut stream| async move {
            let mut seen = Vec::new();
            while let Ok(1..) = stream.read_buf(&mut seen).await {
                if seen.windows(4).any(|w| w == b"\r\n\r\n") {
                    seen.clear();
                    if tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.is_err()
                        || close
                    {
                        return;
                    }
                }
            }
        })
    }

    /// Speaks HTTP/1.1 and asks `answer`.
    pub(crate) fn http<F, Fut>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Response<Body>> + 'static,
    {
        Self::raw(move |stream| {
            let answer = answer.clone();
            async move {
                let service = service_fn(|request| {
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        })
    }

    /// Answers with what it was asked: the request line, the fields sorted, an empty line, the body and its trailers.
    pub(crate) fn echo() -> Self {
        Self::http(|request| async {
            let (parts, body) = request.into_parts();
            let mut lines: Vec<String> = parts
                .headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
                .collect();
            lines.sort();
            let mut text =
                format!("{} {} {:?}\n{}\n\n", parts.method, parts.uri, parts.version, lines.join("\n"));
            match body.collect().await {
                Ok(body) => {
                    let trailers = body.trailers().cloned();
                    text.push_str(&String::from_utf8_lossy(&body.to_bytes()));
                    for (name, value) in &trailers.unwrap_or_default() {
                        text.push_str(&format!("\n{}: {}", name, value.to_str().unwrap()));
                    }
                }
                Err(error) => text.push_str(&format!("broken: {error}")),
            }
            Response::new(full(text))
        })
    }

    /// How many connections it has accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

/// A port that nobody answers at: its queue is full, and the kernel drops every SYN.
pub(crate) struct Hung {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Hung {
    pub(crate) async fn start() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            queued.push(stream.unwrap());
            assert!(queued.len() < 10, "the queue has no end");
        }
        Self { listener, _queued: queued }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }
}

/// A port that is taken and where nobody listens: whoever connects is refused.
pub(crate) struct Dead(tokio::net::TcpSocket);

impl Dead {
    pub(crate) fn start() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Listens from now on.
    pub(crate) fn revive(self) -> TcpListener {
        self.0.listen(64).unwrap()
    }
}

/// Answers every request of a connection over HTTP/2 with `status`.
pub(crate) async fn answer_h2<S: AsyncRead + AsyncWrite + Unpin>(stream: S, status: u16) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let response = Response::builder().status(status).body(()).unwrap();
        let _ = respond.send_response(response, true);
    }
}

/// Answers every request of a connection over HTTP/1.1 with `status`.
pub(crate) async fn answer_h1<S: AsyncRead + AsyncWrite + Unpin>(stream: S, status: u16) {
    let service = service_fn(|_: Request<Incoming>| async move {
        Ok::<_, Infallible>(Response::builder().status(status).body(full("")).unwrap())
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}
