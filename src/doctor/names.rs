//! The names of every ACME certificate: gathered once for each name and zone, judged for each certificate.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::caa::{Account, Asker, CaaFacts};
use super::challenge::ChallengeFacts;
use super::delegation::{self, LeadFacts};
use super::finding::{About, Finding, Note, Severity};
use super::hosts::{self, HostFacts};
use super::provider::{self, Tried};
use super::subjects::{Cas, NameKey, Subject, key, of_ca, subjects};
use super::way::{self, Way};
use super::writes::{WriteKey, write_key, writes};
use super::zone::ZoneFacts;
use super::{Progress, With, ca, caa, challenge, persist, zone};
use crate::challenge::MissingRecord;
use crate::clock::SharedClock;
use crate::dns::PropagationCheck;
use crate::name::DnsName;
use crate::resolver::{Here, Resolver, Zone};
use crate::responder::ResponderSpec;

const AT_ONCE: usize = 8;
/// For each kind of question, over all names; what is not done by then is said to be so.
const NAMES_LIMIT: Duration = Duration::from_secs(25);
const ZONES_LIMIT: Duration = Duration::from_secs(20);

type ZoneKey = (Vec<SocketAddr>, DnsName);

/// What was seen of a name.
pub(super) struct NameFacts {
    pub(super) challenge: ChallengeFacts,
    caa: CaaFacts,
    /// For the built-in responder.
    lead: Option<LeadFacts>,
    /// For what the listeners answer.
    host: Option<HostFacts>,
    /// Of a record that stays.
    missing: Option<MissingRecord>,
}

/// Looks at every name of every ACME certificate.
pub(super) async fn examine(with: &With<'_>, cas: &Cas) -> Vec<Finding> {
    let With { plan, clock, progress, .. } = *with;
    let runs = with.running.is_some();
    let subjects = subjects(with, cas).await;
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
            let facts = look_at_name(network?, &key, responder, runs, clock).await;
            Some((key, facts))
        }
    })
    .await;

    let mut zones: BTreeMap<ZoneKey, Zone> = BTreeMap::new();
    for (key, facts) in &names {
        let target = facts.challenge.target.as_ref().ok().and_then(|target| target.zone.clone());
        let target = if key.way.writes() { target } else { None };
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

    let tried = writes(with, &subjects, &names, &networks).await;
    let mut findings = Vec::new();
    for subject in &subjects {
        let notes = judge(subject, with, cas, &names, &zones, &tried);
        findings.extend(notes.into_iter().map(|note| note.about(&subject.about)));
    }
    if let Some(spec) = responder {
        findings.extend(judge_responder(spec, &subjects, &names, &networks, runs).await);
    }
    findings
}

/// A way to ask: the configured resolvers of a provider.
pub(super) struct Network {
    pub(super) resolver: Resolver,
    recursors: Vec<SocketAddr>,
}

async fn networks(subjects: &[Subject<'_>]) -> BTreeMap<Vec<SocketAddr>, Network> {
    let mut networks = BTreeMap::new();
    for subject in subjects {
        if let Entry::Vacant(free) = networks.entry(subject.resolvers()) {
            let resolver = Resolver::new(free.key().clone());
            // Without any, following the first name says so.
            let recursors = resolver.recursors().await.unwrap_or_default();
            free.insert(Network { resolver, recursors });
        }
    }
    networks
}

async fn look_at_name(
    network: &Network,
    key: &NameKey,
    responder: Option<&ResponderSpec>,
    runs: bool,
    clock: &SharedClock,
) -> NameFacts {
    let here = match responder.filter(|_| key.way == Way::Builtin) {
        Some(spec) => Here { zone: spec.zone.clone(), cuts: true },
        None => Here::default(),
    };
    let base = DnsName::from(&key.base);
    let lead = async {
        match &key.way {
            Way::Builtin => {
                let challenge = DnsName::acme_challenge(&key.base);
                Some(delegation::gather_lead(&network.resolver, &base, &challenge).await)
            }
            _ => None,
        }
    };
    let host = async {
        match &key.way {
            Way::Listeners(ports) => {
                Some(hosts::gather(&network.recursors, &base, if runs { ports } else { &[] }).await)
            }
            _ => None,
        }
    };
    let stays = async {
        match &key.way {
            Way::Persist(known, wildcard) => {
                persist::gather(&network.resolver, clock, &key.base, known, *wildcard).await
            }
            _ => None,
        }
    };
    let (challenge, caa, lead, host, missing) = tokio::join!(
        challenge::gather(&network.resolver, &key.base, key.way.challenge_name(&key.base), &here),
        caa::gather(&network.recursors, &base),
        lead,
        host,
        stays
    );
    NameFacts { challenge, caa, lead, host, missing }
}

/// Runs one piece of work for each item, some at once, until `limit`; what is not finished is missing in the answer.
pub(super) async fn all<T, K: Ord, V, F>(
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

fn judge(
    subject: &Subject<'_>,
    with: &With<'_>,
    cas: &Cas,
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
    let spec = subject.spec;
    let identities = ca::identities(&spec.directory, of_ca(cas, &spec.directory));
    let account = match with.accounts.get(&spec.directory) {
        Some(Ok(Some(url))) => Account::Known(url),
        Some(Ok(None)) => Account::None,
        _ => Account::Unknown,
    };
    let ca = ca::name(&spec.directory);
    let methods = way::methods(subject.acme);
    let asker = Asker { identities: &identities, ca: &ca, account, methods: &methods };
    let base = DnsName::from(&subject.base);
    for (wanted, wildcard) in [(subject.exact, false), (subject.wildcard, true)] {
        if wanted {
            notes.push(caa::judge(&base, wildcard, &facts.caa, &asker));
        }
    }
    if key.way == Way::Builtin {
        notes.extend(caa::advise(&base, &facts.caa, &asker));
    }
    if subject.fallback {
        // The rest is the same for every CA, but for what stands in DNS of the account.
        notes.retain(|note| note.severity != Severity::Ok);
        match &key.way {
            Way::Persist(known, wildcard) => {
                notes.push(persist::judge(&subject.base, known, *wildcard, facts.missing.as_ref()));
            }
            Way::Label(None) => notes.push(challenge::unlabelled(&subject.base, &ca, account)),
            Way::Label(Some(_)) => notes.extend(challenge::judge(&facts.challenge)),
            Way::Builtin | Way::Provider | Way::Listeners(_) => {}
        }
        return notes.into_iter().map(|note| note.of_fallback(&ca)).collect();
    }
    match (&key.way, &facts.lead, &with.plan.responder, &facts.host) {
        (_, Some(lead), Some(responder), _) => notes.extend(delegation::judge_lead(lead, &base, responder)),
        (.., Some(host)) => notes.extend(hosts::judge(&base, &methods.join(" and "), host)),
        (Way::Persist(known, wildcard), ..) => {
            notes.push(persist::judge(&subject.base, known, *wildcard, facts.missing.as_ref()));
        }
        (Way::Label(None), ..) => notes.push(challenge::unlabelled(&subject.base, &ca, account)),
        _ => notes.extend(challenge::judge(&facts.challenge)),
    }
    let home = facts.challenge.home.as_ref().map(|zone| zone.apex.clone());
    let target = facts.challenge.target.as_ref().ok().filter(|_| key.way.writes());
    let target_zone = target.and_then(|target| target.zone.as_ref()).map(|zone| zone.apex.clone());
    let waits =
        subject.dns().is_some_and(|dns| dns.common.propagation.check == PropagationCheck::Authoritative);
    // An order waits for the servers of the target; those of the name's own zone say where that is.
    let strict = |apex: &&DnsName| waits && Some(*apex) == target_zone.as_ref();
    let other = home.as_ref().filter(|home| Some(*home) != target_zone.as_ref());
    for apex in target_zone.iter().chain(other) {
        match zones.get(&(key.resolvers.clone(), apex.clone())) {
            Some(facts) => notes.extend(zone::judge(facts, strict(&apex))),
            None => notes.push(unfinished(format!("the zone {apex}"))),
        }
    }
    if let (Some(target), Some(apex), Some(dns)) = (target, &target_zone, subject.dns()) {
        let skipped = Tried::Skipped("it was told not to write (--no-write)".into());
        match tried.get(&write_key(dns, &target.name)) {
            Some(outcome) => notes.push(provider::judge(&target.name, apex, dns, outcome)),
            None if tried.is_empty() => {
                notes.push(provider::judge(&target.name, apex, dns, &skipped));
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
    let Some(first) = subjects.iter().find(|subject| subject.way == Way::Builtin) else { return Vec::new() };
    let Some(network) = networks.get(&first.resolvers()) else { return Vec::new() };
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
