//! `[acme]` and `[dns]`, the defaults and a certificate's own: who signs, who answers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::blame::refusal;
use super::decode::Decoder;
use super::error::Problem;
use super::references::Reference;
use super::scalar::{self, Wrong};
use super::sections;
use super::table::nearest;
use super::value::{At, Fields, Value};
use crate::acme::{AcmeSpec, EabSpec, KnownCa, LETS_ENCRYPT};
use crate::dns::{
    CommonKeys, Propagation, PropagationCheck, ProviderKind, ProviderSpec, VendorValue, vendors,
};
use crate::issuer::{CaLimits, KeyKind, Rate};
use crate::name::HostPattern;
use crate::secret::SecretSource;

/// What an `[acme]` section says.
#[allow(clippy::large_enum_variant, reason = "a few for each file, made once")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    Local,
    /// The CA, and those that are tried after it.
    Acme(AcmeSpec, Vec<AcmeSpec>),
}

impl Authority {
    /// Without any `[acme]`: Let's Encrypt, without a contact.
    pub(super) fn default_one() -> Self {
        Self::Acme(AcmeSpec::new(LETS_ENCRYPT), Vec::new())
    }
}

/// Reads an `[acme]` section. `None` if it is wrong; that was said.
pub(super) fn authority(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<Authority> {
    let key = key_kind(fields);
    let local = fields.value::<String>("ca").is_some_and(|ca| ca == "local");
    if local {
        only_acme(decoder, fields);
        return Some(Authority::Local);
    }
    let spec = one(decoder, fields, key);
    let mut fallback: Vec<AcmeSpec> = Vec::new();
    let mut whole = true;
    for other in fields.list::<Fields>("fallback").unwrap_or_default() {
        if !other.value.has("ca") {
            let problem = Problem::error(other.span, "each of `fallback` needs a `ca`");
            decoder.push(problem.help(
                "write for example { ca = \"google\", eab = { kid = \"...\", hmac = { file = \"...\" } } }",
            ));
            whole = false;
            continue;
        }
        if other.value.value::<String>("ca").is_some_and(|ca| ca == "local") {
            let problem = Problem::error(other.value.span_of("ca"), "the local CA cannot be a fallback");
            decoder.push(
                problem
                    .label("clients do not trust it")
                    .help("name a second public CA, or leave `fallback` out"),
            );
            whole = false;
            continue;
        }
        let Some(mut next) = one(decoder, &other.value, key) else {
            whole = false;
            continue;
        };
        next.email = next.email.or_else(|| spec.as_ref().and_then(|spec| spec.email.clone()));
        let twice = spec.iter().chain(&fallback).any(|known| known.directory == next.directory);
        if twice {
            let problem = Problem::error(other.value.span_of("ca"), "this CA is in the list already");
            decoder.push(problem.label("it would be down or refuse again"));
            whole = false;
        }
        fallback.push(next);
    }
    let mut spec = spec?;
    spec.rehearse = rehearsal(decoder, fields, &spec);
    whole.then_some(Authority::Acme(spec, fallback))
}

/// The kind of key that an `[acme]` section asks for.
pub(super) fn key_kind(fields: &Fields) -> KeyKind {
    match fields.value::<&str>("key") {
        Some("p384") => KeyKind::P384,
        Some("rsa2048") => KeyKind::Rsa2048,
        Some("rsa4096") => KeyKind::Rsa4096,
        _ => KeyKind::P256,
    }
}

/// What every CA has, the first one and the others.
fn one(decoder: &mut Decoder<'_>, fields: &Fields, key: KeyKind) -> Option<AcmeSpec> {
    let email = match fields.slot::<String>("email").given() {
        None => None,
        Some(email) => match contact(&email.value) {
            Ok(contact) => Some(contact),
            Err(wrong) => {
                decoder.push(refusal(&wrong, email.span, "`email` must be one mail address", "email"));
                None
            }
        },
    };
    let directory = match fields.slot::<String>("ca").given() {
        None if fields.has("ca") => return None,
        None => LETS_ENCRYPT.to_owned(),
        Some(ca) => directory(decoder, &ca, key)?,
    };
    let ca_root = fields.slot::<PathBuf>("ca_root").given();
    if let Some(At { value, span }) = &ca_root {
        decoder.references.push((span.clone(), Reference::Root(value.clone())));
    }
    Some(AcmeSpec {
        email,
        ca_root: ca_root.map(|at| at.value),
        key,
        eab: fields.value::<Fields>("eab").and_then(|eab| binding(&eab)),
        profile: fields.value("profile"),
        preferred_chain: fields.value("preferred_chain"),
        limits: fields.value::<Fields>("limits").map(|limits| allowance(&limits)),
        ..AcmeSpec::new(directory)
    })
}

/// Keys that say something to a CA are of no use beside the local one.
fn only_acme(decoder: &mut Decoder<'_>, fields: &Fields) {
    for key in ["fallback", "eab", "profile", "preferred_chain", "limits", "rehearse"] {
        if fields.has(key) {
            let problem =
                Problem::error(fields.span_of(key), format!("`{key}` has no effect with the local CA"));
            decoder.push(problem.label("leave it out").also(fields.span_of("ca"), "the local CA signs"));
        }
    }
}

/// What `limits` says.
pub(super) fn allowance(limits: &Fields) -> CaLimits {
    let rate = |key: &str| {
        let rate = limits.value::<Fields>(key)?;
        let burst = u32::try_from(rate.value::<u64>("burst")?).ok()?;
        Some(Rate { burst, every: rate.value("every")? })
    };
    CaLimits {
        names: rate("names"),
        domain: rate("domain"),
        orders: rate("orders"),
        failures: rate("failures"),
        accounts: rate("accounts"),
        pause_after: limits.value::<u64>("pause_after").and_then(|count| u32::try_from(count).ok()),
    }
}

fn rehearsal(decoder: &mut Decoder<'_>, fields: &Fields, spec: &AcmeSpec) -> bool {
    let wanted = fields.value("rehearse") == Some(true);
    if wanted && spec.staging().is_none() {
        let what = match spec.known() {
            Some(ca) => format!("{} has no staging to rehearse at", ca.title),
            None => "no staging of this CA is known to rehearse at".to_owned(),
        };
        let problem = Problem::error(fields.span_of("rehearse"), what).label("leave it out");
        decoder.push(problem.help("letsencrypt and google have one"));
    }
    wanted
}

/// A mail address without the scheme that some write before it.
pub(super) fn contact(email: &str) -> Result<String, Wrong> {
    let email = email.strip_prefix("mailto:").unwrap_or(email);
    let sound = |(user, host): (&str, &str)| !user.is_empty() && host.contains('.') && !host.contains('@');
    let plain = email.bytes().all(|b| b.is_ascii_graphic() && !b",;<>()\"".contains(&b));
    if plain && email.split_once('@').is_some_and(sound) {
        Ok(email.to_owned())
    } else {
        Err(Wrong::new("this is not one").fix("write it like \"ops@example.com\""))
    }
}

/// What `eab` says, if it is whole.
pub(super) fn binding(eab: &Fields) -> Option<EabSpec> {
    Some(EabSpec { kid: eab.value("kid")?, hmac: eab.value("hmac")? })
}

/// The directory that a section means; `None` for the local CA, and where it is wrong.
pub(super) fn directory_of(fields: &Fields, key: KeyKind) -> Option<String> {
    if !fields.has("ca") {
        return Some(LETS_ENCRYPT.to_owned());
    }
    let ca: String = fields.value("ca")?;
    match KnownCa::of_word(&ca) {
        Some(known) => Some(known.directory_for(key).to_owned()),
        None => scalar::web_url(&ca).is_ok_and(|url| url.tls).then_some(ca),
    }
}

fn directory(decoder: &mut Decoder<'_>, ca: &At<String>, key: KeyKind) -> Option<String> {
    let words = sections::CAS.all();
    if let Some(known) = KnownCa::of_word(&ca.value) {
        return Some(known.directory_for(key).to_owned());
    }
    if !ca.value.contains("://") {
        let problem = Problem::error(ca.span.clone(), format!("unknown CA `{}`", ca.value));
        let problem = match nearest(&ca.value, words) {
            Some(near) => problem.label(format!("did you mean `{near}`?")),
            None => problem,
        };
        decoder.push(problem.help(format!("one of {}, or the URL of an ACME directory", sections::CAS)));
        return None;
    }
    match scalar::web_url(&ca.value) {
        Ok(url) if url.tls => Some(ca.value.clone()),
        Ok(_) => {
            let fix = format!("https{}", ca.value.trim_start_matches(|c: char| c != ':'));
            decoder.push(
                Problem::error(
                    ca.span.clone(),
                    "an ACME directory is reached by https only (RFC 8555 section 6.1)",
                )
                .help(format!("write \"{fix}\"; for a private root there is `ca_root`")),
            );
            None
        }
        Err(wrong) => {
            decoder.push(refusal(&wrong, ca.span.clone(), "`ca` must be the URL of an ACME directory", "ca"));
            None
        }
    }
}

/// Reads a `[dns]` section. `None` if it is wrong; that was said.
pub(super) fn provider(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<ProviderSpec> {
    let common = common(decoder, fields)?;
    let name: String = fields.value("provider")?;
    let kind = match name.as_str() {
        "builtin" => ProviderKind::Builtin,
        "rfc2136" => ProviderKind::Rfc2136 {
            key_name: key_name(decoder, fields)?,
            server: fields.value("server")?,
            secret: fields.value("secret")?,
            algorithm: fields.value::<&str>("algorithm").unwrap_or("hmac-sha256").to_owned(),
        },
        "exec" => ProviderKind::Exec { program: fields.value("program")? },
        "httpreq" => httpreq(decoder, fields)?,
        "acme-dns" => ProviderKind::AcmeDns {
            endpoint: endpoint(decoder, fields, "acme-dns", true)?,
            accounts: fields.value("accounts")?,
        },
        vendor => {
            let row = vendors().iter().find(|row| row.name == vendor)?;
            for (one, other) in row.needs.iter().filter(|(one, other)| fields.has(one) && !fields.has(other))
            {
                decoder
                    .push(Problem::error(fields.span_of(one), format!("`{one}` needs `{other}` beside it")));
            }
            for (one, other) in
                row.excludes.iter().filter(|(one, other)| fields.has(one) && fields.has(other))
            {
                let problem =
                    Problem::error(fields.span_of(other), format!("`{other}` stands beside `{one}`"));
                decoder.push(problem.help(format!("keep one of them: provider `{vendor}` uses either")));
            }
            let mut keys = BTreeMap::new();
            for key in row.keys {
                match fields.any(key.name) {
                    Some(Value::Secret(source)) => keys.insert(key.name, VendorValue::Secret(source.clone())),
                    Some(Value::Text(text)) => keys.insert(key.name, VendorValue::Text(text.clone())),
                    _ if fields.has(key.name) || key.required => return None,
                    _ => None,
                };
            }
            ProviderKind::Vendor { name: row.name, keys }
        }
    };
    Some(ProviderSpec { kind, common })
}

fn common(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<CommonKeys> {
    let ttl = match fields.slot::<std::time::Duration>("ttl").given() {
        None => None,
        Some(ttl) if ttl.value.subsec_millis() > 0 => {
            decoder.push(Problem::error(ttl.span, "`ttl` must be whole seconds"));
            None
        }
        Some(ttl) => u32::try_from(ttl.value.as_secs()).ok(),
    };
    let mut propagation = Propagation::default();
    if let Some(table) = fields.value::<Fields>("propagation") {
        propagation.check = match table.value::<&str>("check") {
            Some("doh") => PropagationCheck::Doh,
            Some("wait") => PropagationCheck::Wait,
            Some("off") => PropagationCheck::Off,
            _ => PropagationCheck::Authoritative,
        };
        for (key, check) in [("doh", PropagationCheck::Doh), ("wait", PropagationCheck::Wait)] {
            if table.has(key) && propagation.check != check {
                let problem =
                    Problem::error(table.span_of(key), format!("`{key}` needs `check = \"{key}\"`"));
                decoder.push(
                    problem.help(format!("write {{ check = \"{key}\", {key} = ... }}, or leave `{key}` out")),
                );
            }
        }
        if let Some(servers) = table.list::<String>("doh") {
            if servers.is_empty() {
                decoder.push(Problem::error(table.span_of("doh"), "`doh` needs at least one resolver's URL"));
            }
            propagation.doh = servers.into_iter().filter_map(|url| resolver_url(decoder, url)).collect();
        }
        if let Some(wait) = table.value("wait") {
            propagation.wait = wait;
        }
        if let Some(timeout) = table.value("timeout") {
            propagation.timeout = timeout;
        }
    }
    let resolvers = fields.list("resolvers").unwrap_or_default().into_iter().map(|at| at.value).collect();
    Some(CommonKeys {
        zone: fields.value("zone"),
        ttl,
        timeout: fields.value("timeout"),
        propagation,
        resolvers,
    })
}

/// RFC 8484 knows https only.
fn resolver_url(decoder: &mut Decoder<'_>, url: At<String>) -> Option<String> {
    match scalar::web_url(&url.value) {
        Ok(parsed) if parsed.tls => Some(url.value),
        Ok(_) => {
            let problem = Problem::error(url.span, "a DoH resolver is reached by https only (RFC 8484)");
            decoder.push(problem.help("write it like \"https://dns.google/dns-query\""));
            None
        }
        Err(wrong) => {
            decoder.push(refusal(&wrong, url.span, "`doh` must hold URLs of resolvers", "doh"));
            None
        }
    }
}

fn key_name(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<String> {
    let name: At<String> = fields.slot("key_name").given()?;
    match scalar::dns_name(&name.value) {
        Ok(_) => Some(name.value),
        Err(wrong) => {
            decoder.push(refusal(&wrong, name.span, "`key_name` must be the name of a TSIG key", "key_name"));
            None
        }
    }
}

fn httpreq(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<ProviderKind> {
    let username: Option<String> = fields.value("username");
    let password: Option<SecretSource> = fields.value("password");
    for (one, other) in [("username", "password"), ("password", "username")] {
        if fields.has(one) && !fields.has(other) {
            decoder.push(Problem::error(fields.span_of(one), format!("`{one}` needs `{other}` beside it")));
        }
    }
    let endpoint = endpoint(decoder, fields, "httpreq", password.is_some())?;
    Some(ProviderKind::Httpreq { endpoint, username, password })
}

/// The base URL of a provider that is reached by HTTP. `secret` tells whether a credential goes there.
fn endpoint(decoder: &mut Decoder<'_>, fields: &Fields, provider: &str, secret: bool) -> Option<String> {
    let endpoint: At<String> = fields.slot("endpoint").given()?;
    let url = match scalar::web_url(&endpoint.value) {
        Ok(url) => url,
        Err(wrong) => {
            decoder.push(refusal(&wrong, endpoint.span, "`endpoint` must be a URL", "endpoint"));
            return None;
        }
    };
    if url.path.contains('?') {
        let problem = Problem::error(endpoint.span, "`endpoint` must be a URL without a query");
        decoder.push(problem.label("paths are put behind it"));
        return None;
    }
    let near = matches!(url.host, HostPattern::Ip(address) if address.is_loopback());
    if !url.tls && secret && !near {
        let problem =
            Problem::warning(endpoint.span, format!("the password for `{provider}` travels in clear"));
        decoder.push(problem.help("use https:// if you can"));
    }
    Some(format!("{}{}", url.origin(), url.path.trim_end_matches('/')))
}

/// Whether no public CA signs any of the names, for Let's Encrypt and its like: why.
pub(super) fn not_public(name: &HostPattern) -> Option<String> {
    let base = name.base()?.as_str();
    let last = base.rsplit('.').next().unwrap_or(base);
    if last == base {
        return Some(match name {
            HostPattern::Wildcard(_) => "a wildcard of a whole top-level domain".to_owned(),
            _ => "a name of one label".to_owned(),
        });
    }
    let private = ["test", "example", "invalid", "local", "lan", "home", "corp", "onion", "intranet"];
    if private.contains(&last) || base == "home.arpa" || base.ends_with(".home.arpa") {
        let top = if last == "arpa" { "home.arpa" } else { last };
        return Some(format!("`.{top}` is nobody's in the public DNS"));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{AcmePlan, Environment, IssuerPlan, Loaded, parse};
    use super::*;

    fn load(acme: &str) -> (AcmePlan, Loaded) {
        let env = Environment { state_dir: "/state".into(), runtime_dir: "/runtime".into() };
        let text = format!(
            "{acme}\n[dns]\nprovider = \"exec\"\nprogram = \"/hook\"\n[routes]\n\"a.example.com\" = {{ respond = 200 }}\n"
        );
        let loaded = parse(&text, "starlock.toml", &env).unwrap_or_else(|p| panic!("{p}"));
        let IssuerPlan::Acme(plan) = &loaded.plan.certificates[0].issuer else { panic!("{loaded:?}") };
        (plan.clone(), loaded)
    }

    #[test]
    fn a_ca_that_demands_a_binding_is_said_to_where_none_is_given() {
        for (word, directory) in [
            ("zerossl", "https://acme.zerossl.com/v2/DV90"),
            ("google", "https://dv.acme-v02.api.pki.goog/directory"),
            ("sslcom", "https://acme.ssl.com/sslcom-dv-ecc"),
        ] {
            let (plan, loaded) = load(&format!("acme = \"{word}\""));
            assert_eq!(plan.acme.directory, directory);
            assert!(
                loaded.warnings.to_string().contains("registers nobody without `eab`"),
                "{}",
                loaded.warnings
            );
            let eab = "eab = { kid = \"k\", hmac = { file = \"/hmac\" } }";
            let (plan, loaded) = load(&format!("acme = {{ ca = \"{word}\", {eab} }}"));
            assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
            assert_eq!(plan.acme.eab.unwrap().hmac, SecretSource::File("/hmac".into()));
        }
        let (plan, _) = load("acme = { ca = \"sslcom\", key = \"rsa2048\" }");
        assert_eq!(plan.acme.directory, "https://acme.ssl.com/sslcom-dv-rsa");
    }

    #[test]
    fn fallbacks_have_their_own_words_and_share_contact_and_key() {
        let (plan, _) = load(
            "[acme]\nemail = \"ops@example.com\"\nkey = \"p384\"\nprofile = \"tlsserver\"\nrehearse = true\n\
             fallback = [\"https://one.example/dir\", { ca = \"https://two.example/dir\", email = \"two@example.com\", \
             limits = { orders = { burst = 3, every = \"1h\" }, pause_after = 9 } }]",
        );
        assert!(plan.acme.rehearse && plan.acme.staging().is_some());
        let [one, two] = plan.fallback.as_slice() else { panic!("{plan:?}") };
        assert_eq!(
            (one.email.as_deref(), one.key, &one.profile),
            (Some("ops@example.com"), KeyKind::P384, &None)
        );
        assert_eq!(two.email.as_deref(), Some("two@example.com"));
        let orders = Some(Rate { burst: 3, every: Duration::from_secs(3600) });
        assert_eq!(two.limits, Some(CaLimits { orders, pause_after: Some(9), ..CaLimits::default() }));
    }
}
