//! Which server gets a request, and which servers there are.

use std::collections::HashMap;
use std::sync::Arc;

use super::endpoint::{Endpoint, InFlight};
use super::spec::{UpstreamSpec, UpstreamTimeouts};
use crate::telemetry::Metrics;

/// One upstream, shared by all workers.
#[derive(Debug)]
pub struct Balancer {
    name: Arc<str>,
    endpoints: Box<[Arc<Endpoint>]>,
    timeouts: UpstreamTimeouts,
}

/// The upstream has no server. Cannot happen with a plan that was validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the upstream has no server")]
pub struct NoEndpoint;

impl Balancer {
    /// Picks by power of two choices: of two servers at random, the one with fewer requests in flight. Takes no lock.
    pub fn pick(&self) -> Result<InFlight, NoEndpoint> {
        let chosen = match &*self.endpoints {
            [] => return Err(NoEndpoint),
            [only] => only,
            several => &several[choose(several.len(), rand::random(), |n| several[n].in_flight())],
        };
        Ok(InFlight::new(chosen.clone()))
    }

    /// Its name in the file, or the URL.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its servers.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// How long its servers may take.
    pub fn timeouts(&self) -> &UpstreamTimeouts {
        &self.timeouts
    }
}

/// Of `len` (at least two) servers, two different ones by `dice`, and of these the less loaded; the first one if they are equal.
fn choose(len: usize, dice: u64, load: impl Fn(usize) -> i64) -> usize {
    let first = (dice & 0xffff_ffff) as usize % len;
    let second = (first + 1 + (dice >> 32) as usize % (len - 1)) % len;
    if load(second) < load(first) { second } else { first }
}

/// Every upstream of a plan.
#[derive(Debug, Default)]
pub struct Upstreams {
    by_name: HashMap<Arc<str>, Arc<Balancer>>,
    next_id: u64,
}

impl Upstreams {
    /// Builds the upstreams of a plan. Servers that `previous` holds under the same upstream are taken over.
    pub fn build(specs: &[UpstreamSpec], previous: Option<&Upstreams>, metrics: &Metrics) -> Self {
        let mut next_id = previous.map_or(0, |p| p.next_id);
        let by_name = specs
            .iter()
            .map(|spec| {
                let held = previous.and_then(|p| p.by_name.get(&spec.name));
                let endpoints = spec
                    .servers
                    .iter()
                    .map(|server| {
                        let known = held.and_then(|b| b.endpoints.iter().find(|e| e.spec() == server));
                        known.cloned().unwrap_or_else(|| {
                            next_id += 1;
                            Arc::new(Endpoint::new(next_id, spec.name.clone(), server.clone(), metrics))
                        })
                    })
                    .collect();
                let balancer = Balancer { name: spec.name.clone(), endpoints, timeouts: spec.timeouts };
                (spec.name.clone(), Arc::new(balancer))
            })
            .collect();
        Self { by_name, next_id }
    }

    /// The upstream of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Balancer>> {
        self.by_name.get(name)
    }

    /// Every server.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.by_name.values().flat_map(|balancer| balancer.endpoints.iter())
    }

    /// Forgets the metrics of servers that `next` does not hold any more. To be called when `next` is in force.
    pub fn retire(&self, next: &Upstreams, metrics: &Metrics) {
        let kept: std::collections::HashSet<u64> = next.endpoints().map(|e| e.id()).collect();
        for endpoint in self.endpoints().filter(|e| !kept.contains(&e.id())) {
            metrics.forget_server(endpoint.upstream(), endpoint.label());
        }
        for name in self.by_name.keys().filter(|name| !next.by_name.contains_key(*name)) {
            metrics.forget_upstream(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::spec::{ServerHost, ServerSpec};
    use super::*;

    fn spec(name: &str, ports: &[u16]) -> UpstreamSpec {
        UpstreamSpec {
            name: name.into(),
            servers: ports
                .iter()
                .map(|port| ServerSpec::new(ServerHost::Ip([127, 0, 0, 1].into()), *port))
                .collect(),
            timeouts: UpstreamTimeouts::default(),
        }
    }

    #[test]
    fn servers_outlive_a_reload_with_their_counts() {
        let metrics = Metrics::new("0");
        let first = Upstreams::build(&[spec("a", &[1, 2])], None, &metrics);
        let busy = first.get("a").unwrap().pick().unwrap();
        let second = Upstreams::build(&[spec("a", &[2, 1, 3]), spec("b", &[1])], Some(&first), &metrics);
        let ids = |u: &Upstreams, name: &str| -> Vec<u64> {
            u.get(name).unwrap().endpoints().iter().map(|e| e.id()).collect()
        };
        assert_eq!(ids(&first, "a"), [1, 2]);
        assert_eq!(ids(&second, "a"), [2, 1, 3]);
        assert_eq!(ids(&second, "b"), [4], "the same address under another name is another server");
        let count: i64 = second.endpoints().map(|e| e.in_flight()).sum();
        assert_eq!(count, 1);
        drop(busy);
        assert_eq!(second.endpoints().map(|e| e.in_flight()).sum::<i64>(), 0);
        let third = Upstreams::build(&[spec("a", &[1])], Some(&second), &metrics);
        second.retire(&third, &metrics);
        let text = metrics.render();
        assert!(text.contains("upstream_up{upstream=\"a\",server=\"http://127.0.0.1:1\"} 1"));
        assert!(
            !text.contains(":2\"") && !text.contains(":3\"") && !text.contains("upstream=\"b\""),
            "{text}"
        );
    }

    #[test]
    fn a_busy_server_gets_less() {
        let metrics = Metrics::new("0");
        let upstreams = Upstreams::build(&[spec("a", &[1, 2])], None, &metrics);
        let balancer = upstreams.get("a").unwrap();
        let held: Vec<_> = (0..100).map(|_| balancer.pick().unwrap()).collect();
        let counts: Vec<i64> = balancer.endpoints().iter().map(|e| e.in_flight()).collect();
        assert_eq!(counts, [50, 50], "two choices of two are all");
        drop(held);
        let empty =
            Balancer { name: "x".into(), endpoints: Box::default(), timeouts: UpstreamTimeouts::default() };
        assert!(matches!(empty.pick(), Err(NoEndpoint)));
    }

    proptest! {
        #[test]
        fn two_different_ones_are_compared(len in 2_usize..50, dice: u64, loads in prop::collection::vec(0_i64..10, 50)) {
            let asked = std::cell::RefCell::new(Vec::new());
            let chosen = choose(len, dice, |n| {
                asked.borrow_mut().push(n);
                loads[n]
            });
            let asked = asked.into_inner();
            prop_assert!(asked.len() == 2 && asked[0] != asked[1] && asked.iter().all(|n| *n < len));
            prop_assert!(asked.contains(&chosen));
            prop_assert_eq!(loads[chosen], asked.iter().map(|n| loads[*n]).min().unwrap());
        }
    }
}
