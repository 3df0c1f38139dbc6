//! For the built-in responder: the records at the user's DNS that lead to it, and whether it can be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use super::finding::Note;
use super::net;
use super::records::record;
use crate::name::DnsName;
use crate::resolver::{AskError, Probe, Resolver, Transport, addresses, alias, name_servers, probe};
use crate::responder::ResponderSpec;

/// Where the world asks.
const PORT: u16 = 53;

/// What stands at a name that has to lead here, as each server of the zone above says it.
#[derive(Clone, Debug)]
pub(super) struct LeadFacts {
    pub(super) name: DnsName,
    /// Why nobody could be asked.
    pub(super) unreachable: Option<String>,
    pub(super) said: Vec<(SocketAddr, Lead)>,
}

impl LeadFacts {
    /// Whether some server has an alias there.
    pub(super) fn is_alias(&self) -> bool {
        self.said.iter().any(|(_, lead)| matches!(lead, Lead::Alias(_)))
    }
}

/// What one server has at the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    /// Nothing.
    Nothing,
    /// A delegation, with glue.
    Servers(BTreeMap<DnsName, Vec<IpAddr>>),
    /// An alias.
    Alias(String),
}

/// What the name of one of our name servers resolves to.
#[derive(Clone, Debug)]
pub(super) struct NameFacts {
    pub(super) name: DnsName,
    pub(super) configured: Vec<IpAddr>,
    pub(super) found: Result<Vec<IpAddr>, String>,
}

/// Whether an address of ours answers, asked from here.
#[derive(Clone, Debug)]
pub(super) struct ReachFacts {
    pub(super) address: SocketAddr,
    pub(super) udp: Result<ResponseCode, AskError>,
    pub(super) tcp: Result<ResponseCode, AskError>,
}

/// Asks every server of the zone that `base` lies in for `name`.
pub(super) async fn gather_lead(resolver: &Resolver, base: &DnsName, name: &DnsName) -> LeadFacts {
    let mut facts = LeadFacts { name: name.clone(), unreachable: None, said: Vec::new() };
    let zone = match resolver.zone_of(base).await {
        Ok(zone) => zone,
        Err(error) => return LeadFacts { unreachable: Some(error.to_string()), ..facts },
    };
    let mut failures = Vec::new();
    for server in &zone.servers {
        for address in server.addresses.iter().take(2) {
            match probe(*address, name, RecordType::NS, Probe::default()).await {
                Ok(message) => match message.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => {
                        facts.said.push((*address, read(&message, name)));
                    }
                    code => failures.push(format!("{address} says {}", crate::resolver::code_words(code))),
                },
                Err(error) => failures.push(format!("{address}: {error}")),
            }
        }
    }
    if facts.said.is_empty() {
        facts.unreachable = Some(format!("no server of {} answers: {}", zone.apex, failures.join("; ")));
    }
    facts
}

fn read(message: &Message, name: &DnsName) -> Lead {
    if let Some(target) = alias(message, name) {
        return Lead::Alias(target.map_or_else(|text| text, |name| name.to_string()));
    }
    let servers = name_servers(message, name);
    if servers.is_empty() { Lead::Nothing } else { Lead::Servers(servers) }
}

/// Resolves the names of our name servers as the world does.
pub(super) async fn gather_names(recursors: &[SocketAddr], spec: &ResponderSpec) -> Vec<NameFacts> {
    let resolve = |server: &crate::responder::NameServer| {
        let (name, configured) = (server.name.clone(), server.addresses.clone());
        async move {
            let (v4, v6) = tokio::join!(
                net::recurse(recursors, &name, RecordType::A, false),
                net::recurse(recursors, &name, RecordType::AAAA, false)
            );
            let found = match (v4, v6) {
                (Err(reason), Err(_)) => Err(reason),
                (v4, v6) => Ok([v4, v6].into_iter().flatten().flat_map(|m| addresses(&m)).collect()),
            };
            NameFacts { name, configured, found }
        }
    };
    futures_util::future::join_all(spec.nameservers.iter().map(resolve)).await
}

/// Asks our public addresses. Only useful while Starlock runs.
pub(super) async fn gather_reach(spec: &ResponderSpec) -> Vec<ReachFacts> {
    let name = spec.zone.clone().or_else(|| spec.challenge_names.first().cloned());
    let Some(name) = name else { return Vec::new() };
    let all: BTreeSet<IpAddr> =
        spec.nameservers.iter().flat_map(|server| server.addresses.iter().copied()).collect();
    let ask = |ip: IpAddr| {
        let (address, name) = (SocketAddr::new(ip, PORT), &name);
        async move {
            let by = |transport| Probe { transport, ..Probe::default() };
            let (udp, tcp) = tokio::join!(
                probe(address, name, RecordType::SOA, by(Transport::Udp)),
                probe(address, name, RecordType::SOA, by(Transport::Tcp))
            );
            let code = |said: Result<Message, AskError>| said.map(|message| message.metadata.response_code);
            ReachFacts { address, udp: code(udp), tcp: code(tcp) }
        }
    };
    futures_util::future::join_all(all.into_iter().take(16).map(ask)).await
}

/// Whether the challenge name of `base` leads here.
pub(super) fn judge_lead(facts: &LeadFacts, base: &DnsName, spec: &ResponderSpec) -> Vec<Note> {
    let ours: BTreeSet<&DnsName> = spec.nameservers.iter().map(|server| &server.name).collect();
    let lines = to_add(spec, &facts.name);
    let place = format!("the DNS of {base}");
    if let Some(reason) = &facts.unreachable {
        return vec![
            Note::failure(
                "delegation.unseen",
                format!("whether {} is delegated to Starlock cannot be seen: {reason}", facts.name),
            )
            .why("a CA asks the same servers")
            .fix(format!("dig +trace {} NS", facts.name))
            .place(place),
        ];
    }
    let (mut missing, mut elsewhere, mut bare, mut good) = (Vec::new(), BTreeSet::new(), BTreeSet::new(), 0);
    for (server, lead) in &facts.said {
        match lead {
            Lead::Nothing => missing.push(server.to_string()),
            Lead::Alias(target) => match (&spec.zone, DnsName::parse(target)) {
                (Some(zone), Ok(target)) if target.is_in(zone) => good += 1,
                _ => drop(elsewhere.insert(format!("CNAME {target}"))),
            },
            Lead::Servers(servers) => {
                let foreign: Vec<_> = servers.keys().filter(|name| !ours.contains(name)).collect();
                elsewhere.extend(foreign.iter().map(|name| format!("NS {name}")));
                if foreign.is_empty() {
                    good += 1;
                    bare.extend(
                        servers
                            .iter()
                            .filter(|(n, glue)| n.is_in(&facts.name) && glue.is_empty())
                            .map(|(n, _)| n.clone()),
                    );
                }
            }
        }
    }
    let mut notes = Vec::new();
    if !elsewhere.is_empty() {
        let list = elsewhere.into_iter().collect::<Vec<_>>().join(", ");
        notes.push(
            Note::failure("delegation.elsewhere", format!("{} leads to somebody else: {list}", facts.name))
                .why("whoever answers there is asked for the challenge, and Starlock is not")
                .fix(format!("replace it by:\n{}", lines.join("\n")))
                .place(place.as_str()),
        );
    }
    if !missing.is_empty() && good == 0 && notes.is_empty() {
        notes.push(
            Note::failure("delegation.missing", format!("{} is not delegated to Starlock yet", facts.name))
                .why("a CA that asks for the challenge is told that it does not exist")
                .fix(lines.join("\n"))
                .place(place.as_str()),
        );
    } else if !missing.is_empty() && notes.is_empty() {
        notes.push(
            Note::warning(
                "delegation.partial",
                format!(
                    "{} is delegated to Starlock at some servers, and not at {}",
                    facts.name,
                    missing.join(", ")
                ),
            )
            .why("a CA that asks one of those finds nothing; after a change they may need some minutes")
            .fix(lines.join("\n"))
            .place(place.as_str()),
        );
    }
    for name in bare {
        let glue =
            spec.nameservers.iter().filter(|s| s.name == name).flat_map(address_lines).collect::<Vec<_>>();
        notes.push(
            Note::failure(
                "delegation.glue-missing",
                format!("the delegation of {} to {name} has no glue", facts.name),
            )
            .why("the name lies inside what is delegated: without glue nobody finds its address")
            .fix(glue.join("\n"))
            .place(place.as_str()),
        );
    }
    if notes.is_empty() {
        notes.push(Note::ok("delegation.there", format!("{} leads to Starlock", facts.name)));
    }
    notes
}

/// The records that lead `challenge` here.
fn to_add(spec: &ResponderSpec, challenge: &DnsName) -> Vec<String> {
    let mut lines: Vec<String> =
        spec.nameservers.iter().map(|server| record(challenge, "NS", &server.name.to_fqdn())).collect();
    for server in spec.nameservers.iter().filter(|server| server.name.is_in(challenge)) {
        lines.extend(address_lines(server));
    }
    lines
}

fn address_lines(server: &crate::responder::NameServer) -> Vec<String> {
    let kind = |ip: &IpAddr| if ip.is_ipv4() { "A" } else { "AAAA" };
    server.addresses.iter().map(|ip| record(&server.name, kind(ip), &ip.to_string())).collect()
}

/// Whether the names of our name servers resolve to the configured addresses.
pub(super) fn judge_names(facts: &[NameFacts]) -> Vec<Note> {
    facts.iter().map(judge_name).collect()
}

fn judge_name(facts: &NameFacts) -> Note {
    let name = &facts.name;
    let kind = |ip: &IpAddr| if ip.is_ipv4() { "A" } else { "AAAA" };
    let lines: Vec<String> =
        facts.configured.iter().map(|ip| record(name, kind(ip), &ip.to_string())).collect();
    let list =
        |ips: &mut dyn Iterator<Item = &IpAddr>| ips.map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let fail = |what: String, fix: String| {
        Note::failure("delegation.nameserver-address", what)
            .why("the delegation names this server: whoever follows it has to find Starlock's address")
            .fix(fix)
            .place(format!("the DNS of {name}"))
    };
    let add = || {
        if lines.is_empty() {
            record(name, "A", "(the public address of this machine)")
        } else {
            lines.join("\n")
        }
    };
    match &facts.found {
        Err(reason) => fail(format!("the name server {name} does not resolve: {reason}"), add()),
        Ok(found) if found.is_empty() => fail(format!("the name server {name} has no address"), add()),
        Ok(found) if facts.configured.is_empty() || found.iter().all(|ip| facts.configured.contains(ip)) => {
            Note::ok("delegation.nameserver", format!("{name} is {}", list(&mut found.iter())))
        }
        Ok(found) => {
            let wrong = list(&mut found.iter().filter(|ip| !facts.configured.contains(ip)));
            fail(
                format!(
                    "the name server {name} is {wrong} in DNS, and {} in [responder]",
                    list(&mut facts.configured.iter())
                ),
                add(),
            )
        }
    }
}

/// What asking our own public addresses came to. NAT that does not turn back makes this fail where the world succeeds.
pub(super) fn judge_reach(facts: &[ReachFacts]) -> Vec<Note> {
    facts.iter().flat_map(judge_one_reach).collect()
}

fn judge_one_reach(facts: &ReachFacts) -> Vec<Note> {
    let mut notes = Vec::new();
    for (said, protocol, flag) in [(&facts.udp, "UDP", ""), (&facts.tcp, "TCP", "+tcp ")] {
        let (ip, what) = (
            facts.address.ip(),
            match said {
                Ok(ResponseCode::NoError) => continue,
                Ok(code) => format!(
                    "{} answers {} over {protocol}: that is not Starlock's responder",
                    facts.address,
                    crate::resolver::code_words(*code)
                ),
                Err(error) => format!("{} does not answer over {protocol} from here: {error}", facts.address),
            },
        );
        notes.push(
            Note::warning("delegation.silent", what)
                .why("a CA asks this address. From here it may fail only because the router does not turn back (hairpin NAT)")
                .fix(format!("try from outside: dig {flag}@{ip} SOA (a challenge name); open or forward port 53 for {protocol}"))
                .place("the firewall or router in front of [responder] listen"),
        );
    }
    if notes.is_empty() {
        notes.push(Note::ok("delegation.answers", format!("{} answers over UDP and TCP", facts.address)));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;
    use crate::responder::NameServer;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    fn spec(server: &str, zone: Option<&str>) -> ResponderSpec {
        ResponderSpec {
            listen: vec![],
            zone: zone.map(name),
            nameservers: vec![NameServer {
                name: name(server),
                addresses: vec!["203.0.113.7".parse().unwrap()],
            }],
            challenge_names: vec![name("_acme-challenge.example.com")],
        }
    }

    fn lead(spec: &ResponderSpec, said: Vec<Lead>) -> Vec<(&'static str, String)> {
        let said =
            said.into_iter().enumerate().map(|(i, lead)| (([192, 0, 2, i as u8], 53).into(), lead)).collect();
        let facts = LeadFacts { name: name("_acme-challenge.example.com"), unreachable: None, said };
        let base = name("example.com");
        judge_lead(&facts, &base, spec).into_iter().map(|note| (note.id, note.fix)).collect()
    }

    #[test]
    fn what_leads_here_and_what_does_not() {
        let direct = spec("ns.example.net", None);
        let servers = |server: &str, glue: &[&str]| {
            Lead::Servers([(name(server), glue.iter().map(|g| g.parse().unwrap()).collect())].into())
        };
        let line = "_acme-challenge.example.com.  NS  ns.example.net.";
        assert_eq!(
            lead(&direct, vec![servers("ns.example.net", &[])]),
            [("delegation.there", String::new())]
        );
        assert_eq!(lead(&direct, vec![Lead::Nothing]), [("delegation.missing", line.to_owned())]);
        let partial = lead(&direct, vec![Lead::Nothing, servers("ns.example.net", &[])]);
        assert_eq!(partial, [("delegation.partial", line.to_owned())]);
        let foreign = lead(&direct, vec![servers("ns.other.net", &[])]);
        assert_eq!(foreign, [("delegation.elsewhere", format!("replace it by:\n{line}"))]);
        assert_eq!(lead(&direct, vec![Lead::Alias("x.acme.net".into())])[0].0, "delegation.elsewhere");
        let zoned = spec("ns.acme.net", Some("acme.net"));
        assert_eq!(lead(&zoned, vec![Lead::Alias("x.acme.net".into())])[0].0, "delegation.there");
        let inside = spec("ns._acme-challenge.example.com", None);
        assert_eq!(
            lead(&inside, vec![servers("ns._acme-challenge.example.com", &[])]),
            [("delegation.glue-missing", "ns._acme-challenge.example.com.  A  203.0.113.7".to_owned())]
        );
        assert_eq!(
            lead(&inside, vec![servers("ns._acme-challenge.example.com", &["203.0.113.7"])])[0].0,
            "delegation.there"
        );
    }

    #[test]
    fn the_name_server_has_to_be_where_the_file_says() {
        let facts = |found: Result<Vec<&str>, String>| NameFacts {
            name: name("ns.example.net"),
            configured: vec!["203.0.113.7".parse().unwrap()],
            found: found.map(|list| list.iter().map(|ip| ip.parse().unwrap()).collect()),
        };
        assert_eq!(judge_name(&facts(Ok(vec!["203.0.113.7"]))).severity, Severity::Ok);
        for found in [Ok(vec![]), Ok(vec!["203.0.113.8"]), Err("SERVFAIL".to_owned())] {
            let note = judge_name(&facts(found));
            assert_eq!((note.id, note.severity), ("delegation.nameserver-address", Severity::Failure));
            assert_eq!(note.fix, "ns.example.net.  A  203.0.113.7");
        }
    }

    #[test]
    fn a_silent_address_only_warns() {
        let address = ([203, 0, 113, 7], 53).into();
        let facts = ReachFacts { address, udp: Ok(ResponseCode::NoError), tcp: Err(AskError::Silent) };
        let notes = judge_reach(&[facts]);
        assert_eq!(notes.len(), 1);
        assert_eq!(notes[0].severity, Severity::Warning);
        assert!(notes[0].why.contains("hairpin NAT") && notes[0].what.contains("TCP"), "{notes:?}");
    }
}
