//! What is known of a server's health, and how it comes to be known. The decisions are pure; [`Health`] keeps them in atomics.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::time::Instant;

use super::spec::{ActiveSpec, PassiveSpec};

/// Drained by a command: no new requests, whatever its health.
const DRAINED: u8 = 1;
/// Down as it says itself when asked.
const DOWN: u8 = 2;
/// Left out for a while because requests to it failed.
const EJECTED: u8 = 4;
/// It would be left out, had too many others not been left out already.
const AILING: u8 = 8;

/// Milliseconds since some moment in the life of the process; never 0.
pub(super) fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let start = *START;
    1 + u64::try_from(Instant::now().saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds for which a server is left out at least, so that two bad ones do not take turns faster.
const LEAST_OUT: u64 = 1000;

/// How a request to a server went, as far as the server is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Fine,
    /// No connection could be made.
    Unreachable,
    /// It gave no answer, cut it short before its head, or answered that it cannot.
    Failed,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streak {
    unreachable: u8,
    failed: u8,
    /// Of the first of `failed`, milliseconds; wraps.
    since: u32,
}

impl Streak {
    /// The streak after one more request, and whether it is now bad enough to leave the server out.
    pub(super) fn after(self, outcome: Outcome, spec: &PassiveSpec, now: u32) -> (Self, bool) {
        let within = u32::try_from(spec.within.as_millis()).unwrap_or(u32::MAX);
        let next = match outcome {
            Outcome::Fine => Self::default(),
            Outcome::Unreachable => Self { unreachable: self.unreachable.saturating_add(1), ..self },
            Outcome::Failed if self.failed == 0 || now.wrapping_sub(self.since) > within => {
                // Whoever answers at all can be reached.
                Self { unreachable: 0, failed: 1, since: now }
            }
            Outcome::Failed => Self { unreachable: 0, failed: self.failed.saturating_add(1), ..self },
        };
        (next, next.unreachable >= spec.connect_errors || next.failed >= spec.failures)
    }

    fn pack(self) -> u64 {
        u64::from(self.unreachable) << 40 | u64::from(self.failed) << 32 | u64::from(self.since)
    }

    fn unpack(packed: u64) -> Self {
        Self { unreachable: (packed >> 40) as u8, failed: (packed >> 32) as u8, since: packed as u32 }
    }
}

/// How long a server is left out that was `last` milliseconds long left out before, until `returned` (0: never).
fn ejection(spec: &PassiveSpec, last: u64, returned: u64, now: u64) -> u64 {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (base, max) = (millis(spec.eject), millis(spec.eject_max));
    // Soon: before it has been well for as long as it was left out.
    let soon = returned != 0 && now.saturating_sub(returned) <= last.max(base);
    if soon { last.saturating_mul(2).clamp(base, max.max(base)) } else { base }
}

/// What a server says of itself, smoothed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hysteresis {
    /// `None`: it was not asked yet, and counts as up.
    up: Option<bool>,
    /// Answers in a row that say the opposite.
    against: u8,
}

impl Hysteresis {
    /// After one more answer. The very first one decides alone.
    #[must_use]
    pub fn after(self, well: bool, fall: u8, rise: u8) -> Self {
        let Some(up) = self.up else { return Self { up: Some(well), against: 0 } };
        if well == up {
            return Self { up: self.up, against: 0 };
        }
        let against = self.against.saturating_add(1);
        if against >= if up { fall } else { rise } {
            Self { up: Some(well), against: 0 }
        } else {
            Self { up: self.up, against }
        }
    }

    /// Whether it counts as up.
    pub fn is_up(self) -> bool {
        self.up.unwrap_or(true)
    }

    fn pack(self) -> u64 {
        u64::from(self.against) << 8 | self.up.map_or(0, |up| 1 + u64::from(up))
    }

    fn unpack(packed: u64) -> Self {
        let up = match packed & 0xff {
            0 => None,
            state => Some(state == 2),
        };
        Self { up, against: (packed >> 8) as u8 }
    }
}

/// The health of one server, shared by all threads.
#[derive(Debug, Default)]
pub(super) struct Health {
    flags: AtomicU8,
    streak: AtomicU64,
    asked: AtomicU64,
    /// When it is let in again, and for how long it was left out, both in milliseconds.
    until: AtomicU64,
    length: AtomicU64,
    /// When it came (back); 0: it has been there from the start.
    since: AtomicU64,
}

impl Health {
    /// Of a server that comes now, while others are already at work.
    pub(super) fn of_a_newcomer() -> Self {
        Self { since: AtomicU64::new(now_ms()), ..Self::default() }
    }

    /// Whether it is to get requests. Reads the clock only if it has to.
    pub(super) fn is_up(&self) -> bool {
        match self.flags.load(Ordering::Acquire) & !AILING {
            0 => true,
            EJECTED => self.readmit(now_ms()),
            _ => false,
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        self.flags.load(Ordering::Acquire) & DRAINED != 0
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.flags.load(Ordering::Acquire) & EJECTED != 0
    }

    pub(super) fn is_down(&self) -> bool {
        self.flags.load(Ordering::Acquire) & DOWN != 0
    }

    /// Whether requests to it fail, left out or not.
    pub(super) fn is_ailing(&self) -> bool {
        self.flags.load(Ordering::Acquire) & (EJECTED | AILING) != 0
    }

    /// Milliseconds since it came (back); `None`: it was always there.
    pub(super) fn age(&self, now: u64) -> Option<u64> {
        match self.since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(now.saturating_sub(since)),
        }
    }

    /// Lets it in again if its time is over. One more failure leaves it out again.
    pub(super) fn readmit(&self, now: u64) -> bool {
        if !self.is_ejected() || now < self.until.load(Ordering::Acquire) {
            return false;
        }
        self.since.store(now, Ordering::Relaxed);
        self.flags.fetch_and(!EJECTED, Ordering::AcqRel);
        true
    }

    /// When it was last left out.
    pub(super) fn out_since(&self) -> u64 {
        self.until.load(Ordering::Acquire).saturating_sub(self.length.load(Ordering::Relaxed))
    }

    /// Lets it in before its time, unless it has only just been left out. One more failure leaves it out again.
    pub(super) fn release(&self, now: u64) -> bool {
        if now < self.out_since() + LEAST_OUT {
            return false;
        }
        self.until.store(now, Ordering::Release);
        let back = |packed| Some(Streak { since: now as u32, ..Streak::unpack(packed) }.pack());
        // The closure always gives a value, so this does not fail.
        let _ = self.streak.fetch_update(Ordering::AcqRel, Ordering::Acquire, back);
        self.readmit(now)
    }

    /// Whether one more good answer is no news.
    pub(super) fn is_untroubled(&self) -> bool {
        self.streak.load(Ordering::Relaxed) == 0 && self.flags.load(Ordering::Relaxed) & AILING == 0
    }

    /// Takes note of a request. True: it is bad enough to leave the server out.
    pub(super) fn note(&self, outcome: Outcome, spec: &PassiveSpec, now: u64) -> bool {
        let mut bad = false;
        // The closure always gives a value, so this does not fail.
        let _ = self.streak.fetch_update(Ordering::AcqRel, Ordering::Acquire, |packed| {
            let (next, is_bad) = Streak::unpack(packed).after(outcome, spec, now as u32);
            bad = is_bad;
            Some(next.pack())
        });
        match (outcome, bad) {
            (Outcome::Fine, _) => self.flags.fetch_and(!AILING, Ordering::AcqRel),
            (_, true) => self.flags.fetch_or(AILING, Ordering::AcqRel),
            (_, false) => 0,
        };
        bad
    }

    /// Leaves it out for a while. The streak stays one short of its end, so that the first failure after its return counts.
    pub(super) fn eject(&self, spec: &PassiveSpec, now: u64) -> u64 {
        let length =
            ejection(spec, self.length.load(Ordering::Relaxed), self.until.load(Ordering::Relaxed), now);
        self.length.store(length, Ordering::Relaxed);
        self.until.store(now + length, Ordering::Release);
        let streak = Streak {
            unreachable: spec.connect_errors.saturating_sub(1),
            failed: spec.failures.saturating_sub(1),
            since: (now + length) as u32,
        };
        self.streak.store(streak.pack(), Ordering::Release);
        self.flags.fetch_or(EJECTED, Ordering::AcqRel);
        length
    }

    /// Takes note of an answer to a question. Gives what it comes to, if that is another thing than before.
    pub(super) fn answered(&self, well: bool, spec: &ActiveSpec) -> Option<bool> {
        let before = Hysteresis::unpack(self.asked.load(Ordering::Acquire));
        let after = before.after(well, spec.fall, spec.rise);
        self.asked.store(after.pack(), Ordering::Release); // one prober for each server
        self.set(DOWN, !after.is_up());
        (after.is_up() != before.is_up()).then_some(after.is_up())
    }

    pub(super) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire) != 0
    }

    /// Nobody asks it any more.
    pub(super) fn unasked(&self) {
        self.asked.store(0, Ordering::Release);
        self.set(DOWN, false);
    }

    pub(super) fn drain(&self, drained: bool) {
        self.set(DRAINED, drained);
    }

    fn set(&self, flag: u8, on: bool) {
        if on {
            self.flags.fetch_or(flag, Ordering::AcqRel);
        } else if self.flags.fetch_and(!flag, Ordering::AcqRel) & flag != 0 {
            self.since.store(now_ms(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SPEC: PassiveSpec = PassiveSpec {
        connect_errors: 3,
        failures: 5,
        within: Duration::from_secs(10),
        eject: Duration::from_secs(10),
        eject_max: Duration::from_secs(300),
    };

    /// Runs a story: `f` failed, `u` unreachable, `.` fine, each `gap` milliseconds after the one before; gives the places where
    /// it is bad.
    fn story(text: &str, gap: u32) -> Vec<usize> {
        let mut streak = Streak::default();
        let start = u32::MAX - 5_000; // over the wrap
        let step = |(n, c): (usize, char)| {
            let outcome = match c {
                'f' => Outcome::Failed,
                'u' => Outcome::Unreachable,
                _ => Outcome::Fine,
            };
            let (next, bad) = streak.after(outcome, &SPEC, start.wrapping_add(gap * n as u32));
            streak = Streak::unpack(next.pack());
            assert_eq!(streak, next);
            bad.then_some(n)
        };
        text.chars().enumerate().filter_map(step).collect()
    }

    #[test]
    fn three_without_a_connection_or_five_failures_in_ten_seconds_are_too_many() {
        for (text, gap, bad) in [
            ("uuu", 1, vec![2]),
            ("uuu", 60_000, vec![2]),
            ("uu.uu.uu", 1, vec![]),
            ("uufuu", 1, vec![]),
            ("fffff", 1, vec![4]),
            ("fffff", 2_500, vec![4]),
            ("fffff", 2_501, vec![]),
            ("ffff.ffff.ffff", 1, vec![]),
            ("ffffff", 1, vec![4, 5]),
            ("", 1, vec![]),
        ] {
            assert_eq!(story(text, gap), bad, "{text} {gap}");
        }
    }

    #[test]
    fn who_fails_again_soon_is_left_out_for_twice_as_long() {
        const S: u64 = 1000;
        for (last, returned, now, expected) in [
            (0, 0, 5 * S, 10 * S),
            (10 * S, 20 * S, 25 * S, 20 * S),
            (10 * S, 20 * S, 31 * S, 10 * S),
            (20 * S, 100 * S, 120 * S, 40 * S),
            (160 * S, 1000 * S, 1001 * S, 300 * S),
            (300 * S, 2000 * S, 2001 * S, 300 * S),
            (300 * S, 2000 * S, 2301 * S, 10 * S),
        ] {
            assert_eq!(ejection(&SPEC, last, returned, now), expected, "{last} {returned} {now}");
        }
    }

    #[test]
    fn one_answer_decides_at_first_and_then_three_or_two_do() {
        for (answers, expected) in [
            ("+", "+"),
            ("-", "-"),
            ("+--+---", "++++++-"),
            ("---+-++", "------+"),
            ("+-+-+-+-", "++++++++"),
            ("-++---", "--+++-"),
        ] {
            let mut state = Hysteresis::default();
            assert!(state.is_up());
            let got: String = answers
                .chars()
                .map(|c| {
                    state = Hysteresis::unpack(state.after(c == '+', 3, 2).pack());
                    if state.is_up() { '+' } else { '-' }
                })
                .collect();
            assert_eq!(got, expected, "{answers}");
        }
    }

    #[test]
    fn one_that_has_been_out_for_a_second_may_make_room() {
        let health = Health::default();
        health.eject(&SPEC, 3);
        assert!(!health.release(1002) && health.is_ejected());
        assert!(health.release(1003) && !health.is_ejected());
        assert!(health.note(Outcome::Failed, &SPEC, 1004), "one more failure is enough");
    }

    #[test]
    fn a_server_goes_and_comes_back() {
        let health = Health::default();
        assert!(health.is_up() && health.age(5).is_none());
        assert!(!health.note(Outcome::Unreachable, &SPEC, 1));
        assert!(!health.note(Outcome::Unreachable, &SPEC, 2));
        assert!(health.note(Outcome::Unreachable, &SPEC, 3) && health.is_ailing() && health.is_up());
        assert_eq!(health.eject(&SPEC, 3), 10_000);
        assert!(health.is_ejected() && !health.readmit(10_002));
        assert!(health.readmit(10_003) && health.is_up());
        assert_eq!(health.age(10_053), Some(50));
        assert!(health.note(Outcome::Unreachable, &SPEC, 10_100), "the first failure after its return");
        assert_eq!(health.eject(&SPEC, 10_100), 20_000);
        assert!(health.readmit(30_100) && health.is_ailing());
        let again = Health::default();
        again.eject(&SPEC, 3);
        assert!(again.readmit(10_003) && again.note(Outcome::Failed, &SPEC, 10_100), "of either kind");
        assert!(!health.note(Outcome::Fine, &SPEC, 30_200) && !health.is_ailing());
        assert!(!health.note(Outcome::Unreachable, &SPEC, 30_300), "one good answer is a new start");
        health.drain(true);
        assert!(!health.is_up() && health.is_drained());
        health.drain(false);
        assert!(health.is_up());
    }
}
