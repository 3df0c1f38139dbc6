//! What a stranger may send to the responder: no bytes make it panic, answer with too much, or answer an answer.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use starlock::name::DnsName;
use starlock::responder::{NameServer, ResponderSpec, Transport, Zones, answer};

static ZONES: LazyLock<Zones> = LazyLock::new(|| {
    let name = |text: &str| DnsName::parse(text).expect("a name");
    let server = NameServer { name: name("ns.acme.test"), addresses: vec![[192, 0, 2, 1].into()] };
    let spec = ResponderSpec {
        listen: Vec::new(),
        zone: Some(name("acme.test")),
        nameservers: vec![server],
        challenge_names: vec![name("_acme-challenge.a.test")],
    };
    let mut zones = Zones::new(&spec).with_txt(&name("d.acme.test"), &"long".repeat(100));
    for value in 0..60 {
        zones = zones.with_txt(&name("_acme-challenge.a.test"), &format!("{value:0>43}"));
    }
    zones
});

fuzz_target!(|message: &[u8]| {
    for transport in [Transport::Udp, Transport::UdpLimited, Transport::Tcp] {
        let Some(reply) = answer(&ZONES, message, transport) else { continue };
        assert_eq!(reply[..2], message[..2]);
        assert!(reply[2] & 0x80 != 0 && message[2] & 0x80 == 0);
        assert!(transport == Transport::Tcp || reply.len() <= 1232);
        assert!(reply.len() <= usize::from(u16::MAX));
        // What we send is never taken for a question.
        assert!(answer(&ZONES, &reply, transport).is_none());
    }
});
