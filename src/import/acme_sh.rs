//! acme.sh: `NAME/` or `NAME_ecc/` with `fullchain.cer`, `NAME.key` and `NAME.conf`; `ca/HOST/PATH/{account.key,ca.conf}`.

use std::path::Path;

use super::files::{directories, holding, name, setting, text};
use super::{AccountKey, Found, FoundAccount, FoundCertificate, Origin};
use crate::secret::Secret;

/// `ca/HOST/PATH...`: the path of a directory's URL has a few segments.
const DEPTH: u8 = 8;

pub(super) fn read(root: &Path) -> Option<Found> {
    let mut found = Found::default();
    let mut ours = root.join("ca").is_dir();
    for dir in directories(root) {
        let domain = name(&dir);
        let domain = domain.strip_suffix("_ecc").unwrap_or(&domain);
        let file = |end: &str| dir.join(format!("{domain}{end}"));
        let Ok(conf) = text(&file(".conf")) else { continue };
        ours = true;
        let chain = dir.join("fullchain.cer");
        let both = text(&chain).and_then(|chain| Ok((chain, text(&file(".key"))?)));
        let Some((chain_pem, key)) = found.take(&chain, both) else { continue };
        let origin = match setting(&conf, "Le_API") {
            Some(api) => Origin::Directory(api.to_owned()),
            None => Origin::Unknown,
        };
        let place = chain.display().to_string();
        found.certificates.push(FoundCertificate { chain_pem, key_pem: Secret::new(key), origin, place });
    }
    let accounts = root.join("ca");
    for dir in holding(&accounts, "account.key", DEPTH) {
        let file = dir.join("account.key");
        let key = text(&file).and_then(|pem| AccountKey::from_pem(&pem));
        let Some(key) = found.take(&file, key) else { continue };
        let conf = text(&dir.join("ca.conf")).unwrap_or_default();
        let url = setting(&conf, "ACCOUNT_URL").map(ToOwned::to_owned);
        let directory = dir.strip_prefix(&accounts).unwrap_or(Path::new(""));
        let origin = Origin::Directory(directory.display().to_string());
        found.accounts.push(FoundAccount { origin, url, key, place: file.display().to_string() });
    }
    ours.then_some(found)
}
