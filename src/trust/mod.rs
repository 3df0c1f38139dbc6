//! Putting a root certificate where the system and browsers look for it, and taking it away again.
//!
//! Everything here is done to files and by programs that the system has; what was done is said, step by step. Doing it twice
//! changes nothing the second time.

mod nss;
mod run;
mod system;

use std::path::{Path, PathBuf};

pub use run::Caller;

/// A certificate to put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// For lists that people read: unique to it.
    pub label: String,
    /// PEM.
    pub pem: String,
    /// SHA-256 of the DER, lower-case hex.
    pub fingerprint: String,
}

impl Anchor {
    /// The file's name in a directory that others use too.
    fn file_name(&self) -> String {
        format!("starlock-{}.crt", self.fingerprint.get(..16).unwrap_or(&self.fingerprint))
    }
}

/// Where to do it.
#[derive(Clone, Debug)]
pub struct Place {
    /// `/`, or the root of an image that is being built; `None`: no system.
    pub root: Option<PathBuf>,
    /// Whose browsers; `None`: nobody's (an image has none).
    pub caller: Option<Caller>,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Trust it.
    Install,
    /// Do not trust it any more.
    Uninstall,
}

/// One thing that was done or left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which store, with its place.
    pub store: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Changed, and how.
    Done(String),
    /// It was so already.
    Unchanged,
    /// Not done: what is missing, and what to do about it.
    Skipped(String),
    /// Tried and failed: what the system said.
    Failed(String),
}

/// Does it for all of `anchors` in every store that is found. Blocking: runs programs of the system, each for a minute at most.
pub fn apply(anchors: &[Anchor], place: &Place, direction: Direction) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(root) = &place.root {
        steps.extend(system::apply(anchors, root, direction));
    }
    if let Some(caller) = &place.caller {
        steps.extend(nss::apply(anchors, caller, direction));
    }
    steps
}

/// Reads a small file of ours or of the system.
fn read(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(256 * 1024).read_to_string(&mut text).ok()?;
    Some(text)
}
