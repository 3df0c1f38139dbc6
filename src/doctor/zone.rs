//! A zone and everyone who serves it: what the parent says, what each server says, over UDP and over TCP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};

use super::dnssec::{self, Dnssec};
use super::finding::Note;
use super::net;
use crate::name::DnsName;
use crate::resolver::{AskError, Probe, Resolver, Transport, Zone, code_words, name_servers, probe};

/// A server answers "no such name" this long to whoever asks too early.
const NEGATIVE_TTL_WORTH_SAYING: u32 = 3600;
/// Addresses of one zone that are asked.
const MAX_ADDRESSES: usize = 24;
const AT_ONCE: usize = 8;
/// A secondary that lags gets this long.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What was seen of a zone.
#[derive(Clone, Debug)]
pub(super) struct ZoneFacts {
    pub(super) apex: DnsName,
    /// What the parent's servers delegate to; `None` where nobody above could be asked, or parent and child are one server.
    pub(super) parent: Option<BTreeMap<DnsName, Vec<IpAddr>>>,
    pub(super) servers: Vec<ServerFacts>,
    pub(super) dnssec: Dnssec,
}

/// One address of a name server.
#[derive(Clone, Debug)]
pub(super) struct ServerFacts {
    pub(super) name: DnsName,
    /// `None`: its name does not resolve.
    pub(super) address: Option<SocketAddr>,
    pub(super) udp: Said,
    pub(super) tcp: Said,
    /// The NS records it has of the zone.
    pub(super) servers: BTreeSet<DnsName>,
}

pub(super) type Said = Result<SoaReply, AskError>;

/// The answer to a question for the zone's SOA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SoaReply {
    pub(super) code: ResponseCode,
    pub(super) authoritative: bool,
    /// Serial number, and for how long an absence is kept (RFC 2308 section 5).
    pub(super) soa: Option<(u32, u32)>,
}

/// Looks at the zone from above and from all sides. Takes at most half a minute.
pub(super) async fn gather(
    resolver: &Resolver,
    recursors: &[SocketAddr],
    zone: &Zone,
    now: u32,
) -> ZoneFacts {
    let apex = &zone.apex;
    let above = match apex.parent() {
        Some(parent) => resolver.zone_of(&parent).await.ok(),
        None => None,
    };
    let parent = match &above {
        Some(above) if above.apex != *apex => referral(above, apex).await,
        _ => None,
    };
    let mut servers: BTreeMap<DnsName, BTreeSet<SocketAddr>> = BTreeMap::new();
    let child = resolver.zone_named(apex).await.ok();
    for server in zone.servers.iter().chain(child.iter().flat_map(|zone| &zone.servers)) {
        servers.entry(server.name.clone()).or_default().extend(&server.addresses);
    }
    let (mut seen, dnssec) = tokio::join!(
        ask_all(apex, &servers),
        dnssec::gather(above.as_ref().filter(|above| above.apex != *apex), zone, recursors, now)
    );
    if serials(&seen).len() > 1 {
        tokio::time::sleep(LOOK_AGAIN).await;
        seen = ask_all(apex, &servers).await;
    }
    ZoneFacts { apex: apex.clone(), parent, servers: seen, dnssec }
}

/// What the zone above delegates `apex` to. A server that has both answers for the child: then nobody delegates anything.
async fn referral(above: &Zone, apex: &DnsName) -> Option<BTreeMap<DnsName, Vec<IpAddr>>> {
    let message = net::at_zone(above, apex, RecordType::NS).await.ok()?;
    if message.metadata.authoritative {
        return None;
    }
    Some(name_servers(&message, apex)).filter(|servers| !servers.is_empty())
}

async fn ask_all(apex: &DnsName, servers: &BTreeMap<DnsName, BTreeSet<SocketAddr>>) -> Vec<ServerFacts> {
    let mut all: Vec<(DnsName, Option<SocketAddr>)> = Vec::new();
    for (name, addresses) in servers {
        if addresses.is_empty() {
            all.push((name.clone(), None));
        }
        all.extend(addresses.iter().map(|address| (name.clone(), Some(*address))));
    }
    all.truncate(MAX_ADDRESSES);
    let mut facts: Vec<ServerFacts> = stream::iter(all)
        .map(|(name, address)| async move {
            let Some(to) = address else {
                let silent = || Err(AskError::Silent);
                return ServerFacts { name, address, udp: silent(), tcp: silent(), servers: BTreeSet::new() };
            };
            let by = |transport| Probe { transport, ..Probe::default() };
            let (udp, tcp, ns) = tokio::join!(
                probe(to, apex, RecordType::SOA, by(Transport::Udp)),
                probe(to, apex, RecordType::SOA, by(Transport::Tcp)),
                probe(to, apex, RecordType::NS, by(Transport::Either)),
            );
            let read = |said: Result<Message, AskError>| said.map(|message| read(&message, apex));
            let servers = ns.map(|m| name_servers(&m, apex).into_keys().collect()).unwrap_or_default();
            ServerFacts { name, address, udp: read(udp), tcp: read(tcp), servers }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    facts.sort_by(|a, b| (&a.name, a.address).cmp(&(&b.name, b.address)));
    facts
}

fn read(message: &Message, apex: &DnsName) -> SoaReply {
    let soa = message.answers.iter().find_map(|record| match &record.data {
        RData::SOA(soa) if DnsName::parse(&record.name.to_ascii()).is_ok_and(|n| n == *apex) => {
            Some((soa.serial, soa.minimum.min(record.ttl)))
        }
        _ => None,
    });
    SoaReply { code: message.metadata.response_code, authoritative: message.metadata.authoritative, soa }
}

fn serials(servers: &[ServerFacts]) -> BTreeMap<u32, Vec<String>> {
    let mut serials: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for server in servers {
        if let Ok(SoaReply { authoritative: true, soa: Some((serial, _)), .. }) = &server.udp {
            serials.entry(*serial).or_default().push(shown(server));
        }
    }
    serials
}

fn shown(server: &ServerFacts) -> String {
    server.address.map_or_else(|| server.name.to_string(), |address| format!("{} ({address})", server.name))
}

/// What is wrong with the zone. `strict`: an order waits for every server of it.
pub(super) fn judge(facts: &ZoneFacts, strict: bool) -> Vec<Note> {
    let mut notes = Vec::new();
    let place = format!("zone {}", facts.apex);
    for server in &facts.servers {
        notes.extend(judge_server(facts, server, strict));
    }
    if facts.servers.is_empty() {
        notes.push(
            Note::failure("zone.no-server", format!("no name server of {} is known", facts.apex))
                .why("nobody can look up a name in it, so no CA can validate one")
                .fix(format!("{}  NS  (the name of a server that has the zone)", facts.apex.to_fqdn()))
                .place(place.as_str()),
        );
    }
    notes.extend(judge_delegation(facts));
    let serials = serials(&facts.servers);
    if serials.len() > 1 {
        let list: Vec<String> =
            serials.iter().map(|(serial, who)| format!("{serial} at {}", who.join(", "))).collect();
        notes.push(
            Note::warning(
                "zone.serials-differ",
                format!("the servers of {} have different versions of it: {}", facts.apex, list.join("; ")),
            )
            .why("a record that is written at one of them may never reach the others, and a CA asks any of them")
            .fix(format!("mend the transfer (NOTIFY, AXFR) to the servers with the lower serial; compare with: {}", dig_all(facts)))
            .place(place.as_str()),
        );
    }
    let negative = facts.servers.iter().filter_map(|s| s.udp.as_ref().ok()?.soa).map(|(_, ttl)| ttl).max();
    if let Some(ttl) = negative.filter(|ttl| *ttl > NEGATIVE_TTL_WORTH_SAYING) {
        notes.push(
            Note::warning(
                "zone.negative-ttl",
                format!("{} lets \"no such name\" be remembered for {ttl} s (the last number of its SOA)", facts.apex),
            )
            .why("if anybody asks for a challenge name too early, resolvers go on saying that it does not exist for that long")
            .fix(format!("set the last number of the SOA of {} to 300, or anything up to {NEGATIVE_TTL_WORTH_SAYING}", facts.apex.to_fqdn()))
            .place(place.as_str()),
        );
    }
    notes.extend(dnssec::judge(&facts.apex, &facts.dnssec));
    if notes.iter().all(|note| note.severity == super::Severity::Ok) {
        let servers: BTreeSet<_> = facts.servers.iter().map(|server| &server.name).collect();
        let many = if servers.len() == 1 {
            "its server answers".to_owned()
        } else {
            format!("its {} servers answer", servers.len())
        };
        notes.push(Note::ok("zone.servers", format!("{}: {many} over UDP and TCP, and agree", facts.apex)));
    }
    notes
}

fn judge_server(facts: &ZoneFacts, server: &ServerFacts, strict: bool) -> Option<Note> {
    let (apex, who, place) = (&facts.apex, shown(server), format!("zone {}", facts.apex));
    let name = server.name.to_fqdn();
    let other = facts.servers.iter().any(|s| {
        s.name == server.name
            && s.address != server.address
            && matches!(&s.udp, Ok(reply) if reply.authoritative)
    });
    let why = if strict && !other {
        "an order waits until every server of the zone shows the challenge, and a CA may ask any of them"
    } else {
        "a CA may ask this server, and then the challenge fails"
    };
    let note = |id, what: String| Note::failure_if(strict && !other, id, what).why(why).place(place.as_str());
    let remove = format!("take `{} NS {name}` out of {apex} and of its delegation", apex.to_fqdn());
    let Some(address) = server.address else {
        return Some(
            note(
                "zone.server-unresolved",
                format!("the name server {} of {apex} has no address", server.name),
            )
            .fix(format!("{name}  A  (its address), or {remove}")),
        );
    };
    let dig =
        |flags: &str| format!("dig {flags}+norecurse @{} -p {} {apex} SOA", address.ip(), address.port());
    let reply = match &server.udp {
        Ok(reply) => reply,
        // An address family that this machine lacks says nothing about the server.
        Err(AskError::NoRoute) => {
            return Some(
                Note::skipped(
                    "zone.server-no-route",
                    format!("{who}, a server of {apex}, cannot be reached from here"),
                )
                .why("this machine has no way to that address; others may have one")
                .place(place),
            );
        }
        Err(error) => {
            let tcp = if server.tcp.is_ok() { "; over TCP it does" } else { "" };
            return Some(
                note(
                    "zone.server-silent",
                    format!("{who}, a server of {apex}, does not answer over UDP ({error}){tcp}"),
                )
                .fix(format!("start it, or open its port 53 for UDP (try: {}); or {remove}", dig(""))),
            );
        }
    };
    if reply.code != ResponseCode::NoError {
        let code = code_words(reply.code);
        return Some(
            note("zone.server-refuses", format!("{who} is named as a server of {apex} and answers {code}"))
                .fix(format!("configure {apex} there (try: {}), or {remove}", dig(""))),
        );
    }
    if !reply.authoritative || reply.soa.is_none() {
        return Some(
            note(
                "zone.server-lame",
                format!("{who} is named as a server of {apex} and does not have the zone (lame)"),
            )
            .fix(format!("configure {apex} there (try: {}), or {remove}", dig(""))),
        );
    }
    if let Err(error) = &server.tcp {
        return Some(
            Note::warning("zone.tcp-blocked", format!("{who}, a server of {apex}, does not answer over TCP ({error})"))
                .why("answers that do not fit into a datagram are asked for again over TCP (RFC 7766): with several TXT values, or signatures, a CA gets none")
                .fix(format!("open port 53 for TCP there (try: {})", dig("+tcp ")))
                .place(place),
        );
    }
    None
}

fn judge_delegation(facts: &ZoneFacts) -> Vec<Note> {
    let (apex, mut notes) = (&facts.apex, Vec::new());
    let place = format!("the delegation of {apex}, at its parent");
    let answering = || facts.servers.iter().filter(|s| !s.servers.is_empty());
    let child: BTreeSet<&DnsName> = answering().flat_map(|s| &s.servers).collect();
    let split: BTreeSet<&BTreeSet<DnsName>> = answering().map(|s| &s.servers).collect();
    if split.len() > 1 {
        let list: Vec<String> =
            answering().map(|s| format!("{} says {}", shown(s), list(s.servers.iter()))).collect();
        notes.push(
            Note::warning(
                "zone.answers-differ",
                format!("the servers of {apex} name different servers: {}", list.join("; ")),
            )
            .why("they hold different versions of the zone, so a challenge may be missing at some of them")
            .fix(format!(
                "make all of them transfer the zone from one primary; compare with: {}",
                dig_all(facts)
            ))
            .place(format!("zone {apex}")),
        );
    }
    let Some(parent) = &facts.parent else { return notes };
    let (above, below): (BTreeSet<&DnsName>, _) = (parent.keys().collect(), child);
    if !below.is_empty() && above != below {
        let lines = |names: Vec<&&DnsName>, verb: &str| {
            names
                .iter()
                .map(|n| format!("{verb}: {}  NS  {}", apex.to_fqdn(), n.to_fqdn()))
                .collect::<Vec<_>>()
        };
        let mut fix = lines(below.difference(&above).collect(), "add at the parent");
        fix.extend(lines(above.difference(&below).collect(), "add to the zone, or take away at the parent"));
        notes.push(
            Note::warning(
                "zone.ns-mismatch",
                format!(
                    "the parent delegates {apex} to {}, the zone itself names {}",
                    list(above.iter().copied()),
                    list(below.iter().copied())
                ),
            )
            .why("resolvers use either set, so some ask servers that nobody keeps up to date")
            .fix(fix.join("\n"))
            .place(place.as_str()),
        );
    }
    for (server, glue) in parent {
        if glue.is_empty() && server.is_in(apex) {
            let known: Vec<String> = facts
                .servers
                .iter()
                .filter(|s| s.name == *server)
                .filter_map(|s| s.address)
                .map(|a| {
                    format!("{}  {}  {}", server.to_fqdn(), if a.is_ipv4() { "A" } else { "AAAA" }, a.ip())
                })
                .collect();
            let fix = if known.is_empty() {
                format!("{}  A  (its address)", server.to_fqdn())
            } else {
                known.join("\n")
            };
            let only = parent.iter().all(|(name, glue)| name.is_in(apex) && glue.is_empty());
            notes.push(
                Note::failure_if(only, "zone.glue-missing", format!("the delegation of {apex} to {server} has no glue"))
                    .why("the name of the server lies inside the zone it serves, so nobody can find its address without asking it first")
                    .fix(fix)
                    .place(place.as_str()),
            );
        }
    }
    notes
}

fn list<'a>(names: impl Iterator<Item = &'a DnsName>) -> String {
    names.map(DnsName::as_str).collect::<Vec<_>>().join(", ")
}

fn dig_all(facts: &ZoneFacts) -> String {
    format!("dig +nssearch {}", facts.apex)
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    fn soa(serial: u32, minimum: u32) -> Said {
        Ok(SoaReply { code: ResponseCode::NoError, authoritative: true, soa: Some((serial, minimum)) })
    }

    fn server(n: u8) -> ServerFacts {
        ServerFacts {
            name: name(&format!("ns{n}.example.net")),
            address: Some(([192, 0, 2, n], 53).into()),
            udp: soa(7, 300),
            tcp: soa(7, 300),
            servers: [name("ns1.example.net"), name("ns2.example.net")].into(),
        }
    }

    fn good() -> ZoneFacts {
        let glue = [(name("ns1.example.net"), vec![]), (name("ns2.example.net"), vec![])];
        ZoneFacts {
            apex: name("example.com"),
            parent: Some(glue.into()),
            servers: vec![server(1), server(2)],
            dnssec: Dnssec::Unsigned,
        }
    }

    fn ids(facts: &ZoneFacts, strict: bool) -> Vec<(&'static str, Severity)> {
        let notes = judge(facts, strict);
        for note in notes.iter().filter(|n| n.severity < Severity::Skipped) {
            assert!(!note.fix.is_empty() && !note.why.is_empty() && !note.place.is_empty(), "{note:?}");
        }
        notes.into_iter().filter(|n| n.severity != Severity::Ok).map(|n| (n.id, n.severity)).collect()
    }

    #[test]
    fn each_mistake_has_its_finding() {
        type Change = fn(&mut ZoneFacts);
        let cases: &[(Change, &[(&str, Severity)])] = &[
            (|_| {}, &[]),
            (|z| z.servers[1].udp = Err(AskError::Silent), &[("zone.server-silent", Severity::Failure)]),
            (|z| z.servers[1].udp = Err(AskError::NoRoute), &[("zone.server-no-route", Severity::Skipped)]),
            (|z| z.servers[1].address = None, &[("zone.server-unresolved", Severity::Failure)]),
            (
                |z| {
                    z.servers[1].udp =
                        Ok(SoaReply { code: ResponseCode::Refused, authoritative: false, soa: None });
                },
                &[("zone.server-refuses", Severity::Failure)],
            ),
            (
                |z| {
                    z.servers[1].udp =
                        Ok(SoaReply { code: ResponseCode::NoError, authoritative: false, soa: Some((7, 1)) });
                },
                &[("zone.server-lame", Severity::Failure)],
            ),
            (|z| z.servers[0].tcp = Err(AskError::Silent), &[("zone.tcp-blocked", Severity::Warning)]),
            (|z| z.servers[0].udp = soa(8, 300), &[("zone.serials-differ", Severity::Warning)]),
            (|z| z.servers[0].udp = soa(7, 3601), &[("zone.negative-ttl", Severity::Warning)]),
            (
                |z| z.servers[0].servers = [name("ns1.example.net")].into(),
                &[("zone.answers-differ", Severity::Warning)],
            ),
            (
                |z| z.parent = Some([(name("ns1.example.net"), vec![])].into()),
                &[("zone.ns-mismatch", Severity::Warning)],
            ),
            (|z| z.parent = None, &[]),
            (|z| z.servers.clear(), &[("zone.no-server", Severity::Failure)]),
            (
                |z| {
                    z.parent = Some([(name("ns.example.com"), vec![])].into());
                    z.servers.truncate(1);
                    z.servers[0].servers = [name("ns.example.com")].into();
                },
                &[("zone.glue-missing", Severity::Failure)],
            ),
        ];
        for (change, expected) in cases {
            let mut facts = good();
            change(&mut facts);
            assert_eq!(ids(&facts, true), *expected, "{facts:?}");
        }
    }

    #[test]
    fn what_an_order_does_not_wait_for_only_warns() {
        let mut facts = good();
        facts.servers[1].udp = Err(AskError::Silent);
        assert_eq!(ids(&facts, false), [("zone.server-silent", Severity::Warning)]);
        // Another address of the same server answers.
        facts.servers[1].name = name("ns1.example.net");
        assert_eq!(ids(&facts, true), [("zone.server-silent", Severity::Warning)]);
    }
}
