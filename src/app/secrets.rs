//! Secrets that are rotated while we run: what files hold is looked at again and again.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::secret::SecretSource;
use crate::task;

/// A rotated token is in force this soon.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What each secret says, as a digest; `None` for one that cannot be read.
pub(super) type Seen = Vec<Option<[u8; 32]>>;

/// Notices that a secret has changed.
pub(super) struct SecretWatch {
    next: Instant,
}

impl SecretWatch {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() + LOOK_EVERY }
    }

    /// Resolves when one of `sources` says something else than `known` has of it, with what all say now. Dropping the future
    /// loses nothing: the change is seen at the next look.
    pub(super) async fn changed(&mut self, sources: Vec<SecretSource>, known: Seen) -> Seen {
        loop {
            tokio::time::sleep_until(self.next).await;
            self.next = Instant::now() + LOOK_EVERY;
            let asked = sources.clone();
            let now = task::blocking(move || look(&asked)).await;
            let before = known.iter().copied().chain(std::iter::repeat(None));
            // A file that is not there or empty is one that is just being replaced: the old secret stays.
            let merged: Seen = now.into_iter().zip(before).map(|(now, before)| now.or(before)).collect();
            if merged != known {
                return merged;
            }
        }
    }
}

/// Reads all of them. Blocking.
pub(super) fn look(sources: &[SecretSource]) -> Seen {
    let digest = |source: &SecretSource| Some(Sha256::digest(source.resolve().ok()?.expose()).into());
    sources.iter().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rotation_is_seen_and_a_gap_in_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "one").unwrap();
        let sources = vec![SecretSource::File(path.clone())];
        tokio::time::pause();
        let known = look(&sources);
        let mut watch = SecretWatch::new();
        let mut next = async |known: &Seen| {
            tokio::time::timeout(Duration::from_secs(60), watch.changed(sources.clone(), known.clone()))
                .await
                .ok()
        };
        assert_eq!(next(&known).await, None);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(next(&known).await, None, "it is being replaced");
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(next(&known).await, None, "it is the same");
        std::fs::write(&path, "two").unwrap();
        let second = next(&known).await.unwrap();
        assert!(second != known);
        assert_eq!(next(&second).await, None);
    }
}
