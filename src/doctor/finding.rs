//! What the doctor says: findings, about whom, how bad.

use std::collections::BTreeMap;

use serde::Serialize;

/// How bad a finding is. The worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It would fail.
    Failure,
    /// It works now, and may not later, or not everywhere.
    Warning,
    /// It could not be looked at; `why` says what was missing.
    Skipped,
    /// It was looked at and is good.
    Ok,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", content = "name", rename_all = "lowercase")]
pub enum About {
    /// The file.
    Configuration(String),
    /// The state directory.
    State(String),
    /// A listener: what for, and its address.
    Listener(String),
    /// A CA, by the URL of its directory.
    Ca(String),
    /// A certificate, by its names.
    Certificate(String),
}

impl About {
    /// The heading of its block.
    pub fn heading(&self) -> String {
        match self {
            Self::Configuration(path) => format!("configuration {path}"),
            Self::State(path) => format!("state {path}"),
            Self::Listener(name) => format!("listener {name}"),
            Self::Ca(directory) => format!("CA {directory}"),
            Self::Certificate(names) => format!("certificate {names}"),
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Stable, for scripts: `room.mistake`.
    pub id: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// What it means.
    pub why: String,
    /// The line to paste or the command to type; empty if there is nothing to do.
    pub fix: String,
    /// Where to mend it: a file, a key, a zone.
    pub place: String,
}

impl Note {
    fn new(id: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        Self { id, severity, what: what.into(), why: String::new(), fix: String::new(), place: String::new() }
    }

    pub(super) fn failure(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Severity::Failure, what)
    }

    pub(super) fn warning(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Severity::Warning, what)
    }

    pub(super) fn skipped(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Severity::Skipped, what)
    }

    pub(super) fn ok(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Severity::Ok, what)
    }

    pub(super) fn why(mut self, text: impl Into<String>) -> Self {
        self.why = text.into();
        self
    }

    pub(super) fn fix(mut self, text: impl Into<String>) -> Self {
        self.fix = text.into();
        self
    }

    pub(super) fn place(mut self, text: impl Into<String>) -> Self {
        self.place = text.into();
        self
    }

    /// A failure where `strict`, else a warning.
    pub(super) fn failure_if(strict: bool, id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, if strict { Severity::Failure } else { Severity::Warning }, what)
    }

    /// About a CA that is asked only when another cannot be: what would fail there is no failure yet.
    pub(super) fn of_fallback(mut self, ca: &str) -> Self {
        self.severity = self.severity.max(Severity::Warning);
        self.what = format!("at the fallback {ca}: {}", self.what);
        self
    }

    pub(super) fn about(self, about: &About) -> Finding {
        Finding { about: about.clone(), note: self }
    }
}

/// A note and what it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whom it concerns.
    pub about: About,
    /// What was found.
    #[serde(flatten)]
    pub note: Note,
}

/// Everything that was looked at: the shape of `doctor --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Of this shape. Keys are added without a new number; none is renamed or taken away.
    pub version: u32,
    /// Whether nothing would fail.
    pub ok: bool,
    /// How many findings there are of each severity.
    pub counts: BTreeMap<Severity, usize>,
    /// What a person reads last.
    pub summary: String,
    /// By what they are about, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Sorts and counts.
    pub(super) fn new(mut findings: Vec<Finding>) -> Self {
        let mut worst: BTreeMap<About, Severity> = BTreeMap::new();
        for finding in &findings {
            let entry = worst.entry(finding.about.clone()).or_insert(finding.note.severity);
            *entry = (*entry).min(finding.note.severity);
        }
        let rank = |finding: &Finding| {
            (
                worst.get(&finding.about).copied(),
                finding.about.clone(),
                finding.note.severity,
                finding.note.id,
                finding.note.what.clone(),
            )
        };
        findings.sort_by_cached_key(rank);
        findings.dedup();
        let count = |severity| findings.iter().filter(|f| f.note.severity == severity).count();
        let counts: BTreeMap<_, _> = [Severity::Failure, Severity::Warning, Severity::Skipped, Severity::Ok]
            .map(|s| (s, count(s)))
            .into();
        let (failures, warnings, good) =
            (counts[&Severity::Failure], counts[&Severity::Warning], counts[&Severity::Ok]);
        let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let skipped = match counts[&Severity::Skipped] {
            0 => String::new(),
            n => format!(", {n} not looked at"),
        };
        let verdict = match (failures, warnings) {
            (0, 0) => "nothing is wrong".to_owned(),
            (0, _) => format!("nothing would fail, {}", plural(warnings, "warning")),
            _ => format!(
                "{} would keep this from working, {}",
                plural(failures, "mistake"),
                plural(warnings, "warning")
            ),
        };
        let summary = format!("{verdict}; {} good{skipped}", plural(good, "check"));
        Self { version: 1, ok: failures == 0, counts, summary, findings }
    }

    /// Blocks in the order to be shown: what they are about, and their findings.
    pub fn blocks(&self) -> impl Iterator<Item = (&About, &[Finding])> {
        self.findings.chunk_by(|a, b| a.about == b.about).map(|block| (&block[0].about, block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_block_and_the_worst_finding_come_first() {
        let (a, b) = (About::Certificate("a".into()), About::Certificate("b".into()));
        let findings = vec![
            Note::ok("x.ok", "good").about(&a),
            Note::warning("x.warn", "hm").about(&a),
            Note::ok("x.ok", "good").about(&b),
            Note::failure("x.fail", "bad").about(&b),
            Note::failure("x.fail", "bad").about(&b),
        ];
        let report = Report::new(findings);
        let order: Vec<_> = report.findings.iter().map(|f| (f.about.clone(), f.note.id)).collect();
        assert_eq!(order, [(b.clone(), "x.fail"), (b, "x.ok"), (a.clone(), "x.warn"), (a, "x.ok")]);
        assert!(!report.ok);
        assert_eq!(report.summary, "1 mistake would keep this from working, 1 warning; 2 checks good");
        assert_eq!(report.blocks().count(), 2);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][0]["about"]["kind"], "certificate");
        assert_eq!(json["findings"][0]["severity"], "failure");
        assert_eq!(json["counts"]["failure"], 1);
        assert!(Report::new(vec![]).ok);
    }
}
