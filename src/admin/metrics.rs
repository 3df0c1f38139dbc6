//! Metrics for Prometheus on a TCP port of their own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::net::{TcpListener, TcpStream};

use super::http::{answer, refuse, serve};
use crate::backoff::Backoff;
use crate::task::{OnExit, Supervisor};

const RESTART: Backoff = Backoff::new(&[Duration::from_secs(1), Duration::from_secs(10)]);
/// What the registry writes (OpenMetrics 1.0).
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A bound listener for `GET /metrics`.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsServer {
    /// Takes over a bound, listening socket. Must be called inside a runtime.
    pub fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Binds `address`. Must be called inside a runtime.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::new(std::net::TcpListener::bind(address)?)
    }

    /// The real port where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers in the background until the supervisor's shutdown. `render` is called once for each request and must not block
    /// for longer than writing the text takes.
    pub fn serve(self, supervisor: &Supervisor, render: Arc<dyn Fn() -> String + Send + Sync>) {
        let listener = Arc::new(self.listener);
        supervisor.spawn("metrics".into(), OnExit::Restart(RESTART), move |shutdown| {
            let listener = listener.clone();
            let render = render.clone();
            async move {
                let reply = |method: Method, path: String| {
                    let render = render.clone();
                    async move {
                        match (path.as_str(), method) {
                            ("/metrics", Method::GET | Method::HEAD) => {
                                answer(StatusCode::OK, CONTENT_TYPE, render())
                            }
                            ("/metrics", _) => {
                                refuse(StatusCode::METHOD_NOT_ALLOWED, "/metrics takes GET only")
                            }
                            _ => refuse(StatusCode::NOT_FOUND, "there is /metrics only"),
                        }
                    }
                };
                serve(shutdown, || accept(&listener), reply).await;
            }
        });
    }
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.accept().await.map(|(stream, _)| stream)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::task::Shutdown;

    #[tokio::test]
    async fn prometheus_gets_the_text_and_others_a_404() {
        let supervisor = Supervisor::new(Shutdown::new());
        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.address();
        server.serve(&supervisor, Arc::new(|| "up 1\n# EOF\n".to_owned()));
        for (path, status, end) in [("/metrics", "200", "up 1\n# EOF\n"), ("/", "404", "}")] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")) && text.ends_with(end), "{text}");
        }
        supervisor.shutdown().trigger();
        assert!(supervisor.join(Duration::from_secs(5)).await);
    }
}
