//! Which certificates to hold: those that are listed, and one for each route's host that none of them covers.

use std::collections::BTreeSet;

use super::certificate_files;
use super::challenge::{Choice, Doors};
use super::decode::Decoder;
use super::error::{Problem, Span};
use super::issuer::{self, Authority};
use super::passing;
use super::plan::{AcmePlan, CertificatePlan, IssuerPlan};
use super::routes::Route;
use super::value::{At, Fields, Slot};
use crate::acme::{AcmeSpec, LETS_ENCRYPT, LETS_ENCRYPT_STAGING};
use crate::challenge::ChallengeKind;
use crate::dns::ProviderSpec;
use crate::listen::ListenSpec;
use crate::name::{DnsName, HostPattern};

/// The most names that a CA takes in one order.
const MAX_NAMES: usize = 100;

/// Who signs and who answers, where a certificate does not say it.
pub(super) struct Defaults {
    /// `None` if it is wrong.
    pub(super) authority: Option<Authority>,
    pub(super) dns: Slot<ProviderSpec>,
    pub(super) acme_is_local: bool,
    choice: Choice,
    doors: Doors,
}

impl Defaults {
    /// Reads `[acme]` and `[dns]`.
    pub(super) fn read(decoder: &mut Decoder<'_>, file: &Fields, listen: &ListenSpec) -> Self {
        let choice = Choice::of(&file.slot("acme"));
        let authority = match file.slot::<Fields>("acme") {
            Slot::Absent => Some(Authority::default_one()),
            Slot::Broken => None,
            Slot::Given(at) => issuer::authority(decoder, &at.value),
        };
        let dns = own_provider(decoder, file);
        let acme_is_local = authority == Some(Authority::Local);
        Self { authority, dns, acme_is_local, choice, doors: Doors::of(listen) }
    }
}

fn own_provider(decoder: &mut Decoder<'_>, fields: &Fields) -> Slot<ProviderSpec> {
    match fields.slot::<Fields>("dns") {
        Slot::Absent => Slot::Absent,
        Slot::Broken => Slot::Broken,
        Slot::Given(At { value, span }) => match issuer::provider(decoder, &value) {
            Some(value) => Slot::Given(At { value, span }),
            None => Slot::Broken,
        },
    }
}

/// A certificate and the place that asked for it.
pub(super) struct Wanted {
    /// `None` if who signs it is wrong; that was said.
    pub(super) plan: Option<CertificatePlan>,
    pub(super) names: Vec<HostPattern>,
    pub(super) span: Span,
}

/// Listed certificates, then derived ones. `tls` is false if nobody listens with TLS: then none is derived.
pub(super) fn wanted(
    decoder: &mut Decoder<'_>,
    file: &Fields,
    defaults: &Defaults,
    routes: &[Route],
    tls: bool,
) -> Vec<Wanted> {
    let sections: Vec<At<Fields>> = file.list("certificates").unwrap_or_default();
    if let (false, Some(first)) = (tls, sections.first()) {
        let problem = Problem::warning(
            first.span.clone(),
            "nobody listens with TLS, so no client sees this certificate",
        );
        decoder.push(problem.help("`listen.https` is []"));
    }
    let mut all: Vec<Wanted> = Vec::new();
    for section in &sections {
        let wanted = listed(decoder, &section.value, defaults, &all);
        all.extend(wanted);
    }
    // A name that could not be read may be the one that covers a host: then nothing is said about hosts without DNS.
    let broken = |section: &At<Fields>| {
        let names = section.value.span_of("names");
        decoder.problems.iter().any(|problem| names.contains(&problem.span().start))
    };
    let whole = file.has("certificates") == file.list::<Fields>("certificates").is_some();
    if tls {
        let whole = whole && !sections.iter().any(broken);
        derived(decoder, defaults, routes, whole, &mut all);
    }
    all
}

fn listed(
    decoder: &mut Decoder<'_>,
    section: &Fields,
    defaults: &Defaults,
    before: &[Wanted],
) -> Option<Wanted> {
    if certificate_files::are_meant(section) {
        let listed = certificate_files::listed(decoder, section)?;
        check_names(decoder, &listed.given, before);
        return Some(listed.wanted);
    }
    if !section.has("names") {
        let missing = "`names` is missing in [[certificates]]";
        decoder.push(Problem::error(section.span.clone(), missing).help(
            "names: Its names; `*.` stands for exactly one label; or `cert` and `key`: files that someone else renews",
        ));
    }
    let names: Vec<At<HostPattern>> = section.list("names")?;
    if names.is_empty() {
        let place = section.span_of("names");
        if !decoder.problems.iter().any(|problem| place.contains(&problem.span().start)) {
            decoder.push(Problem::error(place, "a certificate needs at least one name"));
        }
        return None;
    }
    check_names(decoder, &names, before);
    let choice = match section.has("acme") {
        true => Choice::of(&section.slot("acme")),
        false => defaults.choice.clone(),
    };
    let authority = match section.slot::<Fields>("acme") {
        Slot::Absent => defaults.authority.clone(),
        Slot::Broken => None,
        Slot::Given(at) => issuer::authority(decoder, &at.value),
    };
    let own_dns = own_provider(decoder, section);
    let dns = match &own_dns {
        Slot::Absent => &defaults.dns,
        own => own,
    };
    let mut plain: Vec<HostPattern> = names.iter().map(|at| at.value.clone()).collect();
    plain.sort();
    plain.dedup();
    let span = section.span_of("names");
    let local = names.iter().find(|at| at.value.is_local());
    let public = names.iter().find(|at| !at.value.is_local());
    let issuer = match (authority, local, public) {
        (Some(Authority::Local), ..) => Some(IssuerPlan::Local),
        (_, Some(local), Some(public)) => {
            decoder.push(
                Problem::error(local.span.clone(), format!("no public CA signs `{}`", local.value))
                    .label("this name is for the local CA")
                    .also(public.span.clone(), "this one is not")
                    .help("put it into a certificate of its own"),
            );
            None
        }
        (_, Some(_), None) => {
            for key in ["acme", "dns"] {
                if section.has(key) {
                    decoder.push(
                        Problem::error(
                            section.span_of(key),
                            format!("`{key}` has no effect on this certificate"),
                        )
                        .label("leave it out")
                        .also(span.clone(), "the local CA signs these names"),
                    );
                }
            }
            Some(IssuerPlan::Local)
        }
        (None, ..) => None,
        (Some(Authority::Acme(acme, fallback)), None, _) => {
            for name in &names {
                refuse_private(decoder, &acme.directory, name);
            }
            let kinds = choice.kinds(decoder, &names, dns, &defaults.doors);
            kinds.and_then(|kinds| match (dns, kinds.is_empty()) {
                (_, true) => {
                    no_dns(decoder, span.clone(), &plain);
                    None
                }
                (Slot::Given(dns), false) => Some(by_acme(&acme, &fallback, Some(dns.value.clone()), kinds)),
                (Slot::Absent, false) => Some(by_acme(&acme, &fallback, None, kinds)),
                (Slot::Broken, false) => None,
            })
        }
    };
    let deploy = passing::deploy(decoder, section);
    let plan = issuer.map(|issuer| CertificatePlan { names: plain.clone(), issuer, deploy });
    Some(Wanted { plan, names: plain, span })
}

fn by_acme(
    acme: &AcmeSpec,
    fallback: &[AcmeSpec],
    dns: Option<ProviderSpec>,
    challenge: Vec<ChallengeKind>,
) -> IssuerPlan {
    let pins = challenge.iter().any(|kind| kind.pins_account());
    let pinned = |spec: &AcmeSpec| AcmeSpec { pinned: spec.pinned || pins, ..spec.clone() };
    let fallback = fallback.iter().map(pinned).collect();
    IssuerPlan::Acme(AcmePlan { acme: pinned(acme), fallback, dns, challenge })
}

fn check_names(decoder: &mut Decoder<'_>, names: &[At<HostPattern>], before: &[Wanted]) {
    for (index, name) in names.iter().enumerate() {
        let elsewhere =
            before.iter().find(|wanted| wanted.names.contains(&name.value)).map(|wanted| &wanted.span);
        let earlier = names[..index].iter().find(|other| other.value == name.value).map(|other| &other.span);
        let wildcard =
            names.iter().find(|other| other.value != name.value && other.value.covers(&name.value));
        if let Some(first) = earlier.or(elsewhere) {
            decoder.push(
                Problem::error(name.span.clone(), format!("`{}` is already in a certificate", name.value))
                    .label("again here")
                    .also(first.clone(), "first here"),
            );
        } else if let Some(wildcard) = wildcard {
            decoder.push(
                Problem::error(name.span.clone(), format!("`{}` beside `{}`", name.value, wildcard.value))
                    .label("leave it out: the wildcard covers it, and CAs refuse both in one order"),
            );
        }
    }
    if let Some(extra) = names.get(MAX_NAMES) {
        let message = format!("{} names in one certificate", names.len());
        decoder
            .push(Problem::error(extra.span.clone(), message).label(format!("CAs take {MAX_NAMES} at most")));
    }
}

fn refuse_private(decoder: &mut Decoder<'_>, directory: &str, name: &At<HostPattern>) {
    if ![LETS_ENCRYPT, LETS_ENCRYPT_STAGING].contains(&directory) {
        return;
    }
    if let Some(why) = issuer::not_public(&name.value) {
        decoder.push(
            Problem::error(name.span.clone(), format!("Let's Encrypt does not sign `{}`", name.value)).label(why).help(
                "for a private name set `acme.ca` to \"local\" or to the URL of your own ACME directory, or use a name below .internal",
            ),
        );
    }
}

fn no_dns(decoder: &mut Decoder<'_>, span: Span, names: &[HostPattern]) {
    let problem = Problem::error(span, format!("nobody answers DNS-01 for {}", listing(names)))
        .label("a certificate for this needs a [dns] section");
    let problem = match names.iter().any(HostPattern::is_wildcard) {
        true => {
            problem.help("only wildcards need one: a host with a route of its own is proven by the listeners")
        }
        false => problem,
    };
    decoder.push(
        problem
            .help("with a vendor: [dns] provider = \"cloudflare\", token = { file = \"...\" }")
            .help("without any credential: [dns] provider = \"builtin\", and a [responder]")
            .help("on a laptop: [acme] ca = \"local\"; behind another TLS server: [listen] https = []"),
    );
}

/// `a`, `b` and 3 more.
pub(super) fn listing(names: &[HostPattern]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        [one, two] => format!("`{one}` and `{two}`"),
        [one, two, rest @ ..] => format!("`{one}`, `{two}` and {} more", rest.len()),
    }
}

fn derived(
    decoder: &mut Decoder<'_>,
    defaults: &Defaults,
    routes: &[Route],
    listed_is_whole: bool,
    all: &mut Vec<Wanted>,
) {
    let mut hosts: Vec<(&HostPattern, &Span)> = Vec::new();
    for route in routes.iter().filter(|route| !route.is_passed_through()) {
        if let Some(host) = route.pattern()
            && !hosts.iter().any(|(known, _)| *known == host)
        {
            hosts.push((host, &route.key.span));
        }
    }
    let mut homeless = Vec::new();
    let mut local = Vec::new();
    let covered = |host: &HostPattern| all.iter().flat_map(|w| &w.names).any(|name| name.covers(host));
    // The local CA's signatures cost nothing, and browsers and OpenSSL refuse `*.localhost`: every name gets its own.
    let by_local_ca =
        |host: &HostPattern| host.is_local() || matches!(defaults.authority, Some(Authority::Local));
    let orphans: Vec<_> = hosts
        .iter()
        .filter(|(host, _)| !covered(host))
        .filter(|(host, _)| {
            by_local_ca(host) || !hosts.iter().any(|(other, _)| *other != *host && other.covers(host))
        })
        .copied()
        .collect();
    for (host, span) in orphans {
        let issuer = match (&defaults.authority, &defaults.dns) {
            _ if host.is_local() => {
                local.push(At { value: host.clone(), span: span.clone() });
                Some(IssuerPlan::Local)
            }
            (Some(Authority::Local), _) => Some(IssuerPlan::Local),
            (Some(Authority::Acme(acme, fallback)), dns) => {
                refuse_private(decoder, &acme.directory, &At { value: host.clone(), span: span.clone() });
                let name = At { value: host.clone(), span: span.clone() };
                let kinds = defaults.choice.kinds(decoder, std::slice::from_ref(&name), dns, &defaults.doors);
                kinds.and_then(|kinds| match (dns, kinds.is_empty()) {
                    (_, true) => {
                        homeless.push(name);
                        None
                    }
                    (Slot::Given(dns), false) => {
                        Some(by_acme(acme, fallback, Some(dns.value.clone()), kinds))
                    }
                    (Slot::Absent, false) => Some(by_acme(acme, fallback, None, kinds)),
                    (Slot::Broken, false) => None,
                })
            }
            (None, _) => None,
        };
        let names = vec![host.clone()];
        let plan = issuer.map(|issuer| CertificatePlan { names: names.clone(), issuer, deploy: Vec::new() });
        all.push(Wanted { plan, names, span: span.clone() });
    }
    let names = |list: &[At<HostPattern>]| list.iter().map(|at| at.value.clone()).collect::<Vec<_>>();
    if let Some(first) = homeless.first().filter(|_| listed_is_whole) {
        no_dns(decoder, first.span.clone(), &names(&homeless));
    }
    if let Some(first) = local.first().filter(|_| !defaults.acme_is_local) {
        let what = if local.len() == 1 { "a certificate" } else { "certificates" };
        decoder.push(
            Problem::warning(
                first.span.clone(),
                format!("the local CA signs {what} for {}", listing(&names(&local))),
            )
            .label("no public CA signs such a name")
            .help("clients have to trust its root; [acme] ca = \"local\" says that this is meant"),
        );
    }
}

/// The `_acme-challenge` names that the built-in responder answers for, sorted.
pub(super) fn challenge_names(plans: &[CertificatePlan]) -> Vec<DnsName> {
    let builtin =
        |plan: &&CertificatePlan| matches!(&plan.issuer, IssuerPlan::Acme(acme) if acme.is_builtin());
    let names = plans.iter().filter(builtin).flat_map(|plan| &plan.names);
    let challenges: BTreeSet<DnsName> =
        names.filter_map(HostPattern::base).map(DnsName::acme_challenge).collect();
    challenges.into_iter().collect()
}
