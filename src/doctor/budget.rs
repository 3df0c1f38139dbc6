//! What a CA has counted, by our own ledger: whether it would take an order now.

use std::sync::Arc;

use super::finding::Note;
use crate::acme::{AcmeIssuer, AcmeSpec};
use crate::clock::{self, SharedClock};
use crate::ledger::{Ask, Ledger, Limit, Refusal};
use crate::name::HostPattern;
use crate::storage::Storage;

/// What the ledger says of one certificate at its first CA.
#[derive(Clone, Debug)]
pub(super) struct BudgetFacts {
    pub(super) refused: Option<Refusal>,
    /// What is left of each limit.
    pub(super) left: Vec<(Limit, u32)>,
}

/// `None` if nobody counts at this CA.
pub(super) async fn gather(
    storage: &Arc<dyn Storage>,
    clock: &SharedClock,
    spec: &AcmeSpec,
    names: &[HostPattern],
    registers: bool,
) -> Option<BudgetFacts> {
    let budget = AcmeIssuer::budget_of(spec)?;
    let ledger = Ledger::new(storage.clone(), clock.clone());
    let ask = Ask { names, renewal: false, exempt: false, registers, resumes: false };
    let refused = ledger.check(&budget, &ask).await.err();
    Some(BudgetFacts { refused, left: ledger.remaining(&budget).await })
}

pub(super) fn judge(ca: &str, facts: &BudgetFacts) -> Note {
    match &facts.refused {
        Some(refusal) => {
            let until = clock::rfc3339(refusal.until);
            Note::warning("budget.spent", format!("{refusal} is used up at {ca} until {until}"))
                .why("an order that is sent before would be refused; Starlock sends it then, by itself")
                .fix("wait; or let another CA sign meanwhile: [acme] fallback = [{ ca = \"google\", eab = { kid = \"...\", hmac = { file = \"...\" } } }]")
                .place("the ledger in [storage] path")
        }
        None => {
            let left: Vec<String> =
                facts.left.iter().map(|(limit, left)| format!("{} {left}", limit.as_str())).collect();
            let left = if left.is_empty() { String::new() } else { format!(" (left: {})", left.join(", ")) };
            Note::ok(
                "budget.left",
                format!("{ca} would take an order now, as far as it was counted here{left}"),
            )
        }
    }
}

/// When the ledger cannot be read; `None` if nobody counts at this CA.
pub(super) fn unread(ca: &str, spec: &AcmeSpec, reason: &str) -> Option<Note> {
    AcmeIssuer::budget_of(spec)?;
    let note = Note::skipped("budget.unknown", format!("what is left of the limits of {ca} cannot be seen"));
    Some(note.why(reason).place("the ledger in [storage] path"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::Severity;
    use super::*;

    #[test]
    fn what_cannot_be_read_is_said() {
        let spec = AcmeSpec::new("https://acme-v02.api.letsencrypt.org/directory");
        let note = unread("Let's Encrypt", &spec, "it belongs to uid 7").unwrap();
        assert_eq!((note.id, note.severity), ("budget.unknown", Severity::Skipped));
        assert!(note.why.contains("uid 7"), "{note:?}");
        assert_eq!(unread("x", &AcmeSpec::new("https://ca.test/dir"), "y"), None);
    }

    #[test]
    fn what_is_used_up_only_warns() {
        let facts = BudgetFacts { refused: None, left: vec![(Limit::Orders, 299)] };
        let note = judge("Let's Encrypt", &facts);
        assert_eq!(note.severity, Severity::Ok);
        assert!(note.what.contains("299"), "{note:?}");
        let refusal =
            Refusal { limit: Limit::Names, of: "example.com".into(), until: SystemTime::UNIX_EPOCH };
        let note = judge("Let's Encrypt", &BudgetFacts { refused: Some(refusal), left: vec![] });
        assert_eq!((note.id, note.severity), ("budget.spent", Severity::Warning));
        assert!(
            note.what.contains("exactly example.com is used up") && note.what.contains("1970"),
            "{note:?}"
        );
    }
}
