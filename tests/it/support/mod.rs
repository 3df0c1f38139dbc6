//! What behaviour tests stand on: real processes that die with the test, and clients.

pub mod client;
pub mod connect;
pub mod cores;
pub mod dns;
pub mod fault_proxy;
pub mod h2;
pub mod nginx;
pub mod pebble;
pub mod process;
pub mod rig;
pub mod server;
pub mod starlock;
pub mod stopper;
pub mod web;
pub mod zones;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that nobody uses now, for programs that cannot be told to choose one: free for UDP and TCP.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    loop {
        // Below those that the kernel gives to whoever asks for any: nobody has it by chance before it is used, or after it was.
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 22_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Keeps tests that need the whole machine from running at once; hold it to the end of the test.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks until the answer is there. `what` is for the message when it never is.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
