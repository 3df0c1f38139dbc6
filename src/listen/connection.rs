//! One connection from handshake to end.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::gate::Permit;
use super::meter::{ReadMeter, WriteMeter};
use super::opening::{Ends, hello, prior_knowledge};
use super::prefixed::Prefixed;
use super::proxy_header;
use super::spec::{Limits, ListenTimeouts};
use super::watch::{Cause, InFlight, Stream, Verdict, Watch};
use super::worker::{Endpoint, Worker};
use crate::conn::{Alpn, AnswerBody, ConnInfo, RequestLimits, Service, Tunnel};
use crate::task;
use crate::telemetry::Gauge;
use crate::tls::HandshakeError;

/// HTTP/1 reads and writes through buffers of at most this size.
const H1_BUFFER: usize = 64 * 1024;
/// A window for each stream, and a larger one for the connection: equal ones let one stalled upload block all others.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Of each stream; h2's default of 400 KiB makes 100 stalled streams cost 40 MiB.
const H2_SEND_BUFFER: usize = 64 * 1024;
const H2_PING: Duration = Duration::from_secs(30);
const H2_PONG: Duration = Duration::from_secs(20);

/// What a connection is held to: as configured when it was accepted.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) timeouts: ListenTimeouts,
    pub(super) limits: Limits,
    /// Over all listeners.
    pub(super) connections: usize,
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
    mut stream: TcpStream,
    peer: SocketAddr,
    settings: Arc<Settings>,
    mut permit: Permit,
) {
    let Ok(local) = stream.local_addr() else { return };
    // Answers must not wait for acknowledgements; a socket that cannot do it still works.
    let _ = stream.set_nodelay(true);
    let watch = Watch::new(settings.timeouts);
    let _registered = worker.register(&watch);
    let deadline = Instant::now() + settings.timeouts.handshake;
    let mut ends = Ends::new(peer, local);
    if settings.is_balancer(peer) {
        match timeout_at(deadline, proxy_header::receive(&mut stream)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(said))) => {
                ends = Ends::new(said.source, said.destination);
                if !permit.count(ends.peer.ip(), settings.limits.connections_per_ip) {
                    return worker.reject("connections_per_ip");
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "a connection without a good PROXY header");
                return worker.reject("proxy_protocol");
            }
            Err(_) => return worker.reject("proxy_protocol"),
        }
    }
    let limits = RequestLimits { uri: settings.limits.uri, fields: settings.limits.header_fields };
    let mut info = ConnInfo { peer: ends.peer, local: ends.local, tls: None, limits };
    if !endpoint.tls {
        let mut head = Bytes::new();
        if settings.h2c {
            let opening = Box::pin(prior_knowledge(&mut stream, &watch));
            let Ok((h2, read)) = attend(&watch, opening).await else { return };
            head = read;
            if h2 {
                let io = WriteMeter::new(Prefixed::new(head, stream), watch.clone());
                return http2(&worker, &endpoint.open_h2, io, info, &watch, &settings.limits).await;
            }
        }
        let io = WriteMeter::new(Prefixed::new(head, stream), watch.clone());
        return http1(&worker, &endpoint.open_h1, io, info, &watch, &settings.limits).await;
    }
    let mut head = Bytes::new();
    if worker.service.passes_through() {
        let Ok((name, read)) = timeout_at(deadline, hello(&mut stream)).await else {
            return worker.handshake("timeout");
        };
        if let Some(tunnel) = name.and_then(|name| worker.service.pass_through(&name, &info)) {
            worker.handshake("passed_through");
            let _open = Open::new(&endpoint.open_tunnels);
            return tunnel.run(stream, read).await;
        }
        head = read;
    }
    let io = WriteMeter::new(Prefixed::new(head, stream), watch.clone());
    let handshake = Box::pin(worker.shared.tls.accept(io, ends.local));
    let accepted = match timeout_at(deadline, handshake).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            worker.handshake(error.result());
            match error {
                HandshakeError::Validated(name) => {
                    tracing::info!(%name, client = %info.peer.ip(), "answered a tls-alpn-01 request");
                }
                error => tracing::debug!(peer = %info.peer, %error, "no handshake"),
            }
            return;
        }
        Err(_) => return worker.handshake("timeout"),
    };
    worker.handshake("ok");
    let alpn = accepted.info.alpn;
    info.tls = Some(accepted.info);
    match alpn {
        Alpn::Http1 => {
            http1(&worker, &endpoint.open_h1, accepted.stream, info, &watch, &settings.limits).await;
        }
        Alpn::Http2 => {
            http2(&worker, &endpoint.open_h2, accepted.stream, info, &watch, &settings.limits).await;
        }
    }
}

async fn http1<S: Service, IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: &Worker<S>,
    open: &Gauge,
    io: IO,
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
            let mut response = service.call(request, info).await;
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
    let io = TokioIo::new(ReadMeter::new(io, watch.clone()));
    let mut connection = builder.serve_connection(io, service);
    let end = drive(Pin::new(&mut connection), watch, |connection| connection.graceful_shutdown()).await;
    if matches!(end, End::Http(Ok(()))) {
        let parts = connection.into_parts();
        let mut io = parts.io.into_inner();
        match tunnel.take() {
            Some(tunnel) => tunnel.run(io.into_inner(), unshared(&parts.read_buf)).await,
            // After a request that asked for an upgrade and did not get it, HTTP leaves closing to us.
            None => drop(attend(watch, Box::pin(io.shutdown())).await),
        }
    }
    worker.ended(&end, &info);
}

/// A copy, so that a few bytes that came early do not hold a whole buffer as long as a tunnel lives.
fn unshared(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

async fn http2<S: Service, IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: &Worker<S>,
    open: &Gauge,
    io: IO,
    info: ConnInfo,
    watch: &Rc<Watch>,
    limits: &Limits,
) {
    let _open = Open::new(open);
    watch.begin(false);
    let info = Rc::new(info);
    let streams = Streams::default();
    let newest = streams.newest.clone();
    let service = service_fn(|mut request: Request<Incoming>| {
        let request_in_flight = watch.request();
        if is_grpc(request.headers()) {
            watch.keep();
        }
        let upgrade = (request.method() == Method::CONNECT)
            .then(|| (hyper::upgrade::on(&mut request), watch.request()));
        let stream = watch.add_stream();
        newest.set(Some(stream.clone()));
        let (service, info) = (worker.service.clone(), info.clone());
        // Removes the stream when the client resets it before there is an answer, too.
        let listed = Listed { watch: watch.clone(), stream };
        // Boxed: on its way into a task it would be copied several times.
        Box::pin(async move {
            let mut response = service.call(request, info).await;
            if let Some((upgrade, in_flight)) = upgrade
                && let Some(tunnel) = response.body_mut().take_tunnel()
            {
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
        .max_send_buf_size(H2_SEND_BUFFER)
        // WebSocket comes by extended CONNECT (RFC 8441).
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(limits.header).unwrap_or(u32::MAX))
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PONG);
    let io = TokioIo::new(ReadMeter::new(io, watch.clone()));
    let connection = pin!(builder.serve_connection(io, service));
    let end = drive(connection, watch, |connection| connection.graceful_shutdown()).await;
    worker.ended(&end, &info);
}

/// Whether a request belongs to a gRPC channel, which its client keeps open for the next call, however long that takes.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// How a connection ended.
pub(super) enum End {
    /// By HTTP's rules, or by the client.
    Http(hyper::Result<()>),
    /// By our clock.
    Clock(Cause),
}

/// Polls a connection to its end, under the deadlines of `watch`. One timer serves them all, and requests never move it.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    watch: &Watch,
    shut_down: impl Fn(Pin<&mut C>),
) -> End {
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut shut = false;
    poll_fn(|cx| {
        watch.register(cx);
        if let Poll::Ready(end) = connection.as_mut().poll(cx) {
            return Poll::Ready(End::Http(end));
        }
        if watch.must_look() {
            timer.as_mut().reset(Instant::now());
        }
        while timer.as_mut().poll(cx).is_ready() {
            match watch.look(Instant::now()) {
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

/// Runs the streams of one HTTP/2 connection on the worker's thread, and ends those that stall.
#[derive(Clone, Default)]
struct Streams {
    /// The stream of the last request: hyper calls the service and hands over the stream's future at one go.
    newest: Rc<std::cell::Cell<Option<Rc<Stream>>>>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        let stream = self.newest.take();
        task::spawn_local(async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                if stream.as_ref().is_some_and(|stream| stream.must_end(cx)) {
                    // Dropping it resets the stream and leaves the connection alone.
                    return Poll::Ready(());
                }
                future.as_mut().poll(cx)
            })
            .await;
        });
    }
}

/// A stream in its connection's list.
struct Listed {
    watch: Rc<Watch>,
    stream: Rc<Stream>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.watch.remove_stream(&self.stream);
    }
}

/// An answer's body that tells the connection's watch how it fares.
struct Answer<B> {
    inner: B,
    listed: Option<Listed>,
    _in_flight: InFlight,
}

impl<B> Answer<B> {
    fn new(inner: B, in_flight: InFlight, listed: Option<Listed>) -> Self {
        Self { inner, listed, _in_flight: in_flight }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        if let Some(Listed { stream, .. }) = &this.listed {
            match &polled {
                Poll::Ready(Some(Ok(_))) => stream.offered(),
                _ => stream.asked(),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
