//! Connections to the servers behind us: making them, keeping them, one exchange on them.

mod body;
mod connect;
mod copy;
mod exchange;
mod h1;
mod h2;
mod pool;
mod proxy_protocol;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use body::{BodyError, RequestBody, ResponseBody, Upload};
pub use connect::{Reached, ReachedIo, Unreached, reach};
pub use copy::{BodyCopy, Copied};
pub use exchange::{Exchange, ExchangeLimits, Failure, is_grpc_call};
pub use pool::{Pool, Pools};
pub use proxy_protocol::ClientAddresses;
pub use stream::ServerStream;
pub use tls::{PreparedTls, TlsError, TlsPublisher, TlsReader, client_tls};
