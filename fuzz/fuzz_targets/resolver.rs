//! What a DNS server or a resolver behind HTTPS may answer: every message means one thing, within bounds, and what is said of a
//! name is said of that name.

#![no_main]

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use libfuzzer_sys::fuzz_target;
use starlock::name::DnsName;
use starlock::resolver::{TxtReply, addresses, alias, doh_reply, name_servers, txt_reply};

fuzz_target!(|body: &[u8]| {
    let name = DnsName::parse("_acme-challenge.example.com").expect("a name");
    if let Ok(reply) = doh_reply(body, &name) {
        assert!(!matches!(reply, TxtReply::Referral(_)), "a resolver has nobody to send us to");
    }
    let Ok(message) = Message::from_vec(body) else { return };
    let apex = name.parent().expect("a parent");
    let strings = message.answers.iter().filter(|record| matches!(record.data, RData::TXT(_))).count();
    match txt_reply(&message, &name) {
        TxtReply::Values(values) => assert!(!values.is_empty() && values.len() <= strings),
        TxtReply::Referral(zone) => assert!(name.is_in(&zone) && !message.metadata.authoritative, "{zone}"),
        TxtReply::Cname => assert!(alias(&message, &name).is_some()),
        TxtReply::Absent | TxtReply::Unhelpful(_) => {}
    }
    assert!(addresses(&message).len() <= 8);
    let servers = name_servers(&message, &apex);
    assert!(servers.len() <= 16 && servers.values().all(|addresses| addresses.len() <= 8));
});
