//! When to order, what to serve. Knows no CA, only [`Issuer`](crate::issuer::Issuer)s.

mod attempt;
<<<<<<< HEAD
mod import;
=======
mod command;
mod generations;
mod jobs;
>>>>>>> engine
mod manager;
mod memo;
pub(crate) mod policy;
mod proof;
mod record;
pub(crate) mod state;
#[cfg(test)]
mod tests;
mod view;
mod worker;

<<<<<<< HEAD
pub use import::{Imported, import_certificate};
=======
pub use command::{Exported, Verb};
pub use jobs::JobView;
>>>>>>> engine
pub use manager::{CertManager, Wanted};
pub use policy::{Why, Window};
pub use record::CertId;
pub use view::{CertObserver, CertView, Phase, Reason};
