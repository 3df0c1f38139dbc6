//! Chromium and Firefox on Linux keep their own roots, in NSS databases; `certutil` writes them.

use std::path::{Path, PathBuf};

use super::run::{Caller, find, run_with};
use super::{Anchor, Direction, Outcome, Step};

/// Databases for a whole user, below the home directory.
const SHARED: [&str; 3] =
    [".pki/nssdb", "snap/chromium/current/.pki/nssdb", ".var/app/org.chromium.Chromium/data/pki/nssdb"];

/// Directories with one directory for each Firefox profile.
const PROFILES: [&str; 5] = [
    ".mozilla/firefox",
    ".config/mozilla/firefox",
    "snap/firefox/common/.mozilla/firefox",
    ".var/app/org.mozilla.firefox/.mozilla/firefox",
    "Library/Application Support/Firefox/Profiles",
];

/// A person has a few profiles.
const MAX_DATABASES: usize = 64;

pub(super) fn apply(anchors: &[Anchor], caller: &Caller, direction: Direction) -> Vec<Step> {
    let databases = databases(&caller.home);
    if databases.is_empty() {
        let why = format!(
            "no database of Chromium or Firefox below {}: start the browser once, then run this again",
            caller.home.display()
        );
        return vec![Step { store: "browsers".to_owned(), outcome: Outcome::Skipped(why) }];
    }
    let Some(certutil) = find("certutil") else {
        let why = "certutil is not there: install libnss3-tools (Debian), nss-tools (Fedora, Alpine) or nss (Arch, Homebrew), then run this again";
        let skipped = |dir: &PathBuf| Step {
            store: format!("browsers ({})", dir.display()),
            outcome: Outcome::Skipped(why.to_owned()),
        };
        return databases.iter().map(skipped).collect();
    };
    let mut steps = Vec::new();
    for dir in &databases {
        for anchor in anchors {
            let store = format!("browsers ({}: {})", dir.display(), anchor.label);
            let database = Database { certutil: &certutil, dir, caller };
            let outcome = database.apply(anchor, direction).unwrap_or_else(Outcome::Failed);
            steps.push(Step { store, outcome });
        }
    }
    steps
}

fn databases(home: &Path) -> Vec<PathBuf> {
    let is_database = |dir: &PathBuf| dir.join("cert9.db").is_file();
    let mut found: Vec<PathBuf> = SHARED.iter().map(|dir| home.join(dir)).filter(is_database).collect();
    for profiles in PROFILES {
        let Ok(entries) = std::fs::read_dir(home.join(profiles)) else { continue };
        found.extend(entries.flatten().map(|entry| entry.path()).filter(is_database));
    }
    found.sort();
    found.truncate(MAX_DATABASES);
    found
}

struct Database<'a> {
    certutil: &'a Path,
    dir: &'a Path,
    caller: &'a Caller,
}

impl Database<'_> {
    fn apply(&self, anchor: &Anchor, direction: Direction) -> Result<Outcome, String> {
        // Found by its name; two certificates never share one, since the label is made anew with each root.
        let there = self.run(&["-L", "-n", &anchor.label, "-a"], "").is_ok();
        Ok(match (direction, there) {
            (Direction::Install, true) | (Direction::Uninstall, false) => Outcome::Unchanged,
            (Direction::Install, false) => {
                // By a pipe: a file of ours could be out of reach for the caller, and in a directory that all share.
                self.run(&["-A", "-a", "-t", "C,,", "-n", &anchor.label], &anchor.pem)?;
                Outcome::Done("added as a root for web sites".to_owned())
            }
            (Direction::Uninstall, true) => {
                self.run(&["-D", "-n", &anchor.label], "")?;
                Outcome::Done("removed".to_owned())
            }
        })
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let database = format!("sql:{}", self.dir.display());
        let mut all = vec!["-d".to_owned(), database];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        run_with(self.certutil, &all, Some(self.caller), input)
    }
}
