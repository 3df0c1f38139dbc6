//! Listeners and routes change under traffic; connections stay.

use std::time::Duration;

use starlock::listen::{Inherited, ListenError};
use tokio::io::AsyncWriteExt;

use crate::support::client::Raw;
use crate::support::rig::Plan;
use crate::support::server::Server;

#[tokio::test]
async fn routes_change_for_the_next_request_and_no_connection_is_closed() {
    let (old, new) = (Server::echo(), Server::echo());
    let mut rig = Plan::clear().forward("a.test", old.address).forward("b.test", old.address).start().await;
    let address = rig.http();
    let mut client = rig.connect().await;
    client.get("a.test", "/").await;
    let plan = |server: &Server| {
        let mut plan = Plan::clear().forward("a.test", server.address).respond("c.test", 200, Some("new"));
        plan.listen.http = vec![([127, 0, 0, 1], 0).into()];
        plan
    };
    for _ in 0..50 {
        rig.load(&plan(&new)).await;
        assert_eq!(client.get("a.test", "/").await.status, 200);
    }
    assert_eq!(rig.http(), address, "an unchanged listener is the same one");
    assert!(
        new.connections() <= 2,
        "connections to an unchanged server outlive reloads: {}",
        new.connections()
    );
    assert_eq!(client.get("b.test", "/").await.status, 404);
    assert_eq!(client.get("c.test", "/").await.text(), "new");
    assert_eq!(rig.traffic.open_connections(), 1);
    let text = rig.metrics.render();
    assert!(!text.contains("upstream=\"to-b.test\",server"), "{text}");
}

#[tokio::test]
async fn a_listener_that_goes_away_lets_its_connections_live() {
    let mut rig = Plan::clear().respond("a.test", 200, Some("ok")).start().await;
    let old = rig.http();
    let mut client = rig.connect().await;
    client.get("a.test", "/").await;
    let mut plan = Plan::clear().respond("a.test", 200, Some("new"));
    plan.listen.http = vec![([127, 0, 0, 2], 0).into()];
    rig.load(&plan).await;
    assert_ne!(rig.http(), old);
    assert_eq!(Raw::connect(rig.http()).await.get("a.test", "/").await.text(), "new");
    assert_eq!(client.get("a.test", "/").await.text(), "new", "the old connection goes on");
    let refused = async || tokio::net::TcpStream::connect(old).await.is_err();
    let start = std::time::Instant::now();
    while !refused().await {
        assert!(start.elapsed() < Duration::from_secs(10), "the old address still answers");
    }
}

#[tokio::test]
async fn what_was_only_prepared_changes_nothing() {
    let rig = Plan::clear().respond("a.test", 200, Some("ok")).start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut spec = Plan::clear().listen;
    spec.http = vec![([127, 0, 0, 3], 0).into(), taken.local_addr().unwrap()];
    let error = rig.traffic.prepare(&spec, &mut Inherited::default()).await.unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    spec.http.pop();
    let prepared = rig.traffic.prepare(&spec, &mut Inherited::default()).await.unwrap();
    let waiting = prepared.addresses().http[0];
    let mut early = Raw::connect(waiting).await;
    early.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(early.silent(Duration::from_millis(50)).await, "bound, but not in force");
    drop(prepared);
    assert!(early.closed().await);
    assert_eq!(rig.connect().await.get("a.test", "/").await.text(), "ok");
    assert_eq!(rig.traffic.addresses().http.len(), 1);
    let prepared = rig.traffic.prepare(&spec, &mut Inherited::default()).await.unwrap();
    let waiting = prepared.addresses().http[0];
    let mut early = Raw::connect(waiting).await;
    early.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    prepared.commit();
    assert_eq!(early.answer(false).await.text(), "ok", "who came between is served");
}

#[tokio::test]
async fn a_drain_lets_requests_end_and_says_goodbye() {
    let server = Server::raw(|mut stream| async move {
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await;
        // The answer comes when the client has said everything.
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").await;
    });
    let rig =
        Plan::clear().forward("a.test", server.address).respond("b.test", 200, Some("ok")).start().await;
    let address = rig.http();
    let mut idle = rig.connect().await;
    idle.get("b.test", "/").await;
    let mut new = rig.connect().await;
    rig.until("three connections", |rig| rig.traffic.open_connections() == 2).await;
    let mut busy = rig.connect().await;
    busy.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\n1").await;
    rig.until("the request", |rig| {
        rig.metric(&format!(
            "starlock_upstream_requests_in_flight{{upstream=\"to-a.test\",server=\"{}\"}}",
            server.url()
        )) == 1
    })
    .await;
    let drained = async {
        let drained = rig.traffic.drain(Duration::from_secs(15)).await;
        assert_eq!(drained.cut, 0);
    };
    let clients = async {
        assert!(idle.closed().await, "idle ones end at once");
        new.send("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n").await;
        let answer = new.answer(false).await;
        assert_eq!(
            (answer.text(), answer.field("connection")),
            ("ok", Some("close")),
            "a last one for a new client"
        );
        drop((idle, new));
        busy.send("2").await;
        let answer = busy.answer(false).await;
        assert_eq!((answer.text(), answer.field("connection")), ("slow", Some("close")));
        drop(busy);
    };
    tokio::join!(drained, clients);
    // A child that another test is just starting may hold it for a moment.
    rig.until("nobody listens", |_| std::net::TcpStream::connect(address).is_err()).await;
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let silent = Server::raw(|mut stream| async move {
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await;
    });
    let rig = Plan::clear().forward("a.test", silent.address).start().await;
    let mut client = rig.connect().await;
    client.send("GET /hung HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    rig.until("the request", |_| silent.connections() == 1).await;
    assert_eq!(rig.traffic.drain(Duration::from_millis(100)).await.cut, 1);
    assert!(client.closed().await);
    rig.traffic.failed().await;
    assert_eq!(rig.logged(|line| line["path"] == "/hung").await["status"], 499);
}

#[tokio::test]
async fn http_on_an_https_port_is_told_so() {
    let tls = "[listen]\nhttps = [\"127.0.0.1:0\"]\n";
    let passing = format!("{tls}[routes]\n\"p.test\" = {{ passthrough = \"127.0.0.1:9\" }}\n");
    for plan in [Plan::tls().respond("a.test", 200, Some("ok")), Plan::toml(&passing)] {
        let rig = plan.start().await;
        let large = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 200000\r\n\r\n{}",
            "x".repeat(200_000)
        );
        for request in ["GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", &large] {
            let mut client = Raw::connect(rig.https()).await;
            client.send(request).await;
            let answer = client.answer(false).await;
            assert_eq!(answer.status, 400);
            assert!(answer.text().contains("use https://"), "{}", answer.text());
            assert!(client.closed().await);
        }
        assert_eq!(rig.metric("starlock_tls_handshakes_total{result=\"protocol\"}"), 2);
    }
}
