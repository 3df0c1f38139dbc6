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
mod bodies;
mod challenge;
mod config_errors;
mod doctor;
mod example;
mod http2;
mod import;
mod issuance;
mod limits;
mod listeners;
#[path = "../../benches/load/mod.rs"]
mod load;
mod local_ca;
mod providers;
mod proxying;
mod reload;
mod renewal;
mod responder;
mod restart;
mod shutdown;
mod simulation;
mod startup;
mod support;
mod systemd;
mod trust;
