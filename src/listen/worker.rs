//! One traffic thread: accepts, serves, drains.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::connection::{End, Settings, serve};
use super::gate::Gate;
use super::turn::Line;
use super::watch::Watch;
use crate::conn::{ConnInfo, Load, Service};
use crate::task;
use crate::telemetry::{Counter, Gauge, Metrics};
use crate::tls::TlsServer;

/// How long accepting pauses when the system cannot give us another connection.
const PAUSE: Duration = Duration::from_millis(100);
/// After so many newcomers those who are here are served: what comes of them is behind what has come in meanwhile.
const BATCH: usize = 16;
/// While nothing can be accepted, that is said this often.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// While connections are near their limit, idle ones are looked for this often.
const RELIEF: Duration = Duration::from_millis(100);
/// Only connections that have been idle for so long make room: others are in use.
const SPARE: Duration = Duration::from_secs(1);
/// So many looks in a row that found nothing while every connection was taken are worth saying.
const IN_VAIN: u32 = 10;

/// What all workers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: ArcSwap<Settings>,
    pub(super) gate: Arc<Gate>,
    pub(super) load: Arc<Load>,
    /// How many there are.
    pub(super) workers: usize,
    pub(super) tls: TlsServer,
    pub(super) metrics: Arc<Metrics>,
}

/// What the process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Serving,
    /// No new connections; those there are end with their request.
    Draining,
    Stopped,
}

/// What a listener is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Bound, and its connections wait.
    Paused,
    Open,
    /// What waits is still accepted, then it is closed.
    Retired,
}

/// A listener for one worker.
#[derive(Debug)]
pub(super) struct Add {
    pub(super) socket: StdListener,
    pub(super) tls: bool,
    /// For metrics.
    pub(super) label: Arc<str>,
    /// Closed without a word: it was never put into force.
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) reply: oneshot::Sender<io::Result<()>>,
}

/// What the connections of one listener have in common.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) tls: bool,
    pub(super) open_h1: Gauge,
    pub(super) open_h2: Gauge,
    /// Connections that TLS does not end here.
    pub(super) open_tunnels: Gauge,
}

/// One worker's own things.
pub(super) struct Worker<S> {
    pub(super) shared: Arc<Shared>,
    pub(super) service: Rc<S>,
    pub(super) line: Rc<Line>,
    live: RefCell<HashMap<u64, Rc<Watch>>>,
    next: Cell<u64>,
    draining: Cell<bool>,
    handshakes: RefCell<HashMap<&'static str, Counter>>,
}

/// Takes a connection out of the worker's list when it ends.
pub(super) struct Registered<'a, S> {
    worker: &'a Worker<S>,
    key: u64,
}

impl<S> Drop for Registered<'_, S> {
    fn drop(&mut self) {
        let watch = self.worker.live.borrow_mut().remove(&self.key);
        if watch.is_some_and(|watch| watch.is_evicted()) {
            self.worker.shared.gate.left();
        }
    }
}

impl<S: Service> Worker<S> {
    pub(super) fn new(shared: Arc<Shared>, service: S) -> Rc<Self> {
        Rc::new(Self {
            shared,
            service: Rc::new(service),
            line: Rc::default(),
            live: RefCell::default(),
            next: Cell::new(0),
            draining: Cell::new(false),
            handshakes: RefCell::default(),
        })
    }

    /// Runs until the process stops, or until it drains and the last connection is gone.
    pub(super) async fn run(
        self: Rc<Self>,
        mut adds: mpsc::Receiver<Add>,
        mut stage: watch::Receiver<Stage>,
    ) {
        let (mut relief, mut line) = (pin!(self.relieve()), pin!(self.line.keep()));
        loop {
            tokio::select! {
                () = &mut relief => {}
                never = &mut line => match never {},
                changed = stage.changed() => {
                    let now = *stage.borrow_and_update();
                    match (changed, now) {
                        (Ok(()), Stage::Serving) => {}
                        (Ok(()), Stage::Draining) => self.drain(),
                        (Ok(()), Stage::Stopped) | (Err(_), _) => return,
                    }
                }
                Some(add) = adds.recv() => self.clone().add(add, stage.clone()),
            }
        }
    }

    /// While connections are near their limit, closes those that have been idle the longest, before newcomers are locked out. Each
    /// worker takes its share of what is too much; if some have nothing to give, the others give it the next time. Never ends.
    async fn relieve(&self) {
        let gate = &self.shared.gate;
        let mut in_vain = 0;
        loop {
            gate.crowded().await;
            let evicted = self.evict(gate.excess().div_ceil(self.shared.workers));
            in_vain = if evicted == 0 && gate.is_full() { in_vain + 1 } else { 0 };
            if in_vain >= IN_VAIN {
                gate.say_full();
            }
            tokio::time::sleep(RELIEF).await;
        }
    }

    /// Tells at most `count` connections to go, the longest idle ones; how many there were.
    fn evict(&self, count: usize) -> usize {
        if count == 0 {
            return 0;
        }
        let live = self.live.borrow();
        let now = tokio::time::Instant::now();
        let idle = |watch: &Rc<Watch>| watch.spare_since().filter(|since| now - *since >= SPARE);
        let mut spare: Vec<_> = live.iter().filter_map(|(key, watch)| Some((idle(watch)?, *key))).collect();
        if spare.len() > count {
            spare.select_nth_unstable(count);
            spare.truncate(count);
        }
        for watch in spare.iter().filter_map(|(_, key)| live.get(key)) {
            watch.evict();
            self.shared.gate.leaves();
            self.reject("crowded");
        }
        spare.len()
    }

    fn add(self: Rc<Self>, add: Add, stage: watch::Receiver<Stage>) {
        match TcpListener::from_std(add.socket) {
            Err(error) => drop(add.reply.send(Err(error))),
            Ok(listener) => {
                let endpoint = Rc::new(Endpoint {
                    tls: add.tls,
                    open_h1: self.shared.metrics.connections(&add.label, "h1"),
                    open_h2: self.shared.metrics.connections(&add.label, "h2"),
                    open_tunnels: self.shared.metrics.connections(&add.label, "passthrough"),
                });
                task::spawn_local(self.accept(listener, endpoint, add.phase, stage));
                // Whoever asked may have given up; then the phase channel is closed as well.
                let _ = add.reply.send(Ok(()));
            }
        }
    }

    async fn accept(
        self: Rc<Self>,
        listener: TcpListener,
        endpoint: Rc<Endpoint>,
        mut phase: watch::Receiver<Phase>,
        mut stage: watch::Receiver<Stage>,
    ) {
        if phase.wait_for(|phase| *phase != Phase::Paused).await.is_err() {
            return;
        }
        let mut end = std::pin::pin!(async {
            tokio::select! {
                _ = phase.wait_for(|phase| *phase == Phase::Retired) => {}
                _ = stage.wait_for(|stage| *stage != Stage::Serving) => {}
            }
        });
        let mut said: Option<Instant> = None;
        let mut taken = 0_usize;
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut end => break,
                accepted = self.next(&listener) => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.enter(&endpoint, stream, peer);
                    taken += 1;
                    if taken.is_multiple_of(BATCH) {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    // Ten times a second it would fill the disk that may be the trouble.
                    if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                        tracing::warn!(%error, "no connection can be accepted; trying again");
                        said = Some(Instant::now());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        // Closing a listener resets what waits in it: as many as there is room for are taken along.
        let Ok(listener) = listener.into_std() else { return };
        while !self.shared.gate.is_full()
            && let Ok((stream, peer)) = listener.accept()
        {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                self.enter(&endpoint, stream, peer);
            }
        }
    }

    /// The next connection that there is room for. That is looked at in the moment of accepting: only a connection that another
    /// worker accepts in the same moment can be one too many.
    async fn next(&self, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            self.shared.gate.room().await;
            let accepted = poll_fn(|cx| match self.shared.gate.is_full() {
                true => Poll::Ready(None),
                false => listener.poll_accept(cx).map(Some),
            });
            if let Some(accepted) = accepted.await {
                return accepted;
            }
        }
    }

    fn enter(self: &Rc<Self>, endpoint: &Rc<Endpoint>, stream: TcpStream, peer: SocketAddr) {
        let settings = self.shared.settings.load_full();
        // Of a balancer's clients each has its share, which is counted when it is known.
        let per_ip = settings.limits.connections_per_ip.filter(|_| !settings.is_balancer(peer));
        match self.shared.gate.enter(peer.ip(), per_ip) {
            Some(permit) => {
                let (worker, endpoint) = (self.clone(), endpoint.clone());
                task::spawn_local(serve(worker, endpoint, stream, peer, settings, permit));
            }
            None => self.reject("connections_per_ip"),
        }
    }

    /// Lists a connection, so that it hears of the shutdown.
    pub(super) fn register(&self, watch: &Rc<Watch>) -> Registered<'_, S> {
        let key = self.next.get();
        self.next.set(key + 1);
        self.live.borrow_mut().insert(key, watch.clone());
        if self.draining.get() {
            watch.drain();
        }
        Registered { worker: self, key }
    }

    fn drain(&self) {
        self.draining.set(true);
        for watch in self.live.borrow().values() {
            watch.drain();
        }
    }

    /// Counts a handshake.
    pub(super) fn handshake(&self, result: &'static str) {
        let mut counters = self.handshakes.borrow_mut();
        counters.entry(result).or_insert_with(|| self.shared.metrics.handshakes(result)).inc();
    }

    /// Counts what Starlock refused on its own, and tells the service of what never became a request.
    pub(super) fn ended(&self, end: &End, conn: &ConnInfo) {
        let unreadable = |status, reason| {
            self.reject(reason);
            self.service.unreadable(conn, status, reason);
        };
        match end {
            End::Clock(cause) => {
                if let Some(reason) = cause.reason() {
                    self.reject(reason);
                }
            }
            End::Http(Err(error)) if error.is_parse_too_large() => unreadable(431, "header_size"),
            End::Http(Err(error)) if error.is_parse() => unreadable(400, "bad_request"),
            End::Http(_) => {}
        }
    }

    /// Counts what Starlock refused on its own.
    pub(super) fn reject(&self, reason: &'static str) {
        self.shared.metrics.rejected(reason).inc();
    }
}

/// The connection went away before it was accepted; the listener is fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
