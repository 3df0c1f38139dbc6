//! Which server of an upstream gets a request, and how each of them fares.

mod balancer;
mod endpoint;
mod spec;
mod transport;

pub use balancer::{Balancer, NoEndpoint, Upstreams};
pub use endpoint::{Endpoint, InFlight};
pub use spec::{ServerHost, ServerSpec, UpstreamSpec, UpstreamTimeouts};
pub use transport::{ProxyProtocol, TlsHttp, TlsIdentity, TlsSpec, Transport};
