//! When: pure arithmetic on the certificate itself and on what its CA says. Never a fixed number of days.

use std::time::{Duration, SystemTime};

use crate::backoff::{Backoff, jitter};
use crate::issuer::Retry;

/// Lifetimes under this are renewed at half, others with a third left.
const SHORT_LIFETIME: Duration = Duration::from_secs(10 * 24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The end of a window is left to orders that take their time.
const WINDOW_SHARE: f64 = 0.9;
/// Of so many moments inside a window, drawn at random, the one is taken for whose hour the fewest renewals are planned. Two
/// are enough to take the peaks off what chance alone would pile up, and leave every moment of the window possible.
const THROWS: u8 = 2;
/// A CA with limits signs the same set of names once in this time (Let's Encrypt's refill for one exact set).
const GAP: Duration = Duration::from_secs(34 * 3600);
/// From so many certificates on, they are kept from being ordered together.
pub(crate) const FLEET: usize = 100;
/// Behind a limit that all wait for, nobody looks more often than this in the end.
const LONGEST_QUEUE: Duration = Duration::from_secs(3 * 3600);
/// No wait of ours is longer: a day, with jitter.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(27 * 3600);
/// Without a certificate to lose there is no hurry; with an expired one there is.
const AFTER_EXPIRY: Duration = HOUR;
/// Nothing is tried more often than this, however little is left.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

const RETRIES: Backoff =
    Backoff::new(&[Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(6000), DAY]);

/// A certificate that is held, as far as time is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// When it was stored, by this machine's clock of that time; when it was taken back to, if it was.
    pub(crate) stored_at: SystemTime,
    /// From the serial: spreads renewals, and is the same after a restart.
    pub(crate) seed: u64,
    /// Which of the wanted CAs signed it.
    pub(crate) issuer: u8,
    /// It was ordered within a quarter of its predecessor's lifetime: a second time in a row that needs more than a CA's word.
    pub(crate) hurried: bool,
    /// A person went back to it: it is renewed as late as can be.
    pub(crate) rolled_back: bool,
    /// It was not ordered at a moment of its own but when many are: first, late, or revoked.
    pub(crate) bunched: bool,
}

/// What matters of a CA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// It counts, and we know how.
    pub(crate) limited: bool,
    /// It may be asked for renewal windows.
    pub(crate) hints: bool,
    /// So many certificates come from it that they must not all be ordered at one time.
    pub(crate) fleet: bool,
}

/// When a CA wants a certificate to be renewed (RFC 9773 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its first moment.
    pub start: SystemTime,
    /// The moment after its last one.
    pub end: SystemTime,
}

/// When to renew, and why then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at: SystemTime,
    pub(crate) why: Why,
}

/// Why a certificate is renewed when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A third of the lifetime is left, or half of a short one.
    Lifetime,
    /// A moment inside the CA's window.
    Window(Window),
    /// The CA's window is over: it wants it now, as before a mass revocation.
    Overdue,
    /// A tenth of the lifetime is left: whatever anybody says.
    Floor,
    /// It was issued not long ago, and the CA counts.
    Gap,
    /// A person went back to it.
    RolledBack,
    /// It was ordered together with many others: renewed early once, so that they come apart.
    Fleet,
    /// It was revoked.
    Revoked,
}

impl Held {
    /// What was signed at `now` by the CA number `issuer` in place of `predecessor`.
    pub(crate) fn signed(
        dates: (SystemTime, SystemTime),
        now: SystemTime,
        seed: u64,
        issuer: u8,
        predecessor: Option<&Self>,
    ) -> Self {
        let hurried = predecessor.is_some_and(|p| now < p.stored_at + p.lifetime() / 4);
        let bunched = predecessor.is_none_or(|p| !p.is_its_own_moment(now));
        let (not_before, not_after) = dates;
        Self { not_before, not_after, stored_at: now, seed, issuer, hurried, rolled_back: false, bunched }
    }

    /// Whether its own schedule explains that it is renewed at `now`.
    fn is_its_own_moment(&self, now: SystemTime) -> bool {
        let near = |moment: SystemTime| {
            let slack = self.lifetime() / 50;
            moment.checked_sub(slack).is_some_and(|from| from <= now) && now <= moment + slack
        };
        let third = self.before_end(self.left());
        near(third) || near(self.by_dates()) || (self.bunched && near(self.apart()))
    }

    /// Where a fleet that was ordered at once comes apart: anywhere between the minimum gap and the usual moment.
    fn apart(&self) -> SystemTime {
        let from = self.stored_at + self.gap();
        let room = self.by_dates().duration_since(from).unwrap_or_default();
        from + room.mul_f64(fraction(mix(self.seed ^ 0xa9a7)))
    }

    pub(crate) fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// The moment after which it is renewed whatever a CA or the ledger says: a tenth of the lifetime is left.
    pub(crate) fn floor(&self) -> SystemTime {
        self.before_end(self.lifetime() / 10)
    }

    /// When a CA that is preferred but down or limited has had its time: half of what was left when it fell due.
    pub(crate) fn need(&self) -> SystemTime {
        self.before_end(self.left() / 2)
    }

    /// Whether it would be renewed at once if it had been held for long.
    pub(crate) fn is_due_by_its_dates(&self, now: SystemTime) -> bool {
        self.by_dates() <= now
    }

    /// When to renew, by a window of the CA if there is a valid one; `throw` says which of its moments was chosen.
    ///
    /// Two things make it later, though never later than the floor: a CA with limits (`limited`) is not asked twice within the
    /// minimum gap unless it says itself that the time is over, once in a row; and nothing is renewed by its dates within a
    /// quarter of its lifetime after it was stored, or a clock that is ahead would make a loop.
    pub(crate) fn due(&self, window: Option<Window>, throw: u8, terms: Terms, now: SystemTime) -> Due {
        let floor = self.floor();
        if self.rolled_back {
            let rest = self.not_after.duration_since(self.stored_at).unwrap_or_default();
            return Due { at: floor.max(self.stored_at + rest / 2), why: Why::RolledBack };
        }
        let (at, why) = match window.filter(|w| w.start < w.end) {
            Some(w) if w.end <= now => (self.moment_in(w, throw), Why::Overdue),
            Some(w) => (self.moment_in(w, throw), Why::Window(w)),
            None => (self.by_dates(), Why::Lifetime),
        };
        let (at, why) = if floor < at { (floor, Why::Floor) } else { (at, why) };
        let (at, why) = match self.apart() {
            apart if terms.fleet && self.bunched && apart < at => (apart, Why::Fleet),
            _ => (at, why),
        };
        let (quarter, gap) = (self.lifetime() / 4, self.gap());
        let pause = match why {
            Why::Overdue if !self.hurried => Duration::ZERO,
            Why::Fleet => gap,
            Why::Overdue | Why::Window(_) if terms.limited => gap,
            Why::Window(_) if !self.hurried => Duration::ZERO,
            _ => quarter,
        };
        let earliest = self.after(pause, now);
        if earliest <= at { Due { at, why } } else { Due { at: earliest, why: Why::Gap } }
    }

    /// The end of the minimum gap between two certificates for one set of names at a CA with limits.
    pub(crate) fn gap_ends(&self, now: SystemTime) -> SystemTime {
        self.after(self.gap(), now)
    }

    fn gap(&self) -> Duration {
        GAP.min(self.lifetime() / 4)
    }

    /// `pause` after it was stored, or the floor if that is earlier. One that was past its floor when it was stored comes from a
    /// wrong clock or a confused CA: then nothing is hurried.
    fn after(&self, pause: Duration, now: SystemTime) -> SystemTime {
        // A time of storing that lies ahead was written by a wrong clock: it says nothing.
        if self.stored_at > now || pause.is_zero() {
            return SystemTime::UNIX_EPOCH;
        }
        let floor = self.floor();
        match floor.duration_since(self.stored_at) {
            Ok(rest) if rest >= self.lifetime() / 20 => floor.min(self.stored_at + pause),
            _ => self.stored_at + self.lifetime() / 4,
        }
    }

    /// 1/3 of the lifetime left (1/2 under ten days), up to 1/30 earlier by the seed.
    fn by_dates(&self) -> SystemTime {
        self.before_end(self.left() + (self.lifetime() / 30).mul_f64(fraction(self.seed)))
    }

    fn left(&self) -> Duration {
        let lifetime = self.lifetime();
        if lifetime < SHORT_LIFETIME { lifetime / 2 } else { lifetime / 3 }
    }

    fn before_end(&self, left: Duration) -> SystemTime {
        self.not_after.checked_sub(left).unwrap_or(self.not_before)
    }

    /// The throw of the dice whose moment in `window` has the fewest renewals around it, as `planned` counts them. All are
    /// uniformly random in the window (RFC 9773 section 4.2), so that whichever is taken does not endanger the certificate.
    pub(crate) fn quietest(&self, window: Window, planned: impl Fn(SystemTime) -> u32) -> u8 {
        (0..THROWS).min_by_key(|throw| planned(self.moment_in(window, *throw))).unwrap_or(0)
    }

    /// The same moment for the same certificate, window and throw, anywhere inside the window.
    fn moment_in(&self, window: Window, throw: u8) -> SystemTime {
        let seconds = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let seed = (0..throw).fold(self.seed, |seed, _| mix(seed));
        let mixed = mix(seed ^ mix(seconds(window.start)) ^ seconds(window.end).rotate_left(32));
        let width = window.end.duration_since(window.start).unwrap_or_default();
        window.start + width.mul_f64(fraction(mixed) * WINDOW_SHARE)
    }

    /// When a CA is first asked for its window: soon, and not all at once.
    pub(crate) fn first_poll(&self, now: SystemTime) -> SystemTime {
        now + self.shortest_poll().mul_f64(fraction(mix(self.seed)))
    }

    /// When a CA is asked again that said `theirs`: within 1 h to 24 h, less for short lifetimes, +-10 %.
    pub(crate) fn next_poll(&self, theirs: SystemTime, now: SystemTime, dice: f64) -> SystemTime {
        let wait = theirs.duration_since(now).unwrap_or_default();
        now + jitter(wait.clamp(self.shortest_poll(), self.longest_poll()), 10.0, dice)
    }

    /// When a CA is asked again that did not answer `misses` times in a row.
    pub(crate) fn poll_after_failure(&self, misses: u8, now: SystemTime, dice: f64) -> SystemTime {
        let wait = self.shortest_poll() * (1 << u32::from(misses.min(5)));
        now + jitter(wait.min(self.longest_poll()), 10.0, dice)
    }

    fn shortest_poll(&self) -> Duration {
        HOUR.min(self.lifetime() / 50)
    }

    fn longest_poll(&self) -> Duration {
        DAY.min(self.lifetime() / 20)
    }
}

/// `0.0..1.0`.
pub(crate) fn fraction(seed: u64) -> f64 {
    (seed >> 11) as f64 / (1u64 << 53) as f64
}

/// One step of splitmix64: neighbours go far apart.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// When to look again after an order was held back until `until`, for the `times`th time in a row. Many may wait for the same
/// limit: they come later and later, each at a moment of its own, and never past the floor of what they hold.
pub(crate) fn after_refusal(
    until: SystemTime,
    times: u8,
    held: Option<&Held>,
    now: SystemTime,
    dice: f64,
) -> SystemTime {
    let queue = Duration::from_secs(60 << u32::from(times.min(8))).min(LONGEST_QUEUE);
    let moment = until + queue.mul_f64(dice);
    let floor = held.map(Held::floor).filter(|floor| *floor > now);
    floor.map_or(moment, |floor| moment.min(floor))
}

/// When to try again after `failures` failures in a row, of which the last asked for `retry`.
///
/// What waits for a person is looked at within a day, or, where the CA wants that person first, once a day whatever is left.
/// Else 1, 10, 100 minutes, then daily, +-10 %, and always early enough that three more attempts fit before `not_after`; at least
/// hourly once the certificate has expired. The CA's own moment wins over the schedule, capped by a day and by the point
/// where a tenth of the lifetime is left; after that point the schedule caps it, so that a CA is not asked in a loop.
pub(crate) fn retry_at(
    failures: u32,
    retry: Retry,
    held: Option<&Held>,
    now: SystemTime,
    dice: f64,
) -> SystemTime {
    let scheduled = match retry {
        Retry::Pause => return now + DAY,
        Retry::Park => jitter(DAY.mul_f64(0.95), 100.0 / 19.0, dice),
        _ => jitter(RETRIES.after(failures), 10.0, dice),
    };
    let compressed = match held {
        None => scheduled,
        Some(held) => match held.not_after.duration_since(now) {
            Ok(left) => scheduled.min(left / 4),
            Err(_expired) => scheduled.min(AFTER_EXPIRY),
        },
    };
    let ours = now + compressed.max(SHORTEST_RETRY);
    let Retry::At(theirs) = retry else { return ours };
    let latest = held.map_or(now + DAY, |held| (now + DAY).min(held.floor().max(ours)));
    theirs.min(latest).max(now + SHORTEST_RETRY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: Duration = Duration::from_secs(1_800_000_000);
    const H: u64 = 3600;
    const D: u64 = 24 * H;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + EPOCH + Duration::from_secs(seconds)
    }

    fn terms(limited: bool) -> Terms {
        Terms { limited, hints: true, fleet: false }
    }

    fn held(lifetime: u64) -> Held {
        Held::signed((at(0), at(lifetime)), at(0), 0, 0, None)
    }

    fn window(start: u64, end: u64) -> Option<Window> {
        Some(Window { start: at(start), end: at(end) })
    }

    #[test]
    fn the_certificate_says_when() {
        for (lifetime, due) in
            [(90 * D, 60 * D), (64 * D, 64 * D * 2 / 3), (45 * D, 30 * D), (160 * H, 80 * H), (60, 30)]
        {
            for limited in [false, true] {
                assert_eq!(held(lifetime).due(None, 0, terms(limited), at(0)).at, at(due), "{lifetime}");
            }
        }
        let spread = Held { seed: u64::MAX, ..held(90 * D) };
        let early = at(60 * D).duration_since(spread.due(None, 0, terms(false), at(0)).at).unwrap();
        assert!((2.99..=3.0).contains(&(early.as_secs_f64() / D as f64)), "{early:?}");
    }

    #[test]
    fn the_cas_window_says_when() {
        let cert = held(90 * D);
        // window, limited, now, earliest, latest, why
        let inside = |w: Option<Window>| Why::Window(w.unwrap());
        let (usual, soon, past, late) =
            (window(59 * D, 61 * D), window(H, 2 * H), window(10 * D, 11 * D), window(85 * D, 86 * D));
        let narrow = window(81 * D - 1, 99 * D);
        for (window, limited, now, from, to, why) in [
            (usual, true, 30 * D, 59 * D, 61 * D, inside(usual)),
            (soon, false, 0, H, 2 * H, inside(soon)),
            (soon, true, 0, 34 * H, 34 * H, Why::Gap), // the CA's word is kept, but not within the gap
            (past, true, 12 * D, 10 * D, 11 * D, Why::Overdue), // long past the gap
            (window(0, 60), true, H, 0, 60, Why::Overdue), // the past needs no gap
            (late, true, 30 * D, 81 * D, 81 * D, Why::Floor),
            (narrow, true, 30 * D, 81 * D - 1, 81 * D, Why::Floor),
            (window(60 * D, 60 * D), true, 30 * D, 60 * D, 60 * D, Why::Lifetime), // no window at all
            (window(70 * D, 60 * D), true, 30 * D, 60 * D, 60 * D, Why::Lifetime),
        ] {
            let due = cert.due(window, 0, terms(limited), at(now));
            assert!(due.at >= at(from) && due.at <= at(to), "{window:?} {limited} {now}: {due:?}");
            assert_eq!(due.why, why, "{window:?}");
            assert_eq!(due, cert.due(window, 0, terms(limited), at(now)), "chosen once");
        }
    }

    #[test]
    fn moments_are_spread_over_the_window_and_change_with_it() {
        let moments = |window: Option<Window>| -> Vec<f64> {
            (0..1000u64)
                .map(|n| {
                    let due = Held { seed: mix(n), ..held(90 * D) }.due(window, 0, terms(true), at(0)).at;
                    due.duration_since(window.unwrap().start).unwrap().as_secs_f64() / (2 * D) as f64
                })
                .collect()
        };
        let (one, two) = (moments(window(58 * D, 60 * D)), moments(window(60 * D, 62 * D)));
        for decile in 0..10 {
            let edge = |n: u8| f64::from(n) * WINDOW_SHARE / 10.0;
            let range = edge(decile)..edge(decile + 1);
            let count = one.iter().filter(|m| range.contains(m)).count();
            assert!((60..=140).contains(&count), "{count} in {range:?}");
        }
        assert!(one.iter().all(|m| *m < WINDOW_SHARE), "the end is left to slow orders");
        let same = one.iter().zip(&two).filter(|(a, b)| (**a - **b).abs() < 0.01).count();
        assert!(same < 100, "another window is another throw of the dice: {same}");
    }

    #[test]
    fn of_two_moments_in_the_window_the_quieter_one_is_taken() {
        let fortnight = Window { start: at(50 * D), end: at(64 * D) };
        for n in 0..100 {
            let cert = Held { seed: mix(n), ..held(90 * D) };
            let moments: Vec<SystemTime> =
                (0..THROWS).map(|throw| cert.moment_in(fortnight, throw)).collect();
            assert!(
                moments.iter().all(|m| (fortnight.start..fortnight.end).contains(m))
                    && moments[0] != moments[1]
            );
            assert_eq!(cert.quietest(fortnight, |_| 3), 0, "chance decides where nothing else does");
            for (throw, quiet) in moments.iter().enumerate() {
                let taken = cert.quietest(fortnight, |moment| u32::from(moment != *quiet));
                assert_eq!(usize::from(taken), throw);
                let due = cert.due(Some(fortnight), taken, terms(true), at(0));
                assert_eq!(due, Due { at: *quiet, why: Why::Window(fortnight) });
            }
        }
    }

    #[test]
    fn a_ca_that_always_says_now_is_obeyed_once() {
        let past = window(0, 60);
        let first = held(90 * D);
        assert_eq!(first.due(past, 0, terms(true), at(H)).why, Why::Overdue);
        for (limited, gap) in [(true, 34 * H), (false, 90 * D / 4)] {
            let second = Held::signed((at(H), at(90 * D + H)), at(H), 1, 0, Some(&first));
            assert!(second.hurried);
            let due = second.due(past, 0, terms(limited), at(2 * H));
            assert_eq!((due.at, due.why), (at(H + gap), Why::Gap), "{limited}");
        }
        let later = Held::signed((at(60 * D), at(150 * D)), at(60 * D), 1, 0, Some(&first));
        assert!(!later.hurried, "an ordinary renewal");
    }

    #[test]
    fn the_gap_is_34_hours_or_a_quarter_and_ends_at_the_floor() {
        for (lifetime, ends) in [(90 * D, 34 * H), (160 * H, 34 * H), (100 * H, 25 * H), (60, 15)] {
            assert_eq!(held(lifetime).gap_ends(at(0)), at(ends), "{lifetime}");
        }
        // Fetched late, with a sixth left: the gap would end after the floor.
        let late = Held { stored_at: at(500 * H), ..held(600 * H) };
        assert_eq!(late.gap_ends(at(510 * H)), at(534 * H));
        let later = Held { stored_at: at(509 * H), ..held(600 * H) };
        assert_eq!(later.gap_ends(at(510 * H)), at(540 * H), "the floor");
    }

    #[test]
    fn what_a_person_went_back_to_is_renewed_late() {
        let back = Held { stored_at: at(65 * D), rolled_back: true, ..held(90 * D) };
        let now = window(60 * D, 61 * D);
        assert_eq!(back.due(now, 0, terms(true), at(66 * D)), Due { at: at(81 * D), why: Why::RolledBack });
        let late = Held { stored_at: at(86 * D), ..back };
        assert_eq!(late.due(now, 0, terms(true), at(86 * D)).at, at(88 * D), "half of what is left");
    }

    #[test]
    fn polls_come_when_the_ca_says_within_reason() {
        let hours = |lifetime, theirs: u64| {
            held(lifetime).next_poll(at(theirs), at(0), 0.5).duration_since(at(0)).unwrap().as_secs()
        };
        assert_eq!(
            [0, 6 * H, 90 * H].map(|theirs| hours(90 * D, theirs)),
            [H, 6 * H, 24 * H],
            "one hour to a day"
        );
        assert_eq!([0, 6 * H, 90 * H].map(|theirs| hours(160 * H, theirs)), [H, 6 * H, 8 * H]);
        assert_eq!([0, 6 * H].map(|theirs| hours(600, theirs)), [12, 30], "a lifetime of minutes");
        let misses = |n| held(90 * D).poll_after_failure(n, at(0), 0.5).duration_since(at(0)).unwrap();
        assert_eq!([0, 1, 4, 200].map(|n| misses(n).as_secs() / H), [1, 2, 16, 24]);
        for seed in 0..100 {
            let first = Held { seed: mix(seed), ..held(90 * D) }.first_poll(at(0));
            assert!(first >= at(0) && first <= at(H));
        }
    }

    #[test]
    fn a_fleet_that_was_ordered_at_once_comes_apart() {
        let fleet = Terms { fleet: true, ..terms(true) };
        let together: Vec<Held> = (0..1000).map(|n| Held { seed: mix(n), ..held(90 * D) }).collect();
        let moments = |fleet| together.iter().map(|h| h.due(None, 0, fleet, at(0)).at).collect::<Vec<_>>();
        assert!(
            moments(terms(true)).iter().all(|m| *m >= at(57 * D)),
            "a few are renewed when they always are"
        );
        let (mut weeks, apart) = ([0; 9], moments(fleet));
        for moment in &apart {
            assert!(*moment >= at(0) + GAP);
            weeks[(moment.duration_since(at(0)).unwrap().as_secs() / (7 * D)) as usize] += 1;
        }
        assert!(weeks[..8].iter().all(|n| (60..180).contains(n)), "{weeks:?}");
        for (one, moment) in together.iter().zip(&apart) {
            let dates = (*moment, *moment + Duration::from_secs(90 * D));
            let next = Held::signed(dates, *moment, 7, 0, Some(one));
            assert!(!next.bunched, "its moment was its own");
            let usual = next.not_after - Duration::from_secs(33 * D);
            assert!(next.due(None, 0, fleet, *moment).at >= usual, "once is enough");
        }
        let late = Held::signed(
            (at(70 * D), at(160 * D)),
            at(70 * D),
            7,
            0,
            Some(&Held { bunched: false, ..together[0] }),
        );
        assert!(late.bunched, "after an outage many are late together");
    }

    #[test]
    fn behind_a_limit_everybody_has_a_moment_of_its_own() {
        let wait = |times, held: Option<&Held>, dice| {
            after_refusal(at(36), times, held, at(0), dice).duration_since(at(36)).unwrap()
        };
        assert_eq!([0.0, 0.5].map(|dice| wait(1, None, dice)), [Duration::ZERO, Duration::from_secs(60)]);
        assert_eq!(wait(255, None, 1.0), LONGEST_QUEUE);
        assert_eq!(
            after_refusal(at(90 * D), 1, Some(&held(90 * D)), at(0), 0.5),
            at(81 * D),
            "not past the floor"
        );
    }

    #[test]
    fn a_wrong_clock_makes_no_loop() {
        let ahead = Held { stored_at: at(1_000_000), ..held(600) };
        assert_eq!(
            ahead.due(None, 0, terms(true), at(1_000_000)).at,
            at(1_000_150),
            "just stored, already past its end: a quarter is waited"
        );
        let hurried = Held { hurried: true, ..ahead };
        assert_eq!(
            hurried.due(window(400, 410), 0, terms(true), at(1_000_000)).at,
            at(1_000_150),
            "with ARI too"
        );
        let behind = Held { stored_at: at(1_000_000), ..held(600) };
        assert_eq!(behind.due(None, 0, terms(true), at(0)).at, at(300), "stored in the future: ignored");
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
        let cert = held(8 * D);
        assert_eq!(wait(9, Some(&cert), at(7 * D)), Duration::from_secs(6 * 3600));
        assert_eq!(wait(9, Some(&cert), at(9 * D)), AFTER_EXPIRY);
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

    #[test]
    fn what_waits_for_a_person_is_looked_at_once_a_day() {
        let cert = held(90 * D);
        for dice in [0.0, 0.3, 0.999_999] {
            let wait = |retry, held, now| retry_at(3, retry, held, now, dice).duration_since(now).unwrap();
            let parked = wait(Retry::Park, None, at(0));
            assert!((DAY.mul_f64(0.899)..=DAY).contains(&parked), "{parked:?}");
            assert!(wait(Retry::Park, Some(&cert), at(89 * D)) < DAY / 3, "little is left");
            for now in [at(0), at(89 * D), at(91 * D)] {
                assert_eq!(wait(Retry::Pause, Some(&cert), now), DAY);
            }
        }
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
        fn renewal_lies_inside_the_lifetime(
            lifetime in 60u64..100_000_000,
            seed in any::<u64>(),
            start in 0u64..200_000_000,
            width in 0u64..10_000_000,
            limited in any::<bool>(),
            hurried in any::<bool>(),
            gone in 0.0f64..0.85,
        ) {
            let stored_at = at(0) + Duration::from_secs(lifetime).mul_f64(gone);
            let cert = Held { seed, hurried, stored_at, ..held(lifetime) };
            for window in [None, window(start, start + width)] {
                let due = cert.due(window, 0, terms(limited), stored_at).at;
                prop_assert!(due >= cert.not_before && due <= cert.floor(), "{due:?}");
            }
        }
    }
}
