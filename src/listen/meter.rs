//! Streams that tell a [`Watch`] what moves. The reader sits above TLS, where bytes mean requests; the writer below it, where
//! bytes have really left.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;
use super::turn::Turn;
use super::watch::Watch;

/// What a client may still send after our last word before it is cut off.
const LINGER_BYTES: usize = 1024 * 1024;

/// Beyond what a frame of HTTP/2 has begun, so many bytes are read at once: else a turn is over before anybody knows how many frames
/// are in it.
const AHEAD: usize = 1024;

#[derive(Debug)]
pub(super) struct ReadMeter<S> {
    inner: S,
    watch: Rc<Watch>,
    closed: bool,
    lingered: usize,
    turn: Turn,
    /// HTTP/2 only.
    frames: Option<Frames>,
}

#[derive(Debug)]
pub(super) struct WriteMeter<S> {
    inner: S,
    watch: Rc<Watch>,
    turn: Turn,
    /// How the client's bytes ended, before HTTP hears of it.
    end: Option<io::Result<()>>,
}

impl<S> ReadMeter<S> {
    pub(super) fn new(inner: S, watch: Rc<Watch>) -> Self {
        let turn = Turn::new(watch.line().clone());
        Self { inner, watch, closed: false, lingered: 0, turn, frames: None }
    }

    /// For a stream of HTTP/2.
    pub(super) fn http2(inner: S, watch: Rc<Watch>) -> Self {
        Self { frames: Some(Frames::default()), ..Self::new(inner, watch) }
    }

    /// The stream without the meter.
    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> WriteMeter<S> {
    pub(super) fn new(inner: S, watch: Rc<Watch>) -> Self {
        let turn = Turn::new(watch.line().clone());
        Self { inner, watch, turn, end: None }
    }

    fn written(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Pending => self.watch.blocked(),
            Poll::Ready(bytes) => self.watch.wrote(*bytes.as_ref().unwrap_or(&0)),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadMeter<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.turn.poll(cx));
        let before = buf.filled().len();
        let result = match &this.frames {
            Some(frames) => read_at_most(&mut this.inner, cx, buf, frames.rest() + AHEAD),
            None => Pin::new(&mut this.inner).poll_read(cx, buf),
        };
        let new = &buf.filled()[before..];
        this.turn.spend(new.len());
        if !new.is_empty() {
            match &mut this.frames {
                Some(frames) => {
                    let said = frames.read(new);
                    this.turn.spend(said.cost);
                    this.watch.read_frames(frames.is_unfinished(), said);
                }
                None => this.watch.read(),
            }
        }
        if result.is_pending() {
            this.turn.end();
        }
        this.watch.listens(result.is_pending());
        result
    }
}

/// Reads no more than `most` bytes.
fn read_at_most<S: AsyncRead + Unpin>(
    inner: &mut S,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
    most: usize,
) -> Poll<io::Result<()>> {
    if buf.remaining() <= most {
        return Pin::new(inner).poll_read(cx, buf);
    }
    let mut piece = ReadBuf::new(buf.initialize_unfilled_to(most));
    let result = Pin::new(inner).poll_read(cx, &mut piece);
    let read = piece.filled().len();
    buf.advance(read);
    result
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ReadMeter<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Closes our side, then reads on for a while: a socket that is closed with unread bytes resets the connection, and the
    /// client may lose the answer that told it to stop.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.closed {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            this.closed = true;
            this.watch.linger();
        }
        let mut bytes = [0; 4096];
        while this.lingered < LINGER_BYTES {
            ready!(this.turn.poll(cx));
            let mut buf = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    this.lingered += buf.filled().len();
                    this.turn.spend(buf.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteMeter<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            ready!(this.turn.poll(cx));
            if let Some(end) = this.end.take() {
                return Poll::Ready(end);
            }
            let before = buf.filled().len();
            let result = ready!(Pin::new(&mut this.inner).poll_read(cx, buf));
            if result.is_ok() && (buf.filled().len() > before || buf.remaining() == 0) {
                return Poll::Ready(Ok(()));
            }
            // To clear up behind a client costs several times what it costs to see it go, and thousands may go at once.
            this.end = Some(result);
            this.turn.use_up();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteMeter<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The kernel takes one piece cheaper than a list of one; most answers are one record of TLS.
        let result = match bufs {
            [only] => Pin::new(&mut self.inner).poll_write(cx, only),
            bufs => Pin::new(&mut self.inner).poll_write_vectored(cx, bufs),
        };
        self.written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::frames::PREFACE;
    use super::super::spec::ListenTimeouts;
    use super::*;

    #[tokio::test]
    async fn closing_reads_what_the_client_still_sends() {
        let (mut near, far) = tokio::io::duplex(64);
        let watch = Watch::alone(ListenTimeouts::default());
        let mut meter = ReadMeter::new(WriteMeter::new(far, watch.clone()), watch.clone());
        let client = async {
            assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0, "our side was closed first");
            near.write_all(&[0; 10_000]).await.unwrap();
            drop(near);
        };
        let (closed, ()) = tokio::join!(meter.shutdown(), client);
        closed.unwrap();
        assert_eq!(meter.lingered, 10_000);
    }

    /// How often `read` had to be polled.
    async fn polls(read: impl Future<Output = ()>) -> usize {
        let (mut read, mut polls) = (pin!(read), 0);
        poll_fn(|cx| {
            polls += 1;
            read.as_mut().poll(cx)
        })
        .await;
        polls
    }

    #[tokio::test]
    async fn who_sends_a_lot_waits_for_its_turn() {
        const ALL: usize = 128 * 1024;
        let (mut near, far) = tokio::io::duplex(ALL);
        near.write_all(&vec![0; ALL]).await.unwrap();
        let mut meter = ReadMeter::new(far, Watch::alone(ListenTimeouts::default()));
        let turns = polls(async {
            // Small pieces, as a parser takes them.
            let mut piece = [0; 1024];
            for _ in 0..ALL / piece.len() {
                meter.read_exact(&mut piece).await.unwrap();
            }
        });
        assert_eq!(turns.await, 4, "a turn is 32 KiB");
    }

    #[tokio::test]
    async fn who_goes_on_after_our_last_word_waits_for_its_turn() {
        const ALL: usize = 128 * 1024;
        let (mut near, far) = tokio::io::duplex(ALL);
        near.write_all(&vec![0; ALL]).await.unwrap();
        near.shutdown().await.unwrap();
        let mut meter = ReadMeter::new(far, Watch::alone(ListenTimeouts::default()));
        assert_eq!(polls(async { meter.shutdown().await.unwrap() }).await, 5, "a turn is 32 KiB");
        assert_eq!(meter.lingered, ALL);
    }

    #[tokio::test]
    async fn of_tiny_frames_there_are_few_in_a_turn() {
        for (frame, turns) in [(&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], 4), (&[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x82], 9)]
        {
            let all = [PREFACE, &frame.repeat(900)].concat();
            let (mut near, far) = tokio::io::duplex(16 * 1024);
            near.write_all(&all).await.unwrap();
            let mut meter = ReadMeter::http2(far, Watch::alone(ListenTimeouts::default()));
            let mut read = Vec::with_capacity(16 * 1024);
            let polls = polls(async {
                while read.len() < all.len() {
                    let before = read.len();
                    meter.read_buf(&mut read).await.unwrap();
                    assert!(read.len() - before <= AHEAD, "{} bytes at once", read.len() - before);
                }
            });
            assert_eq!(polls.await, turns, "900 frames of kind {}", frame[3]);
            assert_eq!(read, all);
        }
    }

    #[tokio::test]
    async fn a_large_frame_is_read_at_once() {
        let frame = [&[0, 0x40, 0, 0, 0, 0, 0, 0, 1][..], &[0; 16_384]].concat();
        let (mut near, far) = tokio::io::duplex(32 * 1024);
        near.write_all(&[PREFACE, &frame].concat()).await.unwrap();
        let mut meter = ReadMeter::http2(far, Watch::alone(ListenTimeouts::default()));
        let (mut read, mut reads) = (Vec::with_capacity(32 * 1024), 0);
        while read.len() < PREFACE.len() + frame.len() {
            meter.read_buf(&mut read).await.unwrap();
            reads += 1;
        }
        assert_eq!(reads, 2);
    }

    /// A client that is gone.
    struct Gone(io::ErrorKind);

    impl AsyncRead for Gone {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(if self.0 == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(self.0.into()) })
        }
    }

    #[tokio::test]
    async fn who_goes_is_cleared_up_in_its_turn() {
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
            let mut meter = WriteMeter::new(Gone(kind), Watch::alone(ListenTimeouts::default()));
            let mut end = None;
            assert_eq!(polls(async { end = Some(meter.read(&mut [0; 8]).await) }).await, 2);
            let end = end.unwrap().map_err(|error| error.kind());
            assert_eq!(end, if kind == io::ErrorKind::UnexpectedEof { Ok(0) } else { Err(kind) });
        }
    }
}
