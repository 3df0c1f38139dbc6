//! A throw-away TXT record for each provider and zone: whether the credentials work.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::With;
use super::names::{NameFacts, Network, all};
use super::provider::{self, Tried};
use super::subjects::{NameKey, Subject, key};
use crate::challenge::{Janitor, janitor};
use crate::dns::{self, ProviderSpec, Surroundings, ZoneTurns};
use crate::name::DnsName;
use crate::resolver::Zone;
use crate::task;

/// Over all zones; what is not done by then is said to be so.
const WRITES_LIMIT: Duration = Duration::from_secs(40);

pub(super) type WriteKey = (String, DnsName);

pub(super) async fn writes(
    with: &With<'_>,
    subjects: &[Subject<'_>],
    names: &BTreeMap<NameKey, NameFacts>,
    networks: &BTreeMap<Vec<SocketAddr>, Network>,
) -> BTreeMap<WriteKey, Tried> {
    let mut items: BTreeMap<WriteKey, (&ProviderSpec, &Network, Zone)> = BTreeMap::new();
    for subject in
        subjects.iter().filter(|subject| subject.way.writes() && !subject.fallback && with.how.write)
    {
        let target = names.get(&key(subject)).and_then(|facts| facts.challenge.target.as_ref().ok());
        let network = networks.get(&subject.resolvers());
        if let (Some(target), Some(network), Some(dns)) = (target, network, subject.dns())
            && let Some(zone) = &target.zone
        {
            items.insert(write_key(dns, &target.name), (dns, network, zone.clone()));
        }
    }
    if items.is_empty() {
        return BTreeMap::new();
    }
    // Journalled in the state directory, so that the next start sweeps what this process cannot.
    let storage = match &with.kept.journal {
        Ok(storage) => storage.clone(),
        Err(reason) => {
            let why =
                format!("a record that this process cannot take away again would stay for good: {reason}");
            return items.into_keys().map(|key| (key, Tried::Skipped(why.clone()))).collect();
        }
    };
    let janitor = janitor(storage, with.clock.clone(), with.supervisor);
    let turns = ZoneTurns::new();
    all(
        "TXT records",
        items.into_iter().collect(),
        WRITES_LIMIT,
        with.progress,
        |(key, (spec, network, zone))| {
            let (turns, janitor) = (turns.clone(), &janitor);
            async move {
                let tried = write(with, &key.1, spec, network, &zone, turns, janitor).await;
                Some((key, tried))
            }
        },
    )
    .await
}

async fn write(
    with: &With<'_>,
    name: &DnsName,
    spec: &ProviderSpec,
    network: &Network,
    zone: &Zone,
    turns: ZoneTurns,
    janitor: &Janitor,
) -> Tried {
    let surroundings = Surroundings {
        resolver: Arc::new(network.resolver.clone()),
        clock: with.clock.clone(),
        turns,
        builtin: None,
    };
    let spec = spec.clone();
    let propagation = spec.common.propagation.clone();
    let provider = match task::blocking(move || dns::build(&spec, &surroundings)).await {
        Ok(provider) => provider,
        Err(error) => return Tried::Skipped(format!("the provider cannot be set up: {error}")),
    };
    if with.running.is_some() && provider.holds_one_value() {
        return Tried::Skipped(
            "it holds one value at a time, and the running Starlock may need that now".into(),
        );
    }
    if provider.keeps_values() {
        return Tried::Skipped(
            "nothing that is written there can be taken away; an order is the proof".into(),
        );
    }
    provider::attempt(provider, &network.resolver, janitor, name, zone, &propagation).await
}

/// The same names for the same section, however often it stands in the plan.
pub(super) fn write_key(spec: &ProviderSpec, name: &DnsName) -> WriteKey {
    (format!("{:?} {:?}", spec.kind, spec.common.zone), name.clone())
}
