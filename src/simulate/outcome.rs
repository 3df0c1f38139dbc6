//! What a run has shown.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// One hour's orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hour {
    /// Orders that CAs took.
    pub orders: u32,
    /// Of these, what was bounded by limits, outages or mass revocations, or is the first of its names.
    pub bounded: u32,
}

/// One certificate that was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Which of the scenario's certificates.
    pub certificate: usize,
    /// Which of the scenario's CAs.
    pub ca: usize,
    /// When.
    pub at: SystemTime,
    /// Its last moment.
    pub not_after: SystemTime,
}

/// Everything that was counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Certificates signed, first ones included.
    pub issued: u64,
    /// Orders that went to another CA than the preferred one.
    pub fallen_back: u64,
    /// Times at which an order was held back by the ledger.
    pub held_back: u64,
    /// Attempts that failed at a CA that was down.
    pub failed_down: u64,
    /// Attempts that failed at a validation.
    pub failed_validation: u64,
    /// Orders that a CA refused over a limit, by limit. Must stay empty.
    pub violations: BTreeMap<String, u64>,
    /// Certificates that were served after their end, with how long. Must stay empty.
    pub expired: Vec<(usize, Duration)>,
    /// Renewals that came after the CA's window although it was up all through it. Must stay empty.
    pub late: Vec<(usize, Duration)>,
    /// Questions for renewal windows.
    pub polls: u64,
    /// Restarts.
    pub restarts: u64,
    /// Machine steps.
    pub steps: u64,
    /// Hour by hour from the start.
    pub hours: Vec<Hour>,
    /// Every certificate that was signed, in order of time, if the scenario asked for it.
    pub renewals: Vec<Renewal>,
    /// The least that was left, as a share of the lifetime, when a certificate was replaced.
    pub closest: Option<f64>,
}

impl Outcome {
    /// The busiest hour and the mean of the whole run, of what nothing bounded.
    pub fn busiest(&self) -> (u32, f64) {
        let busiest = self.hours.iter().map(|hour| hour.orders - hour.bounded).max().unwrap_or(0);
        let quiet: Vec<u32> =
            self.hours.iter().filter(|hour| hour.bounded == 0).map(|hour| hour.orders).collect();
        let total: u32 = quiet.iter().sum();
        (busiest, f64::from(total) / quiet.len().max(1) as f64)
    }

    /// The busiest hour and the mean of its thirty days, in the thirty days where they are furthest apart: lifetimes, and with them
    /// the mean, change over the years, and where they shorten two generations overlap. Only what nothing bounded is counted.
    pub fn spread(&self) -> (u32, f64) {
        let months = self.hours.chunks(30 * 24).filter_map(|hours| {
            let quiet = hours.iter().filter(|hour| hour.bounded == 0);
            let (mut count, mut total) = (0_u32, 0_u32);
            for hour in quiet {
                (count, total) = (count + 1, total + hour.orders);
            }
            let busiest = hours.iter().map(|hour| hour.orders - hour.bounded).max()?;
            // Of a few hours, or a few orders, nothing can be said.
            (count > 24 * 5 && total > count).then(|| (busiest, f64::from(total) / f64::from(count)))
        });
        let apart = |(busiest, mean): &(u32, f64)| f64::from(*busiest) / mean;
        months.max_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap_or((0, 0.0))
    }
}
