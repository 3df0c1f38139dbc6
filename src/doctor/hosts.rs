//! For http-01 and tls-alpn-01: the host's own addresses, and whether they lead to a listener.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::rr::RecordType;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::finding::Note;
use super::net;
use crate::name::DnsName;
use crate::resolver::addresses;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;

/// What was seen of a host.
#[derive(Clone, Debug)]
pub(super) struct HostFacts {
    pub(super) addresses: Result<Vec<IpAddr>, String>,
    /// What connecting came to, if it was tried.
    pub(super) answers: Vec<(SocketAddr, Result<(), String>)>,
}

/// `ports` are connected to; none while nobody serves.
pub(super) async fn gather(recursors: &[SocketAddr], host: &DnsName, ports: &[u16]) -> HostFacts {
    let (v4, v6) = tokio::join!(
        net::recurse(recursors, host, RecordType::A, false),
        net::recurse(recursors, host, RecordType::AAAA, false)
    );
    let found = match (v4, v6) {
        (Err(reason), Err(_)) => Err(reason),
        (v4, v6) => Ok([v4, v6].into_iter().flatten().flat_map(|message| addresses(&message)).collect()),
    };
    let all: Vec<IpAddr> = found.iter().flatten().copied().take(MAX_ADDRESSES).collect();
    let targets = all.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port)));
    let answers = join_all(targets.map(|address| async move {
        let said = match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", CONNECT_LIMIT.as_secs())),
        };
        (address, said)
    }));
    HostFacts { addresses: found, answers: answers.await }
}

pub(super) fn judge(host: &DnsName, methods: &str, facts: &HostFacts) -> Vec<Note> {
    let place = format!("the DNS of {host}");
    let missing = |what: String| {
        Note::failure("host.address", what)
            .why(format!("for {methods} the CA connects to the host itself"))
            .fix(format!("{}  A  (the public address of this machine)", host.to_fqdn()))
            .place(place.as_str())
    };
    let found = match &facts.addresses {
        Err(reason) => return vec![missing(format!("{host} does not resolve: {reason}"))],
        Ok(found) if found.is_empty() => {
            return vec![missing(format!("{host} has neither an A nor an AAAA record"))];
        }
        Ok(found) => found,
    };
    let mut notes: Vec<Note> = facts
        .answers
        .iter()
        .filter_map(|(address, said)| {
            let reason = said.as_ref().err()?;
            let port = address.port();
            let what = format!("{host} leads to {address}, which does not answer from here: {reason}");
            let note = Note::warning("host.silent", what)
                .why(format!("for {methods} the CA connects there. From here it may fail only because the router does not turn back (hairpin NAT)"))
                .fix(format!("open or forward port {port}, or correct the address: {}  {}  (the public address of this machine)", host.to_fqdn(), if address.is_ipv4() { "A" } else { "AAAA" }))
                .place(place.as_str());
            Some(note)
        })
        .collect();
    if notes.is_empty() {
        let list = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let tried = if facts.answers.is_empty() { "" } else { ", and answers" };
        notes.push(Note::ok("host.there", format!("{host} is {list}{tried}")));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_host_needs_an_address_and_should_answer() {
        let host = DnsName::parse("www.example.com").unwrap();
        let ip: IpAddr = [192, 0, 2, 1].into();
        let id = |facts: HostFacts| {
            let note = judge(&host, "http-01", &facts).remove(0);
            (note.id, note.severity, note.fix)
        };
        let none = id(HostFacts { addresses: Ok(vec![]), answers: vec![] });
        assert_eq!((none.0, none.1), ("host.address", Severity::Failure));
        assert!(none.2.starts_with("www.example.com.  A  "), "{}", none.2);
        assert_eq!(id(HostFacts { addresses: Err("SERVFAIL".into()), answers: vec![] }).0, "host.address");
        let silent = vec![((ip, 80).into(), Err("refused".into()))];
        let silent = id(HostFacts { addresses: Ok(vec![ip]), answers: silent });
        assert_eq!((silent.0, silent.1), ("host.silent", Severity::Warning));
        assert!(silent.2.contains("port 80"), "{}", silent.2);
        assert_eq!(id(HostFacts { addresses: Ok(vec![ip]), answers: vec![] }).0, "host.there");
    }
}
