//! How many connections may be open.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::conn::network;

/// While every connection is taken and none is idle, that is said this often.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Counts the open connections of all workers.
#[derive(Debug)]
pub(super) struct Gate {
    limit: AtomicUsize,
    open: AtomicUsize,
    /// Of those, how many were told to go, to make room.
    leaving: AtomicUsize,
    /// Told when a connection has ended, or the limit is another one.
    freed: Notify,
    /// Told when room should be made.
    crowded: Notify,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    said: Mutex<Option<Instant>>,
}

/// One open connection. Dropping it makes room.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Arc<Gate>,
    counted: Option<IpAddr>,
}

/// From so many connections on the idle ones make room: nine tenths of the limit.
fn mark(limit: usize) -> usize {
    limit - limit / 10
}

/// How many connections should go, of `open` ones of which `leaving` were told to: one less than the mark stays.
fn excess(open: usize, leaving: usize, limit: usize) -> usize {
    (open + 1).saturating_sub(leaving).saturating_sub(mark(limit))
}

impl Gate {
    /// With room for `limit` connections.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            open: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            freed: Notify::new(),
            crowded: Notify::new(),
            by_address: Mutex::default(),
            said: Mutex::default(),
        }
    }

    /// Whoever waits for room looks again.
    pub(super) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Release);
        self.freed.notify_waiters();
        self.crowded.notify_waiters();
    }

    /// Open connections now.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    /// Whether there is no room for another connection.
    pub(super) fn is_full(&self) -> bool {
        self.open() >= self.limit()
    }

    /// Waits until there is room for another connection. It may be gone again when somebody else takes it.
    pub(super) async fn room(&self) {
        self.until(&self.freed, || !self.is_full()).await;
    }

    /// Waits until no connection is open.
    pub(super) async fn empty(&self) {
        self.until(&self.freed, || self.open() == 0).await;
    }

    /// Waits until room should be made.
    pub(super) async fn crowded(&self) {
        self.until(&self.crowded, || self.open() >= mark(self.limit())).await;
    }

    async fn until(&self, told: &Notify, condition: impl Fn() -> bool) {
        while !condition() {
            let told = told.notified();
            if condition() {
                return;
            }
            told.await;
        }
    }

    /// How many idle connections should go, beside those that were told to.
    pub(super) fn excess(&self) -> usize {
        excess(self.open(), self.leaving.load(Ordering::Relaxed), self.limit())
    }

    /// A connection was told to go; [`Gate::left`] when it has gone.
    pub(super) fn leaves(&self) {
        self.leaving.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn left(&self) {
        self.leaving.fetch_sub(1, Ordering::Relaxed);
    }

    /// Says that nobody can come in, unless it was said a moment ago.
    pub(super) fn say_full(&self) {
        if !self.is_full() || self.leaving.load(Ordering::Relaxed) > 0 {
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            *said = Some(Instant::now());
            tracing::warn!(
                limit = self.limit(),
                "every connection is taken and none is idle: new clients wait until one ends; if the machine can carry more, \
                 raise limits.connections (and the limit of open files)"
            );
        }
    }

    /// Counts a connection of `peer`; `None` if it already has `per_ip` of them. That there is room was seen before.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr, per_ip: Option<usize>) -> Option<Permit> {
        if self.open.fetch_add(1, Ordering::AcqRel) + 1 >= mark(self.limit()) {
            self.crowded.notify_waiters();
        }
        let mut permit = Permit { gate: self.clone(), counted: None };
        permit.count(peer, per_ip).then_some(permit)
    }
}

impl Permit {
    /// Counts the connection as one of `client`, once its address is known; `false` if it already has `per_ip` of them.
    pub(super) fn count(&mut self, client: IpAddr, per_ip: Option<usize>) -> bool {
        let (Some(limit), None) = (per_ip, self.counted) else { return true };
        let key = network(client);
        let mut counts = self.gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        if *count >= limit {
            return false;
        }
        *count += 1;
        self.counted = Some(key);
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(key) = self.counted {
            let mut counts = self.gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
        self.gate.open.fetch_sub(1, Ordering::AcqRel);
        self.gate.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn an_address_has_its_share_and_gets_it_back() {
        let gate = Arc::new(Gate::new(2));
        let enter = |address: &str, limit| gate.enter(address.parse().unwrap(), limit);
        let one = enter("192.0.2.1", Some(2)).unwrap();
        let two = enter("::ffff:192.0.2.1", Some(2)).unwrap();
        assert!(enter("192.0.2.1", Some(2)).is_none());
        assert!(enter("192.0.2.2", Some(2)).is_some());
        assert!(enter("192.0.2.1", None).is_some());
        drop(one);
        let three = enter("192.0.2.1", Some(2)).unwrap();
        let mut balanced = enter("192.0.2.9", None).unwrap();
        assert!(!balanced.count("192.0.2.1".parse().unwrap(), Some(2)));
        assert!(balanced.count("192.0.2.3".parse().unwrap(), Some(1)), "once the client is known");
        drop(balanced);
        let six = enter("2001:db8::1", Some(1)).unwrap();
        assert!(enter("2001:db8::2:1", Some(1)).is_none(), "the same /64");
        assert!(enter("2001:db8:0:1::1", Some(1)).is_some());
        assert_eq!(gate.open(), 3);
        drop((two, three, six));
        assert_eq!(gate.open(), 0);
        assert!(gate.by_address.lock().unwrap().is_empty(), "nothing is kept of clients that left");
    }

    #[tokio::test]
    async fn room_comes_with_the_end_of_a_connection_and_with_a_higher_limit() {
        let gate = Arc::new(Gate::new(2));
        let permit = gate.enter([192, 0, 2, 1].into(), None).unwrap();
        gate.room().await;
        gate.set_limit(1);
        let mut waiting = Box::pin(gate.room());
        assert!(waiting.as_mut().now_or_never().is_none());
        let mut other = Box::pin(gate.room());
        assert!(other.as_mut().now_or_never().is_none());
        gate.set_limit(2);
        other.await;
        gate.set_limit(1);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(permit);
        waiting.await;
        gate.empty().await;
    }

    #[tokio::test]
    async fn room_is_to_be_made_from_nine_tenths_on() {
        for (open, leaving, limit, expected) in [
            (0, 0, 10, 0),
            (8, 0, 10, 0),
            (9, 0, 10, 1),
            (10, 0, 10, 2),
            (10, 1, 10, 1),
            (10, 2, 10, 0),
            (1, 0, 2, 0),
            (2, 0, 2, 1),
            (1, 0, 1, 1),
            (9_000, 0, 9_000, 901),
            (50, 0, 10, 42),
            (0, 3, 10, 0),
        ] {
            assert_eq!(excess(open, leaving, limit), expected, "{open} open, {leaving} leaving, {limit}");
        }
        let gate = Arc::new(Gate::new(2));
        let _one = gate.enter([192, 0, 2, 1].into(), None).unwrap();
        let mut crowded = Box::pin(gate.crowded());
        assert!(crowded.as_mut().now_or_never().is_none());
        let _two = gate.enter([192, 0, 2, 1].into(), None).unwrap();
        crowded.await;
        assert_eq!(gate.excess(), 1);
        gate.leaves();
        assert_eq!(gate.excess(), 0);
        gate.left();
        assert_eq!(gate.excess(), 1);
    }
}
