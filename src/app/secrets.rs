//! Secrets that are rotated while we run: what files hold is looked at again and again.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::secret::SecretSource;
use crate::task;

/// A rotated token is in force this soon.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What secrets say, as a digest.
pub(super) type Seen = [u8; 32];

/// Notices that a secret has changed.
pub(super) struct SecretWatch {
    next: Instant,
}

impl SecretWatch {
    pub(super) fn new() -> Self {
        Self { next: Instant::now() + LOOK_EVERY }
    }

    /// Resolves when `sources` say something else than `known`, with what they say now. Dropping the future loses nothing: the
    /// change is seen at the next look.
    pub(super) async fn changed(&mut self, sources: Vec<SecretSource>, known: Option<Seen>) -> Seen {
        loop {
            tokio::time::sleep_until(self.next).await;
            self.next = Instant::now() + LOOK_EVERY;
            let asked = sources.clone();
            // A file that is not there or empty is one that is just being replaced: the old secret stays.
            match task::blocking(move || digest(&asked)).await {
                Some(now) if Some(now) != known => return now,
                _ => {}
            }
        }
    }
}

/// Reads all of them; `None` if one cannot be read. Blocking.
pub(super) fn digest(sources: &[SecretSource]) -> Option<Seen> {
    let mut digest = Sha256::new();
    for source in sources {
        let secret = source.resolve().ok()?;
        digest.update((secret.expose().len() as u64).to_be_bytes());
        digest.update(secret.expose());
    }
    Some(digest.finalize().into())
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
        let known = digest(&sources);
        let mut watch = SecretWatch::new();
        let mut look = async |known: Option<Seen>| {
            tokio::time::timeout(Duration::from_secs(60), watch.changed(sources.clone(), known)).await.ok()
        };
        assert_eq!(look(known).await, None);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(look(known).await, None, "it is being replaced");
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(look(known).await, None, "it is the same");
        std::fs::write(&path, "two").unwrap();
        let second = look(known).await;
        assert!(second.is_some() && second != known);
        assert_eq!(look(second).await, None);
    }
}
