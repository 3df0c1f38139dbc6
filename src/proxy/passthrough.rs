//! Connections whose TLS is not ours to terminate: the server gets the client's bytes from the first one on.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::attempts::Attempts;
use super::error::Refusal;
use super::record::Record;
use super::route::Router;
use super::spec::{ActionSpec, RouteHost, RouteSpec};
use super::tunnel::{self, Side};
use crate::balance::{Ask, Balancer, Connection, InFlight};
use crate::name::HostPattern;
use crate::upstream::{Failure, ServerStream, Upload};

/// TLS records with a fatal alert (RFC 8446 section 6): all that can be said to somebody who speaks TLS with someone else.
const ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// Hosts that are passed through, and their routes.
#[derive(Debug, Default)]
pub(super) struct PassedHosts {
    exact: HashMap<Box<str>, usize>,
    /// Keyed by what stands behind `*.`.
    wildcard: HashMap<Box<str>, usize>,
}

impl PassedHosts {
    pub(super) fn new(routes: &[RouteSpec]) -> Self {
        let mut hosts = Self::default();
        let passed = |route: &&RouteSpec| matches!(route.action, ActionSpec::Passthrough { .. });
        for (index, route) in routes.iter().enumerate().filter(|(_, route)| passed(route)) {
            match &route.host {
                RouteHost::Pattern(HostPattern::Exact(host)) => {
                    hosts.exact.insert(host.as_str().into(), index);
                }
                RouteHost::Pattern(HostPattern::Wildcard(zone)) => {
                    hosts.wildcard.insert(zone.as_str().into(), index);
                }
                // Nobody can ask for these by SNI.
                RouteHost::Pattern(HostPattern::Ip(_)) | RouteHost::Any => {}
            }
        }
        hosts
    }

    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty()
    }

    /// The route of connections that ask for `host`, unless they are terminated here: that is so for hosts that a route of
    /// `router` names exactly, whatever a wildcard says.
    pub(super) fn find(&self, host: &str, router: &Router) -> Option<usize> {
        self.exact.get(host).copied().or_else(|| {
            let (_, zone) = host.split_once('.')?;
            self.wildcard.get(zone).copied().filter(|_| !router.names(host))
        })
    }
}

/// A connection to be passed through.
#[derive(Debug)]
pub(super) struct Passage {
    /// Or why it may not.
    pub(super) balancer: Result<Arc<Balancer>, Refusal>,
    pub(super) record: Box<Record>,
}

impl Passage {
    /// Connects to a server and carries bytes until both sides have ended.
    pub(super) async fn run<IO: AsyncRead + AsyncWrite + Unpin>(self, mut io: IO, hello: Bytes) {
        let Self { balancer, mut record } = self;
        let connected = match balancer {
            Ok(balancer) => connect(&balancer, &mut record).await.map_err(Refusal::Upstream),
            Err(refusal) => Err(refusal),
        };
        match connected {
            Ok((_in_flight, _counted, server)) => {
                record.answered(StatusCode::OK);
                let idle = record.local.snapshot.tunnel_timeout;
                let (client, server) = (Side { io, read: hello }, Side { io: server, read: Bytes::new() });
                tunnel::join(client, server, idle, &mut record).await;
            }
            Err(refusal) => {
                record.refuse(refusal);
                let alert = match refusal {
                    Refusal::Denied(_) => ACCESS_DENIED,
                    _ => INTERNAL_ERROR,
                };
                // A client that has left needs no reason.
                if io.write_all(&alert).await.is_ok() {
                    drop(io.shutdown().await);
                }
            }
        }
    }
}

/// A connection to a server of `balancer`; others are tried if it cannot be had.
async fn connect(
    balancer: &Arc<Balancer>,
    record: &mut Record,
) -> Result<(InFlight, Connection, ServerStream), Failure> {
    let shared = Rc::clone(&record.shared);
    let client = record.addresses();
    let fields = HeaderMap::new();
    let preference = balancer.prefer(&Ask { client: record.client, headers: &fields, path: "/" });
    let mut attempts = Attempts::new(balancer, &record.method, |_| Upload::none());
    loop {
        let in_flight = attempts.pick(&preference).await?;
        record.endpoint = Some(in_flight.endpoint().clone());
        if let Some((stream, counted)) = attempts.connect(&shared.pools, &in_flight, &client).await? {
            return Ok((in_flight, counted, stream));
        }
    }
}
