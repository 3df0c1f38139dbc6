//! The loop: a heap of moments, and for each of them what the engine decides and what the world makes of it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ca::{Ca, Order, Refused, Signed};
use super::outcome::{Hour, Outcome, Renewal};
use super::scenario::{Scenario, SimulatedCert};
use crate::certs::hours::{Hours, Place};
use crate::certs::policy::{FLEET, Held, Terms, mix};
use crate::certs::state::{Action, Event, Machine};
use crate::issuer::{FailureClass, IssueError, Retry, Spent};
use crate::ledger::{Ask, Book};
use crate::name::HostPattern;

/// As in production.
const CONCURRENT_ORDERS: usize = 8;
const HOUR: Duration = Duration::from_secs(3600);
/// The share of killed orders whose URL was not written yet.
const LOST: f64 = 0.1;
/// How long the process is away at a restart.
const RESTART: Duration = Duration::from_secs(20);
/// After an outage or a revocation has ended, what was held up comes within this time.
const CATCH_UP: Duration = Duration::from_secs(27 * 3600);

/// Runs a scenario to its end.
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario);
    let end = scenario.start + scenario.length;
    let mut restarts = scenario.restarts.iter().copied().peekable();
    loop {
        let next = world.heap.peek().map(|Reverse(entry)| entry.at());
        if let Some(restart) = restarts.next_if(|at| next.is_none_or(|next| *at <= next)) {
            world.restart(restart);
            continue;
        }
        let Some(Reverse(entry)) = world.heap.pop() else { break };
        if entry.at() >= end {
            break;
        }
        world.handle(entry);
    }
    world.finish(end)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Nanoseconds since the epoch: compared hundreds of millions of times.
    at: u64,
    certificate: usize,
    /// An entry of a former turn says nothing any more.
    turn: u32,
}

impl Entry {
    fn new(at: SystemTime, certificate: usize, turn: u32) -> Self {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { at: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), certificate, turn }
    }

    fn at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.at)
    }
}

struct World<'a> {
    scenario: &'a Scenario,
    rng: StdRng,
    cas: Vec<Ca>,
    books: Vec<Book>,
    certificates: Vec<Certificate<'a>>,
    heap: BinaryHeap<Reverse<Entry>>,
    hours: Arc<Hours>,
    waiting: VecDeque<usize>,
    running: usize,
    outcome: Outcome,
}

struct Certificate<'a> {
    wanted: &'a SimulatedCert,
    terms: Vec<Terms>,
    machine: Machine,
    place: Place,
    signed: Option<(usize, Signed)>,
    /// The CAs that have signed for it, as storage shows.
    signers: Vec<usize>,
    /// An order that a CA has taken: kept over restarts, as its URL is in production.
    order: Option<Pending>,
    /// The attempt that runs now. A restart drops it: then nobody settles what was reserved for it.
    attempt: Option<Attempt>,
    queued: bool,
    turn: u32,
}

#[derive(Clone, Copy)]
struct Pending {
    ca: usize,
    order: Order,
}

/// What the ledger was asked, and whether the account was registered since.
#[derive(Clone, Copy)]
struct Attempt {
    renewal: bool,
    exempt: bool,
    registers: bool,
    resumes: bool,
}

impl Attempt {
    fn ask<'n>(&self, names: &'n [HostPattern]) -> Ask<'n> {
        let Self { renewal, exempt, registers, resumes } = *self;
        Ask { names, renewal, exempt, registers, resumes }
    }
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let begins = &scenario.begins;
        let mut cas: Vec<Ca> = scenario.cas.iter().cloned().map(Ca::new).collect();
        for registered in &begins.registered {
            cas[*registered].know_us();
        }
        let mut heap = BinaryHeap::new();
        let hours = Arc::new(Hours::default());
        let certificates = scenario.certificates.iter().enumerate().map(|(n, wanted)| {
            heap.push(Reverse(Entry::new(scenario.start, n, 0)));
            let terms: Vec<Terms> = wanted
                .cas
                .iter()
                .map(|ca| Terms {
                    limited: cas[*ca].model.limits.names.is_some(),
                    hints: cas[*ca].model.windows,
                    fleet: scenario.certificates.len() > FLEET,
                })
                .collect();
            let holding = begins.held.get(&n);
            let signers: Vec<usize> = holding
                .iter()
                .flat_map(|holding| &holding.signers)
                .filter_map(|lane| wanted.cas.get(usize::from(*lane)).copied())
                .collect();
            let signed = holding.and_then(|holding| {
                let ca = *wanted.cas.get(usize::from(holding.held.issuer))?;
                let dates = (holding.held.not_before, holding.held.not_after);
                Some((ca, cas[ca].has_signed(&wanted.names, dates)))
            });
            let (held, ari) = (holding.map(|holding| holding.held), holding.and_then(|holding| holding.ari));
            let machine = Machine::new(&terms, held, ari, None, scenario.start);
            Certificate {
                wanted,
                terms,
                machine,
                place: Place::nowhere(hours.clone()),
                signed,
                signers,
                order: None,
                attempt: None,
                queued: false,
                turn: 0,
            }
        });
        let certificates = certificates.collect();
        let length = usize::try_from(scenario.length.as_secs() / 3600).unwrap_or(0) + 1;
        Self {
            rng: StdRng::seed_from_u64(scenario.seed),
            books: (0..cas.len()).map(|ca| begins.counted.get(&ca).cloned().unwrap_or_default()).collect(),
            cas,
            certificates,
            heap,
            hours,
            waiting: VecDeque::new(),
            running: 0,
            outcome: Outcome { hours: vec![Hour::default(); length], ..Outcome::default() },
            scenario,
        }
    }

    /// Everything in memory is lost: what is left is what storage holds.
    fn restart(&mut self, at: SystemTime) {
        self.outcome.restarts += 1;
        self.heap.clear();
        self.waiting.clear();
        self.running = 0;
        let up = at + RESTART;
        for (n, certificate) in self.certificates.iter_mut().enumerate() {
            let (held, ari) = (certificate.machine.held().copied(), certificate.machine.ari().copied());
            let attempts = certificate.machine.attempts();
            certificate.machine = Machine::new(&certificate.terms, held, ari, attempts, up);
            if certificate.attempt.take().is_some() && self.rng.random_bool(LOST) {
                certificate.order = None;
            }
            certificate.queued = false;
            certificate.turn += 1;
            let at = match certificate.machine.next(up) {
                Action::SleepUntil(at) => at,
                Action::Order(_) | Action::PollAri => up,
            };
            certificate.place.move_to(certificate.machine.planned());
            self.heap.push(Reverse(Entry::new(at, n, certificate.turn)));
        }
    }

    fn handle(&mut self, entry: Entry) {
        let (now, n, turn) = (entry.at(), entry.certificate, entry.turn);
        if self.certificates[n].turn != turn {
            return;
        }
        if self.certificates[n].attempt.is_some() {
            self.end_order(n, now);
        }
        self.advance(n, now);
    }

    /// Asks the machine what to do, until it sleeps or orders.
    fn advance(&mut self, n: usize, now: SystemTime) {
        loop {
            self.outcome.steps += 1;
            let certificate = &mut self.certificates[n];
            let action = certificate.machine.next(now);
            certificate.place.move_to(certificate.machine.planned());
            match action {
                Action::SleepUntil(at) => return self.sleep(n, at.max(now)),
                Action::PollAri => {
                    self.outcome.polls += 1;
                    let hint = certificate.signed.map(|(ca, signed)| self.cas[ca].hint(&signed, now));
                    let event = match hint {
                        Some(Ok(hint)) => Event::Hint(hint),
                        Some(Err(())) | None => Event::HintFailed,
                    };
                    let dice = self.rng.random();
                    certificate.machine.step(event, now, dice);
                    certificate.machine.choose(|moment| self.hours.planned(moment), now);
                }
                Action::Order(lane) => {
                    if self.running >= CONCURRENT_ORDERS {
                        if !certificate.queued {
                            certificate.queued = true;
                            self.waiting.push_back(n);
                        }
                        return;
                    }
                    if self.begin_order(n, lane, now) {
                        return;
                    }
                }
            }
        }
    }

    fn sleep(&mut self, n: usize, at: SystemTime) {
        let certificate = &mut self.certificates[n];
        certificate.turn += 1;
        self.heap.push(Reverse(Entry::new(at, n, certificate.turn)));
    }

    /// Whether an order runs now; if not, the machine knows why.
    fn begin_order(&mut self, n: usize, lane: usize, now: SystemTime) -> bool {
        let certificate = &mut self.certificates[n];
        let ca = certificate.wanted.cas[lane];
        let predecessor = certificate.signed.filter(|(signer, _)| *signer == ca).map(|(_, signed)| signed);
        let pending = certificate.order.filter(|pending| pending.ca == ca);
        let attempt = Attempt {
            renewal: certificate.signers.contains(&ca),
            exempt: predecessor.is_some() && certificate.machine.in_window(now),
            registers: !self.cas[ca].knows_us(),
            resumes: pending.is_some(),
        };
        let names = &certificate.wanted.names;
        let ask = attempt.ask(names);
        let (limits, book) = (&self.cas[ca].model.limits.clone(), &mut self.books[ca]);
        if let Err(refusal) = book.begin(limits, &ask, now, certificate.machine.past_floor(now)) {
            self.outcome.held_back += 1;
            let dice = self.rng.random();
            certificate.machine.step(Event::Refused(lane, refusal.until, String::new()), now, dice);
            return false;
        }
        if let Some(pending) = pending {
            certificate.attempt = Some(attempt);
            self.running += 1;
            self.sleep(n, pending.order.ends.max(now + Duration::from_secs(5)));
            return true;
        }
        let registered = self.cas[ca].register(now);
        let ordered =
            registered.and_then(|()| self.cas[ca].new_order(names, predecessor.as_ref(), now, &mut self.rng));
        match ordered {
            Ok(order) => {
                certificate.order = Some(Pending { ca, order });
                certificate.attempt = Some(attempt);
                self.running += 1;
                self.count_hour(now, predecessor.is_none());
                self.sleep(n, order.ends);
                true
            }
            Err(refused) => {
                let registered = attempt.registers && self.cas[ca].knows_us();
                book.settle(limits, &ask, &Spent { registered, ..Spent::default() }, now);
                let error = match refused {
                    Refused::Down => {
                        self.outcome.failed_down += 1;
                        IssueError::new(FailureClass::CaDown, Retry::Backoff, String::new())
                    }
                    Refused::Limit(limit) => {
                        let kind = limit.split(' ').next().unwrap_or_default().to_owned();
                        *self.outcome.violations.entry(kind).or_default() += 1;
                        IssueError::new(FailureClass::RateLimited, Retry::At(now + HOUR), String::new())
                    }
                };
                let dice = self.rng.random();
                certificate.machine.step(Event::Failed(lane, error), now, dice);
                false
            }
        }
    }

    fn end_order(&mut self, n: usize, now: SystemTime) {
        self.running -= 1;
        let attempt = self.certificates[n].attempt.take();
        if let (Some(attempt), Some(pending)) = (attempt, self.certificates[n].order) {
            self.settle_order(n, attempt, pending, now);
        }
        if let Some(next) = self.waiting.pop_front() {
            self.certificates[next].queued = false;
            self.advance(next, now);
        }
    }

    fn settle_order(&mut self, n: usize, attempt: Attempt, pending: Pending, now: SystemTime) {
        let certificate = &mut self.certificates[n];
        let Pending { ca, order } = pending;
        let lane = certificate.wanted.cas.iter().position(|c| *c == ca).unwrap_or(0);
        let names = &certificate.wanted.names;
        let predecessor = certificate.signed.filter(|(signer, _)| *signer == ca).map(|(_, signed)| signed);
        // What the CA counted in this attempt: an order that is gone on with was counted when it was made.
        let mut spent = Spent {
            registered: attempt.registers,
            ordered: !attempt.resumes,
            replaced: !attempt.resumes && order.replaces,
            open: true,
            ..Spent::default()
        };
        let broken = self.scenario.broken_dns.iter().any(|(which, when)| *which == n && when.contains(&now));
        let result = match broken {
            true if !self.cas[ca].is_down(now) => Err(None), // found out before the CA is told
            _ => self.cas[ca].finish(&order, names, predecessor.as_ref(), now).map_err(Some),
        };
        let limits = self.cas[ca].model.limits.clone();
        let dice = self.rng.random();
        let event = match result {
            Ok(signed) => {
                (spent.signed, spent.open) = (true, false);
                certificate.order = None;
                if !certificate.signers.contains(&ca) {
                    certificate.signers.push(ca);
                }
                let dates = (signed.not_before, signed.not_after);
                let (serial, number) = (signed.serial, u8::try_from(lane).unwrap_or(0));
                let seed = (serial << 8 | ca as u64) ^ self.scenario.seed.rotate_left(40);
                let held = Held::signed(dates, now, mix(seed), number, certificate.machine.held());
                self.replaced(n, lane, ca, signed, now);
                Event::Renewed(held)
            }
            Err(Some(true)) => {
                self.outcome.failed_down += 1;
                Event::Failed(lane, IssueError::new(FailureClass::CaDown, Retry::Backoff, String::new()))
            }
            Err(Some(false)) => {
                self.outcome.failed_validation += 1;
                spent.failed = names.first().and_then(|name| name.base().cloned()).into_iter().collect();
                spent.open = false;
                certificate.order = None;
                let error = IssueError::new(FailureClass::Validation, Retry::Backoff, String::new());
                Event::Failed(lane, error)
            }
            Err(None) => {
                let error = IssueError::new(FailureClass::Dns, Retry::Backoff, String::new());
                Event::Failed(lane, error)
            }
        };
        let certificate = &mut self.certificates[n];
        self.books[ca].settle(&limits, &attempt.ask(&certificate.wanted.names), &spent, now);
        certificate.machine.step(event, now, dice);
    }

    /// A new certificate is served: the old one is judged.
    fn replaced(&mut self, n: usize, lane: usize, ca: usize, signed: Signed, now: SystemTime) {
        self.outcome.issued += 1;
        self.outcome.fallen_back += u64::from(lane > 0);
        if self.scenario.keep_renewals {
            let renewal = Renewal { certificate: n, ca, at: now, not_after: signed.not_after };
            self.outcome.renewals.push(renewal);
        }
        let former = self.certificates[n].signed.replace((ca, signed));
        let Some((signer, old)) = former else { return };
        if old.not_after <= self.scenario.start {
            return; // it was found like that
        }
        self.judge_end(n, &old, now);
        let left = old.not_after.duration_since(now).unwrap_or_default();
        let lifetime = old.not_after.duration_since(old.not_before).unwrap_or_default();
        let share = left.as_secs_f64() / lifetime.as_secs_f64();
        self.outcome.closest = Some(self.outcome.closest.map_or(share, |least| least.min(share)));
        // Judged where nothing can be said for being late.
        let Some(window) = self.cas[signer].window(&old, now) else { return };
        let model = &self.cas[signer].model;
        let disturbed = model
            .outages
            .iter()
            .chain(&model.slow)
            .any(|range| range.start < window.end && window.start < range.end + CATCH_UP);
        let broken = self.scenario.broken_dns.iter().any(|(which, when)| {
            *which == n && when.start < window.end && window.start < when.end + CATCH_UP
        });
        let revoked = model.revocations.iter().any(|(at, _)| *at >= old.not_before && *at <= now);
        let found_late = window.end < self.scenario.start + CATCH_UP;
        if !disturbed
            && !found_late
            && !broken
            && !revoked
            && let Ok(late) = now.duration_since(window.end)
        {
            self.outcome.late.push((n, late));
        }
    }

    fn judge_end(&mut self, n: usize, signed: &Signed, now: SystemTime) {
        if let Ok(over) = now.duration_since(signed.not_after)
            && !over.is_zero()
        {
            self.outcome.expired.push((n, over));
        }
    }

    fn count_hour(&mut self, now: SystemTime, first: bool) {
        let since = now.duration_since(self.scenario.start).unwrap_or_default();
        let bounded = first
            || self.cas.iter().any(|ca| {
                let model = &ca.model;
                let out = model
                    .outages
                    .iter()
                    .chain(&model.slow)
                    .any(|range| range.start <= now && now < range.end + CATCH_UP);
                out || model.revocations.iter().any(|(at, _)| *at <= now && now < *at + 5 * 24 * HOUR)
            });
        let hour = usize::try_from(since.as_secs() / 3600).unwrap_or(0);
        if let Some(hour) = self.outcome.hours.get_mut(hour) {
            hour.orders += 1;
            hour.bounded += u32::from(bounded);
        }
    }

    fn finish(mut self, end: SystemTime) -> Outcome {
        for n in 0..self.certificates.len() {
            if let Some((_, signed)) =
                self.certificates[n].signed.filter(|(_, signed)| signed.not_after > self.scenario.start)
            {
                self.judge_end(n, &signed, end);
            }
        }
        self.outcome
    }
}
