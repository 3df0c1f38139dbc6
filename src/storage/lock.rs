//! The lock of a state directory: between threads by a turn, between processes by the kernel.

use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

const LOCK_POLL: Duration = Duration::from_millis(2);

/// Who of this process has the lock of the directory. Between threads a wait ends when the lock is free, not at the next look.
#[derive(Debug, Default)]
pub(super) struct Turn {
    taken: Mutex<bool>,
    freed: Condvar,
}

impl Turn {
    /// `None` if it is not free within `limit`.
    fn take(&self, limit: Duration) -> Option<TurnGuard<'_>> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, waited) = self
            .freed
            .wait_timeout_while(taken, limit, |taken| *taken)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *taken = true;
        Some(TurnGuard(self))
    }
}

#[derive(Debug)]
pub(super) struct TurnGuard<'a>(&'a Turn);

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.freed.notify_one();
    }
}

/// The lock of the directory. The file is closed first: the next thread must find it free.
#[derive(Debug)]
pub(super) struct Lock<'a> {
    _file: File,
    _turn: TurnGuard<'a>,
}

impl<'a> Lock<'a> {
    /// Waits at most `limit`. Blocking.
    pub(super) fn take(
        turn: &'a Turn,
        open: impl FnOnce() -> io::Result<File>,
        limit: Duration,
    ) -> io::Result<Self> {
        let begun = Instant::now();
        let held = || {
            let text =
                format!("another process, or a disk that does not answer, has held .lock for {limit:?}");
            io::Error::new(io::ErrorKind::TimedOut, text)
        };
        let turn = turn.take(limit).ok_or_else(held)?;
        let file = open()?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < limit => {
                    std::thread::sleep(LOCK_POLL); // blocking, as every call here is
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(held()),
                other => {
                    other?;
                    return Ok(Self { _file: file, _turn: turn });
                }
            }
        }
    }
}
