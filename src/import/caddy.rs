//! Caddy (certmagic): `certificates/CA/NAME/NAME.{crt,key,json}` and `acme/CA/users/MAIL/USER.{json,key}`.

use std::path::Path;

use super::files::{directories, entries, json, name, text};
use super::{AccountKey, Found, FoundAccount, FoundCertificate, Origin};
use crate::secret::Secret;

pub(super) fn read(root: &Path) -> Option<Found> {
    let (certificates, accounts) = (root.join("certificates"), root.join("acme"));
    if !certificates.is_dir() && !accounts.is_dir() {
        return None;
    }
    let mut found = Found::default();
    for ca in directories(&certificates) {
        for dir in directories(&ca) {
            let file = |extension: &str| dir.join(format!("{}.{extension}", name(&dir)));
            let (chain, key) = (file("crt"), file("key"));
            let both = text(&chain).and_then(|chain| Ok((chain, text(&key)?)));
            let Some((chain_pem, key)) = found.take(&chain, both) else { continue };
            let origin = Origin::Directory(name(&ca));
            let place = chain.display().to_string();
            found.certificates.push(FoundCertificate { chain_pem, key_pem: Secret::new(key), origin, place });
        }
    }
    for ca in directories(&accounts) {
        for user in directories(&ca.join("users")) {
            for file in entries(&user).into_iter().filter(|file| file.extension().is_some_and(|e| e == "key"))
            {
                let key = text(&file).and_then(|pem| AccountKey::from_pem(&pem));
                let Some(key) = found.take(&file, key) else { continue };
                let registration = json(&file.with_extension("json")).ok();
                let url = registration.and_then(|json| Some(json["location"].as_str()?.to_owned()));
                let origin = Origin::Directory(name(&ca));
                found.accounts.push(FoundAccount { origin, url, key, place: file.display().to_string() });
            }
        }
    }
    Some(found)
}
