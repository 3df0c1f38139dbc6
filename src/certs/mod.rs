//! When to order, what to serve. Knows no CA, only [`Issuer`](crate::issuer::Issuer)s.

mod attempt;
mod import;
mod manager;
mod memo;
pub(crate) mod policy;
mod record;
pub(crate) mod state;
#[cfg(test)]
mod tests;
mod view;
mod worker;

pub use import::{Imported, import_certificate};
pub use manager::{CertManager, Wanted};
pub use policy::{Why, Window};
pub use record::CertId;
pub use view::{CertObserver, CertView, Phase, Reason};
