//! Accepting connections: sockets, handshakes, HTTP. Generic over the service; knows no proxy.

mod spec;

pub use spec::{Limits, ListenSpec, ListenTimeouts};
