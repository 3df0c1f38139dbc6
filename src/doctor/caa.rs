//! CAA (RFC 8659): whether the domain lets this CA sign, with its parameters for ACME (RFC 8657).

use std::net::SocketAddr;

use hickory_proto::rr::{RData, RecordType};

use super::finding::Note;
use super::net;
use crate::name::DnsName;

/// More labels than a name of a certificate has in practice.
const MAX_LABELS: usize = 16;

/// One CAA record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caa {
    pub(super) critical: bool,
    pub(super) tag: String,
    pub(super) value: String,
}

/// The relevant record set for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CaaFacts {
    /// There is none up to the root: every CA may.
    Free,
    /// These stand at this name.
    Set(DnsName, Vec<Caa>),
    /// It could not be asked at this name: a CA then refuses (RFC 8659 section 5.6).
    Unanswered(DnsName, String),
}

/// Climbs from `name` to the root (RFC 8659 section 3). These names are no challenge names, so recursive resolvers may be asked.
pub(super) async fn gather(recursors: &[SocketAddr], name: &DnsName) -> CaaFacts {
    let mut at = Some(name.clone());
    for _ in 0..MAX_LABELS {
        let Some(here) = at else { break };
        match net::recurse(recursors, &here, RecordType::CAA, false).await {
            Err(reason) => return CaaFacts::Unanswered(here, reason),
            Ok(message) => {
                let set: Vec<Caa> = message
                    .answers
                    .iter()
                    .filter_map(|record| match &record.data {
                        RData::CAA(caa) => Some(Caa {
                            critical: caa.issuer_critical,
                            tag: caa.tag.to_ascii_lowercase(),
                            value: String::from_utf8_lossy(&caa.value).into_owned(),
                        }),
                        _ => None,
                    })
                    .collect();
                if !set.is_empty() {
                    return CaaFacts::Set(here, set);
                }
            }
        }
        at = here.parent();
    }
    CaaFacts::Free
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Asker<'a> {
    /// What the CA calls itself in CAA records; empty if that is not known.
    pub(super) identities: &'a [String],
    /// What people call the CA.
    pub(super) ca: &'a str,
    pub(super) account: Account<'a>,
    /// `dns-01` and its like: how it may prove a name.
    pub(super) methods: &'a [&'static str],
}

/// The account that orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Account<'a> {
    /// Its URL.
    Known(&'a str),
    /// There is none yet: the CA will give it a URL that nobody can know.
    None,
    /// It cannot be read.
    Unknown,
}

/// What is said about a name's record set, for the name itself or for `*.` below it.
pub(super) fn judge(name: &DnsName, wildcard: bool, facts: &CaaFacts, asker: &Asker<'_>) -> Note {
    let shown = if wildcard { format!("*.{name}") } else { name.to_string() };
    let (at, set) = match facts {
        CaaFacts::Free => {
            return Note::ok("caa.allowed", format!("no CAA record restricts who signs {shown}"));
        }
        CaaFacts::Unanswered(at, reason) => {
            return Note::failure(
                "caa.unanswered",
                format!("the CAA records of {at} cannot be asked for: {reason}"),
            )
            .why(format!("a CA that gets no answer must not sign {shown} (RFC 8659)"))
            .fix(format!("mend the servers of {at} until this answers NOERROR or NXDOMAIN: dig {at} CAA"))
            .place(format!("zone of {at}"));
        }
        CaaFacts::Set(at, set) => (at, set),
    };
    let fail = |id, what: String, why: String, fix: String| {
        Note::failure(id, what).why(why).fix(fix).place(format!("CAA of {at}"))
    };
    let known = ["issue", "issuewild", "iodef", "issuemail", "issuevmc", "contactemail", "contactphone"];
    if let Some(odd) = set.iter().find(|caa| caa.critical && !known.contains(&caa.tag.as_str())) {
        return fail(
            "caa.critical",
            format!("{at} has a critical CAA record that CAs do not know: `{}`", odd.tag),
            format!("a CA that does not understand it must not sign {shown} (RFC 8659 section 4.1)"),
            format!("{}  CAA  0 {} \"{}\"", at.to_fqdn(), odd.tag, odd.value),
        );
    }
    let of =
        |tag: &str| set.iter().filter(|caa| caa.tag == tag).map(|caa| parse(&caa.value)).collect::<Vec<_>>();
    let (issue, wild) = (of("issue"), of("issuewild"));
    let (tag, entries) = if wildcard && !wild.is_empty() { ("issuewild", wild) } else { ("issue", issue) };
    if entries.is_empty() {
        return Note::ok("caa.allowed", format!("the CAA records of {at} do not restrict who signs {shown}"));
    }
    let Some(identity) = asker.identities.first() else {
        return Note::skipped(
            "caa.unknown-ca",
            format!("{at} has CAA records, and what {} calls itself in them is not known", asker.ca),
        )
        .why("whether they let it sign cannot be told: its directory has no `caaIdentities`")
        .place(format!("CAA of {at}"));
    };
    let mine: Vec<&Issuers> = entries
        .iter()
        .filter(|entry| asker.identities.iter().any(|id| id.eq_ignore_ascii_case(&entry.domain)))
        .collect();
    if mine.is_empty() {
        let domains: Vec<&str> =
            entries.iter().map(|e| if e.domain.is_empty() { "nobody" } else { &*e.domain }).collect();
        return fail(
            "caa.forbidden",
            format!(
                "the CAA records of {at} let {} sign {shown}, and not {} ({identity})",
                domains.join(", "),
                asker.ca
            ),
            "the CA refuses the order, and counts that as a failure".into(),
            format!("{}  CAA  0 {tag} \"{identity}\"", at.to_fqdn()),
        );
    }
    let verdicts: Vec<Result<(), Denied>> = mine.iter().map(|entry| entry.allows(asker)).collect();
    if verdicts.contains(&Ok(())) {
        return Note::ok("caa.allowed", format!("the CAA records of {at} let {} sign {shown}", asker.ca));
    }
    let ways = asker.methods.join(",");
    // The least that is in the way.
    match verdicts.into_iter().filter_map(Result::err).min() {
        Some(Denied::AccountUnread) => Note::skipped(
            "caa.account-unread",
            format!("the CAA record of {at} names an account, and ours could not be read"),
        )
        .why("only that account may order; run the doctor as the user that Starlock runs as, or as root")
        .place(format!("CAA of {at}")),
        Some(Denied::Account(pinned)) => {
            let (ours, fix) = match asker.account {
                Account::Known(ours) => (
                    ours.to_owned(),
                    format!(
                        "{}  CAA  0 {tag} \"{identity}; validationmethods={}; accounturi={ours}\"",
                        at.to_fqdn(),
                        ways
                    ),
                ),
                _ => (
                    "there is none here yet: a new one gets a new URL".to_owned(),
                    format!(
                        "take the account over from where it is, or take `accounturi` out of the CAA record until the first order has registered one: {}  CAA  0 {tag} \"{identity}; validationmethods={}\"",
                        at.to_fqdn(),
                        ways
                    ),
                ),
            };
            fail(
                "caa.account",
                format!("the CAA record of {at} lets only the account {pinned} order {shown}; ours: {ours}"),
                "the CA refuses every other account".into(),
                fix,
            )
        }
        Some(Denied::Method(methods)) => fail(
            "caa.method",
            format!("the CAA record of {at} allows {methods} for {shown}, and Starlock proves it by {ways}",),
            "the CA refuses every other way (RFC 8657 section 4)".into(),
            format!("{}  CAA  0 {tag} \"{identity}; validationmethods={ways}\"", at.to_fqdn()),
        ),
        Some(Denied::Malformed) | None => fail(
            "caa.malformed",
            format!("a CAA record of {at} has parameters that cannot be read"),
            "CAs take such a record as a no (RFC 8659 section 4.2)".into(),
            format!("{}  CAA  0 {tag} \"{identity}\"", at.to_fqdn()),
        ),
    }
}

/// For a name that the built-in responder proves: the record that keeps others from issuing for it, if nothing does so far.
pub(super) fn advise(name: &DnsName, facts: &CaaFacts, asker: &Asker<'_>) -> Option<Note> {
    let (CaaFacts::Free, Some(identity)) = (facts, asker.identities.first()) else { return None };
    let ways = asker.methods.join(",");
    let mut line = format!("{}  CAA  0 issue \"{identity}; validationmethods={ways}", name.to_fqdn());
    // A new account gets a URL that nobody knows before.
    let later = match asker.account {
        Account::Known(url) => {
            line.push_str(&format!("; accounturi={url}"));
            ""
        }
        _ => {
            "\nonce the first order has registered an account, `; accounturi=` and its URL (starlock accounts list) belong into it"
        }
    };
    line.push('"');
    let what = format!(
        "whoever holds the responder's address could issue for {name}; this record keeps all others out:\n{line}{later}"
    );
    let why = "no CAA record restricts who signs it, and by which account";
    Some(Note::ok("caa.advice", what).why(why).fix(line).place(format!("CAA of {name}")))
}

/// The value of an `issue` or `issuewild` property (RFC 8659 section 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Issuers {
    /// Empty: nobody.
    domain: String,
    parameters: Vec<(String, String)>,
    malformed: bool,
}

/// Why a record that names the CA does not let it sign. In the order of how near it is to a yes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Denied {
    AccountUnread,
    Account(String),
    Method(String),
    Malformed,
}

impl Issuers {
    fn allows(&self, asker: &Asker<'_>) -> Result<(), Denied> {
        if self.malformed {
            return Err(Denied::Malformed);
        }
        let values = |name: &str| -> Vec<&str> {
            self.parameters.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
        };
        let (accounts, methods) = (values("accounturi"), values("validationmethods"));
        // RFC 8657 sections 3 and 4: more than one of a kind is malformed.
        if accounts.len() > 1 || methods.len() > 1 {
            return Err(Denied::Malformed);
        }
        if let Some(methods) = methods.first()
            && !methods.split(',').any(|method| asker.methods.contains(&method.trim()))
        {
            return Err(Denied::Method((*methods).to_owned()));
        }
        match (accounts.first(), asker.account) {
            (None, _) => Ok(()),
            (Some(pinned), Account::Known(ours)) if *pinned == ours => Ok(()),
            (Some(_), Account::Unknown) => Err(Denied::AccountUnread),
            (Some(pinned), _) => Err(Denied::Account((*pinned).to_owned())),
        }
    }
}

fn parse(value: &str) -> Issuers {
    let mut parts = value.split(';').map(str::trim);
    let domain = parts.next().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let mut issuers = Issuers { domain, parameters: Vec::new(), malformed: false };
    for part in parts.filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some((key, value)) if key.trim().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') => {
                issuers.parameters.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
            _ => issuers.malformed = true,
        }
    }
    issuers
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    const OURS: &str = "https://ca.example/acct/1";

    fn verdict(records: &[&str], wildcard: bool, account: Account<'_>) -> (&'static str, String) {
        let name = DnsName::parse("example.com").unwrap();
        let set = records
            .iter()
            .map(|line| {
                let (flags, rest) = line.split_once(' ').unwrap();
                let (tag, value) = rest.split_once(' ').unwrap();
                Caa { critical: flags == "128", tag: tag.into(), value: value.trim_matches('"').into() }
            })
            .collect();
        let identities = ["letsencrypt.org".to_owned()];
        let asker = Asker { identities: &identities, ca: "Let's Encrypt", account, methods: &["dns-01"] };
        let note = judge(&name, wildcard, &CaaFacts::Set(name.clone(), set), &asker);
        (note.id, note.fix)
    }

    #[test]
    fn the_rules_of_rfc_8659_and_8657() {
        let known = Account::Known(OURS);
        type Case = (&'static [&'static str], bool, &'static str);
        let cases: &[Case] = &[
            (&["0 issue \"letsencrypt.org\""], false, "caa.allowed"),
            (&["0 issue \"LetsEncrypt.ORG\""], true, "caa.allowed"),
            (&["0 issue \"letsencrypt.org.\""], false, "caa.allowed"),
            (&["0 issue \"ca.example\""], false, "caa.forbidden"),
            (&["0 issue \";\""], false, "caa.forbidden"),
            (&["0 issue \"\""], true, "caa.forbidden"),
            (&["0 issue \"ca.example\"", "0 issue \"letsencrypt.org\""], false, "caa.allowed"),
            // issuewild alone speaks of wildcards, and replaces issue for them.
            (&["0 issuewild \"ca.example\""], false, "caa.allowed"),
            (&["0 issuewild \"ca.example\"", "0 issue \"letsencrypt.org\""], true, "caa.forbidden"),
            (&["0 issuewild \"letsencrypt.org\"", "0 issue \";\""], true, "caa.allowed"),
            (&["0 issuewild \"letsencrypt.org\"", "0 issue \";\""], false, "caa.forbidden"),
            (&["0 iodef \"mailto:a@example.com\""], false, "caa.allowed"),
            (&["0 unknown \"x\""], false, "caa.allowed"),
            (&["128 unknown \"x\""], false, "caa.critical"),
            (&["128 issue \"letsencrypt.org\""], false, "caa.allowed"),
            (&["0 issue \"letsencrypt.org; accounturi=https://ca.example/acct/1\""], false, "caa.allowed"),
            (&["0 issue \"letsencrypt.org; accounturi=https://ca.example/acct/2\""], false, "caa.account"),
            (&["0 issue \"letsencrypt.org; validationmethods=dns-01,http-01\""], false, "caa.allowed"),
            (&["0 issue \"letsencrypt.org;validationmethods=http-01\""], false, "caa.method"),
            (
                &["0 issue \"letsencrypt.org; validationmethods=http-01\"", "0 issue \"letsencrypt.org\""],
                false,
                "caa.allowed",
            ),
            (&["0 issue \"letsencrypt.org; nonsense\""], false, "caa.malformed"),
            (&["0 issue \"letsencrypt.org; accounturi=a; accounturi=b\""], false, "caa.malformed"),
        ];
        for (records, wildcard, expected) in cases {
            assert_eq!(verdict(records, *wildcard, known).0, *expected, "{records:?} {wildcard}");
        }
    }

    #[test]
    fn the_fix_is_a_line_to_paste() {
        let (_, fix) = verdict(&["0 issue \";\""], true, Account::None);
        assert_eq!(fix, "example.com.  CAA  0 issue \"letsencrypt.org\"");
        let pinned = ["0 issue \"letsencrypt.org; accounturi=https://ca.example/acct/2\""];
        let (_, fix) = verdict(&pinned, false, Account::Known(OURS));
        assert_eq!(
            fix,
            "example.com.  CAA  0 issue \"letsencrypt.org; validationmethods=dns-01; accounturi=https://ca.example/acct/1\""
        );
        assert_eq!(verdict(&pinned, false, Account::None).0, "caa.account");
        assert_eq!(verdict(&pinned, false, Account::Unknown).0, "caa.account-unread");
    }

    #[test]
    fn without_records_or_without_an_answer() {
        let name = DnsName::parse("example.com").unwrap();
        let asker =
            Asker { identities: &[], ca: "ca.internal", account: Account::None, methods: &["dns-01"] };
        let judge = |facts: &CaaFacts| judge(&name, false, facts, &asker);
        assert_eq!(judge(&CaaFacts::Free).severity, Severity::Ok);
        let unanswered = judge(&CaaFacts::Unanswered(name.clone(), "SERVFAIL".into()));
        assert_eq!((unanswered.id, unanswered.severity), ("caa.unanswered", Severity::Failure));
        let set = vec![Caa { critical: false, tag: "issue".into(), value: "x".into() }];
        assert_eq!(judge(&CaaFacts::Set(name.clone(), set)).severity, Severity::Skipped);
    }
}
