//! The snapshot in force as one worker holds it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rustc_hash::FxHashMap;

use super::handler::Shared;
use super::snapshot::Snapshot;
use crate::telemetry::{Counter, Histogram, NONE};

/// Methods that are counted by their name.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
const NAMES: [&str; METHODS.len() + 1] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"];

/// Route, method (an index of the names below), status: nothing that a client could make collide.
type Key = (Option<usize>, usize, u16);

/// What counts the requests that one upstream answered; a route has few of them.
#[derive(Debug)]
struct Series {
    upstream: Option<Arc<str>>,
    requests: Counter,
    /// Of the route.
    durations: Histogram,
}

/// The snapshot in force as one worker holds it, with the metric handles it has come to need.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) snapshot: Arc<Snapshot>,
    /// Of the upstreams' servers, when connections were last held against them.
    pub(super) version: Cell<u64>,
    series: RefCell<FxHashMap<Key, Vec<Series>>>,
}

impl Local {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Rc<Self> {
        let version = Cell::new(snapshot.upstreams.version());
        Rc::new(Self { snapshot, version, series: RefCell::default() })
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
        let index = METHODS.iter().position(|known| known == method).unwrap_or(METHODS.len());
        let mut all = self.series.borrow_mut();
        let series = all.entry((route, index, status)).or_default();
        let place = series.iter().position(|series| series.upstream.as_ref() == upstream);
        let counted = match place {
            Some(place) => &series[place],
            None => {
                let none = || Arc::from(NONE);
                let key = route.map_or_else(none, |index| self.snapshot.router.routes()[index].key.clone());
                let name = upstream.cloned().unwrap_or_else(none);
                let method = NAMES[index];
                series.push(Series {
                    upstream: upstream.cloned(),
                    requests: shared.metrics.requests(&key, &name, method, status),
                    durations: shared.metrics.durations(&key),
                });
                &series[series.len() - 1]
            }
        };
        counted.requests.inc();
        if let Some(duration) = duration {
            counted.durations.observe(duration);
        }
    }
}
