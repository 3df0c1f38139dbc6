//! From a file to a plan: everything wrong with a configuration is found here, at once, with its place.

mod plan;

pub use plan::{CertificatePlan, IssuerPlan, Plan};
