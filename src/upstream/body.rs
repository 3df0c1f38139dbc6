//! Bodies on their way to and from a server. They mark progress and count; they hold no piece back.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::copy::BodyCopy;
use super::exchange::{Exchange, Failure};
use super::stream::ServerStream;
use super::{h1, h2};
use crate::conn::{Held, Load};

/// A body broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body broke off: {0:?}")]
pub struct BodyError(pub Failure);

/// What is kept of a body, so that it can be sent again.
const KEPT: usize = 64 * 1024;
/// What a client can send of its body while its server takes none: the window of an HTTP/2 stream. HTTP/1 reads less ahead.
const READ_AHEAD: u64 = 256 * 1024;

/// A client's body, for all attempts to deliver its request.
#[derive(Debug)]
pub struct Upload(
    /// `None`: the request has no body.
    Option<Rc<Shared>>,
);

/// Takes from a client's trailers what must not be said there.
type Sift = dyn Fn(&mut HeaderMap);

struct Shared {
    /// `None`: everything there will be is kept.
    inner: RefCell<Option<Incoming>>,
    /// Who else reads what the client sends.
    copy: RefCell<Option<Box<BodyCopy>>>,
    sift: Box<Sift>,
    /// The attempt that may read; a former one that is not gone yet may not.
    attempt: Cell<usize>,
    kept: RefCell<Kept>,
    /// What is kept.
    held: Held,
    /// What waits for the server.
    waiting: Held,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// What has been read, in one piece: the client's own pieces may be tiny, and each would hold on to a whole buffer.
#[derive(Debug, Default)]
struct Kept {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// All of it has been read.
    is_whole: bool,
    /// Something was read that is not here.
    is_lost: bool,
    is_wanted: bool,
}

impl Upload {
    /// Takes what the client sends. `keep`: at most 64 KiB of it are kept, so that it can be sent again, unless `load` has no room.
    /// `sift` takes from its trailers what must not be said there.
    pub fn new(
        inner: Incoming,
        keep: bool,
        load: &Arc<Load>,
        sift: impl Fn(&mut HeaderMap) + 'static,
    ) -> Self {
        let kept = Kept { is_wanted: keep, ..Kept::default() };
        if inner.is_end_stream() { Self(None) } else { Self::from(Some(inner), kept, load, Box::new(sift)) }
    }

    /// A body that is there already.
    pub fn whole(data: Vec<u8>, load: &Arc<Load>) -> Self {
        if data.is_empty() {
            return Self(None);
        }
        let kept = Kept { data, is_whole: true, is_wanted: true, ..Kept::default() };
        Self::from(None, kept, load, Box::new(|_| {}))
    }

    fn from(inner: Option<Incoming>, kept: Kept, load: &Arc<Load>, sift: Box<Sift>) -> Self {
        let held = Held::new(load);
        held.set(kept.data.capacity());
        Self(Some(Rc::new(Shared {
            held,
            waiting: Held::new(load),
            inner: RefCell::new(inner),
            copy: RefCell::default(),
            sift,
            attempt: Cell::new(0),
            kept: RefCell::new(kept),
        })))
    }

    /// Lets `copy` see what the client sends, once, however many attempts there are.
    pub fn copied(self, copy: Option<Box<BodyCopy>>) -> Self {
        match (&self.0, copy) {
            (Some(shared), copy) => *shared.copy.borrow_mut() = copy,
            (None, Some(mut copy)) => copy.end(),
            (None, None) => {}
        }
        self
    }

    /// Bytes that are kept.
    pub fn length(&self) -> usize {
        self.0.as_ref().map_or(0, |shared| shared.kept.borrow().data.len())
    }

    /// No body: a question of our own.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether the next attempt would send all of it: nothing was read yet, or everything that was is kept.
    pub fn can_start_over(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| !shared.kept.borrow().is_lost)
    }

    /// Whether the client has sent all of it.
    pub fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.kept.borrow().is_whole)
    }

    /// The body of one more attempt, from its beginning. Those of former attempts end.
    pub fn body(&self, exchange: Rc<Exchange>) -> RequestBody {
        let Some(shared) = &self.0 else { return RequestBody::none(exchange) };
        let attempt = shared.attempt.get() + 1;
        shared.attempt.set(attempt);
        let kept = shared.kept.borrow();
        let (replay, trailers_due) = (!kept.data.is_empty(), kept.trailers.is_some());
        if kept.is_whole && !replay && !trailers_due {
            exchange.uploaded();
        }
        RequestBody { shared: Some(shared.clone()), attempt, replay, trailers_due, exchange }
    }
}

/// A client's body on its way to a server.
#[derive(Debug)]
pub struct RequestBody {
    shared: Option<Rc<Shared>>,
    attempt: usize,
    /// What is kept has to be sent first.
    replay: bool,
    trailers_due: bool,
    exchange: Rc<Exchange>,
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.as_ref().filter(|shared| shared.attempt.get() == self.attempt) {
            shared.waiting.set(0);
        }
    }
}

impl RequestBody {
    fn none(exchange: Rc<Exchange>) -> Self {
        exchange.uploaded();
        Self { shared: None, attempt: 0, replay: false, trailers_due: false, exchange }
    }

    /// What was sent before, as far as it is due now.
    fn again(&mut self, kept: &Kept) -> Option<Frame<Bytes>> {
        if std::mem::take(&mut self.replay) {
            return Some(Frame::data(Bytes::copy_from_slice(&kept.data)));
        }
        kept.trailers
            .as_ref()
            .filter(|_| std::mem::take(&mut self.trailers_due))
            .cloned()
            .map(Frame::trailers)
    }
}

impl Kept {
    fn take_note(&mut self, frame: &Frame<Bytes>, is_end: bool, has_room: bool) {
        self.is_whole |= is_end;
        let fits = |data: &Bytes| has_room && self.data.len() + data.len() <= KEPT;
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) if self.is_wanted && !self.is_lost && fits(data) => {
                self.data.extend_from_slice(data);
            }
            (Some(data), _) if data.is_empty() => {}
            (_, Some(trailers)) if self.is_wanted && !self.is_lost => self.trailers = Some(trailers.clone()),
            _ => {
                self.is_lost = true;
                self.data = Vec::new();
            }
        }
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
        let Some(shared) = this.shared.clone() else { return Poll::Ready(None) };
        if shared.attempt.get() != this.attempt {
            return Poll::Ready(Some(Err(BodyError(Failure::Closed))));
        }
        // It asks, so it has taken what it was given.
        shared.waiting.set(0);
        let mut kept = shared.kept.borrow_mut();
        let result = if let Some(frame) = this.again(&kept) {
            Ok(frame)
        } else if kept.is_whole {
            this.exchange.uploaded();
            return Poll::Ready(None);
        } else {
            let mut inner = shared.inner.borrow_mut();
            let polled = match &mut *inner {
                Some(inner) => Pin::new(inner).poll_frame(cx),
                None => Poll::Ready(None),
            };
            let Poll::Ready(frame) = polled else {
                this.exchange.client_owes();
                return Poll::Pending;
            };
            let is_end = inner.as_ref().is_none_or(Body::is_end_stream);
            if let Some(copy) = &mut *shared.copy.borrow_mut() {
                copy.see(frame.as_ref().map(|frame| frame.as_ref().ok()), is_end);
            }
            match frame {
                None => {
                    kept.is_whole = true;
                    this.exchange.uploaded();
                    return Poll::Ready(None);
                }
                Some(Err(_)) => {
                    kept.is_lost = true;
                    this.exchange.fail(Failure::ClientBody);
                    return Poll::Ready(Some(Err(BodyError(Failure::ClientBody))));
                }
                Some(Ok(mut frame)) => {
                    if let Some(trailers) = frame.trailers_mut() {
                        (shared.sift)(trailers);
                    }
                    kept.take_note(&frame, is_end, shared.held.load().has_room());
                    shared.held.set(kept.data.capacity());
                    let more = inner.as_ref().map_or(0, ahead);
                    shared.waiting.set(frame.data_ref().map_or(0, Bytes::len) + more);
                    Ok(frame)
                }
            }
        };
        let result = result.and_then(|frame| {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            this.exchange.client_gave(bytes).map(|()| frame).map_err(BodyError)
        });
        if result.is_ok() && kept.is_whole && !this.replay && !this.trailers_due {
            this.exchange.uploaded();
        }
        Poll::Ready(Some(result))
    }

    fn is_end_stream(&self) -> bool {
        let Some(shared) = &self.shared else { return true };
        !self.replay && !self.trailers_due && shared.kept.borrow().is_whole
    }

    fn size_hint(&self) -> SizeHint {
        let Some(shared) = &self.shared else { return SizeHint::with_exact(0) };
        let again = if self.replay { shared.kept.borrow().data.len() as u64 } else { 0 };
        let rest = shared.inner.borrow().as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(again + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(again + upper);
        }
        hint
    }
}

/// What of a body may come before it is asked for.
fn ahead(inner: &Incoming) -> usize {
    if inner.is_end_stream() {
        return 0;
    }
    let left = inner.size_hint().upper().unwrap_or(READ_AHEAD).min(READ_AHEAD);
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// A server's answer on its way to a client. Dropped before its end, it ends the connection to the server, or the stream if the
/// connection carries others.
#[derive(Debug)]
pub struct ResponseBody {
    inner: Incoming,
    exchange: Rc<Exchange>,
    carrier: Carrier,
    /// Of a connection that carries nothing else.
    _waiting: Option<h1::Waiting>,
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
        waiting: h1::Waiting,
        switched: Option<oneshot::Receiver<ServerStream>>,
    ) -> Self {
        let carrier = switched.map_or(Carrier::Own, Carrier::Switching);
        Self { _waiting: Some(waiting), ..Self::new(inner, exchange, carrier) }
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
        Self { inner, exchange, carrier, _waiting: None }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_held_is_not_kept_and_the_request_goes_once() {
        let load = Arc::new(Load::default());
        let frame = || Frame::data(Bytes::from_static(&[0; 1000]));
        let mut kept = Kept { is_wanted: true, ..Kept::default() };
        kept.take_note(&frame(), false, true);
        assert_eq!((kept.data.len(), kept.is_lost), (1000, false));
        kept.take_note(&frame(), true, false);
        assert_eq!((kept.data.capacity(), kept.is_lost, kept.is_whole), (0, true, true));
        let upload = Upload::whole(vec![0; 5000], &load);
        assert_eq!((load.buffered(), upload.length(), upload.can_start_over()), (5000, 5000, true));
        drop(upload);
        assert_eq!(load.buffered(), 0);
    }
}
