//! Bodies on their way to and from a server. They mark progress and count; they hold no piece back.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::exchange::{Exchange, Failure};
use super::h2;
use super::stream::ServerStream;

/// A body broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body broke off: {0:?}")]
pub struct BodyError(pub Failure);

/// A client's body on its way to a server.
#[derive(Debug)]
pub struct RequestBody {
    /// `None`: nothing is sent.
    inner: Option<Incoming>,
    exchange: Rc<Exchange>,
}

impl RequestBody {
    /// No body: a question of our own.
    pub fn none(exchange: Rc<Exchange>) -> Self {
        exchange.uploaded();
        Self { inner: None, exchange }
    }

    /// Wraps what the client sends.
    pub fn new(inner: Incoming, exchange: Rc<Exchange>) -> Self {
        if inner.is_end_stream() {
            exchange.uploaded();
        }
        Self { inner: Some(inner), exchange }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(&mut *inner).poll_frame(cx) else {
            this.exchange.client_owes();
            return Poll::Pending;
        };
        let result = match frame {
            None => {
                this.exchange.uploaded();
                return Poll::Ready(None);
            }
            Some(Err(_)) => {
                this.exchange.fail(Failure::ClientBody);
                Err(BodyError(Failure::ClientBody))
            }
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                this.exchange.client_gave(bytes).map(|()| frame).map_err(BodyError)
            }
        };
        if result.is_ok() && inner.is_end_stream() {
            this.exchange.uploaded();
        }
        Poll::Ready(Some(result))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A server's answer on its way to a client. Dropped before its end, it ends the connection to the server, or the stream if the
/// connection carries others.
#[derive(Debug)]
pub struct ResponseBody {
    inner: Incoming,
    exchange: Rc<Exchange>,
    carrier: Carrier,
}

/// What an answer came by.
#[derive(Debug)]
enum Carrier {
    /// A connection that watches over the exchange itself.
    Own,
    /// One that switches protocols.
    Switching(oneshot::Receiver<ServerStream>),
    /// A place among others, where the body watches.
    Stream(h2::Stream),
}

impl ResponseBody {
    pub(super) fn h1(
        inner: Incoming,
        exchange: Rc<Exchange>,
        switched: Option<oneshot::Receiver<ServerStream>>,
    ) -> Self {
        Self::new(inner, exchange, switched.map_or(Carrier::Own, Carrier::Switching))
    }

    pub(super) fn h2(inner: Incoming, exchange: Rc<Exchange>, stream: h2::Stream) -> Self {
        Self::new(inner, exchange, Carrier::Stream(stream))
    }

    fn new(inner: Incoming, exchange: Rc<Exchange>, carrier: Carrier) -> Self {
        if inner.is_end_stream() {
            exchange.downloaded();
        } else {
            // Until it is polled, nobody waits for the server.
            exchange.server_gave(0);
        }
        Self { inner, exchange, carrier }
    }

    /// The exchange it belongs to.
    pub fn exchange(&self) -> &Rc<Exchange> {
        &self.exchange
    }

    /// The connection, after a 101 to a request with `Upgrade`; otherwise `None`. Bytes that the server sent behind its 101 are
    /// read first. From then on nobody watches the connection but who holds it. Errors if it broke in this very moment.
    pub fn switched(&mut self) -> Option<impl Future<Output = Result<ServerStream, Failure>> + 'static> {
        match std::mem::replace(&mut self.carrier, Carrier::Own) {
            Carrier::Switching(switched) => Some(async { switched.await.map_err(|_| Failure::Closed) }),
            other => {
                self.carrier = other;
                None
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        if polled.is_pending() {
            this.exchange.server_owes();
            if let Carrier::Stream(stream) = &mut this.carrier
                && let Poll::Ready(failure) = stream.expired(cx, &this.exchange)
            {
                return Poll::Ready(Some(Err(BodyError(failure))));
            }
        }
        Poll::Ready(match ready!(polled) {
            None => {
                this.exchange.downloaded();
                None
            }
            Some(Err(_)) => {
                this.exchange.fail(Failure::AnswerBroken);
                Some(Err(BodyError(this.exchange.failure().unwrap_or(Failure::AnswerBroken))))
            }
            Some(Ok(frame)) => {
                this.exchange.server_gave(frame.data_ref().map_or(0, |data| data.len() as u64));
                if this.inner.is_end_stream() {
                    this.exchange.downloaded();
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
