//! Connections of one worker to the servers: kept while idle, watched while busy.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::body::{RequestBody, ResponseBody};
use super::connect::connect;
use super::exchange::{Exchange, Failure};
use super::stream::ServerStream;
use crate::balance::{Connection as OpenConnection, Endpoint};
use crate::resolver::Hosts;
use crate::task;

/// Bounds what one answer's head, or one read, may take.
const BUFFER: usize = 64 * 1024;

/// The connections of one worker. Not `Send`: nothing in it is ever locked.
#[derive(Debug)]
pub struct Pools {
    by_endpoint: RefCell<HashMap<u64, Rc<Pool>>>,
    idle_limit: usize,
    hosts: Hosts,
}

impl Pools {
    /// Keeps at most `idle_limit` idle connections for each server.
    pub fn new(idle_limit: usize, hosts: Hosts) -> Self {
        Self { by_endpoint: RefCell::default(), idle_limit, hosts }
    }

    /// The connections to `endpoint`.
    pub fn to(&self, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        let mut pools = self.by_endpoint.borrow_mut();
        let pool = pools.entry(endpoint.id()).or_insert_with(|| {
            Rc::new(Pool {
                endpoint: endpoint.clone(),
                hosts: self.hosts.clone(),
                idle_limit: self.idle_limit,
                idle: RefCell::default(),
            })
        });
        pool.clone()
    }

    /// A connection to `endpoint` for bytes that are not HTTP, within `limit`. It counts for its server as long as the guard is held.
    pub async fn connect(
        &self,
        endpoint: &Arc<Endpoint>,
        limit: Duration,
    ) -> Result<(TcpStream, OpenConnection), Failure> {
        let counted = endpoint.open().ok_or(Failure::Full)?;
        Ok((connect(endpoint.spec(), &self.hosts, limit).await?, counted))
    }

    /// Closes the idle connections of servers that `keep` says no to; busy ones end with their exchange.
    pub fn retain(&self, keep: impl Fn(u64) -> bool) {
        self.by_endpoint.borrow_mut().retain(|id, _| keep(*id));
    }
}

/// The connections of one worker to one server.
#[derive(Debug)]
pub struct Pool {
    endpoint: Arc<Endpoint>,
    hosts: Hosts,
    idle_limit: usize,
    /// The last one used is used next, so that a calm pool shrinks.
    idle: RefCell<Vec<Rc<Link>>>,
}

/// One connection.
#[derive(Debug)]
struct Link {
    pool: Weak<Pool>,
    /// Here while nobody sends.
    sender: RefCell<Option<SendRequest<RequestBody>>>,
    exchange: RefCell<Option<Rc<Exchange>>>,
    idle_since: Cell<Instant>,
    idle_limit: Cell<Duration>,
    /// How far ahead the driver's timer may be armed; see [`drive`].
    ahead: Cell<Duration>,
    /// Where the connection goes when the server switches protocols, which this request asks for.
    switch: RefCell<Option<oneshot::Sender<ServerStream>>>,
    /// To be woken when `ahead` shrinks.
    driver: RefCell<Option<Waker>>,
    /// Counts it for its server.
    _counted: OpenConnection,
}

impl Pool {
    /// Sends `request`, on an idle connection if there is one, and waits for the head of the answer. The deadlines are those
    /// of `exchange`, which must be the one of the request's body.
    ///
    /// A request that an idle connection provably never sent, because the server had closed it, is sent again on another one.
    /// Dropping the future, or the answer's body before its end, closes the connection.
    ///
    /// A request with the field `Upgrade` may be answered by a 101: then [`ResponseBody::switched`] gives the connection. The
    /// caller judges whether the protocol of the answer is the one that was asked for.
    pub async fn send(
        self: &Rc<Self>,
        exchange: &Rc<Exchange>,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Failure> {
        loop {
            let (link, mut sender, reused) = match self.take() {
                Some((link, sender)) => (link, sender, true),
                None => {
                    let (link, sender) = self.open(exchange).await.inspect_err(|f| exchange.fail(*f))?;
                    (link, sender, false)
                }
            };
            link.attach(exchange);
            let switched = request.headers().contains_key(header::UPGRADE).then(|| link.may_switch());
            match sender.try_send_request(request).await {
                Ok(response) => {
                    link.idle_limit.set(idle_limit(exchange, response.headers()));
                    let switched = switched.filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
                    let response = response.map(|body| ResponseBody::new(body, exchange.clone(), switched));
                    *link.sender.borrow_mut() = Some(sender);
                    link.park();
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => {
                        self.endpoint.resent();
                        request = unsent;
                    }
                    // The server closed the connection before it had anything of the request.
                    Some(_) => {
                        exchange.fail(Failure::Unsent);
                        return Err(exchange.failure().unwrap_or(Failure::Unsent));
                    }
                    None => {
                        let error = error.into_error();
                        tracing::debug!(server = %self.endpoint.label(), %error, "no answer");
                        exchange.fail(if error.is_parse() { Failure::Malformed } else { Failure::Closed });
                        return Err(exchange.failure().unwrap_or(Failure::Closed));
                    }
                },
            }
        }
    }

    /// An idle connection that the server may still accept a request on.
    fn take(&self) -> Option<(Rc<Link>, SendRequest<RequestBody>)> {
        let now = Instant::now();
        loop {
            let link = self.idle.borrow_mut().pop()?;
            let sender = link.sender.borrow_mut().take();
            match sender {
                Some(sender) if sender.is_ready() && now < link.idle_since.get() + link.idle_limit.get() => {
                    return Some((link, sender));
                }
                // Dropping the sender makes the driver close the connection.
                _ => {}
            }
        }
    }

    async fn open(
        self: &Rc<Self>,
        exchange: &Exchange,
    ) -> Result<(Rc<Link>, SendRequest<RequestBody>), Failure> {
        let timeouts = &exchange.limits().timeouts;
        let counted = self.endpoint.open().ok_or(Failure::Full)?;
        let stream = connect(self.endpoint.spec(), &self.hosts, timeouts.connect).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Connect)?;
        let link = Rc::new(Link {
            pool: Rc::downgrade(self),
            sender: RefCell::new(None),
            exchange: RefCell::new(None),
            idle_since: Cell::new(Instant::now()),
            idle_limit: Cell::new(timeouts.upstream_idle),
            ahead: Cell::new(exchange.shortest()),
            switch: RefCell::new(None),
            driver: RefCell::new(None),
            _counted: counted,
        });
        task::spawn_local(drive(connection, link.clone()));
        Ok((link, sender))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for link in self.idle.borrow_mut().drain(..) {
            link.sender.borrow_mut().take();
        }
    }
}

impl Link {
    fn attach(&self, exchange: &Rc<Exchange>) {
        *self.exchange.borrow_mut() = Some(exchange.clone());
        // Timeouts that a reload shortened must not wait for a timer that was armed before.
        if exchange.shortest() < self.ahead.get() {
            self.ahead.set(exchange.shortest());
            if let Some(driver) = self.driver.borrow_mut().take() {
                driver.wake();
            }
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
            match self.pool.upgrade() {
                Some(pool)
                    if pool.idle.borrow().len() < pool.idle_limit
                        && pool.endpoint.may_idle()
                        && !self.idle_limit.get().is_zero() =>
                {
                    pool.idle.borrow_mut().push(self.clone());
                }
                _ => *slot = None,
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
            Some(exchange) => {
                let latest = now + self.ahead.get();
                match exchange.deadline() {
                    Some((end, failure)) if now >= end => {
                        exchange.fail(failure);
                        Err(())
                    }
                    Some((end, _)) => Ok(end.min(latest)),
                    None => Ok(latest),
                }
            }
        }
    }
}

/// Runs a connection to its end.
///
/// One timer serves every deadline: it is never armed further ahead than the shortest one, so a deadline that begins to count
/// after it was armed cannot be missed, and a request moves no timer at all.
async fn drive(mut connection: Connection<TokioIo<TcpStream>, RequestBody>, link: Rc<Link>) {
    let mut timer = pin!(sleep_until(Instant::now() + link.ahead.get()));
    let ended = poll_fn(|cx| {
        let polled = match &*link.switch.borrow() {
            Some(_) => connection.poll_without_shutdown(cx),
            None => Pin::new(&mut connection).poll(cx),
        };
        if let Poll::Ready(result) = polled {
            return Poll::Ready(result.is_ok());
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
        pool.idle.borrow_mut().retain(|idle| !Rc::ptr_eq(idle, &link));
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
