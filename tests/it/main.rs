//! Behaviour tests against real servers; one binary, one file for each behaviour.

mod http2;
mod limits;
mod proxying;
mod reload;
mod support;
mod trust;
