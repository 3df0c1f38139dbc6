//! Whether a balancer may send requests here, on a TCP port of its own: no host name, never a route's target.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::net::TcpListener;

use super::http::{answer, refuse, serve};
use crate::backoff::Backoff;
use crate::task::{OnExit, Supervisor};

const RESTART: Backoff = Backoff::new(&[Duration::from_secs(1), Duration::from_secs(10)]);
const TEXT: &str = "text/plain; charset=utf-8";

/// A bound listener for a balancer's checks.
#[derive(Debug)]
pub struct ReadyServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl ReadyServer {
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

    /// Answers every path in the background until the supervisor's shutdown: 200 while `is_ready`, else 503.
    pub fn serve(self, supervisor: &Supervisor, is_ready: Arc<dyn Fn() -> bool + Send + Sync>) {
        let listener = Arc::new(self.listener);
        supervisor.spawn("ready".into(), OnExit::Restart(RESTART), move |shutdown| {
            let listener = listener.clone();
            let is_ready = is_ready.clone();
            async move {
                let reply = |method: Method, _path: String| {
                    let ready = is_ready();
                    async move {
                        match method {
                            Method::GET | Method::HEAD if ready => answer(StatusCode::OK, TEXT, "ready\n"),
                            Method::GET | Method::HEAD => {
                                answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
                            }
                            _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD"),
                        }
                    }
                };
                let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
                serve(shutdown, accept, reply).await;
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

    #[tokio::test]
    async fn a_balancer_is_told_for_any_path() {
        let supervisor = Supervisor::new(Shutdown::new());
        let server = ReadyServer::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.address();
        let ready = Arc::new(AtomicBool::new(true));
        let shown = ready.clone();
        server.serve(&supervisor, Arc::new(move || shown.load(Ordering::SeqCst)));
        for (is_ready, request, status, end) in [
            (true, "GET / HTTP/1.1\r\nHost: x\r\n", "200", "\r\n\r\nready\n"),
            (true, "GET /any/path HTTP/1.0\r\n", "200", "\r\n\r\nready\n"),
            (true, "HEAD / HTTP/1.1\r\nHost: x\r\n", "200", "\r\n\r\n"),
            (true, "POST / HTTP/1.1\r\nHost: x\r\n", "405", "}"),
            (false, "GET / HTTP/1.1\r\nHost: x\r\n", "503", "\r\n\r\ndraining\n"),
        ] {
            ready.store(is_ready, Ordering::SeqCst);
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert!(text[8..].starts_with(&format!(" {status}")) && text.ends_with(end), "{text}");
        }
        supervisor.shutdown().trigger();
        assert!(supervisor.join(Duration::from_secs(5)).await);
    }
}
