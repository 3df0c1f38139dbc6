//! The snapshot in force as one worker holds it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use super::handler::Shared;
use super::snapshot::Snapshot;
use crate::telemetry::{Counter, Histogram, NONE};

/// Methods that are counted by their name.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Counters, each with the upstream that was asked; a route has few of them.
type ByUpstream = Vec<(Option<Arc<str>>, Counter)>;

/// Route, method, status.
type Series = (Option<usize>, &'static str, u16);

/// The snapshot in force as one worker holds it, with the metric handles it has come to need.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) snapshot: Arc<Snapshot>,
    /// Of the upstreams' servers, when connections were last held against them.
    pub(super) version: Cell<u64>,
    counters: RefCell<HashMap<Series, ByUpstream>>,
    durations: RefCell<HashMap<Option<usize>, Histogram>>,
}

impl Local {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Rc<Self> {
        let version = Cell::new(snapshot.upstreams.version());
        Rc::new(Self { snapshot, version, counters: RefCell::default(), durations: RefCell::default() })
    }

    /// Counts a request that has ended. `duration`: how long its answer took.
    pub(super) fn count(
        &self,
        shared: &Shared,
        route: Option<usize>,
        upstream: Option<&Arc<str>>,
        method: &Method,
        status: u16,
        duration: Option<Duration>,
    ) {
        let none = || Arc::from(NONE);
        let key = || route.map_or_else(none, |index| self.snapshot.router.routes()[index].key.clone());
        let method = METHODS
            .iter()
            .position(|known| known == method)
            .map_or("other", |n| ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"][n]);
        let mut counters = self.counters.borrow_mut();
        let series = counters.entry((route, method, status)).or_default();
        match series.iter().find(|(known, _)| known.as_ref() == upstream) {
            Some((_, counter)) => drop(counter.inc()),
            None => {
                let name = upstream.cloned().unwrap_or_else(none);
                let counter = shared.metrics.requests(&key(), &name, method, status);
                counter.inc();
                series.push((upstream.cloned(), counter));
            }
        }
        let Some(duration) = duration else { return };
        let mut durations = self.durations.borrow_mut();
        durations.entry(route).or_insert_with(|| shared.metrics.durations(&key())).observe(duration);
    }
}
