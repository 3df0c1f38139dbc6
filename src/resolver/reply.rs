//! What an answer means. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::name::DnsName;

/// More servers than any zone has; the rest of a delegation is not looked at.
const MAX_SERVERS: usize = 16;
/// Addresses of one server that are looked at.
const MAX_ADDRESSES: usize = 8;

/// What a server says about the TXT records of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxtReply {
    /// These values, in the order sent.
    Values(Vec<String>),
    /// The name has none, or does not exist.
    Absent,
    /// The name is an alias.
    Cname,
    /// It sends us to the servers of this zone.
    Referral(DnsName),
    /// It will not or cannot say: a response code, or an answer without authority.
    Unhelpful(String),
}

/// Reads the answer to a question for the TXT records of `name`.
pub fn txt_reply(message: &Message, name: &DnsName) -> TxtReply {
    match message.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return TxtReply::Absent,
        code => return TxtReply::Unhelpful(code_text(code)),
    }
    let values: Vec<String> = message
        .answers
        .iter()
        .filter(|record| is(&record.name, name))
        .filter_map(|record| match &record.data {
            RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
            _ => None,
        })
        .collect();
    if !values.is_empty() {
        return TxtReply::Values(values);
    }
    if cname_of(message, name).is_some() {
        return TxtReply::Cname;
    }
    match cut_below(message, name) {
        Some(cut) => TxtReply::Referral(cut.apex),
        None if message.metadata.authoritative => TxtReply::Absent,
        None => TxtReply::Unhelpful("not authoritative for the zone (lame)".into()),
    }
}

/// The words a person finds in manuals.
pub(super) fn code_text(code: ResponseCode) -> String {
    match code {
        ResponseCode::Refused => "REFUSED".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        ResponseCode::FormErr => "FORMERR".into(),
        ResponseCode::NotImp => "NOTIMP".into(),
        ResponseCode::NotAuth => "NOTAUTH".into(),
        code => format!("{code}"),
    }
}

/// The alias that stands at `name`, if it is one. `Err` holds a target that is not a name we can use.
pub(super) fn cname_of(message: &Message, name: &DnsName) -> Option<Result<DnsName, String>> {
    message.answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if is(&record.name, name) => {
            let text = target.0.to_ascii();
            Some(DnsName::parse(&text).map_err(|_| text))
        }
        _ => None,
    })
}

/// The zone that holds `name`, by the answer to a question for its SOA; `None` if the answer does not tell.
pub(super) fn apex_of(message: &Message, name: &DnsName) -> Option<DnsName> {
    if cname_of(message, name).is_some() {
        // What follows speaks of the alias's target.
        return None;
    }
    message
        .answers
        .iter()
        .chain(&message.authorities)
        .filter(|record| record.record_type() == RecordType::SOA)
        .filter_map(|record| dns_name(&record.name))
        .find(|apex| name.is_in(apex))
}

/// A delegation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) apex: DnsName,
    /// The name servers, with the addresses that came along.
    pub(super) servers: BTreeMap<DnsName, Vec<IpAddr>>,
}

/// The delegation towards `name` in a referral.
pub(super) fn cut_below(message: &Message, name: &DnsName) -> Option<Cut> {
    if message.metadata.authoritative || !message.answers.is_empty() {
        return None;
    }
    let apex = message
        .authorities
        .iter()
        .filter(|record| record.record_type() == RecordType::NS)
        .filter_map(|record| dns_name(&record.name))
        .find(|apex| name.is_in(apex))?;
    let servers = servers_of(message, &apex);
    Some(Cut { apex, servers })
}

/// The name servers of `apex` in any section, with their addresses from the additional one.
pub(super) fn servers_of(message: &Message, apex: &DnsName) -> BTreeMap<DnsName, Vec<IpAddr>> {
    let mut servers = BTreeMap::new();
    for record in message.answers.iter().chain(&message.authorities) {
        if let RData::NS(server) = &record.data
            && is(&record.name, apex)
            && let Some(server) = dns_name(&server.0)
            && servers.len() < MAX_SERVERS
        {
            let addresses = glue_of(message, &server);
            servers.insert(server, addresses);
        }
    }
    servers
}

/// The addresses that came along for `name`.
fn glue_of(message: &Message, name: &DnsName) -> Vec<IpAddr> {
    addresses(message.additionals.iter().filter(|record| is(&record.name, name)))
}

/// The addresses in the answer to a question for A or AAAA, aliases followed by the server.
pub(super) fn addresses_of(message: &Message) -> Vec<IpAddr> {
    addresses(message.answers.iter())
}

fn addresses<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<IpAddr> {
    let address = |record: &Record| match &record.data {
        RData::A(a) => Some(IpAddr::from(a.0)),
        RData::AAAA(a) => Some(IpAddr::from(a.0)),
        _ => None,
    };
    records.filter_map(address).take(MAX_ADDRESSES).collect()
}

fn is(wire: &Name, name: &DnsName) -> bool {
    dns_name(wire).is_some_and(|n| n == *name)
}

fn dns_name(wire: &Name) -> Option<DnsName> {
    DnsName::parse(&wire.to_ascii()).ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{A, CNAME, NS, SOA, TXT};

    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    fn wire(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(wire(owner), 60, data)
    }

    fn ns(owner: &str, server: &str) -> Record {
        record(owner, RData::NS(NS(wire(server))))
    }

    fn soa(owner: &str) -> Record {
        record(owner, RData::SOA(SOA::new(wire("ns."), wire("a."), 1, 1, 1, 1, 1)))
    }

    fn message(code: ResponseCode, authoritative: bool) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.authoritative = authoritative;
        message
    }

    #[test]
    fn txt_answers_are_told_apart() {
        let challenge = name("_acme-challenge.example.com");
        let mut values = message(ResponseCode::NoError, true);
        values.add_answer(record(
            "_ACME-challenge.Example.com.",
            RData::TXT(TXT::new(vec!["a".into(), "b".into()])),
        ));
        values.add_answer(record("other.example.com.", RData::TXT(TXT::new(vec!["no".into()]))));
        assert_eq!(txt_reply(&values, &challenge), TxtReply::Values(vec!["ab".into()]));

        assert_eq!(txt_reply(&message(ResponseCode::NXDomain, true), &challenge), TxtReply::Absent);
        assert_eq!(txt_reply(&message(ResponseCode::NoError, true), &challenge), TxtReply::Absent);
        let lame = txt_reply(&message(ResponseCode::NoError, false), &challenge);
        assert!(matches!(&lame, TxtReply::Unhelpful(why) if why.contains("lame")), "{lame:?}");
        let refused = txt_reply(&message(ResponseCode::Refused, false), &challenge);
        assert_eq!(refused, TxtReply::Unhelpful("REFUSED".into()));

        let mut alias = message(ResponseCode::NoError, true);
        alias.add_answer(record("_acme-challenge.example.com.", RData::CNAME(CNAME(wire("x.acme.net.")))));
        assert_eq!(txt_reply(&alias, &challenge), TxtReply::Cname);
        assert_eq!(cname_of(&alias, &challenge), Some(Ok(name("x.acme.net"))));
    }

    #[test]
    fn a_referral_goes_down_and_never_up() {
        let challenge = name("_acme-challenge.example.com");
        let mut down = message(ResponseCode::NoError, false);
        down.authorities.push(ns("_acme-challenge.example.com.", "ns.acme.net."));
        down.additionals.push(record("ns.acme.net.", RData::A(A::new(192, 0, 2, 7))));
        let cut = cut_below(&down, &challenge).unwrap();
        assert_eq!(cut.apex, challenge);
        assert_eq!(cut.servers[&name("ns.acme.net")], [IpAddr::from([192, 0, 2, 7])]);
        assert_eq!(txt_reply(&down, &challenge), TxtReply::Referral(challenge.clone()));

        let mut elsewhere = message(ResponseCode::NoError, false);
        elsewhere.authorities.push(ns("example.org.", "ns.example.org."));
        assert_eq!(cut_below(&elsewhere, &challenge), None);
        let mut root = message(ResponseCode::NoError, false);
        root.authorities.push(ns(".", "a.root-servers.net."));
        assert_eq!(cut_below(&root, &challenge), None);
    }

    #[test]
    fn the_apex_is_in_the_answer_or_in_the_authority_but_not_behind_an_alias() {
        let www = name("www.example.com");
        let mut nodata = message(ResponseCode::NoError, true);
        nodata.authorities.push(soa("example.com."));
        assert_eq!(apex_of(&nodata, &www), Some(name("example.com")));
        let mut apex = message(ResponseCode::NoError, true);
        apex.add_answer(soa("example.com."));
        assert_eq!(apex_of(&apex, &name("example.com")), Some(name("example.com")));
        let mut alias = message(ResponseCode::NoError, true);
        alias.add_answer(record("www.example.com.", RData::CNAME(CNAME(wire("example.com.")))));
        alias.add_answer(soa("example.com."));
        assert_eq!(apex_of(&alias, &www), None);
        assert_eq!(apex_of(&message(ResponseCode::NoError, true), &www), None);
    }
}
