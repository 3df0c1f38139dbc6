//! The limit on open files: every connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one and gives the limit that is in force.
pub(super) fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, wanted) {
            tracing::warn!(%error, "the limit on open files cannot be raised");
        }
    }
    let now = getrlimit(Resource::Nofile).current;
    now.and_then(|n| usize::try_from(n).ok()).unwrap_or(1 << 20)
}

/// How many connections may be open when the configuration does not say: each has a second file towards an upstream, and a
/// tenth stays for everything else.
pub(super) fn default_connections(files: usize) -> usize {
    (files / 2 * 9 / 10).max(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_files_less_a_tenth() {
        assert_eq!(default_connections(1024), 460);
        assert_eq!(default_connections(1), 16);
        assert!(raise() > 16);
    }
}
