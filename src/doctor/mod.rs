//! The preflight: everything that a certificate or a listener stands on, looked at before any CA is asked to sign.
//!
//! Each file holds one idea: a thin gatherer of facts, and a pure judgement over them. [`examine`] runs the gatherers, bounded
//! in time and in number, and hands the facts to the judgements. Nothing is changed, except for a throw-away TXT record.

mod budget;
mod ca;
mod caa;
mod cert_files;
mod challenge;
mod delegation;
mod dnssec;
mod files;
mod finding;
mod holders;
mod hosts;
mod listeners;
mod names;
mod net;
mod persist;
mod provider;
pub mod records;
mod running;
mod start;
mod state;
mod subjects;
mod way;
mod writes;
mod zone;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use self::finding::Note;
use self::running::Running;
use crate::clock::SharedClock;
use crate::config::{IssuerPlan, Plan, References};
use crate::task::{self, Supervisor};

pub use finding::{About, Finding, Report, Severity};

/// CAs asked at once.
const CAS_AT_ONCE: usize = 4;
/// For everything that is not DNS.
const MACHINE_LIMIT: Duration = Duration::from_secs(30);

/// What to look at, and how.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The file that the plan came from.
    pub config: PathBuf,
    /// What the plan's file points to.
    pub references: References,
    /// Whether throw-away TXT records may be written.
    pub write: bool,
}

/// Told what is being looked at, for a person who waits.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// Looks at everything a plan needs. Ends within a minute or so, on a broken network too.
///
/// TXT records that it writes are journalled, and removed by tasks of `supervisor`: trigger its shutdown and join it
/// afterwards, also when the future was dropped.
pub async fn examine(
    plan: &Plan,
    how: &Examination,
    clock: &SharedClock,
    supervisor: &Supervisor,
    progress: Progress<'_>,
) -> Report {
    progress("this machine");
    let socket = plan.admin.clone();
    let running = task::blocking(move || running::gather(&socket)).await;
    let mut findings = Vec::new();
    let about = About::Configuration(how.config.display().to_string());
    let running = match running {
        Ok(Some(running)) => {
            findings.push(
                Note::ok(
                    "running.process",
                    format!("Starlock runs as process {}, and was asked too", running.pid),
                )
                .about(&about),
            );
            Some(running)
        }
        Ok(None) => None,
        Err(reason) => {
            let note = Note::skipped("running.unasked", "a Starlock seems to run, and could not be asked")
                .why(reason);
            findings.push(note.place("[listen] admin").about(&about));
            None
        }
    };
    findings.extend(running.iter().flat_map(running::judge));
    let machine = machine(plan, how, running.as_ref(), clock);
    let (accounts, kept) = (state::accounts(plan).await, state::storage(plan).await);
    let running = running.as_ref();
    let with = With { plan, how, running, accounts, kept, clock, supervisor, progress };
    let (machine, cas) = tokio::join!(machine, cas(&with));
    findings.extend(machine);
    for (wanted, facts) in &cas {
        let about = About::Ca(wanted.directory.clone());
        findings.extend(ca::judge(wanted, facts).into_iter().map(|note| note.about(&about)));
    }
    findings.extend(budgets(&with).await);
    findings.extend(names::examine(&with, &cas).await);
    Report::new(findings)
}

/// What every part of an examination has at hand.
struct With<'a> {
    plan: &'a Plan,
    how: &'a Examination,
    running: Option<&'a Running>,
    accounts: BTreeMap<String, state::Account>,
    kept: state::Kept,
    clock: &'a SharedClock,
    supervisor: &'a Supervisor,
    progress: Progress<'a>,
}

async fn machine(
    plan: &Plan,
    how: &Examination,
    running: Option<&Running>,
    clock: &SharedClock,
) -> Vec<Finding> {
    let (config, clock, owned) = (how.config.clone(), clock.clone(), plan.clone());
    let (runs, ours) =
        (running.is_some(), running.map(|running| running.listeners.clone()).unwrap_or_default());
    let looking = async {
        let (mut findings, files) = task::blocking(move || {
            let plan = owned;
            let mut findings = listeners::judge(&listeners::gather(listeners::wanted(&plan), &ours));
            findings.push(start::judge_admin(&plan.admin, runs));
            findings.extend(files::judge_state(&files::gather_state(&plan.storage.path)));
            findings.extend(cert_files::judge(&cert_files::gather(&plan), clock.now()));
            (findings, files::gather_files(&config, &plan))
        })
        .await;
        let known: Vec<String> =
            files.secrets.iter().filter_map(|secret| secret.read.clone().err()).collect();
        let pointed = start::judge_pointed(plan, &how.references, &known).await;
        findings.extend(files::judge_files(&files, pointed));
        findings
    };
    tokio::time::timeout(MACHINE_LIMIT, looking).await.unwrap_or_else(|_| {
        let about = About::State("files".into());
        vec![
            Note::failure(
                "state.hangs",
                format!("a file did not answer within {} s", MACHINE_LIMIT.as_secs()),
            )
            .why("a network disk that is gone, or a pipe that nobody writes into: Starlock hangs on it too")
            .fix("see where it hangs: starlock check; ls -l on the secrets and on [storage] path")
            .about(&about),
        ]
    })
}

/// Every CA of the plan, fallbacks included.
async fn cas(with: &With<'_>) -> BTreeMap<ca::Wanted, ca::CaFacts> {
    let mut wanted: Vec<ca::Wanted> = Vec::new();
    for certificate in &with.plan.certificates {
        let IssuerPlan::Acme(acme) = &certificate.issuer else { continue };
        for spec in std::iter::once(&acme.acme).chain(&acme.fallback) {
            let mut want = subjects::ca_wanted(spec);
            // An account that is registered needs no external one any more.
            want.external_account |= matches!(with.accounts.get(&spec.directory), Some(Ok(Some(_))));
            if !wanted.contains(&want) {
                wanted.push(want);
            }
        }
    }
    stream::iter(wanted)
        .map(|want| async move {
            let facts = ca::gather(&want, || with.clock.now()).await;
            (want, facts)
        })
        .buffer_unordered(CAS_AT_ONCE)
        .collect()
        .await
}

/// What the ledger says of each certificate that nobody holds yet, at each CA that may be asked for it.
async fn budgets(with: &With<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for certificate in &with.plan.certificates {
        let IssuerPlan::Acme(acme) = &certificate.issuer else { continue };
        let names: Vec<String> = certificate.names.iter().map(ToString::to_string).collect();
        if with.running.is_some_and(|running| running.holds(&names)) {
            continue;
        }
        let about = About::Certificate(names.join(", "));
        for spec in std::iter::once(&acme.acme).chain(&acme.fallback) {
            let ca = ca::name(&spec.directory);
            let note = match &with.kept.reads {
                Ok(storage) => {
                    let registers = !matches!(with.accounts.get(&spec.directory), Some(Ok(Some(_))));
                    let facts =
                        budget::gather(storage, with.clock, spec, &certificate.names, registers).await;
                    facts.map(|facts| budget::judge(&ca, &facts))
                }
                Err(reason) => budget::unread(&ca, spec, reason),
            };
            let first = std::ptr::eq(spec, &raw const acme.acme);
            findings.extend(note.map(|note| if first { note } else { note.of_fallback(&ca) }.about(&about)));
        }
    }
    findings
}
