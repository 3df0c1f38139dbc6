//! Every upstream of a plan, and what passes from one plan to the next.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::balancer::{Balancer, Common};
use super::endpoint::Endpoint;
use super::spec::UpstreamSpec;
use crate::secret::SecretError;
use crate::telemetry::Metrics;

/// Every upstream of a plan.
#[derive(Debug, Default)]
pub struct Upstreams {
    by_name: HashMap<Arc<str>, Arc<Balancer>>,
    common: Arc<Common>,
}

/// The secret of an upstream's cookie cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the secret of [upstreams.{upstream}] `sticky` cannot be had: {error}")]
pub struct StickyError {
    /// Whose.
    pub upstream: Arc<str>,
    /// What is wrong.
    pub error: SecretError,
}

impl Upstreams {
    /// Builds the upstreams of a plan. Servers that `previous` holds under the same upstream are taken over with what is known
    /// of them. Reads secrets: blocking.
    pub fn build(
        specs: &[UpstreamSpec],
        previous: Option<&Upstreams>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StickyError> {
        let common = previous.map_or_else(Arc::default, |p| p.common.clone());
        let balancer = |spec: &UpstreamSpec| {
            let held = previous.and_then(|p| p.by_name.get(&spec.name)).map(|held| &**held);
            let balancer = Balancer::new(spec, held, held.is_none(), &common, metrics)
                .map_err(|error| StickyError { upstream: spec.name.clone(), error })?;
            Ok((spec.name.clone(), Arc::new(balancer)))
        };
        let by_name = specs.iter().map(balancer).collect::<Result<_, _>>()?;
        Ok(Self { by_name, common })
    }

    /// The upstream of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Balancer>> {
        self.by_name.get(name)
    }

    /// Every upstream, in any order.
    pub fn balancers(&self) -> impl Iterator<Item = &Arc<Balancer>> {
        self.by_name.values()
    }

    /// Every server at this moment.
    pub fn endpoints(&self) -> impl Iterator<Item = Arc<Endpoint>> {
        self.by_name.values().flat_map(|balancer| balancer.endpoints())
    }

    /// Grows whenever a name resolves to other addresses.
    pub fn version(&self) -> u64 {
        self.common.version.load(Ordering::Acquire)
    }

    /// Puts the bounds of the plan into force.
    pub fn enforce(&self) {
        self.by_name.values().for_each(|balancer| balancer.enforce());
    }

    /// Forgets the metrics of servers that `next` does not hold any more. To be called when `next` is in force.
    pub fn retire(&self, next: &Upstreams, metrics: &Metrics) {
        self.by_name.values().for_each(|balancer| balancer.retire());
        let kept: HashSet<u64> = next.endpoints().map(|e| e.id()).collect();
        for endpoint in self.endpoints().filter(|e| !kept.contains(&e.id())) {
            metrics.forget_server(endpoint.upstream(), endpoint.label());
        }
        for name in self.by_name.keys().filter(|name| !next.by_name.contains_key(*name)) {
            metrics.forget_upstream(name);
        }
        next.enforce();
    }
}
