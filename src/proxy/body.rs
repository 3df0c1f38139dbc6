//! The body of an answer, and with it the end of a request.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::record::Record;
use crate::balance::InFlight;
use crate::upstream::{BodyError, ResponseBody};

/// An answer's body. The request ends when it is dropped: that is when the log hears of it.
#[derive(Debug)]
pub struct Answer {
    kind: Kind,
    record: Box<Record>,
}

#[derive(Debug)]
enum Kind {
    Full(Option<Bytes>),
    Server {
        body: ResponseBody,
        /// Counts the request for its server until the body has ended.
        _in_flight: InFlight,
    },
}

impl Answer {
    pub(super) fn full(body: Bytes, record: Box<Record>) -> Self {
        Self { kind: Kind::Full(Some(body).filter(|b| !b.is_empty())), record }
    }

    /// The request that it answers.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn server(body: ResponseBody, in_flight: InFlight, record: Box<Record>) -> Self {
        Self { kind: Kind::Server { body, _in_flight: in_flight }, record }
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
                this.record.sent += bytes.len() as u64;
                Ok(Frame::data(bytes))
            })),
            Kind::Server { body, .. } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(body) => body.is_none(),
            Kind::Server { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(body) => SizeHint::with_exact(body.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Server { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let complete = match &self.kind {
            // What is left of such a body was left because the method or the status has none.
            Kind::Full(_) => true,
            Kind::Server { body, .. } => body.exchange().is_complete(),
        };
        if !complete {
            self.record.cut_short();
        }
    }
}
