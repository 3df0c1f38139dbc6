//! What the responder knows: its zones and the TXT records that stand in them, replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use hickory_proto::rr::{LowerName, Name};

use super::spec::ResponderSpec;
use crate::dns::{DnsError, TxtProvider, TxtRecord};
use crate::name::DnsName;

/// Far over what a configuration needs, far under what hurts.
const MAX_TXT_NAMES: usize = 10_000;
/// Values at one name: 20 fill a datagram, and only an answer over TCP holds more.
const MAX_VALUES: usize = 64;

/// The zones and records of one moment. Immutable.
#[derive(Clone, Debug, Default)]
pub struct Zones {
    apexes: BTreeSet<LowerName>,
    servers: Vec<Name>,
    hosts: BTreeMap<LowerName, Vec<IpAddr>>,
    txt: BTreeMap<LowerName, Vec<String>>,
    serial: u32,
}

/// What stands at a name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Node<'a> {
    pub(super) is_apex: bool,
    pub(super) txt: &'a [String],
    pub(super) addresses: &'a [IpAddr],
}

impl Zones {
    /// The zones of a configuration, without any TXT record.
    pub fn new(spec: &ResponderSpec) -> Self {
        let apexes: BTreeSet<_> = spec.challenge_names.iter().chain(&spec.zone).filter_map(lower).collect();
        let servers = spec.nameservers.iter().filter_map(|s| wire(&s.name)).collect();
        let hosts = spec
            .nameservers
            .iter()
            .filter_map(|s| Some((lower(&s.name)?, s.addresses.clone())))
            .filter(|(name, _)| apexes.iter().any(|apex| apex.zone_of(name)))
            .collect();
        Self { apexes, servers, hosts, txt: BTreeMap::new(), serial: 1 }
    }

    /// The same zones with one more TXT record; for tests and tools.
    pub fn with_txt(mut self, name: &DnsName, value: &str) -> Self {
        if let Some(name) = lower(name) {
            self.txt.entry(name).or_default().push(value.to_owned());
        }
        self
    }

    /// The deepest zone that holds `name`.
    pub(super) fn apex_of(&self, name: &LowerName) -> Option<&LowerName> {
        self.apexes.iter().filter(|apex| apex.zone_of(name)).max_by_key(|apex| apex.num_labels())
    }

    /// What stands at `name`; `None` if it does not exist. A name with something below it exists (RFC 8020).
    pub(super) fn node(&self, name: &LowerName) -> Option<Node<'_>> {
        let node = Node {
            is_apex: self.apexes.contains(name),
            txt: self.txt.get(name).map_or(&[], Vec::as_slice),
            addresses: self.hosts.get(name).map_or(&[], Vec::as_slice),
        };
        // In canonical order what lies below a name follows it directly.
        let exists = node.is_apex
            || self.txt.range(name..).next().is_some_and(|(next, _)| name.zone_of(next))
            || self.hosts.range(name..).next().is_some_and(|(next, _)| name.zone_of(next))
            || self.apexes.range(name..).next().is_some_and(|next| name.zone_of(next));
        exists.then_some(node)
    }

    /// The names of the name servers; a zone without any is its own.
    pub(super) fn servers(&self, apex: &LowerName) -> Vec<Name> {
        if self.servers.is_empty() { vec![apex.into()] } else { self.servers.clone() }
    }

    /// The addresses of a name server that lies in our zones.
    pub(super) fn addresses(&self, name: &Name) -> &[IpAddr] {
        self.hosts.get(&LowerName::new(name)).map_or(&[], Vec::as_slice)
    }

    /// Changes with every record.
    pub(super) fn serial(&self) -> u32 {
        self.serial
    }

    fn zone_names(&self) -> String {
        self.apexes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Makes the two halves of the responder's zones.
pub fn zones(spec: &ResponderSpec) -> (ZoneWriter, ZoneReader) {
    let shared = Arc::new(ArcSwap::from_pointee(Zones::new(spec)));
    let writer = ZoneWriter { shared: shared.clone(), edit: Arc::new(Mutex::new(())) };
    (writer, ZoneReader(shared))
}

/// Changes the zones under the running responder. Cloning shares them.
#[derive(Clone, Debug)]
pub struct ZoneWriter {
    shared: Arc<ArcSwap<Zones>>,
    edit: Arc<Mutex<()>>,
}

impl ZoneWriter {
    /// Replaces the zones by those of another configuration. TXT records that lie in one of the new zones stay.
    pub fn replace(&self, spec: &ResponderSpec) {
        let Ok(()) = self.edit(|old| {
            let mut new = Zones::new(spec);
            new.txt = old.txt.clone();
            let apexes = new.apexes.clone();
            new.txt.retain(|name, _| apexes.iter().any(|apex| apex.zone_of(name)));
            Ok::<_, Infallible>(Some(new))
        });
    }

    /// The TXT records of these zones, as a provider.
    pub fn txt_table(&self) -> TxtTable {
        TxtTable(self.clone())
    }

    /// One writer at a time; readers never wait. `change` returns `None` to leave everything as it is.
    fn edit<E>(&self, change: impl FnOnce(&Zones) -> Result<Option<Zones>, E>) -> Result<(), E> {
        let _guard = self.edit.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.shared.load_full();
        if let Some(mut new) = change(&old)? {
            new.serial = old.serial.wrapping_add(1);
            self.shared.store(Arc::new(new));
        }
        Ok(())
    }
}

/// Reads the zones; the responder holds one.
#[derive(Clone, Debug)]
pub struct ZoneReader(Arc<ArcSwap<Zones>>);

impl ZoneReader {
    /// The zones as they are now.
    pub fn load(&self) -> Arc<Zones> {
        self.0.load_full()
    }
}

/// The provider `builtin`: TXT records in the responder's own zones, visible at once.
#[derive(Clone, Debug)]
pub struct TxtTable(ZoneWriter);

#[async_trait]
impl TxtProvider for TxtTable {
    fn id(&self) -> &str {
        "builtin"
    }

    async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.0.edit(|zones| {
            let name = lower(&record.name).filter(|name| zones.apex_of(name).is_some()).ok_or_else(|| {
                DnsError::Refused(format!(
                    "the built-in responder has no zone for {}; it answers for {}. Delegate the challenge name by NS, or by \
                     CNAME to a name in `responder.zone`",
                    record.name,
                    zones.zone_names(),
                ))
            })?;
            let mut new = zones.clone();
            if !new.txt.contains_key(&name) && new.txt.len() >= MAX_TXT_NAMES {
                return Err(DnsError::Unavailable(format!(
                    "the built-in responder already holds TXT records at {MAX_TXT_NAMES} names"
                )));
            }
            let values = new.txt.entry(name).or_default();
            if values.contains(&record.value) {
                return Ok(None);
            }
            if values.len() >= MAX_VALUES {
                return Err(DnsError::Unavailable(format!(
                    "{} already holds {MAX_VALUES} TXT values; one order too many is under way",
                    record.name
                )));
            }
            values.push(record.value.clone());
            Ok(Some(new))
        })
    }

    async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.0.edit(|zones| {
            let Some(name) = lower(&record.name).filter(|name| zones.txt.contains_key(name)) else {
                return Ok(None);
            };
            let mut new = zones.clone();
            if let Some(values) = new.txt.get_mut(&name) {
                values.retain(|value| *value != record.value);
                if values.is_empty() {
                    new.txt.remove(&name);
                }
            }
            Ok(Some(new))
        })
    }
}

fn wire(name: &DnsName) -> Option<Name> {
    Name::from_ascii(name.to_fqdn()).ok()
}

fn lower(name: &DnsName) -> Option<LowerName> {
    wire(name).map(LowerName::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::NameServer;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    fn spec(challenges: &[&str]) -> ResponderSpec {
        ResponderSpec {
            listen: vec![],
            zone: Some(name("acme.example.net")),
            nameservers: vec![NameServer { name: name("ns.acme.example.net"), addresses: vec![] }],
            challenge_names: challenges.iter().map(|c| name(c)).collect(),
        }
    }

    fn record(owner: &str, value: &str) -> TxtRecord {
        TxtRecord { name: name(owner), value: value.into() }
    }

    #[tokio::test]
    async fn records_are_added_and_removed_by_value_and_survive_a_reload() {
        let (writer, reader) = zones(&spec(&["_acme-challenge.example.com", "_acme-challenge.gone.com"]));
        let table = writer.txt_table();
        for value in ["a", "b", "a"] {
            table.add_txt(&record("_acme-challenge.example.com", value)).await.unwrap();
        }
        table.add_txt(&record("_acme-challenge.gone.com", "x")).await.unwrap();
        table.add_txt(&record("d1.acme.example.net", "y")).await.unwrap();
        let at = |owner: &str| {
            let zones = reader.load();
            zones.node(&lower(&name(owner)).unwrap()).map(|node| node.txt.to_vec())
        };
        assert_eq!(at("_acme-challenge.example.com").unwrap(), ["a", "b"]);

        writer.replace(&spec(&["_acme-challenge.example.com"]));
        assert_eq!(at("_acme-challenge.example.com").unwrap(), ["a", "b"]);
        assert_eq!(at("_acme-challenge.gone.com"), None);
        assert_eq!(at("d1.acme.example.net").unwrap(), ["y"]);

        table.remove_txt(&record("_acme-challenge.example.com", "a")).await.unwrap();
        table.remove_txt(&record("_acme-challenge.example.com", "a")).await.unwrap();
        table.remove_txt(&record("nothing.example.org", "a")).await.unwrap();
        assert_eq!(at("_acme-challenge.example.com").unwrap(), ["b"]);
        table.remove_txt(&record("d1.acme.example.net", "y")).await.unwrap();
        assert_eq!(at("d1.acme.example.net"), None);
    }

    #[tokio::test]
    async fn a_name_outside_and_too_many_values_are_refused_in_words() {
        let (writer, _) = zones(&spec(&["_acme-challenge.example.com"]));
        let table = writer.txt_table();
        let outside = table.add_txt(&record("_acme-challenge.example.org", "a")).await.unwrap_err();
        assert!(matches!(&outside, DnsError::Refused(why) if why.contains("acme.example.net")), "{outside}");
        for i in 0..MAX_VALUES {
            table.add_txt(&record("_acme-challenge.example.com", &i.to_string())).await.unwrap();
        }
        let full = table.add_txt(&record("_acme-challenge.example.com", "more")).await.unwrap_err();
        assert!(matches!(full, DnsError::Unavailable(_)));
    }
}
