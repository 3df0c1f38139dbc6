//! Small questions on a TCP port of their own, which is never a route's target: Prometheus asks for metrics, a balancer whether it
//! may send requests.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::net::TcpListener;

use super::http::{Answer, answer, refuse, serve};
use crate::backoff::Backoff;
use crate::task::{OnExit, Supervisor};

const RESTART: Backoff = Backoff::new(&[Duration::from_secs(1), Duration::from_secs(10)]);
/// What the registry writes (OpenMetrics 1.0).
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// A bound listener for one kind of question.
#[derive(Debug)]
pub struct SideServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl SideServer {
    /// Binds `address`. Must be called inside a runtime.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The real port where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers `GET /metrics`. `render` is called once for each request and must not block for longer than writing the text takes.
    pub fn serve_metrics(self, supervisor: &Supervisor, render: impl Fn() -> String + Send + Sync + 'static) {
        self.serve(supervisor, "metrics", move |method, path| match (path, method) {
            ("/metrics", &Method::GET | &Method::HEAD) => answer(StatusCode::OK, METRICS, render()),
            ("/metrics", _) => refuse(StatusCode::METHOD_NOT_ALLOWED, "/metrics takes GET only"),
            _ => refuse(StatusCode::NOT_FOUND, "there is /metrics only"),
        });
    }

    /// Answers every path: 200 while `is_ready`, else 503.
    pub fn serve_ready(self, supervisor: &Supervisor, is_ready: impl Fn() -> bool + Send + Sync + 'static) {
        self.serve(supervisor, "ready", move |method, _| match *method {
            Method::GET | Method::HEAD if is_ready() => answer(StatusCode::OK, TEXT, "ready\n"),
            Method::GET | Method::HEAD => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"),
            _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD"),
        });
    }

    /// Answers in the background until the supervisor's shutdown; `reply` gets method and path.
    fn serve(
        self,
        supervisor: &Supervisor,
        name: &str,
        reply: impl Fn(&Method, &str) -> Answer + Send + Sync + 'static,
    ) {
        let shared = Arc::new((self.listener, reply));
        supervisor.spawn(name.into(), OnExit::Restart(RESTART), move |shutdown| {
            let shared = shared.clone();
            async move {
                let (listener, reply) = &*shared;
                let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
                let answer = |method: Method, path: String| std::future::ready(reply(&method, &path));
                serve(shutdown, accept, answer).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::task::Shutdown;

    fn server() -> (Supervisor, SideServer) {
        let server = SideServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        (Supervisor::new(Shutdown::new()), server)
    }

    async fn asked(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    async fn ends(supervisor: Supervisor) {
        supervisor.shutdown().trigger();
        assert!(supervisor.join(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn prometheus_gets_the_text_and_others_a_404() {
        let (supervisor, server) = server();
        let address = server.address();
        server.serve_metrics(&supervisor, || "up 1\n# EOF\n".to_owned());
        for (request, status, end) in [
            ("GET /metrics", "200", "up 1\n# EOF\n"),
            ("HEAD /metrics", "200", "\r\n\r\n"),
            ("POST /metrics", "405", "}"),
            ("GET /", "404", "}"),
        ] {
            let text = asked(address, &format!("{request} HTTP/1.1\r\nHost: x\r\n")).await;
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")) && text.ends_with(end), "{text}");
        }
        ends(supervisor).await;
    }

    #[tokio::test]
    async fn a_balancer_is_told_for_any_path() {
        let (supervisor, server) = server();
        let address = server.address();
        let ready = Arc::new(AtomicBool::new(true));
        let shown = ready.clone();
        server.serve_ready(&supervisor, move || shown.load(Ordering::SeqCst));
        for (is_ready, request, status, end) in [
            (true, "GET / HTTP/1.1\r\nHost: x\r\n", "200", "\r\n\r\nready\n"),
            (true, "GET /any/path HTTP/1.0\r\n", "200", "\r\n\r\nready\n"),
            (true, "HEAD / HTTP/1.1\r\nHost: x\r\n", "200", "\r\n\r\n"),
            (true, "POST / HTTP/1.1\r\nHost: x\r\n", "405", "}"),
            (false, "GET / HTTP/1.1\r\nHost: x\r\n", "503", "\r\n\r\ndraining\n"),
        ] {
            ready.store(is_ready, Ordering::SeqCst);
            let text = asked(address, request).await;
            assert!(text[8..].starts_with(&format!(" {status}")) && text.ends_with(end), "{text}");
        }
        ends(supervisor).await;
    }
}
