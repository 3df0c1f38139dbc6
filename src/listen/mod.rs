//! Accepting connections: sockets, handshakes, HTTP. Generic over the service; knows no proxy.

mod answer;
mod caps;
mod connection;
mod cork;
mod frames;
mod gate;
mod meter;
mod opening;
mod prefixed;
pub mod proxy_header;
mod socket;
mod spec;
mod stream;
mod traffic;
mod turn;
mod watch;
mod wire;
mod worker;

pub use socket::{GivenDns, Inherited, ListenError, raise_file_limit};
pub use spec::{Limits, ListenSpec, ListenTimeouts};
pub use traffic::{Addresses, Drained, PreparedListeners, Traffic};
