//! DNS-01 by one provider: follow the name, hold and publish the records, wait until every server shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};

use super::janitor::{Guard, Janitor};
use super::outside;
use super::propagation::{self, Server, Watch};
use super::{Batch, Challenge, ChallengeKind, ChallengeSolver, PresentError, Presented};
use crate::dns::{DnsError, Propagation, PropagationCheck, TxtProvider, TxtRecord};
use crate::name::{DnsName, HostName};
use crate::resolver::{Doh, Here, LookupError, Resolver, Target};
use crate::task;

/// Names followed at once.
const FOLLOWED_AT_ONCE: usize = 8;
/// Following one name: several questions one after another, each with a deadline of its own.
const FOLLOW_LIMIT: Duration = Duration::from_secs(60);

/// One question over HTTPS.
const DOH_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the built-in responder answers. Only for the provider `builtin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnResponder {
    /// Its sockets; they are asked for the values. An unspecified address stands for loopback.
    pub addresses: Vec<SocketAddr>,
    /// The zone for CNAME delegation. Without one, challenge names are not followed: only NS delegation leads here.
    pub zone: Option<DnsName>,
}

/// Presents DNS-01 challenges through one provider.
#[derive(Debug)]
pub struct Dns01Solver {
    provider: Arc<dyn TxtProvider>,
    resolver: Arc<Resolver>,
    janitor: Janitor,
    propagation: Propagation,
    own: Option<OwnResponder>,
    kind: ChallengeKind,
    zone_is_given: bool,
}

impl Dns01Solver {
    /// `own` is `Some` exactly when `provider` writes into the built-in responder.
    pub fn new(
        provider: Arc<dyn TxtProvider>,
        resolver: Arc<Resolver>,
        janitor: Janitor,
        propagation: Propagation,
        own: Option<OwnResponder>,
    ) -> Self {
        Self {
            provider,
            resolver,
            janitor,
            propagation,
            own,
            kind: ChallengeKind::Dns01,
            zone_is_given: false,
        }
    }

    /// The same for another kind whose records are written for each order.
    #[must_use]
    pub fn answering(mut self, kind: ChallengeKind) -> Self {
        self.kind = kind;
        self
    }

    /// The configuration names the provider's zone: that resolvers inside find none is not the last word.
    #[must_use]
    pub fn in_a_given_zone(mut self, given: bool) -> Self {
        self.zone_is_given = given;
        self
    }

    /// Where the record for `challenge` has to stand.
    async fn target(&self, challenge: DnsName) -> Result<Target, PresentError> {
        let here = match &self.own {
            Some(own) if own.zone.is_none() => return Ok(Target { name: challenge, zone: None }),
            Some(own) => Here { zone: own.zone.clone(), cuts: true },
            None => Here::default(),
        };
        let outside = match self.propagation.check {
            PropagationCheck::Doh => self.outside().await,
            _ => None,
        };
        let resolver = outside.as_ref().unwrap_or(&*self.resolver);
        let followed = tokio::time::timeout(FOLLOW_LIMIT, resolver.follow(&challenge, &here)).await;
        let error = match followed {
            Ok(Ok(target)) => return Ok(target),
            Ok(Err(error)) => error,
            Err(_) => LookupError::Unanswered {
                name: challenge.clone(),
                reason: format!("this took over {} s", FOLLOW_LIMIT.as_secs()),
            },
        };
        let permanent = match &error {
            LookupError::NoResolver(_) | LookupError::Aliases { .. } | LookupError::BadAlias { .. } => true,
            // What is asked for another view, or not at all, is no reason to wait for a person.
            LookupError::NoZone { reason, .. } => {
                reason.is_empty() && outside.is_none() && !self.zone_is_given
            }
            LookupError::Unanswered { .. } | LookupError::NoServer { .. } => false,
        };
        if self.propagation.check != PropagationCheck::Authoritative && !permanent {
            tracing::warn!(name = %challenge, %error, "whether this is a CNAME cannot be seen; the record is written at the name itself");
            return Ok(Target { name: challenge, zone: None });
        }
        Err(PresentError {
            permanent,
            message: format!(
                "cannot find out where the TXT record for {challenge} has to stand: {error}. No CA was asked."
            ),
        })
    }

    /// The world's view, where a zone has another one inside: an alias may stand in one of them only.
    async fn outside(&self) -> Option<Resolver> {
        match task::blocking(|| Doh::new(DOH_TIMEOUT)).await {
            Ok(doh) => Some(Resolver::outside(doh, self.propagation.doh.clone())),
            Err(error) => {
                tracing::warn!(%error, "no resolver can be asked over HTTPS; aliases are followed by the resolvers inside");
                None
            }
        }
    }

    /// Waits until the records are visible wherever the CA may look.
    async fn visible(&self, placed: &[(TxtRecord, Target)]) -> Result<(), PresentError> {
        match self.propagation.check {
            PropagationCheck::Authoritative => {}
            PropagationCheck::Doh => return self.visible_outside(placed).await,
            PropagationCheck::Wait => {
                tokio::time::sleep(self.propagation.wait).await;
                return Ok(());
            }
            PropagationCheck::Off => return Ok(()),
        }
        let servers = |target: &Target| match (&self.own, &target.zone) {
            (Some(own), _) => own_servers(&own.addresses),
            (None, Some(zone)) => propagation::servers_of(zone),
            (None, None) => Vec::new(),
        };
        let watched: Vec<_> =
            placed.iter().map(|(record, target)| (record.clone(), servers(target))).collect();
        let limit = self.propagation.timeout;
        propagation::wait(&self.resolver, &Watch::new(&watched), limit).await.map_err(|table| PresentError {
            permanent: false,
            message: format!(
                "the TXT records were accepted by the DNS provider, but not every name server showed them within {} s. They were \
                 taken away again, and no CA was asked.\n{table}\
                 A server that lags needs a longer `propagation.timeout`; one that this machine cannot reach needs its port 53 \
                 opened, or `propagation = {{ check = \"doh\" }}`.",
                limit.as_secs()
            ),
        })
    }

    /// Waits until resolvers outside show the records.
    async fn visible_outside(&self, placed: &[(TxtRecord, Target)]) -> Result<(), PresentError> {
        let failed = |message: String| PresentError { permanent: false, message };
        let doh = task::blocking(|| Doh::new(DOH_TIMEOUT)).await;
        let doh =
            doh.map_err(|e| failed(format!("no resolver can be asked over HTTPS: {e}. No CA was asked.")))?;
        let watched: Vec<_> = placed.iter().map(|(record, _)| (record.clone(), Vec::new())).collect();
        let Propagation { doh: urls, timeout, .. } = &self.propagation;
        outside::wait(&doh, urls, &Watch::new(&watched), *timeout).await.map_err(|table| {
            failed(format!(
                "the TXT records were accepted by the DNS provider, but not every resolver outside showed them within {} s. They \
                 were taken away again, and no CA was asked.\n{table}\
                 A resolver that was asked too early keeps its \"no\" for the zone's negative TTL: try a longer \
                 `propagation.timeout`.",
                timeout.as_secs()
            ))
        })
    }
}

#[async_trait]
impl ChallengeSolver for Dns01Solver {
    fn kinds(&self, _name: &HostName) -> Vec<ChallengeKind> {
        vec![self.kind]
    }

    fn batches(&self, challenges: &[Challenge]) -> Vec<Batch> {
        if self.provider.holds_one_value() {
            return challenges.iter().map(|challenge| vec![challenge.clone()]).collect();
        }
        if challenges.is_empty() { Vec::new() } else { vec![challenges.to_vec()] }
    }

    async fn present(&self, batch: &[Challenge]) -> Result<Box<dyn Presented>, PresentError> {
        let names: BTreeSet<DnsName> = batch.iter().map(Challenge::record_name).collect();
        let mut targets = BTreeMap::new();
        let mut following = stream::iter(names)
            .map(|name| async { (name.clone(), self.target(name).await) })
            .buffer_unordered(FOLLOWED_AT_ONCE);
        while let Some((name, target)) = following.next().await {
            targets.insert(name, target?);
        }
        drop(following);
        let mut placed: Vec<(TxtRecord, Target)> = Vec::new();
        for challenge in batch {
            if let Some(target) = targets.get(&challenge.record_name()) {
                let record = TxtRecord { name: target.name.clone(), value: challenge.value.clone() };
                // Two names may be aliases for one record.
                if !placed.iter().any(|(other, _)| *other == record) {
                    placed.push((record, target.clone()));
                }
            }
        }
        let records = placed.iter().map(|(record, _)| record.clone()).collect();
        let mut guard = self.janitor.hold(self.provider.clone(), records).await;
        guard.publish().await.map_err(|error| PresentError {
            permanent: matches!(error, DnsError::Refused(_)),
            message: format!("the TXT records could not be published, and no CA was asked: {error}"),
        })?;
        self.visible(&placed).await?;
        Ok(Box::new(Standing(guard)))
    }
}

#[derive(Debug)]
struct Standing(Guard);

#[async_trait]
impl Presented for Standing {
    async fn clean_up(self: Box<Self>) {
        self.0.remove().await;
    }
}

fn own_servers(addresses: &[SocketAddr]) -> Vec<Server> {
    let reachable = |address: &SocketAddr| {
        let ip = match address.ip() {
            IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, address.port())
    };
    addresses
        .iter()
        .map(|address| Server { name: "built-in responder".into(), addresses: vec![reachable(address)] })
        .collect()
}
