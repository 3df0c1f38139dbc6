//! Years of renewals in seconds: the engine's own decisions against model CAs.
//!
//! The state machine, the schedule and the ledger are those that run in production; time, the CA, DNS and the disk are
//! modelled. The same scenario and seed give the same run, to the last order.

mod ca;
mod calendar;
mod outcome;
mod scenario;
mod world;

pub use ca::CaModel;
pub use calendar::calendar;
pub use outcome::{Hour, Outcome, Renewal};
pub use scenario::{Beginning, Scenario, SimulatedCert, lets_encrypt, public_ca};
pub use world::run;
