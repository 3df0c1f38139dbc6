//! The other end of the admin socket, for the command line: blocking, bounded, and plain about what is wrong.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{
    AccountCommand, AccountStatus, Begun, CertificateStatus, CertificateVerb, ExportedCertificate, Health,
    JobStatus, Refusal, ReloadReport, Status, UpstreamStatus, upstreams,
};

/// Time for an answer to a question.
const QUICK: Duration = Duration::from_secs(5);
/// Time for a reload, which the server bounds by a minute.
const SLOW: Duration = Duration::from_secs(75);
/// The largest answer: ten thousand certificates with room to spare.
const MAX_ANSWER: u64 = 64 << 20;

const GUESSED: &str = " (the usual place, for no configuration could be read: --config names it, or --socket the socket itself)";

/// Talks to a running Starlock. Every call is a connection of its own, and blocks.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    guessed: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing is there.
    #[error("no starlock is running: {} {reason}{}", path.display(), if *guessed { GUESSED } else { "" })]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What is the matter with it.
        reason: &'static str,
        /// Whether nobody said that this is the socket.
        guessed: bool,
    },
    /// Not for this user.
    #[error("this user may not talk to {}: use root, or the user or group that starlock runs as", .0.display())]
    Forbidden(PathBuf),
    /// It does not answer in time.
    #[error("starlock does not answer on {} within {} s", path.display(), limit.as_secs())]
    Slow {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke, or something else is on the socket.
    #[error("{} does not answer like starlock: {reason}", path.display())]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// It answered that it does not do this; the text is for a person.
    #[error("{0}")]
    Refused(String),
}

impl Client {
    /// A client of the socket at `path`. Connects to nothing yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), guessed: false }
    }

    /// A client of the usual socket, as no configuration could be read that names one.
    pub fn guess(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), guessed: true }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process as it stands.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.good("GET", "/status", QUICK)
    }

    /// Every certificate.
    pub fn certificates(&self) -> Result<Vec<CertificateStatus>, ClientError> {
        self.good("GET", "/certificates", QUICK)
    }

    /// Makes it read its configuration again, and waits for the outcome.
    pub fn reload(&self) -> Result<ReloadReport, ClientError> {
        self.good("POST", "/reload", SLOW)
    }

    /// The account at each CA.
    pub fn accounts(&self) -> Result<Vec<AccountStatus>, ClientError> {
        self.good("GET", "/accounts", QUICK)
    }

    /// Does something with the account at `ca`, and waits for the CA.
    pub fn account(&self, ca: &str, command: &AccountCommand) -> Result<AccountStatus, ClientError> {
        let (method, path) = command.request(ca);
        self.good(method, &path, SLOW)
    }

    /// Every upstream with its servers.
    pub fn upstreams(&self) -> Result<Vec<UpstreamStatus>, ClientError> {
        self.good("GET", "/upstreams", QUICK)
    }

    /// Keeps new requests away from a server, or lets them come again.
    pub fn drain(&self, upstream: &str, server: &str, drained: bool) -> Result<UpstreamStatus, ClientError> {
        self.good("POST", &upstreams::path(upstream, server, drained), QUICK)
    }

    /// Whether it does its work. An unhealthy process is an answer, not an error.
    pub fn health(&self) -> Result<Health, ClientError> {
        let (_, body) = self.ask("GET", "/health", QUICK)?;
        self.parse(&body)
    }

    /// Begins something with a certificate. The number is for [`Client::job`].
    pub fn command(&self, id: &str, verb: CertificateVerb) -> Result<u64, ClientError> {
        let begun: Begun = self.good("POST", &format!("/certificates/{id}/{}", verb.path()), QUICK)?;
        Ok(begun.job)
    }

    /// What was begun, as it stands.
    pub fn job(&self, number: u64) -> Result<JobStatus, ClientError> {
        self.good("GET", &format!("/jobs/{number}"), QUICK)
    }

    /// The served chain of a certificate, with its key.
    pub fn export(&self, id: &str) -> Result<ExportedCertificate, ClientError> {
        // It waits while an order of the same certificate is under way.
        self.good("GET", &format!("/certificates/{id}/export"), SLOW)
    }

    fn good<T: DeserializeOwned>(&self, method: &str, path: &str, limit: Duration) -> Result<T, ClientError> {
        let (status, body) = self.ask(method, path, limit)?;
        if status == 200 {
            return self.parse(&body);
        }
        let refusal: Refusal = self.parse(&body)?;
        Err(ClientError::Refused(refusal.error))
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.garbled(error.to_string()))
    }

    fn garbled(&self, reason: impl Into<String>) -> ClientError {
        ClientError::Garbled { path: self.path.clone(), reason: reason.into() }
    }

    fn ask(&self, method: &str, path: &str, limit: Duration) -> Result<(u16, Vec<u8>), ClientError> {
        let classed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => self.not_running("does not exist"),
            io::ErrorKind::ConnectionRefused => self.not_running("was left by a process that is gone"),
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.path.clone()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Slow { path: self.path.clone(), limit }
            }
            _ => self.garbled(error.to_string()),
        };
        let mut stream = UnixStream::connect(&self.path).map_err(classed)?;
        stream.set_read_timeout(Some(limit)).map_err(classed)?;
        stream.set_write_timeout(Some(limit)).map_err(classed)?;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: starlock\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(classed)?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).map_err(classed)?;
        if answer.is_empty() {
            // The server closes on strangers without a word.
            return Err(ClientError::Forbidden(self.path.clone()));
        }
        split(&answer).ok_or_else(|| self.garbled("no HTTP"))
    }

    fn not_running(&self, reason: &'static str) -> ClientError {
        ClientError::NotRunning { path: self.path.clone(), reason, guessed: self.guessed }
    }
}

/// Status and body of a whole HTTP/1.1 answer of known length, which is all that our server sends.
fn split(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let length: usize = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })?;
    let body = answer.get(end + 4..end + 4 + length)?;
    Some((status, body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_is_said_plainly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let error = Client::new(&path).status().unwrap_err().to_string();
        assert!(
            error.starts_with("no starlock is running: ") && error.ends_with("does not exist"),
            "{error}"
        );
        let error = Client::guess(&path).status().unwrap_err().to_string();
        assert!(error.contains("does not exist (the usual place, ") && error.contains("--config"), "{error}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = Client::new(&path).status().unwrap_err().to_string();
        assert!(error.contains("left by a process that is gone"), "{error}");
    }

    #[test]
    fn answers_are_taken_apart() {
        let split = |text: &str| split(text.as_bytes());
        assert_eq!(split("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), Some((200, b"{}".to_vec())));
        for bad in [
            "",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
            "HTTP/1.1 x\r\n\r\n",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
