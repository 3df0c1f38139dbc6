//! A client that sends exactly the bytes it is told to.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) use super::PATIENCE;

/// One connection.
pub(crate) struct Raw<S = TcpStream> {
    pub(crate) stream: S,
    buffer: Vec<u8>,
}

/// One answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a field that is there once.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().skip(1).filter_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then_some(value.trim())
        });
        let value = values.next();
        assert!(values.next().is_none(), "{name} is there twice: {}", self.head);
        value
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// A client on a connection that is there already.
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends a whole request and reads the answer.
    pub(crate) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        let head = String::from_utf8_lossy(request.as_ref()).starts_with("HEAD ");
        self.send(request).await;
        self.answer(head).await
    }

    /// A GET of `path` at `host` and its answer.
    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Answer {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
    }

    /// Reads one answer, an interim one too. `head`: it answers a HEAD.
    pub(crate) async fn answer(&mut self, head: bool) -> Answer {
        timeout(PATIENCE, self.read_answer(head)).await.expect("no answer")
    }

    async fn read_answer(&mut self, to_head: bool) -> Answer {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(
                self.fill().await > 0,
                "closed within a head: {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        if to_head || status < 200 || status == 204 || status == 304 {
            return answer;
        }
        if answer.field("transfer-encoding").is_some() {
            answer.body = self.chunks().await;
        } else if let Some(length) = answer.field("content-length") {
            let length: usize = length.parse().unwrap();
            while self.buffer.len() < length {
                assert!(self.fill().await > 0, "closed within a body");
            }
            answer.body = self.buffer.drain(..length).collect();
        } else {
            while self.fill().await > 0 {}
            answer.body = std::mem::take(&mut self.buffer);
        }
        answer
    }

    /// The raw bytes of a chunked body, trailers included, decoded as `data` and then `\nname: value` lines.
    async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line().await.split(';').next().unwrap(), 16).unwrap();
            if size == 0 {
                loop {
                    let line = self.line().await;
                    if line.is_empty() {
                        return body;
                    }
                    body.push(b'\n');
                    body.extend_from_slice(line.as_bytes());
                }
            }
            while self.buffer.len() < size + 2 {
                assert!(self.fill().await > 0, "closed within a chunk");
            }
            body.extend(self.buffer.drain(..size));
            assert_eq!(self.buffer.drain(..2).collect::<Vec<u8>>(), b"\r\n");
        }
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line = self.buffer.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).unwrap();
            }
            assert!(self.fill().await > 0, "closed within a line");
        }
    }

    async fn fill(&mut self) -> usize {
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0)
    }

    /// Waits until the other side closes; `true` if it said nothing more.
    pub(crate) async fn closed(&mut self) -> bool {
        timeout(PATIENCE, async { while self.fill().await > 0 {} }).await.expect("not closed");
        self.buffer.is_empty()
    }

    /// Whether nothing comes and nobody closes for `time`.
    pub(crate) async fn silent(&mut self, time: Duration) -> bool {
        timeout(time, self.fill()).await.is_err()
    }
}
