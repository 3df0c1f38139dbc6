//! How often, and how many at a time, clients may come.

use std::time::Instant;

use tokio::io::AsyncReadExt;

use crate::support::PATIENCE;
use crate::support::rig::{Plan, Rig};
use crate::support::server::Server;

/// The status of a request from `client` to `path`, on a connection of its own: whichever worker gets it.
async fn from(rig: &Rig, client: &str, path: &str, more: &str) -> u16 {
    let ask = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: {client}\r\n{more}\r\n");
    rig.connect().await.ask(ask).await.status
}

fn plan(rule: &str) -> Plan {
    Plan::toml(&format!(
        "listen.trusted_proxies = [\"127.0.0.1\"]\n[routes]\n\"a.test\" = {{ respond = 200, rate_limit = {rule} }}"
    ))
}

#[tokio::test]
async fn a_rate_is_counted_over_all_workers_and_clients_are_told() {
    let mut rig = plan("\"3/1h\"").start().await;
    let answer = rig.connect().await.get("a.test", "/").await;
    assert_eq!(
        (answer.field("ratelimit-policy"), answer.field("ratelimit")),
        (Some("\"ip\";q=3;w=3600"), Some("\"ip\";r=2;t=1200"))
    );
    for (client, status) in [
        ("192.0.2.1", 200),
        ("192.0.2.1", 200),
        ("192.0.2.1", 200),
        ("192.0.2.1", 429),
        ("192.0.2.1", 429),
        ("192.0.2.2", 200),
        ("2001:db8::1", 200),
        ("2001:db8::2", 200),
        ("2001:db8::3", 200),
        ("2001:db8::4", 429),
        ("2001:db8:0:1::1", 200),
    ] {
        assert_eq!(from(&rig, client, "/", "").await, status, "{client}");
    }
    let ask = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    let refused = rig.connect().await.ask(ask).await;
    assert_eq!(refused.status, 429);
    assert!(refused.field("ratelimit").unwrap().starts_with("\"ip\";r=0;t="), "{}", refused.head);
    let wait: u32 = refused.field("retry-after").unwrap().parse().unwrap();
    assert!((1100..=1200).contains(&wait), "{wait}");
    assert_eq!(rig.logged(|line| line["status"] == 429).await["reason"], "rate_limited");
    assert_eq!(rig.metric("starlock_rejected_total{reason=\"rate_limited\"}"), 4);

    // A reload that leaves the rule alone forgets nothing; another rule begins anew.
    rig.load(&plan("{ rate = \"3/1h\", by = \"ip\" }")).await;
    assert_eq!(from(&rig, "192.0.2.1", "/", "").await, 429);
    rig.load(&plan("\"4/1h\"")).await;
    assert_eq!(from(&rig, "192.0.2.1", "/", "").await, 200);
}

#[tokio::test]
async fn an_allowance_is_shared_by_those_who_send_the_same_key_or_by_all() {
    let rig = plan("{ requests = 1, per = \"1h\", by = \"header:X-Api-Key\" }").start().await;
    for (client, key, status) in [
        ("192.0.2.1", "X-Api-Key: a\r\n", 200),
        ("192.0.2.2", "X-Api-Key: a\r\n", 429),
        ("192.0.2.2", "X-Api-Key: b\r\n", 200),
        ("192.0.2.2", "", 200),
        ("192.0.2.2", "", 429),
        ("192.0.2.3", "", 200),
    ] {
        assert_eq!(from(&rig, client, "/", key).await, status, "{client} {key}");
    }
    let rig = plan("{ requests = 1, per = \"1h\", burst = 2, by = \"route\" }").start().await;
    for (client, status) in [("192.0.2.1", 200), ("192.0.2.2", 200), ("192.0.2.3", 429)] {
        assert_eq!(from(&rig, client, "/", "").await, status, "{client}");
    }
}

#[tokio::test]
async fn a_crowd_gets_the_burst_and_not_one_more() {
    let rig = plan("{ requests = 50, per = \"1h\", by = \"route\" }").start().await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = rig.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".repeat(5)).await;
        clients.push(client);
    }
    let (mut passed, mut refused) = (0, 0);
    for client in &mut clients {
        for _ in 0..5 {
            match client.answer(false).await.status {
                200 => passed += 1,
                429 => refused += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!((passed, refused), (50, 150));
}

#[tokio::test]
async fn so_many_requests_at_a_time_and_no_more() {
    for (rule, other) in [("2", 503), ("{ requests = 2, by = \"ip\" }", 0)] {
        // Says nothing until it is closed.
        let server = Server::raw(|mut stream| async move {
            let mut seen = Vec::new();
            while let Ok(1..) = stream.read_buf(&mut seen).await {}
        });
        let text = format!(
            "listen.trusted_proxies = [\"127.0.0.1\"]\n[routes]\n\"a.test\" = {{ to = \"{}\", concurrency = {rule} }}",
            server.url()
        );
        let mut rig = Plan::toml(&text).start().await;
        let ask =
            |client: &str| format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: {client}\r\n\r\n");
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut client = rig.connect().await;
            client.send(ask("192.0.2.1")).await;
            held.push(client);
        }
        rig.until("both are with the server", |_| server.connections() == 2).await;
        // The same rule counts on over a reload.
        rig.load(&Plan::toml(&text)).await;
        let answer = rig.connect().await.ask(ask("192.0.2.1")).await;
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{rule}");
        assert_eq!(rig.logged(|line| line["status"] == 503).await["reason"], "concurrency");
        if other == 503 {
            assert_eq!(rig.connect().await.ask(ask("192.0.2.9")).await.status, 503);
        } else {
            let mut client = rig.connect().await;
            client.send(ask("192.0.2.9")).await;
            rig.until("another address has room", |_| server.connections() == 3).await;
        }
        let there = server.connections();
        drop(held);
        // Whoever leaves makes room.
        let start = Instant::now();
        while server.connections() == there {
            assert!(start.elapsed() < PATIENCE, "no room: {rule}");
            let mut client = rig.connect().await;
            client.send(ask("192.0.2.1")).await;
            let answered = tokio::time::timeout(std::time::Duration::from_millis(200), client.answer(false));
            if let Ok(answer) = answered.await {
                assert_eq!(answer.status, 503);
            }
        }
    }
}
