//! Requests: normalise, route, forward, stream back. What was matched is exactly what is forwarded.

mod admit;
mod attempts;
mod body;
pub mod client;
mod error;
mod forward;
mod handler;
mod headers;
pub mod host;
mod passthrough;
pub mod path;
mod record;
mod route;
mod snapshot;
mod spec;
mod tunnel;
mod upgrade;

pub use body::Answer;
pub use handler::Proxy;
pub use route::{Candidate, Matched, NoRoute, Router, Verdict};
pub use snapshot::{BuildError, Snapshot, SnapshotPublisher, SnapshotReader, snapshot_cell};
pub use spec::{ActionSpec, ProxySpec, RedirectSpec, RouteHost, RouteSpec};
pub use tunnel::Tunnel;
