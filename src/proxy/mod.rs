//! Requests: normalise, route, forward, stream back. What was matched is exactly what is forwarded.

mod admit;
mod after;
mod attempts;
mod body;
pub mod client;
mod condition;
mod encoded;
mod error;
mod forward;
mod forwarded;
mod handler;
pub mod headers;
pub mod host;
mod local;
mod mirror;
mod passthrough;
pub mod path;
mod record;
mod reply;
mod rewrite;
mod route;
mod snapshot;
mod spec;
mod split;
mod tunnel;
mod upgrade;

pub use body::Answer;
pub use condition::{ConditionSpec, Facts, Unmet, Wanted};
pub use handler::Proxy;
pub use rewrite::{NotNormal, Rewrite, RewriteError, Rewritten};
pub use route::{Candidate, Matched, NoRoute, Router, Verdict};
pub use snapshot::{BuildError, Snapshot, SnapshotPublisher, SnapshotReader, snapshot_cell};
pub use spec::{
    ActionSpec, ForwardSpec, MirrorSpec, ProxySpec, RedirectSpec, RewriteSpec, RouteHost, RouteSpec,
    RouteTimeouts, ShareSpec, StickSpec,
};
pub use tunnel::Tunnel;
