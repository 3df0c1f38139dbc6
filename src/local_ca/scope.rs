//! Which names a signer may sign: decided here, enforced by every client through name constraints (RFC 5280 section 4.2.1.10).

use ipnet::IpNet;
use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};

use crate::name::HostPattern;

/// Top-level names that nobody holds in the public DNS (RFC 6761, RFC 6762, RFC 8375, ICANN's `.internal`, and what routers and
/// offices use): whoever trusts the root for them alone risks none of the names that the world shares.
const PRIVATE_ZONES: [&str; 11] = [
    "localhost",
    "internal",
    "test",
    "example",
    "invalid",
    "local",
    "lan",
    "home",
    "home.arpa",
    "corp",
    "intranet",
];

/// Addresses that mean another machine in every network: loopback, private, link-local, shared (RFC 6598), unique local.
const PRIVATE_NETS: [&str; 9] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// More subtrees than this make every handshake heavier than the constraint is worth: they are joined at their parents.
const MAX_ZONES: usize = 32;

/// What a signer may sign: names at or below its zones, addresses in its nets. Sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    zones: Vec<String>,
    nets: Vec<IpNet>,
}

impl Scope {
    /// Everything that is nobody's in public.
    pub(super) fn private() -> Self {
        Self::from_texts(PRIVATE_ZONES.iter().chain(&PRIVATE_NETS).copied())
    }

    /// The smallest one for `names`, within bounds. `None`: too many names that have nothing in common.
    pub(super) fn of<'a>(names: impl IntoIterator<Item = &'a HostPattern>) -> Option<Self> {
        let mut scope = Self::default();
        for name in names {
            match name {
                HostPattern::Exact(host) | HostPattern::Wildcard(host) => {
                    scope.zones.push(host.to_string());
                }
                HostPattern::Ip(address) => scope.nets.push(IpNet::from(*address)),
            }
        }
        scope.tidy();
        while scope.zones.len() > MAX_ZONES {
            let before = scope.zones.len();
            for zone in &mut scope.zones {
                // Never up to a top-level domain.
                if let Some((_, parent)) = zone.split_once('.').filter(|(_, parent)| parent.contains('.')) {
                    *zone = parent.to_owned();
                }
            }
            scope.tidy();
            if scope.zones.len() == before {
                return None;
            }
        }
        (scope.nets.len() <= MAX_ZONES).then_some(scope)
    }

    /// As [`Scope::texts`] wrote it.
    pub(super) fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut scope = Self::default();
        for text in texts {
            match text.parse::<IpNet>() {
                Ok(net) => scope.nets.push(net),
                Err(_) => scope.zones.push(text.to_owned()),
            }
        }
        scope.tidy();
        scope
    }

    /// For storage.
    pub(super) fn texts(&self) -> Vec<String> {
        self.zones.iter().cloned().chain(self.nets.iter().map(ToString::to_string)).collect()
    }

    /// Whether `name` may be signed.
    pub(super) fn permits(&self, name: &HostPattern) -> bool {
        match name {
            HostPattern::Exact(host) | HostPattern::Wildcard(host) => {
                self.zones.iter().any(|zone| below(host.as_str(), zone))
            }
            HostPattern::Ip(address) => self.nets.iter().any(|net| net.contains(address)),
        }
    }

    /// As the extension of a CA certificate. A kind of name of which nothing is permitted must be named too: RFC 5280 leaves
    /// kinds that are not mentioned free.
    pub(super) fn constraints(&self) -> NameConstraints {
        let zones = self.zones.iter().cloned().map(GeneralSubtree::DnsName);
        let net = |net: &IpNet| {
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(net.network(), net.prefix_len()))
        };
        let mut permitted_subtrees: Vec<_> = zones.chain(self.nets.iter().map(net)).collect();
        if self.zones.is_empty() {
            permitted_subtrees.push(GeneralSubtree::DnsName("invalid".to_owned()));
        }
        let excluded_subtrees = match self.nets.is_empty() {
            true => vec![
                GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
                GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
            ],
            false => Vec::new(),
        };
        NameConstraints { permitted_subtrees, excluded_subtrees }
    }

    fn tidy(&mut self) {
        self.zones.sort();
        self.zones.dedup();
        let all = self.zones.clone();
        self.zones.retain(|zone| !all.iter().any(|other| other != zone && below(zone, other)));
        self.nets = IpNet::aggregate(&self.nets);
        self.nets.sort();
    }
}

fn below(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patterns(texts: &[&str]) -> Vec<HostPattern> {
        texts.iter().map(|text| HostPattern::parse(text).unwrap()).collect()
    }

    #[test]
    fn what_is_local_is_private_but_for_addresses_of_the_world() {
        let private = Scope::private();
        for name in patterns(&[
            "localhost",
            "*.localhost",
            "db.internal",
            "a.b.test",
            "printer.lan",
            "nas.home.arpa",
            "127.0.0.1",
            "::1",
            "192.168.7.1",
            "fd00::1",
        ]) {
            assert!(private.permits(&name), "{name}");
        }
        for name in patterns(&["example.com", "nolocalhost", "arpa", "myhost", "1.1.1.1", "2606:4700::1"]) {
            assert!(!private.permits(&name), "{name}");
        }
    }

    #[test]
    fn a_scope_is_as_small_as_its_names_until_there_are_too_many() {
        let small =
            Scope::of(&patterns(&["b.example.com", "*.example.com", "example.com", "1.1.1.1"])).unwrap();
        assert_eq!(small.texts(), ["example.com", "1.1.1.1/32"]);
        assert_eq!(Scope::from_texts(small.texts().iter().map(String::as_str)), small);
        let many: Vec<String> = (0..100).map(|n| format!("h{n}.example.com")).collect();
        let many = patterns(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(Scope::of(&many).unwrap().texts(), ["example.com"]);
        let apart: Vec<String> = (0..100).map(|n| format!("h{n}.com")).collect();
        let apart = patterns(&apart.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(Scope::of(&apart), None);
    }

    proptest! {
        #[test]
        fn a_scope_permits_every_name_it_was_made_of(names in proptest::collection::vec("(\\*\\.)?([a-d]{1,2}\\.){0,4}[a-d]{2}", 1..60)) {
            let names: Vec<_> = names.iter().map(|name| HostPattern::parse(name).unwrap()).collect();
            if let Some(scope) = Scope::of(&names) {
                prop_assert!(names.iter().all(|name| scope.permits(name)));
                prop_assert!(scope.texts().len() <= MAX_ZONES);
            }
        }
    }
}
