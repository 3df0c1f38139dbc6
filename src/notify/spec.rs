//! What the configuration says about being told.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::secret::SecretSource;

/// A `[notify]` section.
#[derive(Clone, PartialEq, Eq)]
pub struct NotifySpec {
    /// Where JSON is posted to. Many services put a credential into its path: `Debug` does not show it.
    pub webhook: String,
    /// Signs the body.
    pub secret: Option<SecretSource>,
    /// A root to trust beside the system's.
    pub ca_root: Option<PathBuf>,
    /// A failure that goes on is told again after this time.
    pub repeat: Duration,
    /// The last warning before the end of a certificate.
    pub before_expiry: Duration,
}

impl fmt::Debug for NotifySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotifySpec")
            .field("secret", &self.secret)
            .field("ca_root", &self.ca_root)
            .field("repeat", &self.repeat)
            .field("before_expiry", &self.before_expiry)
            .finish_non_exhaustive()
    }
}
