//! The servers behind us: picking one, connecting to it, keeping connections.

mod spec;

pub use spec::{ServerHost, ServerSpec, UpstreamSpec, UpstreamTimeouts};
