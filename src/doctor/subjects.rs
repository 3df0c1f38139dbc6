//! What has to be proved: each name of each ACME certificate, to each CA that may be asked for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::finding::About;
use super::way::{self, Known, Way};
use super::{With, ca};
use crate::acme::{Accounts, AcmeSpec};
use crate::challenge::ChallengeKind;
use crate::config::{AcmePlan, IssuerPlan};
use crate::dns::ProviderSpec;
use crate::name::HostName;

/// What is known of each CA.
pub(super) type Cas = BTreeMap<ca::Wanted, ca::CaFacts>;

/// One name to prove, for one certificate, to one CA.
pub(super) struct Subject<'a> {
    pub(super) about: About,
    pub(super) acme: &'a AcmePlan,
    /// The CA, and whether others are asked before it.
    pub(super) spec: &'a AcmeSpec,
    pub(super) fallback: bool,
    pub(super) way: Way,
    pub(super) base: HostName,
    /// Whether the certificate has the name itself, and whether it has the wildcard below it.
    pub(super) exact: bool,
    pub(super) wildcard: bool,
}

impl<'a> Subject<'a> {
    pub(super) fn dns(&self) -> Option<&'a ProviderSpec> {
        self.acme.dns.as_ref()
    }

    pub(super) fn resolvers(&self) -> Vec<SocketAddr> {
        self.dns().map(|dns| dns.common.resolvers.clone()).unwrap_or_default()
    }
}

/// What is asked for once, however many certificates need it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NameKey {
    pub(super) resolvers: Vec<SocketAddr>,
    pub(super) base: HostName,
    pub(super) way: Way,
}

/// What a spec wants of its CA.
pub(super) fn ca_wanted(spec: &AcmeSpec) -> ca::Wanted {
    ca::Wanted {
        directory: spec.directory.clone(),
        ca_root: spec.ca_root.clone(),
        external_account: spec.eab.is_some(),
        profile: spec.profile.clone(),
    }
}

pub(super) async fn subjects<'a>(with: &With<'a>, cas: &Cas) -> Vec<Subject<'a>> {
    let mut subjects = Vec::new();
    let thumbprints = thumbprints(with).await;
    for certificate in &with.plan.certificates {
        let IssuerPlan::Acme(acme) = &certificate.issuer else { continue };
        let names = certificate.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut bases: BTreeMap<&HostName, (bool, bool)> = BTreeMap::new();
        for name in &certificate.names {
            if let Some(base) = name.base() {
                let entry = bases.entry(base).or_default();
                if name.is_wildcard() { entry.1 = true } else { entry.0 = true }
            }
        }
        for spec in specs(acme) {
            let url = match with.accounts.get(&spec.directory) {
                Some(Ok(url)) => url.as_deref().map(Ok),
                Some(Err(())) | None => Some(Err(())),
            };
            let thumbprint = thumbprints.get(&spec.directory).map(String::as_str);
            let known = Known { url, thumbprint, ca: of_ca(cas, &spec.directory) };
            let fallback = !std::ptr::eq(spec, &raw const acme.acme);
            for (base, (exact, wildcard)) in &bases {
                let about = About::Certificate(names.clone());
                let way = way::of(acme, *wildcard, &known);
                let (base, exact, wildcard) = ((*base).clone(), *exact, *wildcard);
                subjects.push(Subject { about, acme, spec, fallback, way, base, exact, wildcard });
            }
        }
    }
    subjects
}

/// Of the accounts whose keys stand in DNS, by directory.
async fn thumbprints(with: &With<'_>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let Ok(storage) = &with.kept.reads else { return found };
    let accounts = Accounts::new(storage.clone(), with.clock.clone());
    for certificate in &with.plan.certificates {
        let IssuerPlan::Acme(acme) = &certificate.issuer else { continue };
        for spec in specs(acme).filter(|_| acme.challenge.contains(&ChallengeKind::DnsPersist01)) {
            if let Ok(info) = accounts.kept(spec).await {
                found.extend(info.thumbprint.map(|thumbprint| (spec.directory.clone(), thumbprint)));
            }
        }
    }
    found
}

/// The preferred CA first.
fn specs(acme: &AcmePlan) -> impl Iterator<Item = &AcmeSpec> {
    std::iter::once(&acme.acme).chain(&acme.fallback)
}

pub(super) fn of_ca<'c>(cas: &'c Cas, directory: &str) -> Option<&'c ca::CaFacts> {
    cas.iter().find(|(wanted, _)| wanted.directory == directory).map(|(_, facts)| facts)
}

pub(super) fn key(subject: &Subject<'_>) -> NameKey {
    NameKey { resolvers: subject.resolvers(), base: subject.base.clone(), way: subject.way.clone() }
}
