//! Connections to the servers behind us: making them, keeping them, one exchange on them.

mod body;
mod connect;
mod exchange;
mod pool;
mod stream;
#[cfg(test)]
mod tests;

pub use body::{BodyError, RequestBody, ResponseBody, Upload};
pub use exchange::{Exchange, ExchangeLimits, Failure};
pub use pool::{Pool, Pools};
pub use stream::ServerStream;
