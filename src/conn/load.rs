//! What the process carries for all its clients together, and how much of it it may.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests under way and bytes held, of all workers. Beyond its caps new requests are shed, so that those under way go on well.
/// A request costs it two additions.
#[derive(Debug)]
pub struct Load {
    requests: AtomicUsize,
    buffered: AtomicUsize,
    max_requests: AtomicUsize,
    max_buffered: AtomicUsize,
}

impl Default for Load {
    /// Without caps.
    fn default() -> Self {
        Self {
            requests: AtomicUsize::new(0),
            buffered: AtomicUsize::new(0),
            max_requests: AtomicUsize::new(usize::MAX),
            max_buffered: AtomicUsize::new(usize::MAX),
        }
    }
}

impl Load {
    /// Caps for what comes from now on: requests, and bytes.
    pub fn cap(&self, requests: usize, buffered: usize) {
        self.max_requests.store(requests, Ordering::Relaxed);
        self.max_buffered.store(buffered, Ordering::Relaxed);
    }

    /// Counts a request that begins; `false`, and not counted, if there is no room for it.
    pub fn begin(&self) -> bool {
        let fits = self.requests.fetch_add(1, Ordering::Relaxed) < self.max_requests.load(Ordering::Relaxed)
            && self.has_room();
        if !fits {
            self.end();
        }
        fits
    }

    /// A request that was counted is over.
    pub fn end(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether more bytes may be held. Who already holds some is not stopped: each stream has a bound of its own.
    pub fn has_room(&self) -> bool {
        self.buffered() < self.max_buffered.load(Ordering::Relaxed)
    }

    /// Requests under way.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes held.
    pub fn buffered(&self) -> usize {
        self.buffered.load(Ordering::Relaxed)
    }
}

/// Bytes that somebody holds: they count until this is dropped.
#[derive(Debug)]
pub struct Held {
    load: Arc<Load>,
    bytes: Cell<usize>,
}

impl Held {
    /// Nothing yet.
    pub fn new(load: &Arc<Load>) -> Self {
        Self { load: load.clone(), bytes: Cell::new(0) }
    }

    /// So much is held now.
    pub fn set(&self, bytes: usize) {
        let before = self.bytes.replace(bytes);
        if bytes > before {
            self.load.buffered.fetch_add(bytes - before, Ordering::Relaxed);
        } else if bytes < before {
            self.load.buffered.fetch_sub(before - bytes, Ordering::Relaxed);
        }
    }

    /// A part of it was `before` and is `after` now.
    pub fn change(&self, before: usize, after: usize) {
        self.set((self.bytes.get() + after).saturating_sub(before));
    }

    /// What the process carries.
    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_a_cap_is_not_let_in_and_what_ends_makes_room() {
        let load = Arc::new(Load::default());
        load.cap(2, 100);
        assert!(load.begin() && load.begin() && !load.begin());
        assert_eq!(load.requests(), 2, "who was not let in does not count");
        load.end();
        assert!(load.begin());
        load.cap(10, 100);
        let (one, other) = (Held::new(&load), Held::new(&load));
        one.set(60);
        one.change(10, 20);
        assert!(load.has_room() && load.begin());
        other.set(30);
        assert_eq!(load.buffered(), 100);
        assert!(!load.has_room() && !load.begin());
        one.set(20);
        assert!(load.begin());
        drop((one, other));
        assert_eq!(load.buffered(), 0);
    }
}
