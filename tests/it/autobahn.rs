//! The Autobahn test suite through the proxy, over HTTP/1.1 and over HTTP/2: no case may end worse than without it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::process::Process;
use crate::support::rig::{Plan, Rig};
use crate::support::{alone, eventually, free_port, local};

/// What the suite says of each case.
type Verdicts = BTreeMap<String, String>;

/// The suite's own echo server, without its rule that a Host field must name the very port it listens on.
const ECHO: &str = "import sys
from twisted.internet import reactor
from autobahn.twisted.websocket import WebSocketServerFactory
from autobahntestsuite.echo import EchoServerProtocol
factory = WebSocketServerFactory()
factory.protocol = EchoServerProtocol
factory.externalPort = None
reactor.listenTCP(int(sys.argv[1]), factory, interface='127.0.0.1')
reactor.run()
";

fn tool(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/autobahn").join(name);
    assert!(program.exists(), "{} is missing; scripts/autobahn puts it there", program.display());
    program
}

/// A client's HTTP/1.1 upgrade made an extended CONNECT (RFC 8441) of one HTTP/2 connection: the suite knows no HTTP/2.
async fn bridge(mut client: TcpStream, mut sender: SendRequest<Empty<Bytes>>) {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    use base64::Engine;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let mut key = String::new();
    let path = head.split(' ').nth(1).unwrap();
    let mut request =
        http::Request::connect(format!("https://a.test{path}")).extension(Protocol::from_static("websocket"));
    for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
        match &*name.to_lowercase() {
            "sec-websocket-key" => value.clone_into(&mut key),
            name if name.starts_with("sec-websocket-") => request = request.header(name, value),
            _ => {}
        }
    }
    let response = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200, "{response:?}");
    let guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{guid}").as_bytes());
    let accept = base64::engine::general_purpose::STANDARD.encode(accept);
    let more = ["sec-websocket-extensions", "sec-websocket-protocol"]
        .into_iter()
        .filter_map(|name| Some(format!("{name}: {}\r\n", response.headers().get(name)?.to_str().unwrap())));
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n{}\r\n",
        more.collect::<String>()
    );
    client.write_all(answer.as_bytes()).await.unwrap();
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    // The cases break connections on purpose.
    let _ = copy_bidirectional(&mut client, &mut stream).await;
}

/// Where the suite finds HTTP/2.
async fn bridged(rig: &Rig) -> u16 {
    let stream = TokioIo::new(rig.tls("a.test", "h2").await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let listener = TcpListener::bind(local(0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            client.set_nodelay(true).unwrap();
            tokio::spawn(bridge(client, sender.clone()));
        }
    });
    port
}

fn verdicts(reports: &Path, agent: &str) -> Verdicts {
    let text = std::fs::read_to_string(reports.join("index.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let cases = all[agent].as_object().unwrap_or_else(|| panic!("no {agent} in {text}"));
    cases.iter().map(|(case, said)| (case.clone(), said["behavior"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn no_case_ends_worse_through_the_proxy() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run_the_cases());
}

async fn run_the_cases() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let direct = format!("ws://127.0.0.1:{port}");
    let _echo = Process::start(
        Command::new(tool("python2")).args(["-c", ECHO, &port.to_string()]).current_dir(dir.path()),
        &dir.path().join("echo.log"),
    );
    eventually("the echo server listens", || std::net::TcpStream::connect(local(port)).ok());
    let rig = Plan::tls().forward("*", local(port)).start().await;
    let clear = Plan::clear().forward("*", local(port)).start().await;
    let h2 = bridged(&rig).await;
    let server = |agent: &str, url: String| serde_json::json!({ "agent": agent, "url": url, "options": { "version": 18 } });
    let servers = [
        server("direct", direct),
        server("h1", format!("ws://{}", clear.http())),
        server("tls", format!("wss://{}", rig.https())),
        server("h2", format!("ws://127.0.0.1:{h2}")),
    ];
    // Without 9, which measures, and 12 and 13, which are about a compression that is none of a proxy's business.
    let all = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"].map(ToOwned::to_owned);
    let reports = ask(dir.path(), &servers, &all).await;
    let expected = verdicts(&reports, "direct");
    assert!(expected.len() > 200, "{} cases", expected.len());
    for agent in ["h1", "tls", "h2"] {
        let found = verdicts(&reports, agent);
        assert_eq!(found.len(), expected.len(), "{agent}");
        for (case, said) in found.iter().filter(|(case, said)| expected[*case] == "OK" && *said != "OK") {
            // Here a good message is followed by a broken frame. The echo server aborts at that, with the echo of the message unsent if it
            // has read both at once, which is TCP's business with a proxy and without one; the suite takes either.
            let by_chance = (case.starts_with("3.") || case.starts_with("4.")) && said == "NON-STRICT";
            assert!(by_chance, "{agent}: case {case} is {said}, and OK without a proxy");
        }
    }
    let sum = expected.values().filter(|said| *said == "OK").count();
    eprintln!(
        "{} cases, {sum} of them OK without a proxy, none worse over HTTP/1.1, TLS and HTTP/2",
        expected.len()
    );
}

/// Runs `cases` against `servers`, and gives the place of the reports.
async fn ask(dir: &Path, servers: &[serde_json::Value], cases: &[String]) -> PathBuf {
    let reports = dir.join("reports");
    let _ = std::fs::remove_dir_all(&reports);
    let spec = serde_json::json!({
        "options": { "failByDrop": false },
        "outdir": reports,
        "servers": servers,
        "cases": cases,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    });
    std::fs::write(dir.join("spec.json"), spec.to_string()).unwrap();
    let mut suite = Process::start(
        Command::new(tool("wstest")).args(["-m", "fuzzingclient", "-s"]).arg(dir.join("spec.json")),
        &dir.join("suite.log"),
    );
    let wait = async {
        while suite.is_running() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(900), wait).await.expect("the suite comes to its end");
    reports
}
