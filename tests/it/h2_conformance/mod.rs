//! RFC 9113 and RFC 7541, frame by frame: every MUST that a server can be held to.

mod connection;
mod frames;
mod hpack;
mod messages;
pub(crate) mod script;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::iter;
use http::Response;
use http_body_util::BodyExt;
use socket2::{Domain, Socket, Type};

use crate::support::client::PATIENCE;
use crate::support::rig::Plan;
use crate::support::server::{Server, full};

/// A name that begins with the section, what is to be shown, what is sent, what must come back (see [`script`]).
type Case = (&'static str, &'static str, &'static str, &'static str);

/// Where the h2 crate does something else: what it does, why that does no harm, in which cases.
type Known = (&'static str, &'static str, &'static [&'static str]);

const KNOWN: &[Known] = &[
    (
        "goaway PROTOCOL_ERROR",
        "the connection ends as it must, only with the general code; clients treat both alike",
        &[
            "4.3/undecodable",
            "5.1/remote-data",
            "5.1/remote-headers",
            "5.1/remote-trailers",
            "5.1/reset-headers",
            "5.1/closed-headers",
            "6.3/long",
            "6.3/short",
            "6.4/long",
            "6.4/short",
            "6.5.2/window-large",
            "6.5/ack-payload",
            "6.5/long",
            "6.5/short",
            "6.7/ack-short",
            "6.7/long",
            "6.7/short",
            "6.8/short",
            "6.9/long",
            "6.9/short",
            "8.1/after-trailers",
            "hpack-2.3.3/beyond",
            "hpack-2.3.3/empty-table",
            "hpack-2.3.3/far",
            "hpack-2.3.3/name-beyond",
            "hpack-2.3.3/name-beyond-plain",
            "hpack-4.2/end",
            "hpack-4.2/within",
            "hpack-4.3/evicted",
            "hpack-4.4/emptied",
            "hpack-4.4/pushed-out",
            "hpack-5.1/endless",
            "hpack-5.1/length",
            "hpack-5.1/overflow",
            "hpack-5.1/overflow-64",
            "hpack-5.1/truncated",
            "hpack-5.1/zeros",
            "hpack-5.2/continued-truncated",
            "hpack-5.2/eos",
            "hpack-5.2/eos-within",
            "hpack-5.2/huffman-name",
            "hpack-5.2/length-missing",
            "hpack-5.2/name-truncated",
            "hpack-5.2/padding-long",
            "hpack-5.2/padding-longer",
            "hpack-5.2/padding-zeros",
            "hpack-5.2/value-missing",
            "hpack-5.2/value-truncated",
            "hpack-6.1/zero",
            "hpack-6.3/far-over",
            "hpack-6.3/over",
        ],
    ),
    ("ping ack 0000000000000000", "a client that settles nothing has the defaults", &["3.4/first-ping"]),
    ("head 1 200", "a client that settles nothing has the defaults", &["3.4/first-headers"]),
    (
        "head 1 200",
        "such space does not reach the server: HTTP/1.1 has none at the ends of a value",
        &["8.2.1/value-space-before", "8.2.1/value-tab-after"],
    ),
    (
        "head 1 200",
        "the scheme is that of the connection; what the client says of it is not used",
        &["8.3.1/scheme-empty"],
    ),
    ("alive", "such a field is dropped, and never reaches the server", &["8.1/trailers-pseudo"]),
];

#[tokio::test]
async fn every_rule_that_a_server_can_be_held_to() {
    let server = Server::http(|request| async move {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match &*path {
            "/hang" => std::future::pending().await,
            "/ten" => Response::new(full("0123456789")),
            "/big" => Response::new(full(vec![b'x'; 200_000])),
            _ => {
                let length = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
                Response::new(full(format!("{method} {path} {length}")))
            }
        }
    });
    // While nobody accepts, no body is taken from the client: it may send what its windows hold, and no more.
    let (full_up, _waiting) = nobody_accepts();
    let rig = Plan::tls().forward("a.test", server.address).forward("a.test/full", full_up).start().await;
    let cases: Vec<Case> = [connection::CASES, frames::CASES, messages::CASES, hpack::CASES].concat();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.0).collect();
    assert_eq!(names.len(), cases.len(), "a name is there twice");
    assert!(cases.len() >= 140, "{} cases", cases.len());
    let known: Vec<&str> = KNOWN.iter().flat_map(|known| known.2).copied().collect();
    for name in &known {
        assert!(names.contains(name), "no case {name}");
    }

    let many: String = (0..101).map(|n| format!("get {} /hang;", 2 * n + 1)).collect();
    let start = Instant::now();
    let run = async |(name, says, send, strict): Case| {
        let known = KNOWN.iter().find(|known| known.2.contains(&name));
        let expect = known.map_or(strict, |known| known.0);
        let outcome = script::run(&rig, if send == "MANY" { &many } else { send }, expect).await;
        outcome.err().map(|error| format!("{name} ({says}): {error}"))
    };
    let failures: Vec<String> =
        iter(cases.iter().copied().map(run)).buffer_unordered(16).filter_map(async |f| f).collect().await;
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    assert!(start.elapsed() < 2 * PATIENCE, "{:?}", start.elapsed());
    eprintln!(
        "{} cases, {} of them as the h2 crate has it, in {:?}",
        cases.len(),
        known.len(),
        start.elapsed()
    );
}

/// A server whose queue is full: connecting to it takes forever.
fn nobody_accepts() -> (SocketAddr, Vec<Socket>) {
    let new = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = new();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = vec![listener];
    for _ in 0..4 {
        let client = new();
        client.set_nonblocking(true).unwrap();
        // It is under way, or waits already.
        let _ = client.connect(&address);
        held.push(client);
    }
    (address.as_socket().unwrap(), held)
}
