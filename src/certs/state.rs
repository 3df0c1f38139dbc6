//! One certificate's life as a pure state machine: events and the time go in, what to do next comes out.

use std::time::{Duration, SystemTime};

use super::policy::{self, Held};
use crate::issuer::{FailureClass, IssueError, Retry};

/// While another process orders, storage is looked at this often.
const PEER_POLL: Duration = Duration::from_secs(5);
/// Storage that lost what it had is looked at this often: no CA is asked, and a restored volume is found soon.
const STORAGE_POLL: Duration = Duration::from_secs(300);

/// Where a certificate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is held and nothing was tried.
    Wanted,
    /// Held; nothing to do before `renew_at`.
    Valid { renew_at: SystemTime },
    /// The last attempt failed; the next is at `until`.
    Waiting { until: SystemTime, failure: Failure },
    /// A person has to act; looked at again at `until` all the same.
    Parked { until: SystemTime, failure: Failure },
    /// Another process is ordering it.
    Following { until: SystemTime },
}

/// Why the last attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) class: FailureClass,
    pub(super) message: String,
}

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A certificate was ordered and stored, by us or by a peer.
    Renewed(Held),
    /// An attempt failed.
    Failed(IssueError),
    /// Another process holds the lease.
    Busy,
    /// Another process has tried meanwhile and failed: its moment counts, or a CA is asked twice as often as it should be.
    PeerFailed(Attempts),
    /// Storage does not hold what it held before: never a reason to order.
    StorageLost(String),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Take the lease, read storage again, order.
    Order,
    /// Nothing before this moment.
    SleepUntil(SystemTime),
}

/// The machine.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    held: Option<Held>,
    failures: u32,
    state: State,
    /// How long the state was meant to last when it was entered. A clock that is set back does not stretch it.
    wait: Duration,
}

/// What survives a restart beside the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempts {
    pub(super) failures: u32,
    pub(super) until: SystemTime,
    pub(super) parked: bool,
    pub(super) failure: Failure,
}

impl Machine {
    /// Begins with what storage holds. Attempts of another configuration are left out by the caller.
    pub(super) fn new(held: Option<Held>, attempts: Option<Attempts>, now: SystemTime) -> Self {
        let mut machine = Self { held, failures: 0, state: State::Wanted, wait: Duration::ZERO };
        let renew_at = held.map(|h| h.renew_at(now));
        match (attempts, renew_at) {
            (Some(attempts), due) if due.is_none_or(|due| due <= now) => {
                machine.resume(attempts, now);
            }
            (_, Some(renew_at)) => machine.state = State::Valid { renew_at },
            (_, None) => {}
        }
        machine
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// A certificate was found that was not known before; whether it is due changes nothing about serving it.
    pub(super) fn hold(&mut self, held: Held) {
        self.held = Some(held);
    }

    fn resume(&mut self, attempts: Attempts, now: SystemTime) {
        let Attempts { failures, until, failure, parked } = attempts;
        self.failures = failures;
        self.wait = until.duration_since(now).unwrap_or_default().min(policy::LONGEST_WAIT);
        self.state =
            if parked { State::Parked { until, failure } } else { State::Waiting { until, failure } };
    }

    /// What to keep for the next start; `None` when the last attempt succeeded.
    pub(super) fn attempts(&self) -> Option<Attempts> {
        let (until, failure, parked) = match &self.state {
            State::Waiting { until, failure } => (*until, failure.clone(), false),
            State::Parked { until, failure } => (*until, failure.clone(), true),
            _ => return None,
        };
        Some(Attempts { failures: self.failures, until, parked, failure })
    }

    /// What to do at `now`, which may have jumped either way since the last call.
    pub(super) fn next(&mut self, now: SystemTime) -> Action {
        let until = match &mut self.state {
            State::Wanted => return Action::Order,
            State::Valid { renew_at } => {
                // Computed while the clock was wrong, it may lie years ahead of a certificate of days.
                *renew_at = self.held.map_or(*renew_at, |held| held.renew_at(now));
                *renew_at
            }
            State::Waiting { until, .. } | State::Parked { until, .. } | State::Following { until } => {
                *until = (*until).min(now + self.wait);
                *until
            }
        };
        if until <= now { Action::Order } else { Action::SleepUntil(until) }
    }

    /// Takes an event in. `dice` is uniform in `0.0..1.0`.
    pub(super) fn step(&mut self, event: Event, now: SystemTime, dice: f64) {
        self.state = match event {
            Event::Renewed(held) => {
                self.failures = 0;
                self.held = Some(held);
                State::Valid { renew_at: held.renew_at(now) }
            }
            Event::Failed(error) => {
                self.failures = self.failures.saturating_add(1);
                let until = policy::retry_at(self.failures, error.retry, self.held.as_ref(), now, dice);
                let failure = Failure { class: error.class, message: error.message };
                match error.retry {
                    Retry::Park => State::Parked { until, failure },
                    _ => State::Waiting { until, failure },
                }
            }
            Event::Busy => State::Following { until: now + PEER_POLL },
            Event::PeerFailed(attempts) => return self.resume(attempts, now),
            Event::StorageLost(message) => State::Parked {
                until: now + STORAGE_POLL,
                failure: Failure { class: FailureClass::Config, message },
            },
        };
        self.wait = match &self.state {
            State::Waiting { until, .. } | State::Parked { until, .. } | State::Following { until } => {
                until.duration_since(now).unwrap_or_default()
            }
            State::Wanted | State::Valid { .. } => Duration::ZERO,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn held(from: u64, lifetime: u64) -> Held {
        Held { not_before: at(from), not_after: at(from + lifetime), stored_at: at(from), spread: 0 }
    }

    fn failed(retry: Retry) -> Event {
        Event::Failed(IssueError::new(FailureClass::CaDown, retry, "down"))
    }

    #[test]
    fn a_life() {
        let mut machine = Machine::new(None, None, at(0));
        assert_eq!(machine.next(at(0)), Action::Order);
        machine.step(failed(Retry::Backoff), at(0), 0.5);
        assert_eq!(machine.next(at(0)), Action::SleepUntil(at(60)));
        assert_eq!(machine.next(at(60)), Action::Order);
        machine.step(Event::Busy, at(60), 0.5);
        assert_eq!(machine.next(at(60)), Action::SleepUntil(at(65)));
        machine.step(Event::Renewed(held(60, 600)), at(70), 0.5);
        assert_eq!((machine.failures(), machine.next(at(70))), (0, Action::SleepUntil(at(360))));
        assert_eq!(machine.next(at(360)), Action::Order);
        machine.step(failed(Retry::Park), at(360), 0.5);
        assert!(matches!(machine.state(), State::Parked { until, .. } if *until == at(435)), "{machine:?}");
        machine.step(Event::StorageLost("empty".into()), at(435), 0.5);
        assert_eq!(machine.next(at(435)), Action::SleepUntil(at(735)));
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let mut machine = Machine::new(None, None, at(0));
        for _ in 0..3 {
            machine.step(failed(Retry::Backoff), at(0), 0.5);
        }
        let mut again = Machine::new(None, machine.attempts(), at(10));
        assert_eq!((again.failures(), again.next(at(10))), (3, Action::SleepUntil(at(6000))));
        let mut again = Machine::new(Some(held(0, 600)), machine.attempts(), at(10));
        assert_eq!(
            (again.failures(), again.next(at(10))),
            (0, Action::SleepUntil(at(300))),
            "a valid one makes attempts old news"
        );
        let due = Machine::new(Some(held(0, 600)), machine.attempts(), at(400));
        assert_eq!(due.failures(), 3);
    }

    #[test]
    fn a_clock_before_the_certificates_dates_orders_nothing() {
        let mut machine = Machine::new(Some(held(1_000_000, 600)), None, at(0));
        assert_eq!(machine.next(at(0)), Action::SleepUntil(at(1_000_300)));
    }

    #[test]
    fn a_clock_that_is_set_back_postpones_nothing() {
        const YEAR: u64 = 365 * 24 * 3600;
        // A failure a year ahead, then the right time: the wait is what it was meant to be.
        let mut machine = Machine::new(None, None, at(YEAR));
        machine.step(failed(Retry::Backoff), at(YEAR), 0.5);
        assert_eq!(machine.next(at(0)), Action::SleepUntil(at(60)));
        assert_eq!(machine.next(at(60)), Action::Order);
        // So after a restart, as far as it can be known.
        let mut again = Machine::new(None, machine.attempts(), at(0));
        let Action::SleepUntil(until) = again.next(at(0)) else { panic!("{again:?}") };
        assert!(until <= at(0) + policy::LONGEST_WAIT);
        // A certificate that was ordered a year ahead and looked due at once.
        let cert = Held { stored_at: at(YEAR), ..held(0, 600) };
        let mut machine = Machine::new(None, None, at(YEAR));
        machine.step(Event::Renewed(cert), at(YEAR), 0.5);
        assert_eq!(machine.next(at(YEAR)), Action::SleepUntil(at(YEAR + 150)), "no loop meanwhile");
        assert_eq!(machine.next(at(10)), Action::SleepUntil(at(300)), "and its own dates afterwards");
    }
}
