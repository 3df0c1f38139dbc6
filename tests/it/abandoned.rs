//! Uploads whose client leaves while the server, which took the connection, takes nothing and says nothing.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::rig::{Plan, Rig};
use crate::support::server::Server;

/// Far less than the minute that the server has for an answer, and more than a busy machine needs.
const SOON: Duration = Duration::from_secs(10);
/// Without a byte taken for so long, nobody takes any.
const QUIET: Duration = Duration::from_millis(1_000);

/// How much of the upload is under way when its client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// What everybody on the way has room for.
    Little,
    /// More than anybody takes.
    Stuck,
}

/// A server that takes connections by `kind` and nothing else.
fn deaf(kind: &str) -> Server {
    async fn hold<S>(stream: S) {
        std::future::pending::<()>().await;
        drop(stream);
    }
    async fn hold_h2<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let mut held = Vec::new();
        while let Some(Ok(asked)) = connection.accept().await {
            held.push(asked);
        }
    }
    match kind {
        "http" => Server::raw(hold),
        "h2c" => Server::raw(hold_h2),
        "https" => Server::tls(&["http/1.1"], hold),
        "https with h2" => Server::tls(&["h2"], hold_h2),
        _ => unreachable!(),
    }
}

async fn rig(server: &Server, kind: &str, by_tls: bool, rest: &str) -> Rig {
    let scheme = kind.split(' ').next().unwrap();
    let tls = if scheme == "https" { "tls = { danger_skip_verify = true }\n" } else { "" };
    let mut plan = Plan::toml(&format!(
        "routes = {{ \"a.test\" = \"app\" }}\n[upstreams.app]\nservers = [\"{scheme}://{}\"]\n{tls}{rest}",
        server.address
    ));
    if by_tls {
        plan.listen.https = Plan::tls().listen.https;
    }
    plan.start().await
}

/// Begins an upload by HTTP/1.1.
async fn begin(stream: &mut (impl AsyncWrite + Unpin), sent: Sent) {
    let head = "PUT /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![0; 16 * 1024];
    match sent {
        Sent::Little => {
            stream.write_all(&piece[..1000]).await.unwrap();
            stream.flush().await.unwrap();
        }
        Sent::Stuck => {
            while let Ok(written) = timeout(QUIET, stream.write(&piece)).await {
                written.unwrap();
            }
        }
    }
}

/// Begins an upload by HTTP/2; gives the stream to go on with.
async fn begin_h2(send: &mut h2::client::SendRequest<Bytes>, sent: Sent) -> h2::SendStream<Bytes> {
    let request = Request::put("https://a.test/up").body(()).unwrap();
    let (answer, mut body) = send.send_request(request, false).unwrap();
    // Dropping it would cancel the stream already.
    tokio::spawn(answer);
    match sent {
        Sent::Little => body.send_data(Bytes::from_static(&[0; 1000]), false).unwrap(),
        Sent::Stuck => loop {
            body.reserve_capacity(16 * 1024);
            let room = std::future::poll_fn(|cx| body.poll_capacity(cx));
            let Ok(Some(Ok(room))) = timeout(QUIET, room).await else { break };
            body.send_data(vec![0; room].into(), false).unwrap();
        },
    }
    body
}

async fn is_at(rig: &Rig, server: &Server) {
    rig.until("the request is at the server", |rig| rig.endpoint(server.address).in_flight() == 1).await;
}

/// Nothing is held for the client any more, soon from now on. A connection that carries many requests stays.
async fn is_let_go(rig: &Rig, server: &Server, kind: &str, what: &str) {
    let start = Instant::now();
    let endpoint = rig.endpoint(server.address);
    while endpoint.in_flight() > 0 || (!kind.ends_with("h2") && kind != "h2c" && endpoint.connections() > 0) {
        let held = (endpoint.in_flight(), endpoint.connections());
        assert!(start.elapsed() < SOON, "{what} to {kind}: {held:?} requests and connections are held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const KINDS: [&str; 4] = ["http", "https", "h2c", "https with h2"];

#[tokio::test]
async fn by_http2_everything_is_let_go_at_once_whatever_is_stuck() {
    for kind in KINDS {
        let server = deaf(kind);
        let rig = rig(&server, kind, true, "").await;
        for (sent, cancels) in
            [(Sent::Little, false), (Sent::Little, true), (Sent::Stuck, false), (Sent::Stuck, true)]
        {
            let (mut send, connection) = h2::client::handshake(rig.tls("a.test", "h2").await).await.unwrap();
            let running = tokio::spawn(connection);
            let mut body = begin_h2(&mut send, sent).await;
            is_at(&rig, &server).await;
            if cancels {
                body.send_reset(h2::Reason::CANCEL);
            } else {
                running.abort();
            }
            is_let_go(&rig, &server, kind, &format!("{sent:?}, cancels: {cancels}")).await;
            running.abort();
        }
    }
}

/// What each of them has sent when it leaves, and how it does: FIN is seen only if nothing stands before it.
const WAYS: [(Sent, bool); 3] = [(Sent::Little, false), (Sent::Little, true), (Sent::Stuck, true)];

#[tokio::test]
async fn by_http1_a_client_that_is_seen_to_leave_is_let_go_at_once() {
    for kind in KINDS {
        let server = deaf(kind);
        let (clear, tls) = (rig(&server, kind, false, "").await, rig(&server, kind, true, "").await);
        for (sent, resets) in WAYS {
            let mut client = TcpStream::connect(clear.http()).await.unwrap();
            begin(&mut client, sent).await;
            is_at(&clear, &server).await;
            if resets {
                client.set_zero_linger().unwrap();
            }
            drop(client);
            is_let_go(&clear, &server, kind, &format!("in clear, {sent:?}, resets: {resets}")).await;

            let mut client = tls.tls("a.test", "http/1.1").await;
            begin(&mut client, sent).await;
            is_at(&tls, &server).await;
            if resets {
                client.get_ref().0.set_zero_linger().unwrap();
            }
            drop(client);
            is_let_go(&tls, &server, kind, &format!("by TLS, {sent:?}, resets: {resets}")).await;
        }
    }
}

/// Its FIN stands behind what nobody takes; in the kernel of its own machine even, since our window is closed.
#[tokio::test]
async fn by_http1_what_a_client_left_behind_is_held_until_response_is_over() {
    for kind in ["http", "https"] {
        let server = deaf(kind);
        let rig = rig(&server, kind, false, "timeouts = { response = \"4s\" }").await;
        let mut client = TcpStream::connect(rig.http()).await.unwrap();
        begin(&mut client, Sent::Stuck).await;
        drop(client);
        is_let_go(&rig, &server, kind, "stuck").await;
        assert_eq!(rig.logged(|line| line["path"] == "/up").await["reason"], "upstream_timeout");
    }
}
