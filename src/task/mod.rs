//! Everything that runs in the background: started here, named here, stopped here.

mod program;
mod thread;

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

pub use program::{Ended, Program};
pub use thread::{Thread, spawn_local, spawn_thread};

use crate::backoff::{self, Backoff};

/// Tells background work that it is time to end. Cloning shares it; a child ends with its parent.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A signal that nobody has given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal. Irrevocable.
    pub fn trigger(&self) {
        self.0.cancel();
    }

    /// Waits for the signal.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }

    /// Whether the signal was given.
    pub fn is_triggered(&self) -> bool {
        self.0.is_cancelled()
    }

    /// A signal of its own that also ends with this one.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}

/// What a task's end means.
#[derive(Clone, Copy, Debug)]
pub enum OnExit {
    /// The process cannot do its work without it: everything is shut down.
    Fatal,
    /// It is started again after a wait.
    Restart(Backoff),
    /// Its work is finished.
    Done,
}

/// Owns the background tasks of one runtime. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Supervisor {
    tasks: TaskTracker,
    shutdown: Shutdown,
    fatal: CancellationToken,
}

impl Supervisor {
    /// A supervisor whose tasks are told to end by `shutdown`.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { tasks: TaskTracker::new(), shutdown, fatal: CancellationToken::new() }
    }

    /// The signal its tasks obey.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Resolves when a [`OnExit::Fatal`] task ended before the shutdown.
    pub async fn fatal(&self) {
        self.fatal.cancelled().await;
    }

    /// Starts a task. `make` is called once for each start; the future must end soon after the shutdown signal.
    /// A panic is logged and counts as an end.
    pub fn spawn<F, Fut>(&self, name: Arc<str>, on_exit: OnExit, make: F)
    where
        F: FnMut(Shutdown) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.spawn_until(name, on_exit, self.shutdown.clone(), make);
    }

    /// As [`Supervisor::spawn`], for a task that may be told to end before the others: `until` is a child of
    /// [`Supervisor::shutdown`].
    pub fn spawn_until<F, Fut>(&self, name: Arc<str>, on_exit: OnExit, until: Shutdown, mut make: F)
    where
        F: FnMut(Shutdown) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        let span = tracing::debug_span!(parent: None, "task", %name);
        let run = async move {
            let mut failures = 0;
            loop {
                let ended = AssertUnwindSafe(make(until.clone())).catch_unwind().await;
                if let Err(panic) = &ended {
                    tracing::error!(task = %name, panic = panic_text(panic.as_ref()), "a background task panicked");
                }
                if until.is_triggered() {
                    return;
                }
                match on_exit {
                    OnExit::Done => return,
                    OnExit::Fatal => {
                        tracing::error!(task = %name, "a task that the process needs has ended; shutting down");
                        this.fatal.cancel();
                        this.shutdown.trigger();
                        return;
                    }
                    OnExit::Restart(schedule) => {
                        failures += 1;
                        let wait = backoff::jitter(schedule.after(failures), 10.0, backoff::dice());
                        tracing::warn!(task = %name, wait_ms = wait.as_millis(), "a background task ended; starting it again");
                        tokio::select! {
                            () = tokio::time::sleep(wait) => {}
                            () = until.wait() => return,
                        }
                    }
                }
            }
        };
        self.tasks.spawn(run.instrument(span));
    }

    /// Waits until every task has ended, at most `limit`; `false` if some are still running then.
    pub async fn join(&self, limit: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }
}

/// Runs blocking work (files, passwords) on the runtime's blocking pool.
///
/// Cancelling the returned future does not stop the work. A panic in `work` is passed on.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // the runtime is going away, and this future with it
        },
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panicking_task_is_restarted_until_shutdown() {
        let supervisor = Supervisor::new(Shutdown::new());
        let starts = Arc::new(AtomicU32::new(0));
        let count = starts.clone();
        const SECOND: Backoff = Backoff::new(&[Duration::from_secs(1)]);
        supervisor.spawn("fragile".into(), OnExit::Restart(SECOND), move |shutdown| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(n >= 2, "on purpose");
                shutdown.wait().await;
            }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        supervisor.shutdown().trigger();
        assert!(supervisor.join(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_fatal_task_ends_everything() {
        let supervisor = Supervisor::new(Shutdown::new());
        supervisor.spawn("needed".into(), OnExit::Fatal, |_| async {});
        supervisor.fatal().await;
        assert!(supervisor.shutdown().is_triggered());
        assert!(supervisor.join(Duration::from_secs(1)).await);
    }
}
