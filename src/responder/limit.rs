//! How often one network may ask over UDP. Pure: the caller says what time it is.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use tokio::time::Instant;

/// Questions a second of one prefix; a CA's resolver asks a handful for each validation.
const RATE: f64 = 100.0;
const BURST: f64 = 200.0;
/// Prefixes share buckets when there are more than these: memory stays what it is, and the shared limit is generous.
const BUCKETS: usize = 4096;

/// Token buckets for prefixes: /24 of IPv4, /56 of IPv6.
#[derive(Debug)]
pub(super) struct RateLimit {
    seed: RandomState,
    buckets: Vec<Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    since: Instant,
}

impl RateLimit {
    /// All buckets full.
    pub(super) fn new(now: Instant) -> Self {
        Self { seed: RandomState::new(), buckets: vec![Bucket { tokens: BURST, since: now }; BUCKETS] }
    }

    /// Counts one question; `false` when its prefix has asked too often.
    pub(super) fn allow(&mut self, peer: IpAddr, now: Instant) -> bool {
        let index = self.seed.hash_one(prefix(peer)) as usize % BUCKETS;
        let bucket = &mut self.buckets[index];
        let refill = now.saturating_duration_since(bucket.since).as_secs_f64() * RATE;
        bucket.tokens = (bucket.tokens + refill).min(BURST);
        bucket.since = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

/// What one network is taken for: the first 56 bits of an IPv6 address, the first 24 of an IPv4 one.
pub(super) fn prefix(peer: IpAddr) -> [u8; 8] {
    match peer.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [0, 0, 0, 0, 0xff, a, b, c]
        }
        IpAddr::V6(v6) => {
            let o = v6.octets();
            [o[0], o[1], o[2], o[3], o[4], o[5], o[6], 0]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_network_is_limited_alone_and_recovers() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        let peer = |text: &str| text.parse::<IpAddr>().unwrap();
        let allowed = (0..1000).filter(|i| limit.allow(peer(&format!("192.0.2.{}", i % 250)), start)).count();
        assert_eq!(allowed, 200);
        // With one hash seed the other prefix may share the bucket: one in 4096.
        let others = ["198.51.100.1", "203.0.113.1", "2001:db8::1", "2001:db8:0:100::1"];
        assert!(others.iter().filter(|other| limit.allow(peer(other), start)).count() >= 2);
        let later = start + Duration::from_millis(100);
        let again = (0..1000).filter(|_| limit.allow(peer("192.0.2.9"), later)).count();
        assert!((9..=11).contains(&again), "{again}");
    }

    #[test]
    fn neighbours_share_a_prefix_and_mapped_addresses_are_ipv4() {
        let p = |text: &str| prefix(text.parse().unwrap());
        assert_eq!(p("192.0.2.1"), p("192.0.2.254"));
        assert_eq!(p("192.0.2.1"), p("::ffff:192.0.2.9"));
        assert_ne!(p("192.0.2.1"), p("192.0.3.1"));
        assert_eq!(p("2001:db8::1"), p("2001:db8:0:ff::1"));
        assert_ne!(p("2001:db8::1"), p("2001:db8:0:100::1"));
    }
}
