//! Wall time, injected. Sleeping stays tokio's, so a paused runtime and a manual clock drive a year in seconds.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// What time it is.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, as the world counts it. May jump in both directions.
    fn now(&self) -> SystemTime;
}

/// A clock that everyone can hold.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that is set by hand.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Starts at `now`, which must be after 1970.
    pub fn new(now: SystemTime) -> Self {
        Self(AtomicU64::new(millis(now)))
    }

    /// Moves on by `by`.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Jumps to `now`.
    pub fn set(&self, now: SystemTime) {
        self.0.store(millis(now), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// That many seconds after 1970, and never after the year 9999: what was written down may be damaged, and nobody counts further.
pub fn at(seconds: u64) -> SystemTime {
    /// 9999-12-31T23:59:59Z, the last second that RFC 3339 and X.509 can write.
    const LAST: u64 = 253_402_300_799;
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `time` as RFC 3339 in UTC with seconds, for people and JSON.
pub fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_else(|_| "out of range".to_owned())
}

/// A clock that moves with tokio's timers: under a paused runtime, sleeping passes wall time too.
#[derive(Debug)]
pub struct TokioClock {
    base: SystemTime,
    started: tokio::time::Instant,
}

impl TokioClock {
    /// Reads `base` now. Must be made inside a runtime when that one is paused.
    pub fn starting_at(base: SystemTime) -> Self {
        Self { base, started: tokio::time::Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        self.base + self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_seconds_is_beyond_time() {
        assert_eq!(rfc3339(at(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(at(1_800_000_000)), "2027-01-15T08:00:00Z");
        assert_eq!(at(u64::MAX), at(253_402_300_799));
    }
}
