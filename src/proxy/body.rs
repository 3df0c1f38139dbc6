//! The body of an answer, and with it the end of a request.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::record::Record;
use super::tunnel::{Switched, Tunnel};
use crate::balance::InFlight;
use crate::conn::AnswerBody;
use crate::upstream::{BodyError, ResponseBody, ServerStream};

/// An answer's body. The request ends when it is dropped: that is when the log hears of it.
#[derive(Debug)]
pub struct Answer {
    kind: Kind,
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
}

impl Answer {
    pub(super) fn full(body: Bytes, record: Box<Record>) -> Self {
        Self { kind: Kind::Full(Some(body).filter(|b| !b.is_empty())), record: Some(record) }
    }

    /// The request that it answers.
    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_deref()
    }

    pub(super) fn server(body: ResponseBody, in_flight: InFlight, record: Box<Record>) -> Self {
        Self { kind: Kind::Server { body, _in_flight: in_flight }, record: Some(record) }
    }

    /// No body: what follows is another protocol.
    pub(super) fn switched(server: ServerStream, in_flight: InFlight, record: Box<Record>) -> Self {
        Self { kind: Kind::Switched(server, in_flight), record: Some(record) }
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

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match &mut this.kind {
            Kind::Full(body) => Poll::Ready(body.take().map(|bytes| {
                if let Some(record) = &mut this.record {
                    record.sent += bytes.len() as u64;
                }
                Ok(Frame::data(bytes))
            })),
            Kind::Switched(..) | Kind::Gone => Poll::Ready(None),
            Kind::Server { body, .. } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(body) => body.is_none(),
            Kind::Server { body, .. } => body.is_end_stream(),
            Kind::Switched(..) | Kind::Gone => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(body) => SizeHint::with_exact(body.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Server { body, .. } => body.size_hint(),
            Kind::Switched(..) | Kind::Gone => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let complete = match &self.kind {
            // What is left of such a body was left because the method or the status has none.
            Kind::Full(_) => true,
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
