//! Connections of one worker to the servers: which one a request takes, and when there is a new one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, header};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::body::{RequestBody, ResponseBody};
use super::connect::{Means, connect};
use super::exchange::{Exchange, Failure};
use super::proxy_protocol::ClientAddresses;
use super::stream::ServerStream;
use super::tls::TlsReader;
use super::{h1, h2};
use crate::balance::{Connection, Endpoint, Transport};
use crate::resolver::Hosts;

/// A server that refuses streams is asked again this often for one request: a GOAWAY may cross a request on the way, twice is a habit.
const REFUSALS: usize = 2;

/// The connections of one worker. Not `Send`: nothing in it is ever locked.
#[derive(Debug)]
pub struct Pools {
    by_endpoint: RefCell<FxHashMap<u64, Rc<Pool>>>,
    idle_limit: usize,
    means: Means,
}

impl Pools {
    /// Keeps at most `idle_limit` idle connections for each server. `tls` has what the servers' TLS needs.
    pub fn new(idle_limit: usize, hosts: Hosts, tls: TlsReader) -> Self {
        Self { by_endpoint: RefCell::default(), idle_limit, means: Means { hosts, tls } }
    }

    /// The connections to `endpoint`.
    pub fn to(&self, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        let mut pools = self.by_endpoint.borrow_mut();
        let pool = pools.entry(endpoint.id()).or_insert_with(|| {
            let http = match endpoint.spec().transport {
                Transport::Http => Http::One,
                Transport::H2c => Http::Two,
                Transport::Tls(_) => Http::Unknown,
            };
            Rc::new(Pool {
                endpoint: endpoint.clone(),
                means: self.means.clone(),
                idle_limit: self.idle_limit,
                idle: RefCell::default(),
                http: Cell::new(http),
                links: RefCell::default(),
                opening: RefCell::default(),
            })
        });
        pool.clone()
    }

    /// A connection to `endpoint` for the bytes of `client`, which are not HTTP, within `limit`. It counts for its server as long as
    /// the guard is held.
    pub async fn connect(
        &self,
        endpoint: &Arc<Endpoint>,
        client: &ClientAddresses,
        limit: Duration,
    ) -> Result<(ServerStream, Connection), Failure> {
        let counted = endpoint.open().ok_or(Failure::Full)?;
        let connected = connect(endpoint, &self.means, limit, Some(client), true).await?;
        Ok((ServerStream::new(connected.io, &[]), counted))
    }

    /// Closes the idle connections of servers that `keep` says no to; busy ones end with their exchange.
    pub fn retain(&self, keep: impl Fn(u64) -> bool) {
        self.means.tls.retain(&keep);
        self.by_endpoint.borrow_mut().retain(|id, _| keep(*id));
    }
}

/// The connections of one worker to one server.
#[derive(Debug)]
pub struct Pool {
    endpoint: Arc<Endpoint>,
    means: Means,
    idle_limit: usize,
    /// HTTP/1.1. The last one used is used next, so that a calm pool shrinks.
    idle: RefCell<Vec<Rc<h1::Link>>>,
    http: Cell<Http>,
    /// HTTP/2. The first one with room is used, so that a calm pool shrinks.
    links: RefCell<Vec<Rc<h2::Link>>>,
    opening: RefCell<Option<Rc<Opening>>>,
}

/// Which HTTP the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http {
    /// The first connection will tell.
    Unknown,
    One,
    Two,
}

/// What became of a request on a connection.
pub(super) enum Sent {
    Done(Result<Response<ResponseBody>, Failure>),
    /// It was provably never begun. The failure holds if it is not sent again.
    Unsent(Box<Request<RequestBody>>, Failure),
}

/// A connection that can take a request.
enum Way {
    /// Whether it was used before.
    One(Rc<h1::Link>, h1::Sender, bool),
    Two(h2::Stream),
}

/// A connection that is being made and that others wait for, since it will carry their requests too.
#[derive(Debug, Default)]
struct Opening {
    failure: Cell<Option<Failure>>,
    done: Notify,
}

impl Pool {
    /// Sends `request`, on a connection that is there if one can take it, and waits for the head of the answer. The deadlines are
    /// those of `exchange`, which must be the one of the request's body.
    ///
    /// A request that the server provably never began with, because the connection was just being closed, is sent again on another
    /// one, as long as nothing of its body was taken; otherwise that is [`Failure::Unstarted`]. Dropping the future, or the answer's
    /// body before its end, closes the connection, or resets the stream if it is one of many.
    ///
    /// A request with the field `Upgrade` goes by HTTP/1.1 and may be answered by a 101: then [`ResponseBody::switched`] gives the
    /// connection. The caller judges whether the protocol of the answer is the one that was asked for.
    pub async fn send(
        self: &Rc<Self>,
        exchange: &Rc<Exchange>,
        mut request: Box<Request<RequestBody>>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let switches = request.headers().contains_key(header::UPGRADE);
        let mut refused = 0;
        loop {
            let way = self.way(exchange, switches).await.inspect_err(|failure| exchange.fail(*failure))?;
            let (sent, again) = match way {
                Way::One(link, sender, reused) => (link.send(sender, exchange, request).await, reused),
                Way::Two(stream) => {
                    refused += 1;
                    exchange.asked_by_h2(request.headers());
                    (Box::pin(stream.send(exchange, request)).await, refused <= REFUSALS)
                }
            };
            match sent {
                Sent::Unsent(unsent, _) if again => {
                    self.endpoint.resent();
                    request = unsent;
                }
                Sent::Unsent(_, failure) | Sent::Done(Err(failure)) => {
                    exchange.fail(failure);
                    return Err(exchange.failure().unwrap_or(failure));
                }
                Sent::Done(Ok(response)) => return Ok(response),
            }
        }
    }

    /// A connection that takes a request of this exchange: one that is there, or a new one.
    async fn way(self: &Rc<Self>, exchange: &Exchange, switches: bool) -> Result<Way, Failure> {
        // Who was told of one client must not be sent the requests of another.
        let client = self.endpoint.spec().proxy_protocol.and(exchange.client());
        if switches && self.endpoint.spec().transport.is_only_h2() {
            return Err(Failure::NoSwitch);
        }
        loop {
            if let Some((link, sender)) = self.take(client) {
                return Ok(Way::One(link, sender, true));
            }
            if switches || self.http.get() == Http::One {
                break;
            }
            if let Some(stream) = self.room(client) {
                return Ok(Way::Two(stream));
            }
            if client.is_some() {
                break; // nobody else can use it
            }
            let opening = self.opening.borrow().clone();
            let Some(opening) = opening else { break };
            let done = opening.done.notified();
            done.await;
            if let Some(failure) = opening.failure.get() {
                return Err(failure);
            }
        }
        // Boxed: most requests find a connection, and need not carry room for making one.
        Box::pin(self.open(exchange, client, switches)).await
    }

    /// How many HTTP/1.1 connections are idle.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.idle.borrow().len()
    }

    /// An idle HTTP/1.1 connection that the server may still accept a request on.
    fn take(&self, client: Option<&ClientAddresses>) -> Option<(Rc<h1::Link>, h1::Sender)> {
        let mut idle = self.idle.borrow_mut();
        let mut end = idle.len();
        while let Some(place) = idle[..end].iter().rposition(|link| link.client() == client) {
            let link = idle.remove(place);
            if let Some(sender) = link.take_sender(Instant::now()) {
                return Some((link, sender));
            }
            end = place;
        }
        None
    }

    /// A place on an HTTP/2 connection.
    fn room(&self, client: Option<&ClientAddresses>) -> Option<h2::Stream> {
        let links = self.links.borrow();
        links.iter().filter(|link| link.client() == client).find_map(h2::Link::reserve)
    }

    async fn open(
        self: &Rc<Self>,
        exchange: &Exchange,
        client: Option<&ClientAddresses>,
        only_h1: bool,
    ) -> Result<Way, Failure> {
        let shared = client.is_none() && !only_h1 && self.http.get() != Http::One;
        let turn = shared.then(|| Turn::take(self));
        let opened = self.open_alone(exchange, client, only_h1).await;
        if let (Some(turn), Err(failure)) = (&turn, &opened) {
            turn.opening.failure.set(Some(*failure));
        }
        opened
    }

    async fn open_alone(
        self: &Rc<Self>,
        exchange: &Exchange,
        client: Option<&ClientAddresses>,
        only_h1: bool,
    ) -> Result<Way, Failure> {
        let limit = exchange.limits().timeouts.connect;
        let counted = self.endpoint.open().ok_or(Failure::Full)?;
        let connected = connect(&self.endpoint, &self.means, limit, client, only_h1).await?;
        let client = client.copied();
        if !connected.http2 {
            if !only_h1 {
                self.http.set(Http::One);
            }
            let (link, sender) = h1::open(self, exchange, connected, client, counted).await?;
            return Ok(Way::One(link, sender, false));
        }
        let link = Box::pin(h2::open(self, exchange, connected, client, counted, limit)).await?;
        self.http.set(Http::Two);
        let stream = link.reserve().ok_or(Failure::Unstarted)?;
        self.links.borrow_mut().push(link);
        Ok(Way::Two(stream))
    }

    /// Keeps an idle connection; `false` if there are enough.
    pub(super) fn keep(&self, link: &Rc<h1::Link>) -> bool {
        let mut idle = self.idle.borrow_mut();
        let room = idle.len() < self.idle_limit && self.endpoint.may_idle();
        if room {
            idle.push(link.clone());
        }
        room
    }

    /// A connection has ended.
    pub(super) fn forget(&self, link: &Rc<h1::Link>) {
        self.idle.borrow_mut().retain(|idle| !Rc::ptr_eq(idle, link));
    }

    /// A connection takes no more requests.
    pub(super) fn forget_h2(&self, link: &Rc<h2::Link>) {
        self.links.borrow_mut().retain(|known| !Rc::ptr_eq(known, link));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for link in self.idle.borrow_mut().drain(..) {
            drop(link.take_sender(Instant::now()));
        }
        for link in self.links.borrow_mut().drain(..) {
            link.close();
        }
    }
}

/// The right to open a connection that others wait for. However it ends, they go on.
struct Turn<'a> {
    pool: &'a Pool,
    opening: Rc<Opening>,
}

impl<'a> Turn<'a> {
    fn take(pool: &'a Pool) -> Self {
        let opening = Rc::new(Opening::default());
        *pool.opening.borrow_mut() = Some(opening.clone());
        Self { pool, opening }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.pool.opening.borrow_mut().take();
        self.opening.done.notify_waiters();
    }
}
