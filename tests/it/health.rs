//! Servers that are not well get no requests, and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use starlock::task;

use crate::support::rig::{Plan, Rig};
use crate::support::server::{Server, full};

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
        "balance = \"round_robin\"\nhealth = { path = \"/healthz\", every = \"50ms\", timeout = \"50ms\" }",
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
