//! One request and its answer on a connection to a server: who is being waited for, and since when.

use std::cell::Cell;
use std::time::Duration;

use http::{HeaderMap, Method, Version, header};
use tokio::time::Instant;

use super::proxy_protocol::ClientAddresses;
use crate::balance::UpstreamTimeouts;
use crate::conn::is_grpc_type;

/// Who failed, and how: what an error becomes for the client and the log is decided from this alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The client's body broke off or was malformed.
    ClientBody,
    /// The client's body made no progress.
    ClientBodyTimeout,
    /// The client's body is larger than the route allows.
    ClientBodyTooLarge,
    /// The upstream's name does not resolve.
    Resolve,
    /// The upstream has no server that can be used.
    NoServer,
    /// Its servers have as many requests or connections as they may.
    Full,
    /// Nothing listens there.
    ConnectRefused,
    /// No connection in time.
    ConnectTimeout,
    /// No connection for another reason.
    Connect,
    /// We have no socket to connect with: files, ports or memory have run out here. Says nothing of the server.
    NoSocket,
    /// No TLS handshake in time.
    TlsTimeout,
    /// The server's certificate is not one that is trusted for its name.
    TlsCertificate,
    /// The server does not take our handshake: no client certificate, or not one that it knows.
    TlsRefused,
    /// No TLS for another reason.
    Tls,
    /// The server does not speak HTTP/2.
    NotHttp2,
    /// Another protocol was asked for, which an HTTP/2 server cannot switch to.
    NoSwitch,
    /// The server has not begun with the request: it said so, or the connection was closed before anything of it was sent. Sending it
    /// again is safe, whatever it asks for.
    Unstarted,
    /// The server closed the connection before an answer.
    Closed,
    /// The server's answer is not HTTP.
    Malformed,
    /// The server did not begin to answer, or to take the request, in time.
    ResponseTimeout,
    /// The deadline that the client has set for its call is over. It may have been any: it says nothing of the server.
    ClientDeadline,
    /// The server's answer broke off.
    AnswerBroken,
    /// The server's answer made no progress.
    AnswerStalled,
}

/// Progress of one exchange. Its bodies mark it; the connection's driver reads it and ends what has stood still too long.
#[derive(Debug)]
pub struct Exchange {
    limits: ExchangeLimits,
    upload: Cell<Upload>,
    download: Cell<Download>,
    failure: Cell<Option<Failure>>,
    received: Cell<u64>,
    sent: Cell<u64>,
    client: Option<ClientAddresses>,
    /// Whether the client makes a gRPC call.
    is_call: bool,
    patience: Cell<Patience>,
}

/// Which of the limits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// All of them.
    Usual,
    /// The answer is a stream of events: it may be silent.
    Events,
    /// A gRPC call: once the answer has begun, both sides may be silent for as long as they like, since no size of a message or
    /// length of a stream says when the next one is due; and so may a client that has not ended its own stream. If the client
    /// set a deadline, that holds.
    Grpc(Option<Instant>),
}

/// What an exchange is held to.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeLimits {
    /// Of the server.
    pub timeouts: UpstreamTimeouts,
    /// Without progress on the client's body.
    pub body_timeout: Duration,
    /// Bytes of the client's body.
    pub max_body: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upload {
    /// The client owes us the next piece of its body.
    Client(Instant),
    /// The server has not taken the last piece.
    Server(Instant),
    /// The whole request was handed over.
    Done(Instant),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Download {
    /// No answer yet.
    Head,
    /// The server owes us the next piece of its answer.
    Server(Instant),
    /// The client has not asked for more.
    Client,
    /// The whole answer was handed over.
    Done,
}

impl Exchange {
    /// An exchange that begins now.
    pub fn new(limits: ExchangeLimits) -> Self {
        Self {
            limits,
            upload: Cell::new(Upload::Server(Instant::now())),
            download: Cell::new(Download::Head),
            failure: Cell::new(None),
            received: Cell::new(0),
            sent: Cell::new(0),
            client: None,
            is_call: false,
            patience: Cell::new(Patience::Usual),
        }
    }

    /// The same for what [`is_grpc_call`] says yes to, if `is_call`.
    #[must_use]
    pub fn of_call(self, is_call: bool) -> Self {
        Self { is_call, ..self }
    }

    /// The same for a client at `addresses`, for servers that are told.
    pub fn of_client(self, addresses: ClientAddresses) -> Self {
        Self { client: Some(addresses), ..self }
    }

    pub(super) fn client(&self) -> Option<&ClientAddresses> {
        self.client.as_ref()
    }

    /// Learns from the head of a request that goes by HTTP/2 what it may take.
    pub(super) fn asked_by_h2(&self, headers: &HeaderMap) {
        if self.is_call {
            let limit = headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.as_bytes()));
            self.patience.set(Patience::Grpc(limit.map(|limit| Instant::now() + limit + GRPC_GRACE)));
        }
    }

    /// Learns from the head of the answer what it may take.
    pub(super) fn answered(&self, headers: &HeaderMap) {
        if self.patience.get() == Patience::Usual && content_type(headers).is_some_and(is_stream) {
            self.patience.set(Patience::Events);
        }
    }

    /// What it is held to.
    pub fn limits(&self) -> &ExchangeLimits {
        &self.limits
    }

    /// What went wrong first.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.get()
    }

    /// Bytes of the client's body so far.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Bytes of the answer's body so far.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// The first failure is the cause; later ones follow from it.
    pub(super) fn fail(&self, failure: Failure) {
        if self.failure.get().is_none() {
            self.failure.set(Some(failure));
        }
    }

    /// When something must have moved, and whose failure it is if not. `None` if nobody is waited for.
    pub(super) fn deadline(&self) -> Option<(Instant, Failure)> {
        let timeouts = &self.limits.timeouts;
        if let Patience::Grpc(until) = self.patience.get() {
            let own = until.map(|until| (until, Failure::ClientDeadline));
            let response = match (self.download.get(), self.upload.get()) {
                (Download::Head, Upload::Server(since) | Upload::Done(since)) => {
                    Some((since + timeouts.response, Failure::ResponseTimeout))
                }
                _ => None,
            };
            return earlier(own, response);
        }
        let upload = match self.upload.get() {
            Upload::Client(since) => Some((since + self.limits.body_timeout, Failure::ClientBodyTimeout)),
            Upload::Server(since) => Some((since + timeouts.response, Failure::ResponseTimeout)),
            Upload::Done(since) if self.download.get() == Download::Head => {
                Some((since + timeouts.response, Failure::ResponseTimeout))
            }
            Upload::Done(_) => None,
        };
        let download = match self.download.get() {
            Download::Server(_) if self.patience.get() == Patience::Events => None,
            Download::Server(since) => Some((since + timeouts.stall, Failure::AnswerStalled)),
            Download::Head | Download::Client | Download::Done => None,
        };
        earlier(upload, download)
    }

    /// What the clock says: look again then, at `latest`, or the failure of who is over a deadline.
    pub(super) fn look(&self, now: Instant, latest: Instant) -> Result<Instant, Failure> {
        match self.deadline() {
            Some((end, failure)) if now >= end => {
                self.fail(failure);
                Err(failure)
            }
            Some((end, _)) => Ok(end.min(latest)),
            None => Ok(latest),
        }
    }

    /// How far ahead of any moment a deadline can begin to matter: a driver that looks this often misses none.
    pub(super) fn shortest(&self) -> Duration {
        let usual =
            self.limits.body_timeout.min(self.limits.timeouts.response).min(self.limits.timeouts.stall);
        match self.patience.get() {
            Patience::Grpc(Some(until)) => usual.min(until.saturating_duration_since(Instant::now())),
            _ => usual,
        }
    }

    pub(super) fn client_owes(&self) {
        if !matches!(self.upload.get(), Upload::Client(_)) {
            self.upload.set(Upload::Client(Instant::now()));
        }
    }

    /// Counts `bytes` from the client; errors if there are too many.
    pub(super) fn client_gave(&self, bytes: u64) -> Result<(), Failure> {
        self.upload.set(Upload::Server(Instant::now()));
        self.received.set(self.received.get() + bytes);
        if self.limits.max_body.is_some_and(|max| self.received.get() > max) {
            self.fail(Failure::ClientBodyTooLarge);
            return Err(Failure::ClientBodyTooLarge);
        }
        Ok(())
    }

    pub(super) fn uploaded(&self) {
        if !matches!(self.upload.get(), Upload::Done(_)) {
            self.upload.set(Upload::Done(Instant::now()));
        }
    }

    pub(super) fn server_owes(&self) {
        if !matches!(self.download.get(), Download::Server(_)) {
            self.download.set(Download::Server(Instant::now()));
        }
    }

    pub(super) fn server_gave(&self, bytes: u64) {
        self.download.set(Download::Client);
        self.sent.set(self.sent.get() + bytes);
    }

    pub(super) fn downloaded(&self) {
        self.download.set(Download::Done);
    }

    /// Whether the whole answer was handed over.
    pub fn is_complete(&self) -> bool {
        self.download.get() == Download::Done
    }
}

type Deadline = Option<(Instant, Failure)>;

fn earlier(a: Deadline, b: Deadline) -> Deadline {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.0 < a.0 { b } else { a }),
        (a, b) => a.or(b),
    }
}

/// The server's own answer to a deadline comes first, if there is a server.
const GRPC_GRACE: Duration = Duration::from_secs(1);

/// Whether this is the head of a gRPC call: a POST by HTTP/2, whatever else says that it is one. gRPC-Web is none: it is spoken by
/// browsers over plain HTTP.
pub fn is_grpc_call(version: Version, method: &Method, headers: &HeaderMap) -> bool {
    version == Version::HTTP_2 && *method == Method::POST && is_grpc(headers)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|kind| is_grpc_type(kind.as_bytes()))
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

/// Answers that may be silent for a long time by their nature.
fn is_stream(kind: &str) -> bool {
    let bare = kind.split(';').next().unwrap_or_default().trim();
    bare.eq_ignore_ascii_case("text/event-stream") || bare.starts_with("application/grpc-web")
}

/// Parses the field `grpc-timeout`: at most eight digits and a unit.
fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn exchange() -> Exchange {
        let timeouts =
            UpstreamTimeouts { connect: S(1), response: S(60), stall: S(300), upstream_idle: S(60) };
        Exchange::new(ExchangeLimits { timeouts, body_timeout: S(30), max_body: Some(10) })
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_waited_for_has_the_deadline() {
        let now = Instant::now;
        let e = exchange();
        assert_eq!(
            e.deadline(),
            Some((now() + S(60), Failure::ResponseTimeout)),
            "the request was not taken"
        );
        e.client_owes();
        let start = now();
        assert_eq!(e.deadline(), Some((start + S(30), Failure::ClientBodyTimeout)));
        tokio::time::advance(S(10)).await;
        e.client_owes();
        assert_eq!(
            e.deadline(),
            Some((start + S(30), Failure::ClientBodyTimeout)),
            "asking again is no progress"
        );
        e.client_gave(4).unwrap();
        assert_eq!(e.deadline(), Some((now() + S(60), Failure::ResponseTimeout)));
        e.uploaded();
        let uploaded = now();
        tokio::time::advance(S(10)).await;
        assert_eq!(e.deadline(), Some((uploaded + S(60), Failure::ResponseTimeout)));
        e.server_owes();
        assert_eq!(e.deadline(), Some((now() + S(300), Failure::AnswerStalled)));
        e.server_gave(5);
        assert_eq!(e.deadline(), None, "a slow client is not the server's failure");
        e.downloaded();
        assert_eq!((e.deadline(), e.received(), e.sent()), (None, 4, 5));
        assert!(e.is_complete());
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_answer_does_not_hide_a_stuck_upload() {
        let e = exchange();
        e.client_owes();
        let owed = Instant::now();
        tokio::time::advance(S(1)).await;
        e.server_owes();
        assert_eq!(e.deadline(), Some((owed + S(30), Failure::ClientBodyTimeout)));
        assert_eq!(e.client_gave(11), Err(Failure::ClientBodyTooLarge));
        e.fail(Failure::Closed);
        assert_eq!(e.failure(), Some(Failure::ClientBodyTooLarge), "the first one is the cause");
    }

    fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (kind, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=x", true),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("text/plain", false),
        ] {
            let fields = fields(&[("content-type", kind)]);
            assert_eq!(is_grpc_call(Version::HTTP_2, &Method::POST, &fields), grpc, "{kind}");
            assert!(!is_grpc_call(Version::HTTP_11, &Method::POST, &fields), "{kind}");
            assert!(!is_grpc_call(Version::HTTP_2, &Method::GET, &fields), "{kind}");
        }
        for (text, millis) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3_000)),
            ("99999999m", Some(99_999_999)),
            ("5000u", Some(5)),
            ("7000000n", Some(7)),
            ("123456789m", None),
            ("S", None),
            ("-1S", None),
            ("1s", None),
            ("", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()), millis.map(Duration::from_millis), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_may_be_silent() {
        let call = || exchange().of_call(true);
        let e = call();
        e.asked_by_h2(&fields(&[]));
        e.client_owes();
        assert_eq!(e.deadline(), None, "the client may think");
        tokio::time::advance(S(1000)).await;
        e.client_gave(1).unwrap();
        let mute = Some((Instant::now() + S(60), Failure::ResponseTimeout));
        assert_eq!(e.deadline(), mute, "the server does not take it");
        e.client_owes();
        assert_eq!(e.deadline(), None);
        e.uploaded();
        assert_eq!(e.deadline(), mute, "and a call that was made wants an answer");
        e.server_owes();
        assert_eq!(e.deadline(), None, "whose rest may take its time");
        let e = call();
        e.asked_by_h2(&fields(&[("grpc-timeout", "2S")]));
        e.client_owes();
        assert_eq!(e.deadline(), Some((Instant::now() + S(3), Failure::ClientDeadline)));
        assert_eq!(e.shortest(), S(3));
        let e = exchange();
        e.asked_by_h2(&fields(&[("content-type", "application/grpc"), ("grpc-timeout", "2S")]));
        e.client_owes();
        let late = Some((Instant::now() + S(30), Failure::ClientBodyTimeout));
        assert_eq!(e.deadline(), late, "whoever makes no call has no such patience");
        let e = exchange();
        e.uploaded();
        e.answered(&fields(&[("content-type", "text/event-stream; charset=utf-8")]));
        e.server_owes();
        assert_eq!(e.deadline(), None);
        let e = exchange();
        e.client_owes();
        e.answered(&fields(&[("content-type", "text/event-stream")]));
        let late = Some((Instant::now() + S(30), Failure::ClientBodyTimeout));
        assert_eq!(e.deadline(), late, "the client owes its body all the same");
    }
}
