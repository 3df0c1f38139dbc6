//! Two connections that have become one: bytes both ways until both have ended.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::passthrough::Passage;
use super::record::Record;
use crate::balance::InFlight;
use crate::conn;
use crate::upstream::ServerStream;

/// What is read at a time. It lies on the stack: a tunnel that is idle holds no buffer, one whose reader is slow holds at most
/// this much in each direction.
const PIECE: usize = 16 * 1024;
/// When one side has ended, the other one may be silent this long, or as long as a tunnel may be if that is shorter.
const HALF_OPEN: Duration = Duration::from_secs(60);

/// What becomes of a client's connection that is not HTTP any more, or never was.
#[derive(Debug)]
pub struct Tunnel(Kind);

#[derive(Debug)]
enum Kind {
    Passage(Passage),
    Switched(Switched),
}

/// A server that has switched to another protocol.
#[derive(Debug)]
pub(super) struct Switched {
    pub(super) server: ServerStream,
    pub(super) record: Box<Record>,
    /// Counts for its server until the tunnel has ended.
    pub(super) in_flight: InFlight,
}

impl From<Passage> for Tunnel {
    fn from(passage: Passage) -> Self {
        Self(Kind::Passage(passage))
    }
}

impl From<Switched> for Tunnel {
    fn from(switched: Switched) -> Self {
        Self(Kind::Switched(switched))
    }
}

impl conn::Tunnel for Tunnel {
    async fn run<IO>(self, io: IO, read: Bytes)
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        match self.0 {
            Kind::Passage(passage) => passage.run(io, read).await,
            Kind::Switched(Switched { server, mut record, in_flight: _in_flight }) => {
                let idle = record.local.snapshot.tunnel_timeout;
                let (client, server) = (Side { io, read }, Side { io: server, read: Bytes::new() });
                join(client, server, idle, &mut record).await;
            }
        }
    }
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides said that they have nothing more to say.
    Closed,
    /// A connection broke.
    Broken,
    /// Nothing moved for too long.
    Idle,
}

impl End {
    /// The word for the log; empty if it went as the client wished.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Closed => "",
            Self::Broken => "tunnel_broken",
            Self::Idle => "tunnel_idle",
        }
    }
}

/// One side of a tunnel, with what was read from it already.
pub(super) struct Side<IO> {
    pub(super) io: IO,
    pub(super) read: Bytes,
}

/// Carries bytes until both directions have ended, one side has broken off, or `idle` has passed without a byte either way. Closing
/// one direction leaves the other one open. The bytes are counted in `record` as they go, whose reason says how it ended, also if
/// the future is dropped before: then the process is going away.
pub(super) async fn join<C, S>(client: Side<C>, server: Side<S>, idle: Duration, record: &mut Record)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    record.reason = "tunnel_cut";
    record.tunnelled = true;
    let (mut client, mut up) = (client.io, Flow::new(client.read));
    let (mut server, mut down) = (server.io, Flow::new(server.read));
    let mut moved = Instant::now();
    let mut timer = pin!(sleep_until(moved + idle));
    let end = poll_fn(|cx| {
        let before = (up.carried, down.carried, up.ended, down.ended);
        let carried = [up.carry(cx, &mut client, &mut server), down.carry(cx, &mut server, &mut client)]
            .map(|c| c.is_ready());
        record.received += up.carried - before.0;
        record.sent += down.carried - before.1;
        // Who breaks off has said everything that will ever be said: once it was passed on, nothing is left to wait for.
        if carried == [true, true] || [&up, &down].iter().any(|flow| flow.lost_source && flow.closed) {
            let broken = [&up, &down].iter().any(|flow| flow.lost_source || flow.lost_sink);
            return Poll::Ready(if broken { End::Broken } else { End::Closed });
        }
        if before != (up.carried, down.carried, up.ended, down.ended) {
            moved = Instant::now();
        }
        let allowed = if up.ended || down.ended { idle.min(HALF_OPEN) } else { idle };
        if timer.deadline() > moved + allowed {
            timer.as_mut().reset(moved + allowed);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= moved + allowed {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset(moved + allowed);
        }
        Poll::Pending
    })
    .await;
    record.reason = end.reason();
}

/// One direction.
struct Flow {
    /// Read, and not taken by the other side yet.
    waiting: Bytes,
    carried: u64,
    /// Its source has said its last word.
    ended: bool,
    /// Its sink was told so.
    closed: bool,
    unflushed: bool,
    /// Reading failed.
    lost_source: bool,
    /// Writing failed. What the sink has said before that may still come the other way.
    lost_sink: bool,
}

impl Flow {
    fn new(read: Bytes) -> Self {
        Self {
            waiting: read,
            carried: 0,
            ended: false,
            closed: false,
            unflushed: false,
            lost_source: false,
            lost_sink: false,
        }
    }

    /// Carries what there is. Ready when the direction has ended, well or not.
    fn carry<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.step(cx, from, to).map(|result| {
            self.lost_sink |= result.is_err();
            (self.ended, self.closed) = (true, true);
        })
    }

    /// Errors if writing has failed.
    fn step<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            while !self.waiting.is_empty() {
                let taken = ready!(Pin::new(&mut *to).poll_write(cx, &self.waiting))?;
                self.took(taken)?;
                self.waiting.advance(taken);
            }
            // An empty piece still holds the buffer it was cut from.
            self.waiting = Bytes::new();
            if self.ended {
                match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                    // The other side may have gone altogether; then there is nobody to tell.
                    Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                        return Poll::Ready(Err(error));
                    }
                    _ => self.closed = true,
                }
                continue;
            }
            let mut space = [MaybeUninit::uninit(); PIECE];
            let mut piece = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *from).poll_read(cx, &mut piece) {
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
                Poll::Ready(read) => self.lost_source |= read.is_err(),
            }
            if self.lost_source || piece.filled().is_empty() {
                self.ended = true;
                continue;
            }
            let taken = match Pin::new(&mut *to).poll_write(cx, piece.filled())? {
                Poll::Ready(taken) => {
                    self.took(taken)?;
                    taken
                }
                Poll::Pending => 0,
            };
            self.waiting = Bytes::copy_from_slice(&piece.filled()[taken..]);
        }
    }

    fn took(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.carried += bytes as u64;
        self.unflushed = true;
        Ok(())
    }
}
