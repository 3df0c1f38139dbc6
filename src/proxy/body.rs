//! The body of an answer, and with it the end of a request.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::encoded::Encoded;
use super::record::Record;
use super::tunnel::{Switched, Tunnel};
use crate::balance::InFlight;
use crate::conn::AnswerBody;
use crate::policy::Encoder;
use crate::upstream::{BodyError, ResponseBody, ServerStream};

/// An answer's body. The request ends when it is dropped: that is when the log hears of it.
#[derive(Debug)]
pub struct Answer {
    kind: Kind,
    encoded: Option<Box<Encoded>>,
    /// `None` once a tunnel has taken it along.
    record: Option<Box<Record>>,
}

#[derive(Debug)]
enum Kind {
    Full(Option<Bytes>),
    Server {
        body: ResponseBody,
        /// Counts the request for its server until the body has ended.
        _in_flight: InFlight,
    },
    /// The server has switched protocols.
    Switched(ServerStream, InFlight),
    /// So has the client.
    Gone,
    /// What was said is taken away. It has an end and no length.
    Taken,
}

impl Answer {
    pub(super) fn full(body: Bytes, record: Box<Record>) -> Self {
        Self { kind: Kind::Full(Some(body).filter(|b| !b.is_empty())), encoded: None, record: Some(record) }
    }

    /// The request that it answers.
    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_deref()
    }

    pub(super) fn server(body: ResponseBody, in_flight: InFlight, record: Box<Record>) -> Self {
        Self { kind: Kind::Server { body, _in_flight: in_flight }, encoded: None, record: Some(record) }
    }

    /// No body: what follows is another protocol.
    pub(super) fn switched(server: ServerStream, in_flight: InFlight, record: Box<Record>) -> Self {
        Self { kind: Kind::Switched(server, in_flight), encoded: None, record: Some(record) }
    }
}

impl AnswerBody for Answer {
    type Tunnel = Tunnel;

    fn take_tunnel(&mut self) -> Option<Tunnel> {
        if !matches!(self.kind, Kind::Switched(..)) {
            return None;
        }
        let Kind::Switched(server, in_flight) = std::mem::replace(&mut self.kind, Kind::Gone) else {
            return None;
        };
        let mut record = self.record.take()?;
        record.cut_short(); // unless the tunnel comes to be
        Some(Switched { server, record, in_flight }.into())
    }
}

impl Answer {
    /// Whether another protocol follows.
    pub(super) fn is_switched(&self) -> bool {
        matches!(self.kind, Kind::Switched(..) | Kind::Gone)
    }

    /// Whether a server made it.
    pub(super) fn is_from_server(&self) -> bool {
        matches!(self.kind, Kind::Server { .. })
    }

    /// Lets `encoder` have it on its way.
    pub(super) fn encode(&mut self, encoder: Encoder) {
        self.restart();
        self.encoded = Some(Box::new(Encoded::new(encoder)));
    }

    /// What the client gets is not what the server sent: it is counted by itself.
    fn restart(&mut self) {
        if let Some(record) = &mut self.record {
            record.encoded = Some(0);
        }
    }

    /// Puts `bytes` in its place.
    pub(super) fn replaced(mut self, bytes: Bytes) -> Self {
        self.restart();
        self.kind = if bytes.is_empty() { Kind::Taken } else { Kind::Full(Some(bytes)) };
        self
    }
}

impl Kind {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Full(body) => Poll::Ready(body.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Server { body, .. } => Pin::new(body).poll_frame(cx),
            Self::Switched(..) | Self::Gone | Self::Taken => Poll::Ready(None),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { kind, encoded, record } = &mut *self;
        let polled = match encoded {
            None => kind.poll(cx),
            Some(encoded) => encoded.poll(cx, |cx| kind.poll(cx)),
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            match record {
                Some(record) if record.encoded.is_some() => {
                    record.encoded = record.encoded.map(|sent| sent + bytes);
                }
                Some(record) if matches!(kind, Kind::Full(_)) => record.sent += bytes,
                _ => {}
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match (&self.encoded, &self.kind) {
            (Some(encoded), _) => encoded.is_over(),
            (None, Kind::Full(body)) => body.is_none(),
            (None, Kind::Server { body, .. }) => body.is_end_stream(),
            (None, Kind::Switched(..) | Kind::Gone | Kind::Taken) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.encoded, &self.kind) {
            (Some(_), _) | (None, Kind::Taken) => SizeHint::default(),
            (None, Kind::Full(body)) => SizeHint::with_exact(body.as_ref().map_or(0, |b| b.len() as u64)),
            (None, Kind::Server { body, .. }) => body.size_hint(),
            (None, Kind::Switched(..) | Kind::Gone) => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let complete = match &self.kind {
            // What is left of such a body was left because the method or the status has none.
            Kind::Full(_) | Kind::Taken => true,
            Kind::Server { body, .. } => body.exchange().is_complete(),
            // The client left before it could switch.
            Kind::Switched(..) => false,
            Kind::Gone => true,
        };
        if let Some(record) = self.record.as_mut().filter(|_| !complete) {
            record.cut_short();
        }
    }
}
