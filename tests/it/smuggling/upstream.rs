//! A server that takes HTTP/1.1 by the letter of RFC 9112 and nothing else: what it sees is what was meant, or it says so.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::server::Server;

/// One well-formed request, or what was wrong with what came instead.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// `METHOD target`, a space and the body if there is one; else what was wrong.
    pub(super) what: String,
    /// The head in lower case, and the trailers.
    pub(super) head: String,
}

pub(super) struct Strict {
    pub(super) server: Server,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Strict {
    pub(super) fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let server = Server::raw(move |stream| serve(stream, sink.clone()));
        Self { server, seen }
    }

    /// What has come since this was asked last.
    pub(super) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

async fn serve(stream: TcpStream, sink: Arc<Mutex<Vec<Seen>>>) {
    let mut reader = Reader { stream, buffer: Vec::new() };
    loop {
        let seen = match reader.request().await {
            Ok(Some(seen)) => seen,
            // The end, within a message perhaps: that is no request.
            Ok(None) => return,
            Err(what) => {
                let head = String::from_utf8_lossy(&reader.buffer).into_owned();
                sink.lock().unwrap().push(Seen { what: format!("VIOLATION: {what}"), head });
                return;
            }
        };
        let body = seen.what.clone();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = if seen.what.starts_with("HEAD ") { head } else { head + &body };
        sink.lock().unwrap().push(seen);
        if reader.stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
}

type Result<T> = std::result::Result<T, String>;

impl Reader {
    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }

    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.buffer.drain(..length).collect())
    }

    /// A line without its CRLF.
    async fn line(&mut self) -> Result<Option<String>> {
        let end = loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if !self.fill().await {
                return Ok(None);
            }
        };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        let line = line.strip_suffix(b"\r\n").ok_or("a line that ends with a bare LF")?;
        if line.iter().any(|byte| matches!(byte, 0..=8 | 10..=31 | 127)) {
            return Err(format!("a control byte in {:?}", String::from_utf8_lossy(line)));
        }
        Ok(Some(String::from_utf8_lossy(line).into_owned()))
    }

    async fn request(&mut self) -> Result<Option<Seen>> {
        let Some(first) = self.line().await? else { return Ok(None) };
        let parts: Vec<&str> = first.split(' ').collect();
        let [method, target, "HTTP/1.1"] = parts[..] else { return Err(format!("a request line {first:?}")) };
        if !is_token(method) {
            return Err(format!("a method {method:?}"));
        }
        let plain = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'\\');
        if !plain || !(target.starts_with('/') || (target == "*" && method == "OPTIONS")) {
            return Err(format!("a target {target:?}"));
        }
        let Some(fields) = self.fields().await? else { return Ok(None) };
        let values = |name: &str| -> Vec<&str> {
            fields
                .iter()
                .filter(|(field, _)| field.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.as_str())
                .collect()
        };
        match values("host")[..] {
            [host]
                if !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b)) => {}
            ref hosts => return Err(format!("Host {hosts:?}")),
        }
        let mut trailers = Vec::new();
        let body = match (&values("content-length")[..], &values("transfer-encoding")[..]) {
            ([], []) => Some(Vec::new()),
            ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
                self.take(length.parse().map_err(|_| format!("a length of {length}"))?).await
            }
            ([], ["chunked"]) => self.chunks(&mut trailers).await?,
            (lengths, codings) => return Err(format!("lengths {lengths:?} with codings {codings:?}")),
        };
        let Some(body) = body else { return Ok(None) };
        let mut what = format!("{method} {target}");
        if !body.is_empty() {
            what.push(' ');
            what.push_str(&String::from_utf8_lossy(&body));
        }
        let head: String =
            fields.iter().map(|(name, value)| format!("{name}: {value}\n").to_lowercase()).collect();
        Ok(Some(Seen { what, head }))
    }

    async fn fields(&mut self) -> Result<Option<Vec<(String, String)>>> {
        let mut fields = Vec::new();
        loop {
            match self.line().await? {
                None => return Ok(None),
                Some(line) if line.is_empty() => return Ok(Some(fields)),
                Some(line) => match line.split_once(':') {
                    Some((name, value)) if is_token(name) => fields.push((name.into(), value.trim().into())),
                    _ => return Err(format!("a field {line:?}")),
                },
            }
        }
    }

    async fn chunks(&mut self, trailers: &mut Vec<(String, String)>) -> Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            if line.is_empty() || line.len() > 8 || !line.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("a chunk of {line:?}"));
            }
            let size = usize::from_str_radix(&line, 16).unwrap();
            if size == 0 {
                let Some(fields) = self.fields().await? else { return Ok(None) };
                trailers.extend(fields);
                let bad = trailers.iter().find(|(name, _)| {
                    ["content-length", "transfer-encoding", "host"]
                        .iter()
                        .any(|bad| name.eq_ignore_ascii_case(bad))
                });
                return bad.map_or(Ok(Some(body)), |bad| Err(format!("a trailer {bad:?}")));
            }
            let Some(chunk) = self.take(size + 2).await else { return Ok(None) };
            body.extend(chunk.strip_suffix(b"\r\n").ok_or("a chunk that is longer than it says")?);
        }
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
