//! Traefik: one JSON file; for each resolver an account and its certificates, PEM in base64. Version 1 has one account at the top.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use rustls_pki_types::PrivateKeyDer;
use serde_json::Value;

use super::files::{MAX_JSON, bounded};
use super::{AccountKey, Found, FoundAccount, FoundCertificate, Origin};
use crate::secret::Secret;

pub(super) fn read(path: &Path) -> Option<Found> {
    let text = bounded(path, MAX_JSON).ok()?;
    let file: Value = serde_json::from_str(&text).ok()?;
    let top = file.as_object()?;
    let mut found = Found::default();
    let mut ours = false;
    if top.contains_key("Account") || top.contains_key("Certificates") {
        ours = true;
        resolver(&mut found, path, "", &file);
    } else {
        for (name, value) in top {
            if value.get("Account").is_some() || value.get("Certificates").is_some() {
                ours = true;
                resolver(&mut found, path, name, value);
            }
        }
    }
    ours.then_some(found)
}

fn resolver(found: &mut Found, path: &Path, resolver: &str, value: &Value) {
    let place = |what: &str| {
        format!("{} ({resolver}{}{what})", path.display(), if resolver.is_empty() { "" } else { ": " })
    };
    let account = &value["Account"];
    let url = account["Registration"]["uri"].as_str().map(ToOwned::to_owned);
    let origin = url.clone().map_or(Origin::Unknown, Origin::Url);
    if let Some(key) = account["PrivateKey"].as_str() {
        match account_key(key) {
            Ok(key) => found.accounts.push(FoundAccount {
                origin: origin.clone(),
                url,
                key,
                place: place("account"),
            }),
            Err(reason) => found.problems.push((place("account"), reason)),
        }
    }
    for certificate in value["Certificates"].as_array().into_iter().flatten() {
        let field = |name: &str| find(certificate, name);
        let main =
            field("domain").and_then(|domain| find(domain, "main")?.as_str()).unwrap_or("?").to_owned();
        let pem = |name: &str| -> Result<String, String> {
            let text = field(name).and_then(Value::as_str).ok_or_else(|| format!("it has no `{name}`"))?;
            let bytes = BASE64_STANDARD.decode(text).map_err(|_| format!("`{name}` is not base64"))?;
            String::from_utf8(bytes).map_err(|_| format!("`{name}` is not PEM"))
        };
        match pem("certificate").and_then(|chain| Ok((chain, pem("key")?))) {
            Ok((chain_pem, key)) => found.certificates.push(FoundCertificate {
                chain_pem,
                key_pem: Secret::new(key),
                origin: origin.clone(),
                place: place(&main),
            }),
            Err(reason) => found.problems.push((place(&main), reason)),
        }
    }
}

/// Version 1 wrote `Domain.Main`, later ones `domain.main`.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn account_key(text: &str) -> Result<AccountKey, String> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| "the account's key is not base64".to_owned())?;
    // Which form it has is not said; DER says it.
    let der = PrivateKeyDer::try_from(bytes).map_err(|_| "the account's key is none".to_owned())?;
    AccountKey::from_der(&der)
}
