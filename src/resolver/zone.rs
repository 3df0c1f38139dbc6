//! Which zone holds a name, who serves it, and where an alias leads.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use super::doh::Doh;
use super::exchange::{AskError, ask};
use super::reply::{TxtReply, addresses_of, apex_of, cname_of, code_text, cut_below, servers_of, txt_reply};
use crate::name::DnsName;
use crate::task;

/// Where authoritative servers listen; delegations cannot say anything else.
const PORT: u16 = 53;
/// Zone cuts between the zone of the identifier and the name asked.
const MAX_CUTS: usize = 8;
/// CNAMEs one after another; resolvers give up between 8 and 16.
const MAX_ALIASES: usize = 8;
/// Servers asked at once when one good answer is enough.
const RACE: usize = 6;
/// Addresses asked at all before a zone is given up: each may take seconds.
const MAX_ASKED: usize = 24;
/// The same for a question that was answered a moment ago.
const MAX_AGAIN: usize = 4;
/// The system's resolvers that are tried; its own libraries stop at three.
const MAX_RECURSORS: usize = 3;

/// Finds zones and their servers. Keeps nothing between calls.
#[derive(Clone, Debug)]
pub struct Resolver {
    recursors: Vec<SocketAddr>,
    outside: Option<Outside>,
}

/// Resolvers that are asked over HTTPS instead of the recursive ones.
#[derive(Clone, Debug)]
struct Outside {
    doh: Doh,
    urls: Vec<String>,
}

/// A zone and everyone who serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its name.
    pub apex: DnsName,
    /// Its name servers, sorted by name.
    pub servers: Vec<ZoneServer>,
}

/// One name server of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneServer {
    /// The name in the NS record.
    pub name: DnsName,
    /// Where it listens; empty if its name does not resolve.
    pub addresses: Vec<SocketAddr>,
}

/// What this process answers itself, so that following a name ends there without a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Names in this zone are not asked for.
    pub zone: Option<DnsName>,
    /// A delegation of exactly the name being followed leads here.
    pub cuts: bool,
}

/// Where a challenge's TXT records have to stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name, aliases followed.
    pub name: DnsName,
    /// Its zone; `None` if [`Here`] answers for it.
    pub zone: Option<Zone>,
}

/// Why a name could not be followed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LookupError {
    /// Nothing to ask.
    #[error("this machine has no DNS resolver configured ({0}); name one in `resolvers`")]
    NoResolver(String),
    /// No recursive resolver answered.
    #[error("no resolver could be asked about {name}: {reason}")]
    Unanswered {
        /// What was asked.
        name: DnsName,
        /// What each said.
        reason: String,
    },
    /// No zone above the name.
    #[error("no zone was found that holds {name}{reason}; is its domain registered and delegated?")]
    NoZone {
        /// The name.
        name: DnsName,
        /// What the resolver said, if not a plain no.
        reason: String,
    },
    /// None of the zone's servers answered.
    #[error("none of the name servers of {apex} could be asked about {name}: {reason}")]
    NoServer {
        /// The zone.
        apex: DnsName,
        /// What was asked.
        name: DnsName,
        /// What each said.
        reason: String,
    },
    /// An alias leads back to itself, or through too many others.
    #[error("{name} is a CNAME that leads in a circle or through more than {MAX_ALIASES} others: {chain}")]
    Aliases {
        /// Where it began.
        name: DnsName,
        /// The way taken.
        chain: String,
    },
    /// An alias leads to something that is not a name.
    #[error("{name} is a CNAME for `{target}`, which cannot hold a TXT record for a challenge")]
    BadAlias {
        /// The alias.
        name: DnsName,
        /// Its target.
        target: String,
    },
}

impl Resolver {
    /// Asks these recursive resolvers, in this order; none means those of the system, read at each use.
    pub fn new(recursors: Vec<SocketAddr>) -> Self {
        Self { recursors, outside: None }
    }

    /// Asks these resolvers over HTTPS, in this order, where zones and their servers are: as the world sees it, whatever the
    /// resolvers inside say. The servers of the zones are asked directly all the same.
    pub fn outside(doh: Doh, urls: Vec<String>) -> Self {
        Self { recursors: Vec::new(), outside: Some(Outside { doh, urls }) }
    }

    /// The zone that `name` lies in, with its servers. `name` itself is asked at authoritative servers only; if none of
    /// them can be reached, it is the zone of the name above.
    pub async fn zone_of(&self, name: &DnsName) -> Result<Zone, LookupError> {
        Ok(self.locate(name, &Here::default()).await?.zone)
    }

    /// The servers of a zone whose name is known.
    pub async fn zone_named(&self, apex: &DnsName) -> Result<Zone, LookupError> {
        let message = self.recurse(apex, RecordType::NS).await?;
        Ok(self.zone(apex.clone(), servers_of(&message, apex)).await)
    }

    /// Where the TXT records for `challenge` have to stand: its CNAMEs followed, each asked at authoritative servers.
    ///
    /// A CNAME that only a wildcard made is not followed: the TXT record will hide it.
    pub async fn follow(&self, challenge: &DnsName, here: &Here) -> Result<Target, LookupError> {
        let mut chain = vec![challenge.clone()];
        let mut name = challenge.clone();
        loop {
            if here.zone.as_ref().is_some_and(|zone| name.is_in(zone)) {
                return Ok(Target { name, zone: None });
            }
            let found = self.locate(&name, here).await?;
            if found.here {
                return Ok(Target { name, zone: None });
            }
            let Some(server) = found.server else {
                return Err(LookupError::NoServer { apex: found.zone.apex, name, reason: found.reason });
            };
            let Some(alias) = found.alias else {
                return Ok(Target { name, zone: Some(found.zone) });
            };
            let made = self.is_wildcard(server, &found.zone, &name, &alias).await;
            let unclear = |reason| LookupError::NoServer {
                apex: found.zone.apex.clone(),
                name: name.clone(),
                reason: format!("whether a wildcard made its CNAME cannot be told: {reason}"),
            };
            if made.map_err(unclear)? {
                return Ok(Target { name, zone: Some(found.zone) });
            }
            name = alias.map_err(|target| LookupError::BadAlias { name: name.clone(), target })?;
            let circle = chain.contains(&name);
            chain.push(name.clone());
            if circle || chain.len() > MAX_ALIASES {
                let chain = chain.iter().map(DnsName::as_str).collect::<Vec<_>>().join(" -> ");
                return Err(LookupError::Aliases { name: challenge.clone(), chain });
            }
        }
    }

    /// What one server says about the TXT records of `name`.
    pub async fn txt(&self, server: SocketAddr, name: &DnsName) -> Result<TxtReply, AskError> {
        Ok(txt_reply(&ask(server, name, RecordType::TXT, false).await?, name))
    }

    /// Whether a random sibling of `name` is an alias for the same target: then a wildcard made both. Asks `server`, which told of
    /// the alias, and then others of the zone; to guess would put records where nobody looks for them.
    async fn is_wildcard(
        &self,
        server: SocketAddr,
        zone: &Zone,
        name: &DnsName,
        alias: &Result<DnsName, String>,
    ) -> Result<bool, String> {
        let Some(parent) = name.parent() else { return Ok(false) };
        let Ok(sibling) = DnsName::parse(&format!("_{:016x}.{parent}", rand::random::<u64>())) else {
            return Ok(false);
        };
        let others = asking_order(zone).into_iter().filter(|other| *other != server);
        let mut reasons = Vec::new();
        for server in std::iter::once(server).chain(others).take(MAX_AGAIN) {
            match ask(server, &sibling, RecordType::SOA, false).await {
                Ok(message) => match message.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => {
                        return Ok(cname_of(&message, &sibling).as_ref() == Some(alias));
                    }
                    code => reasons.push(format!("{server} says {}", code_text(code))),
                },
                Err(error) => reasons.push(format!("{server}: {error}")),
            }
        }
        Err(reasons.join("; "))
    }

    /// Finds the zone from above, then walks down by what its servers say.
    async fn locate(&self, name: &DnsName, here: &Here) -> Result<Found, LookupError> {
        let zone = self.above(name).await?;
        let mut found = Found { zone, alias: None, server: None, here: false, reason: String::new() };
        for _ in 0..MAX_CUTS {
            let (server, message) = match self.any(&found.zone, name).await {
                Ok(answer) => answer,
                Err(reason) => {
                    found.server = None;
                    found.reason = reason;
                    return Ok(found);
                }
            };
            found.server = Some(server);
            if let Some(alias) = cname_of(&message, name) {
                found.alias = Some(alias);
                return Ok(found);
            }
            let deeper = |apex: &DnsName| apex.is_in(&found.zone.apex) && *apex != found.zone.apex;
            if let Some(cut) = cut_below(&message, name).filter(|cut| deeper(&cut.apex)) {
                if here.cuts && cut.apex == *name {
                    found.here = true;
                    return Ok(found);
                }
                found.zone = self.zone(cut.apex, cut.servers).await;
            } else if let Some(apex) = apex_of(&message, name).filter(deeper) {
                // Parent and child on the same server: no referral was needed.
                let servers = match ask(server, &apex, RecordType::NS, false).await {
                    Ok(message) => servers_of(&message, &apex),
                    Err(_) => BTreeMap::new(),
                };
                found.zone = self.zone(apex, servers).await;
                return Ok(found);
            } else {
                return Ok(found);
            }
        }
        Ok(found)
    }

    /// The zone of the names above `name`, asked at recursive resolvers.
    async fn above(&self, name: &DnsName) -> Result<Zone, LookupError> {
        let mut asked = first_above(name);
        let (mut refusal, mut unserved) = (String::new(), None);
        loop {
            match self.recurse(&asked, RecordType::SOA).await {
                Ok(message) => {
                    if let Some(apex) = apex_of(&message, &asked) {
                        let zone = self.zone_named(&apex).await?;
                        if !zone.servers.is_empty() {
                            return Ok(zone);
                        }
                        // A resolver that heard a lame server believes that there is none. The zone above knows them.
                        unserved = unserved.or(Some(zone));
                        asked = apex;
                    }
                }
                // A resolver that serves only some zones refuses what lies above them.
                Err(LookupError::NoZone { reason, .. }) => refusal = reason,
                Err(error) => return Err(error),
            }
            asked = match asked.parent() {
                Some(parent) => parent,
                None => {
                    return unserved
                        .ok_or_else(|| LookupError::NoZone { name: name.clone(), reason: refusal });
                }
            };
        }
    }

    /// Asks the recursive resolvers one after another until one gives an answer that is a yes or a no.
    async fn recurse(&self, name: &DnsName, kind: RecordType) -> Result<Message, LookupError> {
        let (mut refusals, mut failures) = (Vec::new(), Vec::new());
        let mut take = |server: String, answer: Result<Message, String>| match answer {
            Ok(message) => match message.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => Some(message),
                code => {
                    refusals.push(format!("{server} says {}", code_text(code)));
                    None
                }
            },
            Err(error) => {
                failures.push(format!("{server}: {error}"));
                None
            }
        };
        if let Some(Outside { doh, urls }) = &self.outside {
            for url in urls {
                if let Some(message) = take(url.clone(), doh.ask(url, name, kind).await) {
                    return Ok(message);
                }
            }
        } else {
            for server in self.recursors().await? {
                let answer = ask(server, name, kind, true).await.map_err(|error| error.to_string());
                if let Some(message) = take(server.to_string(), answer) {
                    return Ok(message);
                }
            }
        }
        if refusals.is_empty() {
            let reason = failures.join("; ");
            return Err(LookupError::Unanswered { name: name.clone(), reason });
        }
        let reason = format!(" ({})", refusals.join("; "));
        Err(LookupError::NoZone { name: name.clone(), reason })
    }

    /// The recursive resolvers in use, at most three of the system's.
    pub async fn recursors(&self) -> Result<Vec<SocketAddr>, LookupError> {
        if !self.recursors.is_empty() {
            return Ok(self.recursors.clone());
        }
        let (config, _) = task::blocking(hickory_resolver::system_conf::read_system_conf)
            .await
            .map_err(|e| LookupError::NoResolver(e.to_string()))?;
        let mut servers: Vec<SocketAddr> = Vec::new();
        for server in config.name_servers() {
            let port = server.connections.first().map_or(PORT, |c| c.port);
            let address = SocketAddr::new(server.ip, port);
            if !servers.contains(&address) && servers.len() < MAX_RECURSORS {
                servers.push(address);
            }
        }
        if servers.is_empty() {
            return Err(LookupError::NoResolver("the system's list is empty".into()));
        }
        Ok(servers)
    }

    /// Fills in the addresses that a delegation left out.
    async fn zone(&self, apex: DnsName, servers: BTreeMap<DnsName, Vec<IpAddr>>) -> Zone {
        let servers = servers.into_iter().map(|(name, mut addresses)| async move {
            if addresses.is_empty() {
                let (v4, v6) =
                    tokio::join!(self.recurse(&name, RecordType::A), self.recurse(&name, RecordType::AAAA));
                addresses = [v4, v6].into_iter().flatten().flat_map(|m| addresses_of(&m)).collect();
            }
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect();
            ZoneServer { name, addresses }
        });
        Zone { apex, servers: join_all(servers).await }
    }

    /// The first useful answer of several servers of a zone about the SOA of `name`.
    async fn any(&self, zone: &Zone, name: &DnsName) -> Result<(SocketAddr, Message), String> {
        let order = asking_order(zone);
        if order.is_empty() {
            let unknown = zone.servers.is_empty();
            return Err(if unknown { "it has no NS record" } else { "none of their names resolves" }.into());
        }
        // The next is asked when one has failed: a machine without IPv6 must not stop at six addresses of it.
        let asking = order.into_iter().take(MAX_ASKED);
        let mut race = stream::iter(asking)
            .map(|server| async move { (server, ask(server, name, RecordType::SOA, false).await) })
            .buffer_unordered(RACE);
        let (mut reasons, mut lame) = (Vec::new(), None);
        while let Some((server, answer)) = race.next().await {
            match answer {
                Ok(message) => match message.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => {
                        if message.metadata.authoritative || cut_below(&message, name).is_some() {
                            return Ok((server, message));
                        }
                        // Better than nothing: a cache in front of the servers answers without authority.
                        lame = lame.or(Some((server, message)));
                    }
                    code => reasons.push(format!("{server} says {}", code_text(code))),
                },
                Err(error) => reasons.push(format!("{server}: {error}")),
            }
        }
        if let Some(answer) = lame {
            return Ok(answer);
        }
        Err(reasons.join("; "))
    }
}

/// In which order a zone's servers are asked: one address of each first, so that no server runs the race alone, and of both families
/// in turn, as this machine may have only one of them.
fn asking_order(zone: &Zone) -> Vec<SocketAddr> {
    let mut order: Vec<(usize, SocketAddr)> = Vec::new();
    for (number, server) in zone.servers.iter().enumerate() {
        let first = |address: &&SocketAddr| address.is_ipv4() == number.is_multiple_of(2);
        let (one, other): (Vec<SocketAddr>, Vec<SocketAddr>) = server.addresses.iter().partition(first);
        let length = one.len().max(other.len());
        let both = (0..length).flat_map(|at| [one.get(at), other.get(at)]).flatten().copied();
        order.extend(both.enumerate());
    }
    order.sort_by_key(|(rank, _)| *rank);
    order.into_iter().map(|(_, address)| address).collect()
}

/// The first name above `name` that a recursive resolver may be asked for: never a challenge's own name, which is the one above that of
/// dns-account-01 (`_label._acme-challenge.NAME`). Resolvers would keep the "no" beyond the moment when the record stands.
fn first_above(name: &DnsName) -> DnsName {
    let mut above = name.parent();
    let mut at = above.clone();
    while let Some(here) = at {
        if here.as_str().starts_with("_acme-challenge.") {
            above = here.parent();
        }
        at = here.parent();
    }
    above.unwrap_or_else(|| name.clone())
}

struct Found {
    zone: Zone,
    alias: Option<Result<DnsName, String>>,
    /// Who answered; `None` if nobody did.
    server: Option<SocketAddr>,
    here: bool,
    /// Why nobody did.
    reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    #[test]
    fn no_name_of_a_challenge_is_asked_of_a_recursive_resolver() {
        for (of, first) in [
            ("_acme-challenge.www.example.com", "www.example.com"),
            ("_label._acme-challenge.www.example.com", "www.example.com"),
            ("a.b._acme-challenge.example.com", "example.com"),
            ("x._acme-challenge.y._acme-challenge.example.com", "example.com"),
            ("target.acme.example.net", "acme.example.net"),
            ("com", "com"),
        ] {
            assert_eq!(first_above(&name(of)), name(first), "{of}");
        }
    }

    #[test]
    fn both_families_are_asked_in_turn() {
        let server = |number: u16| ZoneServer {
            name: name("ns.example.com"),
            addresses: (1..=2)
                .map(|n| SocketAddr::from(([0, 0, 0, 0, 0, 0, number, n], PORT)))
                .chain((1..=2).map(|n| SocketAddr::from(([192, 0, 2, n], PORT))))
                .collect(),
        };
        let zone = Zone { apex: name("example.com"), servers: (0..8).map(server).collect() };
        let order = asking_order(&zone);
        assert_eq!(order.len(), 32);
        assert_eq!(order.iter().take(RACE).filter(|address| address.is_ipv4()).count(), RACE / 2);
        let firsts: std::collections::BTreeSet<_> = order.iter().take(8).filter(|a| a.is_ipv6()).collect();
        assert_eq!(firsts.len(), 4, "one of each server before a second of any: {order:?}");
    }
}
