//! From a plan's certificates to issuers: providers, solvers, CAs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::acme::{AcmeIssuer, AcmeSpec};
use crate::certs::{Wanted, WantedFiles};
use crate::challenge::{
    Answers, ChallengeKind, ChallengeSolver, Dns01Solver, Janitor, OwnResponder, PersistSolver, WebSolver,
};
use crate::clock::SharedClock;
use crate::config::{AcmePlan, CertificatePlan, FilesPlan, IssuerPlan, Plan};
use crate::deploy::Job;
use crate::dns::{self, ProviderKind, ProviderSpec, Surroundings, TxtProvider, VendorValue, ZoneTurns};
use crate::issuer::Issuer;
use crate::local_ca::LocalCa;
use crate::resolver::Resolver;
use crate::secret::SecretSource;
use crate::storage::Storage;
use crate::tls::Validations;

/// What issuers stand on; lives as long as the process.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) clock: SharedClock,
    pub(super) janitor: Janitor,
    pub(super) turns: ZoneTurns,
    /// Writes into the responder's zones.
    pub(super) builtin: Arc<dyn TxtProvider>,
    /// What the listeners answer to http-01.
    pub(super) answers: Answers,
    /// What they answer to tls-alpn-01.
    pub(super) validations: Validations,
}

/// What a plan's certificates need.
pub(super) struct Issuers {
    pub(super) wanted: Vec<Wanted>,
    /// Certificates that somebody else renews.
    pub(super) files: Vec<WantedFiles>,
    /// Whom they are passed on to.
    pub(super) deploys: Vec<Job>,
    /// One for each distinct way to write TXT records, for the sweep.
    pub(super) providers: Vec<Arc<dyn TxtProvider>>,
}

/// Reads secrets and roots, asks nobody. The error is for a person. `responder` is where our own responder answers.
pub(super) fn build(plan: &Plan, ground: &Ground, responder: &[SocketAddr]) -> Result<Issuers, String> {
    let mut maker = Maker { plan, ground, responder, solvers: Vec::new(), web: Vec::new(), acme: Vec::new() };
    let local: Arc<dyn Issuer> = Arc::new(local_ca(plan, ground.storage.clone(), ground.clock.clone()));
    let mut wanted = Vec::with_capacity(plan.certificates.len());
    let (mut files, mut deploys) = (Vec::new(), Vec::new());
    for certificate in &plan.certificates {
        let names: Arc<[_]> = certificate.names.clone().into();
        for spec in &certificate.deploy {
            deploys.push(Job { names: names.clone(), spec: spec.clone() });
        }
        wanted.push(match &certificate.issuer {
            IssuerPlan::Files(from) => {
                files.push(read(from, certificate)?);
                continue;
            }
            IssuerPlan::Local => Wanted {
                names,
                issuers: [local.clone()].into(),
                rehearsal: None,
                rehearse: false,
                fingerprint: "local".to_owned(),
            },
            IssuerPlan::Acme(acme) => Wanted {
                names,
                issuers: maker.issuers(acme)?.into(),
                rehearsal: maker.rehearsal(acme)?,
                rehearse: acme.acme.rehearse,
                fingerprint: fingerprint(acme, plan, responder),
            },
        });
    }
    let mut seen: Vec<&ProviderSpec> = Vec::new();
    let mut providers = Vec::new();
    for (spec, _, (provider, _)) in maker.solvers {
        if !seen.contains(&spec) {
            seen.push(spec);
            providers.push(provider);
        }
    }
    Ok(Issuers { wanted, files, deploys, providers })
}

/// The error is for a person.
fn read(from: &FilesPlan, certificate: &CertificatePlan) -> Result<WantedFiles, String> {
    let first = from.files.read().map_err(|error| format!("[[certificates]]: {error}"))?.bundle;
    let names: Arc<[_]> = if from.named { certificate.names.clone().into() } else { Arc::new([]) };
    if !first.covers(&names) {
        return Err(format!(
            "[[certificates]]: {} is for {:?} and not for all of {names:?}",
            from.files.cert.display(),
            first.names()
        ));
    }
    Ok(WantedFiles { files: from.files.clone(), names, first: Arc::new(first) })
}

/// The local CA for a plan's names.
pub(super) fn local_ca(plan: &Plan, storage: Arc<dyn Storage>, clock: SharedClock) -> LocalCa {
    let local = plan.certificates.iter().filter(|certificate| certificate.issuer == IssuerPlan::Local);
    LocalCa::new(storage, clock, local.flat_map(|certificate| certificate.names.clone()).collect())
}

/// Makes one issuer for each distinct CA and way to prove names, and one solver for each such way.
struct Maker<'a> {
    plan: &'a Plan,
    ground: &'a Ground,
    responder: &'a [SocketAddr],
    solvers: Vec<(&'a ProviderSpec, ChallengeKind, Solver)>,
    web: Vec<(&'a [ChallengeKind], Arc<WebSolver>)>,
    acme: Vec<(AcmeSpec, &'a AcmePlan, Arc<dyn Issuer>)>,
}

impl<'a> Maker<'a> {
    /// One for each CA of a certificate, the preferred one first.
    fn issuers(&mut self, plan: &'a AcmePlan) -> Result<Vec<Arc<dyn Issuer>>, String> {
        let specs = std::iter::once(&plan.acme).chain(&plan.fallback);
        specs.map(|spec| self.issuer(spec, plan)).collect()
    }

    /// The staging of the preferred CA, if it has one.
    fn rehearsal(&mut self, plan: &'a AcmePlan) -> Result<Option<Arc<dyn Issuer>>, String> {
        plan.acme.staging().map(|spec| self.issuer(&spec, plan)).transpose()
    }

    /// The issuer at one CA for a certificate that is proven as `plan` says.
    fn issuer(&mut self, spec: &AcmeSpec, plan: &'a AcmePlan) -> Result<Arc<dyn Issuer>, String> {
        let same = |other: &AcmePlan| other.dns == plan.dns && other.challenge == plan.challenge;
        if let Some((_, _, issuer)) = self.acme.iter().find(|(s, other, _)| s == spec && same(other)) {
            return Ok(issuer.clone());
        }
        let solver = self.solver(plan)?;
        let (storage, clock) = (self.ground.storage.clone(), self.ground.clock.clone());
        let issuer: Arc<dyn Issuer> = Arc::new(
            AcmeIssuer::new(spec.clone(), solver, storage, clock).map_err(|e| format!("acme: {e}"))?,
        );
        self.acme.push((spec.clone(), plan, issuer.clone()));
        Ok(issuer)
    }

    fn solver(&mut self, plan: &'a AcmePlan) -> Result<Arc<dyn ChallengeSolver>, String> {
        match plan.challenge.first() {
            Some(kind) if kind.writes_records() => match &plan.dns {
                Some(provider) => Ok(self.records(provider, *kind)?),
                None => Err(format!("acme: nobody writes the records for {kind}")),
            },
            Some(ChallengeKind::DnsPersist01) => {
                let resolvers = plan.dns.as_ref().map(|dns| dns.common.resolvers.clone()).unwrap_or_default();
                let resolver = Arc::new(Resolver::new(resolvers));
                Ok(Arc::new(PersistSolver::new(resolver, self.ground.clock.clone())))
            }
            _ => Ok(self.listeners(&plan.challenge)),
        }
    }

    /// Proves by the listeners. One for all certificates, so that what a CA could not see is known to all.
    fn listeners(&mut self, kinds: &'a [ChallengeKind]) -> Arc<WebSolver> {
        if let Some((_, solver)) = self.web.iter().find(|(known, _)| *known == kinds) {
            return solver.clone();
        }
        let Ground { answers, validations, .. } = self.ground;
        let solver = Arc::new(WebSolver::new(kinds.to_vec(), answers.clone(), validations.clone()));
        self.web.push((kinds, solver.clone()));
        solver
    }

    /// Proves by TXT records that are written for each order.
    fn records(&mut self, spec: &'a ProviderSpec, kind: ChallengeKind) -> Result<Arc<Dns01Solver>, String> {
        if let Some((_, _, (_, solver))) = self.solvers.iter().find(|(s, k, _)| *s == spec && *k == kind) {
            return Ok(solver.clone());
        }
        let made = solver(self.plan, spec, kind, self.ground, self.responder)?;
        let solver = made.1.clone();
        self.solvers.push((spec, kind, made));
        Ok(solver)
    }
}

type Solver = (Arc<dyn TxtProvider>, Arc<Dns01Solver>);

fn solver(
    plan: &Plan,
    spec: &ProviderSpec,
    kind: ChallengeKind,
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
    let solver = solver.answering(kind).in_a_given_zone(spec.common.zone.is_some());
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

/// Every secret that issuers and upstreams are made with and that may be rotated while we run. The webhook's is read for each message.
pub(super) fn sources(plan: &Plan) -> Vec<SecretSource> {
    let acme = plan.certificates.iter().filter_map(|certificate| match &certificate.issuer {
        IssuerPlan::Acme(acme) => Some(acme),
        IssuerPlan::Local | IssuerPlan::Files(_) => None,
    });
    let mut sources: Vec<SecretSource> = Vec::new();
    for sticky in plan.upstreams.iter().filter_map(|upstream| upstream.sticky.as_ref()) {
        if !matches!(sticky.secret, SecretSource::Plain(_)) && !sources.contains(&sticky.secret) {
            sources.push(sticky.secret.clone());
        }
    }
    for plan in acme {
        let bindings = std::iter::once(&plan.acme).chain(&plan.fallback).filter_map(|spec| spec.eab.as_ref());
        let dns = plan.dns.iter().flat_map(secrets).map(|(_, source)| source);
        for source in dns.chain(bindings.map(|eab| &eab.hmac)) {
            if !matches!(source, SecretSource::Plain(_)) && !sources.contains(source) {
                sources.push(source.clone());
            }
        }
    }
    sources
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
