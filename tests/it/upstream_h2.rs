//! HTTP/2 to servers: streams, their limits, and how they and their connections end.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use starlock::task;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::client::PATIENCE;
use crate::support::rig::{Plan, Rig};
use crate::support::server::Server;

type Respond = SendResponse<Bytes>;

/// A server that gives each request to `answer`, with the number of its connection.
fn server<F, Fut>(max_streams: u32, answer: F) -> Server
where
    F: Fn(usize, Request<RecvStream>, Respond) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let connections = Arc::new(AtomicUsize::new(0));
    Server::raw(move |stream: TcpStream| {
        let (answer, number) = (answer.clone(), connections.fetch_add(1, Ordering::SeqCst));
        async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(max_streams).initial_window_size(1 << 20);
            let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                task::spawn_local(answer(number, request, respond));
            }
        }
    })
}

fn text(respond: &mut Respond, text: impl Into<Bytes>) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(text.into(), true).unwrap();
}

/// A rig with one worker, so that there is one pool.
async fn front(server: &Server, timeouts: &str) -> Rig {
    let text = format!(
        "[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\n\
         servers = [\"h2c://{}\"]\ntimeouts = {{ {timeouts} }}\n",
        server.address
    );
    Plan::toml(&text).with(|plan| plan.workers = 1).start().await
}

async fn get(rig: &Rig, path: &str) -> (u16, String) {
    let answer = rig.connect().await.get("a.test", path).await;
    (answer.status, answer.text().to_owned())
}

#[tokio::test]
async fn heads_and_bodies_arrive_as_they_were_sent() {
    let server = server(100, |_, request, mut respond| async move {
        let (parts, mut body) = request.into_parts();
        assert!(!parts.headers.contains_key("host") && !parts.headers.contains_key("connection"));
        let head = format!("{} {} {:?}", parts.method, parts.uri, parts.headers.get("te"));
        let response = Response::builder().header("x-head", head).body(()).unwrap();
        let mut stream = respond.send_response(response, false).unwrap();
        let mut bytes = 0_usize;
        while let Some(Ok(chunk)) = body.data().await {
            bytes += chunk.len();
            drop(body.flow_control().release_capacity(chunk.len()));
        }
        let trailers = body.trailers().await.unwrap();
        drop(stream.send_data(format!("{bytes} {trailers:?}").into(), false));
        let mut fields = http::HeaderMap::new();
        fields.insert("x-sum", "7".parse().unwrap());
        stream.send_trailers(fields).unwrap();
    });
    let rig = front(&server, "").await;
    let mut client = rig.connect().await;
    let mut request = b"POST /a?b=%2F HTTP/1.1\r\nHost: a.test:81\r\nTE: trailers\r\nConnection: te\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..40 {
        request.extend(b"10000\r\n");
        request.extend(vec![b'x'; 65536]);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\nX-End: yes\r\n\r\n");
    let answer = client.ask(&request).await;
    assert_eq!(answer.field("x-head"), Some("POST http://a.test:81/a?b=%2F Some(\"trailers\")"));
    assert_eq!(answer.text(), format!("{} Some({{\"x-end\": \"yes\"}})", 40 * 65536));
    let none = client.get("a.test", "/").await;
    assert_eq!((none.status, none.text()), (200, "0 None"));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn no_server_gets_more_streams_than_it_takes() {
    let release = Arc::new(Notify::new());
    let waiting = Arc::new(AtomicUsize::new(0));
    let (gate, count) = (release.clone(), waiting.clone());
    let server = server(2, move |connection, _, mut respond| {
        let (gate, count) = (gate.clone(), count.clone());
        async move {
            let released = gate.notified();
            count.fetch_add(1, Ordering::SeqCst);
            released.await;
            text(&mut respond, connection.to_string());
        }
    });
    let rig = front(&server, "upstream_idle = \"500ms\"").await;
    let requests = join_all((0..5).map(|_| get(&rig, "/")));
    let open = async {
        rig.until("five requests at once", |_| waiting.load(Ordering::SeqCst) == 5).await;
        release.notify_waiters();
    };
    let (mut answers, ()) = tokio::join!(requests, open);
    answers.sort();
    let connections: Vec<&str> = answers.iter().map(|(_, body)| body.as_str()).collect();
    assert_eq!(connections, ["0", "0", "1", "1", "2"]);
    assert!(answers.iter().all(|(status, _)| *status == 200));
}

#[tokio::test]
async fn a_goodbye_costs_no_request() {
    let held = Arc::new(Notify::new());
    let gate = held.clone();
    let connections = Arc::new(AtomicUsize::new(0));
    let server = Server::raw(move |stream| {
        let (gate, number) = (gate.clone(), connections.fetch_add(1, Ordering::SeqCst));
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if request.uri().path() == "/slow" {
                    let gate = gate.clone();
                    task::spawn_local(async move {
                        gate.notified().await;
                        text(&mut respond, format!("slow on {number}"));
                    });
                } else {
                    text(&mut respond, format!("{number}"));
                    connection.graceful_shutdown();
                }
            }
        }
    });
    let rig = front(&server, "").await;
    let slow = get(&rig, "/slow");
    let quick = async {
        rig.until("the slow one is there", |_| server.connections() == 1).await;
        for n in 0..20 {
            let (status, _) = get(&rig, "/").await;
            assert_eq!(status, 200, "request {n}");
        }
        held.notify_waiters();
    };
    let (slow, ()) = tokio::join!(slow, quick);
    assert_eq!(slow, (200, "slow on 0".to_owned()), "what was under way has ended well");
    assert!(server.connections() > 10, "{}: each goodbye was heard", server.connections());
}

#[tokio::test]
async fn a_refused_stream_is_sent_again() {
    let refusals = Arc::new(AtomicUsize::new(0));
    let count = refusals.clone();
    let server = server(100, move |_, _, mut respond| {
        let refuse = count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        async move { if refuse { respond.send_reset(Reason::REFUSED_STREAM) } else { text(&mut respond, "done") } }
    });
    let rig = front(&server, "").await;
    for _ in 0..5 {
        assert_eq!(get(&rig, "/").await, (200, "done".to_owned()));
    }
    let never = self::server(100, |_, _, mut respond| async move {
        respond.send_reset(Reason::REFUSED_STREAM);
    });
    let rig = front(&never, "").await;
    assert_eq!(get(&rig, "/").await.0, 502);
    let line = rig.logged(|line| line["status"] == 502).await;
    assert_eq!(line["reason"], "upstream_closed");
}

#[tokio::test]
async fn a_client_that_leaves_resets_its_stream_and_no_other() {
    let (resets, asked) = (Arc::new(Mutex::new(VecDeque::new())), Arc::new(AtomicUsize::new(0)));
    let (seen, count) = (resets.clone(), asked.clone());
    let server = server(100, move |connection, request, mut respond| {
        let (seen, asked) = (seen.clone(), count.clone());
        async move {
            match request.uri().path() {
                "/head" => {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    seen.lock().unwrap().push_back(reason.ok());
                }
                "/body" => {
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_data("some".into(), false).unwrap();
                    asked.fetch_add(1, Ordering::SeqCst);
                    let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
                    seen.lock().unwrap().push_back(reason.ok());
                }
                _ => text(&mut respond, connection.to_string()),
            }
        }
    });
    let rig = front(&server, "").await;
    assert_eq!(get(&rig, "/").await.1, "0");
    for (n, path) in ["/head", "/body"].iter().enumerate() {
        let mut client = rig.connect().await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        rig.until("the server has it", |_| asked.load(Ordering::SeqCst) == n + 1).await;
        drop(client);
        rig.until("the stream is reset", |_| !resets.lock().unwrap().is_empty()).await;
        assert_eq!(resets.lock().unwrap().pop_front(), Some(Some(Reason::CANCEL)), "{path}");
    }
    assert_eq!(get(&rig, "/").await.1, "0", "the connection lives");
}

#[tokio::test]
async fn deadlines_end_streams_and_leave_the_others_alone() {
    let server = server(100, |connection, request, mut respond| async move {
        match request.uri().path() {
            "/hangs" => std::future::pending().await,
            "/stalls" => {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data("some".into(), false).unwrap();
                std::future::pending::<()>().await;
            }
            "/slow" => {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                for _ in 0..18 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    stream.send_data("x".into(), false).unwrap();
                }
                stream.send_data(connection.to_string().into(), true).unwrap();
            }
            _ => text(&mut respond, connection.to_string()),
        }
    });
    let rig = front(&server, "response = \"1600ms\", stall = \"1600ms\"").await;
    let stalls = async {
        let mut client = rig.connect().await;
        client.send("GET /stalls HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        rig.logged(|line| line["path"] == "/stalls").await["reason"].as_str().unwrap().to_owned()
    };
    let begin = Instant::now();
    let (hung, stalled, slow) = tokio::join!(get(&rig, "/hangs"), stalls, get(&rig, "/slow"));
    assert_eq!((hung.0, stalled.as_str()), (504, "upstream_stalled"));
    assert_eq!(slow, (200, format!("{}0", "x".repeat(18))), "longer than any deadline, but never still");
    assert!(begin.elapsed() < PATIENCE);
    assert_eq!(get(&rig, "/").await.1, "0");
}

#[tokio::test]
async fn a_stalled_answer_blocks_no_other() {
    let server = server(100, |_, request, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        let blocks = if request.uri().path() == "/much" { 64 } else { 1 };
        for _ in 0..blocks {
            stream.reserve_capacity(65536);
            while stream.capacity() < 65536 {
                match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                    Some(Ok(_)) => {}
                    _ => return,
                }
            }
            stream.send_data(vec![b'x'; 65536].into(), false).unwrap();
        }
        drop(stream.send_data(Bytes::new(), true));
    });
    let rig = front(&server, "").await;
    // Clients that read nothing: each fills its own stream's window and no more.
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut client = rig.connect().await;
        client.send("GET /much HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        idle.push(client);
    }
    for _ in 0..20 {
        assert_eq!(get(&rig, "/little").await.1.len(), 65536);
    }
    assert_eq!(server.connections(), 1);
    drop(idle);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_an_http1_server_is_named() {
    let over = Arc::new(AtomicUsize::new(0));
    let count = over.clone();
    let server = Server::raw(move |stream| {
        let count = count.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                text(&mut respond, "here");
            }
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let rig = front(&server, "upstream_idle = \"200ms\"").await;
    assert_eq!(get(&rig, "/").await.1, "here");
    rig.until("it is closed", |_| over.load(Ordering::SeqCst) == 1).await;
    assert_eq!(get(&rig, "/").await.1, "here");
    assert_eq!(server.connections(), 2);

    let old = Server::raw(|mut stream| async move {
        drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await);
        std::future::pending::<()>().await;
    });
    let rig = front(&old, "connect = \"5s\"").await;
    assert_eq!(get(&rig, "/").await.0, 502);
    assert_eq!(rig.logged(|line| line["status"] == 502).await["reason"], "upstream_not_http2");
}
