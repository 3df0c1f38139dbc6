//! When to order, what to serve. Knows no CA, only [`Issuer`](crate::issuer::Issuer)s.

mod import;
mod manager;
mod policy;
mod record;
mod state;
mod stored;
#[cfg(test)]
mod tests;
mod view;
mod worker;

pub use import::{Imported, import_certificate};
pub use manager::{CertManager, Wanted};
pub use record::CertId;
pub use stored::{StoredPem, stored_pem};
pub use view::{CertObserver, CertView, Phase};
