//! What a connection is waiting for, and how long it may.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::frames::{Said, USUAL_WINDOW};
use super::spec::ListenTimeouts;
use super::stream::Stream;
use super::turn::Line;
use crate::conn::{Held, Load};

/// How long we listen to a client that goes on talking after the last answer, so that it gets to read it.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection may take to send its first request once the process is shutting down.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// How long a connection that makes room for others may take to go.
const EVICTED: Duration = Duration::from_secs(1);
/// What is between HTTP and the socket while that takes no more: TLS holds this much.
const BEHIND: usize = 64 * 1024;
/// Windows are taken for smaller than they are by this, since streams that wait for more have a byte each.
const SLACK: i64 = 1024;

/// One connection as its reader, its writer, its requests and its timer see it. A request costs it a few stores; only the
/// timer, which fires rarely, computes anything.
#[derive(Debug)]
pub(super) struct Watch {
    timeouts: ListenTimeouts,
    /// Where it waits after its turn.
    line: Rc<Line>,
    state: Cell<State>,
    streams: RefCell<Vec<Rc<Stream>>>,
    /// What is held for the client.
    held: Held,
    /// Of this, what waits for the socket.
    behind: Cell<usize>,
    /// Bytes of answers that the socket has not taken; HTTP/1 only.
    unwritten: Cell<usize>,
    /// How much more the client lets us send on the connection, and on each stream of it; HTTP/2 only.
    credit: Cell<i64>,
    window: Cell<i64>,
    /// Something was given to its end because these said that there is room.
    relied: Cell<bool>,
    /// HTTP has asked for the client's bytes and waits for them.
    listens: Cell<bool>,
    /// The connection is gone; its streams hear of it.
    over: Cell<bool>,
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
    /// HTTP is spoken on it: neither a handshake nor a tunnel.
    is_http: bool,
    /// It was told to make room for others.
    evicted: bool,
    /// What its client was given to the end may be stuck behind windows that were made smaller since: it has to end to let go of it.
    narrowed: bool,
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
    /// Its client is gone.
    Broken,
}

impl Cause {
    /// For `starlock_rejected_total`.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Header => Some("header_timeout"),
            Self::Write => Some("write_timeout"),
            Self::Lingered | Self::Broken => None,
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
    let linger = if state.evicted { EVICTED } else { LINGER };
    if due(state.lingering_since, linger) {
        return Verdict::Close(Cause::Lingered);
    }
    if due(state.blocked_since, timeouts.write) {
        return Verdict::Close(Cause::Write);
    }
    // In HTTP/2 a head may be late while other requests are under way.
    if (state.in_flight == 0 || !state.heads) && due(state.head_since, timeouts.header) {
        return Verdict::Close(Cause::Header);
    }
    if state.in_flight == 0 {
        let last = if state.evicted { EVICTED } else { timeouts.write };
        match state.shut_since {
            Some(_) if due(state.shut_since, last) => return Verdict::Close(Cause::Lingered),
            Some(_) => {}
            None => {
                if state.head_since.is_none() && !state.kept && due(Some(state.idle_since), timeouts.idle) {
                    return Verdict::Shut;
                }
            }
        }
    }
    if (state.evicted || state.narrowed) && state.shut_since.is_none() {
        return Verdict::Shut;
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
    pub(super) fn new(timeouts: ListenTimeouts, load: &Arc<Load>, line: &Rc<Line>) -> Rc<Self> {
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
            is_http: false,
            evicted: false,
            narrowed: false,
        };
        Rc::new(Self {
            timeouts,
            line: line.clone(),
            state: Cell::new(state),
            streams: RefCell::default(),
            held: Held::new(load),
            behind: Cell::new(0),
            unwritten: Cell::new(0),
            credit: Cell::new(USUAL_WINDOW),
            window: Cell::new(USUAL_WINDOW),
            relied: Cell::new(false),
            listens: Cell::new(false),
            over: Cell::new(false),
            driver: RefCell::default(),
            look_again: Cell::new(false),
        })
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.get();
        change(&mut state);
        self.state.set(state);
    }

    /// One for a test.
    #[cfg(test)]
    pub(super) fn alone(timeouts: ListenTimeouts) -> Rc<Self> {
        Self::new(timeouts, &Arc::default(), &Rc::default())
    }

    /// What the process carries.
    pub(super) fn load(&self) -> &Arc<Load> {
        self.held.load()
    }

    /// Where its worker's connections wait for their next turn.
    pub(super) fn line(&self) -> &Rc<Line> {
        &self.line
    }

    /// HTTP begins: the first request may now take its time. `heads`: whatever arrives is the head of a request.
    pub(super) fn begin(&self, heads: bool) {
        let now = Instant::now();
        self.update(|s| {
            s.heads = heads;
            s.idle_since = now;
            s.head_since = None;
            s.is_http = true;
        });
    }

    /// HTTP/2 has ended, however it did.
    pub(super) fn end(&self) {
        self.over.set(true);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// HTTP is over: what goes on has deadlines of its own.
    pub(super) fn tunnel(&self) {
        self.update(|s| s.is_http = false);
    }

    /// Bytes have arrived.
    pub(super) fn read(&self) {
        let state = self.state.get();
        if state.in_flight == 0 && state.heads && state.head_since.is_none() {
            let now = Instant::now();
            self.update(|s| s.head_since = Some(now));
        }
    }

    /// HTTP waits for bytes, or has got some.
    pub(super) fn listens(&self, waits: bool) {
        self.listens.set(waits);
    }

    /// Whether a request is under way and nobody would hear that its client is gone: it stands behind bytes that nobody asks for.
    pub(super) fn is_deaf(&self) -> bool {
        !self.listens.get() && self.state.get().in_flight > 0
    }

    /// HTTP/2 has arrived; `unfinished`: the client has to go on with it.
    pub(super) fn read_frames(&self, unfinished: bool, said: Said) {
        if said.credit != 0 || said.window.is_some() {
            if self.relied.get() && said.window.is_some_and(|window| window < self.window.get()) {
                self.update(|s| s.narrowed = true);
                self.wake();
            }
            self.windows(said.credit, said.window);
        }
        match (unfinished, self.state.get().head_since) {
            (true, None) => {
                let now = Instant::now();
                self.update(|s| s.head_since = Some(now));
            }
            (false, Some(_)) => self.update(|s| s.head_since = None),
            _ => {}
        }
    }

    /// The client lets us send so much more, and so much on each stream.
    pub(super) fn windows(&self, credit: i64, window: Option<i64>) {
        self.credit.set(self.credit.get() + credit);
        self.window.set(window.unwrap_or(self.window.get()));
    }

    /// Somebody else sends on the connection, too: how much room is left is not known any more.
    pub(super) fn forget_windows(&self) {
        self.credit.set(i64::MIN / 2);
    }

    /// Whether the client's windows have room for `bytes` more on `stream`, which is then relied on. What HTTP/2 was given and could not send before the stream
    /// ended counts for ever: that errs on the side of no.
    pub(super) fn has_window(&self, stream: &Stream, bytes: usize) -> bool {
        let fits = |bytes: usize, window: i64| i64::try_from(bytes).is_ok_and(|bytes| bytes <= window);
        let has = fits(stream.handed() + bytes, self.window.get()) && fits(bytes, self.credit.get() - SLACK);
        self.relied.set(self.relied.get() || has);
        has
    }

    /// The client takes no more bytes for now.
    pub(super) fn blocked(&self) {
        if self.state.get().blocked_since.is_none() {
            let now = Instant::now();
            self.update(|s| s.blocked_since = Some(now));
        }
        self.hold_behind();
    }

    /// The client has taken bytes.
    pub(super) fn wrote(&self, bytes: usize) {
        self.unwritten.set(self.unwritten.get().saturating_sub(bytes));
        if self.state.get().blocked_since.is_some() {
            self.update(|s| s.blocked_since = None);
            self.hold(&self.behind, 0);
        }
    }

    /// HTTP/1 was given bytes of an answer.
    pub(super) fn handed(&self, bytes: usize) {
        self.unwritten.set(self.unwritten.get() + bytes);
        if self.state.get().blocked_since.is_some() {
            self.hold_behind();
        }
    }

    /// HTTP/2 was given bytes of an answer, behind which `more` may follow.
    pub(super) fn offered(&self, stream: &Stream, bytes: usize, more: bool) {
        self.credit.set(self.credit.get() - i64::try_from(bytes).unwrap_or(i64::MAX));
        stream.offered(bytes, more, self.timeouts.write);
    }

    /// Counts what is held for a client whose socket takes no more: in HTTP/1 what it was given, and what the server has sent meanwhile.
    fn hold_behind(&self) {
        let state = self.state.get();
        let ahead = if state.in_flight > 0 || !state.heads { BEHIND } else { 0 };
        self.hold(&self.behind, self.unwritten.get() + ahead);
    }

    /// Counts what is held for a stream that waits.
    pub(super) fn holds(&self, stream: &Stream) {
        self.hold(&stream.held, stream.stuck());
    }

    fn hold(&self, place: &Cell<usize>, bytes: usize) {
        let before = place.replace(bytes);
        if before != bytes {
            self.held.change(before, bytes);
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
            if s.heads {
                s.head_since = None;
            }
        });
        InFlight { watch: self.clone(), fits: self.load().begin() }
    }

    /// Since when it has had nothing to do, if it could go to make room for others.
    pub(super) fn spare_since(&self) -> Option<Instant> {
        let s = self.state.get();
        let busy = s.in_flight > 0 || s.head_since.is_some() || s.blocked_since.is_some();
        let going = s.evicted || s.shut_since.is_some() || s.lingering_since.is_some();
        (s.is_http && !busy && !going).then_some(s.idle_since)
    }

    /// Tells it to make room for others.
    pub(super) fn evict(&self) {
        self.update(|s| s.evicted = true);
        self.wake();
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.state.get().evicted
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
            match stream.due(self.timeouts.write) {
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
        self.hold(&stream.held, 0);
        self.streams.borrow_mut().retain(|held| !Rc::ptr_eq(held, stream));
    }
}

/// A request under way on a connection.
#[derive(Debug)]
pub(super) struct InFlight {
    watch: Rc<Watch>,
    /// The process has room for it.
    fits: bool,
}

impl InFlight {
    pub(super) fn fits(&self) -> bool {
        self.fits
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.fits {
            self.watch.load().end();
        }
        let now = Instant::now();
        self.watch.update(|s| {
            s.in_flight -= 1;
            s.idle_since = now;
        });
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
        let watch = Watch::alone(T);
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
        let watch = Watch::alone(T);
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
        let watch = Watch::alone(T);
        watch.begin(true);
        let _request = watch.request();
        for _ in 0..10 {
            watch.blocked();
            pass(50).await;
            watch.blocked();
            assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)));
            watch.wrote(1);
        }
        watch.blocked();
        pass(60).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Write));
    }

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_requests_and_gives_new_connections_a_chance() {
        let fresh = Watch::alone(T);
        fresh.drain();
        assert!(matches!(fresh.look(Instant::now()), Verdict::Wait(_)));
        pass(1).await;
        assert_eq!(fresh.look(Instant::now()), Verdict::Shut);
        let used = Watch::alone(T);
        drop(used.request());
        used.drain();
        assert_eq!(used.look(Instant::now()), Verdict::Shut);
        let busy = Watch::alone(T);
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
        let watch = Watch::alone(T);
        watch.begin(false);
        watch.read();
        pass(100).await;
        assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)));
        let _request = watch.request();
        let (stalled, moving) = (watch.add_stream(), watch.add_stream());
        watch.offered(&stalled, 1, true);
        pass(30).await;
        watch.offered(&moving, 1, true);
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
        let watch = Watch::alone(T);
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
        let watch = Watch::alone(T);
        watch.linger();
        assert!(watch.must_look());
        assert_eq!(watch.look(Instant::now()), Verdict::Wait(Instant::now() + LINGER));
        pass(2).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Lingered));
    }

    #[tokio::test(start_paused = true)]
    async fn what_http2_has_begun_to_say_has_the_time_of_a_head() {
        let said = Said::default();
        for busy in [false, true] {
            let watch = Watch::alone(T);
            watch.begin(false);
            let _request = busy.then(|| watch.request());
            watch.read_frames(true, said);
            pass(5).await;
            watch.read_frames(true, said);
            let other = busy.then(|| watch.request());
            pass(4).await;
            assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)));
            watch.read_frames(false, said);
            pass(50).await;
            assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)), "it was finished");
            watch.read_frames(true, said);
            pass(10).await;
            assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Header), "busy: {busy}");
            drop(other);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_makes_room_goes_at_once_and_only_with_nothing_to_do() {
        let watch = Watch::alone(T);
        assert_eq!(watch.spare_since(), None, "a handshake");
        watch.begin(true);
        assert_eq!(watch.spare_since(), Some(Instant::now()));
        watch.read();
        assert_eq!(watch.spare_since(), None, "a head");
        let request = watch.request();
        pass(5).await;
        assert_eq!(watch.spare_since(), None);
        drop(request);
        assert_eq!(watch.spare_since(), Some(Instant::now()));
        pass(5).await;
        watch.evict();
        assert!(watch.must_look() && watch.is_evicted() && watch.spare_since().is_none());
        assert_eq!(watch.look(Instant::now()), Verdict::Shut);
        watch.shut();
        assert_eq!(watch.look(Instant::now()), Verdict::Wait(Instant::now() + EVICTED));
        pass(1).await;
        assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Lingered));
        let tunnel = Watch::alone(T);
        tunnel.begin(true);
        tunnel.tunnel();
        assert_eq!(tunnel.spare_since(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_the_socket_counts_as_long_as_it_waits() {
        let watch = Watch::alone(T);
        let buffered = || watch.load().buffered();
        watch.begin(true);
        let request = watch.request();
        watch.handed(1_000);
        assert_eq!(buffered(), 0, "the socket has not refused it");
        watch.blocked();
        assert_eq!(buffered(), 1_000 + BEHIND);
        watch.handed(500);
        assert_eq!(buffered(), 1_500 + BEHIND);
        drop(request);
        watch.wrote(600);
        assert_eq!(buffered(), 0);
        watch.blocked();
        assert_eq!(buffered(), 900, "the answer has ended");
        watch.wrote(10_000);
        watch.blocked();
        assert_eq!(buffered(), 0, "heads and TLS make it more than the answer was");
        watch.handed(70);
        assert_eq!(buffered(), 70);
        let load = watch.load().clone();
        drop(watch);
        assert_eq!(load.buffered(), 0);
    }

    #[tokio::test]
    async fn windows_are_taken_for_no_larger_than_they_are() {
        let watch = Watch::alone(T);
        watch.begin(false);
        let (one, other) = (watch.add_stream(), watch.add_stream());
        assert!(watch.has_window(&one, 64_000) && !watch.has_window(&one, 65_000), "of the connection");
        watch.windows(1_000_000, Some(100));
        assert!(watch.has_window(&one, 100) && !watch.has_window(&one, 101));
        watch.offered(&one, 60, true);
        assert!(watch.has_window(&one, 40) && !watch.has_window(&one, 41) && watch.has_window(&other, 100));
        watch.windows(0, Some(2_000_000));
        assert!(watch.has_window(&one, 1_000_000) && !watch.has_window(&one, 1_065_000));
        watch.offered(&one, 1_064_000, true);
        assert!(!watch.has_window(&other, 1_000), "the connection's window is used up");
        watch.windows(1 << 30, None);
        assert!(watch.has_window(&other, 1_000));
        watch.forget_windows();
        watch.windows(1 << 30, None);
        assert!(!watch.has_window(&other, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn windows_that_become_smaller_are_the_end_of_a_connection() {
        let watch = Watch::alone(T);
        watch.begin(false);
        let window = |window| Said { window: Some(window), ..Said::default() };
        watch.read_frames(false, window(10));
        let request = watch.request();
        assert!(!watch.has_window(&watch.add_stream(), 11));
        watch.read_frames(false, window(9));
        assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)), "nothing was given to it on trust");
        assert!(watch.has_window(&watch.add_stream(), 9));
        watch.read_frames(false, window(20));
        assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)));
        watch.read_frames(false, window(19));
        assert!(watch.must_look());
        assert_eq!(watch.look(Instant::now()), Verdict::Shut);
        watch.shut();
        pass(100).await;
        assert!(matches!(watch.look(Instant::now()), Verdict::Wait(_)), "its requests are answered");
        drop(request);
        assert_eq!(watch.look(Instant::now()), Verdict::Close(Cause::Lingered), "whatever is stuck");
    }
}
