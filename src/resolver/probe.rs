//! Questions for looking into a zone rather than using it: each transport by itself, with or without DNSSEC.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::time::timeout;

use super::exchange::{AskError, PAYLOAD, TCP_WAIT, over_tcp, over_udp};
use super::reply;
use crate::name::DnsName;

/// How a question travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// UDP, and TCP when the answer was cut.
    #[default]
    Either,
    /// UDP only; an answer that was cut is one.
    Udp,
    /// TCP only.
    Tcp,
}

/// The knobs of a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// How it travels.
    pub transport: Transport,
    /// Asks a resolver to look elsewhere (RD).
    pub recurse: bool,
    /// Asks a resolver not to validate (CD).
    pub unchecked: bool,
    /// Asks for signatures (DO).
    pub dnssec: bool,
}

/// Asks `server` once, with one repetition over UDP. Every response code is an answer. Ends within ten seconds.
pub async fn probe(
    server: SocketAddr,
    name: &DnsName,
    kind: RecordType,
    how: Probe,
) -> Result<Message, AskError> {
    let name = Name::from_ascii(name.to_fqdn()).map_err(|e| AskError::Garbage(e.to_string()))?;
    let mut query = Message::query();
    query.metadata.recursion_desired = how.recurse;
    query.metadata.checking_disabled = how.unchecked;
    query.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    edns.set_dnssec_ok(how.dnssec);
    query.set_edns(edns);
    let by_tcp = async { timeout(TCP_WAIT, over_tcp(server, &query)).await.unwrap_or(Err(AskError::Silent)) };
    match how.transport {
        Transport::Tcp => by_tcp.await,
        Transport::Udp => over_udp(server, &query).await,
        Transport::Either => match over_udp(server, &query).await {
            Ok(cut) if cut.metadata.truncation => by_tcp.await,
            other => other,
        },
    }
}

/// The name servers of exactly `apex` that an answer tells, in whatever section, with the addresses that came along.
pub fn name_servers(message: &Message, apex: &DnsName) -> BTreeMap<DnsName, Vec<IpAddr>> {
    reply::servers_of(message, apex)
}

/// The alias that stands at `name`; `Err` holds a target that is not a name we can use.
pub fn alias(message: &Message, name: &DnsName) -> Option<Result<DnsName, String>> {
    reply::cname_of(message, name)
}

/// Every address in the answer.
pub fn addresses(message: &Message) -> Vec<IpAddr> {
    reply::addresses_of(message)
}

/// A response code in the words of manuals.
pub fn code_words(code: ResponseCode) -> String {
    reply::code_text(code)
}
