//! One connection from handshake to end.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::answer::{Answer, Streams};
use super::cork::{Corked, Uncorked};
use super::gate::Permit;
use super::meter::{ReadMeter, WriteMeter};
use super::opening::{Ends, NOT_CLEAR, first, hello, is_clear_http, prior_knowledge};
use super::prefixed::Prefixed;
use super::proxy_header;
use super::spec::{Limits, ListenTimeouts};
use super::stream::SEND_BUFFER;
use super::watch::{Cause, Verdict, Watch};
use super::wire::Wire;
use super::worker::{Endpoint, Worker};
use crate::conn::{Alpn, AnswerBody, ConnInfo, Introduced, RequestLimits, Service, Tunnel, is_grpc_type};
use crate::task;
use crate::telemetry::Gauge;
use crate::tls::HandshakeError;

/// HTTP/1 reads and writes through buffers of at most this size.
const H1_BUFFER: usize = 64 * 1024;
/// A window for each stream, and a larger one for the connection: equal ones let one stalled upload block all others.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How often a client is looked at that nobody listens to.
const DEAF: Duration = Duration::from_secs(1);
const H2_PING: Duration = Duration::from_secs(30);
const H2_PONG: Duration = Duration::from_secs(20);

/// What a connection is held to: as configured when it was accepted.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) timeouts: ListenTimeouts,
    pub(super) limits: Limits,
    /// Peers that say who their client is.
    pub(super) proxy_protocol: Box<[IpNet]>,
    /// Whether HTTP/2 may begin without TLS.
    pub(super) h2c: bool,
}

impl Settings {
    /// Whether connections of `peer` begin with a PROXY header.
    pub(super) fn is_balancer(&self, peer: SocketAddr) -> bool {
        let address = peer.ip().to_canonical();
        self.proxy_protocol.iter().any(|net| net.contains(&address))
    }
}

/// Serves an accepted connection to its end.
pub(super) async fn serve<S: Service>(
    worker: Rc<Worker<S>>,
    endpoint: Rc<Endpoint>,
    stream: TcpStream,
    peer: SocketAddr,
    settings: Arc<Settings>,
    mut permit: Permit,
) {
    let watch = Watch::new(settings.timeouts, &worker.shared.load, &worker.line);
    let _registered = worker.register(&watch);
    // Each part in a box of its own: while a connection waits for its next request, it keeps no room for how it began or may end.
    let opened = Box::pin(open(&worker, &endpoint, stream, peer, &settings, &mut permit, &watch)).await;
    let (worker, limits) = (&*worker, &settings.limits);
    match opened {
        None => {}
        Some((info, wire, io, Alpn::Http1)) => {
            Box::pin(http1(worker, &endpoint.open_h1, io, &wire, info, &watch, limits)).await;
        }
        Some((info, _, io, Alpn::Http2)) => {
            Box::pin(http2(worker, &endpoint.open_h2, io, info, &watch, limits)).await;
        }
    }
}

/// The socket, behind what was read of it already.
type Clear = WriteMeter<Prefixed<Wire>>;

/// What HTTP begins on.
type Stream = Either<Clear, Box<TlsStream<Clear>>>;

/// Opens a connection: PROXY header, handshake. `None`: there is nothing left to do on it.
async fn open<S: Service>(
    worker: &Worker<S>,
    endpoint: &Endpoint,
    mut stream: TcpStream,
    peer: SocketAddr,
    settings: &Settings,
    permit: &mut Permit,
    watch: &Rc<Watch>,
) -> Option<(ConnInfo, Wire, Stream, Alpn)> {
    let local = stream.local_addr().ok()?;
    // Answers must not wait for acknowledgements; a socket that cannot do it still works.
    let _ = stream.set_nodelay(true);
    let deadline = Instant::now() + settings.timeouts.handshake;
    let mut ends = Ends::new(peer, local);
    if settings.is_balancer(peer) {
        match timeout_at(deadline, proxy_header::receive(&mut stream)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(said))) => {
                ends = Ends::new(said.source, said.destination);
                if !permit.count(ends.peer.ip(), settings.limits.connections_per_ip) {
                    worker.reject("connections_per_ip");
                    return None;
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "a connection without a good PROXY header");
                worker.reject("proxy_protocol");
                return None;
            }
            Err(_) => {
                worker.reject("proxy_protocol");
                return None;
            }
        }
    }
    let mut info = ConnInfo {
        peer: ends.peer,
        local: ends.local,
        tls: None,
        limits: RequestLimits { uri: settings.limits.uri, fields: settings.limits.header_fields },
        load: worker.shared.load.clone(),
        introduced: Introduced::default(),
    };
    if !endpoint.tls {
        let (mut alpn, mut head) = (Alpn::Http1, Bytes::new());
        if settings.h2c {
            let opening = Box::pin(prior_knowledge(&mut stream, watch));
            let (h2, read) = attend(watch, opening).await.ok()?;
            head = read;
            if h2 {
                alpn = Alpn::Http2;
            }
        }
        let wire = Wire::new(stream);
        let io = WriteMeter::new(Prefixed::new(head, wire.clone()), watch.clone());
        return Some((info, wire, Stream::Left(io), alpn));
    }
    let opening = async {
        match worker.service.passes_through() {
            true => hello(&mut stream).await,
            false => (None, first(&mut stream).await),
        }
    };
    let Ok((name, head)) = timeout_at(deadline, opening).await else {
        worker.handshake("timeout");
        return None;
    };
    if let Some(tunnel) = name.and_then(|name| worker.service.pass_through(&name, &info)) {
        worker.handshake("passed_through");
        let _open = Open::new(&endpoint.open_tunnels);
        tunnel.run(stream, head).await;
        return None;
    }
    if is_clear_http(&head) {
        worker.handshake("protocol");
        tracing::debug!(peer = %info.peer, "HTTP without TLS on an HTTPS port");
        let mut io = ReadMeter::new(WriteMeter::new(stream, watch.clone()), watch.clone());
        if let Ok(Ok(())) = timeout_at(deadline, io.write_all(NOT_CLEAR)).await {
            drop(attend(watch, Box::pin(io.shutdown())).await);
        }
        return None;
    }
    let wire = Wire::new(stream);
    let io = WriteMeter::new(Prefixed::new(head, wire.clone()), watch.clone());
    let handshake = worker.shared.tls.accept(io, ends.local);
    match timeout_at(deadline, handshake).await {
        Ok(Ok(accepted)) => {
            worker.handshake("ok");
            let alpn = accepted.info.alpn;
            info.tls = Some(accepted.info);
            Some((info, wire, Stream::Right(Box::new(accepted.stream)), alpn))
        }
        Ok(Err(error)) => {
            worker.handshake(error.result());
            match error {
                HandshakeError::Validated(name) => {
                    tracing::info!(%name, client = %info.peer.ip(), "answered a tls-alpn-01 request");
                }
                error => tracing::debug!(peer = %info.peer, %error, "no handshake"),
            }
            None
        }
        Err(_) => {
            worker.handshake("timeout");
            None
        }
    }
}

async fn http1<S: Service, IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: &Worker<S>,
    open: &Gauge,
    stream: IO,
    wire: &Wire,
    info: ConnInfo,
    watch: &Rc<Watch>,
    limits: &Limits,
) {
    let _open = Open::new(open);
    watch.begin(true);
    let info = Rc::new(info);
    let tunnel = Cell::new(None);
    let service = service_fn(|request| {
        let request_in_flight = watch.request();
        let (service, info) = (worker.service.clone(), info.clone());
        let tunnel = &tunnel;
        // Boxed: a connection that waits for its next request keeps no room for one.
        Box::pin(async move {
            let mut response = match request_in_flight.fits() {
                true => service.call(request, info).await,
                false => service.shed(request, info),
            };
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                tunnel.set(response.body_mut().take_tunnel());
            } else if watch.is_draining() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, request_in_flight, None)))
        })
    });
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits.header_fields)
        .max_header_size(limits.header)
        .max_buf_size(H1_BUFFER.max(limits.header))
        // Its header time-out is also its keep-alive timer; ours are apart.
        .header_read_timeout(None)
        .keep_alive(!watch.is_draining());
    let io = TokioIo::new(ReadMeter::new(stream, watch.clone()));
    let mut connection = builder.serve_connection(io, service);
    let end =
        drive(Pin::new(&mut connection), watch, Some(wire), |connection| connection.graceful_shutdown())
            .await;
    if matches!(end, End::Http(Ok(()))) {
        let parts = connection.into_parts();
        Box::pin(leave(parts.io.into_inner(), unshared(&parts.read_buf), tunnel.take(), watch)).await;
    }
    worker.ended(&end, &info);
}

/// What becomes of a connection when HTTP/1.1 is done with it, `read` ahead of its end.
async fn leave<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    mut io: ReadMeter<IO>,
    read: Bytes,
    tunnel: Option<impl Tunnel>,
    watch: &Watch,
) {
    match tunnel {
        Some(tunnel) => {
            watch.tunnel();
            tunnel.run(io.into_inner(), read).await;
        }
        // After a request that asked for an upgrade and did not get it, HTTP leaves closing to us.
        None => drop(attend(watch, Box::pin(io.shutdown())).await),
    }
}

/// A copy, so that a few bytes that came early do not hold a whole buffer as long as a tunnel lives.
fn unshared(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

async fn http2<S: Service, IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: &Worker<S>,
    open: &Gauge,
    stream: IO,
    info: ConnInfo,
    watch: &Rc<Watch>,
    limits: &Limits,
) {
    let _open = Open::new(open);
    watch.begin(false);
    let info = Rc::new(info);
    let streams = Streams::new(watch.clone());
    let beginning = streams.clone();
    let service = service_fn(|mut request: Request<Incoming>| {
        let request_in_flight = watch.request();
        let upgrade = (request.method() == Method::CONNECT)
            .then(|| (hyper::upgrade::on(&mut request), watch.request()));
        let (service, info) = (worker.service.clone(), info.clone());
        // Removes the stream when the client resets it before there is an answer, too.
        let listed = beginning.begin();
        // Boxed: on its way into a task it would be copied several times.
        Box::pin(async move {
            let mut response = match request_in_flight.fits() {
                true => service.call(request, info).await,
                false => service.shed(request, info),
            };
            if is_grpc(&response) {
                request_in_flight.watch().keep();
            }
            if let Some((upgrade, in_flight)) = upgrade
                && let Some(tunnel) = response.body_mut().take_tunnel()
            {
                request_in_flight.watch().forget_windows();
                task::spawn_local(async move {
                    let _in_flight = in_flight;
                    // It fails when the client has left.
                    if let Ok(io) = upgrade.await {
                        tunnel.run(TokioIo::new(io), Bytes::new()).await;
                    }
                });
            }
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, request_in_flight, Some(listed))))
        })
    });
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_concurrent_streams(limits.h2_streams)
        .max_send_buf_size(SEND_BUFFER)
        // WebSocket comes by extended CONNECT (RFC 8441).
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(limits.header).unwrap_or(u32::MAX))
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PONG);
    let stream = Corked::new(stream);
    let io = TokioIo::new(ReadMeter::http2(stream.clone(), watch.clone()));
    let connection = pin!(builder.serve_connection(io, service));
    let connection = pin!(Uncorked { connection, stream });
    let end =
        drive(connection, watch, None, |mut uncorked| uncorked.connection.as_mut().graceful_shutdown()).await;
    watch.end();
    worker.ended(&end, &info);
}

/// Whether an answer shows that this is a gRPC channel, which its client keeps open for the next call, however long that takes. A
/// status in the head is a call that was refused: anybody can have that.
fn is_grpc<B>(response: &Response<B>) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    response.status() == StatusCode::OK
        && kind.is_some_and(is_grpc_type)
        && !response.headers().contains_key("grpc-status")
}

/// How a connection ended.
pub(super) enum End {
    /// By HTTP's rules, or by the client.
    Http(hyper::Result<()>),
    /// By our clock.
    Clock(Cause),
}

/// Polls a connection to its end, under the deadlines of `watch`. One timer serves them all, and requests never move it. While HTTP
/// does not listen to the client, `wire` tells whether it is still there; HTTP/2 always listens.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    watch: &Watch,
    wire: Option<&Wire>,
    shut_down: impl Fn(Pin<&mut C>),
) -> End {
    let mut timer = pin!(sleep_until(Instant::now()));
    let (mut shut, mut deaf) = (false, false);
    poll_fn(|cx| {
        watch.register(cx);
        if let Poll::Ready(end) = connection.as_mut().poll(cx) {
            return Poll::Ready(End::Http(end));
        }
        let wire = wire.filter(|_| watch.is_deaf());
        if watch.must_look() {
            timer.as_mut().reset(Instant::now());
        } else if wire.is_some() && !deaf {
            let soon = Instant::now() + DEAF;
            if soon < timer.deadline() {
                timer.as_mut().reset(soon);
            }
        }
        deaf = wire.is_some();
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if wire.is_some_and(Wire::is_broken) {
                return Poll::Ready(End::Clock(Cause::Broken));
            }
            match watch.look(now) {
                Verdict::Wait(next) if deaf => timer.as_mut().reset(next.min(now + DEAF)),
                Verdict::Wait(next) => timer.as_mut().reset(next),
                Verdict::Close(cause) => return Poll::Ready(End::Clock(cause)),
                Verdict::Shut if shut => return Poll::Ready(End::Clock(Cause::Lingered)),
                Verdict::Shut => {
                    shut = true;
                    watch.shut();
                    shut_down(connection.as_mut());
                    if let Poll::Ready(end) = connection.as_mut().poll(cx) {
                        return Poll::Ready(End::Http(end));
                    }
                    timer.as_mut().reset(Instant::now());
                }
            }
        }
        Poll::Pending
    })
    .await
}

/// Waits for `future` under the deadlines of `watch`, as for a first request. Errors if they are over, or the process shuts down.
async fn attend<F: Future + Unpin>(watch: &Watch, mut future: F) -> Result<F::Output, ()> {
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        watch.register(cx);
        if let Poll::Ready(output) = Pin::new(&mut future).poll(cx) {
            return Poll::Ready(Ok(output));
        }
        if watch.must_look() {
            timer.as_mut().reset(Instant::now());
        }
        while timer.as_mut().poll(cx).is_ready() {
            match watch.look(Instant::now()) {
                Verdict::Wait(next) => timer.as_mut().reset(next),
                Verdict::Shut | Verdict::Close(_) => return Poll::Ready(Err(())),
            }
        }
        Poll::Pending
    })
    .await
}

/// Counts an open connection.
struct Open<'a>(&'a Gauge);

impl<'a> Open<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use http_body::{Body, Frame, SizeHint};
    use tokio::io::{AsyncReadExt, duplex};
    use tokio::task::LocalSet;

    use super::super::frames::PREFACE;
    use super::super::gate::Gate;
    use super::super::worker::Shared;
    use super::*;
    use crate::conn::{Load, RequestLimits};
    use crate::telemetry::Metrics;
    use crate::tls::{TlsServer, cert_store};

    /// A service that is never asked.
    struct Nobody;
    struct Nothing;
    enum Nowhere {}

    impl Service for Nobody {
        type Body = Nothing;

        async fn call(self: Rc<Self>, _request: Request<Incoming>, _conn: Rc<ConnInfo>) -> Response<Nothing> {
            Response::new(Nothing)
        }

        fn shed(self: Rc<Self>, _request: Request<Incoming>, _conn: Rc<ConnInfo>) -> Response<Nothing> {
            Response::new(Nothing)
        }
    }

    impl Body for Nothing {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(None)
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(0)
        }
    }

    impl AnswerBody for Nothing {
        type Tunnel = Nowhere;

        fn take_tunnel(&mut self) -> Option<Nowhere> {
            None
        }
    }

    impl Tunnel for Nowhere {
        async fn run<IO>(self, _io: IO, _read: Bytes)
        where
            IO: AsyncRead + AsyncWrite + Unpin + 'static,
        {
            let room = [0_u8; 8192];
            std::future::pending::<()>().await;
            std::hint::black_box(&room);
        }
    }

    fn worker(timeouts: ListenTimeouts) -> Rc<Worker<Nobody>> {
        let (_publisher, reader) = cert_store();
        let settings =
            Settings { timeouts, limits: Limits::default(), proxy_protocol: [].into(), h2c: false };
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings),
            gate: Arc::new(Gate::new(1)),
            load: Arc::new(Load::default()),
            workers: 1,
            tls: TlsServer::new(reader).unwrap(),
            metrics: Metrics::new("test"),
        });
        Worker::new(shared, Nobody)
    }

    fn info() -> ConnInfo {
        let address = ([192, 0, 2, 1], 1).into();
        let limits = RequestLimits { uri: 1, fields: 1 };
        let (load, introduced) = (Arc::default(), Introduced::default());
        ConnInfo { peer: address, local: address, tls: None, limits, load, introduced }
    }

    /// Thousands of connections wait for a next request: their futures hold HTTP's own state and nearly nothing else.
    #[tokio::test]
    async fn a_connection_that_waits_keeps_no_room_for_its_beginning_and_end() {
        let (worker, watch, limits) =
            (worker(ListenTimeouts::default()), Watch::alone(ListenTimeouts::default()), Limits::default());
        let (open, end) = (Gauge::default(), || duplex(1).0);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let h1 = http1(&worker, &open, end(), &wire, info(), &watch, &limits);
        let h2 = http2(&worker, &open, end(), info(), &watch, &limits);
        for (future, most) in [(size_of_val(&h1), 2048), (size_of_val(&h2), 3072)] {
            assert!(future < most, "{future} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_no_ping_is_gone() {
        let timeouts = ListenTimeouts { idle: 20 * H2_PING, ..Default::default() };
        let (worker, info, limits) = (worker(timeouts), info(), Limits::default());
        let watch = Watch::new(timeouts, &info.load, &worker.line);
        let (mut near, far) = duplex(64 * 1024);
        let begin = Instant::now();
        let client = async {
            near.write_all(PREFACE).await.unwrap();
            near.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let (mut seen, mut pinged) = (Vec::new(), None);
            while near.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {
                while let [a, b, c, kind, ..] = seen[..] {
                    let length = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
                    if kind == 6 {
                        pinged = pinged.or(Some(begin.elapsed()));
                    }
                    seen.drain(..length.min(seen.len()));
                }
            }
            pinged
        };
        let open = Gauge::default();
        let serve = async {
            http2(&worker, &open, Box::new(far), info, &watch, &limits).await;
            begin.elapsed()
        };
        let (pinged, ended) = LocalSet::new().run_until(async { tokio::join!(client, serve) }).await;
        let about =
            |time: Duration, wanted: Duration| time >= wanted && time < wanted + Duration::from_secs(1);
        let linger = Duration::from_secs(2);
        assert!(pinged.is_some_and(|at| about(at, H2_PING)), "{pinged:?}");
        assert!(about(ended, H2_PING + H2_PONG + linger), "{ended:?}");
    }

    #[test]
    fn a_grpc_channel_is_known_by_its_answers() {
        for (status, kind, refused, grpc) in [
            (200, "application/grpc", false, true),
            (200, "application/grpc+proto", false, true),
            (200, "application/grpc;x", false, true),
            (200, "application/grpc", true, false),
            (404, "application/grpc", false, false),
            (200, "application/grpc-web", false, false),
            (200, "application/grpcx", false, false),
            (200, "text/plain", false, false),
        ] {
            let mut response = Response::builder().status(status).header(CONTENT_TYPE, kind);
            if refused {
                response = response.header("grpc-status", "12");
            }
            assert_eq!(is_grpc(&response.body(()).unwrap()), grpc, "{status} {kind} {refused}");
        }
    }
}
