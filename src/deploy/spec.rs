//! What the configuration says about passing a certificate on.

use std::path::PathBuf;
use std::time::Duration;

/// One `deploy` of a certificate: files, a hook, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploySpec {
    /// Where the four files go.
    pub dir: Option<PathBuf>,
    /// A program and its arguments; empty: none.
    pub run: Vec<String>,
    /// `user`, `user:group` or `:group`, names or numbers, for the files.
    pub owner: Option<String>,
    /// Of the files.
    pub mode: u32,
    /// For the writing, and again for the hook.
    pub timeout: Duration,
}
