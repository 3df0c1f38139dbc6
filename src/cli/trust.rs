//! `starlock trust`: the local CA's root, for people, the system and browsers.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::options::ConfigArgs;
use super::{FAILURE, fail, print, tell};
use crate::app;
use crate::trust::{self, Anchor, Caller, Direction, Outcome, Place, Step};

#[derive(Args, Debug)]
#[group(id = "what", multiple = false)]
pub(super) struct Arguments {
    /// Write the roots as PEM to standard output and their fingerprints to standard error (the default).
    #[arg(long, group = "what")]
    print: bool,
    /// Trust them: the system's store, and those of Chromium and Firefox.
    #[arg(long, group = "what")]
    install: bool,
    /// Take them out of the same stores again.
    #[arg(long, group = "what")]
    uninstall: bool,
    /// The root directory of a system or an image to change, instead of this system; browsers are left alone then.
    #[arg(long, value_name = "DIR", conflicts_with = "only")]
    root: Option<PathBuf>,
    /// Change only the store of the system, or only those of browsers.
    #[arg(long, value_enum)]
    only: Option<Only>,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    System,
    Browsers,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let (_, loaded) = match arguments.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let roots = match app::local_roots(&loaded.plan) {
        Ok(roots) => roots,
        Err(error) => return fail(FAILURE, &error),
    };
    let direction = match (arguments.install, arguments.uninstall) {
        (true, _) => Direction::Install,
        (_, true) => Direction::Uninstall,
        _ => {
            for root in &roots {
                let limits = if root.limited { "private names and addresses only" } else { "any name" };
                tell(&format!("{} ({limits})\n  SHA-256 {}\n", root.label, colons(&root.fingerprint)));
            }
            return print(&roots.into_iter().map(|root| root.pem).collect::<String>());
        }
    };
    let anchors: Vec<Anchor> = roots
        .into_iter()
        .map(|root| Anchor { label: root.label, pem: root.pem, fingerprint: root.fingerprint })
        .collect();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let place = match &arguments.root {
        Some(root) if root != Path::new("/") => Place { root: Some(root.clone()), caller: None },
        _ => Place {
            root: (arguments.only != Some(Only::Browsers)).then(|| "/".into()),
            caller: Caller::of_process(|name| std::env::var(name).ok(), &passwd)
                .filter(|_| arguments.only != Some(Only::System)),
        },
    };
    let steps = trust::apply(&anchors, &place, direction);
    let said = print(&report(&steps));
    match steps.iter().filter(|step| matches!(step.outcome, Outcome::Failed(_))).count() {
        0 => said,
        failed => fail(FAILURE, &format!("{} failed; the rest was done", super::count(failed, "step"))),
    }
}

fn report(steps: &[Step]) -> String {
    let mut out = String::new();
    for Step { store, outcome } in steps {
        let (word, what) = match outcome {
            Outcome::Done(what) => ("done", what.as_str()),
            Outcome::Unchanged => ("unchanged", "it was so already"),
            Outcome::Skipped(why) => ("skipped", why.as_str()),
            Outcome::Failed(why) => ("failed", why.as_str()),
        };
        let _ = writeln!(out, "{word:<9}  {store}\n           {what}");
    }
    out
}

/// As other programs show fingerprints.
fn colons(hex: &str) -> String {
    let pairs: Vec<String> =
        hex.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase()).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_word() {
        let step = |outcome| Step { store: "system".into(), outcome };
        let text = report(&[
            step(Outcome::Done("wrote x".into())),
            step(Outcome::Unchanged),
            step(Outcome::Skipped("no program".into())),
            step(Outcome::Failed("no rights".into())),
        ]);
        for word in ["done ", "wrote x", "unchanged ", "skipped ", "no program", "failed ", "no rights"] {
            assert!(text.contains(word), "{text}");
        }
        assert_eq!(colons("0aff"), "0A:FF");
    }
}
