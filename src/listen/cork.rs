//! Writes of one poll that leave together. h2 flushes after each DATA frame: every answer of a connection would be a TLS record and a
//! system call of its own, also where a dozen are ready at once.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is held back at most: a TLS record (RFC 8446 section 5.1), which is also a DATA frame as large as clients allow by default.
const HELD: usize = 16 * 1024;

/// A stream that holds small writes back until [`Uncorked`] or a larger write lets them go. Cloning shares it.
///
/// Flushing lets nothing go: whoever writes has to be polled by [`Uncorked`].
#[derive(Debug)]
pub(super) struct Corked<S>(Rc<RefCell<Cork<S>>>);

#[derive(Debug)]
struct Cork<S> {
    inner: S,
    /// Has room only while there is something in it.
    held: Vec<u8>,
    /// How many of the held bytes are gone.
    gone: usize,
    failed: Option<io::Error>,
}

impl<S> Clone for Corked<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncWrite + Unpin> Corked<S> {
    pub(super) fn new(inner: S) -> Self {
        Self(Rc::new(RefCell::new(Cork { inner, held: Vec::new(), gone: 0, failed: None })))
    }

    /// Lets go what is held. Returns whether that failed; the next write or flush then gets the error.
    fn uncork(&self, cx: &mut Context<'_>) -> bool {
        let mut cork = self.0.borrow_mut();
        if let Poll::Ready(Err(error)) = cork.poll_uncork(cx) {
            cork.failed = Some(error);
        }
        cork.failed.is_some()
    }
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    fn poll_uncork(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        while self.gone < self.held.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held[self.gone..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.gone += written,
            }
        }
        // Freed at once: a connection that waits keeps no room for what it may write.
        (self.held, self.gone) = (Vec::new(), 0);
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Whether `length` more bytes are held back; otherwise nothing is held any more.
    fn poll_hold(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<bool>> {
        if self.held.len() + length > HELD {
            ready!(self.poll_uncork(cx))?;
        }
        let holds = length < HELD;
        if holds && self.held.capacity() == 0 {
            self.held.reserve_exact(HELD);
        }
        Poll::Ready(Ok(holds))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let cork = &mut *self.0.borrow_mut();
        if !ready!(cork.poll_hold(cx, buf.len()))? {
            return Pin::new(&mut cork.inner).poll_write(cx, buf);
        }
        cork.held.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let cork = &mut *self.0.borrow_mut();
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if !ready!(cork.poll_hold(cx, length))? {
            return Pin::new(&mut cork.inner).poll_write_vectored(cx, bufs);
        }
        bufs.iter().for_each(|buf| cork.held.extend_from_slice(buf));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let cork = &mut *self.0.borrow_mut();
        match cork.failed.take() {
            Some(error) => Poll::Ready(Err(error)),
            None if cork.held.is_empty() => Pin::new(&mut cork.inner).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let cork = &mut *self.0.borrow_mut();
        ready!(cork.poll_uncork(cx))?;
        Pin::new(&mut cork.inner).poll_shutdown(cx)
    }
}

/// A connection over a corked stream: what it wrote while it was polled leaves when it has no more to do.
pub(super) struct Uncorked<'a, C, S> {
    pub(super) connection: Pin<&'a mut C>,
    pub(super) stream: Corked<S>,
}

impl<C: Future, S: AsyncWrite + Unpin> Future for Uncorked<'_, C, S> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let polled = self.connection.as_mut().poll(cx);
        if polled.is_pending() && self.stream.uncork(cx) {
            // It hears of the failure as if it had flushed in vain.
            return self.connection.as_mut().poll(cx);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Takes what it is told to take at a time, and remembers each piece.
    #[derive(Default)]
    struct Socket {
        pieces: Vec<Vec<u8>>,
        /// How much it takes still; then it is full.
        room: usize,
        is_broken: bool,
    }

    impl AsyncWrite for Socket {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            if self.is_broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let taken = buf.len().min(self.room);
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.pieces.push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn corked(room: usize) -> Corked<Socket> {
        Corked::new(Socket { room, ..Socket::default() })
    }

    fn lengths(corked: &Corked<Socket>) -> Vec<usize> {
        corked.0.borrow().inner.pieces.iter().map(Vec::len).collect()
    }

    fn poll<F: Future>(future: F) -> Poll<F::Output> {
        std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Polls a connection that does this once and then waits.
    fn turn(
        corked: &Corked<Socket>,
        does: impl AsyncFnOnce(Corked<Socket>) -> io::Result<()>,
    ) -> Option<io::Error> {
        let connection = std::pin::pin!(async {
            if let Err(error) = does(corked.clone()).await {
                return error;
            }
            // As HTTP does whenever it is polled.
            std::future::poll_fn(|cx| match Pin::new(&mut corked.clone()).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(error),
                _ => Poll::Pending,
            })
            .await
        });
        match poll(Uncorked { connection, stream: corked.clone() }) {
            Poll::Ready(error) => Some(error),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_is_written_and_flushed_in_one_turn_leaves_together() {
        let corked = corked(usize::MAX);
        let ended = turn(&corked, async |mut stream| {
            for _ in 0..5 {
                stream.write_all(&[b'a'; 100]).await?;
                stream.flush().await?;
            }
            Ok(())
        });
        assert!(ended.is_none());
        assert_eq!(lengths(&corked), [500]);
        assert_eq!(corked.0.borrow().held.capacity(), 0, "it keeps no room");
    }

    #[test]
    fn what_is_large_takes_along_what_was_held_and_order_is_kept() {
        let corked = corked(usize::MAX);
        turn(&corked, async |mut stream| {
            stream.write_all(b"small").await?;
            stream.write_all(&[b'x'; HELD]).await?;
            stream.write_all(b"tail").await?;
            let all = [IoSlice::new(&[b'y'; 8]), IoSlice::new(&[b'z'; HELD - 10])];
            assert_eq!(
                stream.write_vectored(&all).await?,
                HELD - 2,
                "there is no room for it beside the tail"
            );
            Ok(())
        });
        assert_eq!(lengths(&corked), [5, HELD, 4, HELD - 2]);
        let pieces = &corked.0.borrow().inner.pieces;
        assert_eq!(pieces[0], b"small");
        assert_eq!(pieces[3][7..9], *b"yz");
    }

    #[test]
    fn a_full_socket_holds_the_writer_up_and_loses_nothing() {
        let corked = corked(10);
        turn(&corked, async |mut stream| {
            stream.write_all(&[b'a'; 12_000]).await?;
            let mut more = std::pin::pin!(stream.write_all(&[b'b'; 12_000]));
            assert!(poll(more.as_mut()).is_pending(), "no more than a record is held");
            Ok(())
        });
        assert_eq!(lengths(&corked), [10]);
        corked.0.borrow_mut().inner.room = 20_000;
        turn(&corked, async |mut stream| stream.write_all(b"end").await);
        let pieces = corked.0.borrow().inner.pieces.concat();
        assert_eq!(pieces, [&[b'a'; 12_000][..], b"end"].concat());
    }

    #[test]
    fn an_error_when_it_leaves_is_the_connections() {
        let corked = corked(usize::MAX);
        corked.0.borrow_mut().inner.is_broken = true;
        let ended = turn(&corked, async |mut stream| stream.write_all(b"lost").await);
        assert_eq!(ended.map(|error| error.kind()), Some(io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn shutting_down_lets_go_what_is_held() {
        let corked = corked(usize::MAX);
        let mut stream = corked.clone();
        assert!(poll(stream.write_all(b"bye")).is_ready());
        assert_eq!(lengths(&corked), [0; 0]);
        assert!(poll(stream.shutdown()).is_ready());
        assert_eq!(lengths(&corked), [3]);
    }
}
