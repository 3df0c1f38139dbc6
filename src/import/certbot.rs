//! certbot: `live/NAME/{fullchain,privkey}.pem`, links into `archive`; `renewal/NAME.conf`; and for each CA
//! `accounts/HOST/PATH/ID/{private_key,regr}.json`.

use std::path::{Path, PathBuf};

use super::files::{directories, holding, json, name, setting, text};
use super::{AccountKey, Found, FoundAccount, FoundCertificate, Origin};
use crate::secret::Secret;

/// `accounts/HOST/PATH.../ID`: the path of a directory's URL has a few segments.
const DEPTH: u8 = 8;

pub(super) fn read(root: &Path) -> Option<Found> {
    if !["live", "archive", "accounts"].iter().any(|dir| root.join(dir).is_dir()) {
        return None;
    }
    let mut found = Found::default();
    for lineage in lineages(root) {
        let conf = text(&root.join("renewal").join(format!("{lineage}.conf"))).unwrap_or_default();
        let origin = match setting(&conf, "server") {
            Some(server) => Origin::Directory(server.to_owned()),
            None => Origin::Unknown,
        };
        let (chain, key) = files(root, &lineage);
        let both = text(&chain).and_then(|chain| Ok((chain, text(&key)?)));
        if let Some((chain_pem, key)) = found.take(&chain, both) {
            let place = chain.display().to_string();
            found.certificates.push(FoundCertificate { chain_pem, key_pem: Secret::new(key), origin, place });
        }
    }
    let accounts = root.join("accounts");
    for dir in holding(&accounts, "private_key.json", DEPTH) {
        let directory = dir.parent().and_then(|ca| ca.strip_prefix(&accounts).ok()).unwrap_or(Path::new(""));
        let file = dir.join("private_key.json");
        let key = json(&file).and_then(|jwk| AccountKey::from_jwk(&jwk));
        let Some(key) = found.take(&file, key) else { continue };
        let url = json(&dir.join("regr.json")).ok().and_then(|regr| Some(regr["uri"].as_str()?.to_owned()));
        let origin = Origin::Directory(directory.display().to_string());
        found.accounts.push(FoundAccount { origin, url, key, place: dir.display().to_string() });
    }
    Some(found)
}

fn lineages(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = ["live", "archive"]
        .iter()
        .flat_map(|dir| directories(&root.join(dir)))
        .map(|dir| name(&dir))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The chain and the key: the links, or in a copy that lost them the newest generation of the archive.
fn files(root: &Path, lineage: &str) -> (PathBuf, PathBuf) {
    let live = root.join("live").join(lineage);
    let archive = root.join("archive").join(lineage);
    let pair = |dir: &Path, number: &str| {
        (dir.join(format!("fullchain{number}.pem")), dir.join(format!("privkey{number}.pem")))
    };
    let (chain, key) = pair(&live, "");
    if chain.is_file() && key.is_file() {
        return (chain, key);
    }
    let number = |path: &PathBuf| -> Option<u32> {
        name(path).strip_prefix("fullchain")?.strip_suffix(".pem")?.parse().ok()
    };
    match super::files::entries(&archive).iter().filter_map(number).max() {
        Some(newest) => pair(&archive, &newest.to_string()),
        None => (chain, key),
    }
}
