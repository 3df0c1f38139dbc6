//! The servers behind us: picking one, connecting to it, keeping connections.

mod balancer;
mod body;
mod connect;
mod endpoint;
mod exchange;
mod pool;
mod spec;

pub use balancer::{Balancer, NoEndpoint, Upstreams};
pub use body::{BodyError, RequestBody, ResponseBody};
pub use endpoint::{Endpoint, InFlight};
pub use exchange::{Exchange, ExchangeLimits, Failure};
pub use pool::{Pool, Pools};
pub use spec::{ServerHost, ServerSpec, UpstreamSpec, UpstreamTimeouts};
