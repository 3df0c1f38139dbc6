//! The servers of an upstream at one moment, with everything that choosing one of them needs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::choice::{Choice, Draw, Ring, Sequence, View};
use super::endpoint::{Endpoint, InFlight};
use super::health::now_ms;
use super::request::{Preference, Tried};
use super::spec::{BalanceSpec, ServerSpec};
use super::sticky::{Cookie, Sticky, Token};

/// A server that comes (back) gets at least this share of what it is due, in thousandths.
const SLOWEST: u64 = 50;
/// Another worker may take a server's last free place between looking and taking; then it is looked again, so often.
const LOOKS: usize = 3;

/// The servers of an upstream.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) endpoints: Box<[Arc<Endpoint>]>,
    main: Group,
    backup: Group,
    by_token: HashMap<Token, (bool, usize)>,
}

/// Servers of the same rank.
#[derive(Debug, Default)]
struct Group {
    slots: Box<[Slot]>,
    weights: Box<[u32]>,
    choice: Option<Choice>,
}

#[derive(Debug)]
struct Slot {
    endpoint: Arc<Endpoint>,
    max_requests: i64,
    max_connections: u32,
    cookie: Option<Cookie>,
}

/// How a server must be to get a request, from the best to the last resort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standard {
    /// Up, and warm enough.
    Warm,
    Up,
    /// Not drained.
    Any,
}

/// Everything of a pick that is not the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pick<'a> {
    pub(super) preference: &'a Preference,
    pub(super) tried: &'a Tried,
    pub(super) cursor: &'a AtomicUsize,
    /// Milliseconds; 0: off.
    pub(super) slow_start: u64,
}

impl Table {
    /// `servers` as the plan has them, each with its endpoint.
    pub(super) fn new(
        upstream: &str,
        servers: Vec<(ServerSpec, Arc<Endpoint>)>,
        balance: &BalanceSpec,
        sticky: Option<&Sticky>,
    ) -> Self {
        let endpoints = servers.iter().map(|(_, endpoint)| endpoint.clone()).collect();
        let (backup, main): (Vec<_>, Vec<_>) = servers.into_iter().partition(|(spec, _)| spec.backup);
        let group = |servers| Group::new(upstream, servers, balance, sticky);
        let (main, backup) = (group(main), group(backup));
        let mut by_token = HashMap::new();
        for (is_backup, group) in [(false, &main), (true, &backup)] {
            for (n, slot) in group.slots.iter().enumerate() {
                by_token.extend(slot.cookie.as_ref().map(|cookie| (cookie.token, (is_backup, n))));
            }
        }
        Self { endpoints, main, backup, by_token }
    }

    /// Counts a request for a server that can take it.
    pub(super) fn pick(&self, pick: &Pick<'_>) -> Option<InFlight> {
        if let Some((is_backup, n)) = pick.preference.token.and_then(|token| self.by_token.get(&token)) {
            let slot = if *is_backup { &self.backup.slots[*n] } else { &self.main.slots[*n] };
            if slot.can_take(Standard::Up, pick)
                && let Some(taken) = slot.endpoint.admit(slot.max_requests)
            {
                return Some(taken);
            }
        }
        let warm = if pick.slow_start > 0 { self.main.pick(Standard::Warm, pick) } else { None };
        warm.or_else(|| self.main.pick(Standard::Up, pick))
            .or_else(|| self.backup.pick(Standard::Up, pick))
            .or_else(|| self.main.pick(Standard::Any, pick))
            .or_else(|| self.backup.pick(Standard::Any, pick))
    }

    /// The cookie of a server.
    pub(super) fn cookie(&self, endpoint: &Endpoint) -> Option<&Cookie> {
        self.slots().find(|slot| slot.endpoint.id() == endpoint.id()).and_then(|slot| slot.cookie.as_ref())
    }

    /// Whether a server that was not tried could get a request if it had a free place.
    pub(super) fn has_full(&self, tried: &Tried) -> bool {
        self.slots().any(|slot| {
            !slot.endpoint.health.is_drained() && !tried.has(slot.endpoint.id()) && slot.is_full()
        })
    }

    /// How many were not tried and are not drained, as far as anybody needs to know.
    pub(super) fn others(&self, tried: &Tried) -> usize {
        let other = |slot: &&Slot| !slot.endpoint.health.is_drained() && !tried.has(slot.endpoint.id());
        self.slots().filter(other).take(Tried::MOST).count()
    }

    /// Whether one that was not tried is up and has a free place.
    pub(super) fn has_other(&self, tried: &Tried) -> bool {
        self.slots().any(|slot| slot.is_other(tried))
    }

    /// Whether one of these is not known to fail.
    pub(super) fn has_untroubled(&self, tried: &Tried) -> bool {
        self.slots().any(|slot| slot.is_other(tried) && !slot.endpoint.health.is_ailing())
    }

    /// Puts the plan's bounds of connections into force.
    pub(super) fn enforce(&self) {
        for slot in self.slots() {
            slot.endpoint.limit_connections(slot.max_connections);
        }
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.main.slots.iter().chain(&self.backup.slots)
    }
}

impl Group {
    fn new(
        upstream: &str,
        servers: Vec<(ServerSpec, Arc<Endpoint>)>,
        balance: &BalanceSpec,
        sticky: Option<&Sticky>,
    ) -> Self {
        let weights: Box<[u32]> = servers.iter().map(|(spec, _)| u32::from(spec.weight.max(1))).collect();
        let choice = (!servers.is_empty()).then(|| match balance {
            BalanceSpec::P2c => Choice::P2c(Draw::new(&weights)),
            BalanceSpec::Random => Choice::Random(Draw::new(&weights)),
            BalanceSpec::RoundRobin => Choice::RoundRobin(Sequence::new(&weights)),
            BalanceSpec::Hash(_) => {
                Choice::Hash(Ring::new(servers.iter().map(|(_, endpoint)| &**endpoint.label()), &weights))
            }
        });
        let slot = |(spec, endpoint): (ServerSpec, Arc<Endpoint>)| Slot {
            cookie: sticky.and_then(|sticky| sticky.cookie(upstream, endpoint.label())),
            max_requests: spec.max_requests.map_or(i64::MAX, |max| i64::from(max.get())),
            max_connections: spec.max_connections.map_or(0, |max| max.get()),
            endpoint,
        };
        Self { slots: servers.into_iter().map(slot).collect(), weights, choice }
    }

    fn pick(&self, standard: Standard, pick: &Pick<'_>) -> Option<InFlight> {
        let choice = self.choice.as_ref()?;
        let view = View {
            usable: |n: usize| self.slots[n].can_take(standard, pick),
            load: |n: usize| self.slots[n].endpoint.in_flight(),
            weights: &self.weights,
            key: pick.preference.key,
            cursor: pick.cursor,
        };
        (0..LOOKS).find_map(|_| {
            let slot = &self.slots[choice.choose(&view)?];
            slot.endpoint.admit(slot.max_requests)
        })
    }
}

impl Slot {
    fn is_full(&self) -> bool {
        self.endpoint.in_flight() >= self.max_requests
    }

    fn is_other(&self, tried: &Tried) -> bool {
        !tried.has(self.endpoint.id()) && !self.is_full() && self.endpoint.health.is_up()
    }

    fn can_take(&self, standard: Standard, pick: &Pick<'_>) -> bool {
        let well = match standard {
            Standard::Warm => self.endpoint.health.is_up() && self.is_warm(pick),
            Standard::Up => self.endpoint.health.is_up(),
            Standard::Any => !self.endpoint.health.is_drained(),
        };
        well && !self.is_full() && !pick.tried.has(self.endpoint.id())
    }

    /// By a dice that gets better with time. Keys have dice of their own, so that each of them moves once.
    fn is_warm(&self, pick: &Pick<'_>) -> bool {
        let Some(age) = self.endpoint.health.age(now_ms()).filter(|age| *age < pick.slow_start) else {
            return true;
        };
        let dice = match pick.preference.key {
            0 => rand::random::<u64>(),
            key => key.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        ((dice >> 32) * 1000) >> 32 < (age * 1000 / pick.slow_start).max(SLOWEST)
    }
}
