//! Whose turn it is: what one connection may ask of its worker before others are served.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::task::yield_now;

/// What a connection may cost at once: so many bytes. Two frames of an upload, or a quarter of a millisecond of the smallest ones.
const TURN: usize = 32 * 1024;

/// A worker's connections that have had their turn and want more. After each look at the sockets one of them goes on: however many
/// there are and whatever they send, who comes in between waits for one turn, not for all of them. Each connection stands in it once
/// at most.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: RefCell<VecDeque<Rc<Place>>>,
    /// Who calls them. Without one, everybody is called at the next look at the sockets.
    keeper: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Place {
    waker: RefCell<Waker>,
    called: Cell<bool>,
}

impl Line {
    /// Calls one after the other. Never ends.
    pub(super) async fn keep(&self) -> Infallible {
        loop {
            poll_fn(|cx| {
                let mut keeper = self.keeper.borrow_mut();
                if !keeper.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *keeper = Some(cx.waker().clone());
                }
                if self.waiting.borrow().is_empty() { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            // Goes on when everybody who was ready has run, or many have, and the sockets were looked at.
            yield_now().await;
            self.call();
        }
    }

    /// Calls the first who is still there.
    fn call(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let next = std::iter::from_fn(|| waiting.pop_front()).find(|place| Rc::strong_count(place) > 1);
        if let Some(place) = next {
            place.called.set(true);
            place.waker.borrow().wake_by_ref();
        }
    }

    fn stand(&self, cx: &mut Context<'_>) -> Rc<Place> {
        let place = Rc::new(Place { waker: RefCell::new(cx.waker().clone()), called: Cell::new(false) });
        match &*self.keeper.borrow() {
            Some(keeper) => {
                self.waiting.borrow_mut().push_back(place.clone());
                keeper.wake_by_ref();
            }
            None => {
                place.called.set(true);
                // Ends the turn all the same. Polled once, it wakes us behind the next look at the sockets.
                if pin!(yield_now()).poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        place
    }
}

/// One connection's turns.
#[derive(Debug)]
pub(super) struct Turn {
    line: Rc<Line>,
    spent: usize,
    place: Option<Rc<Place>>,
}

impl Turn {
    pub(super) fn new(line: Rc<Line>) -> Self {
        Self { line, spent: 0, place: None }
    }

    /// Waits while others have their turn.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.place {
            None if self.spent < TURN => return Poll::Ready(()),
            None => self.place = Some(self.line.stand(cx)),
            Some(place) if place.called.get() => {
                self.place = None;
                self.spent = 0;
                return Poll::Ready(());
            }
            Some(place) => {
                let mut waker = place.waker.borrow_mut();
                if !waker.will_wake(cx.waker()) {
                    waker.clone_from(cx.waker());
                }
            }
        }
        Poll::Pending
    }

    /// Something was done for it that costs as much as so many bytes.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.spent += bytes;
    }

    /// It wants no more for now.
    pub(super) fn end(&mut self) {
        self.spent = 0;
    }
}
