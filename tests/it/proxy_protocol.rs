//! Balancers that say who their client is, and everybody else, who may not.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::client::Raw;
use crate::support::process::Process;
use crate::support::rig::{Plan, Rig};
use crate::support::server::Server;
use crate::support::{eventually, free_port, local};

const V1: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 4444 443\r\n";

fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, family], &length, payload].concat()
}

/// IPv6 addresses, and TLVs of a real balancer's size behind them.
fn v2_six() -> Vec<u8> {
    let mut payload = vec![0; 36];
    payload[..16].copy_from_slice(&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    payload[31] = 1;
    payload.extend([0x20, 2, 0]);
    payload.extend([b'x'; 512]);
    v2(1, 0x21, &payload)
}

fn plan(server: &Server, more: &str) -> Plan {
    Plan::toml(&format!(
        "[listen]\nproxy_protocol = [\"127.0.0.1\"]\nhttps = [\"127.0.0.1:0\"]\n{more}\n[routes]\n\"a.test\" = \"{}\"",
        server.url()
    ))
}

/// Without TLS, so that routes are served in clear.
fn clear(server: &Server, more: &str) -> Plan {
    plan(server, more).with(|plan| plan.listen.https.clear())
}

/// A client that comes from `from`.
async fn from(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// What the server sees of a client whose connection begins with `header`.
async fn seen(rig: &Rig, header: impl AsRef<[u8]>) -> String {
    let mut client = rig.connect().await;
    client.send(header).await;
    let answer = client.get("a.test", "/").await;
    let text = answer.text().to_owned();
    text.lines().find_map(|line| line.strip_prefix("x-forwarded-for: ")).unwrap_or(&text).to_owned()
}

#[tokio::test]
async fn the_client_is_who_the_balancer_says_it_is() {
    let server = Server::echo();
    let rig = clear(&server, "").start().await;
    assert_eq!(seen(&rig, V1).await, "192.0.2.7");
    assert_eq!(seen(&rig, v2_six()).await, "2001:db8::7");
    let line = rig.logged(|line| line["client"] == "2001:db8::7").await;
    assert_eq!(line["status"], 200);
    // The balancer's own connections: health checks.
    for header in [b"PROXY UNKNOWN\r\n".to_vec(), v2(0, 0, &[]), v2(0, 0x11, &[9; 12])] {
        assert_eq!(seen(&rig, header).await, "127.0.0.1");
    }
}

#[tokio::test]
async fn a_header_may_come_in_pieces_and_together_with_what_follows() {
    let server = Server::echo();
    let rig = clear(&server, "").start().await;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    for header in [V1.as_bytes().to_vec(), v2_six()] {
        let mut client = rig.connect().await;
        let answer = client.ask([&header[..], request.as_bytes()].concat()).await;
        assert!(answer.status == 200 && !answer.text().contains("x-forwarded-for: 127"), "{answer:?}");
        let mut stream = TcpStream::connect(rig.http()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in &header {
            stream.write_all(&[*byte]).await.unwrap();
        }
        let answer = Raw::over(stream).ask(request).await;
        assert!(answer.status == 200 && !answer.text().contains("x-forwarded-for: 127"), "{answer:?}");
    }
}

#[tokio::test]
async fn tls_begins_behind_the_header() {
    let server = Server::echo();
    let rig = plan(&server, "").start().await;
    let mut stream = TcpStream::connect(rig.https()).await.unwrap();
    stream.write_all(V1.as_bytes()).await.unwrap();
    let mut client = Raw::over(rig.tls_over(stream, "a.test", "http/1.1").await);
    let answer = client.get("a.test", "/").await;
    assert!(answer.text().contains("\nx-forwarded-for: 192.0.2.7\n"), "{}", answer.text());
}

#[tokio::test]
async fn a_balancer_must_say_it_and_nobody_else_may() {
    let server = Server::echo();
    let rig = clear(&server, "[timeouts]\nhandshake = \"300ms\"").start().await;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    for bytes in [
        request.to_owned(),
        format!("PROXY TCP4 192.0.2.7 198.51.100.1 4444\r\n{request}"),
        format!("PROXY UNKNOWN {}\r\n{request}", "x".repeat(100)),
        "PROXY TCP4 192.0.2.7".to_owned(), // and no more
        String::new(),
    ] {
        let mut client = rig.connect().await;
        client.send(&bytes).await;
        assert!(client.closed().await, "no answer to {bytes:?}");
    }
    let refused = "starlock_rejected_total{reason=\"proxy_protocol\"}";
    rig.until("five are counted", |rig| rig.metric(refused) == 5).await;

    let mut other = Raw::over(from("127.0.0.2", rig.http()).await);
    assert!(other.get("a.test", "/").await.text().contains("\nx-forwarded-for: 127.0.0.2\n"));
    for header in [V1.as_bytes(), &v2(1, 0x11, &[9; 12])] {
        let mut other = Raw::over(from("127.0.0.2", rig.http()).await);
        assert_eq!(other.ask([header, request.as_bytes()].concat()).await.status, 400);
    }
    assert_eq!(rig.metric(refused), 5, "those are bad requests");
}

#[tokio::test]
async fn each_client_of_a_balancer_has_its_share_of_connections() {
    let server = Server::echo();
    let rig = clear(&server, "[limits]\nconnections_per_ip = 2").start().await;
    let mut open = Vec::new();
    for client in ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3"] {
        let mut connection = rig.connect().await;
        connection.send(format!("PROXY TCP4 {client} 198.51.100.1 1 443\r\n")).await;
        assert_eq!(connection.get("a.test", "/").await.status, 200, "{client}");
        open.push(connection);
    }
    let mut third = rig.connect().await;
    third.send("PROXY TCP4 192.0.2.1 198.51.100.1 1 443\r\n").await;
    assert!(third.closed().await);
    drop(open);
    rig.until("they are gone", |rig| rig.traffic.open_connections() == 0).await;
    assert_eq!(seen(&rig, "PROXY TCP4 192.0.2.1 198.51.100.1 1 443\r\n").await, "192.0.2.1");
}

#[tokio::test]
async fn haproxy_says_who_its_clients_are() {
    let server = Server::echo();
    let rig = clear(&server, "").start().await;
    let dir = tempfile::tempdir().unwrap();
    for (n, words) in
        ["send-proxy", "send-proxy-v2", "send-proxy-v2 check inter 100ms"].into_iter().enumerate()
    {
        let (port, file) = (free_port(), dir.path().join(format!("{n}.cfg")));
        let text = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             frontend in\n bind 127.0.0.1:{port}\n default_backend starlock\n\
             backend starlock\n server one {} {words}\n",
            rig.http()
        );
        std::fs::write(&file, text).unwrap();
        let _haproxy = Process::start(
            Command::new("haproxy").args(["-db", "-f"]).arg(&file),
            &dir.path().join(format!("{n}.log")),
        );
        eventually("haproxy listens", || std::net::TcpStream::connect(local(port)).ok());
        let mut client = Raw::over(from("127.0.0.9", local(port)).await);
        let answer = client.get("a.test", "/").await;
        assert!(answer.text().contains("\nx-forwarded-for: 127.0.0.9\n"), "{words}: {}", answer.text());
    }
    tokio::time::timeout(Duration::from_secs(10), rig.logged(|line| line["client"] == "127.0.0.9"))
        .await
        .unwrap();
}
