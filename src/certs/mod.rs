//! When to order, what to serve. Knows no CA, only [`Issuer`](crate::issuer::Issuer)s.

mod attempt;
mod budgets;
mod command;
mod counted;
mod files;
mod generations;
mod holding;
pub(crate) mod hours;
mod import;
mod inventory;
mod jobs;
mod manager;
mod memo;
pub(crate) mod policy;
mod proof;
mod record;
mod rehearsal;
mod source;
mod stand_ins;
pub(crate) mod state;
#[cfg(test)]
mod tests;
mod turns;
mod view;
mod worker;

pub use budgets::BudgetLeft;
pub use command::{Exported, Verb};
pub use files::WantedFiles;
pub use holding::Holding;
pub use import::{Imported, import_certificate};
pub use jobs::JobView;
pub use manager::{CertManager, Wanted};
pub use policy::{Why, Window};
pub use record::CertId;
pub use view::{CertObserver, CertView, Phase, Reason};
