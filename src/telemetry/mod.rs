//! Logs, metrics, the access log.

mod access;
mod line;
mod logs;
mod metrics;
mod spec;

pub use access::{AccessFormat, AccessLog, AccessRecord, AccessTarget, AccessWriter};
pub use logs::{LogFormat, init};
pub use metrics::{Counter, Gauge, Histogram, Metrics, NONE, RETRY_REASONS, UNSENT};
pub use spec::{AccessLogSpec, TelemetrySpec};
