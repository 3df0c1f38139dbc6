//! Upstreams that are down, as a whole or but for one server: what clients are told, how soon, and what becomes of it afterwards.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::rig::{Plan, Rig};
use crate::support::server::{Dead, Hung, Server, full};

const CONNECT: Duration = Duration::from_millis(900);
/// What a busy machine may add to it. The next thing that anybody waits for is the answer's own time-out, a minute.
const SLACK: Duration = Duration::from_secs(5);

async fn front(urls: impl Iterator<Item = String>, rest: &str) -> Rig {
    let urls: Vec<String> = urls.map(|url| format!("\"{url}\"")).collect();
    Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [{}]\n\
         timeouts = {{ connect = \"{}ms\" }}\n{rest}\n",
        urls.join(", "),
        CONNECT.as_millis(),
    ))
    .start()
    .await
}

/// Asks once, which must be answered 503 in time; gives what the log says why.
async fn asked(rig: &Rig, method: &str, what: &str) -> String {
    let start = Instant::now();
    let request = format!("{method} / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n");
    let answer = rig.connect().await.ask(request).await;
    let took = start.elapsed();
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{what}: {method}");
    assert!(took < CONNECT + SLACK, "{what}: {method} took {took:?}");
    let id = answer.text().rsplit(' ').next().unwrap().trim();
    rig.logged(|line| line["id"] == id).await["reason"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn servers_that_refuse_are_503_from_the_first_request_on_however_many_they_are() {
    for count in [1, 2, 3, 4, 8, 20] {
        let dead: Vec<Dead> = (0..count).map(|_| Dead::start()).collect();
        let rig = front(dead.iter().map(Dead::url), "").await;
        for n in 0..6 {
            let method = if n % 2 == 0 { "POST" } else { "GET" };
            let reason = asked(&rig, method, &format!("{count} refuse, request {n}")).await;
            assert_eq!(reason, "upstream_connect_refused");
        }
    }
}

#[tokio::test]
async fn servers_that_take_no_connection_are_503_within_the_time_for_one() {
    let mut hung = Vec::new();
    for _ in 0..8 {
        hung.push(Hung::start().await);
    }
    for count in [1, 2, 3, 4, 8] {
        let rig = front(hung.iter().take(count).map(Hung::url), "").await;
        for method in ["POST", "GET"] {
            let reason = asked(&rig, method, &format!("{count} hang")).await;
            assert_eq!(reason, "upstream_connect_timeout");
        }
    }
    let dead: Vec<Dead> = (0..3).map(|_| Dead::start()).collect();
    let both = dead.iter().map(Dead::url).chain(hung.iter().take(3).map(Hung::url));
    let rig = front(both, "").await;
    for n in 0..6 {
        asked(&rig, "POST", &format!("three refuse and three hang, request {n}")).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_before_its_handshake_has_taken_no_connection() {
    let silent: Vec<Server> = (0..4)
        .map(|_| {
            Server::raw(|stream| async move {
                std::future::pending::<()>().await;
                drop(stream);
            })
        })
        .collect();
    for count in [1, 4] {
        let urls = silent.iter().take(count).map(|server| format!("https://{}", server.address));
        let rig = front(urls, "tls = { danger_skip_verify = true }").await;
        assert_eq!(asked(&rig, "POST", &format!("{count} are mute")).await, "upstream_tls_timeout");
    }
}

fn connects(rig: &Rig) -> i64 {
    rig.metric("starlock_retries_total{upstream=\"app\",reason=\"connect\"}")
}

#[tokio::test]
async fn who_refuses_is_passed_over_and_who_hangs_counts() {
    let dead: Vec<Dead> = (0..20).map(|_| Dead::start()).collect();
    for (count, rest, expected) in [
        (5, "passive = false", 4),
        (20, "passive = false", 14),
        (20, "passive = false\nretries = { connect = 1, idempotent = 5 }", 10),
        (5, "retries = { connect = 0 }", 0),
        (5, "retries = false", 0),
    ] {
        let rig = front(dead.iter().take(count).map(Dead::url), rest).await;
        asked(&rig, "POST", rest).await;
        assert_eq!(connects(&rig), expected, "{count} servers, {rest}");
    }
    // When all are known to fail, nobody goes through all of them.
    let rig = front(dead.iter().take(8).map(Dead::url), "passive = { connect_errors = 1 }").await;
    asked(&rig, "POST", "nobody is known to fail yet").await;
    assert_eq!(connects(&rig), 7);
    asked(&rig, "POST", "all are").await;
    assert_eq!(connects(&rig), 9);

    let mut hung = Vec::new();
    for _ in 0..5 {
        hung.push(Hung::start().await);
    }
    let rig = front(hung.iter().map(Hung::url), "").await;
    asked(&rig, "POST", "five hang").await;
    assert_eq!(connects(&rig), 2, "the first and two more");
}

#[tokio::test]
async fn the_one_of_eight_that_is_well_answers_everybody() {
    let dead: Vec<Dead> = (0..7).map(|_| Dead::start()).collect();
    let well = Server::http(|_| async { http::Response::new(full("well")) });
    for rest in ["", "passive = false", "balance = \"round_robin\""] {
        let rig = front(dead.iter().map(Dead::url).chain([well.url()]), rest).await;
        let mut client = rig.connect().await;
        for n in 0..100 {
            let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nonce";
            let answer = client.ask(post).await;
            assert_eq!((answer.status, answer.text()), (200, "well"), "request {n}, {rest}");
        }
    }
}

async fn answer_all(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut buffer = [0; 1024];
        if stream.read(&mut buffer).await.unwrap_or(0) > 0 {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nback";
            drop(stream.write_all(answer).await);
        }
    }
}

#[tokio::test]
async fn the_first_that_is_back_answers_within_two_seconds() {
    for count in [1, 2, 4, 8] {
        let mut dead: Vec<Dead> = (0..count).map(|_| Dead::start()).collect();
        let rig = front(dead.iter().map(Dead::url), "").await;
        // Long enough for all to be known to fail, and for half of them to be left out.
        for _ in 0..40 {
            asked(&rig, "GET", "all are down").await;
        }
        let again = dead.remove(0);
        // The worst case: it is one of those that are left out, if any is.
        let back = again.revive();
        let start = Instant::now();
        let mut client = rig.connect().await;
        let first = async {
            while client.get("a.test", "/").await.status != 200 {
                assert!(start.elapsed() < Duration::from_secs(10), "one of {count} is back");
            }
        };
        tokio::select! {
            () = first => {}
            () = answer_all(back) => panic!("it stopped"),
        }
    }
}
