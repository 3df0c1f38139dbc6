//! Accounts at CAs, for the people behind the admin socket.

use crate::acme::{AccountInfo, Accounts, AcmeSpec};
use crate::admin::{AccountCommand, AccountStatus};
use crate::config::{IssuerPlan, Plan};

/// Every CA of a plan, each once, the preferred ones first.
pub(super) fn cas(plan: &Plan) -> Vec<AcmeSpec> {
    let plans = plan.certificates.iter().filter_map(|certificate| match &certificate.issuer {
        IssuerPlan::Acme(acme) => Some(acme),
        IssuerPlan::Local | IssuerPlan::Files(_) => None,
    });
    let plans: Vec<_> = plans.collect();
    let first = plans.iter().map(|plan| &plan.acme);
    let mut all: Vec<AcmeSpec> = Vec::new();
    for spec in first.chain(plans.iter().flat_map(|plan| &plan.fallback)) {
        if !all.iter().any(|known| known.directory == spec.directory) {
            all.push(spec.clone());
        }
    }
    all
}

/// What is kept of each.
pub(super) async fn list(accounts: &Accounts, cas: &[AcmeSpec]) -> Vec<AccountStatus> {
    let mut all = Vec::with_capacity(cas.len());
    for spec in cas {
        match accounts.kept(spec).await {
            Ok(info) => all.push(status(info)),
            Err(error) => {
                tracing::warn!(directory = spec.directory, %error, "an account cannot be read");
                let directory = spec.directory.clone();
                all.push(AccountStatus {
                    ca: spec.word(),
                    directory,
                    status: Some("unreadable".into()),
                    ..AccountStatus::default()
                });
            }
        }
    }
    all
}

/// Does one thing to the account at `ca`. The error is for a person.
pub(super) async fn act(
    accounts: &Accounts,
    cas: &[AcmeSpec],
    ca: &str,
    command: AccountCommand,
) -> Result<AccountStatus, String> {
    let spec = find(cas, ca)?;
    let result = match command {
        AccountCommand::Show => accounts.show(spec).await,
        AccountCommand::RollKey => accounts.roll_key(spec).await,
        AccountCommand::Contact(email) => accounts.contact(spec, email.as_deref()).await,
        AccountCommand::Deactivate => accounts.deactivate(spec).await,
    };
    result.map(status).map_err(|error| error.to_string())
}

/// By its word, its directory or its host.
fn find<'a>(cas: &'a [AcmeSpec], ca: &str) -> Result<&'a AcmeSpec, String> {
    let is = |spec: &&AcmeSpec| {
        spec.directory == ca || spec.word().eq_ignore_ascii_case(ca) || spec.host().eq_ignore_ascii_case(ca)
    };
    let mut found = cas.iter().filter(is);
    match (found.next(), found.next()) {
        (Some(spec), None) => Ok(spec),
        (Some(_), Some(_)) => {
            Err(format!("several CAs of the configuration are `{ca}`: name the directory's URL"))
        }
        (None, _) if cas.is_empty() => {
            Err("no certificate of the configuration is ordered from a CA".to_owned())
        }
        (None, _) => {
            let names: Vec<String> = cas.iter().map(AcmeSpec::word).collect();
            Err(format!(
                "no certificate of the configuration is ordered from `{ca}`; there are {}",
                names.join(", ")
            ))
        }
    }
}

fn status(info: AccountInfo) -> AccountStatus {
    let AccountInfo { ca, directory, url, thumbprint, status, contacts, rolling } = info;
    AccountStatus { ca, directory, url, thumbprint, status, contacts, rolling }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_is_found_by_word_host_or_directory() {
        let cas =
            ["https://acme-v02.api.letsencrypt.org/directory", "https://ca.test/one", "https://ca.test/two"]
                .map(AcmeSpec::new);
        let directory = |ca: &str| find(&cas, ca).map(|spec| spec.directory.clone());
        assert_eq!(directory("letsencrypt").unwrap(), cas[0].directory);
        assert_eq!(directory("ACME-V02.api.letsencrypt.org").unwrap(), cas[0].directory);
        assert_eq!(directory("https://ca.test/two").unwrap(), cas[2].directory);
        assert!(directory("ca.test").unwrap_err().contains("several"));
        assert!(directory("zerossl").unwrap_err().contains("there are letsencrypt, ca.test"));
    }
}
