//! Whether every server that a CA may ask shows the records. Decisions are pure; the loop asks and waits.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use crate::dns::TxtRecord;
use crate::name::DnsName;
use crate::resolver::{AskError, Resolver, TxtReply, Zone};

/// Between two rounds: short at first, since most servers are quick.
const WAITS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(5),
];
/// Values shown of what a server has; the rest is counted.
const MAX_SHOWN: usize = 3;

/// One name whose values have to be seen, and who has to show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    pub(super) name: DnsName,
    pub(super) values: Vec<String>,
    pub(super) servers: Vec<Server>,
}

/// One name server, at all its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) addresses: Vec<SocketAddr>,
}

/// What an address said last.
pub(super) type Said = Result<TxtReply, AskError>;

impl Watch {
    /// One watch for each name, with all servers of its zone.
    pub(super) fn new(records: &[(TxtRecord, Vec<Server>)]) -> Vec<Watch> {
        let mut watches: BTreeMap<DnsName, Watch> = BTreeMap::new();
        for (record, servers) in records {
            let watch = watches.entry(record.name.clone()).or_insert_with(|| Watch {
                name: record.name.clone(),
                values: Vec::new(),
                servers: servers.clone(),
            });
            watch.values.push(record.value.clone());
        }
        watches.into_values().collect()
    }
}

/// The servers of a zone as propagation sees them.
pub(super) fn servers_of(zone: &Zone) -> Vec<Server> {
    zone.servers
        .iter()
        .map(|server| Server { name: server.name.to_string(), addresses: server.addresses.clone() })
        .collect()
}

/// Whether one server, by what its addresses said, shows all values: no address may say otherwise, and at least one has to
/// say so. An address that is silent, or out of this machine's reach, does not count while another one answers.
fn shows(server: &Server, said: &BTreeMap<SocketAddr, Said>, values: &[String]) -> bool {
    let mut one = false;
    for address in &server.addresses {
        match said.get(address) {
            Some(Ok(TxtReply::Values(seen))) if values.iter().all(|value| seen.contains(value)) => one = true,
            Some(Ok(_)) | None => return false,
            Some(Err(_)) => {}
        }
    }
    one
}

/// Whether every server shows every value.
pub(super) fn visible(watch: &Watch, said: &BTreeMap<SocketAddr, Said>) -> bool {
    !watch.servers.is_empty() && watch.servers.iter().all(|server| shows(server, said, &watch.values))
}

/// What each server said, for a person: one line an address.
pub(super) fn table(watch: &Watch, said: &BTreeMap<SocketAddr, Said>) -> String {
    let mut rows = Vec::new();
    for server in &watch.servers {
        if server.addresses.is_empty() {
            rows.push((server.name.clone(), String::new(), "its name does not resolve".to_owned()));
        }
        for address in &server.addresses {
            let text =
                said.get(address).map_or_else(|| "no answer yet".to_owned(), |s| describe(s, &watch.values));
            rows.push((server.name.clone(), address.to_string(), text));
        }
    }
    let width = |column: fn(&(String, String, String)) -> usize| rows.iter().map(column).max().unwrap_or(0);
    let (names, addresses) = (width(|r| r.0.len()), width(|r| r.1.len()));
    let mut table = format!("  wanted at {}: {}\n", watch.name, watch.values.join(", "));
    for (name, address, text) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "  {name:names$}  {address:addresses$}  {text}");
    }
    table
}

pub(super) fn describe(said: &Said, wanted: &[String]) -> String {
    match said {
        Ok(TxtReply::Values(seen)) => {
            let missing = wanted.iter().filter(|value| !seen.contains(value)).count();
            let shown: Vec<String> =
                seen.iter().take(MAX_SHOWN).map(|v| v.escape_debug().to_string()).collect();
            let more = seen.len().saturating_sub(MAX_SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            match missing {
                0 => "shows all of them".to_owned(),
                _ => format!("{missing} of {} missing; it has: {}{more}", wanted.len(), shown.join(", ")),
            }
        }
        Ok(TxtReply::Absent) => "no TXT record there".to_owned(),
        Ok(TxtReply::Cname) => "a CNAME stands there".to_owned(),
        Ok(TxtReply::Referral(zone)) => format!("it refers to the servers of {zone}"),
        Ok(TxtReply::Unhelpful(why)) => why.clone(),
        Err(error) => error.to_string(),
    }
}

/// Asks until everything is visible or `limit` is over. `Err` is the table for a person.
pub(super) async fn wait(resolver: &Resolver, watches: &[Watch], limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    let mut said: Vec<BTreeMap<SocketAddr, Said>> = vec![BTreeMap::new(); watches.len()];
    let mut round = 0;
    loop {
        let asking = watches.iter().zip(&mut said).filter(|(watch, said)| !visible(watch, said));
        let asking = asking.map(|(watch, said)| ask(resolver, watch, said));
        // What is not answered by then stays as it was said last.
        let in_time = tokio::time::timeout_at(deadline, join_all(asking)).await.is_ok();
        if watches.iter().zip(&said).all(|(watch, said)| visible(watch, said)) {
            return Ok(());
        }
        let wait = WAITS[round.min(WAITS.len() - 1)];
        if !in_time || Instant::now() + wait >= deadline {
            let missing = watches.iter().zip(&said).filter(|(watch, said)| !visible(watch, said));
            return Err(missing.map(|(watch, said)| table(watch, said)).collect());
        }
        tokio::time::sleep(wait).await;
        round += 1;
    }
}

/// One round: every address at once, those that showed everything already left alone.
async fn ask(resolver: &Resolver, watch: &Watch, said: &mut BTreeMap<SocketAddr, Said>) {
    let pending: Vec<SocketAddr> = watch
        .servers
        .iter()
        .flat_map(|server| &server.addresses)
        .filter(|address| {
            !matches!(said.get(address), Some(Ok(TxtReply::Values(seen))) if watch.values.iter().all(|v| seen.contains(v)))
        })
        .copied()
        .collect();
    let mut answers: FuturesUnordered<_> = pending
        .into_iter()
        .map(|address| async move { (address, resolver.txt(address, &watch.name).await) })
        .collect();
    while let Some((address, answer)) = answers.next().await {
        said.insert(address, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 53).into()
    }

    fn watch(servers: &[(&str, &[u8])]) -> Watch {
        let server = |(name, addresses): &(&str, &[u8])| Server {
            name: (*name).into(),
            addresses: addresses.iter().map(|a| address(*a)).collect(),
        };
        Watch {
            name: DnsName::parse("_acme-challenge.example.com").unwrap(),
            values: vec!["apex".into(), "wild".into()],
            servers: servers.iter().map(server).collect(),
        }
    }

    fn values(values: &[&str]) -> Said {
        Ok(TxtReply::Values(values.iter().map(|v| (*v).to_owned()).collect()))
    }

    #[test]
    fn every_server_has_to_show_every_value() {
        let all = || values(&["wild", "old", "apex"]);
        let silent = || Err(AskError::Silent);
        type Case = (&'static [(&'static str, &'static [u8])], Vec<Said>, bool);
        let cases: Vec<Case> = vec![
            (&[("a", &[1]), ("b", &[2])], vec![all(), all()], true),
            (&[("a", &[1]), ("b", &[2])], vec![all(), values(&["apex"])], false),
            (&[("a", &[1]), ("b", &[2])], vec![all(), Ok(TxtReply::Absent)], false),
            (&[("a", &[1]), ("b", &[2])], vec![all(), silent()], false),
            (&[("a", &[1, 2])], vec![all(), silent()], true),
            (&[("a", &[1, 2])], vec![all(), Err(AskError::NoRoute)], true),
            (&[("a", &[1, 2])], vec![silent(), silent()], false),
            (&[("a", &[1, 2])], vec![all(), Ok(TxtReply::Unhelpful("REFUSED".into()))], false),
            (&[("a", &[1, 2])], vec![all()], false),
            (&[("a", &[1]), ("b", &[])], vec![all()], false),
            (&[], vec![], false),
        ];
        for (servers, said, expected) in cases {
            let said = said.into_iter().enumerate().map(|(i, s)| (address(i as u8 + 1), s)).collect();
            assert_eq!(visible(&watch(servers), &said), expected, "{servers:?} {said:?}");
        }
    }

    #[test]
    fn the_table_says_what_each_address_said() {
        let watch =
            watch(&[("ns1.example.net", &[1]), ("ns2.example.net", &[2, 3]), ("gone.example.net", &[])]);
        let said = BTreeMap::from([
            (address(1), values(&["apex", "wild"])),
            (address(2), values(&["old\n1", "old2", "old3", "old4"])),
            (address(3), Err(AskError::Silent)),
        ]);
        let table = table(&watch, &said);
        for wanted in [
            "wanted at _acme-challenge.example.com: apex, wild",
            "ns1.example.net   192.0.2.1:53  shows all of them",
            "ns2.example.net   192.0.2.2:53  2 of 2 missing; it has: old\\n1, old2, old3 and 1 more",
            "192.0.2.3:53  no answer within 4 s",
            "gone.example.net                its name does not resolve",
        ] {
            assert!(table.contains(wanted), "{wanted}\n{table}");
        }
    }

    #[test]
    fn values_of_one_name_are_watched_together() {
        let record = |value: &str| TxtRecord {
            name: DnsName::parse("_acme-challenge.example.com").unwrap(),
            value: value.into(),
        };
        let watches = Watch::new(&[(record("apex"), vec![]), (record("wild"), vec![])]);
        assert_eq!(watches.len(), 1);
        assert_eq!(watches[0].values, ["apex", "wild"]);
    }
}
