//! When: pure arithmetic on the certificate itself. Never a fixed number of days.

use std::time::{Duration, SystemTime};

use crate::backoff::{Backoff, jitter};
use crate::issuer::Retry;

/// Lifetimes under this are renewed at half, others with a third left.
const SHORT_LIFETIME: Duration = Duration::from_secs(10 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// No wait of ours is longer: a day, with jitter.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(27 * 3600);
/// Without a certificate to lose there is no hurry; with an expired one there is.
const AFTER_EXPIRY: Duration = Duration::from_secs(3600);
/// Nothing is tried more often than this, however little is left.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

const RETRIES: Backoff =
    Backoff::new(&[Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(6000), DAY]);

/// A certificate that is held, as far as time is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// When it was stored, by this machine's clock of that time.
    pub(super) stored_at: SystemTime,
    /// `0..=1000`, from the serial: spreads renewals, and is the same after a restart.
    pub(super) spread: u16,
}

impl Held {
    fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Whether it would be renewed at once if it had been held for long.
    pub(super) fn is_due_by_its_dates(&self, now: SystemTime) -> bool {
        Self { stored_at: SystemTime::UNIX_EPOCH, ..*self }.renew_at(now) <= now
    }

    /// When to renew: 1/3 of the lifetime left (1/2 under ten days), up to 1/30 earlier by the spread.
    ///
    /// Never within a quarter of the lifetime after it was stored: a clock that is ahead, or a CA that hands out old
    /// certificates, must not cause a loop.
    pub(super) fn renew_at(&self, now: SystemTime) -> SystemTime {
        let lifetime = self.lifetime();
        let left = if lifetime < SHORT_LIFETIME { lifetime / 2 } else { lifetime / 3 };
        let early = (lifetime / 30).mul_f64(f64::from(self.spread) / 1000.0);
        let due = self.not_after.checked_sub(left + early).unwrap_or(self.not_before);
        // A time of storing that lies ahead was written by a wrong clock: it says nothing.
        let stored = if self.stored_at <= now { self.stored_at } else { SystemTime::UNIX_EPOCH };
        due.max(stored + lifetime / 4)
    }
}

/// When to try again after `failures` failures in a row, of which the last asked for `retry`.
///
/// 1, 10, 100 minutes, then daily, +-10 %, and always early enough that three more attempts fit before `not_after`; at least
/// hourly once the certificate has expired. The CA's own moment wins over the schedule, capped by a day and by the point
/// where a tenth of the lifetime is left; after that point the schedule caps it, so that a CA is not asked in a loop.
pub(super) fn retry_at(
    failures: u32,
    retry: Retry,
    held: Option<&Held>,
    now: SystemTime,
    dice: f64,
) -> SystemTime {
    let scheduled = match retry {
        Retry::Park => DAY,
        _ => RETRIES.after(failures),
    };
    let scheduled = jitter(scheduled, 10.0, dice);
    let compressed = match held {
        None => scheduled,
        Some(held) => match held.not_after.duration_since(now) {
            Ok(left) => scheduled.min(left / 4),
            Err(_expired) => scheduled.min(AFTER_EXPIRY),
        },
    };
    let ours = now + compressed.max(SHORTEST_RETRY);
    let Retry::At(theirs) = retry else { return ours };
    let latest = held.map_or(now + DAY, |held| {
        let floor = held.not_after.checked_sub(held.lifetime() / 10).unwrap_or(now);
        (now + DAY).min(floor.max(ours))
    });
    theirs.min(latest).max(now + SHORTEST_RETRY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: Duration = Duration::from_secs(1_800_000_000);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + EPOCH + Duration::from_secs(seconds)
    }

    fn held(lifetime: u64) -> Held {
        Held { not_before: at(0), not_after: at(lifetime), stored_at: at(0), spread: 0 }
    }

    #[test]
    fn the_certificate_says_when() {
        const D: u64 = 24 * 3600;
        for (lifetime, due) in [(90 * D, 60 * D), (45 * D, 30 * D), (160 * 3600, 80 * 3600), (60, 30)] {
            assert_eq!(held(lifetime).renew_at(at(0)), at(due), "{lifetime}");
        }
        let spread = Held { spread: 1000, ..held(90 * D) };
        assert_eq!(spread.renew_at(at(0)), at(57 * D));
    }

    #[test]
    fn a_wrong_clock_makes_no_loop() {
        let ahead = Held { stored_at: at(1_000_000), ..held(600) };
        assert_eq!(
            ahead.renew_at(at(1_000_000)),
            at(1_000_150),
            "just stored, already past its end: a quarter is waited"
        );
        let behind = Held { stored_at: at(1_000_000), ..held(600) };
        assert_eq!(behind.renew_at(at(0)), at(300), "stored in the future: ignored");
    }

    #[test]
    fn waits_grow_and_shrink_again_before_the_end() {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        let wait = |failures, held: Option<&Held>, now| {
            retry_at(failures, Retry::Backoff, held, now, 0.5).duration_since(now).unwrap()
        };
        assert_eq!(
            [1, 2, 3, 4, 9].map(|n| wait(n, None, at(0))),
            [minutes(1), minutes(10), minutes(100), DAY, DAY]
        );
        let cert = held(8 * 24 * 3600);
        assert_eq!(wait(9, Some(&cert), at(7 * 24 * 3600)), Duration::from_secs(6 * 3600));
        assert_eq!(wait(9, Some(&cert), at(9 * 24 * 3600)), AFTER_EXPIRY);
        assert_eq!(wait(1, Some(&held(60)), at(30)), Duration::from_millis(7500));
    }

    #[test]
    fn the_cas_moment_wins_within_reason() {
        let cert = held(100_000);
        let theirs =
            |seconds, held: Option<&Held>| retry_at(1, Retry::At(at(seconds)), held, at(50_000), 0.5);
        assert_eq!(theirs(60_000, Some(&cert)), at(60_000));
        assert_eq!(theirs(99_000, Some(&cert)), at(90_000), "a tenth is left: the floor");
        assert_eq!(theirs(900_000, None), at(50_000) + DAY);
        assert_eq!(theirs(0, None), at(50_000) + SHORTEST_RETRY);
        let late = |now, failures| {
            retry_at(failures, Retry::At(at(now + 3600)), Some(&cert), at(now), 0.5)
                .duration_since(at(now))
                .unwrap()
        };
        assert_eq!(
            late(95_000, 1),
            Duration::from_secs(60),
            "past the floor: on the schedule, not every second"
        );
        assert_eq!(late(95_000, 2), Duration::from_secs(600));
        assert_eq!(late(200_000, 9), AFTER_EXPIRY, "expired: no loop either");
    }

    proptest! {
        #[test]
        fn three_attempts_always_fit(lifetime in 60u64..10_000_000, gone in 0.0f64..0.99, failures in 1u32..20, dice in 0.0f64..1.0) {
            let cert = held(lifetime);
            let mut now = at(0) + Duration::from_secs(lifetime).mul_f64(gone);
            for n in 0..3 {
                now = retry_at(failures + n, Retry::Backoff, Some(&cert), now, dice);
                prop_assert!(now < cert.not_after || cert.not_after.duration_since(at(0)).unwrap().mul_f64(1.0 - gone) < Duration::from_secs(4));
            }
        }

        #[test]
        fn renewal_lies_inside_the_lifetime(lifetime in 60u64..100_000_000, spread in 0u16..=1000) {
            let cert = Held { spread, ..held(lifetime) };
            let due = cert.renew_at(at(0));
            prop_assert!(due > cert.not_before && due < cert.not_after);
        }
    }
}
