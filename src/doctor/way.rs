//! Who proves the names of a certificate, and where: by the challenges that it is configured with.

use super::ca::{Answer, CaFacts};
use crate::challenge::{AccountFacts, ChallengeKind, account_challenge};
use crate::config::AcmePlan;
use crate::name::{DnsName, HostName};

/// Who answers a challenge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// The built-in responder.
    Builtin,
    /// A provider that writes TXT records.
    Provider,
    /// A provider, at the label of the account with this URL; `None` while there is none: nobody knows the name then.
    Label(Option<String>),
    /// Our own listeners, on these ports.
    Listeners(Vec<u16>),
    /// A record that a person adds, once, for this account, and for `*.` of a name too if so.
    Persist(Persist, bool),
}

/// What is known of the record that stays.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Persist {
    /// All of it.
    Known(AccountFacts),
    /// There is no account yet; the CA calls itself so, if it said.
    Unregistered(Option<String>),
    /// It cannot be told, for this reason.
    Unknown(&'static str),
}

/// What is known of the account that orders.
#[derive(Clone, Debug, Default)]
pub(super) struct Known<'a> {
    /// `Err` if it cannot be read.
    pub(super) url: Option<Result<&'a str, ()>>,
    pub(super) thumbprint: Option<&'a str>,
    pub(super) ca: Option<&'a CaFacts>,
}

/// How a CA may look, in its words, best first.
pub(super) fn methods(acme: &AcmePlan) -> Vec<&'static str> {
    acme.challenge.iter().map(|kind| kind.as_str()).collect()
}

/// Who answers for a name of which `*.` is wanted too if `wildcard`. Of several kinds the first counts, but the listeners
/// answer together.
pub(super) fn of(acme: &AcmePlan, wildcard: bool, known: &Known<'_>) -> Way {
    let port = |kind: &ChallengeKind| match kind {
        ChallengeKind::TlsAlpn01 => Some(443),
        ChallengeKind::Http01 => Some(80),
        _ => None,
    };
    match acme.challenge.first() {
        _ if acme.is_builtin() => Way::Builtin,
        Some(ChallengeKind::Http01 | ChallengeKind::TlsAlpn01) => {
            Way::Listeners(acme.challenge.iter().filter_map(port).collect())
        }
        Some(ChallengeKind::DnsAccount01) => {
            Way::Label(known.url.and_then(Result::ok).map(ToOwned::to_owned))
        }
        Some(ChallengeKind::DnsPersist01) => Way::Persist(persist(known), wildcard),
        Some(ChallengeKind::Dns01) | None => Way::Provider,
    }
}

fn persist(known: &Known<'_>) -> Persist {
    let Some(CaFacts::Answer(Answer { meta: Some(meta), .. })) = known.ca else {
        return Persist::Unknown("the CA's directory, which says what stands in it, could not be read");
    };
    let (issuers, hash_prefix) = meta.persist.clone();
    let url = match known.url {
        Some(Ok(url)) => url.to_owned(),
        Some(Err(())) => {
            return Persist::Unknown(
                "it names our account, which cannot be read; run the doctor as the user that Starlock runs as, or as root",
            );
        }
        None => return Persist::Unregistered(issuers.into_iter().next()),
    };
    if issuers.is_empty() {
        return Persist::Unknown(
            "the CA's directory does not say by which name it calls itself in DNS; an order finds out",
        );
    }
    let thumbprint = match (&hash_prefix, known.thumbprint) {
        (Some(_), None) => {
            return Persist::Unknown(
                "the CA wants our account hashed with its key, which cannot be read; run the doctor as the user that Starlock runs as",
            );
        }
        (_, thumbprint) => thumbprint.unwrap_or_default().to_owned(),
    };
    Persist::Known(AccountFacts { url, thumbprint, issuers, hash_prefix })
}

impl Way {
    /// Whether a provider writes TXT records, at a name that is known.
    pub(super) fn writes(&self) -> bool {
        matches!(self, Self::Provider | Self::Label(Some(_)))
    }

    /// Where the TXT records of an order stand, if it has some.
    pub(super) fn challenge_name(&self, base: &HostName) -> DnsName {
        match self {
            Self::Label(Some(account)) => account_challenge(account, base),
            _ => DnsName::acme_challenge(base),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ca::Meta;
    use super::*;
    use crate::acme::AcmeSpec;
    use crate::challenge::ChallengeKind::*;
    use crate::config::{self, Environment, IssuerPlan};

    /// The plan of a certificate under `text`.
    fn acme(dns: &str, challenge: &[ChallengeKind]) -> AcmePlan {
        let text = format!("{dns}\n[routes]\n\"example.com\" = {{ respond = 204 }}\n");
        let env = Environment { state_dir: "/state".into(), runtime_dir: "/runtime".into() };
        let plan = config::parse(&text, "starlock.toml", &env).unwrap().plan;
        let IssuerPlan::Acme(found) = plan.certificates[0].issuer.clone() else { panic!("ACME") };
        AcmePlan { acme: AcmeSpec::new("https://ca.test/dir"), challenge: challenge.to_vec(), ..found }
    }

    const URL: &str = "https://ca.test/acct/1";

    fn ca(prefix: Option<&str>, issuers: &[&str]) -> CaFacts {
        let issuers = issuers.iter().map(|text| (*text).to_owned()).collect();
        let meta = Meta { persist: (issuers, prefix.map(Into::into)), ..Meta::default() };
        CaFacts::Answer(Answer { meta: Some(meta), ..Answer::default() })
    }

    #[test]
    fn the_challenge_says_who_answers() {
        let exec = "[dns]\nprovider = \"exec\"\nprogram = \"/bin/true\"";
        let builtin = "[dns]\nprovider = \"builtin\"\n[responder]\nlisten = [\"127.0.0.1:53\"]\nnameservers = [{ name = \"ns.example.com\", addresses = [\"192.0.2.1\"] }]";
        let listeners = |ports: &[u16]| Way::Listeners(ports.to_vec());
        for (dns, challenge, way, words) in [
            (exec, &[Dns01][..], Way::Provider, "dns-01"),
            (builtin, &[Dns01], Way::Builtin, "dns-01"),
            ("", &[TlsAlpn01, Http01], listeners(&[443, 80]), "tls-alpn-01,http-01"),
            ("", &[Http01, TlsAlpn01], listeners(&[80, 443]), "http-01,tls-alpn-01"),
            // A provider that is there for others changes nothing.
            (exec, &[Http01], listeners(&[80]), "http-01"),
            (builtin, &[TlsAlpn01], listeners(&[443]), "tls-alpn-01"),
            (exec, &[DnsAccount01], Way::Label(None), "dns-account-01"),
        ] {
            let acme = acme(dns, challenge);
            assert_eq!(
                (of(&acme, false, &Known::default()), methods(&acme).join(",").as_str()),
                (way, words)
            );
        }
        let known = Known { url: Some(Ok(URL)), ..Known::default() };
        let label = of(&acme(exec, &[DnsAccount01]), true, &known);
        assert_eq!(label, Way::Label(Some(URL.into())));
        let base = HostName::parse("example.com").unwrap();
        let name = label.challenge_name(&base).to_string();
        assert!(label.writes() && name.ends_with("._acme-challenge.example.com"), "{name}");
        assert!(!Way::Label(None).writes() && !listeners(&[80]).writes());
        assert_eq!(Way::Provider.challenge_name(&base).as_str(), "_acme-challenge.example.com");
    }

    #[test]
    fn what_is_known_of_a_record_that_stays() {
        let facts = AccountFacts {
            url: URL.into(),
            thumbprint: "T".into(),
            issuers: vec!["ca.test".into()],
            hash_prefix: None,
        };
        let hashed = AccountFacts { hash_prefix: Some("x:".into()), ..facts.clone() };
        let bare = AccountFacts { thumbprint: String::new(), ..facts.clone() };
        let (plain, prefixed, silent) = (ca(None, &["ca.test"]), ca(Some("x:"), &["ca.test"]), ca(None, &[]));
        let there = Some(Ok(URL));
        for (url, thumbprint, ca, expected) in [
            (there, Some("T"), Some(&plain), Ok(Persist::Known(facts))),
            (there, None, Some(&plain), Ok(Persist::Known(bare))),
            (there, Some("T"), Some(&prefixed), Ok(Persist::Known(hashed))),
            (there, None, Some(&prefixed), Err("hashed")),
            (there, Some("T"), Some(&silent), Err("does not say")),
            (there, Some("T"), None, Err("could not be read")),
            (Some(Err(())), None, Some(&plain), Err("cannot be read")),
            (None, None, Some(&plain), Ok(Persist::Unregistered(Some("ca.test".into())))),
            (None, None, Some(&silent), Ok(Persist::Unregistered(None))),
        ] {
            let found = persist(&Known { url, thumbprint, ca });
            match (&found, expected) {
                (Persist::Unknown(why), Err(words)) => assert!(why.contains(words), "{why}"),
                (_, Ok(expected)) => assert_eq!(found, expected),
                (_, Err(words)) => panic!("{words}: {found:?}"),
            }
        }
    }
}
