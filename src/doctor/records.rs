//! The DNS records that a person has to add once: for the built-in responder, and for dns-persist-01; and where records with a
//! label of the account will stand.

use std::collections::{BTreeMap, BTreeSet};

use super::state;
use crate::acme::AcmeSpec;
use crate::challenge::{ChallengeKind, account_challenge, persist_name, persist_record};
use crate::config::{AcmePlan, IssuerPlan, Plan};
use crate::name::{DnsName, HostPattern};

/// The directory whose CAA identifier is known.
const LETS_ENCRYPT: &str = "api.letsencrypt.org";

/// What a person puts the account's URL in place of.
const ACCOUNT: &str = "ACCOUNT";

/// The URLs of the accounts that are registered, by directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownAccounts(BTreeMap<String, String>);

impl KnownAccounts {
    /// As kept in the state directory, as far as this user may read it. Blocking; changes nothing and asks nobody.
    pub fn read(plan: &Plan) -> Self {
        let kept = state::kept(&state::specs(plan), &plan.storage.path);
        Self(kept.into_iter().filter_map(|(directory, url)| Some((directory, url.ok()??))).collect())
    }

    fn url(&self, spec: &AcmeSpec) -> &str {
        self.0.get(&spec.directory).map_or(ACCOUNT, String::as_str)
    }
}

/// What to add, line by line; empty if nothing is proven by the built-in responder.
pub fn to_add(plan: &Plan) -> Vec<String> {
    let Some(responder) = &plan.responder else { return Vec::new() };
    let mut lines = Vec::new();
    for challenge in &responder.challenge_names {
        for server in &responder.nameservers {
            lines.push(record(challenge, "NS", &server.name.to_fqdn()));
        }
    }
    for server in &responder.nameservers {
        let ours = responder.zone.as_ref().is_some_and(|zone| server.name.is_in(zone));
        let delegated = responder.challenge_names.iter().any(|name| server.name.is_in(name));
        for address in &server.addresses {
            let kind = if address.is_ipv4() { "A" } else { "AAAA" };
            let note = if ours || delegated { "    ; glue" } else { "    ; if it is not there yet" };
            lines.push(format!("{}{note}", record(&server.name, kind, &address.to_string())));
        }
    }
    if let Some(zone) = &responder.zone {
        lines.push(String::new());
        lines.push(format!("; or, once {zone} is delegated here, a CNAME instead of each NS above:"));
        for server in &responder.nameservers {
            lines.push(record(zone, "NS", &server.name.to_fqdn()));
        }
        for challenge in &responder.challenge_names {
            let base = challenge.parent().map_or_else(|| challenge.to_string(), |base| base.to_string());
            lines.push(record(challenge, "CNAME", &format!("{base}.{}", zone.to_fqdn())));
        }
    }
    lines
}

/// The records that prove names by dns-persist-01, one for each CA that may be asked. `ACCOUNT` stands for the URL of an account that
/// is not known, and `CA` for what a CA calls itself in DNS.
pub fn persistent(plan: &Plan, accounts: &KnownAccounts) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for (acme, names) in proven_by(plan, ChallengeKind::DnsPersist01) {
        for spec in std::iter::once(&acme.acme).chain(&acme.fallback) {
            let ca = if spec.directory.contains("letsencrypt.org") { "letsencrypt.org" } else { "CA" };
            for base in names.iter().filter_map(HostPattern::base) {
                let wildcard = names.contains(&HostPattern::Wildcard(base.clone()));
                lines.insert(persist_record(&persist_name(base), ca, accounts.url(spec), wildcard));
            }
        }
    }
    lines.into_iter().collect()
}

/// Where the TXT records of dns-account-01 will stand, for each CA that may be asked: whoever limits a credential to names needs them.
/// `_LABEL` stands for the label of an account that is not known.
pub fn labelled(plan: &Plan, accounts: &KnownAccounts) -> Vec<String> {
    let mut lines = BTreeSet::new();
    for (acme, names) in proven_by(plan, ChallengeKind::DnsAccount01) {
        for spec in std::iter::once(&acme.acme).chain(&acme.fallback) {
            for base in names.iter().filter_map(HostPattern::base) {
                lines.insert(match accounts.0.get(&spec.directory) {
                    Some(url) => account_challenge(url, base).to_fqdn(),
                    None => format!("_LABEL.{}", DnsName::acme_challenge(base).to_fqdn()),
                });
            }
        }
    }
    lines.into_iter().collect()
}

fn proven_by(plan: &Plan, kind: ChallengeKind) -> impl Iterator<Item = (&AcmePlan, &[HostPattern])> {
    plan.certificates.iter().filter_map(move |certificate| match &certificate.issuer {
        IssuerPlan::Acme(acme) if acme.challenge.contains(&kind) => Some((acme, &*certificate.names)),
        _ => None,
    })
}

/// CAA records that keep others from issuing; whoever holds the responder's address could otherwise.
/// `ACCOUNT` as for [`persistent`].
pub fn caa(plan: &Plan, accounts: &KnownAccounts) -> Vec<String> {
    let mut bases: BTreeMap<DnsName, &str> = BTreeMap::new();
    for certificate in &plan.certificates {
        if let IssuerPlan::Acme(acme) = &certificate.issuer
            && acme.is_builtin()
            && acme.acme.directory.contains(LETS_ENCRYPT)
        {
            let url = accounts.url(&acme.acme);
            let names = certificate.names.iter().filter_map(HostPattern::base);
            bases.extend(names.map(|base| (DnsName::from(base), url)));
        }
    }
    let apexes =
        bases.iter().filter(|(name, _)| !bases.keys().any(|other| other != *name && name.is_in(other)));
    let value = |url| format!("0 issue \"letsencrypt.org; validationmethods=dns-01; accounturi={url}\"");
    apexes.map(|(name, url)| record(name, "CAA", &value(url))).collect()
}

pub(super) fn record(name: &DnsName, kind: &str, value: &str) -> String {
    format!("{}  {kind}  {value}", name.to_fqdn())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    fn plan(responder: &str) -> Plan {
        let text = format!(
            "dns = \"builtin\"\n[responder]\nlisten = [\"127.0.0.1:0\"]\n{responder}\n[routes]\n\
             \"*.example.com\" = {{ respond = 200 }}\n\"example.com\" = {{ respond = 200 }}\n"
        );
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        parse(&text, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan
    }

    #[test]
    fn one_delegation_for_apex_and_wildcard() {
        let plan = plan("nameservers = [{ name = \"ns.example.net\", addresses = [\"203.0.113.7\"] }]");
        assert_eq!(
            to_add(&plan),
            [
                "_acme-challenge.example.com.  NS  ns.example.net.",
                "ns.example.net.  A  203.0.113.7    ; if it is not there yet",
            ]
        );
        let accounts = known(&[("https://acme-v02.api.letsencrypt.org/directory", "https://ca/acct/1")]);
        assert!(caa(&plan, &accounts).concat().ends_with("accounturi=https://ca/acct/1\""));
        let unknown = caa(&plan, &KnownAccounts::default());
        assert!(unknown.len() == 1 && unknown[0].ends_with("accounturi=ACCOUNT\""), "{unknown:?}");
    }

    fn known(accounts: &[(&str, &str)]) -> KnownAccounts {
        KnownAccounts(accounts.iter().map(|(ca, url)| ((*ca).to_owned(), (*url).to_owned())).collect())
    }

    #[test]
    fn one_lasting_record_for_apex_and_wildcard() {
        let text = "acme.challenge = \"dns-persist-01\"\nacme.fallback = [{ ca = \"https://two.test/dir\" }]\n[[certificates]]\nnames = [\"example.com\", \"*.example.com\"]\n[routes]\n\"example.org\" = { respond = 200 }";
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        let plan = parse(text, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan;
        assert_eq!(
            persistent(&plan, &known(&[("https://two.test/dir", "https://two.test/acct/2")])),
            [
                "_validation-persist.example.com.  TXT  \"CA; accounturi=https://two.test/acct/2; policy=wildcard\"",
                "_validation-persist.example.com.  TXT  \"letsencrypt.org; accounturi=ACCOUNT; policy=wildcard\"",
                "_validation-persist.example.org.  TXT  \"CA; accounturi=https://two.test/acct/2\"",
                "_validation-persist.example.org.  TXT  \"letsencrypt.org; accounturi=ACCOUNT\"",
            ]
        );
        assert!(labelled(&plan, &KnownAccounts::default()).is_empty());
    }

    /// The draft's own label.
    #[test]
    fn a_labelled_name_for_each_ca() {
        let text = "acme.challenge = \"dns-account-01\"\nacme.ca = \"https://one.test/dir\"\nacme.fallback = [{ ca = \"https://two.test/dir\" }]\n\
            dns = { provider = \"exec\", program = \"/bin/true\" }\n[routes]\n\"example.org\" = { respond = 200 }";
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        let plan = parse(text, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan;
        let accounts = known(&[("https://one.test/dir", "https://example.com/acme/acct/12345")]);
        assert_eq!(
            labelled(&plan, &accounts),
            ["_LABEL._acme-challenge.example.org.", "_ao3pcvmacvwyw63b._acme-challenge.example.org."]
        );
    }

    #[test]
    fn an_account_is_read_where_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let text = "acme.challenge = \"dns-persist-01\"\nacme.ca = \"https://one.test/dir\"\n[routes]\n\"example.org\" = { respond = 200 }";
        let env = Environment { state_dir: dir.path().into(), runtime_dir: "/r".into() };
        let plan = parse(text, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan;
        assert_eq!(KnownAccounts::read(&plan), KnownAccounts::default());
        let key = crate::acme::AcmeIssuer::account_key(&AcmeSpec::new("https://one.test/dir"));
        let file = dir.path().join(format!("{key}.json"));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(
            &file,
            r#"{"directory":"https://one.test/dir","key":"","url":"https://one.test/acct/7"}"#,
        )
        .unwrap();
        let known = KnownAccounts::read(&plan);
        assert!(persistent(&plan, &known)[0].ends_with("accounturi=https://one.test/acct/7\""), "{known:?}");
    }

    #[test]
    fn a_zone_of_its_own_offers_a_cname() {
        let zone = "zone = \"acme.example.net\"\nnameservers = [{ name = \"ns.acme.example.net\", addresses = [\"2001:db8::7\"] }]";
        let lines = to_add(&plan(zone)).join("\n");
        assert!(lines.contains("ns.acme.example.net.  AAAA  2001:db8::7    ; glue"), "{lines}");
        assert!(lines.contains("acme.example.net.  NS  ns.acme.example.net."), "{lines}");
        assert!(
            lines.contains("_acme-challenge.example.com.  CNAME  example.com.acme.example.net."),
            "{lines}"
        );
    }
}
