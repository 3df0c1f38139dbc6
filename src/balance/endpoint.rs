//! One server as all workers see it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::health::{Health, now_ms};
use super::spec::{ActiveSpec, ServerSpec};
use crate::telemetry::{Counter, Gauge, Metrics, UNSENT};

/// A server of an upstream. It outlives reloads and resolutions that keep it, and with it what is known of it.
pub struct Endpoint {
    id: u64,
    upstream: Arc<str>,
    spec: ServerSpec,
    label: Arc<str>,
    /// The metric is the count that the balancer reads: one fact, one atomic.
    in_flight: Gauge,
    up: Gauge,
    resent: Counter,
    pub(super) health: Health,
    connections: AtomicU32,
    /// Of the plan in force; 0: any number.
    max_connections: AtomicU32,
}

/// Whether a server gets requests, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It gets requests.
    Up,
    /// It says itself that it is not well, or does not answer when asked.
    Down,
    /// Requests to it failed; it is left out for a while.
    Ejected,
    /// Drained by a command.
    Drained,
}

impl Condition {
    /// One word for people and scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Drained => "drained",
        }
    }
}

impl Endpoint {
    /// `spec` is a [`ServerSpec::place`]. A newcomer joins others that are already at work.
    pub(super) fn new(
        id: u64,
        upstream: Arc<str>,
        spec: ServerSpec,
        is_newcomer: bool,
        metrics: &Metrics,
    ) -> Self {
        let label: Arc<str> = spec.to_string().into();
        let up = metrics.upstream_up(&upstream, &label);
        up.set(1);
        let in_flight = metrics.upstream_in_flight(&upstream, &label);
        let resent = metrics.retries(&upstream, UNSENT);
        let health = if is_newcomer { Health::of_a_newcomer() } else { Health::default() };
        let (connections, max_connections) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { id, upstream, spec, label, in_flight, up, resent, health, connections, max_connections }
    }

    /// Unique in this process; stays the same over reloads.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The name of its upstream.
    pub fn upstream(&self) -> &Arc<str> {
        &self.upstream
    }

    /// Where it is, with the address if its name was resolved.
    pub fn spec(&self) -> &ServerSpec {
        &self.spec
    }

    /// Its URL, for logs and metrics.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Counts a request that is sent again because an idle connection never sent it.
    pub(crate) fn resent(&self) {
        self.resent.inc();
    }

    /// Requests it is working on, over all workers.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Open connections to it, over all workers.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether it gets requests, and why not.
    pub fn condition(&self) -> Condition {
        match &self.health {
            health if health.is_drained() => Condition::Drained,
            health if health.is_down() => Condition::Down,
            health if health.is_ejected() && !health.readmit(now_ms()) => Condition::Ejected,
            _ => Condition::Up,
        }
    }

    /// The right to open one more connection, as long as the guard lives; `None`: it has as many as it may.
    pub fn open(self: &Arc<Self>) -> Option<Connection> {
        let max = self.max_connections.load(Ordering::Relaxed);
        let taken = self.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
            (max == 0 || open < max).then(|| open + 1)
        });
        taken.ok().map(|_| Connection(self.clone()))
    }

    /// Whether a connection that is not needed at the moment may be kept. Idle connections hold at most half of the allowed
    /// ones: they belong to one worker, and the others must find room for theirs.
    pub fn may_idle(&self) -> bool {
        let max = self.max_connections.load(Ordering::Relaxed);
        max == 0 || self.connections() <= max / 2
    }

    /// Takes note of the answer to a question. Gives whether it is up now, if that is new. To be called by one prober only.
    pub fn answered(&self, well: bool, spec: &ActiveSpec) -> Option<bool> {
        let changed = self.health.answered(well, spec);
        self.show();
        changed
    }

    /// Whether it has answered a question since it is asked.
    pub fn was_asked(&self) -> bool {
        self.health.was_asked()
    }

    /// Nobody asks it any more: it is up as far as it says itself.
    pub fn unasked(&self) {
        self.health.unasked();
        self.show();
    }

    /// Keeps new requests away from it, or lets them come again. What it works on is not touched.
    pub fn drain(&self, drained: bool) {
        self.health.drain(drained);
        self.show();
    }

    /// Brings `starlock_upstream_up` up to date; an ejection that is over ends here at the latest.
    pub fn show(&self) {
        self.up.set(i64::from(self.condition() == Condition::Up));
    }

    pub(super) fn limit_connections(&self, max: u32) {
        self.max_connections.store(max, Ordering::Relaxed);
    }

    /// Counts a request if there are fewer than `max`.
    pub(super) fn admit(self: &Arc<Self>, max: i64) -> Option<InFlight> {
        if self.in_flight.inc() >= max {
            self.in_flight.dec();
            return None;
        }
        Some(InFlight(self.clone()))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} of {})", self.label, self.upstream)
    }
}

/// A request that a server is working on. Dropping it says that the server is done with it.
#[derive(Debug)]
pub struct InFlight(Arc<Endpoint>);

impl InFlight {
    /// The server.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

/// An open connection to a server. Dropping it says that it is closed.
#[derive(Debug)]
pub struct Connection(Arc<Endpoint>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}
