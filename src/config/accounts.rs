//! What belongs to the account at a CA, and so to every certificate that is ordered there: contact, binding, limits.

use super::decode::Decoder;
use super::error::{Problem, Span};
use super::issuer;
use super::plan::{CertificatePlan, IssuerPlan};
use super::value::{At, Fields};
use crate::acme::{AcmeIssuer, AcmeSpec, EabSpec, KnownCa};
use crate::issuer::{CaLimits, KeyKind};
use crate::storage::Key;

/// What one section says of the account at its CA.
struct Said {
    /// Where the account is kept: sections with the same one share it, and what is counted.
    account: Key,
    known: Option<&'static KnownCa>,
    title: String,
    ca: Span,
    email: Option<At<String>>,
    eab: Option<At<EabSpec>>,
    /// Right or wrong.
    has_eab: bool,
    limits: Option<At<CaLimits>>,
}

/// Says where two sections say different things of one account. What one of them leaves out is taken from those that say it.
pub(super) fn agree(decoder: &mut Decoder<'_>, file: &Fields, plans: &mut [CertificatePlan]) {
    let said = sections(file);
    for (index, one) in said.iter().enumerate() {
        let before = || said[..index].iter().filter(|other| other.account == one.account);
        let ca = one.title.as_str();
        differ(decoder, "email", ca, one.email.as_ref(), before().find_map(|other| other.email.as_ref()));
        differ(decoder, "eab", ca, one.eab.as_ref(), before().find_map(|other| other.eab.as_ref()));
        differ(decoder, "limits", ca, one.limits.as_ref(), before().find_map(|other| other.limits.as_ref()));
        let bound = said.iter().any(|other| other.account == one.account && other.has_eab);
        if let Some((known, how)) = one.known.and_then(|known| Some((known, known.eab?)))
            && !bound
        {
            unbound(decoder, known, how, one.ca.clone());
        }
    }
    let all = plans.iter_mut().filter_map(|plan| match &mut plan.issuer {
        IssuerPlan::Acme(acme) => Some(std::iter::once(&mut acme.acme).chain(&mut acme.fallback)),
        _ => None,
    });
    for spec in all.flatten() {
        let account = AcmeIssuer::account_key(spec);
        let same = || said.iter().filter(|said| said.account == account);
        spec.email = spec.email.take().or_else(|| same().find_map(|said| value(said.email.as_ref())));
        spec.eab = spec.eab.take().or_else(|| same().find_map(|said| value(said.eab.as_ref())));
        spec.limits = spec.limits.take().or_else(|| same().find_map(|said| value(said.limits.as_ref())));
    }
}

/// Every section that names an ACME CA, in the order of the file's structure.
fn sections(file: &Fields) -> Vec<Said> {
    let own = file.list::<Fields>("certificates").unwrap_or_default();
    let own = own.into_iter().filter_map(|section| section.value.value::<Fields>("acme"));
    let mut all = Vec::new();
    for fields in file.value::<Fields>("acme").into_iter().chain(own) {
        let key = issuer::key_kind(&fields);
        let first = said(&fields, key);
        // A CA that is fallen back to has the same contact, unless it says another.
        let email = first.as_ref().and_then(|first| first.email.clone());
        all.extend(first);
        for other in fields.list::<Fields>("fallback").unwrap_or_default() {
            if other.value.has("ca") {
                let next = said(&other.value, key);
                all.extend(next.map(|next| Said { email: next.email.or_else(|| email.clone()), ..next }));
            }
        }
    }
    all
}

fn said(fields: &Fields, key: KeyKind) -> Option<Said> {
    let directory = issuer::directory_of(fields, key)?;
    let at = |key: &str| fields.slot::<Fields>(key).given();
    let email = fields.slot::<String>("email").given();
    let spec = AcmeSpec::new(directory);
    Some(Said {
        account: AcmeIssuer::account_key(&spec),
        known: spec.known(),
        title: spec.known().map_or_else(|| spec.host(), |known| known.title.to_owned()),
        ca: fields.span_of("ca"),
        email: email.and_then(|At { value, span }| Some(At { value: issuer::contact(&value).ok()?, span })),
        eab: at("eab").and_then(|At { value, span }| Some(At { value: issuer::binding(&value)?, span })),
        has_eab: fields.has("eab"),
        limits: at("limits").map(|At { value, span }| At { value: issuer::allowance(&value), span }),
    })
}

fn differ<T: PartialEq>(
    decoder: &mut Decoder<'_>,
    key: &str,
    ca: &str,
    one: Option<&At<T>>,
    before: Option<&At<T>>,
) {
    let (Some(one), Some(before)) = (one, before) else { return };
    if one.value == before.value || one.span == before.span {
        return;
    }
    let (what, why) = match key {
        "limits" => (
            "two different `limits` for one CA",
            "what a CA counts is counted once, whichever certificate it is for",
        ),
        "eab" => ("two different `eab` for one account", "a CA has one account here, which is bound once"),
        _ => ("two contacts for one account", "a CA has one account here, for all certificates"),
    };
    decoder.push(
        Problem::error(one.span.clone(), format!("{what}: both are for {ca}"))
            .label("this one differs")
            .also(before.span.clone(), "said here first")
            .help(why)
            .help(format!("write the same `{key}` in both, or leave one out: then the other holds for both")),
    );
}

/// No error: an account that was registered before needs no binding any more.
fn unbound(decoder: &mut Decoder<'_>, known: &KnownCa, how: &str, ca: Span) {
    let problem = Problem::warning(ca, format!("{} registers nobody without `eab`", known.title));
    decoder.push(
        problem
            .label("the first order fails, unless an account is kept in the state directory")
            .help(how)
            .help("then write eab = { kid = \"...\", hmac = { file = \"...\" } } beside `ca`"),
    );
}

fn value<T: Clone>(at: Option<&At<T>>) -> Option<T> {
    at.map(|at| at.value.clone())
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, parse};
    use super::*;

    #[test]
    fn what_one_section_says_of_an_account_holds_for_all_at_its_ca() {
        let env = Environment { state_dir: "/state".into(), runtime_dir: "/runtime".into() };
        let text = r#"
            dns = { provider = "exec", program = "/hook" }
            acme = { ca = "zerossl", fallback = ["google"] }
            [[certificates]]
            names = ["a.example.com"]
            acme = { ca = "zerossl", email = "ops@example.com", eab = { kid = "k", hmac = { env = "H" } }, profile = "p" }
            [[certificates]]
            names = ["b.example.com"]
            acme = { ca = "google", limits = { pause_after = 7 }, eab = { kid = "g", hmac = { env = "G" } } }
            [[certificates]]
            names = ["c.example.com"]
            acme = "https://ca.example.net/dir"
            [routes]
            "d.example.com" = { respond = 200 }
        "#;
        let loaded = parse(text, "f", &env).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(loaded.warnings.is_empty(), "who binds is known: {}", loaded.warnings);
        let plans = loaded.plan.certificates.iter();
        let specs = plans.filter_map(|plan| match &plan.issuer {
            IssuerPlan::Acme(acme) => Some(std::iter::once(&acme.acme).chain(&acme.fallback)),
            _ => None,
        });
        let shown: Vec<String> = specs
            .flatten()
            .map(|spec| {
                let kid = spec.eab.as_ref().map_or("-", |eab| eab.kid.as_str());
                let pause = spec.limits.as_ref().and_then(|limits| limits.pause_after);
                format!("{} {} {kid} {pause:?}", spec.host(), spec.email.as_deref().unwrap_or("-"))
            })
            .collect();
        let zerossl = "acme.zerossl.com ops@example.com k None";
        let google = "dv.acme-v02.api.pki.goog - g Some(7)";
        assert_eq!(shown, [zerossl, google, "ca.example.net - - None", zerossl, google]);
    }
}
