//! Which server of an upstream gets a request, and how each of them fares.

mod balancer;
mod endpoint;
mod spec;

pub use balancer::{Balancer, NoEndpoint, Upstreams};
pub use endpoint::{Endpoint, InFlight};
pub use spec::{ServerHost, ServerSpec, UpstreamSpec, UpstreamTimeouts};
