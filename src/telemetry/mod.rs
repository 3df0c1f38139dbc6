//! Logs, metrics, the access log.

mod spec;

pub use spec::{AccessLogSpec, TelemetrySpec};
