//! An answer's body on its way to the client.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::stream::Stream;
use super::turn::Turn;
use super::watch::{InFlight, Watch};
use crate::task;

/// A byte of an answer costs so many times less than one that a client sends, of which nobody knows what it means.
const CHEAP: usize = 4;

/// Runs the streams of one HTTP/2 connection on the worker's thread, and ends those that stall.
#[derive(Clone)]
pub(super) struct Streams {
    watch: Rc<Watch>,
    /// The stream of the last request: hyper calls the service and hands over the stream's future at one go.
    newest: Rc<Cell<Option<Rc<Stream>>>>,
}

impl Streams {
    pub(super) fn new(watch: Rc<Watch>) -> Self {
        Self { watch, newest: Rc::default() }
    }

    /// The stream of a request that has just come.
    pub(super) fn begin(&self) -> Listed {
        let stream = self.watch.add_stream();
        self.newest.set(Some(stream.clone()));
        Listed { watch: self.watch.clone(), stream }
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        let stream = self.newest.take();
        let watch = self.watch.clone();
        task::spawn_local(async move {
            let mut future = pin!(future);
            let mut parting = None;
            poll_fn(|cx| {
                let Some(stream) = &stream else { return future.as_mut().poll(cx) };
                if watch.is_over() {
                    // A hundred requests are given up at once, each with a connection to a server.
                    let turn = parting.get_or_insert_with(|| {
                        let mut turn = Turn::new(watch.line().clone());
                        turn.use_up();
                        turn
                    });
                    ready!(turn.poll(cx));
                }
                if stream.must_end(cx) {
                    // Dropping it resets the stream and leaves the connection alone.
                    return Poll::Ready(());
                }
                let polled = future.as_mut().poll(cx);
                if polled.is_pending() {
                    watch.holds(stream);
                }
                polled
            })
            .await;
        });
    }
}

/// A stream in its connection's list.
pub(super) struct Listed {
    watch: Rc<Watch>,
    stream: Rc<Stream>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.watch.remove_stream(&self.stream);
    }
}

/// An answer's body that tells the connection's watch how it fares.
pub(super) struct Answer<B> {
    inner: B,
    /// What HTTP/2 gets when it asks again.
    rest: Bytes,
    /// `None` in HTTP/1.
    listed: Option<Listed>,
    in_flight: InFlight,
    turn: Turn,
}

impl<B> Answer<B> {
    pub(super) fn new(inner: B, in_flight: InFlight, listed: Option<Listed>) -> Self {
        let turn = Turn::new(in_flight.watch().line().clone());
        Self { inner, rest: Bytes::new(), listed, in_flight, turn }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Answer<B> {
    /// Gives HTTP/2 no more than a piece. hyper asks for the next one at once and holds it until the client's windows have room for the
    /// last one and a byte more. So the last byte waits for that, too, unless we know that there is room: what was handed over to its
    /// end could be stuck behind a closed window, where nobody sees it.
    fn measure(&mut self, mut data: Bytes) -> Bytes {
        let Some(Listed { watch, stream }) = &self.listed else {
            self.in_flight.watch().handed(data.len());
            return data;
        };
        let piece = stream.piece();
        if data.len() > piece {
            self.rest = data.split_off(piece);
        } else if data.len() > 1 && self.inner.is_end_stream() && !watch.has_window(stream, data.len()) {
            self.rest = data.split_off(data.len() - 1);
        }
        watch.offered(stream, data.len(), !self.inner.is_end_stream());
        data
    }

    /// HTTP/2 has taken all that it was given.
    fn asked(&self) {
        if let Some(Listed { stream, .. }) = &self.listed {
            stream.asked();
        }
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
        // A server that sends faster than this worker forwards would keep it from everybody else.
        if this.turn.poll(cx).is_pending() {
            this.asked();
            return Poll::Pending;
        }
        if !this.rest.is_empty() {
            let rest = std::mem::take(&mut this.rest);
            return Poll::Ready(Some(Ok(Frame::data(this.measure(rest)))));
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(data) => {
                    this.turn.spend(data.len() / CHEAP);
                    Frame::data(this.measure(data))
                }
                Err(frame) => frame,
            }))),
            polled => {
                this.turn.end();
                this.asked();
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        if rest == 0 {
            return self.inner.size_hint();
        }
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::FutureExt;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::super::spec::ListenTimeouts;
    use super::*;

    /// The sizes of the pieces that HTTP/2 gets of a body of `length` bytes when the client's windows are `window` wide.
    async fn pieces(length: usize, window: i64) -> Vec<usize> {
        let watch = Watch::alone(ListenTimeouts::default());
        watch.begin(false);
        watch.windows(window, Some(window));
        let listed = Streams::new(watch.clone()).begin();
        let mut answer = Answer::new(Full::new(Bytes::from(vec![0; length])), watch.request(), Some(listed));
        let mut pieces = Vec::new();
        while !answer.is_end_stream() {
            let left = length - pieces.iter().sum::<usize>();
            assert_eq!(answer.size_hint().exact(), Some(left as u64));
            pieces.push(answer.frame().await.unwrap().unwrap().into_data().unwrap().len());
        }
        pieces
    }

    #[tokio::test]
    async fn the_last_byte_waits_unless_there_is_surely_room() {
        let wide = 1 << 20;
        assert_eq!(pieces(0, wide).await, [0; 0]);
        assert_eq!(pieces(1, 0).await, [1]);
        assert_eq!(pieces(100, wide).await, [100]);
        assert_eq!(pieces(100, 0).await, [99, 1]);
        assert_eq!(pieces(40_000, wide).await, [16_384, 16_384, 7_232]);
        assert_eq!(pieces(40_000, 30_000).await, [16_384, 16_384, 7_231, 1]);
        assert_eq!(pieces(16_384, 0).await, [16_383, 1]);
    }

    #[tokio::test]
    async fn a_server_that_never_pauses_leaves_others_their_turn() {
        let watch = Watch::alone(ListenTimeouts::default());
        let piece = || Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(&[0; 16_384])));
        let endless = StreamBody::new(futures_util::stream::repeat_with(piece));
        let mut answer = Answer::new(endless, watch.request(), None);
        for left in [8, 7, 7] {
            for _ in 0..left {
                assert!(answer.frame().now_or_never().is_some(), "128 KiB are one turn");
            }
            assert!(answer.frame().now_or_never().is_none());
            assert!(answer.frame().await.is_some(), "the next turn begins");
        }
    }

    #[tokio::test]
    async fn what_is_held_for_a_stalled_stream_counts_until_it_ends() {
        let watch = Watch::alone(ListenTimeouts::default());
        let streams = Streams::new(watch.clone());
        let listed = streams.begin();
        let stream = listed.stream.clone();
        let mut answer = Answer::new(Full::new(Bytes::from(vec![0; 500])), watch.request(), Some(listed));
        answer.frame().await.unwrap().unwrap();
        assert_eq!(watch.load().buffered(), 0, "it may be asked again at once");
        watch.holds(&stream);
        assert_eq!(watch.load().buffered(), 500);
        drop(answer);
        assert_eq!(watch.load().buffered(), 0);
        assert!(!stream.must_end(&Context::from_waker(Waker::noop())));
    }
}
