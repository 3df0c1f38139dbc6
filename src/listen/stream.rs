//! One stream of an HTTP/2 connection, as far as its client takes what it is given.

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// Of each stream; h2's default of 400 KiB makes 100 stalled streams cost 40 MiB.
pub(super) const SEND_BUFFER: usize = 64 * 1024;
/// HTTP/2 is given so much at a time: it asks for more when the client's windows have room for all of it, and that is how we know that
/// the client moves.
const PIECE: usize = 16 * 1024;
/// The same for a client that takes long for a piece.
const SLOW_PIECE: usize = 1024;
/// A client that needed this part of its time for a piece is slow.
const SLOW: u32 = 8;
/// What the connection to a server may have read ahead of an answer that its client does not take.
const READ_AHEAD: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Stream {
    /// HTTP/2 was given a piece of the answer and has not asked for another one.
    offered: Cell<Option<Instant>>,
    slow: Cell<bool>,
    /// Bytes of the answer that HTTP/2 was given.
    handed: Cell<usize>,
    /// There is more to come.
    is_open: Cell<bool>,
    /// What counts as held for it.
    pub(super) held: Cell<usize>,
    reset: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

impl Stream {
    /// HTTP/2 gets `bytes`, and `more` may follow. `patience`: what it has for each piece.
    pub(super) fn offered(&self, bytes: usize, more: bool, patience: Duration) {
        let now = Instant::now();
        if self.offered.get().is_some_and(|since| now - since > patience / SLOW) {
            self.slow.set(true);
        }
        self.offered.set(Some(now));
        self.handed.set(self.handed.get() + bytes);
        self.is_open.set(more);
    }

    /// HTTP/2 asks for more, and there is nothing.
    pub(super) fn asked(&self) {
        self.offered.set(None);
    }

    /// How much HTTP/2 may get at once.
    pub(super) fn piece(&self) -> usize {
        if self.slow.get() { SLOW_PIECE } else { PIECE }
    }

    /// Bytes that HTTP/2 was given.
    pub(super) fn handed(&self) -> usize {
        self.handed.get()
    }

    /// When it has to have moved.
    pub(super) fn due(&self, patience: Duration) -> Option<Instant> {
        self.offered.get().map(|since| since + patience)
    }

    /// What is held for its client at most while HTTP/2 does not ask for more; nothing while we wait for the server.
    pub(super) fn stuck(&self) -> usize {
        match self.offered.get() {
            None => 0,
            Some(_) => {
                let ahead = if self.is_open.get() { READ_AHEAD } else { 0 };
                self.handed.get().min(SEND_BUFFER + PIECE) + ahead
            }
        }
    }

    pub(super) fn reset(&self) {
        self.reset.set(true);
        if let Some(task) = self.task.borrow_mut().take() {
            task.wake();
        }
    }

    /// Whether the stream has to end; else remembers whom to wake when it has to.
    pub(super) fn must_end(&self, cx: &Context<'_>) -> bool {
        if self.reset.get() {
            return true;
        }
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_gets_small_pieces_and_a_waiting_one_holds_nothing() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let stream = Stream::default();
        assert_eq!((stream.piece(), stream.stuck()), (PIECE, 0));
        stream.offered(100, true, PATIENCE);
        assert_eq!(stream.stuck(), 100 + READ_AHEAD);
        tokio::time::advance(Duration::from_secs(7)).await;
        stream.offered(PIECE, true, PATIENCE);
        assert_eq!(stream.piece(), PIECE, "7 of 60 seconds");
        stream.asked();
        assert_eq!((stream.stuck(), stream.due(PATIENCE)), (0, None));
        tokio::time::advance(Duration::from_secs(600)).await;
        stream.offered(SEND_BUFFER, true, PATIENCE);
        assert_eq!(stream.piece(), PIECE, "the server was slow");
        tokio::time::advance(Duration::from_secs(8)).await;
        stream.offered(1, false, PATIENCE);
        assert_eq!(stream.piece(), SLOW_PIECE);
        assert_eq!(
            stream.stuck(),
            SEND_BUFFER + PIECE,
            "no more than HTTP/2 takes, and the server has said all"
        );
        assert_eq!(stream.due(PATIENCE), Some(Instant::now() + PATIENCE));
    }
}
