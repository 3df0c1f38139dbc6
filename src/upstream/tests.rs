//! Exchanges with servers that this file plays itself.

use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Exchange, ExchangeLimits, Failure, Pool, Pools, ResponseBody, Upload};
use crate::balance::{ServerHost, ServerSpec, UpstreamSpec, UpstreamTimeouts, Upstreams};
use crate::resolver::Hosts;
use crate::telemetry::Metrics;

/// Runs `test` on a runtime like a worker's.
fn on_worker(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.unwrap() });
}

/// Plays the server of one connection.
fn play<Fut: Future<Output = ()> + 'static>(
    listener: TcpListener,
    server: impl FnOnce(TcpStream) -> Fut + 'static,
) {
    crate::task::spawn_local(async move {
        let (stream, _) = listener.accept().await.unwrap();
        server(stream).await;
    });
}

fn pool_to(spec: ServerSpec) -> Rc<Pool> {
    let upstream = UpstreamSpec::new("a", vec![spec], UpstreamTimeouts::default());
    let upstreams = Upstreams::build(&[upstream], None, &Metrics::new("0"));
    let endpoint = upstreams.unwrap().endpoints().next().unwrap();
    Pools::new(8, Hosts::system(), super::client_tls().1).to(&endpoint)
}

/// Sends the request that `text` is through `pool`, as a worker does.
async fn send(pool: &Rc<Pool>, text: &'static str) -> Result<Response<ResponseBody>, Failure> {
    let (mut client, server) = tokio::io::duplex(4096);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let (pool, sender) = (pool.clone(), std::cell::Cell::new(Some(sender)));
    client.write_all(text.as_bytes()).await.unwrap();
    let service = service_fn(move |request: Request<Incoming>| {
        let limits = ExchangeLimits {
            timeouts: UpstreamTimeouts::default(),
            body_timeout: Duration::from_secs(10),
            max_body: None,
        };
        let exchange = Rc::new(Exchange::new(limits));
        let upload = |body| Upload::new(body, false, &std::sync::Arc::default(), |_| ());
        let request = Box::new(request.map(|body| upload(body).body(exchange.clone())));
        let (pool, sender) = (pool.clone(), sender.take());
        async move {
            let answered = pool.send(&exchange, request).await;
            drop(sender.unwrap().send(answered));
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    crate::task::spawn_local(async move {
        drop(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await,
        );
        drop(client);
    });
    receiver.await.unwrap()
}

#[test]
fn a_connection_that_switches_is_handed_over_with_what_was_read_ahead() {
    on_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        play(listener, |mut stream| async move {
            let mut head = vec![0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            assert!(head[..n].windows(16).any(|w| w == b"upgrade: chatter"));
            let answer =
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chatter\r\n\r\nhello";
            stream.write_all(answer).await.unwrap();
            let mut said = [0; 3];
            stream.read_exact(&mut said).await.unwrap();
            stream.write_all(&said).await.unwrap();
            assert_eq!(stream.read(&mut said).await.unwrap(), 0, "dropping it closes the connection");
            stream.write_all(b"late").await.ok();
        });
        let pool = pool_to(ServerSpec::new(ServerHost::Ip(address.ip()), address.port()));
        let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chatter\r\n\r\n";
        let mut response = send(&pool, request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut stream = response.body_mut().switched().unwrap().await.unwrap();
        assert!(response.body_mut().switched().is_none(), "there is one connection");
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        stream.write_all(b"abc").await.unwrap();
        stream.read_exact(&mut heard[..3]).await.unwrap();
        assert_eq!(&heard[..3], b"abc");
    });
}

/// The end of an answer that its client does not want is still on the way to it when the connection has the next request.
#[test]
fn giving_up_an_answer_leaves_the_next_exchange_of_its_connection_alone() {
    on_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, hears) = tokio::sync::oneshot::channel();
        let (go, goes) = tokio::sync::oneshot::channel::<()>();
        play(listener, |mut stream| async move {
            let mut head = vec![0; 1024];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none").await.unwrap();
            assert!(stream.read(&mut head).await.unwrap() > 0);
            heard.send(()).unwrap();
            goes.await.unwrap();
            stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        });
        let pool = pool_to(ServerSpec::new(ServerHost::Ip(address.ip()), address.port()));
        let first = send(&pool, "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        while pool.idle() == 0 {
            tokio::task::yield_now().await;
        }
        let meanwhile = async {
            hears.await.unwrap();
            drop(first);
            // Whoever drives the connection has time to end it.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            go.send(()).unwrap();
        };
        let (second, ()) = tokio::join!(send(&pool, "GET /2 HTTP/1.1\r\nhost: a\r\n\r\n"), meanwhile);
        assert_eq!(second.unwrap().status(), StatusCode::CREATED);
    });
}

#[test]
fn a_refused_upgrade_is_an_answer_like_any_other() {
    on_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        play(listener, |mut stream| async move {
            // Both on one connection: it was not spoilt.
            for _ in 0..2 {
                let mut head = vec![0; 1024];
                assert!(stream.read(&mut head).await.unwrap() > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        });
        let pool = pool_to(ServerSpec::new(ServerHost::Ip(address.ip()), address.port()));
        let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chatter\r\n\r\n";
        for _ in 0..2 {
            let mut response = send(&pool, request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert!(response.body_mut().switched().is_none());
        }
    });
}
