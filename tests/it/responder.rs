//! The built-in responder: what `dig` and `kdig` see, and what real resolvers make of it as a delegate.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use starlock::dns::{TxtProvider, TxtRecord};
use starlock::name::DnsName;
use starlock::resolver::{AskError, Resolver, TxtReply};
use starlock::responder::{Bound, NameServer, ResponderSpec, Running, TxtTable, ZoneWriter, zones};
use starlock::task::Shutdown;

use crate::support::dns::{Knot, Recursor, datagram, dig, kdig, loopback, query, txt};
use crate::support::eventually;
use crate::support::zones::port_53;

const CHALLENGE: &str = "_acme-challenge.example.test";

pub fn name(text: &str) -> DnsName {
    DnsName::parse(text).unwrap()
}

pub fn record(owner: &str, value: &str) -> TxtRecord {
    TxtRecord { name: name(owner), value: value.into() }
}

/// The responder on port 53 of a loopback address.
pub struct Responder {
    pub address: SocketAddr,
    pub writer: ZoneWriter,
    pub table: TxtTable,
    _running: Running,
}

pub fn spec(ip: Ipv4Addr) -> ResponderSpec {
    ResponderSpec {
        listen: vec![(ip, 53).into()],
        zone: Some(name("acme.test")),
        nameservers: vec![NameServer {
            name: name("ns.acme.test"),
            addresses: vec![ip.into(), "2001:db8::53".parse().unwrap()],
        }],
        challenge_names: vec![name(CHALLENGE)],
    }
}

impl Responder {
    pub fn start() -> Self {
        let spec = spec(loopback());
        let (writer, reader) = zones(&spec);
        let bound = port_53(|| Bound::bind(&spec.listen));
        let address = bound.addresses()[0];
        let running = bound.start(reader, &Shutdown::new()).unwrap();
        Self { address, table: writer.txt_table(), writer, _running: running }
    }
}

fn has(text: &str, wanted: &str) {
    let squeezed: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(squeezed.contains(wanted), "no `{wanted}` in:\n{text}");
}

#[tokio::test]
async fn dig_gets_the_right_answer_for_every_type() {
    let responder = Responder::start();
    let ask = |arguments: &[&str]| dig(responder.address, arguments);
    for value in ["apex", "wild"] {
        responder.table.add_txt(&record(CHALLENGE, value)).await.unwrap();
    }
    responder.table.add_txt(&record("d1.acme.test", "label")).await.unwrap();

    let text = ask(&["TXT", CHALLENGE]);
    has(&text, "status: NOERROR");
    has(&text, "flags: qr aa rd; QUERY: 1, ANSWER: 2, AUTHORITY: 0");
    has(&text, "_acme-challenge.example.test. 0 IN TXT \"apex\"");
    has(&text, "_acme-challenge.example.test. 0 IN TXT \"wild\"");
    has(&ask(&["TXT", "d1.acme.test"]), "d1.acme.test. 0 IN TXT \"label\"");

    let soa = ask(&["SOA", CHALLENGE]);
    has(
        &soa,
        "_acme-challenge.example.test. 1 IN SOA ns.acme.test. hostmaster._acme-challenge.example.test.",
    );
    has(&soa, "3600 600 86400 1");
    has(&ask(&["NS", CHALLENGE]), "_acme-challenge.example.test. 60 IN NS ns.acme.test.");
    let ns = ask(&["NS", "acme.test"]);
    has(&ns, "acme.test. 60 IN NS ns.acme.test.");
    has(&ns, &format!("ns.acme.test. 60 IN A {}", responder.address.ip()));
    has(&ask(&["A", "ns.acme.test"]), &format!("ns.acme.test. 60 IN A {}", responder.address.ip()));
    has(&ask(&["AAAA", "ns.acme.test"]), "ns.acme.test. 60 IN AAAA 2001:db8::53");

    // Every other type: the name exists, with nothing of that type.
    for kind in ["CAA", "A", "AAAA", "DS", "DNSKEY", "MX", "CNAME", "HTTPS", "TYPE65400"] {
        for owner in [CHALLENGE, "acme.test", "d1.acme.test"] {
            let nodata = ask(&[kind, owner]);
            has(&nodata, "status: NOERROR");
            has(&nodata, "flags: qr aa rd; QUERY: 1, ANSWER: 0, AUTHORITY: 1");
            has(&nodata, "IN SOA ns.acme.test.");
        }
    }
    for kind in ["TXT", "SOA", "TYPE65400"] {
        let below = ask(&[kind, &format!("x.{CHALLENGE}")]);
        has(&below, "status: NXDOMAIN");
        has(&below, "flags: qr aa rd; QUERY: 1, ANSWER: 0, AUTHORITY: 1");
        has(&below, "_acme-challenge.example.test. 1 IN SOA");
        has(&ask(&[kind, "nothing.acme.test"]), "status: NXDOMAIN");
        for outside in ["example.test", "test", ".", "_acme-challenge.example.test.example.org"] {
            let refused = ask(&[kind, outside]);
            has(&refused, "status: REFUSED");
            has(&refused, "flags: qr rd; QUERY: 1, ANSWER: 0, AUTHORITY: 0");
        }
    }
    has(&ask(&["-c", "CH", "TXT", "version.bind"]), "status: REFUSED");
    let any = ask(&["ANY", CHALLENGE, "+notcp"]);
    has(&any, "ANSWER: 1");
    has(&any, "IN HINFO \"RFC8482\" \"\"");
    // dig prints a refused transfer as a failed one.
    has(&ask(&["AXFR", "acme.test"]), "Transfer failed");
    // A name with something below it exists.
    responder.table.add_txt(&record("a.b.acme.test", "deep")).await.unwrap();
    has(&ask(&["TXT", "b.acme.test"]), "status: NOERROR");

    for value in ["apex", "wild"] {
        responder.table.remove_txt(&record(CHALLENGE, value)).await.unwrap();
    }
    has(&ask(&["TXT", CHALLENGE]), "flags: qr aa rd; QUERY: 1, ANSWER: 0, AUTHORITY: 1");
}

#[tokio::test]
async fn edns_case_truncation_and_tcp_are_as_the_rfcs_say() {
    let responder = Responder::start();
    let ask = |arguments: &[&str]| dig(responder.address, arguments);
    responder.table.add_txt(&record(CHALLENGE, "v")).await.unwrap();

    let future = ask(&["+edns=1", "+noednsneg", "TXT", CHALLENGE]);
    has(&future, "status: BADVERS");
    has(&future, "EDNS: version: 0");
    has(&future, "ANSWER: 0");
    let modern = ask(&["+edns=0", "+bufsize=4096", "+dnssec", "TXT", CHALLENGE]);
    has(&modern, "EDNS: version: 0, flags: do; udp: 1232");
    assert!(!ask(&["+noedns", "TXT", CHALLENGE]).contains("EDNS"));
    let kdig_view = kdig(responder.address, &["+edns", "+nsid", "+cookie", "TXT", CHALLENGE]);
    has(&kdig_view, "status: NOERROR");
    has(&kdig_view, "0 IN TXT \"v\"");

    let mixed = ask(&["TXT", "_AcMe-ChAlLeNgE.eXaMpLe.TeSt"]);
    has(&mixed, ";_AcMe-ChAlLeNgE.eXaMpLe.TeSt. IN TXT");
    has(&mixed, "_AcMe-ChAlLeNgE.eXaMpLe.TeSt. 0 IN TXT \"v\"");

    let tcp = ask(&["+tcp", "TXT", CHALLENGE]);
    has(&tcp, "0 IN TXT \"v\"");
    has(&kdig(responder.address, &["+tcp", "+keepopen", "TXT", CHALLENGE, "SOA", CHALLENGE]), "IN SOA");

    for index in 0..30 {
        let value = format!("{index:02}{}", "x".repeat(41));
        responder.table.add_txt(&record(CHALLENGE, &value)).await.unwrap();
    }
    let cut = ask(&["+noedns", "+ignore", "TXT", CHALLENGE]);
    has(&cut, "flags: qr aa tc rd; QUERY: 1, ANSWER: 0");
    let large = ask(&["+bufsize=4096", "+ignore", "TXT", CHALLENGE]);
    has(&large, "flags: qr aa tc rd");
    // Without +ignore dig comes back over TCP, as a resolver does.
    assert_eq!(txt(responder.address, CHALLENGE).len(), 31);
    let resolver = Resolver::new(vec![responder.address]);
    match resolver.txt(responder.address, &name(CHALLENGE)).await.unwrap() {
        TxtReply::Values(values) => assert_eq!(values.len(), 31),
        other => panic!("{other:?}"),
    }
    let absent = resolver.txt(responder.address, &name("no.acme.test")).await.unwrap();
    assert_eq!(absent, TxtReply::Absent);
    let outside = resolver.txt(responder.address, &name("example.test")).await.unwrap();
    assert_eq!(outside, TxtReply::Unhelpful("REFUSED".into()));
    let nobody = resolver.txt((loopback(), 53).into(), &name(CHALLENGE)).await.unwrap_err();
    assert!(matches!(nobody, AskError::Failed(_)), "{nobody}");
    let plain = datagram(responder.address, &query(CHALLENGE, 16), Duration::from_secs(5)).unwrap();
    assert!(plain.len() <= 512);
}

#[tokio::test]
async fn garbage_is_survived_and_answered_if_at_all_with_an_error() {
    let responder = Responder::start();
    responder.table.add_txt(&record(CHALLENGE, "v")).await.unwrap();
    let good = query(CHALLENGE, 16);
    let mut answer_to_nobody = good.clone();
    answer_to_nobody[2] |= 0x80;
    let mut update = good.clone();
    update[2] = 0x28;
    let mut two_questions = good.clone();
    two_questions[5] = 2;
    let mut lying_counts = good.clone();
    lying_counts[10..12].copy_from_slice(&[0xff, 0xff]);
    let mut pointer = good[..12].to_vec();
    pointer.extend_from_slice(&[0xc0, 0x0c, 0, 16, 0, 1]);
    for (bytes, expected) in [
        (vec![], None),
        (good[..11].to_vec(), None),
        (answer_to_nobody, None),
        (good[..12].to_vec(), Some(1)),
        (good[..20].to_vec(), Some(1)),
        (update, Some(4)),
        (two_questions, Some(1)),
        (lying_counts, Some(1)),
        (pointer, Some(1)),
    ] {
        let wait = Duration::from_millis(if expected.is_some() { 5_000 } else { 200 });
        let code = datagram(responder.address, &bytes, wait).map(|answer| answer[3] & 0xf);
        assert_eq!(code, expected, "{bytes:02x?}");
    }
    // Connections that lie, stop or send nothing.
    let mut silent: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(responder.address).unwrap()).collect();
    for (index, bytes) in
        [&b"\xff\xff"[..], b"\x00", b"\x00\x05abc", b"\x00\x00", b"\xff\xffabc"].iter().enumerate()
    {
        // The other end may close first.
        drop(silent[index].write_all(bytes));
    }
    drop(silent);
    eventually("it still answers over TCP", || {
        dig(responder.address, &["+tcp", "+short", "TXT", CHALLENGE]).contains("\"v\"").then_some(())
    });
    assert_eq!(txt(responder.address, CHALLENGE), ["v"]);
}

#[tokio::test]
async fn too_many_questions_get_short_answers_and_tcp_stays_open() {
    let responder = Responder::start();
    responder.table.add_txt(&record(CHALLENGE, "v")).await.unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(responder.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut whole, mut cut) = (0, 0);
    let mut buffer = [0; 1500];
    for _ in 0..2000 {
        socket.send(&query(CHALLENGE, 16)).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        // Never silence: TC, nothing else, and no longer than the question.
        if buffer[2] & 2 != 0 {
            assert_eq!(length, query(CHALLENGE, 16).len());
            cut += 1;
        } else {
            whole += 1;
        }
    }
    assert!(whole >= 200 && cut >= 100, "{whole} whole, {cut} cut");
    let mut stream = TcpStream::connect(responder.address).unwrap();
    let question = query(CHALLENGE, 16);
    stream
        .write_all(&[&u16::try_from(question.len()).unwrap().to_be_bytes()[..], &question].concat())
        .unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    assert!(usize::from(u16::from_be_bytes(length)) > question.len());
}

#[test]
fn zones_change_without_the_sockets() {
    let responder = Responder::start();
    let IpAddr::V4(ip) = responder.address.ip() else { unreachable!() };
    let mut other = spec(ip);
    other.challenge_names = vec![name("_acme-challenge.other.test")];
    has(&dig(responder.address, &["SOA", "_acme-challenge.other.test"]), "status: REFUSED");
    responder.writer.replace(&other);
    has(&dig(responder.address, &["SOA", "_acme-challenge.other.test"]), "status: NOERROR");
    has(&dig(responder.address, &["SOA", CHALLENGE]), "status: REFUSED");
}

/// `test.` on Knot: `example.test` delegates its challenge name by NS, `other.test` by CNAME.
pub fn parent(responder: &Responder) -> Knot {
    let ip = responder.address.ip();
    let body = format!(
        "acme NS ns.acme\nns.acme A {ip}\nexample A 192.0.2.1\n_acme-challenge.example NS ns.acme\n\
         other A 192.0.2.2\n_acme-challenge.other CNAME d1.acme\n"
    );
    Knot::start(&[("test", &body)])
}

#[tokio::test]
async fn unbound_with_random_case_finds_the_records() {
    let responder = Responder::start();
    let knot = parent(&responder);
    as_delegate(&responder, &Recursor::unbound("test", knot.address.ip())).await;
}

#[tokio::test]
async fn bind_finds_the_records() {
    let responder = Responder::start();
    let knot = parent(&responder);
    as_delegate(&responder, &Recursor::bind("test", knot.address.ip())).await;
}

async fn as_delegate(responder: &Responder, resolver: &Recursor) {
    // Asked too early: the negative answer may live for a second, no longer.
    for early in [CHALLENGE, "_acme-challenge.other.test"] {
        let text = dig(resolver.address, &["TXT", early]);
        assert!(text.contains("status: NOERROR") || text.contains("status: NXDOMAIN"), "{text}");
    }
    for round in 0..3 {
        let values = [format!("apex-{round}"), format!("wild-{round}")];
        for value in &values {
            responder.table.add_txt(&record(CHALLENGE, value)).await.unwrap();
            responder.table.add_txt(&record("d1.acme.test", value)).await.unwrap();
        }
        for owner in [CHALLENGE, "_acme-challenge.other.test"] {
            eventually(&format!("{owner} shows {values:?}"), || {
                let seen = txt(resolver.address, owner);
                values.iter().all(|value| seen.contains(value)).then_some(())
            });
        }
        for value in &values {
            responder.table.remove_txt(&record(CHALLENGE, value)).await.unwrap();
            responder.table.remove_txt(&record("d1.acme.test", value)).await.unwrap();
        }
        eventually("the values are gone", || txt(resolver.address, CHALLENGE).is_empty().then_some(()));
    }
    // What a CA looks up on the way, and what makes a delegation lame when it is wrong.
    let mut codes = HashSet::new();
    for (kind, owner) in [
        ("CAA", CHALLENGE),
        ("CAA", "_acme-challenge.other.test"),
        ("AAAA", CHALLENGE),
        ("DS", CHALLENGE),
        ("DNSKEY", CHALLENGE),
        ("SOA", CHALLENGE),
        ("NS", CHALLENGE),
        ("A", "ns.acme.test"),
        ("AAAA", "ns.acme.test"),
        ("CAA", "acme.test"),
    ] {
        let text = dig(resolver.address, &[kind, owner]);
        let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("none");
        codes.insert(format!("{status} {}", if status == "NOERROR" { "" } else { owner }));
    }
    // The label behind the CNAME does not exist between orders.
    codes.remove("NXDOMAIN _acme-challenge.other.test");
    assert_eq!(codes, HashSet::from(["NOERROR ".to_owned()]));
}
