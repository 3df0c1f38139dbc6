//! Requests: normalise, route, forward, stream back. What was matched is exactly what is forwarded.

mod spec;

pub use spec::{ActionSpec, ProxySpec, RedirectSpec, RouteHost, RouteSpec};
