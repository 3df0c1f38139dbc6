//! How many connections may be open.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::conn::network;

/// Counts the open connections of all workers.
#[derive(Debug, Default)]
pub(super) struct Gate {
    open: AtomicUsize,
    /// Told when a connection has ended.
    freed: Notify,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One open connection. Dropping it makes room.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Arc<Gate>,
    counted: Option<IpAddr>,
}

impl Gate {
    /// Open connections now.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until fewer than `limit` connections are open.
    pub(super) async fn room(&self, limit: usize) {
        while self.open() >= limit {
            let freed = self.freed.notified();
            if self.open() < limit {
                return;
            }
            freed.await;
        }
    }

    /// Waits until no connection is open.
    pub(super) async fn empty(&self) {
        self.room(1).await;
    }

    /// Counts a connection of `peer`; `None` if it already has `per_ip` of them.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr, per_ip: Option<usize>) -> Option<Permit> {
        self.open.fetch_add(1, Ordering::AcqRel);
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

/// The limit for connections over all listeners: as configured, else 90 % of half of what the process may open, since a request
/// needs a second file for its server.
pub(super) fn limit(configured: Option<usize>, files: u64) -> usize {
    configured.unwrap_or_else(|| usize::try_from(files / 2 / 10 * 9).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn an_address_has_its_share_and_gets_it_back() {
        let gate = Arc::new(Gate::default());
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
    async fn room_comes_with_the_end_of_a_connection() {
        let gate = Arc::new(Gate::default());
        let permit = gate.enter([192, 0, 2, 1].into(), None).unwrap();
        gate.room(2).await;
        let mut waiting = Box::pin(gate.room(1));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(permit);
        waiting.await;
        gate.empty().await;
    }

    #[test]
    fn the_default_leaves_files_for_the_servers() {
        assert_eq!(limit(None, 1024), 459);
        assert_eq!(limit(Some(7), 1024), 7);
        assert!(limit(None, u64::MAX) > 1_000_000_000);
        assert_eq!(limit(None, 1), 1);
    }
}
