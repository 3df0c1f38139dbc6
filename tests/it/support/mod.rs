//! What the tests of traffic need: raw clients, scripted servers, and Starlock's data plane in this process.

pub(crate) mod client;
pub(crate) mod h2;
pub(crate) mod rig;
pub(crate) mod server;
