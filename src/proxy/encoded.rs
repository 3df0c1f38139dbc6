//! A body on its way through an encoder.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::time::{Sleep, sleep};

use crate::policy::Encoder;
use crate::upstream::{BodyError, Failure};

/// When a body pauses this long, the client gets all of it that was there before. Shorter would cost size: pieces of one and
/// the same answer come a little apart.
const PAUSE: Duration = Duration::from_millis(20);

/// At least so much goes out at a time, unless the body pauses.
const ENOUGH: usize = 8 << 10;

/// So much is encoded at a time.
const PIECE: usize = 64 << 10;

/// What stands between a body and the client.
#[derive(Debug)]
pub(super) struct Encoded {
    /// `None` when the end is out.
    encoder: Option<Encoder>,
    /// What was read and not yet encoded.
    input: Bytes,
    /// Whether something is in the encoder that the client could not read if it stayed there.
    held: bool,
    pause: Option<Pin<Box<Sleep>>>,
    trailers: Option<HeaderMap>,
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl Encoded {
    pub(super) fn new(encoder: Encoder) -> Self {
        Self { encoder: Some(encoder), input: Bytes::new(), held: false, pause: None, trailers: None }
    }

    pub(super) fn is_over(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    /// The next piece for the client; `body` gives the next one of the body.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut body: impl FnMut(&mut Context<'_>) -> Polled,
    ) -> Polled {
        loop {
            let Some(encoder) = &mut self.encoder else {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            };
            if !self.input.is_empty() {
                let piece = self.input.split_to(self.input.len().min(PIECE));
                if let Err(error) = encoder.write(&piece) {
                    return broken(&error);
                }
                self.held = true;
                if encoder.ready() >= ENOUGH {
                    return Poll::Ready(Some(Ok(Frame::data(encoder.take()))));
                }
                continue;
            }
            match body(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.pause = None;
                    match frame.into_data() {
                        Ok(data) => self.input = data,
                        Err(frame) => {
                            self.trailers = frame.into_trailers().ok();
                            return self.end();
                        }
                    }
                }
                Poll::Ready(None) => return self.end(),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Pending if !self.held => return Poll::Pending,
                Poll::Pending => {
                    let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
                    if pause.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.pause = None;
                    self.held = false;
                    if let Err(error) = encoder.flush() {
                        return broken(&error);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(encoder.take()))));
                }
            }
        }
    }

    fn end(&mut self) -> Polled {
        match self.encoder.take().map(Encoder::finish) {
            Some(Ok(rest)) => Poll::Ready(Some(Ok(Frame::data(rest)))),
            Some(Err(error)) => broken(&error),
            None => Poll::Ready(None),
        }
    }
}

/// Encoders write to memory and do not fail; should one, the client must not take what it has for the whole.
fn broken(error: &io::Error) -> Polled {
    tracing::error!(%error, "an answer could not be compressed");
    Poll::Ready(Some(Err(BodyError(Failure::AnswerBroken))))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;

    use super::*;
    use crate::policy::Coding;

    /// Polls with the pieces of `body`; an empty one is a pause.
    async fn next(encoded: &mut Encoded, body: &mut Vec<&'static str>) -> Option<Frame<Bytes>> {
        let poll = |cx: &mut Context<'_>| {
            encoded.poll(cx, |_| match body.first() {
                None => Poll::Ready(None),
                Some(&"") => Poll::Pending,
                Some(_) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(body.remove(0).as_bytes()))))),
            })
        };
        poll_fn(poll).await.map(|frame| frame.unwrap())
    }

    fn decoded(bytes: &[u8]) -> String {
        let mut out = vec![0; 64];
        let n = flate2::read::GzDecoder::new(bytes).read(&mut out).unwrap();
        String::from_utf8(out[..n].to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_lets_go_of_what_is_held_and_costs_no_more_than_a_moment() {
        let mut encoded = Encoded::new(Encoder::new(Coding::Gzip).unwrap());
        let mut body = vec!["one", "two", "", "three"];
        let start = tokio::time::Instant::now();
        let first = next(&mut encoded, &mut body).await.unwrap().into_data().unwrap();
        assert_eq!(decoded(&first), "onetwo", "pieces that come together go out together");
        assert!(start.elapsed() <= PAUSE + Duration::from_millis(2), "{:?}", start.elapsed());
        assert!(!encoded.is_over());
        body.remove(0);
        let rest = next(&mut encoded, &mut body).await.unwrap().into_data().unwrap();
        assert_eq!(decoded(&[first, rest].concat()), "onetwothree");
        assert!(encoded.is_over() && next(&mut encoded, &mut body).await.is_none());
    }

    #[tokio::test]
    async fn what_broke_off_does_not_look_whole() {
        let mut encoded = Encoded::new(Encoder::new(Coding::Gzip).unwrap());
        let broken =
            poll_fn(|cx| encoded.poll(cx, |_| Poll::Ready(Some(Err(BodyError(Failure::AnswerBroken))))))
                .await;
        assert!(matches!(broken, Some(Err(_))));
        assert!(!encoded.is_over());
    }

    #[tokio::test]
    async fn trailers_come_behind_the_end() {
        let mut encoded = Encoded::new(Encoder::new(Coding::Gzip).unwrap());
        let mut frames = vec![Frame::data(Bytes::from_static(b"x")), {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "1".parse().unwrap());
            Frame::trailers(trailers)
        }];
        let mut ask = || {
            encoded.poll(&mut Context::from_waker(std::task::Waker::noop()), |_| {
                Poll::Ready(Some(Ok(frames.remove(0))))
            })
        };
        let Poll::Ready(Some(Ok(data))) = ask() else { panic!("no data") };
        assert_eq!(decoded(&data.into_data().unwrap()), "x");
        let Poll::Ready(Some(Ok(trailers))) = ask() else { panic!("no trailers") };
        assert_eq!(trailers.into_trailers().unwrap()["x-sum"], "1");
        assert!(matches!(ask(), Poll::Ready(None)));
    }
}
