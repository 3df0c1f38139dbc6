//! Asking, as the doctor does it: through the configured resolvers, or at the servers of a zone, whoever answers first.

use std::net::SocketAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use crate::name::DnsName;
use crate::resolver::{Probe, Zone, code_words, probe};

/// Servers asked one after another before giving up.
const MAX_TRIES: usize = 4;

/// An answer, or what each that was asked said instead.
pub(super) type Answer = Result<Message, String>;

/// Asks recursive resolvers in turn until one says yes or no.
pub(super) async fn recurse(
    recursors: &[SocketAddr],
    name: &DnsName,
    kind: RecordType,
    unchecked: bool,
) -> Answer {
    let how = Probe { recurse: true, unchecked, dnssec: true, ..Probe::default() };
    in_turn(recursors.iter().copied(), name, kind, how).await
}

/// Asks the servers of a zone in turn until one says yes or no.
pub(super) async fn at_zone(zone: &Zone, name: &DnsName, kind: RecordType) -> Answer {
    let how = Probe { dnssec: true, ..Probe::default() };
    // One address of each server first.
    let first = zone.servers.iter().filter_map(|server| server.addresses.first());
    let rest = zone.servers.iter().flat_map(|server| server.addresses.iter().skip(1));
    in_turn(first.chain(rest).copied(), name, kind, how).await
}

async fn in_turn(
    servers: impl Iterator<Item = SocketAddr>,
    name: &DnsName,
    kind: RecordType,
    how: Probe,
) -> Answer {
    let mut said = Vec::new();
    for server in servers.take(MAX_TRIES) {
        match probe(server, name, kind, how).await {
            Ok(message) => match message.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => return Ok(message),
                code => said.push(format!("{server} says {}", code_words(code))),
            },
            Err(error) => said.push(format!("{server}: {error}")),
        }
    }
    Err(if said.is_empty() { "there is nobody to ask".to_owned() } else { said.join("; ") })
}
