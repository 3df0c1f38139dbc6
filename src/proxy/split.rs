//! Which of several upstreams a request goes to: by weight, at random or always the same for a client.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;

use super::spec::StickSpec;
use crate::balance::{Balancer, cookie};

/// The upstreams of a route and their shares; at least one.
#[derive(Debug)]
pub(super) struct Split {
    /// Each with the sum of the weights up to and with its own.
    shares: Box<[(u64, Arc<Balancer>)]>,
    stick: Option<StickSpec>,
}

impl Split {
    pub(super) fn new(shares: impl Iterator<Item = (u32, Arc<Balancer>)>, stick: Option<StickSpec>) -> Self {
        let mut sum = 0;
        let mut add = |(weight, balancer)| {
            sum += u64::from(weight);
            (sum, balancer)
        };
        Self { shares: shares.map(&mut add).collect(), stick }
    }

    /// The upstream for a request; `None` only if there is none at all.
    pub(super) fn choose(&self, client: IpAddr, headers: &HeaderMap) -> Option<&Arc<Balancer>> {
        let (sum, last) = self.shares.last()?;
        if self.shares.len() == 1 || *sum == 0 {
            return Some(last);
        }
        let dice = self.sticky(client, headers).unwrap_or_else(rand::random) % sum;
        self.shares.iter().find(|(upto, _)| dice < *upto).map(|(_, balancer)| balancer)
    }

    /// The same number for the same client, as long as it is known by what the route says.
    fn sticky(&self, client: IpAddr, headers: &HeaderMap) -> Option<u64> {
        match self.stick.as_ref()? {
            StickSpec::Client => Some(hash(&client)),
            StickSpec::Cookie(name) => cookie(headers, name).map(|value| hash(&value)),
        }
    }
}

/// Not keyed: nodes and restarts of one release agree, and a client that picks its hash gets no more than an upstream it may use.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;
    use crate::balance::{ServerHost, ServerSpec, UpstreamSpec, UpstreamTimeouts, Upstreams};
    use crate::telemetry::Metrics;

    fn split(shares: &[(&str, u32)], stick: Option<StickSpec>) -> Split {
        let server = || ServerSpec::new(ServerHost::Ip([127, 0, 0, 1].into()), 1);
        let spec =
            |(name, _): &(&str, u32)| UpstreamSpec::new(*name, vec![server()], UpstreamTimeouts::default());
        let specs: Vec<_> = shares.iter().map(spec).collect();
        let upstreams = Upstreams::build(&specs, None, &Metrics::new("0")).unwrap();
        Split::new(shares.iter().map(|(name, weight)| (*weight, upstreams.get(name).unwrap().clone())), stick)
    }

    fn counts(split: &Split, asks: impl Iterator<Item = (IpAddr, HeaderMap)>) -> (usize, usize) {
        let names = asks.map(|(ip, headers)| split.choose(ip, &headers).unwrap().name().to_string());
        let (a, b): (Vec<_>, Vec<_>) = names.partition(|name| name == "a");
        (a.len(), b.len())
    }

    #[test]
    fn shares_are_kept() {
        let one = IpAddr::from([10, 0, 0, 1]);
        let same = || (0..10_000).map(|_| (one, HeaderMap::new()));
        let (a, b) = counts(&split(&[("a", 95), ("b", 5)], None), same());
        assert!((300..800).contains(&b) && a + b == 10_000, "{a} {b}");
        assert_eq!(counts(&split(&[("a", 1), ("b", 0)], None), same()), (10_000, 0));
        assert_eq!(counts(&split(&[("b", 0), ("a", 1)], None), same()), (10_000, 0));
        assert_eq!(counts(&split(&[("a", 1)], None), same()), (10_000, 0));
    }

    #[test]
    fn a_client_stays_and_clients_are_spread() {
        let by_ip = split(&[("a", 50), ("b", 50)], Some(StickSpec::Client));
        let one = IpAddr::from([10, 0, 0, 1]);
        let (a, b) = counts(&by_ip, (0..100).map(|_| (one, HeaderMap::new())));
        assert!(a == 0 || b == 0);
        let (a, b) =
            counts(&by_ip, (0..1000).map(|n: u32| (IpAddr::from(n.to_be_bytes()), HeaderMap::new())));
        assert!(a > 400 && b > 400, "{a} {b}");
        let by_cookie = split(&[("a", 50), ("b", 50)], Some(StickSpec::Cookie("id".into())));
        let with = |value: String| {
            let mut headers = HeaderMap::new();
            headers.append(COOKIE, format!("xid=1; id={value}; z").parse().unwrap());
            (one, headers)
        };
        let (a, b) = counts(&by_cookie, (0..100).map(|_| with("7".into())));
        assert!(a == 0 || b == 0);
        let (a, b) = counts(&by_cookie, (0..1000).map(|n| with(n.to_string())));
        assert!(a > 400 && b > 400, "{a} {b}");
        let (a, b) = counts(&by_cookie, (0..1000).map(|_| (one, HeaderMap::new())));
        assert!(a > 400 && b > 400, "without the cookie it is the dice: {a} {b}");
    }
}
