//! Behaviour tests against real servers; one binary, one file for each behaviour.

mod limits;
mod proxying;
mod reload;
mod support;
mod trust;
