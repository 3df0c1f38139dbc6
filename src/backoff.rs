//! How long to wait before trying again: a pure schedule, and jitter on top.

use std::time::Duration;

/// Waits that grow from step to step; the last one repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    steps: &'static [Duration],
}

impl Backoff {
    /// `steps` must not be empty.
    pub const fn new(steps: &'static [Duration]) -> Self {
        assert!(!steps.is_empty(), "a schedule needs a step");
        Self { steps }
    }

    /// The wait after `failures` failures in a row (at least one), without jitter.
    pub fn after(&self, failures: u32) -> Duration {
        let index = (failures.max(1) as usize - 1).min(self.steps.len() - 1);
        self.steps[index]
    }
}

/// `wait` moved by up to `percent` either way; `dice` is a uniform number in `0.0..1.0`.
pub fn jitter(wait: Duration, percent: f64, dice: f64) -> Duration {
    wait.mul_f64(1.0 + (dice * 2.0 - 1.0) * percent / 100.0)
}

/// A uniform number in `0.0..1.0` for [`jitter`].
pub fn dice() -> f64 {
    rand::random::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_repeats_and_jitter_stays_inside() {
        const STEPS: &[Duration] = &[Duration::from_secs(60), Duration::from_secs(600)];
        let minutes = Backoff::new(STEPS);
        assert_eq!(minutes.after(0).as_secs(), 60);
        assert_eq!(minutes.after(1).as_secs(), 60);
        assert_eq!(minutes.after(2).as_secs(), 600);
        assert_eq!(minutes.after(99).as_secs(), 600);
        for d in [0.0, 0.5, 0.999] {
            let wait = jitter(Duration::from_secs(100), 10.0, d).as_secs_f64();
            assert!((90.0..=110.0).contains(&wait));
        }
    }
}
