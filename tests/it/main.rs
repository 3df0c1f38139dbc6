//! Behaviour tests against real servers; one binary, one file for each behaviour.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod http2;
mod limits;
mod proxying;
mod reload;
mod support;
mod trust;
