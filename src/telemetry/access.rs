//! One line for each request.
//!
//! A worker appends lines to a buffer of its own; a thread of its own writes them out. Nothing is lost as long as the disk
//! keeps up. When it does not, a worker's buffer fills to 1 MiB; then the worker waits for room, at most 100 ms and once, and
//! from there on drops lines, counted in `starlock_access_log_dropped_total`, until the thread has taken the buffer. Traffic
//! never waits longer than that for a log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use super::line;
use super::metrics::Counter;
use super::spec::AccessLogSpec;
use crate::task;

const LANE_LIMIT: usize = 1024 * 1024;
const WAIT: Duration = Duration::from_millis(100);
/// Lines are gathered this long, so that a busy log costs one write for many lines.
const GATHER: Duration = Duration::from_millis(20);

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    /// An object.
    Json,
    /// For people.
    Text,
}

/// What is said of a request. Text that came from outside is escaped.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// When the answer ended.
    pub time: SystemTime,
    /// As on the error page.
    pub id: &'a str,
    /// Who asked, after trusted proxies.
    pub client: IpAddr,
    /// As sent.
    pub method: &'a str,
    /// Without port; empty if there was no good one.
    pub host: &'a str,
    /// Path and query as sent.
    pub path: &'a str,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'a str,
    /// `None` in clear; else whether a session was resumed.
    pub tls_resumed: Option<bool>,
    /// What was answered; 499 if the client left before there was an answer.
    pub status: u16,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
    /// The route's key; empty without one.
    pub route: &'a str,
    /// The upstream's name; empty without one.
    pub upstream: &'a str,
    /// The server; empty without one.
    pub server: &'a str,
    /// Why it did not go as the client wished; empty if it did.
    pub reason: &'a str,
}

/// The access log of the process. Cloning shares it.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

/// One worker's end of it.
#[derive(Debug)]
pub struct AccessWriter {
    log: Arc<Shared>,
    lane: Arc<Lane>,
}

/// An opened destination: what can fail, done before anything changes.
#[derive(Debug)]
pub struct AccessTarget(Sink);

#[derive(Debug)]
enum Sink {
    Off,
    Stdout,
    File { path: PathBuf, file: File },
}

#[derive(Debug)]
struct Shared {
    format: AccessFormat,
    on: AtomicBool,
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// Set by commit and reopen, taken by the thread.
    next: Mutex<Option<Sink>>,
    reopen: AtomicBool,
    closing: AtomicBool,
    wake: Notify,
    closed: Mutex<Option<mpsc::Receiver<()>>>,
    dropped: Counter,
}

#[derive(Debug, Default)]
struct Lane {
    lines: Mutex<Lines>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    buffer: Vec<u8>,
    /// A wait was in vain: drop until the thread has been here.
    stalled: bool,
}

impl AccessTarget {
    /// Opens what `spec` names. Errors if the file cannot be opened for appending.
    pub fn open(spec: &AccessLogSpec) -> io::Result<Self> {
        Ok(Self(match spec {
            AccessLogSpec::Off => Sink::Off,
            AccessLogSpec::Stdout => Sink::Stdout,
            AccessLogSpec::File(path) => Sink::File { path: path.clone(), file: append(path)? },
        }))
    }
}

impl AccessLog {
    /// Starts the writing thread. Errors if the system has no thread left.
    pub fn start(target: AccessTarget, format: AccessFormat, dropped: Counter) -> io::Result<Self> {
        let (done, closed) = mpsc::sync_channel(1);
        let shared = Arc::new(Shared {
            format,
            on: AtomicBool::new(!matches!(target.0, Sink::Off)),
            lanes: Mutex::default(),
            next: Mutex::default(),
            reopen: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            wake: Notify::new(),
            closed: Mutex::new(Some(closed)),
            dropped,
        });
        let thread = shared.clone();
        task::spawn_thread("access-log", move || async move {
            run(&thread, target.0).await;
            // Nobody may be waiting for it.
            let _ = done.try_send(());
        })?;
        Ok(Self(shared))
    }

    /// An end for one worker. Lives as long as the log.
    pub fn writer(&self) -> AccessWriter {
        let lane = Arc::new(Lane::default());
        lock(&self.0.lanes).push(lane.clone());
        AccessWriter { log: self.0.clone(), lane }
    }

    /// Writes to `target` from now on.
    pub fn commit(&self, target: AccessTarget) {
        self.0.on.store(!matches!(target.0, Sink::Off), Ordering::Relaxed);
        *lock(&self.0.next) = Some(target.0);
        self.0.wake.notify_one();
    }

    /// Opens the file again, after a rotation (SIGUSR1). If that fails, the old file is kept and the failure logged.
    pub fn reopen(&self) {
        self.0.reopen.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }

    /// Writes what is left and ends the thread; `false` if that took longer than `limit`. Blocks.
    pub fn close(&self, limit: Duration) -> bool {
        self.0.closing.store(true, Ordering::Release);
        self.0.wake.notify_one();
        match lock(&self.0.closed).take() {
            Some(closed) => closed.recv_timeout(limit).is_ok(),
            None => true,
        }
    }
}

impl AccessWriter {
    /// Whether lines go anywhere.
    pub fn is_on(&self) -> bool {
        self.log.on.load(Ordering::Relaxed)
    }

    /// Appends a line. See the module for what happens when the log is stuck.
    pub fn write(&self, record: &AccessRecord<'_>) {
        if !self.is_on() {
            return;
        }
        let mut lines = lock(&self.lane.lines);
        if lines.buffer.len() >= LANE_LIMIT {
            lines = self.make_room(lines);
            if lines.buffer.len() >= LANE_LIMIT {
                lines.stalled = true;
                self.log.dropped.inc();
                return;
            }
        }
        let first = lines.buffer.is_empty();
        match self.log.format {
            AccessFormat::Json => line::json(&mut lines.buffer, record),
            AccessFormat::Text => line::text(&mut lines.buffer, record),
        }
        drop(lines);
        if first {
            self.log.wake.notify_one();
        }
    }

    fn make_room<'a>(&'a self, lines: MutexGuard<'a, Lines>) -> MutexGuard<'a, Lines> {
        self.log.wake.notify_one();
        if lines.stalled {
            return lines;
        }
        self.lane
            .room
            .wait_timeout_while(lines, WAIT, |lines| lines.buffer.len() >= LANE_LIMIT)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

async fn run(shared: &Shared, mut sink: Sink) {
    let mut taken = Vec::with_capacity(64 * 1024);
    let mut failing = false;
    loop {
        let closing = shared.closing.load(Ordering::Acquire);
        if let Some(next) = lock(&shared.next).take() {
            sink = next;
        }
        if shared.reopen.swap(false, Ordering::AcqRel) {
            sink.reopen();
        }
        let lanes = lock(&shared.lanes).clone();
        for lane in lanes {
            {
                let mut lines = lock(&lane.lines);
                std::mem::swap(&mut lines.buffer, &mut taken);
                lines.stalled = false;
            }
            lane.room.notify_all();
            if let Err(error) = sink.write(&taken) {
                let lost = taken.iter().filter(|b| **b == b'\n').count();
                shared.dropped.inc_by(lost as u64);
                if !failing {
                    tracing::error!(%error, lines = lost, "the access log cannot be written; lines are lost until it can");
                }
                failing = true;
            } else if failing && !taken.is_empty() {
                failing = false;
                tracing::info!("the access log can be written again");
            }
            taken.clear();
            // A burst must not hold memory for ever.
            taken.shrink_to(64 * 1024);
        }
        if closing {
            return;
        }
        shared.wake.notified().await;
        if !shared.closing.load(Ordering::Acquire) {
            tokio::time::sleep(GATHER).await;
        }
    }
}

impl Sink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            _ if lines.is_empty() => Ok(()),
            Self::Off => Ok(()),
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Self::File { file, .. } => file.write_all(lines),
        }
    }

    fn reopen(&mut self) {
        let Self::File { path, file } = self else { return };
        match append(path) {
            Ok(new) => *file = new,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the access log cannot be opened again; the old file is kept");
            }
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// A panic in another thread leaves whole lines behind, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(10);

    fn record(id: &str) -> AccessRecord<'_> {
        AccessRecord {
            time: SystemTime::UNIX_EPOCH,
            id,
            client: [127, 0, 0, 1].into(),
            method: "GET",
            host: "a.test",
            path: "/x",
            protocol: "HTTP/1.1",
            tls_resumed: None,
            status: 200,
            received: 0,
            sent: 2,
            duration: Duration::from_millis(1),
            route: "a.test",
            upstream: "",
            server: "",
            reason: "",
        }
    }

    fn file_log(path: &std::path::Path) -> (AccessLog, Counter) {
        let dropped = Counter::default();
        let target = AccessTarget::open(&AccessLogSpec::File(path.to_owned())).unwrap();
        (AccessLog::start(target, AccessFormat::Json, dropped.clone()).unwrap(), dropped)
    }

    #[test]
    fn no_line_of_many_writers_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (log, dropped) = file_log(&path);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let writer = log.writer();
                task::spawn_thread("writer", move || async move {
                    for n in 0..5_000 {
                        writer.write(&record(&format!("{thread}-{n}")));
                    }
                })
                .unwrap()
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(log.close(SECOND));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut ids: Vec<String> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned()
            })
            .collect();
        ids.sort();
        ids.dedup();
        assert_eq!((ids.len(), dropped.get()), (20_000, 0));
    }

    #[test]
    fn a_stuck_log_costs_one_wait_and_then_lines() {
        let shared = Arc::new(Shared {
            format: AccessFormat::Json,
            on: AtomicBool::new(true),
            lanes: Mutex::default(),
            next: Mutex::default(),
            reopen: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            wake: Notify::new(),
            closed: Mutex::default(),
            dropped: Counter::default(),
        });
        let log = AccessLog(shared.clone());
        let writer = log.writer();
        while lock(&writer.lane.lines).buffer.len() < LANE_LIMIT {
            writer.write(&record("x"));
        }
        let start = std::time::Instant::now();
        for _ in 0..1_000 {
            writer.write(&record("lost"));
        }
        assert!(start.elapsed() >= WAIT && start.elapsed() < WAIT * 20);
        assert_eq!(shared.dropped.get(), 1_000);
        assert!(lock(&writer.lane.lines).buffer.len() < LANE_LIMIT + 4096);
    }

    #[test]
    fn it_can_be_rotated_moved_and_turned_off() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old, other) =
            (dir.path().join("a.log"), dir.path().join("a.log.1"), dir.path().join("b.log"));
        let (log, _) = file_log(&path);
        let writer = log.writer();
        let contains = |path: &std::path::Path, id: &str| {
            let start = std::time::Instant::now();
            while !std::fs::read_to_string(path).is_ok_and(|text| text.contains(id)) {
                assert!(start.elapsed() < SECOND, "{id} did not come to {}", path.display());
                std::thread::yield_now();
            }
        };
        writer.write(&record("first"));
        contains(&path, "first");
        std::fs::rename(&path, &old).unwrap();
        log.reopen();
        contains(&path, "");
        writer.write(&record("second"));
        contains(&path, "second");
        log.commit(AccessTarget::open(&AccessLogSpec::File(other.clone())).unwrap());
        writer.write(&record("third"));
        contains(&other, "third");
        log.commit(AccessTarget::open(&AccessLogSpec::Off).unwrap());
        assert!(!writer.is_on());
        writer.write(&record("fourth"));
        assert!(log.close(SECOND));
        assert!(!std::fs::read_to_string(&other).unwrap().contains("fourth"));
        assert!(AccessTarget::open(&AccessLogSpec::File(dir.path().join("none/x"))).is_err());
    }
}
