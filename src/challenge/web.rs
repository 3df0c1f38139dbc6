//! http-01 and tls-alpn-01: proven by this process's own listeners, without a word to any name server.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::answers::{Answers, Standing};
use super::{Batch, Challenge, ChallengeKind, ChallengeSolver, PresentError, Presented};
use crate::name::HostName;
use crate::tls::{ValidationGuard, Validations};

/// Names of which a refusal is remembered.
const MAX_REFUSED: usize = 10_000;

/// Presents by the listeners.
#[derive(Debug)]
pub struct WebSolver {
    /// Best first.
    kinds: Vec<ChallengeKind>,
    answers: Answers,
    validations: Validations,
    /// What the CA could not see the last time.
    refused: Mutex<HashMap<HostName, ChallengeKind>>,
}

impl WebSolver {
    /// `kinds` are of those two, best first.
    pub fn new(kinds: Vec<ChallengeKind>, answers: Answers, validations: Validations) -> Self {
        Self { kinds, answers, validations, refused: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<HostName, ChallengeKind>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ChallengeSolver for WebSolver {
    /// What was refused last for this name comes last now: behind a TLS terminator of somebody else only http-01 gets
    /// through, behind one that takes port 80 only tls-alpn-01.
    fn kinds(&self, name: &HostName) -> Vec<ChallengeKind> {
        let mut kinds = self.kinds.clone();
        if let Some(refused) = self.lock().get(name) {
            kinds.sort_by_key(|kind| kind == refused);
        }
        kinds
    }

    fn batches(&self, challenges: &[Challenge]) -> Vec<Batch> {
        if challenges.is_empty() { Vec::new() } else { vec![challenges.to_vec()] }
    }

    async fn present(&self, batch: &[Challenge]) -> Result<Box<dyn Presented>, PresentError> {
        let of = |kind| batch.iter().filter(move |challenge| challenge.kind == kind);
        let mut validations = Vec::new();
        for challenge in of(ChallengeKind::TlsAlpn01) {
            let digest = Sha256::digest(&challenge.key_authorization).into();
            let guard = self.validations.stand(&challenge.name, digest).map_err(|error| PresentError {
                permanent: false,
                message: format!(
                    "the certificate that answers tls-alpn-01 for {} cannot be made: {error}. The CA was not told to look.",
                    challenge.name
                ),
            })?;
            validations.push(guard);
        }
        let http: Vec<&Challenge> = of(ChallengeKind::Http01).collect();
        let answers = self.answers.stand(&http).await;
        Ok(Box::new(Both { _validations: validations, _answers: answers }))
    }

    fn refused(&self, challenge: &Challenge) {
        let mut refused = self.lock();
        if refused.len() >= MAX_REFUSED {
            refused.clear();
        }
        refused.insert(challenge.name.clone(), challenge.kind);
    }
}

#[derive(Debug)]
struct Both {
    _validations: Vec<ValidationGuard>,
    _answers: Standing,
}

#[async_trait]
impl Presented for Both {
    async fn clean_up(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::challenge::answers;
    use crate::clock::SystemClock;
    use crate::storage::MemoryStorage;
    use crate::task::{Shutdown, Supervisor};

    #[tokio::test]
    async fn what_was_refused_comes_last_the_next_time() {
        use ChallengeKind::{Http01, TlsAlpn01};
        let supervisor = Supervisor::new(Shutdown::new());
        let answers = answers(Arc::new(MemoryStorage::new()), Arc::new(SystemClock), &supervisor);
        let solver = WebSolver::new(vec![TlsAlpn01, Http01], answers, Validations::default());
        let [one, other] = ["example.com", "example.org"].map(|n| HostName::parse(n).unwrap());
        let refused = |kind| Challenge { kind, ..Challenge::dns01(one.clone(), "") };
        assert_eq!(solver.kinds(&one), [TlsAlpn01, Http01]);
        solver.refused(&refused(TlsAlpn01));
        assert_eq!(solver.kinds(&one), [Http01, TlsAlpn01]);
        assert_eq!(solver.kinds(&other), [TlsAlpn01, Http01]);
        solver.refused(&refused(Http01));
        assert_eq!(solver.kinds(&one), [TlsAlpn01, Http01]);
    }
}
