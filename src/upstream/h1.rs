//! One HTTP/1.1 connection: kept while idle, watched while busy.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use http::{HeaderMap, Request, StatusCode, header};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::body::{RequestBody, ResponseBody};
use super::connect::Connected;
use super::exchange::{Exchange, Failure};
use super::pool::{Pool, Sent};
use super::proxy_protocol::ClientAddresses;
use super::stream::{Io, ServerStream, TlsState};
use crate::balance::Connection as Counted;
use crate::task;

/// Bounds what one answer's head, or one read, may take.
const BUFFER: usize = 64 * 1024;

pub(super) type Sender = SendRequest<RequestBody>;

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    pool: Weak<Pool>,
    /// Here while nobody sends.
    sender: RefCell<Option<Sender>>,
    exchange: RefCell<Option<Rc<Exchange>>>,
    idle_since: Cell<Instant>,
    idle_limit: Cell<Duration>,
    /// How far ahead the driver's timer may be armed; see [`drive`].
    ahead: Cell<Duration>,
    /// Where the connection goes when the server switches protocols, which this request asks for.
    switch: RefCell<Option<oneshot::Sender<ServerStream>>>,
    tls: TlsState,
    /// Whom the server was told of: nobody else's requests may come this way.
    client: Option<ClientAddresses>,
    /// Counts it for its server.
    _counted: Counted,
    /// Nobody waits for the rest of the answer: the connection has to end, whatever the server has not taken yet.
    is_abandoned: Cell<bool>,
    /// To be woken when `ahead` shrinks or `is_abandoned`.
    driver: RefCell<Option<Waker>>,
}

/// Whoever waits for an answer on a connection. Giving up ends the connection, unless it has the whole answer already.
#[derive(Debug)]
pub(super) struct Waiting(Rc<Link>, Rc<Exchange>);

impl Drop for Waiting {
    fn drop(&mut self) {
        let Self(link, exchange) = self;
        // Once the connection is past this answer, it is idle or another exchange's: the end that nobody fetched is lost, no more.
        let is_theirs = link.exchange.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, exchange));
        if is_theirs && !exchange.is_complete() {
            // HTTP would first hand over what it holds of the request, and a server that hangs never takes it.
            link.is_abandoned.set(true);
            link.wake();
        }
    }
}

/// Speaks HTTP/1.1 on a new connection.
pub(super) async fn open(
    pool: &Rc<Pool>,
    exchange: &Exchange,
    connected: Connected,
    client: Option<ClientAddresses>,
    counted: Counted,
) -> Result<(Rc<Link>, Sender), Failure> {
    let mut builder = Builder::new();
    builder.max_buf_size(BUFFER);
    let (sender, connection) =
        builder.handshake(TokioIo::new(connected.io)).await.map_err(|_| Failure::Connect)?;
    let link = Rc::new(Link {
        pool: Rc::downgrade(pool),
        sender: RefCell::new(None),
        exchange: RefCell::new(None),
        idle_since: Cell::new(Instant::now()),
        idle_limit: Cell::new(exchange.limits().timeouts.upstream_idle),
        ahead: Cell::new(exchange.shortest()),
        switch: RefCell::new(None),
        tls: connected.tls,
        client,
        _counted: counted,
        is_abandoned: Cell::new(false),
        driver: RefCell::new(None),
    });
    task::spawn_local(drive(connection, link.clone()));
    Ok((link, sender))
}

impl Link {
    /// One exchange. A request that was provably never sent comes back.
    pub(super) fn send(
        self: &Rc<Self>,
        mut sender: Sender,
        exchange: &Rc<Exchange>,
        request: Box<Request<RequestBody>>,
    ) -> impl Future<Output = Sent> {
        self.attach(exchange);
        let waiting = Waiting(self.clone(), exchange.clone());
        let switched = request.headers().contains_key(header::UPGRADE).then(|| self.may_switch());
        let sent = sender.try_send_request(*request);
        async move {
            match sent.await {
                Ok(response) => {
                    let idle_limit = idle_limit(exchange, response.headers());
                    self.idle_limit.set(idle_limit);
                    if !idle_limit.is_zero() {
                        self.look_within(idle_limit);
                    }
                    self.tls.answered();
                    exchange.answered(response.headers());
                    let switched = switched.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
                    let response =
                        response.map(|body| ResponseBody::h1(body, exchange.clone(), waiting, switched));
                    *self.sender.borrow_mut() = Some(sender);
                    self.park();
                    Sent::Done(Ok(response))
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => {
                        let failure = self.tls.failure().unwrap_or(Failure::Unstarted);
                        Sent::Unsent(Box::new(unsent), failure)
                    }
                    None => {
                        let error = error.into_error();
                        tracing::debug!(%error, "no answer");
                        let failure = if error.is_parse() { Failure::Malformed } else { Failure::Closed };
                        Sent::Done(Err(self.tls.failure().unwrap_or(failure)))
                    }
                },
            }
        }
    }

    /// The way to send on an idle connection that the server may still accept a request on. Without one it is of no use any more:
    /// dropping the sender makes the driver close it.
    pub(super) fn take_sender(&self, now: Instant) -> Option<Sender> {
        let sender = self.sender.borrow_mut().take()?;
        (sender.is_ready() && now < self.idle_since.get() + self.idle_limit.get()).then_some(sender)
    }

    pub(super) fn client(&self) -> Option<&ClientAddresses> {
        self.client.as_ref()
    }

    fn attach(&self, exchange: &Rc<Exchange>) {
        *self.exchange.borrow_mut() = Some(exchange.clone());
        // Timeouts that a reload shortened must not wait for a timer that was armed before.
        self.look_within(exchange.shortest());
    }

    /// From now on the driver's timer is armed no further ahead than this.
    fn look_within(&self, ahead: Duration) {
        if ahead < self.ahead.get() {
            self.ahead.set(ahead);
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(driver) = self.driver.borrow_mut().take() {
            driver.wake();
        }
    }

    /// Prepares for a server that switches protocols after this request.
    fn may_switch(&self) -> oneshot::Receiver<ServerStream> {
        let (sender, receiver) = oneshot::channel();
        *self.switch.borrow_mut() = Some(sender);
        receiver
    }

    /// Puts the connection among the idle ones if it can take a request, and forgets it if it cannot any more.
    fn park(self: &Rc<Self>) {
        let mut slot = self.sender.borrow_mut();
        let Some(sender) = &*slot else { return };
        if self.exchange.borrow().is_none() {
            return; // parked already
        }
        if sender.is_closed() {
            *slot = None;
        } else if sender.is_ready() {
            self.exchange.borrow_mut().take();
            self.switch.borrow_mut().take();
            self.idle_since.set(Instant::now());
            let pool = self.pool.upgrade().filter(|_| !self.idle_limit.get().is_zero());
            if !pool.is_some_and(|pool| pool.keep(self)) {
                *slot = None;
            }
        }
    }

    /// What the clock says: look again then, or close now.
    fn look(&self, now: Instant) -> Result<Instant, ()> {
        match &*self.exchange.borrow() {
            None => {
                let end = self.idle_since.get() + self.idle_limit.get();
                if now >= end { Err(()) } else { Ok(end.min(now + self.ahead.get())) }
            }
            Some(exchange) => exchange.look(now, now + self.ahead.get()).map_err(drop),
        }
    }
}

/// Runs a connection to its end.
///
/// One timer serves every deadline: it is never armed further ahead than the shortest one, so a deadline that begins to count
/// after it was armed cannot be missed, and a request moves no timer at all.
async fn drive(mut connection: Connection<TokioIo<Io>, RequestBody>, link: Rc<Link>) {
    let mut timer = pin!(sleep_until(Instant::now() + link.ahead.get()));
    let ended = poll_fn(|cx| {
        let polled = match &*link.switch.borrow() {
            Some(_) => connection.poll_without_shutdown(cx),
            None => Pin::new(&mut connection).poll(cx),
        };
        if let Poll::Ready(result) = polled {
            return Poll::Ready(result.is_ok());
        }
        if link.is_abandoned.get() {
            return Poll::Ready(false);
        }
        link.park();
        if link.driver.borrow().is_none() {
            *link.driver.borrow_mut() = Some(cx.waker().clone());
            timer.as_mut().reset(Instant::now());
        }
        while timer.as_mut().poll(cx).is_ready() {
            match link.look(Instant::now()) {
                Ok(next) => timer.as_mut().reset(next),
                Err(()) => return Poll::Ready(false),
            }
        }
        Poll::Pending
    })
    .await;
    if let Some(pool) = link.pool.upgrade() {
        pool.forget(&link);
    }
    if let Some(switch) = link.switch.borrow_mut().take().filter(|_| ended) {
        let parts = connection.into_parts();
        // Nobody takes it if there was no 101 after all: then it is closed.
        drop(switch.send(ServerStream::new(parts.io.into_inner(), &parts.read_buf)));
    }
}

/// How long the connection may idle: one second less than the server says it keeps it (`Keep-Alive: timeout=5`), so that we
/// never send on a connection that is just being closed.
fn idle_limit(exchange: &Exchange, headers: &HeaderMap) -> Duration {
    let own = exchange.limits().timeouts.upstream_idle;
    let theirs = headers.get("keep-alive").and_then(|value| {
        let text = value.to_str().ok()?;
        let seconds = text.split(',').find_map(|part| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().parse::<u64>().ok())?
        })?;
        Some(Duration::from_secs(seconds.saturating_sub(1)))
    });
    theirs.map_or(own, |theirs| theirs.min(own))
}
