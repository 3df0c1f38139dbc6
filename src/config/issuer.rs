//! `[acme]` and `[dns]`, the defaults and a certificate's own: who signs, who answers.

use std::collections::BTreeMap;

use super::decode::{Decoder, refusal};
use super::error::Problem;
use super::scalar::{self, Wrong};
use super::sections;
use super::table::nearest;
use super::value::{At, Fields, Value};
use crate::acme::{AcmeSpec, LETS_ENCRYPT, LETS_ENCRYPT_STAGING};
use crate::dns::{
    CommonKeys, Propagation, PropagationCheck, ProviderKind, ProviderSpec, VendorValue, vendors,
};
use crate::issuer::KeyKind;
use crate::name::HostPattern;
use crate::secret::SecretSource;

/// What an `[acme]` section says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    Local,
    Acme(AcmeSpec),
}

impl Authority {
    /// Without any `[acme]`: Let's Encrypt, without a contact.
    pub(super) fn default_one() -> Self {
        let directory = LETS_ENCRYPT.to_owned();
        Self::Acme(AcmeSpec { directory, email: None, ca_root: None, key: KeyKind::default() })
    }
}

/// Reads an `[acme]` section. `None` if it is wrong; that was said.
pub(super) fn authority(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<Authority> {
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
    let key = match fields.value::<&str>("key") {
        Some("p384") => KeyKind::P384,
        _ => KeyKind::P256,
    };
    let ca_root = fields.value("ca_root");
    let directory = match fields.slot::<String>("ca").given() {
        None if fields.has("ca") => return None,
        None => LETS_ENCRYPT.to_owned(),
        Some(ca) if ca.value == "local" => return Some(Authority::Local),
        Some(ca) => directory(decoder, &ca)?,
    };
    Some(Authority::Acme(AcmeSpec { directory, email, ca_root, key }))
}

fn contact(email: &str) -> Result<String, Wrong> {
    let email = email.strip_prefix("mailto:").unwrap_or(email);
    let sound = |(user, host): (&str, &str)| !user.is_empty() && host.contains('.') && !host.contains('@');
    let plain = email.bytes().all(|b| b.is_ascii_graphic() && !b",;<>()\"".contains(&b));
    if plain && email.split_once('@').is_some_and(sound) {
        Ok(email.to_owned())
    } else {
        Err(Wrong::new("this is not one").fix("write it like \"ops@example.com\""))
    }
}

fn directory(decoder: &mut Decoder<'_>, ca: &At<String>) -> Option<String> {
    let words = sections::CAS.all();
    match ca.value.as_str() {
        "letsencrypt" => return Some(LETS_ENCRYPT.to_owned()),
        "letsencrypt-staging" => return Some(LETS_ENCRYPT_STAGING.to_owned()),
        later if sections::CAS.later.contains(&later) => {
            let problem = Problem::error(ca.span.clone(), format!("`{later}` is not supported yet"));
            decoder.push(
                problem
                    .help("it needs external account binding; for now use letsencrypt, or a directory URL"),
            );
            return None;
        }
        _ => {}
    }
    if !ca.value.contains("://") {
        let problem = Problem::error(ca.span.clone(), format!("unknown CA `{}`", ca.value));
        let problem = match nearest(&ca.value, words) {
            Some(near) => problem.label(format!("did you mean `{near}`?")),
            None => problem,
        };
        decoder.push(
            problem.help("one of letsencrypt, letsencrypt-staging, local, or the URL of an ACME directory"),
        );
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
