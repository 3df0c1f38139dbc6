//! What a connection is waiting for, and how long it may.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::spec::ListenTimeouts;

/// How long we listen to a client that goes on talking after the last answer, so that it gets to read it.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection may take to send its first request once the process is shutting down.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// One connection as its reader, its writer, its requests and its timer see it. A request costs it a few stores; only the
/// timer, which fires rarely, computes anything.
#[derive(Debug)]
pub(super) struct Watch {
    timeouts: ListenTimeouts,
    state: Cell<State>,
    streams: RefCell<Vec<Rc<Stream>>>,
    driver: RefCell<Option<Waker>>,
    look_again: Cell<bool>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Whether bytes that arrive between requests are the head of one: not so in HTTP/2, which also says other things.
    heads: bool,
    /// The first byte of a head has arrived, the head has not.
    head_since: Option<Instant>,
    in_flight: u32,
    /// Requests so far.
    requests: u64,
    /// End of the last request.
    idle_since: Instant,
    /// The client has not taken a byte since.
    blocked_since: Option<Instant>,
    /// We have said our last word.
    lingering_since: Option<Instant>,
    /// It was told to end when it has nothing more to do.
    shut_since: Option<Instant>,
    /// The process is shutting down.
    draining_since: Option<Instant>,
    /// Being idle is no reason to end it.
    kept: bool,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing before then.
    Wait(Instant),
    /// End it in an orderly way.
    Shut,
    /// Drop it.
    Close(Cause),
}

/// Why a connection was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A request's head took too long.
    Header,
    /// The client did not take its answer.
    Write,
    /// It had nothing more to do and did not go.
    Lingered,
}

impl Cause {
    /// For `starlock_rejected_total`.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Header => Some("header_timeout"),
            Self::Write => Some("write_timeout"),
            Self::Lingered => None,
        }
    }
}

fn judge(state: &State, timeouts: &ListenTimeouts, now: Instant) -> Verdict {
    let mut next = now + timeouts.header.min(timeouts.idle).min(timeouts.write);
    let mut due = |since: Option<Instant>, limit: Duration| {
        let Some(end) = since.map(|since| since + limit) else { return false };
        if now >= end {
            return true;
        }
        next = next.min(end);
        false
    };
    if due(state.lingering_since, LINGER) {
        return Verdict::Close(Cause::Lingered);
    }
    if due(state.blocked_since, timeouts.write) {
        return Verdict::Close(Cause::Write);
    }
    if state.in_flight == 0 {
        if due(state.head_since, timeouts.header) {
            return Verdict::Close(Cause::Header);
        }
        match state.shut_since {
            Some(_) if due(state.shut_since, timeouts.write) => return Verdict::Close(Cause::Lingered),
            Some(_) => {}
            None => {
                if state.head_since.is_none() && !state.kept && due(Some(state.idle_since), timeouts.idle) {
                    return Verdict::Shut;
                }
            }
        }
    }
    if state.draining_since.is_some() && state.shut_since.is_none() {
        // A connection that has not said anything yet may be about to: its client cannot know that we are going.
        let fresh = state.requests == 0 && state.in_flight == 0;
        if !fresh || due(state.draining_since, LAST_CHANCE) {
            return Verdict::Shut;
        }
    }
    Verdict::Wait(next)
}

impl Watch {
    pub(super) fn new(timeouts: ListenTimeouts) -> Rc<Self> {
        let now = Instant::now();
        let state = State {
            heads: true,
            head_since: None,
            in_flight: 0,
            requests: 0,
            idle_since: now,
            blocked_since: None,
            lingering_since: None,
            shut_since: None,
            draining_since: None,
            kept: false,
        };
        Rc::new(Self {
            timeouts,
            state: Cell::new(state),
            streams: RefCell::default(),
            driver: RefCell::default(),
            look_again: Cell::new(false),
        })
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.get();
        change(&mut state);
        self.state.set(state);
    }

    /// HTTP begins: the first request may now take its time.
    pub(super) fn begin(&self, heads: bool) {
        let now = Instant::now();
        self.update(|s| {
            s.heads = heads;
            s.idle_since = now;
            s.head_since = None;
        });
    }

    /// Bytes have arrived.
    pub(super) fn read(&self) {
        let state = self.state.get();
        if state.in_flight == 0 && state.heads && state.head_since.is_none() {
            let now = Instant::now();
            self.update(|s| s.head_since = Some(now));
        }
    }

    /// The client takes no more bytes for now.
    pub(super) fn blocked(&self) {
        if self.state.get().blocked_since.is_none() {
            let now = Instant::now();
            self.update(|s| s.blocked_since = Some(now));
        }
    }

    /// The client has taken bytes.
    pub(super) fn wrote(&self) {
        if self.state.get().blocked_since.is_some() {
            self.update(|s| s.blocked_since = None);
        }
    }

    /// Our side is closed.
    pub(super) fn linger(&self) {
        let now = Instant::now();
        self.update(|s| s.lingering_since = Some(now));
        self.look_again.set(true);
    }

    /// A request's head has arrived.
    pub(super) fn request(self: &Rc<Self>) -> InFlight {
        self.update(|s| {
            s.in_flight += 1;
            s.requests += 1;
            s.head_since = None;
        });
        InFlight(self.clone())
    }

    /// From now on it may idle as long as its client answers pings.
    pub(super) fn keep(&self) {
        self.update(|s| s.kept = true);
    }

    /// The process is shutting down.
    pub(super) fn drain(&self) {
        let now = Instant::now();
        self.update(|s| s.draining_since = Some(now));
        self.wake();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.get().draining_since.is_some()
    }

    /// It was told to end.
    pub(super) fn shut(&self) {
        let now = Instant::now();
        self.update(|s| s.shut_since = s.shut_since.or(Some(now)));
        self.look_again.set(true);
    }

    /// Remembers whom to wake.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
    }

    fn wake(&self) {
        self.look_again.set(true);
        if let Some(driver) = &*self.driver.borrow() {
            driver.wake_by_ref();
        }
    }

    /// Whether something has changed that the timer may have been set too late for.
    pub(super) fn must_look(&self) -> bool {
        self.look_again.replace(false)
    }

    /// What the clock says. Stalled streams are ended here, too.
    ///
    /// The next look is never further away than the shortest timeout, so a deadline that begins later is not missed.
    pub(super) fn look(&self, now: Instant) -> Verdict {
        let verdict = judge(&self.state.get(), &self.timeouts, now);
        let Verdict::Wait(mut next) = verdict else { return verdict };
        for stream in &*self.streams.borrow() {
            match stream.offered.get().map(|since| since + self.timeouts.write) {
                Some(end) if now >= end => stream.reset(),
                Some(end) => next = next.min(end),
                None => {}
            }
        }
        Verdict::Wait(next)
    }

    pub(super) fn add_stream(&self) -> Rc<Stream> {
        let stream = Rc::new(Stream::default());
        self.streams.borrow_mut().push(stream.clone());
        stream
    }

    pub(super) fn remove_stream(&self, stream: &Rc<Stream>) {
        self.streams.borrow_mut().retain(|held| !Rc::ptr_eq(held, stream));
    }
}

/// A request under way on a connection.
#[derive(Debug)]
pub(super) struct InFlight(Rc<Watch>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = Instant::now();
        self.0.update(|s| {
            s.in_flight -= 1;
            s.idle_since = now;
        });
    }
}

/// One stream of an HTTP/2 connection.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// HTTP/2 was given a piece of the answer and has not asked for another one.
    offered: Cell<Option<Instant>>,
    reset: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

impl Stream {
    pub(super) fn offered(&self) {
        self.offered.set(Some(Instant::now()));
    }

    pub(super) fn asked(&self) {
        self.offered.set(None);
    }

    fn reset(&self) {
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

    const S: fn(u64) -> Duration = Duration::from_secs;
    const T: ListenTimeouts = ListenTimeouts {
        handshake: Duration::from_secs(10),
        header: Duration::from_secs(10),
        idle: Duration::from_secs(180),
        write: Duration::from_secs(60),
        drain: Duration::from_secs(30),
    };

    async fn pass(seconds: u64) {
        tokio::time::advance(S(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_byte_starts_the_heads_clock_and_the_first_request_may_wait() {
        let watch = Watch::new(T);
        watch.begin(true);
        pass(179).await;
        assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)));
        watch.read();
        pass(5).await;
        watch.read();
        assert_eq!(
            watch.look(Instant::now()),
            Verdict::Wait(Instant::now() + S(5)),
            "later bytes do not help"
        );
        pass(5).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Header));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_has_no_deadline_of_ours() {
        let watch = Watch::new(T);
        watch.begin(true);
        watch.read();
        let request = watch.request();
        watch.read();
        pass(3600).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Wait(Instant::now() + S(10)));
        drop(request);
        pass(179).await;
        assert!(matches!(watch.look(Instant::now()), Verdict::Wait(next) if next == Instant::now() + S(1)));
        pass(1).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Shut);
        watch.shut();
        assert!(watch.must_look() && !watch.must_look());
        pass(60).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Lingered));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_dropped_and_one_that_reads_slowly_is_not() {
        let watch = Watch::new(T);
        watch.begin(true);
        let _request = watch.request();
        for _ in 0..10 {
            watch.blocked();
            pass(50).await;
            watch.blocked();
            assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)));
            watch.wrote();
        }
        watch.blocked();
        pass(60).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Write));
    }

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_requests_and_gives_new_connections_a_chance() {
        let fresh = Watch::new(T);
        fresh.drain();
        assert!(matches!(fresh.look(Instant::now()), Verdict::Wait(_)));
        pass(1).await;
        assert_eq!(fresh.look(Instant::now()), Verdict::Shut);
        let used = Watch::new(T);
        drop(used.request());
        used.drain();
        assert_eq!(used.look(Instant::now()), Verdict::Shut);
        let busy = Watch::new(T);
        let request = busy.request();
        busy.drain();
        assert_eq!(busy.look(Instant::now()), Verdict::Shut, "the answer will say that it is the last");
        busy.shut();
        pass(3600).await;
        assert!(matches!(busy.look(Instant::now()), Verdict::Wait(_)), "but it will be given");
        drop(request);
    }

    #[tokio::test(start_paused = true)]
    async fn http2_talk_between_requests_is_no_head_and_a_stalled_stream_ends_alone() {
        let watch = Watch::new(T);
        watch.begin(false);
        watch.read();
        pass(100).await;
        assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)));
        let _request = watch.request();
        let (stalled, moving) = (watch.add_stream(), watch.add_stream());
        stalled.offered();
        pass(30).await;
        moving.offered();
        pass(30).await;
        watch.look(Instant::now());
        let cx = Context::from_waker(Waker::noop());
        assert!(stalled.must_end(&cx) && !moving.must_end(&cx));
        moving.asked();
        pass(100).await;
        watch.look(Instant::now());
        assert!(!moving.must_end(&cx), "the server is being waited for");
        watch.remove_stream(&stalled);
        assert_eq!(watch.streams.borrow().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_is_kept_may_idle_until_the_process_goes() {
        let watch = Watch::new(T);
        watch.begin(false);
        drop(watch.request());
        watch.keep();
        pass(3600).await;
        assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)));
        watch.drain();
        assert_eq!(watch.look(Instant::now()), Verdict::Shut);
    }

    #[tokio::test(start_paused = true)]
    async fn lingering_ends_soon() {
        let watch = Watch::new(T);
        watch.linger();
        assert!(watch.must_look());
        assert_eq!(watch.look(Instant::now()), Verdict::Wait(Instant::now() + LINGER));
        pass(2).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Lingered));
    }
}
