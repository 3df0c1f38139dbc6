//! From a plan's certificates to issuers: providers, solvers, CAs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::acme::{AcmeIssuer, AcmeSpec};
use crate::certs::Wanted;
use crate::challenge::{Dns01Solver, Janitor, OwnResponder};
use crate::clock::SharedClock;
use crate::config::{AcmePlan, IssuerPlan, Plan};
use crate::dns::{self, ProviderKind, ProviderSpec, Surroundings, TxtProvider, VendorValue, ZoneTurns};
use crate::issuer::Issuer;
use crate::local_ca::LocalCa;
use crate::resolver::Resolver;
use crate::secret::SecretSource;
use crate::storage::Storage;

/// What issuers stand on; lives as long as the process.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) clock: SharedClock,
    pub(super) janitor: Janitor,
    pub(super) turns: ZoneTurns,
    /// Writes into the responder's zones.
    pub(super) builtin: Arc<dyn TxtProvider>,
}

/// What a plan's certificates need.
pub(super) struct Issuers {
    pub(super) wanted: Vec<Wanted>,
    /// One for each distinct way to write TXT records, for the sweep.
    pub(super) providers: Vec<Arc<dyn TxtProvider>>,
}

/// Reads secrets and roots, asks nobody. The error is for a person. `responder` is where our own responder answers.
pub(super) fn build(plan: &Plan, ground: &Ground, responder: &[SocketAddr]) -> Result<Issuers, String> {
    let mut maker = Maker { plan, ground, responder, solvers: Vec::new(), acme: Vec::new() };
    let local: Arc<dyn Issuer> = Arc::new(local_ca(plan, ground.storage.clone(), ground.clock.clone()));
    let mut wanted = Vec::with_capacity(plan.certificates.len());
    for certificate in &plan.certificates {
        let names: Arc<[_]> = certificate.names.clone().into();
        let (issuers, fingerprint) = match &certificate.issuer {
            IssuerPlan::Local => (vec![local.clone()], "local".to_owned()),
            IssuerPlan::Acme(acme) => (maker.issuers(acme)?, fingerprint(acme, plan, responder)),
        };
        wanted.push(Wanted { names, issuers: issuers.into(), rehearsal: None, rehearse: false, fingerprint });
    }
    let providers = maker.solvers.into_iter().map(|(_, (provider, _))| provider).collect();
    Ok(Issuers { wanted, providers })
}

/// The local CA for a plan's names.
pub(super) fn local_ca(plan: &Plan, storage: Arc<dyn Storage>, clock: SharedClock) -> LocalCa {
    let local = plan.certificates.iter().filter(|certificate| certificate.issuer == IssuerPlan::Local);
    LocalCa::new(storage, clock, local.flat_map(|certificate| certificate.names.clone()).collect())
}

/// Makes one issuer for each distinct CA and provider, and one solver for each distinct provider.
struct Maker<'a> {
    plan: &'a Plan,
    ground: &'a Ground,
    responder: &'a [SocketAddr],
    solvers: Vec<(&'a ProviderSpec, Solver)>,
    acme: Vec<(&'a AcmeSpec, Option<&'a ProviderSpec>, Arc<dyn Issuer>)>,
}

impl<'a> Maker<'a> {
    /// One for each CA of a certificate, the preferred one first.
    fn issuers(&mut self, plan: &'a AcmePlan) -> Result<Vec<Arc<dyn Issuer>>, String> {
        let specs = std::iter::once(&plan.acme).chain(&plan.fallback);
        specs.map(|spec| self.issuer(spec, plan.dns.as_ref())).collect()
    }

    fn issuer(
        &mut self,
        spec: &'a AcmeSpec,
        dns: Option<&'a ProviderSpec>,
    ) -> Result<Arc<dyn Issuer>, String> {
        if let Some((_, _, issuer)) = self.acme.iter().find(|(a, d, _)| *a == spec && *d == dns) {
            return Ok(issuer.clone());
        }
        let Some(provider) = dns else { return Err("acme: nobody answers the challenge".to_owned()) };
        let solver = self.solver(provider)?;
        let (storage, clock) = (self.ground.storage.clone(), self.ground.clock.clone());
        let issuer: Arc<dyn Issuer> = Arc::new(
            AcmeIssuer::new(spec.clone(), solver, storage, clock).map_err(|e| format!("acme: {e}"))?,
        );
        self.acme.push((spec, dns, issuer.clone()));
        Ok(issuer)
    }

    fn solver(&mut self, spec: &'a ProviderSpec) -> Result<Arc<Dns01Solver>, String> {
        if let Some((_, (_, solver))) = self.solvers.iter().find(|(known, _)| *known == spec) {
            return Ok(solver.clone());
        }
        let made = solver(self.plan, spec, self.ground, self.responder)?;
        let solver = made.1.clone();
        self.solvers.push((spec, made));
        Ok(solver)
    }
}

type Solver = (Arc<dyn TxtProvider>, Arc<Dns01Solver>);

fn solver(
    plan: &Plan,
    spec: &ProviderSpec,
    ground: &Ground,
    responder: &[SocketAddr],
) -> Result<Solver, String> {
    let resolver = Arc::new(Resolver::new(spec.common.resolvers.clone()));
    let builtin = matches!(spec.kind, ProviderKind::Builtin);
    let surroundings = Surroundings {
        resolver: resolver.clone(),
        clock: ground.clock.clone(),
        turns: ground.turns.clone(),
        builtin: Some(ground.builtin.clone()),
    };
    let provider = dns::build(spec, &surroundings).map_err(|e| e.to_string())?;
    let own = builtin.then(|| OwnResponder {
        addresses: responder.to_vec(),
        zone: plan.responder.as_ref().and_then(|r| r.zone.clone()),
    });
    let propagation = spec.common.propagation.clone();
    let solver = Dns01Solver::new(provider.clone(), resolver, ground.janitor.clone(), propagation, own);
    Ok((provider, Arc::new(solver)))
}

/// Changes with everything that an attempt depends on, the contents of secrets included: whoever mends a token and reloads
/// wants to be tried at once.
fn fingerprint(acme: &AcmePlan, plan: &Plan, responder: &[SocketAddr]) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{acme:?}\n"));
    if acme.is_builtin() {
        digest.update(format!("{:?}\n{responder:?}\n", plan.responder));
    }
    let bindings = std::iter::once(&acme.acme).chain(&acme.fallback).filter_map(|spec| spec.eab.as_ref());
    let bindings = bindings.map(|eab| (eab.kid.as_str(), &eab.hmac));
    for (name, source) in acme.dns.iter().flat_map(secrets).chain(bindings) {
        // An unreadable secret is the business of `dns::build`, which has refused the plan before; that of an external account is
        // of use once and may be gone.
        let value = source.resolve().map(|s| s.expose().to_owned()).unwrap_or_default();
        digest.update(format!("{name}\0{value}\0"));
    }
    digest.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

fn secrets(dns: &ProviderSpec) -> BTreeMap<&str, &SecretSource> {
    match &dns.kind {
        ProviderKind::Builtin | ProviderKind::Exec { .. } | ProviderKind::AcmeDns { .. } => BTreeMap::new(),
        ProviderKind::Rfc2136 { secret, .. } => BTreeMap::from([("secret", secret)]),
        ProviderKind::Httpreq { password, .. } => password.iter().map(|p| ("password", p)).collect(),
        ProviderKind::Vendor { keys, .. } => keys
            .iter()
            .filter_map(|(name, value)| match value {
                VendorValue::Secret(source) => Some((*name, source)),
                VendorValue::Text(_) => None,
            })
            .collect(),
    }
}
