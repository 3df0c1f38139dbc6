//! Ordering certificates by ACME (RFC 8555). The only room that names `instant_acme`.

mod spec;

pub use spec::{AcmeSpec, LETS_ENCRYPT, LETS_ENCRYPT_STAGING};
