//! A second reader of a client's body, if it is small enough.

use std::sync::Arc;

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::oneshot;

use crate::conn::{Held, Load};

/// Told of the whole body when it has gone by, of nothing else.
#[derive(Debug)]
pub struct BodyCopy {
    data: Vec<u8>,
    limit: usize,
    held: Held,
    ended: Option<oneshot::Sender<Copied>>,
}

/// How a body that was copied ended. If it broke off, the sender is just dropped.
#[derive(Debug, PartialEq, Eq)]
pub enum Copied {
    /// All of it.
    Whole(Vec<u8>),
    /// It is larger than the limit.
    TooLarge,
}

impl BodyCopy {
    /// A copy of at most `limit` bytes, for whoever holds the receiver.
    pub fn new(limit: usize, load: &Arc<Load>) -> (Self, oneshot::Receiver<Copied>) {
        let (ended, receiver) = oneshot::channel();
        (Self { data: Vec::new(), limit, held: Held::new(load), ended: Some(ended) }, receiver)
    }

    /// What the client's body gave: nothing more, a frame, or an error. `is_end`: nothing comes behind it.
    pub(super) fn see(&mut self, frame: Option<Option<&Frame<Bytes>>>, is_end: bool) {
        match frame {
            None => self.end(),
            Some(None) => self.ended = None,
            Some(Some(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.add(data);
                }
                if is_end {
                    self.end();
                }
            }
        }
    }

    /// That was all of it.
    pub(super) fn end(&mut self) {
        if let Some(ended) = self.ended.take() {
            // An error: whoever waited for it has gone.
            let _ = ended.send(Copied::Whole(std::mem::take(&mut self.data)));
            self.held.set(0);
        }
    }

    fn add(&mut self, data: &[u8]) {
        if self.ended.is_none() {
            return;
        }
        if self.data.len() + data.len() > self.limit {
            self.data = Vec::new();
            if let Some(ended) = self.ended.take() {
                let _ = ended.send(Copied::TooLarge);
            }
        } else {
            self.data.extend_from_slice(data);
        }
        self.held.set(self.data.capacity());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_body_within_the_limit_is_told_of() {
        let data = |text: &'static str| Frame::data(Bytes::from_static(text.as_bytes()));
        let load = Arc::new(Load::default());
        let (mut copy, mut told) = BodyCopy::new(4, &load);
        copy.see(Some(Some(&data("ab"))), false);
        assert!(told.try_recv().is_err() && load.buffered() >= 2);
        copy.see(Some(Some(&data("cd"))), true);
        copy.see(None, true);
        assert_eq!(told.try_recv(), Ok(Copied::Whole(b"abcd".to_vec())));
        let (mut copy, mut told) = BodyCopy::new(4, &load);
        copy.see(Some(Some(&data("abcde"))), true);
        assert_eq!(told.try_recv(), Ok(Copied::TooLarge));
        let (mut copy, mut told) = BodyCopy::new(4, &load);
        copy.see(Some(Some(&data("ab"))), false);
        copy.see(Some(None), true);
        copy.see(None, true);
        assert_eq!(told.try_recv(), Err(oneshot::error::TryRecvError::Closed), "it broke off");
        drop(copy);
        assert_eq!(load.buffered(), 0);
    }
}
