//! One HTTP/2 connection, which carries many exchanges at a time.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Request, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http2::{Builder, Connection, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::body::{BodyError, RequestBody, ResponseBody};
use super::connect::Connected;
use super::exchange::{Exchange, Failure};
use super::pool::{Pool, Sent};
use super::proxy_protocol::ClientAddresses;
use super::stream::{Io, TlsState};
use crate::balance::Connection as Counted;
use crate::task;

/// As at the listener: equal windows would let one stalled answer block all others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Of each stream.
const SEND_BUFFER: usize = 64 * 1024;
/// What an answer's head, and its trailers, may take.
const HEADER_LIST: u32 = 64 * 1024;
/// A server that is gone without a word is noticed within the sum of these, if anybody waits for it.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

type Conn = Connection<TokioIo<Io>, Lent, Local>;

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pool: Weak<Pool>,
    /// `None` when no more requests may be sent.
    sender: RefCell<Option<SendRequest<Lent>>>,
    connection: RefCell<Option<Conn>>,
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    idle_limit: Duration,
    tls: TlsState,
    scheme: &'static str,
    /// Whom the server was told of: nobody else's requests may come this way.
    client: Option<ClientAddresses>,
    /// Counts it for its server, as long as there are streams on it.
    _counted: Counted,
}

/// Speaks HTTP/2 on a new connection. Waits for the server's settings, within `limit`: before them nobody knows how many streams
/// it takes, and whether it speaks HTTP/2 at all.
pub(super) async fn open(
    pool: &Rc<Pool>,
    exchange: &Exchange,
    connected: Connected,
    client: Option<ClientAddresses>,
    counted: Counted,
    limit: Duration,
) -> Result<Rc<Link>, Failure> {
    let local = Local::default();
    let mut builder = Builder::new(local.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(0)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    let scheme = if matches!(connected.io, Io::Tls(_)) { "https" } else { "http" };
    let tls = connected.tls;
    let handshake = async {
        let (sender, mut connection) =
            builder.handshake::<_, Lent>(TokioIo::new(connected.io)).await.map_err(|_| Failure::Connect)?;
        poll_fn(|cx| {
            local.watch(cx);
            if Pin::new(&mut connection).poll(cx).is_ready() {
                return Poll::Ready(Err(tls.failure().unwrap_or(Failure::NotHttp2)));
            }
            if connection.current_max_send_streams() > 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await?;
        local.settled();
        Ok((sender, connection))
    };
    let (sender, connection) = timeout(limit, handshake).await.unwrap_or(Err(Failure::ConnectTimeout))?;
    let link = Rc::new(Link {
        pool: Rc::downgrade(pool),
        sender: RefCell::new(Some(sender)),
        connection: RefCell::new(Some(connection)),
        streams: Cell::new(0),
        idle_since: Cell::new(Instant::now()),
        idle_limit: exchange.limits().timeouts.upstream_idle,
        tls,
        scheme,
        client,
        _counted: counted,
    });
    task::spawn_local(drive(link.clone()));
    Ok(link)
}

impl Link {
    /// A place for one more exchange, if the server takes one.
    pub(super) fn reserve(self: &Rc<Self>) -> Option<Stream> {
        let max = self.connection.borrow().as_ref().map_or(0, Connection::current_max_send_streams);
        let open = self.sender.borrow().as_ref().is_some_and(|sender| !sender.is_closed());
        (open && self.streams.get() < max).then(|| {
            self.streams.set(self.streams.get() + 1);
            Stream { link: self.clone(), timer: Box::pin(sleep_until(Instant::now())) }
        })
    }

    pub(super) fn client(&self) -> Option<&ClientAddresses> {
        self.client.as_ref()
    }

    /// No more requests; those under way go on.
    pub(super) fn close(&self) {
        self.sender.borrow_mut().take();
    }
}

/// A place for an exchange on a connection. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Stream {
    link: Rc<Link>,
    timer: Pin<Box<Sleep>>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.link.streams.set(self.link.streams.get() - 1);
        self.link.idle_since.set(Instant::now());
    }
}

impl Stream {
    /// One exchange. A request that the server provably has not begun with comes back, if nothing of its body was taken.
    pub(super) async fn send(mut self, exchange: &Rc<Exchange>, request: Box<Request<RequestBody>>) -> Sent {
        let (parts, body) = request.into_parts();
        let Some(head) = head(&parts, self.link.scheme) else {
            return Sent::Done(Err(Failure::Malformed));
        };
        let lent = Rc::new(Lender { body: RefCell::new(Some(body)), touched: Cell::new(false) });
        let outgoing = Request::from_parts(head, Lent(lent.clone()));
        let sent = self.link.sender.borrow_mut().as_mut().map(|sender| sender.try_send_request(outgoing));
        let back = |failure| match lent.body.borrow_mut().take() {
            Some(body) if !lent.touched.get() => {
                Sent::Unsent(Box::new(Request::from_parts(parts, body)), failure)
            }
            _ => Sent::Done(Err(failure)),
        };
        let Some(sent) = sent else { return back(Failure::Unstarted) };
        let mut sent = pin!(sent);
        let answered = poll_fn(|cx| match sent.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Ok(result)),
            Poll::Pending => self.expired(cx, exchange).map(Err),
        })
        .await;
        match answered {
            Ok(Ok(response)) => {
                self.link.tls.answered();
                exchange.answered(response.headers());
                Sent::Done(Ok(response.map(|body| ResponseBody::h2(body, exchange.clone(), self))))
            }
            Ok(Err(mut error)) => {
                let unsent = error.take_message().is_some();
                let error = error.into_error();
                tracing::debug!(%error, "no answer");
                match (unsent, classify(&error)) {
                    (true, _) | (_, Failure::Unstarted) => {
                        self.link.close_if_gone(&error);
                        back(Failure::Unstarted)
                    }
                    (_, failure) => Sent::Done(Err(self.link.tls.failure().unwrap_or(failure))),
                }
            }
            // Dropping what waits for the answer resets the stream.
            Err(failure) => Sent::Done(Err(failure)),
        }
    }

    /// Ready when somebody is over a deadline of `exchange`.
    ///
    /// The timer is never armed further ahead than the shortest one, so that a deadline that begins to count later is not missed.
    pub(super) fn expired(&mut self, cx: &mut Context<'_>, exchange: &Exchange) -> Poll<Failure> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let latest = now + exchange.shortest().max(Duration::from_millis(1));
            match exchange.look(now, latest) {
                Ok(next) => self.timer.as_mut().reset(next),
                Err(failure) => return Poll::Ready(failure),
            }
        }
        Poll::Pending
    }
}

impl Link {
    /// After GOAWAY nothing new may be sent here.
    fn close_if_gone(&self, error: &hyper::Error) {
        if h2_error(error).is_none_or(|error| error.is_go_away()) {
            self.close();
        }
    }
}

/// Runs a connection until it takes no more requests. Those under way are run by [`Local`].
async fn drive(link: Rc<Link>) {
    let mut timer = pin!(sleep_until(Instant::now() + link.idle_limit));
    poll_fn(|cx| {
        let ended = match &mut *link.connection.borrow_mut() {
            Some(connection) => Pin::new(connection).poll(cx).is_ready(),
            None => true,
        };
        if ended {
            return Poll::Ready(());
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let end = link.idle_since.get() + link.idle_limit;
            if link.streams.get() > 0 {
                timer.as_mut().reset(now + link.idle_limit);
            } else if now < end {
                timer.as_mut().reset(end);
            } else {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
    link.close();
    link.connection.borrow_mut().take();
    if let Some(pool) = link.pool.upgrade() {
        pool.forget_h2(&link);
    }
}

/// The head as HTTP/2 has it: the host in the target, nothing that concerns an HTTP/1.1 connection.
fn head(parts: &Parts, scheme: &'static str) -> Option<Parts> {
    let mut head = parts.clone();
    let host = head.headers.remove(HOST)?;
    head.headers.remove(CONNECTION);
    head.headers.remove(TRANSFER_ENCODING);
    head.uri = Uri::builder()
        .scheme(scheme)
        .authority(host.as_bytes())
        .path_and_query(head.uri.path_and_query()?.clone())
        .build()
        .ok()?;
    head.version = Version::HTTP_2;
    Some(head)
}

fn h2_error(error: &hyper::Error) -> Option<&::h2::Error> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        source = cause.source();
    }
    None
}

fn classify(error: &hyper::Error) -> Failure {
    match h2_error(error) {
        // RFC 9113 sections 6.8 and 8.7: of streams above the last one, and of refused ones, nothing was done.
        Some(error) if error.is_remote() && error.is_go_away() => Failure::Unstarted,
        Some(error) if error.is_remote() && error.reason() == Some(::h2::Reason::REFUSED_STREAM) => {
            Failure::Unstarted
        }
        Some(error) if error.is_library() => Failure::Malformed,
        _ => Failure::Closed,
    }
}

/// A request's body while it may still be had back.
#[derive(Debug)]
struct Lender {
    body: RefCell<Option<RequestBody>>,
    /// Whether a piece of it was taken.
    touched: Cell<bool>,
}

/// A body on loan.
#[derive(Debug)]
struct Lent(Rc<Lender>);

impl Body for Lent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self.0.body.borrow_mut() {
            Some(body) => {
                let polled = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(Some(_)) = polled {
                    self.0.touched.set(true);
                }
                polled
            }
            // Taken back: this stream is over.
            None => Poll::Ready(Some(Err(BodyError(Failure::Unstarted)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.body.borrow().as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.body.borrow().as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// Runs a connection's frames and its bodies on the worker's thread.
#[derive(Clone, Debug, Default)]
struct Local(Rc<Progress>);

/// Whoever waits for the server's settings is woken whenever frames may have come: hyper does not say when.
#[derive(Debug, Default)]
struct Progress {
    settled: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Local {
    fn watch(&self, cx: &Context<'_>) {
        *self.0.waiting.borrow_mut() = Some(cx.waker().clone());
    }

    fn settled(&self) {
        self.0.settled.set(true);
        self.0.waiting.borrow_mut().take();
    }
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        if self.0.settled.get() {
            return task::spawn_local(future);
        }
        let progress = self.0.clone();
        task::spawn_local(async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                let polled = future.as_mut().poll(cx);
                if !progress.settled.get()
                    && let Some(waiting) = &*progress.waiting.borrow()
                {
                    waiting.wake_by_ref();
                }
                polled
            })
            .await;
        });
    }
}
