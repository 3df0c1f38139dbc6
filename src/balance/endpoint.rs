//! One server as all workers see it.

use std::fmt;
use std::sync::Arc;

use super::spec::ServerSpec;
use crate::telemetry::{Counter, Gauge, Metrics, UNSENT};

/// A server of an upstream. It outlives reloads that keep it, and with it what is known of it.
pub struct Endpoint {
    id: u64,
    upstream: Arc<str>,
    spec: ServerSpec,
    label: Arc<str>,
    /// The metric is the count that the balancer reads: one fact, one atomic.
    in_flight: Gauge,
    resent: Counter,
}

impl Endpoint {
    pub(super) fn new(id: u64, upstream: Arc<str>, spec: ServerSpec, metrics: &Metrics) -> Self {
        let label: Arc<str> = spec.to_string().into();
        metrics.upstream_up(&upstream, &label).set(1);
        let in_flight = metrics.upstream_in_flight(&upstream, &label);
        let resent = metrics.retries(&upstream, UNSENT);
        Self { id, upstream, spec, label, in_flight, resent }
    }

    /// Unique in this process; stays the same over reloads.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The name of its upstream.
    pub fn upstream(&self) -> &Arc<str> {
        &self.upstream
    }

    /// Where it is.
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
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.in_flight.inc();
        Self(endpoint)
    }

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
