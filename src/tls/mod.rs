//! Serving certificates: the table, its swap, the handshake. The only room that names `rustls::server`.

mod accept;
mod bundle;
mod canary;
mod resolver;
mod store;
mod table;

pub use accept::{Accepted, HandshakeError, Stream, TlsServer};
pub use bundle::{Bundle, BundleError};
pub use canary::{Roots, canary};
pub use store::{CertPublisher, CertResolver, cert_store};
pub use table::CertTable;
