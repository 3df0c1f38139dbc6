//! Which certificate is for which name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::bundle::Bundle;
use crate::name::HostPattern;

/// All certificates being served. Immutable: a change makes a new table.
#[derive(Debug, Default)]
pub struct CertTable {
    exact: HashMap<Box<str>, Arc<Bundle>>,
    /// Keyed by what stands behind `*.`.
    wildcard: HashMap<Box<str>, Arc<Bundle>>,
    addresses: HashMap<IpAddr, Arc<Bundle>>,
    /// For clients that send no name and reach an address without a certificate of its own.
    default_sni: Option<Box<str>>,
}

impl CertTable {
    /// Builds a table. If two bundles hold one name, the one that is valid longer gets it.
    pub fn new(bundles: impl IntoIterator<Item = Arc<Bundle>>, default_sni: Option<&str>) -> Self {
        let mut table = Self { default_sni: default_sni.map(Into::into), ..Self::default() };
        for bundle in bundles {
            for name in bundle.names().iter() {
                match name {
                    HostPattern::Exact(host) => keep_longer(&mut table.exact, host.as_str().into(), &bundle),
                    HostPattern::Wildcard(zone) => {
                        keep_longer(&mut table.wildcard, zone.as_str().into(), &bundle);
                    }
                    HostPattern::Ip(address) => keep_longer(&mut table.addresses, *address, &bundle),
                }
            }
        }
        table
    }

    /// Adds bundles for names that nothing else is for.
    pub fn fill(&mut self, stand_ins: impl IntoIterator<Item = Arc<Bundle>>) {
        for bundle in stand_ins {
            for name in bundle.names().iter() {
                match name {
                    HostPattern::Exact(host) if self.lookup(host.as_str()).is_none() => {
                        self.exact.insert(host.as_str().into(), bundle.clone());
                    }
                    HostPattern::Wildcard(zone) => {
                        self.wildcard.entry(zone.as_str().into()).or_insert_with(|| bundle.clone());
                    }
                    HostPattern::Ip(address) => {
                        self.addresses.entry(*address).or_insert_with(|| bundle.clone());
                    }
                    HostPattern::Exact(_) => {}
                }
            }
        }
    }

    /// Forgets exact names whose bundle is over at `now` where a wildcard's is not: the narrower one is no better than none.
    ///
    /// Looked at when a table is made, so that a lookup asks nobody for the time.
    pub fn without_expired(mut self, now: SystemTime) -> Self {
        let Self { exact, wildcard, .. } = &mut self;
        exact.retain(|host, bundle| {
            let covering = host.split_once('.').and_then(|(_, zone)| wildcard.get(zone));
            bundle.not_after() > now || covering.is_none_or(|wild| wild.not_after() <= now)
        });
        self
    }

    /// The bundle for `host` (lower case, no trailing dot): exact before wildcard. Allocates nothing.
    pub fn lookup(&self, host: &str) -> Option<&Arc<Bundle>> {
        self.exact.get(host).or_else(|| {
            let (first, zone) = host.split_once('.')?;
            if first.is_empty() { None } else { self.wildcard.get(zone) }
        })
    }

    /// The bundle for a client without SNI that reached `local`.
    pub fn without_sni(&self, local: IpAddr) -> Option<&Arc<Bundle>> {
        self.addresses.get(&local).or_else(|| self.lookup(self.default_sni.as_deref()?))
    }

    /// How many names it knows.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len() + self.addresses.len()
    }

    /// Whether it knows no name at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn keep_longer<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Arc<Bundle>>, key: K, bundle: &Arc<Bundle>) {
    map.entry(key)
        .and_modify(|held| {
            if bundle.not_after() > held.not_after() {
                *held = bundle.clone();
            }
        })
        .or_insert_with(|| bundle.clone());
}

#[cfg(test)]
mod tests {
    use super::super::bundle::tests::self_signed;
    use super::*;

    fn serial(bundle: Option<&Arc<Bundle>>) -> Option<&str> {
        bundle.map(|b| b.serial())
    }

    #[test]
    fn exact_beats_wildcard_and_one_star_is_one_label() {
        let wild = Arc::new(self_signed(&["example.com", "*.example.com"], 90));
        let exact = Arc::new(self_signed(&["a.example.com"], 30));
        let table = CertTable::new([wild.clone(), exact.clone()], None);
        assert_eq!(serial(table.lookup("a.example.com")), Some(exact.serial()));
        assert_eq!(serial(table.lookup("b.example.com")), Some(wild.serial()));
        assert_eq!(serial(table.lookup("example.com")), Some(wild.serial()));
        for unknown in ["b.a.example.com", ".example.com", "com", "", "example.org"] {
            assert!(table.lookup(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn an_expired_exact_certificate_does_not_beat_a_valid_wildcard() {
        use crate::clock::{Clock, SystemClock};
        let wild = Arc::new(self_signed(&["*.example.com"], 90));
        let (old, other) =
            (Arc::new(self_signed(&["a.example.com"], 3)), Arc::new(self_signed(&["b.example.org"], 3)));
        let table = |days: u64| {
            let now = SystemClock.now() + std::time::Duration::from_secs(days * 24 * 3600);
            CertTable::new([wild.clone(), old.clone(), other.clone()], None).without_expired(now)
        };
        for (days, served) in [(0, &old), (5, &wild), (100, &old)] {
            assert_eq!(serial(table(days).lookup("a.example.com")), Some(served.serial()), "{days}");
        }
        assert_eq!(serial(table(5).lookup("b.example.org")), Some(other.serial()), "better than nothing");
    }

    #[test]
    fn stand_ins_only_fill_gaps() {
        let held = Arc::new(self_signed(&["*.example.com"], 10));
        let stand_in = Arc::new(self_signed(&["a.example.com", "*.example.com", "example.org"], 90));
        let mut table = CertTable::new([held.clone()], None);
        table.fill([stand_in.clone()]);
        assert_eq!(serial(table.lookup("a.example.com")), Some(held.serial()));
        assert_eq!(serial(table.lookup("example.org")), Some(stand_in.serial()));
    }

    #[test]
    fn without_sni_the_address_decides_then_the_default() {
        let ip = Arc::new(self_signed(&["127.0.0.1"], 90));
        let named = Arc::new(self_signed(&["example.com"], 90));
        let table = CertTable::new([ip.clone(), named.clone()], Some("example.com"));
        assert_eq!(serial(table.without_sni([127, 0, 0, 1].into())), Some(ip.serial()));
        assert_eq!(serial(table.without_sni([127, 0, 0, 2].into())), Some(named.serial()));
        assert!(CertTable::new([named], None).without_sni([127, 0, 0, 2].into()).is_none());
    }

    #[test]
    fn the_longer_lived_of_two_wins_in_any_order() {
        let short = Arc::new(self_signed(&["example.com"], 10));
        let long = Arc::new(self_signed(&["example.com"], 90));
        for order in [[short.clone(), long.clone()], [long.clone(), short]] {
            assert_eq!(serial(CertTable::new(order, None).lookup("example.com")), Some(long.serial()));
        }
    }
}
