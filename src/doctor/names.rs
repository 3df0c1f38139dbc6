//! The names of every ACME certificate: gathered once for each name and zone, judged for each certificate.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::caa::{Account, Asker, CaaFacts};
use super::challenge::ChallengeFacts;
use super::delegation::{self, LeadFacts};
use super::finding::{About, Finding, Note};
use super::provider::{self, Tried};
use super::zone::ZoneFacts;
use super::{Examination, Progress, ca, caa, challenge, zone};
use crate::acme::{AcmeIssuer, AcmeSpec};
use crate::challenge::{Janitor, janitor};
use crate::clock::SharedClock;
use crate::config::{AcmePlan, IssuerPlan, Plan};
use crate::dns::{self, PropagationCheck, ProviderSpec, Surroundings, ZoneTurns};
use crate::name::{DnsName, HostName};
use crate::resolver::{Here, Resolver, Zone};
use crate::responder::ResponderSpec;
use crate::storage::{FsStorage, MemoryStorage, Storage};
use crate::task::{self, Supervisor};

const AT_ONCE: usize = 8;
/// For each kind of question, over all names; what is not done by then is said to be so.
const NAMES_LIMIT: Duration = Duration::from_secs(25);
const ZONES_LIMIT: Duration = Duration::from_secs(20);
const WRITES_LIMIT: Duration = Duration::from_secs(40);
/// An account is a few hundred bytes.
const MAX_ACCOUNT: u64 = 64 << 10;

pub(super) type Cas = BTreeMap<ca::Wanted, ca::CaFacts>;

/// What a spec wants of its CA.
pub(super) fn ca_wanted(spec: &AcmeSpec) -> ca::Wanted {
    ca::Wanted {
        directory: spec.directory.clone(),
        ca_root: spec.ca_root.clone(),
        external_account: false,
        profile: None,
    }
}

/// One name to prove, for one certificate.
struct Subject<'a> {
    about: About,
    acme: &'a AcmePlan,
    dns: &'a ProviderSpec,
    base: HostName,
    /// Whether the certificate has the name itself, and whether it has the wildcard below it.
    exact: bool,
    wildcard: bool,
}

/// What is asked for once, however many certificates need it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct NameKey {
    resolvers: Vec<SocketAddr>,
    base: HostName,
    builtin: bool,
}

type ZoneKey = (Vec<SocketAddr>, DnsName);

/// What was seen of a name.
struct NameFacts {
    challenge: ChallengeFacts,
    caa: CaaFacts,
    /// For the built-in responder.
    lead: Option<LeadFacts>,
}

/// Looks at every name of every ACME certificate.
pub(super) async fn examine(
    plan: &Plan,
    how: &Examination,
    cas: &Cas,
    runs: bool,
    clock: &SharedClock,
    supervisor: &Supervisor,
    progress: Progress<'_>,
) -> Vec<Finding> {
    let subjects = subjects(plan);
    if subjects.is_empty() {
        return Vec::new();
    }
    let networks = networks(&subjects).await;
    let mut keys: Vec<NameKey> = subjects.iter().map(key).collect();
    keys.sort();
    keys.dedup();
    let responder = plan.responder.as_ref();
    let names = all("names", keys, NAMES_LIMIT, progress, |key: NameKey| {
        let network = networks.get(&key.resolvers);
        async move {
            let facts = look_at_name(network?, &key, responder).await;
            Some((key, facts))
        }
    })
    .await;

    let mut zones: BTreeMap<ZoneKey, Zone> = BTreeMap::new();
    for (key, facts) in &names {
        let target = facts.challenge.target.as_ref().ok().and_then(|target| target.zone.clone());
        let target = if key.builtin { None } else { target };
        for zone in [target, facts.challenge.home.clone()].into_iter().flatten() {
            zones.insert((key.resolvers.clone(), zone.apex.clone()), zone);
        }
    }
    let now = clock.now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // DNSSEC counts in 32 bits that wrap (RFC 4034 section 3.1.5).
    let now = (now & u64::from(u32::MAX)) as u32;
    let zones =
        all("zones", zones.into_iter().collect(), ZONES_LIMIT, progress, |(key, zone): (ZoneKey, Zone)| {
            let network = networks.get(&key.0);
            async move {
                let network = network?;
                let facts = zone::gather(&network.resolver, &network.recursors, &zone, now).await;
                Some((key, facts))
            }
        })
        .await;

    let tried = writes(plan, how, &subjects, &names, &networks, runs, clock, supervisor, progress).await;
    let mut findings = Vec::new();
    let accounts = accounts(plan).await;
    for subject in &subjects {
        let notes = judge(subject, plan, cas, &accounts, &names, &zones, &tried);
        findings.extend(notes.into_iter().map(|note| note.about(&subject.about)));
    }
    if let Some(spec) = responder {
        findings.extend(judge_responder(spec, &subjects, &names, &networks, runs).await);
    }
    findings
}

/// A way to ask: the configured resolvers of a provider.
struct Network {
    resolver: Resolver,
    recursors: Vec<SocketAddr>,
}

async fn networks(subjects: &[Subject<'_>]) -> BTreeMap<Vec<SocketAddr>, Network> {
    let mut networks = BTreeMap::new();
    for subject in subjects {
        let resolvers = &subject.dns.common.resolvers;
        if !networks.contains_key(resolvers) {
            let resolver = Resolver::new(resolvers.clone());
            // Without any, following the first name says so.
            let recursors = resolver.recursors().await.unwrap_or_default();
            networks.insert(resolvers.clone(), Network { resolver, recursors });
        }
    }
    networks
}

fn subjects(plan: &Plan) -> Vec<Subject<'_>> {
    let mut subjects = Vec::new();
    for certificate in &plan.certificates {
        let IssuerPlan::Acme(acme) = &certificate.issuer else { continue };
        let Some(dns) = &acme.dns else { continue };
        let names = certificate.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut bases: BTreeMap<&HostName, (bool, bool)> = BTreeMap::new();
        for name in &certificate.names {
            if let Some(base) = name.base() {
                let entry = bases.entry(base).or_default();
                if name.is_wildcard() { entry.1 = true } else { entry.0 = true }
            }
        }
        for (base, (exact, wildcard)) in bases {
            let about = About::Certificate(names.clone());
            subjects.push(Subject { about, acme, dns, base: base.clone(), exact, wildcard });
        }
    }
    subjects
}

fn key(subject: &Subject<'_>) -> NameKey {
    NameKey {
        resolvers: subject.dns.common.resolvers.clone(),
        base: subject.base.clone(),
        builtin: subject.acme.is_builtin(),
    }
}

async fn look_at_name(network: &Network, key: &NameKey, responder: Option<&ResponderSpec>) -> NameFacts {
    let here = match responder.filter(|_| key.builtin) {
        Some(spec) => Here { zone: spec.zone.clone(), cuts: true },
        None => Here::default(),
    };
    let base = DnsName::from(&key.base);
    let lead = async {
        match key.builtin {
            true => {
                let challenge = DnsName::acme_challenge(&key.base);
                Some(delegation::gather_lead(&network.resolver, &base, &challenge).await)
            }
            false => None,
        }
    };
    let (challenge, caa, lead) = tokio::join!(
        challenge::gather(&network.resolver, &key.base, &here),
        caa::gather(&network.recursors, &base),
        lead
    );
    NameFacts { challenge, caa, lead }
}

/// Runs one piece of work for each item, some at once, until `limit`; what is not finished is missing in the answer.
async fn all<T, K: Ord, V, F>(
    what: &str,
    items: Vec<T>,
    limit: Duration,
    progress: Progress<'_>,
    work: impl Fn(T) -> F,
) -> BTreeMap<K, V>
where
    F: Future<Output = Option<(K, V)>>,
{
    let (total, deadline) = (items.len(), Instant::now() + limit);
    let mut done = BTreeMap::new();
    let mut working = stream::iter(items).map(work).buffer_unordered(AT_ONCE);
    let mut count = 0;
    progress(&format!("{what}: 0 of {total}"));
    while let Ok(Some(next)) = tokio::time::timeout_at(deadline, working.next()).await {
        count += 1;
        progress(&format!("{what}: {count} of {total}"));
        done.extend(next);
    }
    done
}

type WriteKey = (String, DnsName);

#[allow(clippy::too_many_arguments, reason = "one caller, which has all of these at hand")]
async fn writes(
    plan: &Plan,
    how: &Examination,
    subjects: &[Subject<'_>],
    names: &BTreeMap<NameKey, NameFacts>,
    networks: &BTreeMap<Vec<SocketAddr>, Network>,
    runs: bool,
    clock: &SharedClock,
    supervisor: &Supervisor,
    progress: Progress<'_>,
) -> BTreeMap<WriteKey, Tried> {
    let mut items: BTreeMap<WriteKey, (&ProviderSpec, &Network, Zone)> = BTreeMap::new();
    for subject in subjects.iter().filter(|subject| !subject.acme.is_builtin() && how.write) {
        let target = names.get(&key(subject)).and_then(|facts| facts.challenge.target.as_ref().ok());
        let network = networks.get(&subject.dns.common.resolvers);
        if let (Some(target), Some(network)) = (target, network)
            && let Some(zone) = &target.zone
        {
            items.insert(write_key(subject.dns, &target.name), (subject.dns, network, zone.clone()));
        }
    }
    if items.is_empty() {
        return BTreeMap::new();
    }
    let storage = journal(plan).await;
    let janitor = janitor(storage, clock.clone(), supervisor);
    let turns = ZoneTurns::new();
    all("TXT records", items.into_iter().collect(), WRITES_LIMIT, progress, |(key, (spec, network, zone))| {
        let (turns, janitor) = (turns.clone(), &janitor);
        async move {
            let tried = write(&key.1, spec, network, &zone, runs, turns, clock, janitor).await;
            Some((key, tried))
        }
    })
    .await
}

#[allow(clippy::too_many_arguments, reason = "one caller, which has all of these at hand")]
async fn write(
    name: &DnsName,
    spec: &ProviderSpec,
    network: &Network,
    zone: &Zone,
    runs: bool,
    turns: ZoneTurns,
    clock: &SharedClock,
    janitor: &Janitor,
) -> Tried {
    let with = Surroundings {
        resolver: Arc::new(network.resolver.clone()),
        clock: clock.clone(),
        turns,
        builtin: None,
    };
    let spec = spec.clone();
    let propagation = spec.common.propagation.clone();
    let provider = match task::blocking(move || dns::build(&spec, &with)).await {
        Ok(provider) => provider,
        Err(error) => return Tried::Skipped(format!("the provider cannot be set up: {error}")),
    };
    if runs && provider.holds_one_value() {
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
fn write_key(spec: &ProviderSpec, name: &DnsName) -> WriteKey {
    (format!("{:?} {:?}", spec.kind, spec.common.zone), name.clone())
}

/// The journal of the state directory, so that the next start sweeps what this process cannot; if it is not ours to write in,
/// memory.
async fn journal(plan: &Plan) -> Arc<dyn Storage> {
    let spec = plan.storage.clone();
    task::blocking(move || {
        let ours = std::fs::metadata(&spec.path)
            .is_ok_and(|meta| meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0);
        match ours.then(|| FsStorage::open(&spec)) {
            Some(Ok((storage, _))) => Arc::new(storage) as Arc<dyn Storage>,
            _ => Arc::new(MemoryStorage::new()),
        }
    })
    .await
}

/// The account at each CA, by directory: its URL, none yet, or not to be read.
async fn accounts(plan: &Plan) -> BTreeMap<String, Result<Option<String>, ()>> {
    let mut specs: Vec<AcmeSpec> = Vec::new();
    for certificate in &plan.certificates {
        if let IssuerPlan::Acme(acme) = &certificate.issuer
            && !specs.contains(&acme.acme)
        {
            specs.push(acme.acme.clone());
        }
    }
    let state = plan.storage.path.clone();
    task::blocking(move || {
        let read = |spec: &AcmeSpec| {
            let path = state.join(format!("{}.json", AcmeIssuer::account_key(spec)));
            match std::fs::metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Ok(meta) if meta.len() <= MAX_ACCOUNT => {}
                _ => return Err(()),
            }
            let json: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).map_err(|_| ())?).map_err(|_| ())?;
            Ok(json["url"].as_str().map(ToOwned::to_owned))
        };
        specs.iter().map(|spec| (spec.directory.clone(), read(spec))).collect()
    })
    .await
}

fn judge(
    subject: &Subject<'_>,
    plan: &Plan,
    cas: &Cas,
    accounts: &BTreeMap<String, Result<Option<String>, ()>>,
    names: &BTreeMap<NameKey, NameFacts>,
    zones: &BTreeMap<ZoneKey, ZoneFacts>,
    tried: &BTreeMap<WriteKey, Tried>,
) -> Vec<Note> {
    let unfinished = |what: String| {
        Note::warning("doctor.unfinished", format!("there was no time to look at {what}"))
            .why("servers that answer slowly, or not at all, took it")
            .fix("mend what else is said here, then run it again")
            .place("the network")
    };
    let key = key(subject);
    let Some(facts) = names.get(&key) else { return vec![unfinished(subject.base.to_string())] };
    let mut notes = Vec::new();
    let spec = &subject.acme.acme;
    let identities = ca::identities(&spec.directory, cas.get(&ca_wanted(spec)));
    let account = match accounts.get(&spec.directory) {
        Some(Ok(Some(url))) => Account::Known(url),
        Some(Ok(None)) => Account::None,
        _ => Account::Unknown,
    };
    let ca = ca::name(&spec.directory);
    let asker = Asker { identities: &identities, ca: &ca, account, method: "dns-01" };
    let base = DnsName::from(&subject.base);
    for (wanted, wildcard) in [(subject.exact, false), (subject.wildcard, true)] {
        if wanted {
            notes.push(caa::judge(&base, wildcard, &facts.caa, &asker));
        }
    }
    match (&facts.lead, &plan.responder) {
        (Some(lead), Some(responder)) => notes.extend(delegation::judge_lead(lead, &base, responder)),
        _ => notes.extend(challenge::judge(&facts.challenge)),
    }
    let home = facts.challenge.home.as_ref().map(|zone| zone.apex.clone());
    let target = facts.challenge.target.as_ref().ok().filter(|_| !key.builtin);
    let target_zone = target.and_then(|target| target.zone.as_ref()).map(|zone| zone.apex.clone());
    let waits = subject.dns.common.propagation.check == PropagationCheck::Authoritative;
    // An order waits for the servers of the target; those of the name's own zone say where that is.
    let strict = |apex: &&DnsName| waits && Some(*apex) == target_zone.as_ref();
    let other = home.as_ref().filter(|home| Some(*home) != target_zone.as_ref());
    for apex in target_zone.iter().chain(other) {
        match zones.get(&(key.resolvers.clone(), apex.clone())) {
            Some(facts) => notes.extend(zone::judge(facts, strict(&apex))),
            None => notes.push(unfinished(format!("the zone {apex}"))),
        }
    }
    if let (Some(target), Some(apex)) = (target, &target_zone) {
        let skipped = Tried::Skipped("it was told not to write (--no-write)".into());
        match tried.get(&write_key(subject.dns, &target.name)) {
            Some(outcome) => notes.push(provider::judge(&target.name, apex, subject.dns, outcome)),
            None if tried.is_empty() => {
                notes.push(provider::judge(&target.name, apex, subject.dns, &skipped));
            }
            None => notes.push(unfinished(format!("the credentials for {}", target.name))),
        }
    }
    notes
}

/// The responder's own names and addresses, once for all certificates: with the first that needs them.
async fn judge_responder(
    spec: &ResponderSpec,
    subjects: &[Subject<'_>],
    names: &BTreeMap<NameKey, NameFacts>,
    networks: &BTreeMap<Vec<SocketAddr>, Network>,
    runs: bool,
) -> Vec<Finding> {
    let Some(first) = subjects.iter().find(|subject| subject.acme.is_builtin()) else { return Vec::new() };
    let Some(network) = networks.get(&first.dns.common.resolvers) else { return Vec::new() };
    let mut notes = delegation::judge_names(&delegation::gather_names(&network.recursors, spec).await);
    let aliased = names.values().filter_map(|facts| facts.lead.as_ref()).any(LeadFacts::is_alias);
    if let Some(zone) = spec.zone.as_ref().filter(|_| aliased)
        && let Some(parent) = zone.parent()
    {
        let lead = delegation::gather_lead(&network.resolver, &parent, zone).await;
        notes.extend(delegation::judge_lead(&lead, &parent, spec));
    }
    if runs {
        notes.extend(delegation::judge_reach(&delegation::gather_reach(spec).await));
    }
    let about = About::Listener("responder".into());
    notes.into_iter().map(|note| note.about(&about)).collect()
}
