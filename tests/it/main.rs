//! Behaviour tests against real servers; one binary, one file for each behaviour.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests, not the product"
)]

mod architecture;
mod challenge;
mod config_errors;
mod issuance;
#[path = "../../benches/load/mod.rs"]
mod load;
mod renewal;
mod responder;
mod support;
