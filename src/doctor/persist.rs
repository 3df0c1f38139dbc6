//! For dns-persist-01: the record that a person adds once, and that stays.

use std::sync::Arc;

use super::finding::Note;
use super::way::Persist;
use crate::challenge::{MissingRecord, PersistSolver, persist_name, persist_record};
use crate::clock::SharedClock;
use crate::name::HostName;
use crate::resolver::Resolver;

/// What is missing at `base`, if it was looked for.
pub(super) async fn gather(
    resolver: &Resolver,
    clock: &SharedClock,
    base: &HostName,
    known: &Persist,
    wildcard: bool,
) -> Option<MissingRecord> {
    let Persist::Known(account) = known else { return None };
    let solver = PersistSolver::new(Arc::new(resolver.clone()), clock.clone());
    solver.look_for(base, wildcard, account).await
}

pub(super) fn judge(
    base: &HostName,
    known: &Persist,
    wildcard: bool,
    missing: Option<&MissingRecord>,
) -> Note {
    let name = persist_name(base);
    let place = format!("DNS, {}", name.to_fqdn());
    let untold = |why: String| {
        Note::skipped("persist.unknown", format!("whether {name} has the right TXT record was not looked at"))
            .why(why)
            .place(place.as_str())
    };
    match (known, missing) {
        (Persist::Known(_), None) => {
            Note::ok("persist.there", format!("every server of {name} shows the record that stays"))
        }
        (Persist::Known(_), Some(missing)) => {
            let said = missing.said.trim_end();
            Note::failure(
                "persist.missing",
                format!("{name} does not have the TXT record that stays:\n{said}"),
            )
            .why(format!("it proves {base}; without it an order ends before any CA is asked"))
            .fix(missing.record.as_str())
            .place(place.as_str())
        }
        (Persist::Unregistered(issuer), _) => {
            let record = persist_record(&name, issuer.as_deref().unwrap_or("CA"), "ACCOUNT", wildcard);
            untold(
                "it names our account, and none is registered yet: the first order registers one and says what to add".into(),
            )
            .fix(format!("once ACCOUNT is known (starlock accounts list): {record}"))
        }
        (Persist::Unknown(why), _) => untold((*why).to_owned())
            .fix(format!("mend that and run it again, or look yourself: dig {name} TXT")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;
    use crate::challenge::AccountFacts;

    #[test]
    fn a_record_is_there_or_is_shown() {
        let base = HostName::parse("example.com").unwrap();
        let known = Persist::Known(AccountFacts::default());
        let missing = MissingRecord { record: "the record".into(), said: "ns.test: nothing\n".into() };
        let note = judge(&base, &known, false, Some(&missing));
        assert_eq!((note.severity, note.fix.as_str()), (Severity::Failure, "the record"));
        assert!(note.what.ends_with("ns.test: nothing"), "{}", note.what);
        assert_eq!(judge(&base, &known, false, None).severity, Severity::Ok);
        let note = judge(&base, &Persist::Unregistered(Some("ca.test".into())), true, None);
        let record =
            "_validation-persist.example.com.  TXT  \"ca.test; accounturi=ACCOUNT; policy=wildcard\"";
        assert!(note.severity == Severity::Skipped && note.fix.contains(record), "{}", note.fix);
        let note = judge(&base, &Persist::Unknown("of the weather"), false, None);
        assert_eq!((note.severity, note.why.as_str()), (Severity::Skipped, "of the weather"));
    }
}
