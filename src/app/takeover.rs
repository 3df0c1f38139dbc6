//! What another program kept, matched with what a plan wants.

use std::sync::Arc;
use std::time::SystemTime;

use super::offline;
use crate::acme::{AcmeIssuer, AcmeSpec, import_account};
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

/// Takes over what `plan` wants. Blocking. With `dry` nothing is written. The error is for a person; nothing was taken then.
pub fn take_over(plan: &Plan, found: &Found, dry: bool) -> Result<TakeOver, String> {
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
        Ok(move_all(plan, found, &storage, SystemClock.now(), dry).await)
    })
}

async fn move_all(
    plan: &Plan,
    found: &Found,
    storage: &Arc<dyn Storage>,
    now: SystemTime,
    dry: bool,
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
        let result = take_certificate(plan, certificate, bundle, storage, now, dry).await;
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
        let result = take_account(plan, account, &**storage, dry).await;
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
    storage: &dyn Storage,
    dry: bool,
) -> Result<String, String> {
    let specs = plan.certificates.iter().filter_map(|certificate| match &certificate.issuer {
        IssuerPlan::Acme(acme) => Some(std::iter::once(&acme.acme).chain(&acme.fallback)),
        IssuerPlan::Local | IssuerPlan::Files(_) => None,
    });
    let mut specs: Vec<&AcmeSpec> =
        specs.flatten().filter(|spec| account.origin.is(&spec.directory)).collect();
    specs.dedup_by_key(|spec| &spec.directory);
    if specs.is_empty() {
        return Err("the configuration orders nothing from this CA".to_owned());
    }
    let key = match &account.key {
        AccountKey::Es256(key) => key,
        AccountKey::Other(kind) => {
            return Err(format!(
                "its key is {kind}, and Starlock signs with ECDSA on P-256 only. Nothing needs to be done for it: the first order registers a \
                 new account. If a CAA record (accounturi) or dns-persist-01 names the old one, let it name the new one too, which \
                 `starlock accounts list` shows then"
            ));
        }
    };
    let mut taken = 0;
    for spec in specs {
        let result = import_account(storage, spec, key, account.url.as_deref(), dry).await;
        taken += u32::from(result.map_err(|e| e.to_string())?);
    }
    match (taken, &account.url) {
        (0, _) => Err("there is an account at this CA already".to_owned()),
        (_, Some(url)) => Ok(url.clone()),
        (_, None) => Ok("the CA is asked for its URL at the first order".to_owned()),
    }
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
