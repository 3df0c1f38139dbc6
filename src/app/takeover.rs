//! What another program kept, matched with what a plan wants.

use std::sync::Arc;
use std::time::SystemTime;

use super::offline;
use crate::acme::{Accounts, AcmeIssuer, AcmeSpec, forget_account, import_account};
use crate::certs::{Imported, import_certificate};
use crate::clock::{self, Clock, SystemClock};
use crate::config::{IssuerPlan, Plan};
use crate::import::{AccountKey, Found, FoundAccount, FoundCertificate};
use crate::name::HostPattern;
use crate::storage::{Key, Storage};
use crate::tls::Bundle;

/// One thing that was found, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Whether it was taken (or would be).
    pub taken: bool,
    /// `certificate` or `account`.
    pub what: &'static str,
    /// Its names, or its CA.
    pub name: String,
    /// Where it was found.
    pub place: String,
    /// Until when, or why not.
    pub why: String,
}

/// What a take-over came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakeOver {
    /// A row for each thing that was found.
    pub rows: Vec<Moved>,
    /// Sets of names that are held by good certificates and that the configuration does not want.
    pub missing: Vec<Vec<HostPattern>>,
}

/// How to take over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taking {
    /// Nothing is written, and no CA is asked.
    pub dry: bool,
    /// Accounts with RSA keys get new ones at their CA: the program that they come from cannot use them any more.
    pub roll_keys: bool,
}

/// Takes over what `plan` wants. Blocking. The error is for a person; nothing was taken then.
pub fn take_over(plan: &Plan, found: &Found, how: Taking) -> Result<TakeOver, String> {
    offline::block_on(async {
        let storage = offline::open_as_owner(plan)?;
        // A running process holds this to its end.
        let lease = storage.try_lease(&Key::new(&["sweep"])).await.map_err(|e| e.to_string())?;
        if lease.is_none() {
            return Err(format!(
                "Starlock is running on {}: stop it for the import, or it would order what is being taken over",
                plan.storage.path.display()
            ));
        }
        Ok(move_all(plan, found, &storage, SystemClock.now(), how).await)
    })
}

async fn move_all(
    plan: &Plan,
    found: &Found,
    storage: &Arc<dyn Storage>,
    now: SystemTime,
    how: Taking,
) -> TakeOver {
    let mut all = TakeOver::default();
    let mut offers: Vec<(&FoundCertificate, Bundle)> = Vec::new();
    for certificate in &found.certificates {
        match Bundle::from_pem(&certificate.chain_pem, certificate.key_pem.expose()) {
            Ok(bundle) => offers.push((certificate, bundle)),
            Err(error) => all.rows.push(row("certificate", "?", &certificate.place, Err(error.to_string()))),
        }
    }
    // Of two for the same names the one that lasts longer comes first, and the other finds it there.
    offers.sort_by(|(_, a), (_, b)| a.names().cmp(b.names()).then(b.not_after().cmp(&a.not_after())));
    for (certificate, bundle) in &offers {
        let result = take_certificate(plan, certificate, bundle, storage, now, how.dry).await;
        let wanted = !matches!(&result, Err(Refusal::NotWanted(_)));
        if !wanted
            && bundle.not_after() > now
            && !all.missing.iter().any(|names| names[..] == bundle.names()[..])
        {
            all.missing.push(bundle.names().to_vec());
        }
        let name = listing(bundle.names());
        all.rows.push(row("certificate", &name, &certificate.place, result.map_err(Refusal::into_text)));
    }
    for account in &found.accounts {
        let result = take_account(plan, account, storage, how).await;
        all.rows.push(row("account", account.origin.shown(), &account.place, result));
    }
    for (place, reason) in &found.problems {
        all.rows.push(row("file", "?", place, Err(reason.clone())));
    }
    all
}

enum Refusal {
    /// The configuration has no such certificate.
    NotWanted(String),
    Other(String),
}

impl Refusal {
    fn into_text(self) -> String {
        match self {
            Self::NotWanted(text) | Self::Other(text) => text,
        }
    }
}

async fn take_certificate(
    plan: &Plan,
    certificate: &FoundCertificate,
    bundle: &Bundle,
    storage: &Arc<dyn Storage>,
    now: SystemTime,
    dry: bool,
) -> Result<String, Refusal> {
    let wanted = plan.certificates.iter().find(|wanted| wanted.names[..] == bundle.names()[..]);
    let Some(wanted) = wanted else {
        return Err(Refusal::NotWanted(
            "the configuration has no certificate for exactly these names".to_owned(),
        ));
    };
    let IssuerPlan::Acme(acme) = &wanted.issuer else {
        return Err(Refusal::Other("the local CA signs these names".to_owned()));
    };
    let mut specs = std::iter::once(&acme.acme).chain(&acme.fallback);
    let Some(spec) = specs.find(|spec| certificate.origin.is(&spec.directory)) else {
        return Err(Refusal::Other(format!(
            "it comes from {}, and the configuration wants {}",
            certificate.origin.shown(),
            acme.acme.directory
        )));
    };
    let (issuer, key) = (AcmeIssuer::id_of(spec), &certificate.key_pem);
    let taken =
        import_certificate(storage.clone(), &issuer, &wanted.names, &certificate.chain_pem, key, now, dry);
    match taken.await.map_err(Refusal::Other)? {
        Imported::Taken { not_after } => Ok(format!("until {}", clock::rfc3339(not_after))),
        Imported::Held => Err(Refusal::Other("one that lasts as long is held already".to_owned())),
    }
}

async fn take_account(
    plan: &Plan,
    account: &FoundAccount,
    storage: &Arc<dyn Storage>,
    how: Taking,
) -> Result<String, String> {
    let specs = plan.certificates.iter().filter_map(|certificate| match &certificate.issuer {
        IssuerPlan::Acme(acme) => Some(std::iter::once(&acme.acme).chain(&acme.fallback)),
        IssuerPlan::Local | IssuerPlan::Files(_) => None,
    });
    let mut specs: Vec<&AcmeSpec> =
        specs.flatten().filter(|spec| account.origin.is(&spec.directory)).collect();
    specs.dedup_by_key(|spec| &spec.directory);
    let Some(first) = specs.first() else {
        return Err("the configuration orders nothing from this CA".to_owned());
    };
    let key = match &account.key {
        AccountKey::Es256(key) => key,
        AccountKey::Rsa(key) if how.roll_keys => {
            return roll_in(first, key, account.url.as_deref(), storage, how.dry).await;
        }
        AccountKey::Rsa(_) => {
            return Err(format!(
                "its key is RSA, and Starlock signs with ECDSA on P-256 only. {NEW_ACCOUNT}; or have the CA give the old one a new key and \
                 take it over, with --roll-keys: the program that it comes from cannot use it any more then"
            ));
        }
        AccountKey::Other(kind) => {
            return Err(format!(
                "its key is {kind}, and Starlock signs with ECDSA on P-256 only. {NEW_ACCOUNT}"
            ));
        }
    };
    let mut taken = 0;
    for spec in specs {
        let result = import_account(&**storage, spec, key, account.url.as_deref(), how.dry).await;
        taken += u32::from(result.map_err(|e| e.to_string())?);
    }
    match (taken, &account.url) {
        (0, _) => Err(HELD.to_owned()),
        (_, Some(url)) => Ok(url.clone()),
        (_, None) => Ok("the CA is asked for its URL at the first order".to_owned()),
    }
}

const HELD: &str = "there is an account at this CA already";
const NEW_ACCOUNT: &str = "Nothing needs to be done for it: the first order registers a new account. If a CAA record (accounturi) or \
                           dns-persist-01 names the old one, let it name the new one too, which `starlock accounts list` shows then";

/// Takes an account over whose key is RSA: the CA gives it another one (RFC 8555 section 7.3.5). Both are kept before it is asked.
async fn roll_in(
    spec: &AcmeSpec,
    rsa: &[u8],
    url: Option<&str>,
    storage: &Arc<dyn Storage>,
    dry: bool,
) -> Result<String, String> {
    let Some(url) = url else {
        return Err(
            "its key is RSA, and the files do not say its URL: its key cannot be rolled over".to_owned()
        );
    };
    let taken = import_account(&**storage, spec, rsa, Some(url), dry).await.map_err(|e| e.to_string())?;
    if !taken {
        return Err(HELD.to_owned());
    }
    if dry {
        return Ok(format!("{url}; the CA would be asked to give it a new key"));
    }
    let accounts = Accounts::new(storage.clone(), Arc::new(SystemClock));
    let Err(error) = accounts.roll_key(spec).await else {
        return Ok(format!("{url}, with a new key: the program that it comes from cannot use it any more"));
    };
    // Cut off in the middle: one of the two keys is the account's, and the next order asks which.
    if accounts.kept(spec).await.is_ok_and(|kept| !kept.rolling) {
        forget_account(&**storage, spec).await.map_err(|e| e.to_string())?;
        return Err(format!(
            "{error}. It is as it was; try again, or go on without it: the first order registers a new account"
        ));
    }
    Err(error.to_string())
}

fn row(what: &'static str, name: &str, place: &str, result: Result<String, String>) -> Moved {
    let (taken, why) = match result {
        Ok(why) => (true, why),
        Err(why) => (false, why),
    };
    Moved { taken, what, name: name.to_owned(), place: place.to_owned(), why }
}

fn listing(names: &[HostPattern]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};
    use crate::import::Origin;

    #[test]
    fn an_account_whose_key_cannot_be_rolled_over_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let env = Environment { state_dir: dir.path().join("state"), runtime_dir: dir.path().into() };
        // Nobody listens there.
        let text = "acme = \"https://localhost:1/dir\"\nroutes.\"a.example.com\" = { respond = 200 }";
        let plan = parse(text, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan;
        let made =
            rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let account = |url: Option<&str>| FoundAccount {
            origin: Origin::Directory("localhost:1/dir".to_owned()),
            url: url.map(ToOwned::to_owned),
            key: AccountKey::Rsa(made.serialize_der()),
            place: "/x".to_owned(),
        };
        let url = "https://localhost:1/account/7";
        let roll = Taking { roll_keys: true, ..Taking::default() };
        // account, how, whether it is taken, what is said
        for (account, how, taken, said) in [
            (account(Some(url)), Taking::default(), false, "with --roll-keys"),
            (account(None), roll, false, "do not say its URL"),
            (account(Some(url)), Taking { dry: true, ..roll }, true, "would be asked"),
            (account(Some(url)), roll, false, "It is as it was; try again"),
        ] {
            let found = Found { accounts: vec![account], ..Found::default() };
            let result = take_over(&plan, &found, how).unwrap();
            let [row] = result.rows.as_slice() else { panic!("{result:?}") };
            assert!(row.taken == taken && row.why.contains(said), "{row:?}");
            let kept = std::fs::read_dir(dir.path().join("state/accounts")).map_or(0, Iterator::count);
            assert_eq!(kept, 0, "{row:?}");
        }
    }
}
