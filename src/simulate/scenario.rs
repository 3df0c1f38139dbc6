//! What is simulated: which certificates, which CAs, which mishaps.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::ca::CaModel;
use crate::certs::Holding;
use crate::issuer::{CaLimits, Rate};
use crate::ledger::Book;
use crate::name::HostPattern;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The same seed, the same run.
    pub seed: u64,
    /// The first moment.
    pub start: SystemTime,
    /// What is there then.
    pub begins: Beginning,
    /// How long.
    pub length: Duration,
    /// What is wanted.
    pub certificates: Vec<SimulatedCert>,
    /// Who signs.
    pub cas: Vec<CaModel>,
    /// Moments at which the process is killed and started again; sorted.
    pub restarts: Vec<SystemTime>,
    /// Names that cannot be proven for a time: of these certificates, in this time.
    pub broken_dns: Vec<(usize, Range<SystemTime>)>,
    /// Whether every renewal is remembered.
    pub keep_renewals: bool,
}

/// What is there at the first moment; by default nothing. The model CAs have counted nothing before it: the books know more, and hold
/// orders back by themselves.
#[derive(Clone, Debug, Default)]
pub struct Beginning {
    /// Certificates that are held, by their number in the scenario.
    pub held: BTreeMap<usize, Holding>,
    /// What is known to be counted by CAs, by theirs.
    pub counted: BTreeMap<usize, Book>,
    /// CAs that have an account of ours.
    pub registered: BTreeSet<usize>,
}

/// A certificate that is wanted.
#[derive(Clone, Debug)]
pub struct SimulatedCert {
    /// Its names, sorted.
    pub names: Arc<[HostPattern]>,
    /// Its CAs by number, the preferred one first.
    pub cas: Vec<usize>,
}

impl Scenario {
    /// `length` from `start` with nothing but `certificates` and `cas`.
    pub fn calm(
        seed: u64,
        start: SystemTime,
        length: Duration,
        certificates: Vec<SimulatedCert>,
        cas: Vec<CaModel>,
    ) -> Self {
        Self {
            seed,
            start,
            begins: Beginning::default(),
            length,
            certificates,
            cas,
            restarts: Vec::new(),
            broken_dns: Vec::new(),
            keep_renewals: false,
        }
    }

    /// Restarts the process `times`, at any moment.
    pub fn with_restarts(mut self, times: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0x1a57);
        self.restarts = (0..times).map(|_| self.start + self.length.mul_f64(rng.random::<f64>())).collect();
        self.restarts.sort();
        self
    }

    /// Takes the CA number `ca` down for `share` of the time: one outage of `longest`, the others shorter.
    pub fn with_outages(mut self, ca: usize, share: f64, longest: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(self.seed ^ 0xd0 ^ ca as u64);
        let (mut left, mut lengths) = (self.length.mul_f64(share), Vec::new());
        while !left.is_zero() {
            let most = longest.min(left);
            let length = if lengths.is_empty() { most } else { most.mul_f64(rng.random::<f64>().powi(3)) };
            let length = length.max(HOUR / 6).min(left);
            lengths.push(length);
            left -= length;
        }
        lengths.shuffle(&mut rng);
        // One slot each, so that they do not overlap.
        let slot = self.length / u32::try_from(lengths.len()).unwrap_or(u32::MAX).max(1);
        let mut outages = Vec::new();
        for (n, length) in lengths.iter().enumerate() {
            let begin = self.start + slot * u32::try_from(n).unwrap_or(u32::MAX);
            let begin = begin + slot.saturating_sub(*length).mul_f64(rng.random::<f64>());
            outages.push(begin..begin + *length);
        }
        if let Some(model) = self.cas.get_mut(ca) {
            model.outages = outages;
        }
        self
    }
}

/// Let's Encrypt's limits and calendar as published in 2026, for a profile (`classic`, `tlsserver`, `shortlived`).
pub fn lets_encrypt(profile: &str) -> CaModel {
    let day = |days: u64| SystemTime::UNIX_EPOCH + DAY * u32::try_from(days).unwrap_or(0);
    let lifetimes = match profile {
        "shortlived" => vec![(SystemTime::UNIX_EPOCH, 160 * HOUR)],
        "tlsserver" => vec![(SystemTime::UNIX_EPOCH, 45 * DAY)],
        // 90 days, 64 from 2027-02-10, 45 from 2028-02-16.
        _ => vec![(SystemTime::UNIX_EPOCH, 90 * DAY), (day(20_859), 64 * DAY), (day(21_230), 45 * DAY)],
    };
    CaModel {
        name: format!("Let's Encrypt ({profile})"),
        limits: CaLimits {
            names: Some(Rate { burst: 5, every: 34 * HOUR }),
            domain: Some(Rate { burst: 50, every: Duration::from_secs(202 * 60) }),
            orders: Some(Rate { burst: 300, every: Duration::from_secs(36) }),
            failures: Some(Rate { burst: 5, every: Duration::from_secs(12 * 60) }),
            accounts: Some(Rate { burst: 10, every: Duration::from_secs(18 * 60) }),
            pause_after: Some(1152),
        },
        lifetimes,
        windows: true,
        outages: Vec::new(),
        slow: Vec::new(),
        revocations: Vec::new(),
        unlucky: 0.0,
    }
}

/// A CA without known limits and windows that signs for 90 days (47 from 2029-03-15, as all have to).
pub fn public_ca(name: &str) -> CaModel {
    let last = SystemTime::UNIX_EPOCH + DAY * 21_623;
    CaModel {
        name: name.to_owned(),
        limits: CaLimits::default(),
        lifetimes: vec![(SystemTime::UNIX_EPOCH, 90 * DAY), (last, 47 * DAY)],
        windows: false,
        ..lets_encrypt("classic")
    }
}
