//! One upstream: its servers, who of them gets a request, and what comes of it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::Notify;

use super::budget::Budget;
use super::endpoint::{Endpoint, InFlight};
use super::health::{Outcome, now_ms};
use super::request::{Ask, Preference, Tried, cookie};
use super::spec::{BalanceSpec, RetrySpec, ServerHost, ServerSpec, UpstreamSpec, UpstreamTimeouts};
use super::sticky::{Sticky, Token};
use super::table::{Pick, Table};
use crate::secret::SecretError;
use crate::telemetry::{Counter, Metrics, RETRY_REASONS};

/// One upstream, shared by all workers.
#[derive(Debug)]
pub struct Balancer {
    spec: UpstreamSpec,
    sticky: Option<Sticky>,
    /// Swapped when a name resolves to other addresses.
    table: ArcSwap<Table>,
    /// What is behind the names among the servers. Not for requests.
    names: Mutex<Names>,
    resolved: Notify,
    memory: Arc<Memory>,
    /// Somebody is looking whether one more server may be left out.
    ejecting: AtomicBool,
    retries: [Counter; RETRY_REASONS.len()],
    metrics: Arc<Metrics>,
    common: Arc<Common>,
}

/// What of an upstream outlives a reload, apart from its servers.
#[derive(Debug)]
struct Memory {
    budget: Budget,
    cursor: AtomicUsize,
}

/// What all upstreams of a process share.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) next_id: AtomicU64,
    /// Counts changes of servers.
    pub(super) version: AtomicU64,
}

#[derive(Debug)]
struct Names {
    /// For each server of the plan; `None`: not known yet. A server with an address needs none.
    found: Vec<Option<Vec<Found>>>,
    /// Another plan is in force: changes are of no concern any more.
    is_retired: bool,
}

/// A place that a name or a service resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    /// Where it is.
    pub address: IpAddr,
    /// For a target of a service.
    pub target: Option<Target>,
}

/// What a record of a service says (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The host's name.
    pub name: Arc<str>,
    /// Its port.
    pub port: u16,
    /// 1 to 256.
    pub weight: u16,
    /// Whether others have a better priority.
    pub backup: bool,
}

/// Why no server gets the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// None is left: all are drained, or have been tried.
    #[error("no server of the upstream can be used")]
    Nobody,
    /// All that could take it have as many requests as they may.
    #[error("every server of the upstream has as many requests as it may")]
    Full,
    /// Its names were not resolved yet: wait for [`Balancer::resolved`].
    #[error("the upstream's names are being resolved")]
    Pending,
    /// Its names do not resolve.
    #[error("the upstream's names do not resolve")]
    Unresolved,
}

impl Balancer {
    /// Takes over what `previous` knows of the same servers. `Err` if a secret cannot be read. Blocking for a file at most.
    pub(super) fn new(
        spec: &UpstreamSpec,
        previous: Option<&Balancer>,
        is_start: bool,
        common: &Arc<Common>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, SecretError> {
        let known = |server: &ServerSpec| -> Option<Vec<Found>> {
            let previous = previous?;
            let n = previous.spec.servers.iter().position(|other| other.place() == server.place())?;
            previous.names().found[n].clone()
        };
        let found = spec.servers.iter().map(known).collect();
        let memory = previous.map_or_else(
            || Arc::new(Memory { budget: Budget::new(now_ms()), cursor: AtomicUsize::new(0) }),
            |previous| previous.memory.clone(),
        );
        let balancer = Self {
            sticky: spec.sticky.as_ref().map(Sticky::new).transpose()?,
            table: ArcSwap::from_pointee(Table::default()),
            names: Mutex::new(Names { found, is_retired: false }),
            resolved: Notify::new(),
            memory,
            ejecting: AtomicBool::new(false),
            retries: RETRY_REASONS.map(|reason| metrics.retries(&spec.name, reason)),
            metrics: metrics.clone(),
            common: common.clone(),
            spec: spec.clone(),
        };
        let held = previous.map(|p| p.table.load_full());
        let table = balancer.make_table(
            &balancer.names().found,
            held.as_ref().map_or(&[], |t| &t.endpoints),
            is_start,
        );
        balancer.table.store(Arc::new(table));
        Ok(balancer)
    }

    /// What `ask` says about the server that is to answer it.
    pub fn prefer(&self, ask: &Ask<'_>) -> Preference {
        let key = match &self.spec.balance {
            BalanceSpec::Hash(key) => key.of(ask).max(1),
            _ => 0,
        };
        let token = self.sticky.as_ref().and_then(|s| Token::parse(cookie(ask.headers, &s.cookie)?));
        Preference { key, token }
    }

    /// Picks a server that was not tried, and counts a request for it. Takes no lock and allocates nothing.
    ///
    /// Servers that are up come first, then backups, then all that are not drained: if all are down, all are tried.
    pub fn pick(&self, preference: &Preference, tried: &Tried) -> Result<InFlight, NoEndpoint> {
        let table = self.table.load();
        let slow_start = u64::try_from(self.spec.slow_start.as_millis()).unwrap_or(u64::MAX);
        let pick = Pick { preference, tried, cursor: &self.memory.cursor, slow_start };
        table.pick(&pick).ok_or_else(|| {
            if !table.endpoints.is_empty() {
                return if table.has_full(tried) { NoEndpoint::Full } else { NoEndpoint::Nobody };
            }
            if self.is_pending() { NoEndpoint::Pending } else { NoEndpoint::Unresolved }
        })
    }

    /// Takes note of how a request went, and leaves the server out for a while if that was too much.
    pub fn report(&self, in_flight: &InFlight, outcome: Outcome) {
        let Some(passive) = &self.spec.passive else { return };
        let endpoint = in_flight.endpoint();
        if outcome == Outcome::Fine && endpoint.health.is_untroubled() {
            return;
        }
        let now = now_ms();
        if !endpoint.health.note(outcome, passive, now)
            || endpoint.health.is_ejected()
            || self.ejecting.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let table = self.table.load();
        let out = |e: &&Arc<Endpoint>| e.health.is_ejected() && !e.health.readmit(now);
        // At most half: one bad URL must not empty the upstream.
        let room = (table.endpoints.iter().filter(out).count() + 1) * 2 <= table.endpoints.len();
        // What fails now is worse than what failed then: who has been out longest has its turn to show that it is well again.
        let makes_room = || {
            let oldest = table.endpoints.iter().filter(out).min_by_key(|e| e.health.out_since());
            oldest.is_some_and(|e| e.health.release(now))
        };
        if room || makes_room() {
            let length = endpoint.health.eject(passive, now);
            endpoint.show();
            tracing::warn!(
                upstream = %self.spec.name,
                server = %endpoint.label(),
                seconds = length / 1000,
                "requests to a server fail; it gets none for a while"
            );
        }
        self.ejecting.store(false, Ordering::Release);
    }

    /// How many servers could be asked that were not tried.
    pub fn others(&self, tried: &Tried) -> usize {
        self.table.load().others(tried)
    }

    /// Whether a server that was not tried is up and has room for a request.
    pub fn has_other(&self, tried: &Tried) -> bool {
        self.table.load().has_other(tried)
    }

    /// Whether a server that was not tried is up and has room, and nothing says that requests to it fail.
    pub fn has_untroubled(&self, tried: &Tried) -> bool {
        self.table.load().has_untroubled(tried)
    }

    /// Counts a request: a share of them may be repeated.
    pub fn count_request(&self) {
        self.memory.budget.request();
    }

    /// The right to repeat a request that a server has had already, if the budget has one left.
    pub fn may_repeat(&self) -> bool {
        self.memory.budget.withdraw(self.spec.retries.budget, now_ms())
    }

    /// Counts a retry; `reason` is an index of [`RETRY_REASONS`].
    pub fn count_retry(&self, reason: usize) {
        self.retries[reason].inc();
    }

    /// The cookie that an answer of `endpoint` has to set, unless the request had it. `secure`: the client came by TLS.
    pub fn cookie(&self, endpoint: &Endpoint, preference: &Preference, secure: bool) -> Option<HeaderValue> {
        self.sticky.as_ref()?;
        let table = self.table.load();
        let cookie = table.cookie(endpoint)?;
        (preference.token != Some(cookie.token))
            .then(|| if secure { cookie.secure.clone() } else { cookie.plain.clone() })
    }

    /// Its name in the file, or the URL.
    pub fn name(&self) -> &Arc<str> {
        &self.spec.name
    }

    /// What the configuration says of it.
    pub fn spec(&self) -> &UpstreamSpec {
        &self.spec
    }

    /// Its servers at this moment.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.table.load().endpoints.to_vec()
    }

    /// How long its servers may take.
    pub fn timeouts(&self) -> &UpstreamTimeouts {
        &self.spec.timeouts
    }

    /// When a request is tried elsewhere.
    pub fn retries(&self) -> &RetrySpec {
        &self.spec.retries
    }

    /// Whether requests have to wait: nothing is known of its names yet.
    fn is_pending(&self) -> bool {
        let names = self.names();
        self.spec
            .servers
            .iter()
            .zip(&names.found)
            .any(|(server, found)| !server.is_fixed() && found.is_none())
    }

    /// Waits until its names have been resolved, well or not.
    pub async fn resolved(&self) {
        loop {
            let resolved = self.resolved.notified();
            if !self.is_pending() {
                return;
            }
            resolved.await;
        }
    }

    /// Ends when its servers are others than at the time of the call.
    pub fn changed(&self) -> impl Future<Output = ()> {
        self.resolved.notified()
    }

    /// The servers that are names, with their index for [`Balancer::found`].
    pub fn unresolved(&self) -> impl Iterator<Item = (usize, &ServerSpec)> {
        self.spec.servers.iter().enumerate().filter(|(_, server)| !server.is_fixed())
    }

    /// Takes note of where the server `index` is found. Addresses that stay keep their health and their counts. An empty list
    /// means that it does not resolve: what was found before stays.
    pub fn found(&self, index: usize, found: Vec<Found>) {
        {
            let mut names = self.names();
            let Some(slot) = names.found.get(index) else { return };
            let is_news = match slot {
                Some(known) => !found.is_empty() && *known != found,
                None => true,
            };
            if names.is_retired || !is_news {
                return;
            }
            names.found[index] = Some(found);
            let held = self.table.load_full();
            let is_start = held.endpoints.is_empty();
            let next = Arc::new(self.make_table(&names.found, &held.endpoints, is_start));
            next.enforce();
            self.table.store(next.clone());
            for gone in held.endpoints.iter().filter(|e| !next.endpoints.iter().any(|n| n.id() == e.id())) {
                self.metrics.forget_server(gone.upstream(), gone.label());
            }
            self.common.version.fetch_add(1, Ordering::Release);
        }
        self.resolved.notify_waiters();
    }

    /// Ends changes: another plan is in force.
    pub(super) fn retire(&self) {
        self.names().is_retired = true;
    }

    pub(super) fn enforce(&self) {
        self.table.load().enforce();
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_table(&self, found: &[Option<Vec<Found>>], held: &[Arc<Endpoint>], is_start: bool) -> Table {
        let mut servers: Vec<(ServerSpec, Arc<Endpoint>)> = Vec::new();
        for (server, found) in self.spec.servers.iter().zip(found) {
            for spec in places(server, found.as_deref().unwrap_or_default()) {
                let place = spec.place();
                if servers.iter().any(|(_, endpoint)| *endpoint.spec() == place) {
                    continue;
                }
                let known = held.iter().find(|endpoint| *endpoint.spec() == place);
                let endpoint = known.cloned().unwrap_or_else(|| {
                    let id = 1 + self.common.next_id.fetch_add(1, Ordering::Relaxed);
                    Arc::new(Endpoint::new(id, self.spec.name.clone(), place, !is_start, &self.metrics))
                });
                servers.push((spec, endpoint));
            }
        }
        Table::new(&self.spec.name, servers, &self.spec.balance, self.sticky.as_ref())
    }
}

/// The servers that one line of the plan stands for.
fn places(server: &ServerSpec, found: &[Found]) -> Vec<ServerSpec> {
    if server.is_fixed() {
        return vec![server.clone()];
    }
    let place = |found: &Found| {
        let address = Some(found.address);
        match &found.target {
            None => ServerSpec { address, ..server.clone() },
            Some(target) => ServerSpec {
                host: ServerHost::Name(target.name.clone()),
                port: target.port,
                weight: target.weight,
                backup: server.backup || target.backup,
                address,
                ..server.clone()
            },
        }
    };
    found.iter().map(place).collect()
}

#[cfg(test)]
mod tests;
