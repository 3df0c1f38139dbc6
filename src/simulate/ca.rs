//! A CA that counts as a real one documents it, with outages, slow days and renewal windows.
//!
//! It shares nothing with the ledger: what one gets wrong, the other shows.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, SystemTime};

use rand::Rng;
use rand::rngs::StdRng;

use crate::certs::policy::{fraction, mix};
use crate::issuer::{CaLimits, Rate, RenewalHint};
use crate::ledger::domains;
use crate::name::HostPattern;

const HOUR: Duration = Duration::from_secs(3600);
/// What new accounts are counted under.
const ACCOUNTS: &str = "accounts";
const SHORT_LIFETIME: Duration = Duration::from_secs(10 * 24 * 3600);

/// What a CA is like over the simulated time.
#[derive(Clone, Debug)]
pub struct CaModel {
    /// For the report.
    pub name: String,
    /// Its limits; none of them set: it does not count.
    pub limits: CaLimits,
    /// The lifetime of what it signs, from each moment on; sorted, the first before the start.
    pub lifetimes: Vec<(SystemTime, Duration)>,
    /// Whether it offers renewal windows (RFC 9773).
    pub windows: bool,
    /// When it does not answer at all; sorted.
    pub outages: Vec<Range<SystemTime>>,
    /// When an order takes half an hour instead of a minute; sorted.
    pub slow: Vec<Range<SystemTime>>,
    /// Moments at which it asks for a share (`0.0..=1.0`) of what it signed to be replaced at once.
    pub revocations: Vec<(SystemTime, f64)>,
    /// The share of validations that fail for no lasting reason.
    pub unlucky: f64,
}

/// A certificate as its CA knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Signed {
    pub(super) serial: u64,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Signed {
    fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }
}

/// Why an order was not taken.
pub(super) enum Refused {
    Down,
    /// Over a limit: what the whole simulation is about.
    Limit(String),
}

/// An order that was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) ends: SystemTime,
    /// The CA took it as the successor of another certificate.
    pub(super) replaces: bool,
    /// It is so inside that one's window: nothing of it is counted.
    exempt: bool,
    lucky: bool,
}

pub(super) struct Ca {
    pub(super) model: CaModel,
    buckets: HashMap<String, Bucket>,
    issued: HashSet<Vec<HostPattern>>,
    replaced: HashSet<u64>,
    serials: u64,
    /// Our account is there.
    registered: bool,
}

struct Bucket {
    tokens: f64,
    at: SystemTime,
}

impl Ca {
    pub(super) fn new(model: CaModel) -> Self {
        Self {
            model,
            buckets: HashMap::new(),
            issued: HashSet::new(),
            replaced: HashSet::new(),
            serials: 0,
            registered: false,
        }
    }

    /// Registers our account before the first moment.
    pub(super) fn know_us(&mut self) {
        self.registered = true;
    }

    /// Has signed for `names` before the first moment.
    pub(super) fn has_signed(&mut self, names: &[HostPattern], dates: (SystemTime, SystemTime)) -> Signed {
        self.issued.insert(names.to_vec());
        self.serials += 1;
        Signed { serial: self.serials, not_before: dates.0, not_after: dates.1 }
    }

    pub(super) fn is_down(&self, now: SystemTime) -> bool {
        contains(&self.model.outages, now)
    }

    /// Whether our account is registered.
    pub(super) fn knows_us(&self) -> bool {
        self.registered
    }

    /// Registers our account, if it is not there yet.
    pub(super) fn register(&mut self, now: SystemTime) -> Result<(), Refused> {
        if self.registered {
            return Ok(());
        }
        if self.is_down(now) {
            return Err(Refused::Down);
        }
        if let Some(rate) = self.model.limits.accounts {
            if !self.has(ACCOUNTS, rate, now) {
                return Err(Refused::Limit(ACCOUNTS.to_owned()));
            }
            self.take(ACCOUNTS, rate, now);
        }
        self.registered = true;
        Ok(())
    }

    /// A new order, as the successor of `replaces` if there is one.
    pub(super) fn new_order(
        &mut self,
        names: &[HostPattern],
        replaces: Option<&Signed>,
        now: SystemTime,
        rng: &mut StdRng,
    ) -> Result<Order, Refused> {
        if self.is_down(now) {
            return Err(Refused::Down);
        }
        let replaces = replaces.filter(|old| self.model.windows && !self.replaced.contains(&old.serial));
        let exempt = replaces.is_some_and(|old| self.window(old, now).is_some_and(|w| w.contains(&now)));
        if !exempt {
            let renewal = self.issued.contains(names);
            for (bucket, rate, takes) in self.measured(names, renewal) {
                if !self.has(&bucket, rate, now) {
                    return Err(Refused::Limit(bucket));
                }
                if takes {
                    self.take(&bucket, rate, now);
                }
            }
        }
        let minutes = if contains(&self.model.slow, now) { 20.0..40.0 } else { 0.4..1.6 };
        let ends = now + Duration::from_secs_f64(rng.random_range(minutes) * 60.0);
        let lucky = !rng.random_bool(self.model.unlucky);
        Ok(Order { ends, replaces: replaces.is_some(), exempt, lucky })
    }

    /// The order's end. `Err(true)`: the CA is down, the order stays as it is; `Err(false)`: a validation failed.
    pub(super) fn finish(
        &mut self,
        order: &Order,
        names: &[HostPattern],
        replaces: Option<&Signed>,
        now: SystemTime,
    ) -> Result<Signed, bool> {
        if self.is_down(now) {
            return Err(true);
        }
        if !order.lucky {
            if let (Some(rate), Some(name)) = (self.model.limits.failures, names.first()) {
                self.take(&failures(name), rate, now);
            }
            return Err(false);
        }
        if !order.exempt {
            let renewal = self.issued.contains(names);
            for (bucket, rate, takes) in self.measured(names, renewal) {
                if !takes && !bucket.starts_with("failures") {
                    self.take(&bucket, rate, now);
                }
            }
        }
        if let Some(old) = replaces {
            self.replaced.insert(old.serial);
        }
        self.issued.insert(names.to_vec());
        self.serials += 1;
        // As Let's Encrypt does, an hour is taken off the beginning.
        Ok(Signed {
            serial: self.serials,
            not_before: now - HOUR,
            not_after: now - HOUR + self.lifetime(now),
        })
    }

    /// What it says when it is asked for a renewal window; `Err`: it is down.
    pub(super) fn hint(&self, signed: &Signed, now: SystemTime) -> Result<Option<RenewalHint>, ()> {
        if self.is_down(now) {
            return Err(());
        }
        Ok(self.window(signed, now).map(|window| RenewalHint {
            start: window.start,
            end: window.end,
            explanation: None,
            again_at: now + 6 * HOUR,
        }))
    }

    /// Two per cent of the lifetime around the point where a third is left, half of a short one; over at once when it is revoked.
    pub(super) fn window(&self, signed: &Signed, now: SystemTime) -> Option<Range<SystemTime>> {
        if !self.model.windows {
            return None;
        }
        let revoked = self.model.revocations.iter().find(|(at, share)| {
            signed.not_before < *at && *at <= now && fraction(mix(signed.serial ^ 0x5eed)) < *share
        });
        if let Some((at, _)) = revoked {
            return Some(*at - 2 * HOUR..*at - HOUR);
        }
        let lifetime = signed.lifetime();
        let left = if lifetime < SHORT_LIFETIME { lifetime / 2 } else { lifetime / 3 };
        let middle = signed.not_after - left;
        Some(middle - lifetime / 100..middle + lifetime / 100)
    }

    fn lifetime(&self, now: SystemTime) -> Duration {
        let in_force = self.model.lifetimes.iter().rev().find(|(from, _)| *from <= now);
        in_force.or(self.model.lifetimes.first()).map_or(90 * 24 * HOUR, |(_, lifetime)| *lifetime)
    }

    /// What an order is measured by, and whether it takes one at once (or when the CA signs, or not at all).
    fn measured(&self, names: &[HostPattern], renewal: bool) -> Vec<(String, Rate, bool)> {
        let limits = &self.model.limits;
        let mut all = Vec::new();
        for name in names {
            all.extend(limits.failures.map(|rate| (failures(name), rate, false)));
        }
        let set: Vec<String> = names.iter().map(ToString::to_string).collect();
        all.extend(limits.names.map(|rate| (format!("set {}", set.join(" ")), rate, false)));
        if !renewal {
            for domain in domains(names) {
                all.extend(limits.domain.map(|rate| (format!("domain {domain}"), rate, false)));
            }
            all.extend(limits.orders.map(|rate| ("orders".to_owned(), rate, true)));
        }
        all
    }

    fn has(&mut self, bucket: &str, rate: Rate, now: SystemTime) -> bool {
        self.fill(bucket, rate, now).tokens > 1.0 - 1e-6
    }

    fn take(&mut self, bucket: &str, rate: Rate, now: SystemTime) {
        self.fill(bucket, rate, now).tokens -= 1.0;
    }

    fn fill(&mut self, bucket: &str, rate: Rate, now: SystemTime) -> &mut Bucket {
        let full = f64::from(rate.burst);
        let bucket = self.buckets.entry(bucket.to_owned()).or_insert(Bucket { tokens: full, at: now });
        let passed = now.duration_since(bucket.at).unwrap_or_default();
        bucket.tokens = full.min(bucket.tokens + passed.as_secs_f64() / rate.every.as_secs_f64());
        bucket.at = now;
        bucket
    }
}

fn failures(name: &HostPattern) -> String {
    format!("failures {name}")
}

/// Whether one of the sorted `ranges` holds `now`.
pub(super) fn contains(ranges: &[Range<SystemTime>], now: SystemTime) -> bool {
    let after = ranges.partition_point(|range| range.start <= now);
    after.checked_sub(1).and_then(|i| ranges.get(i)).is_some_and(|range| range.contains(&now))
}
