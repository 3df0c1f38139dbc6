//! Requests: normalise, route, forward, stream back. What was matched is exactly what is forwarded.

pub mod path;
mod route;
mod spec;

pub use route::{Candidate, Matched, NoRoute, Router, Verdict};
pub use spec::{ActionSpec, ProxySpec, RedirectSpec, RouteHost, RouteSpec};
