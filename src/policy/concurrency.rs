//! `concurrency`: so many requests at a time. A permit is a guard: it is given back however the request ends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::conn::network;

/// Addresses are counted apart, so that workers seldom meet. What is held is bounded by the requests in flight.
const SHARDS: usize = 16;

/// So many requests at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrencySpec {
    /// At least 1.
    pub requests: usize,
    /// Of each address (IPv6: /64) rather than of the route.
    pub by_ip: bool,
}

/// A rule and the requests that it counts, of all workers. Survives reloads that do not change the rule.
#[derive(Debug)]
pub(super) struct Concurrency {
    spec: ConcurrencySpec,
    counts: Counts,
}

#[derive(Debug)]
enum Counts {
    One(AtomicUsize),
    Keyed(Box<[Mutex<HashMap<IpAddr, usize>>; SHARDS]>),
}

/// One request in flight.
#[derive(Debug)]
pub struct Permit {
    rule: Arc<Concurrency>,
    client: IpAddr,
}

impl Concurrency {
    pub(super) fn new(spec: &ConcurrencySpec) -> Self {
        let counts = match spec.by_ip {
            true => Counts::Keyed(Box::new(std::array::from_fn(|_| Mutex::default()))),
            false => Counts::One(AtomicUsize::new(0)),
        };
        Self { spec: spec.clone(), counts }
    }

    /// Whether it is the rule of `spec`: then it is kept over a reload.
    pub(super) fn is(&self, spec: &ConcurrencySpec) -> bool {
        self.spec == *spec
    }

    /// Counts a request of `client`; `None` if there are as many as there may be.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Permit> {
        let client = network(client);
        match &self.counts {
            Counts::One(count) => {
                let room = |count: usize| (count < self.spec.requests).then_some(count + 1);
                count.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
            }
            Counts::Keyed(shards) => {
                let mut counts = shard(shards, client);
                let count = counts.entry(client).or_default();
                if *count >= self.spec.requests {
                    return None;
                }
                *count += 1;
            }
        }
        Some(Permit { rule: self.clone(), client })
    }
}

fn shard(
    shards: &[Mutex<HashMap<IpAddr, usize>>; SHARDS],
    client: IpAddr,
) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    let sum = match client {
        IpAddr::V4(v4) => v4.octets().iter().fold(0, |sum: usize, byte| sum * 31 + usize::from(*byte)),
        IpAddr::V6(v6) => {
            v6.octets().iter().fold(0, |sum: usize, byte| sum.wrapping_mul(31) + usize::from(*byte))
        }
    };
    shards[sum % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Permit {
    fn drop(&mut self) {
        match &self.rule.counts {
            Counts::One(count) => drop(count.fetch_sub(1, Ordering::AcqRel)),
            Counts::Keyed(shards) => {
                let mut counts = shard(shards, self.client);
                if let Some(count) = counts.get_mut(&self.client) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&self.client);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_makes_room_and_nothing_is_kept() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let rule = Arc::new(Concurrency::new(&ConcurrencySpec { requests: 2, by_ip: true }));
        let (one, _two) = (rule.enter(ip("192.0.2.1")).unwrap(), rule.enter(ip("::ffff:192.0.2.1")).unwrap());
        assert!(rule.enter(ip("192.0.2.1")).is_none());
        let other = rule.enter(ip("192.0.2.2")).unwrap();
        drop(one);
        let three = rule.enter(ip("192.0.2.1")).unwrap();
        let six =
            (rule.enter(ip("2001:db8::1")), rule.enter(ip("2001:db8::2")), rule.enter(ip("2001:db8::3")));
        assert!(six.0.is_some() && six.1.is_some() && six.2.is_none(), "a /64 is one client");
        drop((_two, other, three, six));
        let Counts::Keyed(shards) = &rule.counts else { panic!() };
        assert!(shards.iter().all(|shard| shard.lock().unwrap().is_empty()));

        let rule = Arc::new(Concurrency::new(&ConcurrencySpec { requests: 1, by_ip: false }));
        let one = rule.enter(ip("192.0.2.1"));
        assert!(one.is_some() && rule.enter(ip("192.0.2.2")).is_none());
        drop(one);
        assert!(rule.enter(ip("192.0.2.2")).is_some());
    }
}
