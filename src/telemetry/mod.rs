//! Logs, metrics, the access log.

mod logs;
mod spec;

pub use logs::{LogFormat, init};
pub use spec::{AccessLogSpec, TelemetrySpec};
