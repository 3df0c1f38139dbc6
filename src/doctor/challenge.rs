//! Where the TXT records of a challenge have to stand: aliases followed, a wildcard's alias seen for what it is.

use hickory_proto::rr::RecordType;

use super::caa::Account;
use super::finding::Note;
use super::net;
use crate::name::{DnsName, HostName};
use crate::resolver::{Here, LookupError, Resolver, Target, Zone, alias};

/// What was seen of a challenge name.
#[derive(Clone, Debug)]
pub(super) struct ChallengeFacts {
    pub(super) base: HostName,
    pub(super) challenge: DnsName,
    pub(super) target: Result<Target, LookupError>,
    /// What a name that nobody has made is an alias for: then a wildcard makes aliases here.
    pub(super) wildcard: Option<String>,
    /// The zone of the name that is proven.
    pub(super) home: Option<Zone>,
}

/// Asks authoritative servers only: a resolver that is asked too early keeps the absence.
pub(super) async fn gather(
    resolver: &Resolver,
    base: &HostName,
    challenge: DnsName,
    here: &Here,
) -> ChallengeFacts {
    let (target, (home, wildcard)) = tokio::join!(resolver.follow(&challenge, here), sibling(resolver, base));
    ChallengeFacts { base: base.clone(), challenge, target, wildcard, home }
}

async fn sibling(resolver: &Resolver, base: &HostName) -> (Option<Zone>, Option<String>) {
    let base = DnsName::from(base);
    let Ok(zone) = resolver.zone_of(&base).await else { return (None, None) };
    let Ok(nobody) = DnsName::parse(&format!("_{:016x}.{base}", rand::random::<u64>())) else {
        return (Some(zone), None);
    };
    let said = net::at_zone(&zone, &nobody, RecordType::TXT).await.ok();
    let target = said.and_then(|message| alias(&message, &nobody));
    (Some(zone), target.map(|target| target.map_or_else(|text| text, |name| name.to_string())))
}

pub(super) fn judge(facts: &ChallengeFacts) -> Vec<Note> {
    let (challenge, base) = (&facts.challenge, &facts.base);
    let place = format!("DNS, {}", challenge.to_fqdn());
    let fail = |id, what: String| Note::failure(id, what).place(place.as_str());
    let never = "no TXT record can be placed, so the order ends before any CA is asked";
    let mut notes = Vec::new();
    notes.push(match &facts.target {
        Ok(target) if target.name == *challenge => {
            let zone = target.zone.as_ref().map(|zone| format!(", in the zone {}", zone.apex)).unwrap_or_default();
            Note::ok("challenge.name", format!("the TXT records stand at {challenge} itself{zone}"))
        }
        Ok(target) => {
            let zone = target.zone.as_ref().map(|zone| format!(", in the zone {}", zone.apex)).unwrap_or_default();
            Note::ok("challenge.name", format!("{challenge} is a CNAME: the TXT records stand at {}{zone}", target.name))
        }
        Err(LookupError::NoResolver(reason)) => fail("challenge.no-resolver", format!("this machine has no DNS resolver: {reason}"))
            .why(never)
            .fix("[dns] resolvers = [\"9.9.9.9:53\"]")
            .place("/etc/resolv.conf, or [dns] resolvers"),
        // Asking about the alias's target takes its resolver longer than we wait: nobody is there.
        Err(
            error @ (LookupError::NoZone { name, .. }
            | LookupError::NoServer { name, .. }
            | LookupError::Unanswered { name, .. }),
        ) if !challenge.is_in(name) => fail(
            "challenge.dangling",
            format!("{challenge} is a CNAME that leads to {name}, and nobody serves that: {error}"),
        )
        .why(never)
        .fix(format!("serve the zone of {name}, or delete the CNAME at {}", challenge.to_fqdn())),
        Err(LookupError::Unanswered { reason, .. }) => fail("challenge.no-answer", format!("no resolver answers: {reason}"))
            .why(never)
            .fix("name resolvers that answer from here: [dns] resolvers = [\"9.9.9.9:53\"]")
            .place("/etc/resolv.conf, or [dns] resolvers"),
        Err(LookupError::Aliases { chain, .. }) => fail("challenge.loop", format!("{challenge} is a CNAME that leads in a circle, or through too many others: {chain}"))
            .why("resolvers give up on it, and so does every CA")
            .fix(format!("delete the CNAME: {}  CNAME  {}", challenge.to_fqdn(), second(chain))),
        Err(LookupError::BadAlias { name, target }) => fail("challenge.bad-alias", format!("{name} is a CNAME for `{target}`, which cannot hold a TXT record"))
            .why(never)
            .fix(format!("{}  CNAME  (a name of letters, digits, `-` and `_`)", name.to_fqdn())),
        Err(error @ LookupError::NoZone { reason, .. }) if !reason.is_empty() => fail("challenge.refused", error.to_string())
            .why(never)
            .fix(format!("ask it by hand: dig {base} SOA; if only dig +cd {base} SOA answers, DNSSEC is broken there; other resolvers: [dns] resolvers = [\"9.9.9.9:53\"]")),
        Err(error @ LookupError::NoZone { .. }) => fail("challenge.no-zone", error.to_string())
            .why("a name that the public DNS does not know gets no certificate from a public CA")
            .fix(format!("register and delegate the domain of {base} (whois {base}), or correct the name in [routes] or [[certificates]]")),
        Err(error) => fail("challenge.no-server", error.to_string())
            .why(never)
            .fix(format!("mend the name servers of the zone of {base}: dig +trace {challenge} TXT")),
    });
    if let Some(target) = &facts.wildcard {
        notes.push(
            Note::ok(
                "challenge.wildcard-cname",
                format!("*.{base} is a CNAME for {target}, which also answers for names that do not exist"),
            )
            .why("it is recognised and not followed: the TXT record hides it while it stands"),
        );
    }
    notes
}

/// For dns-account-01 while the account's label is not known.
pub(super) fn unlabelled(base: &HostName, ca: &str, account: Account<'_>) -> Note {
    let why = match account {
        Account::Unknown => {
            "our account cannot be read; run the doctor as the user that Starlock runs as, or as root"
        }
        _ => "no account is registered yet: the first order registers one",
    };
    let what = format!(
        "where the TXT records for {base} will stand, and whether they can be written, was not tried"
    );
    Note::skipped("challenge.unlabelled", what)
        .why(format!("the name holds a label of the account at {ca}, and {why}"))
        .fix("once the account is there (starlock accounts list), run the doctor again")
        .place(format!("DNS, _LABEL.{}", DnsName::acme_challenge(base).to_fqdn()))
}

fn second(chain: &str) -> String {
    chain.split(" -> ").nth(1).map(|name| format!("{name}.")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn every_dead_end_says_where_and_what_to_do() {
        let name = |text: &str| DnsName::parse(text).unwrap();
        let base = HostName::parse("example.com").unwrap();
        let challenge = DnsName::acme_challenge(&base);
        let zone = || Some(Zone { apex: name("example.com"), servers: vec![] });
        let note = |target| {
            let facts = ChallengeFacts {
                base: base.clone(),
                challenge: challenge.clone(),
                target,
                wildcard: None,
                home: None,
            };
            judge(&facts).remove(0)
        };
        let cases: Vec<(Result<Target, LookupError>, &str, &str)> = vec![
            (
                Ok(Target { name: challenge.clone(), zone: zone() }),
                "challenge.name",
                "itself, in the zone example.com",
            ),
            (Ok(Target { name: name("x.acme.net"), zone: zone() }), "challenge.name", "stand at x.acme.net"),
            (
                Err(LookupError::Aliases { name: challenge.clone(), chain: "a -> b -> a".into() }),
                "challenge.loop",
                "_acme-challenge.example.com.  CNAME  b.",
            ),
            (
                Err(LookupError::NoZone { name: name("x.gone.net"), reason: String::new() }),
                "challenge.dangling",
                "serve the zone of x.gone.net",
            ),
            (
                Err(LookupError::NoServer {
                    apex: name("gone.net"),
                    name: name("x.gone.net"),
                    reason: "y".into(),
                }),
                "challenge.dangling",
                "delete the CNAME at _acme-challenge.example.com.",
            ),
            (
                Err(LookupError::NoZone { name: challenge.clone(), reason: String::new() }),
                "challenge.no-zone",
                "whois example.com",
            ),
            (
                Err(LookupError::NoServer {
                    apex: name("example.com"),
                    name: challenge.clone(),
                    reason: "y".into(),
                }),
                "challenge.no-server",
                "dig +trace",
            ),
            (
                Err(LookupError::BadAlias { name: challenge.clone(), target: "a b".into() }),
                "challenge.bad-alias",
                "CNAME",
            ),
            (Err(LookupError::NoResolver("x".into())), "challenge.no-resolver", "[dns] resolvers"),
        ];
        for (target, id, words) in cases {
            let note = note(target);
            assert_eq!(note.id, id);
            assert!(format!("{} {}", note.what, note.fix).contains(words), "{words}: {note:?}");
            assert_eq!(note.severity == Severity::Ok, id == "challenge.name");
        }
    }
}
