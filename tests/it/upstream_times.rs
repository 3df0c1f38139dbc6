//! How long servers may take to be reached, and how long connections to them are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::rig::{Plan, Rig};
use crate::support::server::{Hung, Server};

async fn front(url: &str, timeouts: &str) -> Rig {
    Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [\"{url}\"]\ntimeouts = {{ {timeouts} }}\n"
    ))
    .start()
    .await
}

#[tokio::test]
async fn a_server_whose_queue_is_full_is_not_waited_for_longer_than_connect() {
    let hung = Hung::start().await;
    let rig = front(&hung.url(), "connect = \"300ms\"").await;
    let start = Instant::now();
    assert_eq!(rig.connect().await.get("a.test", "/").await.status, 503);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(rig.logged(|line| line["status"] == 503).await["reason"], "upstream_connect_timeout");
}

/// Answers with `keep` among its fields, and counts the connections that the other side has closed.
fn keeping(keep: &'static str) -> (Server, Arc<AtomicUsize>) {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let server = Server::raw(move |mut stream| {
        let count = count.clone();
        async move {
            let mut seen = Vec::new();
            while let Ok(1..) = stream.read_buf(&mut seen).await {
                if seen.ends_with(b"\r\n\r\n") {
                    seen.clear();
                    // So late that whatever was armed for the request itself was looked at before.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{keep}\r\nok");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (server, closed)
}

#[tokio::test]
async fn an_idle_connection_is_closed_before_its_server_does_it() {
    for (keep, idle, least) in [
        // A second less than the server says, whatever we would do.
        ("Keep-Alive: timeout=2, max=100\r\n", "60s", 1000),
        // Ours is shorter.
        ("Keep-Alive: timeout=30\r\n", "400ms", 400),
        ("", "400ms", 400),
        // Nothing is left of it.
        ("Keep-Alive: timeout=1\r\n", "60s", 0),
    ] {
        let (server, closed) = keeping(keep);
        let rig = front(&server.url(), &format!("upstream_idle = \"{idle}\"")).await;
        let mut client = rig.connect().await;
        let start = Instant::now();
        assert_eq!(client.get("a.test", "/").await.status, 200);
        rig.until(&format!("{keep:?}: it is closed"), |_| closed.load(Ordering::SeqCst) == 1).await;
        assert!(start.elapsed() >= Duration::from_millis(least), "{keep:?}: {:?}", start.elapsed());
        assert_eq!(client.get("a.test", "/").await.status, 200);
        assert_eq!(server.connections(), 2, "{keep:?}");
    }
    let (server, _) = keeping("Keep-Alive: timeout=60\r\n");
    let rig = front(&server.url(), "upstream_idle = \"60s\"").await;
    let mut client = rig.connect().await;
    for _ in 0..3 {
        assert_eq!(client.get("a.test", "/").await.status, 200);
    }
    assert_eq!(server.connections(), 1, "until then it is used again");
}
