//! Behaviour tests against real servers; one binary, one file for each behaviour.

mod proxying;
mod support;
