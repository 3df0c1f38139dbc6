//! How many requests may be repeated: retries must not multiply the load of servers that are failing under it.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is saved is forgotten with this time constant, in seconds: a quiet night buys no storm in the morning.
const MEMORY: f64 = 10.0;
/// Repeats a second that are always allowed.
const FLOOR: f64 = 3.0;

/// Counts requests, and allows a share of them to be repeated. Takes no lock; a request costs one addition.
#[derive(Debug)]
pub(super) struct Budget {
    /// Requests since the last withdrawal.
    requests: AtomicU64,
    /// What was left after the last withdrawal (f32) and when that was (milliseconds, the low half).
    left: AtomicU64,
}

impl Budget {
    pub(super) fn new(now: u64) -> Self {
        Self { requests: AtomicU64::new(0), left: AtomicU64::new(pack((FLOOR * MEMORY) as f32, now)) }
    }

    /// Counts a request.
    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the right to repeat one request, if there is one; `percent` of requests may be repeated.
    pub(super) fn withdraw(&self, percent: u8, now: u64) -> bool {
        let requests = self.requests.swap(0, Ordering::Relaxed);
        let mut allowed = false;
        // The closure always gives a value, so this does not fail.
        let _ = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |packed| {
            let (left, at) = unpack(packed);
            // Another worker's clock reading may be a little ahead of this one.
            let elapsed = f64::from(((now as u32).wrapping_sub(at) as i32).max(0)) / 1000.0;
            let saved = saved(f64::from(left), requests, percent, elapsed);
            allowed = saved >= 1.0;
            Some(pack(if allowed { saved - 1.0 } else { saved } as f32, now))
        });
        allowed
    }
}

/// What there is to withdraw when `left` was there `elapsed` seconds ago and `requests` came evenly since. In the long run that
/// is what a share of the requests and the floor make in [`MEMORY`] seconds.
fn saved(left: f64, requests: u64, percent: u8, elapsed: f64) -> f64 {
    let earned = requests as f64 * f64::from(percent) / 100.0;
    if elapsed == 0.0 {
        return left + earned;
    }
    let fading = (-elapsed / MEMORY).exp();
    left * fading + (earned / elapsed + FLOOR) * MEMORY * (1.0 - fading)
}

fn pack(left: f32, now: u64) -> u64 {
    u64::from(left.to_bits()) << 32 | u64::from(now as u32)
}

fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs `seconds` at `rate` requests a second, each of which wants a repeat. Gives the repeats of the last ten seconds.
    fn run(budget: &Budget, start: u64, seconds: u64, rate: u64) -> u64 {
        let mut last = 0;
        for n in 0..seconds * rate {
            let now = start + n * 1000 / rate;
            budget.request();
            if budget.withdraw(20, now) && n >= (seconds - 10) * rate {
                last += 1;
            }
        }
        last
    }

    #[test]
    fn a_fifth_of_the_requests_and_three_a_second() {
        let budget = Budget::new(0);
        let repeats = run(&budget, 0, 60, 1000);
        assert!((2000..=2060).contains(&repeats), "{repeats} of 10,000 requests in 10 s");
        let quiet = run(&Budget::new(0), 0, 100, 1);
        assert_eq!(quiet, 10, "one a second is below the floor");
    }

    #[test]
    fn a_burst_may_use_what_ten_seconds_saved_and_no_more() {
        let budget = Budget::new(0);
        for _ in 0..3_600_000 {
            budget.request(); // an hour at 1,000 a second
        }
        let burst = (0..10_000).filter(|_| budget.withdraw(20, 3_600_000)).count();
        assert!((2000..=2031).contains(&burst), "{burst}");
        assert!(!budget.withdraw(20, 3_600_000));
        assert!(budget.withdraw(20, 3_600_400), "three a second come in");
    }

    proptest! {
        #[test]
        fn never_more_than_the_share_and_the_floor(
            rate in 1_u64..2000,
            percent in 0_u8..=100,
            wants in prop::collection::vec(any::<bool>(), 4000),
        ) {
            let budget = Budget::new(0);
            let mut taken = 0;
            for (n, wants) in wants.iter().enumerate() {
                let now = n as u64 * 1000 / rate;
                budget.request();
                taken += u64::from(*wants && budget.withdraw(percent, now));
            }
            let seconds = wants.len() as f64 / rate as f64;
            let bound = wants.len() as f64 * f64::from(percent) / 100.0 + FLOOR * (MEMORY + seconds) + 1.0;
            prop_assert!(taken as f64 <= bound, "{taken} > {bound}");
        }
    }
}
