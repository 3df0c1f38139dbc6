//! What the configuration says about the responder.

use std::net::{IpAddr, SocketAddr};

use crate::name::DnsName;

/// A `[responder]` section, and the names it answers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponderSpec {
    /// Where it listens, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The zone for CNAME delegation, if any.
    pub zone: Option<DnsName>,
    /// Its names as the world knows them.
    pub nameservers: Vec<NameServer>,
    /// `_acme-challenge` names that may be delegated here by NS, one for each base name of the certificates it proves.
    pub challenge_names: Vec<DnsName>,
}

/// One name of the responder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// The name in the NS record.
    pub name: DnsName,
    /// Its addresses: answered as A and AAAA when the name lies in our zone.
    pub addresses: Vec<IpAddr>,
}
