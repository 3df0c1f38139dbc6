//! Servers that are not well get no requests, and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use starlock::task;
use tokio::io::AsyncReadExt;

use crate::support::rig::{Plan, Rig};
use crate::support::server::{Server, answer_h1, answer_h2, full};

fn up(rig: &Rig, server: &Server) -> i64 {
    rig.metric(&format!("starlock_upstream_up{{upstream=\"app\",server=\"{}\"}}", server.url()))
}

fn plan(servers: &[&Server], rest: &str) -> Plan {
    let urls: Vec<String> = servers.iter().map(|s| format!("\"{}\"", s.url())).collect();
    Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [{}]\n{rest}\n",
        urls.join(", ")
    ))
}

/// Answers everything with its name, but `/healthz` with 503 while it is ill.
fn server(name: &'static str, ill: &Arc<AtomicBool>) -> Server {
    let ill = ill.clone();
    Server::http(move |request| {
        let is_ill = request.uri().path() == "/healthz" && ill.load(Ordering::SeqCst);
        async move {
            let mut response = Response::new(full(name));
            if is_ill {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
    })
}

#[tokio::test]
async fn a_server_that_says_it_is_ill_gets_nothing_until_it_is_well() {
    let ill = Arc::new(AtomicBool::new(false));
    let (one, two) = (server("one", &ill), server("two", &Arc::default()));
    let rig = plan(
        &[&one, &two],
        "balance = \"round_robin\"\nhealth = { path = \"/healthz\", every = \"500ms\", timeout = \"500ms\" }",
    )
    .start()
    .await;
    let mut client = rig.connect().await;
    for well in [true, false, true] {
        ill.store(!well, Ordering::SeqCst);
        rig.until("the server is as it says", |rig| up(rig, &one) == i64::from(well)).await;
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..10 {
            names.insert(client.get("a.test", "/").await.text().to_owned());
        }
        assert_eq!(names.contains("one"), well);
        assert!(names.contains("two"));
    }
}

#[tokio::test]
async fn a_port_that_closes_is_down_by_tcp_and_all_down_means_all_are_tried() {
    let well = Arc::default();
    let (one, two) = (server("one", &well), server("two", &well));
    let rig = plan(
        &[&one, &two],
        "passive = false\nhealth = { kind = \"tcp\", every = \"50ms\", timeout = \"50ms\" }",
    )
    .start()
    .await;
    let url = one.url();
    drop(one);
    rig.until("the closed port is down", |rig| {
        rig.metric(&format!("starlock_upstream_up{{upstream=\"app\",server=\"{url}\"}}")) == 0
    })
    .await;
    let mut client = rig.connect().await;
    for _ in 0..10 {
        assert_eq!(client.get("a.test", "/").await.text(), "two");
    }
    assert_eq!(rig.metric("starlock_retries_total{upstream=\"app\",reason=\"connect\"}"), 0);
    let address = two.address;
    drop(two);
    rig.until("both are down", |rig| {
        !rig.metrics.render().contains("} 1\n# HELP starlock_upstream_requests")
    })
    .await;
    assert_eq!(client.get("a.test", "/").await.status, 503);
    let again = std::net::TcpListener::bind(address).unwrap();
    let answering = std::thread::spawn(move || {
        use std::io::{Read, Write};
        // Questions come too, and say nothing.
        for stream in again.incoming() {
            let mut stream = stream.unwrap();
            let mut buffer = [0; 1024];
            if stream.read(&mut buffer).unwrap_or(0) > 0 {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback").unwrap();
                return;
            }
        }
    });
    assert_eq!(client.get("a.test", "/").await.text(), "back");
    answering.join().unwrap();
}

/// A gRPC server whose health service says `SERVING` while it is well.
fn grpc(well: Arc<AtomicBool>) -> Server {
    Server::raw(move |stream| {
        let well = well.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let well = well.clone();
                task::spawn_local(async move {
                    let path = request.uri().path().to_owned();
                    let mut body = request.into_body();
                    let message = body.data().await.unwrap().unwrap();
                    let known =
                        path == "/grpc.health.v1.Health/Check" && message[..] == *b"\0\0\0\0\x05\x0a\x03app";
                    let response =
                        Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut send = respond.send_response(response, false).unwrap();
                    let status = if well.load(Ordering::SeqCst) { 1 } else { 2 };
                    send.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    let code = if known { "0" } else { "5" };
                    trailers.insert("grpc-status", code.parse().unwrap());
                    send.send_trailers(trailers).unwrap();
                });
            }
        }
    })
}

#[tokio::test]
async fn the_grpc_health_protocol_is_spoken() {
    let well = Arc::new(AtomicBool::new(true));
    let server = grpc(well.clone());
    let health = |service: &str| {
        format!(
            "health = {{ kind = \"grpc\", service = \"{service}\", every = \"50ms\", timeout = \"50ms\" }}"
        )
    };
    let mut rig = plan(&[&server], &health("app")).start().await;
    for is_well in [true, false, true] {
        well.store(is_well, Ordering::SeqCst);
        rig.until("the server is as it says", |rig| up(rig, &server) == i64::from(is_well)).await;
    }
    rig.load(&plan(&[&server], &health("other"))).await;
    rig.until("a service that it does not know is down", |rig| up(rig, &server) == 0).await;
    rig.load(&plan(&[&server], "")).await;
    rig.until("who is not asked any more is up", |rig| up(rig, &server) == 1).await;
}

#[tokio::test]
async fn a_server_that_fails_requests_is_left_out_without_any_configuration() {
    let fine = server("fine", &Arc::default());
    let broken = Server::http(|_| async {
        let mut response = Response::new(full("broken"));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    });
    let rig = plan(&[&fine, &broken], "balance = \"round_robin\"\nretries = false").start().await;
    let mut client = rig.connect().await;
    let mut failed = 0;
    for _ in 0..40 {
        failed += i32::from(client.get("a.test", "/").await.status == 502);
    }
    assert_eq!((failed, up(&rig, &broken), up(&rig, &fine)), (5, 0, 1));
    assert_eq!(rig.endpoint(broken.address).condition().as_str(), "ejected");
}

#[tokio::test]
async fn a_server_that_says_503_to_everybody_is_left_out_and_never_the_last_one() {
    let busy = Server::http(|_| async {
        let mut response = Response::new(full("busy"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    });
    let well = Server::http(|_| async { Response::new(full("well")) });
    let rig = plan(&[&busy, &well], "retries = false").start().await;
    let mut client = rig.connect().await;
    let mut said = 0;
    for _ in 0..60 {
        said += usize::from(client.get("a.test", "/").await.text() == "busy");
    }
    assert_eq!(said, 5, "after that it is out");
    assert_eq!(rig.endpoint(busy.address).condition().as_str(), "ejected");
    assert_eq!(rig.endpoint(well.address).condition().as_str(), "up");

    let rig = plan(&[&busy], "retries = false").start().await;
    let mut client = rig.connect().await;
    for _ in 0..30 {
        assert_eq!(client.get("a.test", "/").await.text(), "busy");
    }
    assert_eq!(rig.endpoint(busy.address).condition().as_str(), "up");
}

/// Serves what comes in at a socket in the file system.
fn unix(path: &std::path::Path, ill: &Arc<AtomicBool>) -> starlock::task::Shutdown {
    let (listener, ill) = (std::os::unix::net::UnixListener::bind(path).unwrap(), ill.clone());
    listener.set_nonblocking(true).unwrap();
    let stop = starlock::task::Shutdown::new();
    let stopped = stop.clone();
    task::spawn_thread("unix server", move || async move {
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => accepted.unwrap(),
                () = stopped.wait() => return,
            };
            task::spawn_local(answer_h1(stream, status(&ill)));
        }
    })
    .unwrap();
    stop
}

fn status(ill: &AtomicBool) -> u16 {
    if ill.load(Ordering::SeqCst) { 503 } else { 204 }
}

#[tokio::test]
async fn servers_are_asked_the_way_requests_go_to_them() {
    let ill: Arc<AtomicBool> = Arc::default();
    let https = |alpn: &[&str], ill: &Arc<AtomicBool>| {
        let ill = ill.clone();
        Server::tls(alpn, move |stream| {
            let status = status(&ill);
            async move {
                match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => answer_h2(stream, status).await,
                    _ => answer_h1(stream, status).await,
                }
            }
        })
    };
    let (only_h1, only_h2, either) =
        (https(&["http/1.1"], &ill), https(&["h2"], &ill), https(&["h2", "http/1.1"], &ill));
    let h2c = {
        let ill = ill.clone();
        Server::raw(move |stream| {
            let status = status(&ill);
            answer_h2(stream, status)
        })
    };
    let told = {
        let ill = ill.clone();
        Server::raw(move |mut stream| {
            let status = status(&ill);
            async move {
                // Nobody is behind a question of our own.
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    line.push(byte);
                }
                if line.starts_with(b"PROXY ") {
                    answer_h1(stream, status).await;
                }
            }
        })
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let stop = unix(&path, &ill);
    let tls = |http: &str| format!("tls = {{ danger_skip_verify = true, http = \"{http}\" }}");
    for (url, more) in [
        (format!("https://{}", only_h1.address), tls("auto")),
        (format!("https://{}", only_h1.address), tls("1.1")),
        (format!("https://{}", only_h2.address), tls("auto")),
        (format!("https://{}", only_h2.address), tls("2")),
        (format!("https://{}", either.address), tls("auto")),
        (format!("https://{}", either.address), tls("2")),
        (format!("h2c://{}", h2c.address), String::new()),
        (format!("http://{}", told.address), "proxy_protocol = \"v1\"".to_owned()),
        (format!("unix:{}", path.display()), String::new()),
    ] {
        ill.store(false, Ordering::SeqCst);
        let rig = Plan::toml(&format!(
            "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [\"{url}\"]\n{more}\n\
             [upstreams.app.health]\npath = \"/healthz\"\nevery = \"200ms\"\ntimeout = \"200ms\"\n"
        ))
        .start()
        .await;
        let series = format!("starlock_upstream_up{{upstream=\"app\",server=\"{url}\"}}");
        // The very first answer decides alone: a server that is up here and was never down was asked in the right way.
        for is_well in [false, true] {
            ill.store(!is_well, Ordering::SeqCst);
            rig.until(&url, |rig| rig.metric(&series) == i64::from(is_well)).await;
        }
    }
    stop.trigger();
}
