//! What known CAs allow, as data. A CA that is not here is not counted unless the configuration says what it allows.
//!
//! * Let's Encrypt: <https://letsencrypt.org/docs/rate-limits/>, and for its staging
//!   <https://letsencrypt.org/docs/staging-environment/>.
//! * ZeroSSL documents no limit for certificates by ACME. Google Trust Services counts requests of a Cloud project, whose quota its
//!   owner can change. SSL.com counts what a subscription paid for. None of these can be counted from here.

use std::time::Duration;

use crate::issuer::{CaLimits, Rate};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// Production.
pub(super) fn lets_encrypt() -> CaLimits {
    CaLimits {
        names: Some(rate(5, 34 * HOUR)),
        domain: Some(rate(50, 202 * MINUTE)),
        orders: Some(rate(300, 36)),
        failures: Some(rate(5, 12 * MINUTE)),
        accounts: Some(rate(10, 18 * MINUTE)),
        pause_after: Some(1152),
    }
}

/// Staging. Its limit for a registered domain is 30,000 a second: none.
pub(super) fn lets_encrypt_staging() -> CaLimits {
    CaLimits {
        names: Some(rate(30_000, 20)),
        domain: None,
        orders: Some(Rate { burst: 1500, every: Duration::from_millis(7200) }),
        failures: Some(rate(200, 18)),
        accounts: Some(Rate { burst: 50, every: Duration::from_secs(216) }),
        pause_after: Some(3600),
    }
}

const fn rate(burst: u32, seconds: u64) -> Rate {
    Rate { burst, every: Duration::from_secs(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_refills_one_by_one_adds_up_to_the_documented_window() {
        let week = Duration::from_secs(7 * 24 * HOUR);
        let three_hours = Duration::from_secs(3 * HOUR);
        let fills = |rate: Option<Rate>, window: Duration| {
            let rate = rate.unwrap();
            let whole = rate.every * rate.burst;
            // The documentation rounds to whole minutes and hours.
            assert!(whole >= window.mul_f64(0.99) && whole <= window.mul_f64(1.02), "{rate:?} {whole:?}");
        };
        for (limits, failures) in [(lets_encrypt(), HOUR), (lets_encrypt_staging(), HOUR)] {
            fills(limits.names, week);
            fills(limits.orders, three_hours);
            fills(limits.accounts, three_hours);
            fills(limits.failures, Duration::from_secs(failures));
        }
        fills(lets_encrypt().domain, week);
    }
}
