//! Whether a validating resolver believes a zone. CAs validate (CA/B Forum, since 2026-03-15).
//!
//! Two witnesses: the configured resolvers, asked with and without checking, and the chain from the parent's DS to the
//! signature of the zone's SOA, verified here.

use std::net::SocketAddr;

use hickory_proto::dnssec::Verifier;
use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, DS, RRSIG};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::finding::Note;
use super::net;
use crate::name::DnsName;
use crate::resolver::{Probe, Zone, probe};

/// What a validator thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dnssec {
    /// The parent says that it is not signed.
    Unsigned,
    /// The chain holds.
    Valid,
    /// The chain is broken: why, and what to do.
    Bogus { reason: String, fix: String },
    /// It could not be seen.
    Unknown(String),
}

/// `above` is the zone with the DS record; `now` in seconds since 1970.
pub(super) async fn gather(above: Option<&Zone>, zone: &Zone, recursors: &[SocketAddr], now: u32) -> Dnssec {
    let apex = &zone.apex;
    let chain = match above {
        None => Dnssec::Unsigned,
        Some(above) => match net::at_zone(above, apex, RecordType::DS).await {
            Err(reason) => Dnssec::Unknown(reason),
            Ok(ds) => {
                let ds = delegation_signers(&ds);
                if ds.is_empty() {
                    Dnssec::Unsigned
                } else {
                    let (keys, soa) = tokio::join!(
                        net::at_zone(zone, apex, RecordType::DNSKEY),
                        net::at_zone(zone, apex, RecordType::SOA)
                    );
                    match (keys, soa) {
                        (Ok(keys), Ok(soa)) => verify(apex, &ds, &keys.answers, &soa.answers, now),
                        (Err(reason), _) | (_, Err(reason)) => Dnssec::Unknown(reason),
                    }
                }
            }
        },
    };
    if matches!(chain, Dnssec::Bogus { .. }) {
        return chain;
    }
    match disbelieved(apex, recursors).await {
        Some(resolver) => Dnssec::Bogus {
            reason: format!(
                "{resolver} answers SERVFAIL for {apex}, and answers when it is told not to check signatures"
            ),
            fix: format!(
                "see what is wrong with: delv {apex} SOA (or https://dnsviz.net/d/{apex}/dnssec/), then sign again or take the DS records away at the parent"
            ),
        },
        None => chain,
    }
}

/// A resolver that fails only because it checks.
async fn disbelieved(apex: &DnsName, recursors: &[SocketAddr]) -> Option<SocketAddr> {
    for resolver in recursors {
        let ask = async |unchecked| {
            let how = Probe { recurse: true, unchecked, ..Probe::default() };
            let said = probe(*resolver, apex, RecordType::SOA, how).await;
            said.ok().map(|message| message.metadata.response_code)
        };
        if ask(false).await == Some(ResponseCode::ServFail) && ask(true).await == Some(ResponseCode::NoError)
        {
            return Some(*resolver);
        }
    }
    None
}

fn delegation_signers(message: &Message) -> Vec<DS> {
    let ds = |record: &Record| match &record.data {
        RData::DNSSEC(DNSSECRData::DS(ds)) => Some(ds.clone()),
        _ => None,
    };
    message.answers.iter().filter_map(ds).collect()
}

/// What a signature did not hold for.
enum Broken {
    /// Nobody can take it.
    Surely(&'static str),
    /// None of those that could be checked holds.
    ByOurs(&'static str),
}

/// The chain from the DS records to the signature of the SOA (RFC 4035 section 5). Pure.
///
/// What rests on an algorithm that is not known here is not called bogus: others may know it (RFC 4035 section 5.2).
fn verify(apex: &DnsName, ds: &[DS], keys: &[Record], soa: &[Record], now: u32) -> Dnssec {
    let Ok(name) = Name::from_ascii(apex.to_fqdn()) else { return Dnssec::Unknown("not a name".into()) };
    let drop_ds = format!("take the DS records of {} away at its parent", apex.to_fqdn());
    let bogus = |reason: String, fix: String| Dnssec::Bogus { reason, fix };
    let dnskeys: Vec<&DNSKEY> = keys.iter().filter_map(dnskey).collect();
    if dnskeys.is_empty() {
        return bogus(
            format!("the parent says that {apex} is signed (it has a DS record), and the zone has no key"),
            format!("sign the zone, or {drop_ds}"),
        );
    }
    let mut foreign: Vec<String> = ds
        .iter()
        .map(DS::algorithm)
        .chain(dnskeys.iter().map(|key| key.algorithm()))
        .filter(|algorithm| !algorithm.is_supported())
        .map(|algorithm| format!("algorithm {}", u8::from(algorithm)))
        .collect();
    let digests = ds.iter().map(DS::digest_type).filter(|digest| !digest.is_supported());
    foreign.extend(digests.map(|digest| format!("digest type {}", u8::from(digest))));
    foreign.dedup();
    let unknown = || {
        Dnssec::Unknown(format!(
            "{apex} is signed with what cannot be checked here ({}); see what others say: https://dnsviz.net/d/{apex}/dnssec/",
            foreign.join(", ")
        ))
    };
    let trusted: Vec<&DNSKEY> = dnskeys
        .iter()
        .filter(|key| ds.iter().any(|ds| ds.covers(&name, key).unwrap_or(false)))
        .copied()
        .collect();
    if trusted.is_empty() && ds.iter().any(|ds| !ds.digest_type().is_supported()) {
        return unknown();
    }
    if trusted.is_empty() {
        let tags: Vec<String> = ds.iter().map(|ds| ds.key_tag().to_string()).collect();
        let have: Vec<String> = dnskeys
            .iter()
            .filter_map(|key| key.calculate_key_tag().ok())
            .map(|tag| tag.to_string())
            .collect();
        return bogus(
            format!(
                "the DS records of {apex} at its parent are for key {}, and the zone has {}",
                tags.join(", "),
                have.join(", ")
            ),
            format!(
                "put the DS record of the zone's present key at the parent (dig +short {apex} DNSKEY | dnssec-dsfromkey -f - {apex}), or {drop_ds}"
            ),
        );
    }
    let sign = format!(
        "sign {apex} again, and see to it that this happens by itself before signatures end; or {drop_ds}"
    );
    let whole = signed(&name, RecordType::DNSKEY, keys, &trusted, now).map_err(|why| ("keys", why));
    let whole = whole
        .and_then(|()| signed(&name, RecordType::SOA, soa, &dnskeys, now).map_err(|why| ("SOA record", why)));
    match whole {
        Ok(()) => Dnssec::Valid,
        Err((_, Broken::ByOurs(_))) if !foreign.is_empty() => unknown(),
        Err((what, Broken::Surely(reason) | Broken::ByOurs(reason))) => {
            bogus(format!("the {what} of {apex} {reason}"), sign)
        }
    }
}

/// Whether one of `keys` has signed the records of `kind`.
fn signed(
    name: &Name,
    kind: RecordType,
    records: &[Record],
    keys: &[&DNSKEY],
    now: u32,
) -> Result<(), Broken> {
    let signatures: Vec<&RRSIG> =
        records.iter().filter_map(rrsig).filter(|sig| sig.input().type_covered == kind).collect();
    if signatures.is_empty() {
        return Err(Broken::Surely(if kind == RecordType::SOA { "is not signed" } else { "are not signed" }));
    }
    let (mut untimely, mut timely) = (None, false);
    for signature in signatures {
        let input = signature.input();
        // Serial number arithmetic (RFC 1982), as these 32 bits wrap.
        if (input.sig_expiration.get().wrapping_sub(now) as i32) < 0 {
            untimely = Some("have signatures that have ended");
            continue;
        }
        if (now.wrapping_sub(input.sig_inception.get()) as i32) < 0 {
            untimely = Some("have signatures that have not begun yet");
            continue;
        }
        timely = true;
        let covered = || records.iter().filter(|record| record.record_type() == kind);
        let by = keys.iter().filter(|key| {
            key.algorithm().is_supported()
                && key.algorithm() == input.algorithm
                && key.calculate_key_tag().is_ok_and(|tag| tag == input.key_tag)
        });
        for key in by {
            if key.verify_rrsig(name, DNSClass::IN, signature, covered()).is_ok() {
                return Ok(());
            }
        }
    }
    Err(match untimely {
        Some(reason) if !timely => Broken::Surely(reason),
        reason => {
            Broken::ByOurs(reason.unwrap_or("have no signature that one of the zone's trusted keys made"))
        }
    })
}

fn dnskey(record: &Record) -> Option<&DNSKEY> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::DNSKEY(key)) => Some(key),
        _ => None,
    }
}

fn rrsig(record: &Record) -> Option<&RRSIG> {
    match &record.data {
        RData::DNSSEC(DNSSECRData::RRSIG(sig)) => Some(sig),
        _ => None,
    }
}

pub(super) fn judge(apex: &DnsName, dnssec: &Dnssec) -> Option<Note> {
    match dnssec {
        Dnssec::Unsigned => None,
        Dnssec::Valid => Some(Note::ok("dnssec.valid", format!("{apex} is signed, and the signatures hold"))),
        Dnssec::Bogus { reason, fix } => Some(
            Note::failure("dnssec.bogus", reason.clone())
                .why("CAs check DNSSEC: for them nothing in this zone has an answer, and neither has it for half of the world")
                .fix(fix.clone())
                .place(format!("zone {apex} and its DS record at the parent")),
        ),
        Dnssec::Unknown(reason) => Some(
            Note::skipped("dnssec.unknown", format!("whether {apex} is signed rightly could not be seen"))
                .why(reason.clone())
                .place(format!("zone {apex}")),
        ),
    }
}
