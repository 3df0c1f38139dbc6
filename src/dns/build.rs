//! From a validated section to a provider: secrets read, values checked.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::acme_dns::AcmeDns;
use super::bridge::{self, Bridge, Client};
use super::exec::Exec;
use super::httpreq::Httpreq;
use super::redact::Redactor;
use super::rfc2136::{self, Rfc2136};
use super::spec::{ProviderKind, ProviderSpec, VendorValue};
use super::turns::ZoneTurns;
use super::vendors::{self, Keys, Make, MakeError};
use super::zone::ZoneFinder;
use super::{TxtProvider, VendorKey};
use crate::clock::SharedClock;
use crate::resolver::Resolver;
use crate::secret::{SecretError, SecretSource};

const DEFAULT_TTL: u32 = 60;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// What providers need beside their section.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Finds zones; made with the section's `resolvers`.
    pub resolver: Arc<Resolver>,
    /// Signs with the time.
    pub clock: SharedClock,
    /// Shared by all providers of the process.
    pub turns: ZoneTurns,
    /// The built-in responder, if it runs.
    pub builtin: Option<Arc<dyn TxtProvider>>,
}

/// Why a provider cannot be made. The operator's turn; no secret is shown.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A secret could not be read.
    #[error("dns provider {provider}: `{key}`: {source}")]
    Secret {
        /// The provider.
        provider: String,
        /// Its key.
        key: &'static str,
        /// Why.
        source: SecretError,
    },
    /// A required key was left out.
    #[error("dns provider {provider}: the key `{key}` is missing")]
    MissingKey {
        /// The provider.
        provider: String,
        /// Its key.
        key: &'static str,
    },
    /// A key's value cannot be used.
    #[error("dns provider {provider}: `{key}`: {reason}")]
    BadKey {
        /// The provider.
        provider: String,
        /// Its key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No such vendor.
    #[error("dns provider {0} is not known")]
    Unknown(String),
    /// `builtin` without a running responder.
    #[error("dns provider builtin: there is no [responder] section")]
    NoResponder,
    /// The client could not be made.
    #[error("dns provider: {0}")]
    Client(String),
}

/// Makes the provider of a section. Reads secrets, so it blocks; asks nobody.
pub fn build(spec: &ProviderSpec, with: &Surroundings) -> Result<Arc<dyn TxtProvider>, BuildError> {
    let ttl = spec.common.ttl.unwrap_or(DEFAULT_TTL);
    let timeout = spec.common.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let zones = ZoneFinder { fixed: spec.common.zone.clone(), resolver: with.resolver.clone() };
    let turns = with.turns.clone();
    match &spec.kind {
        ProviderKind::Builtin => with.builtin.clone().ok_or(BuildError::NoResponder),
        ProviderKind::Rfc2136 { server, key_name, secret, algorithm } => {
            let secret = read("rfc2136", "secret", secret)?;
            let signer = rfc2136::signer(key_name, &secret, algorithm)?;
            let (id, server, clock) = (id(spec), *server, with.clock.clone());
            Ok(Arc::new(Rfc2136 { id, server, signer, ttl, timeout, zones, turns, clock }))
        }
        ProviderKind::Exec { program } => {
            Ok(Arc::new(Exec { id: id(spec), program: program.clone(), timeout, turns }))
        }
        ProviderKind::Httpreq { endpoint, username, password } => {
            let password = password.as_ref().map(SecretSource::resolve).transpose().map_err(|source| {
                BuildError::Secret { provider: "httpreq".into(), key: "password", source }
            })?;
            let user = username.as_deref();
            Ok(Arc::new(Httpreq::new(id(spec), endpoint, user, password.as_ref(), timeout, turns)?))
        }
        ProviderKind::AcmeDns { endpoint, accounts } => {
            Ok(Arc::new(AcmeDns::new(id(spec), endpoint, accounts, timeout, turns)?))
        }
        ProviderKind::Vendor { name, keys } => {
            let row = vendors::row(name).ok_or_else(|| BuildError::Unknown((*name).to_owned()))?;
            let provider = || (*name).to_owned();
            let values = values(name, row.vendor.keys, row.vendor.any_of, keys)?;
            let secrets =
                row.vendor.keys.iter().filter(|key| key.secret).filter_map(|key| values.get(key.name));
            let redactor = Redactor::new(secrets.map(String::as_str));
            let keys = Keys { values, timeout: Some(timeout) };
            let made = match row.make {
                Make::Crate(make) => make(&keys).map(|updater| Client::Crate(Box::new(updater))),
                Make::Own(make) => make(&keys).map(Client::Own),
            };
            let client = made.map_err(|error| match error {
                MakeError::Key(key, reason) => BuildError::BadKey { provider: provider(), key, reason },
                MakeError::Crate(error) => BuildError::Client(redactor.clean(&format!("{name}: {error}"))),
            })?;
            Ok(bridge::shared(Bridge {
                id: id(spec),
                row,
                client,
                ttl: ttl.max(row.min_ttl),
                timeout,
                zones,
                turns,
                redactor,
                last: Mutex::new(HashMap::new()),
            }))
        }
    }
}

/// The values of a vendor's keys, checked against its row.
fn values(
    vendor: &str,
    row: &'static [VendorKey],
    any_of: &[&'static str],
    given: &BTreeMap<&'static str, VendorValue>,
) -> Result<BTreeMap<&'static str, String>, BuildError> {
    let provider = || vendor.to_owned();
    let mut values = BTreeMap::new();
    for key in row {
        let value = match given.get(key.name) {
            Some(VendorValue::Text(text)) => text.clone(),
            Some(VendorValue::Secret(source)) => read(vendor, key.name, source)?,
            None if key.required => {
                return Err(BuildError::MissingKey { provider: provider(), key: key.name });
            }
            None => continue,
        };
        if value.trim().is_empty() {
            return Err(BuildError::BadKey {
                provider: provider(),
                key: key.name,
                reason: "it is empty".into(),
            });
        }
        key.kind.check(&value).map_err(|reason| BuildError::BadKey {
            provider: provider(),
            key: key.name,
            reason,
        })?;
        values.insert(key.name, value);
    }
    match any_of.first() {
        Some(first) if !any_of.iter().any(|key| values.contains_key(key)) => {
            Err(BuildError::MissingKey { provider: provider(), key: first })
        }
        _ => Ok(values),
    }
}

fn read(provider: &str, key: &'static str, source: &SecretSource) -> Result<String, BuildError> {
    match source.resolve() {
        Ok(secret) => Ok(secret.expose().to_owned()),
        Err(source) => Err(BuildError::Secret { provider: provider.to_owned(), key, source }),
    }
}

/// The provider's word and a digest of its section: where secrets come from is part of it, their values are not.
fn id(spec: &ProviderSpec) -> String {
    let word = match &spec.kind {
        ProviderKind::Builtin => "builtin",
        ProviderKind::Rfc2136 { .. } => "rfc2136",
        ProviderKind::Exec { .. } => "exec",
        ProviderKind::Httpreq { .. } => "httpreq",
        ProviderKind::AcmeDns { .. } => "acme-dns",
        ProviderKind::Vendor { name, .. } => name,
    };
    let digest = Sha256::digest(format!("{:?} {:?}", spec.kind, spec.common.zone));
    let mut id = format!("{word}-");
    for byte in &digest[..6] {
        // Writing to a string cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::dns::spec::{CommonKeys, VendorKind};
    use crate::dns::vendors::tests::sample;
    use crate::dns::{Vendor, vendors};
    use crate::secret::Secret;

    fn surroundings() -> Surroundings {
        Surroundings {
            resolver: Arc::new(Resolver::new(vec![])),
            clock: Arc::new(SystemClock),
            turns: ZoneTurns::new(),
            builtin: None,
        }
    }

    fn vendor(name: &'static str, keys: BTreeMap<&'static str, VendorValue>) -> ProviderSpec {
        ProviderSpec { kind: ProviderKind::Vendor { name, keys }, common: CommonKeys::default() }
    }

    fn all_keys(vendor: &Vendor, wanted: impl Fn(&VendorKey) -> bool) -> BTreeMap<&'static str, VendorValue> {
        let value = |key: &VendorKey| {
            let text = sample(vendor.name, key);
            if key.secret {
                VendorValue::Secret(SecretSource::Plain(Secret::new(text)))
            } else {
                VendorValue::Text(text)
            }
        };
        vendor.keys.iter().filter(|key| wanted(key)).map(|key| (key.name, value(key))).collect()
    }

    #[test]
    fn every_vendor_builds_with_its_required_keys_and_names_a_missing_one() {
        let with = surroundings();
        for row in vendors() {
            let needed = |key: &VendorKey| key.required || row.any_of.first() == Some(&key.name);
            let needed = |key: &VendorKey| needed(key) && !(row.name == "joker" && key.name == "username");
            let built = build(&vendor(row.name, all_keys(row, needed)), &with);
            let provider = built.unwrap_or_else(|e| panic!("{}: {e}", row.name));
            assert!(provider.id().starts_with(row.name), "{}", provider.id());
            for key in row.keys.iter().filter(|key| needed(key)) {
                let error =
                    build(&vendor(row.name, all_keys(row, |k| needed(k) && k.name != key.name)), &with);
                let error = error.expect_err(row.name).to_string();
                assert!(
                    error.contains(row.name) && error.contains(&format!("`{}` is missing", key.name)),
                    "{error}"
                );
            }
            // All keys together, except where they exclude each other.
            if row.name != "joker" {
                build(&vendor(row.name, all_keys(row, |_| true)), &with)
                    .unwrap_or_else(|e| panic!("{}: {e}", row.name));
            }
            for key in row.keys.iter().filter(|key| key.kind != VendorKind::Text) {
                let mut keys = all_keys(row, needed);
                keys.insert(key.name, VendorValue::Text("nonsense".into()));
                let error = build(&vendor(row.name, keys), &with).expect_err(row.name).to_string();
                assert!(error.contains(key.name) && error.contains("wanted"), "{error}");
            }
        }
    }

    #[test]
    fn those_that_hold_one_value_say_so() {
        let with = surroundings();
        let mut single: Vec<_> = vendors()
            .iter()
            .filter(|row| {
                let keys = all_keys(row, |key| key.required || row.any_of.first() == Some(&key.name));
                build(&vendor(row.name, keys), &with).unwrap().holds_one_value()
            })
            .map(|row| row.name)
            .collect();
        single.sort_unstable();
        assert_eq!(single, ["ddnss", "duckdns", "freemyip", "hurricane"]);
    }

    #[test]
    fn an_id_is_stable_tells_sections_apart_and_holds_no_secret() {
        let token = |source| vendor("cloudflare", BTreeMap::from([("token", VendorValue::Secret(source))]));
        let plain = |value: &str| token(SecretSource::Plain(Secret::new(value)));
        assert_eq!(id(&plain("one")), id(&plain("two")));
        assert_ne!(id(&plain("one")), id(&token(SecretSource::Env("TOKEN".into()))));
        let mut zoned = plain("one");
        zoned.common.zone = crate::name::DnsName::parse("example.com").ok();
        assert_ne!(id(&plain("one")), id(&zoned));
    }

    #[test]
    fn other_mistakes_are_named() {
        let with = surroundings();
        let error = |kind| build(&ProviderSpec { kind, common: CommonKeys::default() }, &with).unwrap_err();
        assert!(matches!(error(ProviderKind::Builtin), BuildError::NoResponder));
        let unknown = error(ProviderKind::Vendor { name: "nobody", keys: BTreeMap::new() });
        assert!(unknown.to_string().contains("nobody"));
        let httpreq = |endpoint: &str, username: Option<&str>, password: Option<&str>| {
            error(ProviderKind::Httpreq {
                endpoint: endpoint.into(),
                username: username.map(Into::into),
                password: password.map(|p| SecretSource::Plain(Secret::new(p))),
            })
            .to_string()
        };
        assert!(httpreq("dns.example.net/acme", None, None).contains("`endpoint`"));
        assert!(httpreq("ftp://dns.example.net", None, None).contains("`endpoint`"));
        assert!(httpreq("https://dns.example.net", None, Some("x")).contains("`username` is missing"));
        let secret = error(ProviderKind::Rfc2136 {
            server: ([127, 0, 0, 1], 53).into(),
            key_name: "acme".into(),
            secret: SecretSource::Env("STARLOCK_NO_SUCH_SECRET".into()),
            algorithm: "hmac-sha256".into(),
        });
        assert!(secret.to_string().contains("STARLOCK_NO_SUCH_SECRET"), "{secret}");
    }
}
