//! Threads with a runtime of their own: one for each traffic worker, one for the control plane.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, LocalOptions};

/// A running thread; joined by [`Thread::join`].
#[derive(Debug)]
pub struct Thread {
    name: String,
    handle: JoinHandle<()>,
}

impl Thread {
    /// Waits for the thread's end. `Err` holds its name and what it said when it panicked.
    pub fn join(self) -> Result<(), String> {
        self.handle.join().map_err(|panic| format!("{}: {}", self.name, super::panic_text(panic.as_ref())))
    }

    /// Whether the thread's work is over.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// Starts a thread with a single-threaded runtime (timers and I/O on) and runs `main` on it to its end.
///
/// `main` and what it starts with [`spawn_local`] need not be `Send`. Errors if the system has no thread left.
pub fn spawn_thread<F, Fut>(name: &str, main: F) -> io::Result<Thread>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let handle =
        std::thread::Builder::new().name(name.to_owned()).spawn(
            move || match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime.block_on(main()),
                Err(error) => panic!("no runtime: {error}"),
            },
        )?;
    Ok(Thread { name: name.to_owned(), handle })
}

/// Starts a task on the current thread's runtime. The caller bounds how many there are and drains them.
#[allow(clippy::disallowed_methods, reason = "the one place that spawns on a worker's runtime")]
pub fn spawn_local(future: impl Future<Output = ()> + 'static) {
    drop(tokio::task::spawn_local(future));
}
