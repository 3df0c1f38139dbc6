//! One certificate's life as a pure state machine: events and the time go in, what to do next comes out.
//!
//! A step allocates nothing; a simulation may take millions of them.

use std::time::{Duration, SystemTime};

use super::policy::{self, Due, Held, Terms, Why, Window};
use crate::issuer::{FailureClass, IssueError, RenewalHint, Retry};

/// While another process orders, storage is looked at this often.
const PEER_POLL: Duration = Duration::from_secs(5);
/// Storage that lost what it had is looked at this often: no CA is asked, and a restored volume is found soon.
const STORAGE_POLL: Duration = Duration::from_secs(300);

/// Where a certificate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// To be ordered now: nothing is held and nothing was tried, or a person asked for it.
    Wanted,
    /// Held; nothing to do before `due`, apart from asking the CA for its window.
    Valid { due: Due },
    /// The last attempt failed; the next is at `until`.
    Waiting { until: SystemTime, failure: Failure },
    /// A person has to act; looked at again at `until` all the same.
    Parked { until: SystemTime, failure: Failure },
    /// Another process is ordering it.
    Following { until: SystemTime },
}

/// Why the last attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) class: FailureClass,
    pub(crate) message: String,
}

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A certificate was ordered and stored, by us or by a peer, or a person went back to one.
    Renewed(Held),
    /// An attempt at the CA of this number failed.
    Failed(usize, IssueError),
    /// Something of our own stands in the way, whichever CA is asked.
    HeldBack(IssueError),
    /// Nobody was asked: the CA of this number would refuse the order before this moment.
    Refused(usize, SystemTime, String),
    /// Another process holds the lease.
    Busy,
    /// Another process has tried meanwhile and failed: its moment counts, or a CA is asked twice as often as it should be.
    PeerFailed(Attempts),
    /// Storage does not hold what it held before: never a reason to order.
    StorageLost(String),
    /// The CA was asked when it wants the certificate to be renewed. `None`: it does not say such things.
    Hint(Option<RenewalHint>),
    /// It was asked and did not answer: nothing changes, and it is asked again.
    HintFailed,
    /// The certificate was revoked.
    Revoked,
    /// A person wants it renewed now: one attempt.
    Asked,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Take the lease, read storage again, order at the CA of this number.
    Order(usize),
    /// Ask the CA that signed it when it wants it to be renewed (ARI).
    PollAri,
    /// Nothing before this moment.
    SleepUntil(SystemTime),
}

/// What a CA has said of one certificate; of no use with the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ari {
    pub(crate) window: Option<Window>,
    /// Which of the moments in the window was chosen; `None`: not yet.
    pub(crate) throw: Option<u8>,
    pub(crate) poll_at: SystemTime,
    /// Polls that failed in a row.
    pub(crate) misses: u8,
    /// It was revoked.
    pub(crate) revoked: bool,
}

/// A CA, or all of them, that is not asked before `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Barred {
    /// In a row.
    pub(crate) failures: u32,
    pub(crate) until: SystemTime,
    pub(crate) parked: bool,
    /// How long it was meant to last at the beginning. A clock that is set back does not stretch it.
    wait: Duration,
}

impl Barred {
    pub(crate) const NO: Self =
        Self { failures: 0, until: SystemTime::UNIX_EPOCH, parked: false, wait: Duration::ZERO };

    pub(crate) fn until(failures: u32, until: SystemTime, parked: bool, now: SystemTime) -> Self {
        let wait = until.duration_since(now).unwrap_or_default();
        Self { failures, until, parked, wait }
    }

    fn set_clock(&mut self, now: SystemTime) {
        self.until = self.until.min(now + self.wait);
    }
}

/// What survives a restart beside the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempts {
    /// Failures in a row, wherever.
    pub(crate) failures: u32,
    /// For what every CA would see.
    pub(crate) everywhere: Barred,
    /// For each CA, in the order of the configuration.
    pub(crate) lanes: Box<[Barred]>,
    pub(crate) failure: Failure,
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    held: Option<Held>,
    ari: Ari,
    failures: u32,
    /// Times in a row that an order was held back.
    refusals: u8,
    everywhere: Barred,
    /// One for each CA, the preferred one first.
    lanes: Box<[(Terms, Barred)]>,
    state: State,
    /// As [`Barred::wait`], for the states that belong to no CA.
    wait: Duration,
}

impl Machine {
    /// Begins with what storage holds; `cas` is not empty. Attempts of another configuration and what a CA said of another
    /// certificate are left out by the caller.
    pub(crate) fn new(
        cas: &[Terms],
        held: Option<Held>,
        ari: Option<Ari>,
        attempts: Option<Attempts>,
        now: SystemTime,
    ) -> Self {
        let fresh = Ari { window: None, throw: None, poll_at: now, misses: 0, revoked: false };
        let mut machine = Self {
            held,
            ari: fresh,
            failures: 0,
            refusals: 0,
            everywhere: Barred::NO,
            lanes: cas.iter().map(|terms| (*terms, Barred::NO)).collect(),
            state: State::Wanted,
            wait: Duration::ZERO,
        };
        if let Some(held) = held {
            machine.ari = ari.unwrap_or(Ari { poll_at: held.first_poll(now), ..fresh });
            machine.state = State::Valid { due: machine.due(&held, now) };
        }
        match (attempts, &machine.state) {
            (Some(_), State::Valid { due }) if due.at > now => {} // old news
            (Some(attempts), _) => machine.resume(attempts, now),
            (None, _) => {}
        }
        machine
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// What its CA has said of the held certificate; to be kept over restarts.
    pub(crate) fn ari(&self) -> Option<&Ari> {
        self.held.as_ref().map(|_| &self.ari)
    }

    /// Whether so little is left that no model of a CA's limits may hold an order up.
    pub(crate) fn past_floor(&self, now: SystemTime) -> bool {
        self.held.is_some_and(|held| held.floor() <= now)
    }

    /// Whether the CA that signed the held certificate wants it renewed at this moment: such an order is not counted
    /// (RFC 9773 section 5, and what Let's Encrypt makes of it).
    pub(crate) fn in_window(&self, now: SystemTime) -> bool {
        self.ari.window.is_some_and(|w| self.held.is_some() && w.start <= now && now < w.end)
    }

    /// A certificate was found that was not known before; whether it is due changes nothing about serving it.
    pub(crate) fn hold(&mut self, held: Held, now: SystemTime) {
        self.held = Some(held);
        let poll_at = held.first_poll(now);
        self.ari = Ari { window: None, throw: None, poll_at, misses: 0, revoked: false };
    }

    /// When the held certificate is to be renewed.
    pub(crate) fn due(&self, held: &Held, now: SystemTime) -> Due {
        if self.ari.revoked {
            return Due { at: now, why: Why::Revoked };
        }
        let signer = self.lanes.get(usize::from(held.issuer));
        let terms = signer.map_or(Terms::default(), |(terms, _)| *terms);
        held.due(self.ari.window, self.ari.throw.unwrap_or(0), terms, now)
    }

    /// Chooses a moment in a window that is new, by how many renewals are `planned` around a moment. Kept with the window.
    pub(crate) fn choose(&mut self, planned: impl Fn(SystemTime) -> u32, now: SystemTime) {
        if let (Some(held), Some(window), None) = (self.held, self.ari.window, self.ari.throw) {
            self.ari.throw = Some(held.quietest(window, planned));
            self.settle(now);
        }
    }

    /// When the held certificate is to be renewed, if nothing else is under way.
    pub(crate) fn planned(&self) -> Option<SystemTime> {
        match &self.state {
            State::Valid { due } => Some(due.at),
            _ => None,
        }
    }

    fn resume(&mut self, attempts: Attempts, now: SystemTime) {
        let Attempts { failures, everywhere, lanes, failure } = attempts;
        let longest = |mut barred: Barred| -> Barred {
            barred.wait = barred.until.duration_since(now).unwrap_or_default().min(policy::LONGEST_WAIT);
            barred
        };
        self.failures = failures;
        self.everywhere = longest(everywhere);
        for (lane, theirs) in self.lanes.iter_mut().zip(lanes) {
            lane.1 = longest(theirs);
        }
        self.state = State::Waiting { until: now, failure };
        self.settle(now);
    }

    /// What to keep for the next start; `None` when the last attempt succeeded.
    pub(crate) fn attempts(&self) -> Option<Attempts> {
        let (State::Waiting { failure, .. } | State::Parked { failure, .. }) = &self.state else {
            return None;
        };
        Some(Attempts {
            failures: self.failures,
            everywhere: self.everywhere,
            lanes: self.lanes.iter().map(|(_, barred)| *barred).collect(),
            failure: failure.clone(),
        })
    }

    /// What to do at `now`, which may have jumped either way since the last call.
    pub(crate) fn next(&mut self, now: SystemTime) -> Action {
        if matches!(self.state, State::Wanted) {
            return Action::Order(0);
        }
        self.settle(now);
        let until = match &self.state {
            State::Wanted => now,
            State::Valid { due } => {
                if due.at > now && self.may_poll() {
                    self.ari.poll_at = self.ari.poll_at.min(now + policy::LONGEST_WAIT);
                    if self.ari.poll_at <= now {
                        return Action::PollAri;
                    }
                    return Action::SleepUntil(due.at.min(self.ari.poll_at));
                }
                due.at
            }
            State::Waiting { until, .. } | State::Parked { until, .. } | State::Following { until } => *until,
        };
        if until > now {
            return Action::SleepUntil(until);
        }
        let (ca, at) = self.lane(now);
        if at <= now { Action::Order(ca) } else { Action::SleepUntil(at) }
    }

    fn may_poll(&self) -> bool {
        let signer = self.held.and_then(|held| self.lanes.get(usize::from(held.issuer)));
        signer.is_some_and(|(terms, _)| terms.hints) && !self.ari.revoked
    }

    /// Whose turn it is, and when: the preferred CA's, unless it cannot be asked before the certificate is needed.
    fn lane(&mut self, now: SystemTime) -> (usize, SystemTime) {
        let need = self.need(now);
        self.everywhere.set_clock(now);
        let everywhere = self.everywhere.until;
        let mut best: Option<(usize, SystemTime)> = None;
        for (ca, (_, barred)) in self.lanes.iter_mut().enumerate() {
            barred.set_clock(now);
            let at = barred.until.max(everywhere);
            match best {
                Some((_, until)) if until <= now || until <= need || until <= at => {}
                _ => best = Some((ca, at)),
            }
        }
        best.unwrap_or((0, everywhere))
    }

    /// Until when a preferred CA may take its time.
    fn need(&self, now: SystemTime) -> SystemTime {
        match &self.held {
            Some(held) if !self.ari.revoked && self.ari.window.is_none_or(|w| w.end > now) => held.need(),
            _ => SystemTime::UNIX_EPOCH,
        }
    }

    /// Brings the state's moment in line with the clock and the CAs.
    fn settle(&mut self, now: SystemTime) {
        let lane = self.lane(now);
        let due = self.held.map(|held| self.due(&held, now));
        let storage = self.wait;
        match &mut self.state {
            State::Wanted => {}
            // Computed while the clock was wrong, it may lie years ahead of a certificate of days.
            State::Valid { due: known } => *known = due.unwrap_or(*known),
            State::Following { until } => *until = (*until).min(now + storage),
            State::Waiting { until, .. } | State::Parked { until, .. } if !storage.is_zero() => {
                *until = (*until).min(now + storage);
            }
            State::Waiting { until, .. } | State::Parked { until, .. } => *until = lane.1,
        }
        if !storage.is_zero() {
            return;
        }
        let parked = self.everywhere.parked || self.lanes.get(lane.0).is_some_and(|(_, b)| b.parked);
        let state = std::mem::replace(&mut self.state, State::Wanted);
        self.state = match state {
            State::Waiting { until, failure } if parked => State::Parked { until, failure },
            State::Parked { until, failure } if !parked => State::Waiting { until, failure },
            state => state,
        };
    }

    /// Takes an event in. `dice` is uniform in `0.0..1.0`.
    pub(crate) fn step(&mut self, event: Event, now: SystemTime, dice: f64) {
        match event {
            Event::Renewed(held) => {
                for (_, barred) in &mut self.lanes {
                    *barred = Barred::NO;
                }
                (self.failures, self.refusals, self.everywhere) = (0, 0, Barred::NO);
                self.hold(held, now);
                self.enter(State::Valid { due: self.due(&held, now) }, Duration::ZERO);
            }
            Event::Failed(ca, error) => {
                self.failed(Some(ca).filter(|_| is_its_own(&error)), error, now, dice);
            }
            Event::HeldBack(error) => self.failed(None, error, now, dice),
            Event::Refused(ca, until, message) => {
                self.refusals = self.refusals.saturating_add(1);
                let until = policy::after_refusal(until, self.refusals, self.held.as_ref(), now, dice);
                if let Some((_, barred)) = self.lanes.get_mut(ca) {
                    *barred = Barred::until(barred.failures, until, false, now);
                }
                self.wait_for(Failure { class: FailureClass::RateLimited, message }, now);
            }
            Event::Busy => self.enter(State::Following { until: now + PEER_POLL }, PEER_POLL),
            Event::PeerFailed(attempts) => {
                self.wait = Duration::ZERO;
                self.resume(attempts, now);
            }
            Event::StorageLost(message) => {
                let failure = Failure { class: FailureClass::Config, message };
                self.enter(State::Parked { until: now + STORAGE_POLL, failure }, STORAGE_POLL);
            }
            Event::Hint(hint) => self.hint(hint, now, dice),
            Event::HintFailed => {
                let Some(held) = &self.held else { return };
                self.ari.poll_at = held.poll_after_failure(self.ari.misses, now, dice);
                self.ari.misses = self.ari.misses.saturating_add(1);
            }
            Event::Revoked => {
                self.ari.revoked = self.held.is_some();
                self.settle(now);
            }
            Event::Asked => self.enter(State::Wanted, Duration::ZERO),
        }
    }

    fn hint(&mut self, hint: Option<RenewalHint>, now: SystemTime, dice: f64) {
        let Some(held) = &self.held else { return };
        self.ari.misses = 0;
        self.ari.poll_at = match hint {
            None => held.next_poll(now + policy::LONGEST_WAIT, now, dice),
            Some(hint) => {
                let window = Window { start: hint.start, end: hint.end };
                if window.start < window.end && self.ari.window != Some(window) {
                    (self.ari.window, self.ari.throw) = (Some(window), None);
                }
                held.next_poll(hint.again_at, now, dice)
            }
        };
        self.settle(now);
    }

    fn failed(&mut self, ca: Option<usize>, error: IssueError, now: SystemTime, dice: f64) {
        self.failures = self.failures.saturating_add(1);
        let held = self.held;
        let place = match ca.and_then(|ca| self.lanes.get_mut(ca)) {
            Some((_, lane)) => lane,
            None => &mut self.everywhere,
        };
        let failures = place.failures.saturating_add(1);
        let until = policy::retry_at(failures, error.retry, held.as_ref(), now, dice);
        *place = Barred::until(failures, until, matches!(error.retry, Retry::Park | Retry::Pause), now);
        self.wait_for(Failure { class: error.class, message: error.message }, now);
    }

    fn wait_for(&mut self, failure: Failure, now: SystemTime) {
        // One attempt was asked for, of a certificate that has time: it is renewed when it would have been.
        if let Some(held) = self.held {
            let due = self.due(&held, now);
            if due.at > now {
                return self.enter(State::Valid { due }, Duration::ZERO);
            }
        }
        self.enter(State::Waiting { until: now, failure }, Duration::ZERO);
        self.settle(now);
    }

    fn enter(&mut self, state: State, wait: Duration) {
        (self.state, self.wait) = (state, wait);
    }
}

/// Whether a failure is the CA's own, so that another CA may do better: it is down, it counts, or it does not want this
/// account or these names at all (then nothing was ordered). What it saw in DNS, any other would see too.
fn is_its_own(error: &IssueError) -> bool {
    match error.class {
        FailureClass::CaDown | FailureClass::RateLimited => true,
        FailureClass::Config => error.retry == Retry::Park && !error.spent.ordered,
        FailureClass::Dns | FailureClass::Validation => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H: u64 = 3600;
    const D: u64 = 24 * H;
    const FREE: Terms = Terms { limited: false, hints: false, fleet: false };
    const PUBLIC: Terms = Terms { limited: true, hints: true, fleet: false };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn held(from: u64, lifetime: u64) -> Held {
        Held::signed((at(from), at(from + lifetime)), at(from), 0, 0, None)
    }

    fn start(held: Option<Held>, attempts: Option<Attempts>, now: u64) -> Machine {
        Machine::new(&[FREE], held, None, attempts, at(now))
    }

    fn failed(retry: Retry) -> Event {
        fails(0, FailureClass::CaDown, retry)
    }

    fn fails(ca: usize, class: FailureClass, retry: Retry) -> Event {
        Event::Failed(ca, IssueError::new(class, retry, "down"))
    }

    fn hint(start: u64, end: u64, again: u64) -> Event {
        let hint = RenewalHint { start: at(start), end: at(end), explanation: None, again_at: at(again) };
        Event::Hint(Some(hint))
    }

    fn sleeps(machine: &mut Machine, now: u64) -> SystemTime {
        match machine.next(at(now)) {
            Action::SleepUntil(until) => until,
            other => panic!("{other:?} of {machine:?}"),
        }
    }

    #[test]
    fn a_life() {
        let mut machine = start(None, None, 0);
        assert_eq!(machine.next(at(0)), Action::Order(0));
        machine.step(failed(Retry::Backoff), at(0), 0.5);
        assert_eq!(machine.next(at(0)), Action::SleepUntil(at(60)));
        assert_eq!(machine.next(at(60)), Action::Order(0));
        machine.step(Event::Busy, at(60), 0.5);
        assert_eq!(machine.next(at(60)), Action::SleepUntil(at(65)));
        machine.step(Event::Renewed(held(60, 600)), at(70), 0.5);
        assert_eq!((machine.failures(), machine.next(at(70))), (0, Action::SleepUntil(at(360))));
        assert_eq!(machine.next(at(360)), Action::Order(0));
        machine.step(failed(Retry::Park), at(360), 0.5);
        assert!(matches!(machine.state(), State::Parked { until, .. } if *until == at(435)), "{machine:?}");
        machine.step(Event::StorageLost("empty".into()), at(435), 0.5);
        assert_eq!(machine.next(at(435)), Action::SleepUntil(at(735)));
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let mut machine = start(None, None, 0);
        for _ in 0..3 {
            machine.step(failed(Retry::Backoff), at(0), 0.5);
        }
        let mut again = start(None, machine.attempts(), 10);
        assert_eq!((again.failures(), again.next(at(10))), (3, Action::SleepUntil(at(6000))));
        let mut again = start(Some(held(0, 600)), machine.attempts(), 10);
        assert_eq!(
            (again.failures(), again.next(at(10))),
            (0, Action::SleepUntil(at(300))),
            "a valid one makes attempts old news"
        );
        let due = start(Some(held(0, 600)), machine.attempts(), 400);
        assert_eq!(due.failures(), 3);
    }

    #[test]
    fn a_clock_before_the_certificates_dates_orders_nothing() {
        let mut machine = start(Some(held(1_000_000, 600)), None, 0);
        assert_eq!(machine.next(at(0)), Action::SleepUntil(at(1_000_300)));
    }

    #[test]
    fn a_clock_that_is_set_back_postpones_nothing() {
        const YEAR: u64 = 365 * D;
        // A failure a year ahead, then the right time: the wait is what it was meant to be.
        let mut machine = start(None, None, YEAR);
        machine.step(failed(Retry::Backoff), at(YEAR), 0.5);
        assert_eq!(machine.next(at(0)), Action::SleepUntil(at(60)));
        assert_eq!(machine.next(at(60)), Action::Order(0));
        // So after a restart, as far as it can be known.
        let mut machine = start(None, None, YEAR);
        machine.step(failed(Retry::Backoff), at(YEAR), 0.5);
        let mut again = start(None, machine.attempts(), 0);
        assert!(sleeps(&mut again, 0) <= at(0) + policy::LONGEST_WAIT);
        // A certificate that was ordered a year ahead and looked due at once.
        let cert = Held { stored_at: at(YEAR), ..held(0, 600) };
        let mut machine = start(None, None, YEAR);
        machine.step(Event::Renewed(cert), at(YEAR), 0.5);
        assert_eq!(machine.next(at(YEAR)), Action::SleepUntil(at(YEAR + 150)), "no loop meanwhile");
        assert_eq!(machine.next(at(10)), Action::SleepUntil(at(300)), "and its own dates afterwards");
        // A poll that was planned a year ahead.
        let mut machine = Machine::new(&[PUBLIC], Some(held(0, 90 * D)), None, None, at(0));
        machine.step(hint(60 * D, 61 * D, YEAR + H), at(YEAR), 0.5);
        assert!(sleeps(&mut machine, 0) <= at(0) + policy::LONGEST_WAIT);
    }

    #[test]
    fn the_ca_is_asked_for_its_window_and_obeyed() {
        let mut machine = Machine::new(&[PUBLIC], Some(held(0, 90 * D)), None, None, at(0));
        let first = sleeps(&mut machine, 0);
        assert!(first <= at(H), "soon");
        assert_eq!(machine.next(first), Action::PollAri);
        machine.step(hint(50 * D, 50 * D + H, 6 * H), at(0), 0.5);
        assert_eq!(sleeps(&mut machine, 0), at(6 * H));
        assert_eq!(machine.next(at(6 * H)), Action::PollAri);
        // Failures change nothing and are not repeated in a loop.
        for (misses, hours) in [1, 2, 4, 8, 16, 24, 24].into_iter().enumerate() {
            machine.step(Event::HintFailed, at(6 * H), 0.5);
            assert_eq!(sleeps(&mut machine, 6 * H), at(6 * H + hours * H), "after {misses}");
        }
        assert!(matches!(machine.state(), State::Valid { due } if matches!(due.why, Why::Window(_))));
        // It forgets that it ever spoke: what it said stays.
        machine.step(Event::Hint(None), at(30 * D), 0.5);
        let State::Valid { due } = machine.state() else { panic!("{machine:?}") };
        let due = due.at;
        assert!(due >= at(50 * D) && due <= at(50 * D + H));
        // After a restart too.
        let again =
            Machine::new(&[PUBLIC], machine.held().copied(), machine.ari().copied(), None, at(30 * D));
        assert_eq!(again.state(), machine.state());
        // Mass revocation.
        machine.step(hint(29 * D, 30 * D - H, 31 * D), at(30 * D), 0.5);
        assert_eq!(machine.next(at(30 * D)), Action::Order(0));
        // It ends with the certificate.
        machine.step(Event::Renewed(held(30 * D, 90 * D)), at(30 * D), 0.5);
        assert_eq!(machine.ari().unwrap().window, None);
        assert!(matches!(machine.state(), State::Valid { due } if due.why == Why::Lifetime));
    }

    #[test]
    fn the_moment_in_a_window_is_chosen_once_and_kept() {
        let mut machine = Machine::new(&[PUBLIC], Some(held(0, 90 * D)), None, None, at(0));
        machine.choose(|_| 0, at(0));
        assert_eq!(machine.ari().unwrap().throw, None, "there is no window to choose in");
        machine.step(hint(50 * D, 52 * D, 6 * H), at(0), 0.5);
        let first = machine.planned().unwrap();
        machine.choose(|moment| u32::from(moment == first), at(0));
        let second = machine.planned().unwrap();
        assert!(second != first && (at(50 * D)..at(52 * D)).contains(&second));
        machine.step(hint(50 * D, 52 * D, 12 * H), at(6 * H), 0.5);
        machine.choose(|moment| u32::from(moment == second), at(6 * H));
        let again = Machine::new(&[PUBLIC], machine.held().copied(), machine.ari().copied(), None, at(6 * H));
        assert_eq!((machine.planned(), again.planned()), (Some(second), Some(second)));
        machine.step(hint(40 * D, 42 * D, 12 * H), at(6 * H), 0.5);
        assert_eq!(machine.ari().unwrap().throw, None, "another window is another choice");
        machine.step(Event::Asked, at(6 * H), 0.5);
        assert_eq!(machine.planned(), None);
    }

    #[test]
    fn a_window_is_open_between_its_ends() {
        let mut machine = Machine::new(&[PUBLIC], Some(held(0, 90 * D)), None, None, at(0));
        assert!(!machine.in_window(at(0)));
        machine.step(hint(50 * D, 51 * D, H), at(0), 0.5);
        let inside = [50 * D - 1, 50 * D, 51 * D - 1, 51 * D].map(|now| machine.in_window(at(now)));
        assert_eq!(inside, [false, true, true, false]);
        assert_eq!([81 * D - 1, 81 * D].map(|now| machine.past_floor(at(now))), [false, true]);
    }

    #[test]
    fn another_ca_takes_over_when_the_first_cannot_be_asked_in_time() {
        use FailureClass::{CaDown, Config, Dns, RateLimited, Validation};
        let cert = held(0, 90 * D);
        let theirs = |seconds| Retry::At(at(seconds));
        // held, now, class and retry of the preferred one, and who is next when
        for (held, now, class, retry, ca, next) in [
            (None, 0, CaDown, Retry::Backoff, 1, 0),
            (None, 0, RateLimited, theirs(3 * D), 1, 0),
            (None, 0, Config, Retry::Park, 1, 0),
            (None, 0, Config, Retry::Backoff, 0, 60), // our own disk: any CA would see it
            (None, 0, Dns, Retry::Backoff, 0, 60),
            (None, 0, Validation, Retry::Backoff, 0, 60),
            (None, 0, Validation, Retry::Park, 0, D - D / 20),
            (None, 0, RateLimited, Retry::Pause, 1, 0), // it is this CA's account that is paused
            (Some(cert), 61 * D, CaDown, Retry::Backoff, 0, 61 * D + 60), // there is time
            (Some(cert), 61 * D, RateLimited, theirs(62 * D - H), 0, 62 * D - H),
            (Some(cert), 74 * D + D / 2, RateLimited, theirs(75 * D + H), 1, 74 * D + D / 2),
            (Some(cert), 76 * D, CaDown, Retry::Backoff, 1, 76 * D), // half of the time is over
            (Some(cert), 91 * D, CaDown, Retry::Backoff, 1, 91 * D),
        ] {
            let mut machine = Machine::new(&[PUBLIC, PUBLIC], held, None, None, at(now));
            assert_eq!(machine.next(at(now)), Action::Order(0), "{now} {class:?}");
            machine.step(fails(0, class, retry), at(now), 0.5);
            let what = format!("{now} {class:?} {retry:?}");
            if next > now {
                assert_eq!(machine.next(at(now)), Action::SleepUntil(at(next)), "{what}");
            }
            assert_eq!(machine.next(at(next)), Action::Order(ca), "{what}");
        }
    }

    #[test]
    fn each_ca_has_its_own_schedule_and_the_preferred_one_is_gone_back_to() {
        let mut machine = Machine::new(&[PUBLIC, PUBLIC], None, None, None, at(0));
        machine.step(failed(Retry::Backoff), at(0), 0.5);
        machine.step(fails(1, FailureClass::RateLimited, Retry::At(at(H))), at(0), 0.5);
        assert_eq!(machine.next(at(0)), Action::SleepUntil(at(60)), "both are barred");
        assert_eq!(machine.next(at(60)), Action::Order(0));
        machine.step(failed(Retry::Backoff), at(60), 0.5);
        assert_eq!(machine.next(at(60)), Action::SleepUntil(at(660)));
        machine.step(failed(Retry::Backoff), at(660), 0.5);
        assert_eq!(machine.next(at(660)), Action::SleepUntil(at(H)));
        assert_eq!(machine.next(at(H)), Action::Order(1));
        // As it was, after a restart.
        let mut again = Machine::new(&[PUBLIC, PUBLIC], None, None, machine.attempts(), at(700));
        assert_eq!(again.next(at(700)), Action::SleepUntil(at(H)));
        assert_eq!((again.next(at(H)), again.failures()), (Action::Order(1), 4));
        let fallback = Held { issuer: 1, ..held(H, 90 * D) };
        machine.step(Event::Renewed(fallback), at(H), 0.5);
        assert_eq!(machine.next(at(61 * D)), Action::Order(0), "the next one is the preferred one's");
        // One that is parked by the preferred CA alone is not parked.
        machine.step(fails(0, FailureClass::Config, Retry::Park), at(76 * D), 0.5);
        assert!(matches!(machine.state(), State::Waiting { .. }), "{machine:?}");
        machine.step(fails(1, FailureClass::Config, Retry::Park), at(76 * D), 0.5);
        assert!(matches!(machine.state(), State::Parked { .. }), "{machine:?}");
    }

    #[test]
    fn what_would_be_refused_waits_but_not_past_the_floor() {
        let mut machine = Machine::new(&[PUBLIC], None, None, None, at(0));
        machine.step(Event::Refused(0, at(6 * D), "the limit".into()), at(0), 0.5);
        let moment = at(6 * D) + Duration::from_secs(60);
        assert_eq!((sleeps(&mut machine, 0), machine.failures()), (moment, 0), "nobody was asked");
        let State::Waiting { failure, .. } = machine.state() else { panic!("{machine:?}") };
        assert_eq!(failure.class, FailureClass::RateLimited);
        let mut machine = Machine::new(&[PUBLIC], Some(held(0, 90 * D)), None, None, at(80 * D));
        machine.step(Event::Refused(0, at(86 * D), "the limit".into()), at(80 * D), 0.5);
        assert_eq!(sleeps(&mut machine, 80 * D), at(81 * D));
        let mut machine = Machine::new(&[PUBLIC, PUBLIC], None, None, None, at(0));
        machine.step(Event::Refused(0, at(6 * D), "the limit".into()), at(0), 0.5);
        assert_eq!(machine.next(at(0)), Action::Order(1), "another CA has its own limits");
    }

    #[test]
    fn a_person_gets_one_attempt_and_a_revoked_one_is_replaced() {
        let mut machine = Machine::new(&[PUBLIC], Some(held(0, 90 * D)), None, None, at(D));
        machine.step(Event::Asked, at(D), 0.5);
        assert_eq!(machine.next(at(D)), Action::Order(0));
        machine.step(failed(Retry::Backoff), at(D), 0.5);
        assert!(matches!(machine.state(), State::Valid { due } if due.why == Why::Lifetime), "{machine:?}");
        machine.step(Event::Revoked, at(2 * D), 0.5);
        assert_eq!(machine.next(at(2 * D)), Action::Order(0));
        machine.step(failed(Retry::Backoff), at(2 * D), 0.5);
        assert!(sleeps(&mut machine, 2 * D) > at(2 * D));
        let again = Machine::new(&[PUBLIC], machine.held().copied(), machine.ari().copied(), None, at(2 * D));
        assert!(matches!(again.state(), State::Valid { due } if due.why == Why::Revoked), "{again:?}");
        let mut two = Machine::new(&[PUBLIC, PUBLIC], Some(held(0, 90 * D)), None, None, at(D));
        two.step(Event::Revoked, at(D), 0.5);
        two.step(failed(Retry::Backoff), at(D), 0.5);
        assert_eq!(two.next(at(D)), Action::Order(1), "nothing good is served meanwhile");
    }
}
