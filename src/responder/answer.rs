//! From a question's bytes to an answer's bytes. Pure, total, and small: nothing a stranger sends makes it panic,
//! allocate more than the answer, or answer with more than the transport carries.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, NS, SOA, TXT};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::zones::{Node, Zones};

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Answers are cut at the smaller of the client's buffer and 1232 bytes.
    Udp,
    /// As UDP, from a prefix that asks too often: every answer is empty with TC set, so that a real resolver comes back
    /// over TCP and a forged address gets no more than it sent.
    UdpLimited,
    /// Answers are whole.
    Tcp,
}

/// What fits every path without fragments.
const PAYLOAD: u16 = 1232;
const NO_EDNS: u16 = 512;
const HEADER: usize = 12;
/// A query has OPT and perhaps TSIG beside its question.
const MAX_EXTRAS: u16 = 8;

/// What a resolver keeps of one order is wrong for the next one, and that may follow at once.
const TXT_TTL: u32 = 0;
const ANY_TTL: u32 = 1;
const SOA_TTL: u32 = 1;
const NEGATIVE_TTL: u32 = 1;
const NS_TTL: u32 = 60;
const ADDRESS_TTL: u32 = 60;

const OPT: u16 = 41;
const TSIG: u16 = 250;

/// Answers one message; `None` if silence is the answer (too short, or itself an answer).
pub fn answer(zones: &Zones, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let header = message.get(..HEADER)?;
    let flags = u16::from_be_bytes([header[2], header[3]]);
    if flags & 0x8000 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let op_code = OpCode::from_u8(((flags >> 11) & 0xf) as u8);
    let mut reply = Message::response(id, op_code);
    reply.metadata.recursion_desired = flags & 0x0100 != 0;
    reply.metadata.checking_disabled = flags & 0x0010 != 0;
    if op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return reply.to_vec().ok();
    }
    let Some(question) = read(message) else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return reply.to_vec().ok();
    };
    let limit = match (transport, &question.opt) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (_, Some(opt)) => usize::from(opt.payload.clamp(NO_EDNS, PAYLOAD)),
        (_, None) => usize::from(NO_EDNS),
    };
    reply.add_query(question.query.clone());
    if let Some(opt) = &question.opt {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD).set_dnssec_ok(opt.dnssec_ok);
        reply.set_edns(edns);
    }
    match &question.opt {
        Some(opt) if opt.version != 0 => reply.metadata.response_code = ResponseCode::BADVERS,
        _ if question.signed => reply.metadata.response_code = ResponseCode::NotAuth,
        _ if transport == Transport::UdpLimited => reply.metadata.truncation = true,
        _ => look_up(zones, &question.query, &mut reply),
    }
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit { Some(bytes) } else { reply.truncate().to_vec().ok() }
}

/// What we need of a well-formed query.
struct Question {
    query: Query,
    opt: Option<Opt>,
    signed: bool,
}

struct Opt {
    version: u8,
    payload: u16,
    dnssec_ok: bool,
}

/// Reads a query with exactly one question. Records are skipped, not decoded: only OPT matters.
fn read(message: &[u8]) -> Option<Question> {
    let count = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let (questions, answers, authorities, extras) = (count(4)?, count(6)?, count(8)?, count(10)?);
    let records = answers.checked_add(authorities)?.checked_add(extras)?;
    if questions != 1 || records > MAX_EXTRAS {
        return None;
    }
    // A decoder that begins here refuses a question that points back into the header.
    let body = &message[HEADER..];
    let mut decoder = BinDecoder::new(body);
    let query = Query::read(&mut decoder).ok()?;
    let mut rest = &body[decoder.index()..];
    let (mut opt, mut signed) = (None, false);
    for index in 0..records {
        let record = skip(&mut rest)?;
        if index < answers + authorities {
            continue;
        }
        match record.kind {
            OPT if opt.is_some() || !record.at_root => return None,
            OPT => {
                opt = Some(Opt {
                    version: record.ttl[1],
                    payload: record.class,
                    dnssec_ok: record.ttl[2] & 0x80 != 0,
                });
            }
            TSIG => signed = true,
            _ => {}
        }
    }
    Some(Question { query, opt, signed })
}

struct Skipped {
    at_root: bool,
    kind: u16,
    class: u16,
    ttl: [u8; 4],
}

/// Takes one record off `bytes`.
fn skip(bytes: &mut &[u8]) -> Option<Skipped> {
    let at_root = bytes.first() == Some(&0);
    loop {
        let length = take(bytes, 1)?[0];
        match length {
            0 => break,
            1..=63 => {
                take(bytes, usize::from(length))?;
            }
            192..=255 => {
                take(bytes, 1)?;
                break;
            }
            _ => return None,
        }
    }
    let fixed = take(bytes, 10)?;
    let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
    let class = u16::from_be_bytes([fixed[2], fixed[3]]);
    let ttl = [fixed[4], fixed[5], fixed[6], fixed[7]];
    take(bytes, usize::from(u16::from_be_bytes([fixed[8], fixed[9]])))?;
    Some(Skipped { at_root, kind, class, ttl })
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (front, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(front)
}

fn look_up(zones: &Zones, query: &Query, reply: &mut Message) {
    let name = LowerName::new(query.name());
    // 1 is IN, 255 is ANY.
    let known_class = matches!(u16::from(query.query_class()), 1 | 255);
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    let Some(apex) = zones.apex_of(&name).filter(|_| known_class && !transfer) else {
        reply.metadata.response_code = ResponseCode::Refused;
        return;
    };
    reply.metadata.authoritative = true;
    let Some(node) = zones.node(&name) else {
        reply.metadata.response_code = ResponseCode::NXDomain;
        reply.add_authority(soa(zones, apex));
        return;
    };
    reply.answers = answers(zones, apex, &node, query);
    if reply.answers.is_empty() {
        reply.add_authority(soa(zones, apex));
    } else if query.query_type() == RecordType::NS {
        for server in zones.servers(apex) {
            let addresses = zones.addresses(&server).iter().map(|ip| address(server.clone(), *ip));
            reply.additionals.extend(addresses);
        }
    }
}

fn answers(zones: &Zones, apex: &LowerName, node: &Node<'_>, query: &Query) -> Vec<Record> {
    // The owner as it was asked: resolvers compare the case they chose.
    let owner = query.name();
    let of_family = |v4: bool| {
        let wanted = node.addresses.iter().filter(move |ip| ip.is_ipv4() == v4);
        wanted.map(|ip| address(owner.clone(), *ip)).collect()
    };
    match query.query_type() {
        RecordType::TXT => node
            .txt
            .iter()
            .map(|value| {
                let chunks = value.as_bytes().chunks(255).collect();
                Record::from_rdata(owner.clone(), TXT_TTL, RData::TXT(TXT::from_bytes(chunks)))
            })
            .collect(),
        RecordType::SOA if node.is_apex => {
            let mut record = soa(zones, apex);
            record.name = owner.clone();
            vec![record]
        }
        RecordType::NS if node.is_apex => zones
            .servers(apex)
            .into_iter()
            .map(|server| Record::from_rdata(owner.clone(), NS_TTL, RData::NS(NS(server))))
            .collect(),
        RecordType::A => of_family(true),
        RecordType::AAAA => of_family(false),
        // RFC 8482: an answer that satisfies who asked and helps nobody who reflects.
        RecordType::ANY => {
            let hint = HINFO::new("RFC8482".into(), String::new());
            vec![Record::from_rdata(owner.clone(), ANY_TTL, RData::HINFO(hint))]
        }
        _ => Vec::new(),
    }
}

fn address(owner: Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(owner, ADDRESS_TTL, data)
}

fn soa(zones: &Zones, apex: &LowerName) -> Record {
    let owner = Name::from(apex);
    let first = zones.servers(apex).into_iter().next().unwrap_or_else(|| owner.clone());
    let contact = Name::from_ascii("hostmaster").unwrap_or_default();
    let contact = contact.append_domain(&owner).unwrap_or_else(|_| owner.clone());
    let data = SOA::new(first, contact, zones.serial(), 3600, 600, 86_400, NEGATIVE_TTL);
    Record::from_rdata(owner, SOA_TTL, RData::SOA(data))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::DnsName;
    use crate::responder::{NameServer, ResponderSpec};

    fn zones() -> Zones {
        let name = |text: &str| DnsName::parse(text).unwrap();
        let spec = ResponderSpec {
            listen: vec![],
            zone: Some(name("acme.test")),
            nameservers: vec![NameServer {
                name: name("ns.acme.test"),
                addresses: vec![[192, 0, 2, 1].into()],
            }],
            challenge_names: vec![name("_acme-challenge.example.test"), name("_acme-challenge.acme.test")],
        };
        Zones::new(&spec)
            .with_txt(&name("_acme-challenge.example.test"), "apex")
            .with_txt(&name("a.b.acme.test"), "deep")
    }

    fn query(name: &str, kind: u16, edns: Option<(u8, u16)>) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        if let Some((version, payload)) = edns {
            bytes.extend_from_slice(&[0, 0, 41]);
            bytes.extend_from_slice(&payload.to_be_bytes());
            bytes.extend_from_slice(&[0, version, 0, 0, 0, 0]);
        }
        bytes
    }

    fn ask(name: &str, kind: u16) -> Message {
        let bytes = answer(&zones(), &query(name, kind, None), Transport::Udp).unwrap();
        Message::from_vec(&bytes).unwrap()
    }

    #[test]
    fn names_exist_or_not_by_zone_and_by_what_lies_below() {
        for (name, code, aa) in [
            ("_acme-challenge.example.test", ResponseCode::NoError, true),
            ("x._acme-challenge.example.test", ResponseCode::NXDomain, true),
            ("acme.test", ResponseCode::NoError, true),
            ("b.acme.test", ResponseCode::NoError, true),
            ("a.b.acme.test", ResponseCode::NoError, true),
            ("c.acme.test", ResponseCode::NXDomain, true),
            ("ab.acme.test", ResponseCode::NXDomain, true),
            ("_acme-challenge.acme.test", ResponseCode::NoError, true),
            ("example.test", ResponseCode::Refused, false),
            ("xacme.test", ResponseCode::Refused, false),
            ("", ResponseCode::Refused, false),
        ] {
            for kind in [1, 2, 5, 6, 15, 16, 28, 43, 48, 255, 257, 65400] {
                let reply = ask(name, kind);
                assert_eq!(
                    (reply.metadata.response_code, reply.metadata.authoritative),
                    (code, aa),
                    "{name} {kind}"
                );
                let soa = reply.authorities.iter().any(|r| r.record_type() == RecordType::SOA);
                assert_eq!(soa, aa && reply.answers.is_empty(), "{name} {kind}");
            }
        }
        let nested = ask("_acme-challenge.acme.test", 6);
        assert_eq!(nested.answers[0].name, Name::from_ascii("_acme-challenge.acme.test.").unwrap());
    }

    #[test]
    fn negative_answers_live_for_a_second() {
        for (name, kind) in [("acme.test", 257), ("c.acme.test", 16)] {
            let reply = ask(name, kind);
            let soa = &reply.authorities[0];
            let RData::SOA(data) = &soa.data else { panic!("{soa}") };
            assert!((1..=5).contains(&data.minimum) && soa.ttl <= 5);
        }
        assert!(ask("a.b.acme.test", 16).answers[0].ttl <= 1);
    }

    #[test]
    fn a_limited_answer_is_no_longer_than_its_question() {
        for edns in [None, Some((0, 4096))] {
            let question = query("_acme-challenge.example.test", 255, edns);
            let reply = answer(&zones(), &question, Transport::UdpLimited).unwrap();
            assert!(reply.len() <= question.len());
            assert_ne!(reply[2] & 2, 0);
        }
    }

    fn any_name() -> impl Strategy<Value = String> {
        let label =
            prop::sample::select(vec!["_acme-challenge", "example", "acme", "test", "ns", "b", "x", "Ns"]);
        prop::collection::vec(label, 0..5).prop_map(|labels| labels.join("."))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_it_panic_or_answer_too_much(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            for transport in [Transport::Udp, Transport::UdpLimited, Transport::Tcp] {
                if let Some(reply) = answer(&zones(), &bytes, transport) {
                    prop_assert_eq!(&reply[..2], &bytes[..2]);
                    prop_assert!(reply[2] & 0x80 != 0);
                    prop_assert!(transport == Transport::Tcp || reply.len() <= 1232);
                }
            }
        }

        #[test]
        fn a_damaged_query_is_survived(
            name in any_name(), kind: u16, at in 0usize..80, byte: u8, cut in 0usize..80, edns in prop::option::of((0u8..3, any::<u16>())),
        ) {
            let mut bytes = query(&name, kind, edns);
            if at < bytes.len() {
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            answer(&zones(), &bytes, Transport::Udp);
        }

        #[test]
        fn a_good_query_gets_its_question_back_and_fits(
            name in any_name(), kind in 1u16.., edns in prop::option::of((0u8..3, any::<u16>())), values in 0usize..70,
        ) {
            prop_assume!(!matches!(kind, 41 | 250));
            let mut zones = zones();
            for value in 0..values {
                let owner = DnsName::parse("_acme-challenge.example.test").unwrap();
                zones = zones.with_txt(&owner, &format!("{value:0>43}"));
            }
            let question = query(&name, kind, edns);
            let end = 12 + name.len() + usize::from(!name.is_empty()) + 1 + 4;
            let reply = answer(&zones, &question, Transport::Udp).unwrap();
            prop_assert_eq!(&reply[12..end], &question[12..end]);
            let limit = edns.map_or(512, |(_, payload)| payload.clamp(512, 1232));
            prop_assert!(reply.len() <= usize::from(limit));
            let decoded = Message::from_vec(&reply).unwrap();
            prop_assert_eq!(decoded.edns.is_some(), edns.is_some());
            let whole = answer(&zones, &question, Transport::Tcp).unwrap();
            prop_assert!(whole[2] & 2 == 0);
            if let Some((1.., _)) = edns {
                // BADVERS; the decoder calls it by its other name.
                prop_assert_eq!(u16::from(decoded.metadata.response_code), 16);
            }
        }
    }
}
