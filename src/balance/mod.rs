//! Which server of an upstream gets a request, and how each of them fares.

mod balancer;
mod budget;
mod choice;
mod endpoint;
mod health;
mod request;
mod spec;
mod sticky;
mod table;
mod transport;
mod upstreams;

pub use balancer::{Balancer, Found, NoEndpoint, Target};
pub use endpoint::{Condition, Connection, Endpoint, InFlight};
pub use health::{Hysteresis, Outcome};
pub use request::{Ask, Preference, Tried, cookie};
pub use spec::{
    ActiveSpec, BalanceSpec, HashKey, PassiveSpec, Question, RetrySpec, ServerHost, ServerSpec, StickySpec,
    UpstreamSpec, UpstreamTimeouts,
};
pub use transport::{ProxyProtocol, TlsHttp, TlsIdentity, TlsSpec, Transport};
pub use upstreams::{StickyError, Upstreams};
