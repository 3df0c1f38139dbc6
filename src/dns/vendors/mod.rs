//! The vendors that the bridge to `dns-update` reaches: one row for each, with its keys and how a client is made.

mod accounts;
mod clouds;
mod duckdns;
mod namecheap;
mod netcup;
mod own;
mod tokens;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use dns_update::DnsUpdater;

use super::spec::{Proven, Vendor, VendorKey, VendorKind};
pub(super) use own::OwnApi;

/// Every vendor, sorted by name.
pub fn vendors() -> &'static [Vendor] {
    static VENDORS: LazyLock<Vec<Vendor>> = LazyLock::new(|| {
        let mut vendors: Vec<Vendor> = rows().map(|row| row.vendor).collect();
        vendors.sort_by_key(|vendor| vendor.name);
        vendors
    });
    &VENDORS
}

/// The row of `name`.
pub(super) fn row(name: &str) -> Option<&'static Row> {
    rows().find(|row| row.vendor.name == name)
}

fn rows() -> impl Iterator<Item = &'static Row> {
    tokens::ROWS.iter().chain(accounts::ROWS).chain(clouds::ROWS)
}

/// One vendor.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) vendor: Vendor,
    /// Whether only one value can stand at a name.
    pub(super) one_value: bool,
    pub(super) care: Care,
    /// The smallest TTL that the vendor takes, in seconds.
    pub(super) min_ttl: u32,
    /// Words in the crate's text that mean: the credentials were not accepted.
    pub(super) refusals: &'static [&'static str],
    /// Words in the crate's text that may mean that, or something that passes: it does not keep what the vendor said.
    pub(super) doubts: &'static [&'static str],
    pub(super) make: Make,
}

/// What the crate leaves to us about a vendor that does not answer as the crate expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Nothing.
    None,
    /// Adding what is there, or removing what is gone, is an error at the vendor: look before.
    LookFirst,
    /// The vendor gives values back in quotes, whether they were sent in quotes or not.
    Quotes,
}

/// How a client is made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Make {
    /// By the crate.
    Crate(fn(&Keys) -> Result<DnsUpdater, MakeError>),
    /// Written here, since the crate's own does not do what the vendor's documents say.
    Own(fn(&Keys) -> Result<Box<dyn OwnApi>, MakeError>),
}

impl Row {
    const fn new(
        name: &'static str,
        keys: &'static [VendorKey],
        make: fn(&Keys) -> Result<DnsUpdater, MakeError>,
    ) -> Self {
        Self::made(name, keys, Make::Crate(make))
    }

    const fn own(
        name: &'static str,
        keys: &'static [VendorKey],
        make: fn(&Keys) -> Result<Box<dyn OwnApi>, MakeError>,
    ) -> Self {
        Self::made(name, keys, Make::Own(make))
    }

    const fn made(name: &'static str, keys: &'static [VendorKey], make: Make) -> Self {
        let vendor = Vendor { name, keys, any_of: &[], needs: &[], excludes: &[], proven: Proven::BuiltOnly };
        let (refusals, doubts) = (&[], &[]);
        Self { vendor, one_value: false, care: Care::None, min_ttl: 1, refusals, doubts, make }
    }

    const fn one_value(self) -> Self {
        Self { one_value: true, ..self }
    }

    const fn care(self, care: Care) -> Self {
        Self { care, ..self }
    }

    const fn min_ttl(self, min_ttl: u32) -> Self {
        Self { min_ttl, ..self }
    }

    const fn refusals(self, refusals: &'static [&'static str]) -> Self {
        Self { refusals, ..self }
    }

    const fn doubts(self, doubts: &'static [&'static str]) -> Self {
        Self { doubts, ..self }
    }

    const fn any_of(self, keys: &'static [&'static str]) -> Self {
        Self { vendor: Vendor { any_of: keys, ..self.vendor }, ..self }
    }

    const fn needs(self, needs: &'static [(&'static str, &'static str)]) -> Self {
        Self { vendor: Vendor { needs, ..self.vendor }, ..self }
    }

    const fn excludes(self, excludes: &'static [(&'static str, &'static str)]) -> Self {
        Self { vendor: Vendor { excludes, ..self.vendor }, ..self }
    }

    /// The contract suite passes against the vendor's own server.
    const fn real(self) -> Self {
        Self { vendor: Vendor { proven: Proven::RealServer, ..self.vendor }, ..self }
    }

    /// The contract suite passes against a strict fake of the vendor's API.
    const fn fake(self) -> Self {
        Self { vendor: Vendor { proven: Proven::StrictFake, ..self.vendor }, ..self }
    }
}

/// Why a client could not be made.
#[derive(Debug)]
pub(super) enum MakeError {
    /// The value of a key.
    Key(&'static str, String),
    /// Something that the crate alone knows; may hold secrets.
    Crate(dns_update::Error),
}

impl From<dns_update::Error> for MakeError {
    fn from(error: dns_update::Error) -> Self {
        Self::Crate(error)
    }
}

/// The values of a vendor's keys, secrets read. Required ones are there: the caller has checked the row.
pub(super) struct Keys {
    pub(super) values: BTreeMap<&'static str, String>,
    pub(super) timeout: Option<Duration>,
}

impl Keys {
    /// A required key.
    fn get(&self, key: &str) -> &str {
        self.opt(key).unwrap_or_default()
    }

    /// An optional key.
    fn opt(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    fn owned(&self, key: &str) -> String {
        self.get(key).to_owned()
    }

    fn opt_owned(&self, key: &str) -> Option<String> {
        self.opt(key).map(str::to_owned)
    }

    /// An optional `true` or `false`; the caller has checked the kind.
    fn flag(&self, key: &str) -> bool {
        self.opt(key) == Some("true")
    }
}

const fn secret(name: &'static str, doc: &'static str) -> VendorKey {
    VendorKey { name, secret: true, required: true, kind: VendorKind::Text, doc }
}

const fn text(name: &'static str, doc: &'static str) -> VendorKey {
    VendorKey { name, secret: false, required: true, kind: VendorKind::Text, doc }
}

const fn opt(name: &'static str, doc: &'static str) -> VendorKey {
    VendorKey { name, secret: false, required: false, kind: VendorKind::Text, doc }
}

const fn opt_secret(name: &'static str, doc: &'static str) -> VendorKey {
    VendorKey { name, secret: true, required: false, kind: VendorKind::Text, doc }
}

const fn flag(name: &'static str, doc: &'static str) -> VendorKey {
    VendorKey { name, secret: false, required: false, kind: VendorKind::Bool, doc }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// A value that the crate's own checks accept.
    pub(in crate::dns) fn sample(vendor: &str, key: &VendorKey) -> String {
        match (vendor, key.name, key.kind) {
            (_, "private_key_pem", _) => pem(),
            ("hurricane", "credentials", _) => "example.com:one example.org:two".into(),
            (_, "region", _) => "eu-west-1".into(),
            (_, _, VendorKind::Choice(words)) => words[0].into(),
            (_, _, VendorKind::Bool) => "true".into(),
            (_, _, VendorKind::Number) => "4".into(),
            (_, name, VendorKind::Text) if name.contains("url") || name == "endpoint" => {
                "http://127.0.0.1:1".into()
            }
            (vendor, name, VendorKind::Text) => format!("{vendor}-{name}-value"),
        }
    }

    fn pem() -> String {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let body = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap()).collect();
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
    }

    #[test]
    fn every_row_has_its_own_name_and_keys_in_snake_case() {
        let mut names = HashSet::new();
        for row in rows() {
            let name = row.vendor.name;
            assert!(names.insert(name), "{name} twice");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
            let mut keys = HashSet::new();
            for key in row.vendor.keys {
                assert!(keys.insert(key.name), "{name}.{} twice", key.name);
                assert!(key.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
                assert!(!key.doc.is_empty() && !key.doc.ends_with('.'), "{name}.{}", key.name);
                for common in ["zone", "ttl", "timeout", "propagation", "resolvers", "provider"] {
                    assert_ne!(key.name, common, "{name}");
                }
            }
            for key in row.vendor.any_of {
                assert!(keys.contains(key), "{name}.{key}");
            }
            for (one, other) in row.vendor.needs.iter().chain(row.vendor.excludes) {
                assert!(keys.contains(one) && keys.contains(other), "{name}: {one}, {other}");
            }
            assert!(row.vendor.keys.iter().any(|k| k.secret), "{name} has no credential");
        }
        // Everything that dns-update 0.6.1 can make, RFC 2136 aside: that one is ours.
        assert_eq!(names.len(), 72);
        assert!(vendors().is_sorted_by_key(|v| v.name));
    }
}
