//! One small HTTPS client for CAs and DNS vendors: deadlines, a body limit, and the whole answer kept for the caller.
//!
//! On `reqwest`, which `dns-update` brings along anyway; names are resolved in-process, so a static binary works too.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};

/// CAs answer in a few KiB; a chain in less than 64.
const MAX_BODY_BYTES: usize = 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What to ask. `Debug` shows whom and how, never the path, the header fields or the body: they hold credentials.
#[derive(Clone)]
pub struct Question {
    /// The method.
    pub method: Method,
    /// An absolute URL.
    pub url: String,
    /// Header fields beside `User-Agent`.
    pub headers: HeaderMap,
    /// The body; empty for none.
    pub body: Bytes,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Question({} {})", self.method, host_of(&self.url))
    }
}

/// What was answered, whatever the status.
#[derive(Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// All header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({}, {} bytes)", self.status, self.body.len())
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HttpError {
    /// The client could not be made: a root certificate is missing or unreadable.
    #[error("cannot use the root certificates in {path}: {reason}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody there, no route, name not resolved, TLS refused.
    #[error("cannot connect to {host}: {reason}")]
    Connect {
        /// Whom.
        host: String,
        /// Why not, down to the innermost cause.
        reason: String,
    },
    /// No answer within the deadline.
    #[error("{host} did not answer within {seconds} s")]
    Timeout {
        /// Who.
        host: String,
        /// The deadline.
        seconds: u64,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the answer of {host} broke off: {reason}")]
    Broken {
        /// Whose.
        host: String,
        /// How.
        reason: String,
    },
    /// More than 1 MiB.
    #[error("the answer of {host} is larger than {MAX_BODY_BYTES} bytes")]
    TooLarge {
        /// Whose.
        host: String,
    },
}

/// A client with pooled connections. Cloning shares them.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: reqwest::Client,
    timeout: Duration,
}

impl HttpClient {
    /// Trusts the system's roots and, if given, those in the PEM file `extra_root`. Each exchange ends within `timeout`.
    ///
    /// Redirects are not followed: ACME has none, and credentials must not travel.
    pub fn new(extra_root: Option<&Path>, timeout: Duration) -> Result<Self, HttpError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("starlock/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout);
        let path = extra_root.unwrap_or(Path::new("")).to_owned();
        let roots = |reason: String| HttpError::Roots { path: path.clone(), reason };
        if let Some(file) = extra_root {
            let pem = std::fs::read(file).map_err(|e| roots(e.to_string()))?;
            let certs = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| roots(innermost(&e)))?;
            if certs.is_empty() {
                return Err(roots("it holds no PEM certificate".into()));
            }
            builder = builder.tls_certs_merge(certs);
        }
        let client = builder.build().map_err(|e| roots(innermost(&e)))?;
        Ok(Self { client, timeout })
    }

    /// Asks once. Dropping the future closes the connection.
    pub async fn ask(&self, question: Question) -> Result<Answer, HttpError> {
        let host = host_of(&question.url);
        let request =
            self.client.request(question.method, &question.url).headers(question.headers).body(question.body);
        let mut response = request.send().await.map_err(|e| self.classify(&host, &e))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.classify(&host, &e))? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(HttpError::TooLarge { host });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }

    fn classify(&self, host: &str, error: &reqwest::Error) -> HttpError {
        let (host, reason) = (host.to_owned(), innermost(error));
        if error.is_timeout() && !error.is_connect() {
            HttpError::Timeout { host, seconds: self.timeout.as_secs() }
        } else if error.is_connect() || error.is_builder() {
            HttpError::Connect { host, reason }
        } else {
            HttpError::Broken { host, reason }
        }
    }
}

/// Host and port only: paths and queries of vendors' URLs may hold secrets.
fn host_of(url: &str) -> String {
    match url.parse::<http::Uri>() {
        Ok(uri) => uri.authority().map_or_else(String::new, |a| match a.port() {
            Some(port) => format!("{}:{port}", a.host()),
            None => a.host().to_owned(),
        }),
        Err(_) => "(not a URL)".to_owned(),
    }
}

/// The innermost cause says what a person can act on; the outer layers repeat the URL.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.to_string() {
        // rustls explains this one with the address of its manual.
        text if text.contains("close_notify") => "the connection was closed in the middle of it".to_owned(),
        text => text,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn ask(answer: Vec<u8>, timeout: Duration) -> Result<Answer, HttpError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/secret-path", listener.local_addr().unwrap());
        let client = HttpClient::new(None, timeout).unwrap();
        let question = Question { method: Method::GET, url, headers: HeaderMap::new(), body: Bytes::new() };
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(String::from_utf8_lossy(&buffer[..n]).contains("user-agent: starlock/"));
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
            // The client may hang up first when it has seen enough.
            if stream.write_all(&answer).await.is_ok() {
                drop(stream);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = client.ask(question) => answer,
            () = server => unreachable!(),
        }
    }

    #[test]
    fn nothing_prints_a_credential() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", http::HeaderValue::from_static("Bearer hunter2"));
        let url = "https://u:hunter2@api.test/hunter2?k=hunter2".to_owned();
        let question =
            Question { method: Method::PUT, url, headers: headers.clone(), body: "hunter2".into() };
        let answer = Answer { status: StatusCode::OK, headers, body: "hunter2".into() };
        let text = format!("{question:?} {answer:?}");
        assert!(text.contains("api.test") && !text.contains("hunter2"), "{text}");
    }

    #[tokio::test]
    async fn errors_are_answers_too() {
        let raw = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 6\r\n\r\n<html>".to_vec();
        let answer = ask(raw, Duration::from_secs(5)).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["retry-after"], &answer.body[..]),
            (503, &http::HeaderValue::from_static("7"), &b"<html>"[..])
        );
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_apart_and_holds_no_path() {
        let broken =
            ask(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_vec(), Duration::from_secs(5)).await;
        assert!(matches!(&broken, Err(HttpError::Broken { .. })), "{broken:?}");
        let mut endless = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n".to_vec();
        endless.resize(3_000_000, b'x');
        let large = ask(endless, Duration::from_secs(5)).await;
        assert!(matches!(&large, Err(HttpError::TooLarge { .. })), "{large:?}");
        let slow = ask(Vec::new(), Duration::from_millis(50)).await;
        assert!(matches!(&slow, Err(HttpError::Timeout { .. })), "{slow:?}");
        for error in [broken.unwrap_err(), large.unwrap_err(), slow.unwrap_err()] {
            assert!(!error.to_string().contains("secret-path"), "{error}");
        }
        let missing =
            HttpClient::new(Some(Path::new("/nonexistent.pem")), Duration::from_secs(1)).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent.pem"));
    }
}
