//! The built-in authoritative DNS server for delegated `_acme-challenge` names.

mod spec;

pub use spec::{NameServer, ResponderSpec};
