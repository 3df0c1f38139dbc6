//! Behaviour tests against real servers; one binary, one file for each behaviour.

#![allow(
    unreachable_pub,
    missing_docs,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests, not the product"
)]

mod abandoned;
mod acme_dns;
mod admission;
mod all_down;
mod architecture;
mod auth;
mod autobahn;
mod balancing;
mod bodies;
mod buffered;
mod ca_features;
mod certificate_commands;
mod certificate_files;
mod challenge;
mod challenge_types;
mod claims;
mod compression;
mod conditions;
mod config_errors;
mod dns_wild;
mod doctor;
mod example;
mod explain;
mod faults;
mod faults_upstream;
mod grpc;
mod h2_conformance;
mod health;
mod hostile;
mod http2;
mod import;
mod issuance;
mod limits;
mod listeners;
#[path = "../../benches/load/mod.rs"]
mod load;
mod local_ca;
mod mtls;
mod overload;
mod passing;
mod passthrough;
mod policies;
mod providers;
mod proxy_protocol;
mod proxying;
mod reload;
mod renewal;
mod renewal_windows;
mod responder;
mod restart;
mod retries;
mod shaping;
mod shutdown;
mod simulate_command;
mod simulation;
mod smuggling;
mod startup;
mod streaming;
mod support;
mod systemd;
mod trust;
mod upstream_h2;
mod upstream_times;
mod upstream_tls;
mod vendors;
mod websocket;
