//! DNS questions we ask.
//!
//! Who is authoritative for a name is learnt from a recursive resolver, by asking about the names *above* it. The name
//! of a challenge itself is only ever asked at authoritative servers: a recursive resolver that is asked before the
//! record exists keeps the NXDOMAIN for the zone's negative TTL, and a CA behind that resolver then sees nothing.

mod doh;
mod exchange;
mod hosts;
mod probe;
mod reply;
mod zone;

pub use doh::{Doh, doh_reply};
pub(crate) use exchange::roundtrip;
pub use exchange::{AskError, ask};
pub use hosts::{Hosts, ResolveError, Service};
pub use probe::{Probe, Transport, addresses, alias, code_words, name_servers, probe};
pub use reply::{TxtReply, txt_reply};
pub use zone::{Here, LookupError, Resolver, Target, Zone, ZoneServer};
