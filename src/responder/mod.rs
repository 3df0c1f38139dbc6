//! The built-in authoritative DNS server for delegated `_acme-challenge` names.
//!
//! On `hickory-proto` for names and records, with its own sockets: what bounds connections, sizes and rates has to stand
//! before a message is decoded. [`answer()`] is pure and total; everything else is transport.

mod answer;
mod bind;
mod limit;
mod serve;
mod spec;
mod zones;

pub use answer::{Transport, answer};
pub use bind::{BindError, Bound};
pub use serve::Running;
pub use spec::{NameServer, ResponderSpec};
pub use zones::{TxtTable, ZoneReader, ZoneWriter, Zones, zones};
