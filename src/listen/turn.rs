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
                let mut waiting = self.waiting.borrow_mut();
                // Woken at any other time, it would call somebody before the sockets were looked at.
                if waiting.is_empty() {
                    keeper.wake_by_ref();
                }
                waiting.push_back(place.clone());
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

    /// What comes next is for its next turn.
    pub(super) fn use_up(&mut self) {
        self.spent = TURN;
    }

    /// It wants no more for now.
    pub(super) fn end(&mut self) {
        self.spent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task;

    /// On a worker's runtime, ten connections take a turn whenever they may; how many turns each of them had by the end of `main`.
    fn ten<F>(keeper: bool, main: impl FnOnce(Rc<Line>, Rc<Cell<usize>>) -> F + Send + 'static) -> Vec<usize>
    where
        F: Future<Output = ()>,
    {
        let (sender, had) = std::sync::mpsc::channel();
        let thread = task::spawn_thread("turns", move || async move {
            let (line, all) = (Rc::new(Line::default()), Rc::new(Cell::new(0)));
            if keeper {
                let line = line.clone();
                task::spawn_local(async move { match line.keep().await {} });
            }
            yield_now().await;
            let each: Vec<_> = (0..10).map(|_| Rc::new(Cell::new(0))).collect();
            for own in &each {
                let (mut turn, own, all) = (Turn::new(line.clone()), own.clone(), all.clone());
                task::spawn_local(async move {
                    loop {
                        turn.spend(TURN);
                        poll_fn(|cx| turn.poll(cx)).await;
                        own.set(own.get() + 1);
                        all.set(all.get() + 1);
                    }
                });
            }
            main(line, all).await;
            sender.send(each.iter().map(|own| own.get()).collect()).unwrap();
        });
        thread.unwrap().join().unwrap();
        had.recv().unwrap()
    }

    #[test]
    fn after_each_look_at_the_sockets_one_goes_on() {
        let had = ten(true, |_, all| async move {
            for _ in 0..200 {
                let before = all.get();
                // Somebody who has nothing to do with them, ready after each look.
                yield_now().await;
                assert!(all.get() - before <= 1, "{} had a turn", all.get() - before);
            }
        });
        let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
        assert!(*least > 10 && most - least <= 1, "each in its turn: {had:?}");
    }

    #[test]
    fn who_leaves_the_line_is_not_waited_for() {
        ten(true, |line, all| async move {
            for _ in 0..100 {
                let mut gone = Turn::new(line.clone());
                gone.use_up();
                let polled = poll_fn(|cx| Poll::Ready(gone.poll(cx))).await;
                assert!(polled.is_pending());
            }
            let before = all.get();
            for _ in 0..50 {
                yield_now().await;
            }
            assert!(all.get() - before > 40, "{} had a turn", all.get() - before);
            assert!(line.waiting.borrow().len() <= 10, "each stands in it once");
        });
    }

    #[test]
    fn without_a_keeper_all_go_on_at_each_look() {
        let had = ten(false, |line, _| async move {
            for _ in 0..50 {
                yield_now().await;
            }
            assert!(line.waiting.borrow().is_empty());
        });
        assert!(had.iter().all(|turns| *turns > 40), "{had:?}");
    }

    #[tokio::test]
    async fn polling_again_is_no_way_around_it() {
        let line = Rc::new(Line::default());
        let mut kept = pin!(line.keep());
        let mut turn = Turn::new(line.clone());
        turn.spend(TURN - 1);
        poll_fn(|cx| {
            assert!(kept.as_mut().poll(cx).is_pending() && turn.poll(cx).is_ready());
            turn.spend(1);
            assert!(turn.poll(cx).is_pending() && turn.poll(cx).is_pending());
            assert_eq!(line.waiting.borrow().len(), 1);
            // Its client wants no more meanwhile: it still has to wait.
            turn.end();
            assert!(turn.poll(cx).is_pending());
            line.call();
            assert!(turn.poll(cx).is_ready());
            Poll::Ready(())
        })
        .await;
    }
}
