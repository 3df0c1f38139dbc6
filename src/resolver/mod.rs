//! (room under construction)

mod hosts;

pub use hosts::{Hosts, ResolveError};
