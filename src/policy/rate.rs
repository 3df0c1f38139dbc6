//! `rate_limit`: so many requests in a time, by the generic cell rate algorithm (GCRA): no timers, one number for each client.
//!
//! The number is the *theoretical arrival time*: when the client's allowance will be whole again. A request moves it on by the
//! time that one request is worth, and is refused if that would be further ahead than the burst.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::conn::network;

/// The fields of the IETF draft "RateLimit header fields for HTTP".
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What is remembered of clients: 64 shards of 128 buckets of 8, 16 bytes each, a megabyte for each rule once all of it is used.
const SHARDS: usize = 64;
const BUCKETS: usize = 128;
const WAYS: usize = 8;

/// So many requests in a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateSpec {
    /// At least 1.
    pub requests: u32,
    /// Not zero.
    pub per: Duration,
    /// How many of them may come at once; at least 1.
    pub burst: u32,
    /// Who shares an allowance.
    pub by: RateKey,
}

/// Who shares an allowance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateKey {
    /// All clients of the route.
    Route,
    /// An address; of IPv6, a /64.
    Ip,
    /// Whoever sends the same value in this field; without it, an address.
    Header(HeaderName),
}

impl std::fmt::Display for RateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Route => f.write_str("route"),
            Self::Ip => f.write_str("ip"),
            Self::Header(name) => write!(f, "header:{name}"),
        }
    }
}

/// Where a client stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many more may come at once.
    pub(super) remaining: u32,
    /// Seconds until the allowance is whole again.
    pub(super) reset: u32,
    /// Seconds until the next request is let in; 0 if this one was.
    pub(super) retry: u32,
}

/// A rule and what it remembers, shared by all workers. Survives reloads that do not change the rule.
#[derive(Debug)]
pub(super) struct RateLimit {
    spec: RateSpec,
    pace: Pace,
    /// Names the rule and its quota; the same for every answer.
    policy: HeaderValue,
    epoch: Instant,
    store: Store,
}

/// The rule in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// What one request is worth.
    interval: u64,
    /// What a burst is worth.
    burst: u64,
}

#[derive(Debug)]
enum Store {
    One(AtomicU64),
    Keyed(Box<Table>),
}

/// Arrival times by a keyed hash of the client, in buckets of fixed size.
///
/// A full bucket gives up the client whose allowance is whole again the soonest: mostly one that has nothing left to remember,
/// and never the busiest. Two clients with one hash (2^-63, and nobody outside can choose it) would share an allowance.
struct Table {
    hasher: RandomState,
    shards: [Mutex<Vec<[u64; 2]>>; SHARDS],
}

impl RateLimit {
    pub(super) fn new(spec: &RateSpec) -> Self {
        let interval = u64::try_from(spec.per.as_nanos().div_ceil(u128::from(spec.requests.max(1))));
        let interval = interval.unwrap_or(u64::MAX).max(1);
        let pace = Pace { interval, burst: interval.saturating_mul(u64::from(spec.burst.max(1))) };
        let store = match spec.by {
            RateKey::Route => Store::One(AtomicU64::new(0)),
            RateKey::Ip | RateKey::Header(_) => Store::Keyed(Box::new(Table {
                hasher: RandomState::new(),
                shards: std::array::from_fn(|_| Mutex::default()),
            })),
        };
        Self { spec: spec.clone(), pace, policy: policy_field(spec), epoch: Instant::now(), store }
    }

    /// Whether it is the rule of `spec`: then it is kept over a reload.
    pub(super) fn is(&self, spec: &RateSpec) -> bool {
        self.spec == *spec
    }

    /// Counts a request of `client` at `now`: `Ok` if it is let in.
    pub(super) fn admit(
        &self,
        client: IpAddr,
        headers: &HeaderMap,
        now: Instant,
    ) -> Result<Standing, Standing> {
        // Half the range of the clock is 292 years.
        let now = u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX / 2);
        let table = match &self.store {
            Store::One(tat) => {
                let step = |tat: u64| self.pace.step(tat, now).ok();
                return match tat.fetch_update(Ordering::AcqRel, Ordering::Acquire, step) {
                    Ok(before) => Ok(self.pace.standing(before.max(now) + self.pace.interval, now)),
                    Err(tat) => Err(self.pace.refused(tat, now)),
                };
            }
            Store::Keyed(table) => table,
        };
        let tag = match &self.spec.by {
            RateKey::Header(name) if headers.contains_key(name) => {
                let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
                table.hasher.hash_one((values.next(), values.next()))
            }
            _ => table.hasher.hash_one(network(client)),
        };
        match table.update(tag, now, |tat| self.pace.step(tat, now)) {
            Ok(tat) => Ok(self.pace.standing(tat, now)),
            Err(tat) => Err(self.pace.refused(tat, now)),
        }
    }

    /// Tells a client where it stands.
    pub(super) fn tell(&self, standing: Standing, headers: &mut HeaderMap) {
        // A server behind us may have rules of its own: both are lists.
        headers.append(RATELIMIT_POLICY, self.policy.clone());
        let name = word(&self.spec.by);
        let text = format!("\"{name}\";r={};t={}", standing.remaining, standing.reset);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(RATELIMIT, value);
        }
    }
}

impl Pace {
    /// The arrival time after one more request; `Err` with the present one if the request comes too early.
    fn step(self, tat: u64, now: u64) -> Result<u64, u64> {
        let next = tat.max(now).saturating_add(self.interval);
        if next - now > self.burst { Err(tat) } else { Ok(next) }
    }

    fn standing(self, tat: u64, now: u64) -> Standing {
        let used = tat.saturating_sub(now);
        let remaining = u32::try_from(self.burst.saturating_sub(used) / self.interval).unwrap_or(u32::MAX);
        Standing { remaining, reset: seconds(used), retry: 0 }
    }

    fn refused(self, tat: u64, now: u64) -> Standing {
        let missing = tat.saturating_sub(now).saturating_add(self.interval).saturating_sub(self.burst);
        Standing { retry: seconds(missing).max(1), ..self.standing(tat, now) }
    }
}

impl Table {
    fn update(&self, tag: u64, now: u64, step: impl FnOnce(u64) -> Result<u64, u64>) -> Result<u64, u64> {
        let tag = tag | 1; // 0 marks what is free
        let (shard, bucket) = ((tag >> 58) as usize % SHARDS, (tag >> 40) as usize % BUCKETS);
        let mut entries = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if entries.is_empty() {
            *entries = vec![[0; 2]; BUCKETS * WAYS];
        }
        let bucket = &mut entries[bucket * WAYS..][..WAYS];
        if let Some(known) = bucket.iter_mut().find(|entry| entry[0] == tag) {
            known[1] = step(known[1])?;
            return Ok(known[1]);
        }
        let tat = step(now)?;
        if let Some(oldest) = bucket.iter_mut().min_by_key(|entry| entry[1]) {
            *oldest = [tag, tat];
        }
        Ok(tat)
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

fn seconds(nanos: u64) -> u32 {
    u32::try_from(nanos.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

fn word(by: &RateKey) -> &'static str {
    match by {
        RateKey::Route => "route",
        RateKey::Ip => "ip",
        RateKey::Header(_) => "header",
    }
}

/// `q` requests in `w` whole seconds.
fn policy_field(spec: &RateSpec) -> HeaderValue {
    let window = spec.per.as_secs() + u64::from(spec.per.subsec_nanos() > 0);
    let quota = u128::from(spec.requests) * u128::from(window) * 1_000_000_000 / spec.per.as_nanos().max(1);
    let text = format!("\"{}\";q={quota};w={window}", word(&spec.by));
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"route\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(requests: u32, per: Duration, burst: u32, by: RateKey) -> RateLimit {
        RateLimit::new(&RateSpec { requests, per, burst, by })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_burst_then_the_pace_and_the_client_is_told() {
        let limit = limit(60, Duration::from_secs(60), 3, RateKey::Ip);
        let (none, start) = (HeaderMap::new(), limit.epoch);
        let at = |ms: u64, client: &str| limit.admit(ip(client), &none, start + Duration::from_millis(ms));
        let standing = |remaining, reset, retry| Standing { remaining, reset, retry };
        assert_eq!(at(0, "192.0.2.1"), Ok(standing(2, 1, 0)));
        assert_eq!(at(0, "192.0.2.1"), Ok(standing(1, 2, 0)));
        assert_eq!(at(0, "192.0.2.1").unwrap().remaining, 0);
        assert_eq!(at(100, "192.0.2.1"), Err(standing(0, 3, 1)));
        assert_eq!(at(100, "192.0.2.2"), Ok(standing(2, 1, 0)), "another client has its own");
        assert!(at(1000, "192.0.2.1").is_ok() && at(1000, "192.0.2.1").is_err());
        assert_eq!(at(60_000, "192.0.2.1"), Ok(standing(2, 1, 0)), "what was not used is not saved up");
        assert!(at(0, "2001:db8::1").is_ok() && at(0, "2001:db8::2").is_ok());
        assert_eq!(at(0, "2001:db8::3").unwrap().remaining, 0, "a /64 is one client");
        assert_eq!(at(0, "2001:db8:0:1::3").unwrap().remaining, 2);
        let mut told = HeaderMap::new();
        limit.tell(standing(2, 1, 0), &mut told);
        assert_eq!(
            (&told["ratelimit-policy"], &told["ratelimit"]),
            (&HeaderValue::from_static("\"ip\";q=60;w=60"), &HeaderValue::from_static("\"ip\";r=2;t=1"))
        );
    }

    #[test]
    fn a_field_is_a_client_and_without_it_the_address_is() {
        let limit = limit(1, Duration::from_secs(1), 1, RateKey::Header("x-api-key".parse().unwrap()));
        let key = |value: &'static str| -> HeaderMap {
            [("x-api-key".parse().unwrap(), HeaderValue::from_static(value))].into_iter().collect()
        };
        let ask = |headers: &HeaderMap, client: &str| limit.admit(ip(client), headers, limit.epoch).is_ok();
        assert!(ask(&key("a"), "192.0.2.1") && !ask(&key("a"), "192.0.2.2") && ask(&key("b"), "192.0.2.1"));
        assert!(ask(&HeaderMap::new(), "192.0.2.1") && !ask(&HeaderMap::new(), "192.0.2.1"));
        assert!(ask(&HeaderMap::new(), "192.0.2.2"));
    }

    #[test]
    fn quotas_are_said_in_whole_seconds() {
        for (requests, ms, expected) in [
            (100, 60_000, "\"route\";q=100;w=60"),
            (5, 500, "\"route\";q=10;w=1"),
            (3, 1500, "\"route\";q=4;w=2"),
        ] {
            let spec = RateSpec { requests, per: Duration::from_millis(ms), burst: 1, by: RateKey::Route };
            assert_eq!(policy_field(&spec), expected);
        }
    }

    #[test]
    fn memory_is_bounded_and_a_crowd_does_not_free_the_busiest() {
        let limit = limit(1, Duration::from_secs(3600), 5, RateKey::Ip);
        let none = HeaderMap::new();
        let busy = ip("192.0.2.1");
        while limit.admit(busy, &none, limit.epoch).is_ok() {}
        for number in 0..300_000_u32 {
            let _ = limit.admit(std::net::Ipv4Addr::from(number | 0x0a00_0000).into(), &none, limit.epoch);
        }
        assert!(limit.admit(busy, &none, limit.epoch).is_err());
        let Store::Keyed(table) = &limit.store else { panic!() };
        let held: usize = table.shards.iter().map(|shard| shard.lock().unwrap().capacity()).sum();
        assert_eq!(held, SHARDS * BUCKETS * WAYS);
    }

    #[test]
    fn all_threads_together_get_what_one_would() {
        for by in [RateKey::Route, RateKey::Ip] {
            let limit = limit(1, Duration::from_secs(3600), 1000, by);
            let admitted = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..1000 {
                            let one = limit.admit(ip("192.0.2.1"), &HeaderMap::new(), limit.epoch);
                            admitted.fetch_add(u64::from(one.is_ok()), Ordering::Relaxed);
                        }
                    });
                }
            });
            assert_eq!(admitted.load(Ordering::Relaxed), 1000);
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_pace(
            requests in 1_u32..1000, per_ms in 1_u64..100_000, burst in 1_u32..50, route: bool,
            waits in prop::collection::vec(prop_oneof![Just(0_u64), 0..5_000_000_u64, 0..5_000_000_000_u64], 1..300),
        ) {
            let by = if route { RateKey::Route } else { RateKey::Ip };
            let limit = limit(requests, Duration::from_millis(per_ms), burst, by);
            let (mut now, mut admitted): (u64, Vec<u64>) = (0, Vec::new());
            for wait in waits {
                now += wait;
                let answer = limit.admit(ip("192.0.2.1"), &HeaderMap::new(), limit.epoch + Duration::from_nanos(now));
                match answer {
                    Ok(standing) => {
                        admitted.push(now);
                        prop_assert!(standing.remaining < burst);
                    }
                    Err(standing) => {
                        prop_assert!(standing.retry >= 1);
                        // Whoever waits as long as it was told is let in.
                        let later = now + u64::from(standing.retry) * 1_000_000_000;
                        now = later;
                        let at = limit.epoch + Duration::from_nanos(later);
                        prop_assert!(limit.admit(ip("192.0.2.1"), &HeaderMap::new(), at).is_ok());
                        admitted.push(later);
                    }
                }
            }
            for (first, from) in admitted.iter().enumerate() {
                for (last, to) in admitted.iter().enumerate().skip(first) {
                    let most = f64::from(burst) + (to - from) as f64 * f64::from(requests) / (per_ms as f64 * 1e6);
                    prop_assert!((last - first + 1) as f64 <= most + 1e-6);
                }
            }
        }
    }
}
