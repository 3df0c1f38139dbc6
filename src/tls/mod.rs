//! Serving certificates: the table, its swap, the handshake. The only room that names `rustls::server`.

mod accept;
mod bundle;
mod canary;
mod client_auth;
mod files;
mod hello;
mod mint;
mod resolver;
mod store;
mod table;
mod validation;

pub use accept::{Accepted, HandshakeError, Stream, TlsServer};
pub use bundle::{Bundle, BundleError};
pub use canary::{Roots, canary};
pub use client_auth::{
    ClientAuth, ClientAuthError, ClientAuthPublisher, ClientAuthReader, ClientAuthSpec, client_auth_cell,
};
pub use files::{CertFiles, FromFiles, Stamp};
pub use hello::{Hello, HelloReader};
pub use mint::{Mint, MintJob, MintReader, mint};
pub use store::{CertPublisher, CertResolver, cert_store};
pub use table::CertTable;
pub use validation::{ValidationError, ValidationGuard, ValidationReader, Validations};
