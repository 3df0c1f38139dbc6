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

/// A resolver that asks during an order must ask again soon.
const TXT_TTL: u32 = 1;
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
            vec![Record::from_rdata(owner.clone(), TXT_TTL, RData::HINFO(hint))]
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
