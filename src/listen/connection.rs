//! One connection from handshake to end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::gate::Permit;
use super::meter::{ReadMeter, WriteMeter};
use super::spec::{Limits, ListenTimeouts};
use super::watch::{Cause, InFlight, Stream, Verdict, Watch};
use super::worker::{Endpoint, Worker};
use crate::conn::{Alpn, ConnInfo, RequestLimits, Service};
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
}

/// Serves an accepted connection to its end.
pub(super) async fn serve<S: Service>(
    worker: Rc<Worker<S>>,
    endpoint: Rc<Endpoint>,
    stream: TcpStream,
    peer: SocketAddr,
    settings: std::sync::Arc<Settings>,
    _permit: Permit,
) {
    let Ok(local) = stream.local_addr() else { return };
    // Answers must not wait for acknowledgements; a socket that cannot do it still works.
    let _ = stream.set_nodelay(true);
    let watch = Watch::new(settings.timeouts);
    let _registered = worker.register(&watch);
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (peer, local) = (canonical(peer), canonical(local));
    let limits = RequestLimits { uri: settings.limits.uri, fields: settings.limits.header_fields };
    let io = WriteMeter::new(stream, watch.clone());
    if !endpoint.tls {
        let info = ConnInfo { peer, local, tls: None, limits };
        return http1(&worker, &endpoint.open_h1, io, info, &watch, &settings.limits).await;
    }
    let handshake = Box::pin(worker.shared.tls.accept(io, local));
    let result = timeout(settings.timeouts.handshake, handshake).await;
    let accepted = match result {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            worker.handshake(error.result());
            match error {
                HandshakeError::Validated(name) => {
                    tracing::info!(%name, client = %peer.ip(), "answered a tls-alpn-01 request");
                }
                error => tracing::debug!(%peer, %error, "no handshake"),
            }
            return;
        }
        Err(_) => return worker.handshake("timeout"),
    };
    worker.handshake("ok");
    let alpn = accepted.info.alpn;
    let info = ConnInfo { peer, local, tls: Some(accepted.info), limits };
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
    let service = service_fn(|request| {
        let request_in_flight = watch.request();
        let answer = worker.service.clone().call(request, info.clone());
        async move {
            let mut response = answer.await.map(|body| Answer::new(body, request_in_flight, None));
            if watch.is_draining() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
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
    let connection = pin!(builder.serve_connection(io, service));
    let end = drive(connection, watch, |connection| connection.graceful_shutdown()).await;
    worker.ended(&end, &info);
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
    let service = service_fn(|request: Request<Incoming>| {
        let request_in_flight = watch.request();
        let stream = watch.add_stream();
        newest.set(Some(stream.clone()));
        let answer = worker.service.clone().call(request, info.clone());
        // Removes the stream when the client resets it before there is an answer, too.
        let listed = Listed { watch: watch.clone(), stream };
        async move {
            Ok::<_, Infallible>(answer.await.map(|body| Answer::new(body, request_in_flight, Some(listed))))
        }
    });
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_concurrent_streams(limits.h2_streams)
        .max_send_buf_size(H2_SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.header).unwrap_or(u32::MAX))
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PONG);
    let io = TokioIo::new(ReadMeter::new(io, watch.clone()));
    let connection = pin!(builder.serve_connection(io, service));
    let end = drive(connection, watch, |connection| connection.graceful_shutdown()).await;
    worker.ended(&end, &info);
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
