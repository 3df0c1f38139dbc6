//! What the configuration says about logs and metrics.

use std::net::SocketAddr;
use std::path::PathBuf;

/// `[log]` and `listen.metrics`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TelemetrySpec {
    /// Where a line for each request goes.
    pub access: AccessLogSpec,
    /// Where Prometheus may ask; off by default.
    pub metrics: Option<SocketAddr>,
}

/// Where a line for each request goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogSpec {
    /// Standard output.
    #[default]
    Stdout,
    /// Nowhere.
    Off,
    /// A file, opened again on SIGUSR1.
    File(PathBuf),
}
