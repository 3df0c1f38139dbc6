//! `[responder]`: where the built-in DNS server listens, and under which names the world knows it.

use super::decode::Decoder;
use super::error::Problem;
use super::value::{At, Fields, Slot};
use crate::name::{DnsName, HostPattern};
use crate::responder::{NameServer, ResponderSpec};

/// A read section, before the names that it answers for are known.
pub(super) struct Section {
    spec: ResponderSpec,
    zone: Option<At<DnsName>>,
}

/// Reads the section. `Absent` if there is none.
pub(super) fn read(decoder: &mut Decoder<'_>, file: &Fields) -> Slot<Section> {
    let At { value: fields, span } = match file.slot::<Fields>("responder") {
        Slot::Absent => return Slot::Absent,
        Slot::Broken => return Slot::Broken,
        Slot::Given(at) => at,
    };
    for key in ["listen", "nameservers"] {
        if fields.list::<std::net::SocketAddr>(key).is_some_and(|list| list.is_empty())
            && decoder.text.get(fields.span_of(key)).is_some_and(is_empty_list)
        {
            let doc = if key == "listen" {
                "where should it listen?"
            } else {
                "NS records need a name to point at"
            };
            decoder.push(
                Problem::error(fields.span_of(key), format!("`{key}` of [responder] is empty")).label(doc),
            );
        }
    }
    let zone = fields.slot::<DnsName>("zone").given();
    let tables: Vec<At<Fields>> = fields.list("nameservers").unwrap_or_default();
    let mut nameservers: Vec<NameServer> = Vec::new();
    let mut places: Vec<At<DnsName>> = Vec::new();
    for table in &tables {
        let Some(name) = table.value.slot::<DnsName>("name").given() else { continue };
        let addresses: Vec<At<std::net::IpAddr>> = table.value.list("addresses").unwrap_or_default();
        for bad in addresses.iter().filter(|at| at.value.is_unspecified()) {
            decoder.push(
                Problem::error(bad.span.clone(), format!("nobody can reach {}", bad.value))
                    .label("the address that the world sees is wanted here"),
            );
        }
        if let Some(first) = places.iter().find(|other| other.value == name.value) {
            decoder.push(
                Problem::error(name.span.clone(), format!("name server `{}` is there twice", name.value))
                    .also(first.span.clone(), "first here"),
            );
        }
        let inside = zone.as_ref().is_some_and(|zone| name.value.is_in(&zone.value));
        if inside && !table.value.has("addresses") {
            decoder.push(
                Problem::error(name.span.clone(), format!("`{}` needs `addresses`", name.value))
                    .label("it lies inside `zone`, so nobody else can say where it is")
                    .help("for example addresses = [\"203.0.113.7\"]"),
            );
        }
        nameservers.push(NameServer {
            name: name.value.clone(),
            addresses: addresses.into_iter().map(|at| at.value).collect(),
        });
        places.push(name);
    }
    let listen: Vec<At<std::net::SocketAddr>> = fields.list("listen").unwrap_or_default();
    let spec = ResponderSpec {
        listen: listen.into_iter().map(|at| at.value).collect(),
        zone: zone.as_ref().map(|at| at.value.clone()),
        nameservers,
        challenge_names: Vec::new(),
    };
    Slot::Given(At { value: Section { spec, zone }, span })
}

fn is_empty_list(source: &str) -> bool {
    source.strip_prefix('[').and_then(|s| s.strip_suffix(']')).is_some_and(|inner| inner.trim().is_empty())
}

impl Section {
    /// The spec, with the names that it answers for. `hosts` are all names that Starlock serves.
    pub(super) fn spec(
        self,
        decoder: &mut Decoder<'_>,
        challenge_names: Vec<DnsName>,
        hosts: &[&HostPattern],
    ) -> ResponderSpec {
        let served = |zone: &DnsName| {
            let base = |host: &&&HostPattern| host.base().is_some_and(|base| DnsName::from(base).is_in(zone));
            hosts.iter().find(base).copied()
        };
        if let Some(zone) = &self.zone
            && let Some(host) = served(&zone.value)
        {
            decoder.push(
                Problem::error(zone.span.clone(), format!("`zone` takes `{host}` out of the DNS"))
                    .label(format!("everything below `{}` would be asked here", zone.value))
                    .help(format!("use a zone of its own, such as \"acme.{}\"", zone.value))
                    .help("NS delegation of each _acme-challenge name needs no `zone` at all"),
            );
        }
        ResponderSpec { challenge_names, ..self.spec }
    }
}
