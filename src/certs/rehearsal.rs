//! A new set of names is tried at the CA's staging, where nothing counts that matters.

use std::time::{Duration, SystemTime};

use super::counted::{Refused, Standing};
use super::state::Event;
use super::worker::Worker;
use crate::issuer::{FailureClass, IssueError, IssueRequest, Issuer, Retry};

/// A staging that is down, or limited, keeps a name without a certificate for so long, and then production goes on without it.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Meanwhile one that is down is asked again this often.
const AGAIN: Duration = Duration::from_secs(600);

impl Worker {
    /// A new set of names is ordered at the CA's staging first, if that is wanted. What staging finds wrong with it holds production
    /// back; a staging that cannot be asked does so for an hour.
    pub(super) async fn rehearsed_first(&mut self, signers: &[u8]) -> Result<(), Event> {
        if !self.wanted.rehearse || self.rehearsed || self.current.is_some() || !signers.is_empty() {
            return Ok(());
        }
        let Some(rehearsal) = self.wanted.rehearsal.clone() else { return Ok(()) };
        let error = match self.rehearse(&*rehearsal).await {
            Ok(words) => {
                tracing::info!(certificate = %self.id, "{words}");
                self.rehearsed = true;
                return Ok(());
            }
            Err(error) => error,
        };
        let (staging, production) = (rehearsal.id(), self.wanted.issuer().id());
        let now = self.shared.clock.now();
        let Some(retry) = next_rehearsal(error.class, &mut self.staging_away, now) else {
            tracing::warn!(
                certificate = %self.id,
                "ordering at {production} without a rehearsal: {staging} could not be asked for {} min: {}",
                PATIENCE.as_secs() / 60, error.message
            );
            self.rehearsed = true;
            return Ok(());
        };
        let then = match retry {
            Retry::At(_) => {
                format!(
                    ". After {} min of this, {production} is asked without a rehearsal",
                    PATIENCE.as_secs() / 60
                )
            }
            _ => String::new(),
        };
        let message = format!(
            "the rehearsal at {staging} failed, so nothing was ordered at {production}: {}{then}",
            error.message
        );
        Err(Event::HeldBack(IssueError { retry, message, ..error }))
    }

    /// Orders at a staging; what comes is proven like any other and thrown away. The caller sees to how many do so at once.
    pub(super) async fn rehearse(&self, rehearsal: &dyn Issuer) -> Result<String, IssueError> {
        let request = IssueRequest::new(self.wanted.names.clone());
        let mut may_order_again = true;
        let cert = loop {
            let reserved = self.reserve(rehearsal, &request, Standing::default()).await;
            let reserved = reserved.map_err(|Refused { until, message }| {
                IssueError::new(FailureClass::RateLimited, Retry::At(until), message)
            })?;
            let (issued, cert) = self.order(rehearsal, &request, reserved, 0).await?;
            rehearsal.stored(&request).await;
            let proven = match &cert {
                Ok(cert) => self.prove(cert, &request.names).await.map(|_unknown_root| cert),
                Err(reason) => Err(reason.clone()),
            };
            match proven {
                Ok(cert) => break cert.clone(),
                // An order of long ago says nothing about today.
                Err(_) if issued.resumed && std::mem::take(&mut may_order_again) => {}
                Err(reason) => {
                    let message = format!(
                        "{:?}: {} signed, but what it signed cannot be served: {reason}. Nothing of it is kept.",
                        request.names,
                        rehearsal.id()
                    );
                    return Err(IssueError::new(FailureClass::Config, Retry::Park, message));
                }
            }
        };
        let lifetime = cert.held.lifetime().as_secs() / 3600;
        Ok(format!(
            "rehearsed at {}: {:?} would be signed, for {lifetime} h. Nothing of it is kept or served",
            rehearsal.id(),
            request.names
        ))
    }
}

/// When to rehearse again after a failure of `class`; `None`: not at all, production has waited long enough. `away`: since when the
/// staging cannot be asked.
fn next_rehearsal(class: FailureClass, away: &mut Option<SystemTime>, now: SystemTime) -> Option<Retry> {
    let wait = match class {
        FailureClass::CaDown => AGAIN,
        FailureClass::RateLimited => PATIENCE,
        FailureClass::Config | FailureClass::Dns | FailureClass::Validation => {
            *away = None;
            return Some(Retry::Park);
        }
    };
    // A clock that was set back does not stretch it.
    let since = away.filter(|since| *since <= now).unwrap_or(now);
    *away = Some(since);
    let enough = since + PATIENCE;
    (now < enough).then(|| Retry::At(enough.min(now + wait)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn production_waits_an_hour_for_a_staging_that_cannot_be_asked() {
        use FailureClass::{CaDown, Config, Dns, RateLimited, Validation};
        let at = |minutes: u64| SystemTime::UNIX_EPOCH + Duration::from_secs((30_000_000 + minutes) * 60);
        let again = |minutes| Some(Retry::At(at(minutes)));
        // failures, each with its minute and what follows
        let cases: &[&[(FailureClass, u64, Option<Retry>)]] = &[
            &[(CaDown, 0, again(10)), (CaDown, 10, again(20)), (CaDown, 55, again(60)), (CaDown, 60, None)],
            &[(RateLimited, 0, again(60)), (RateLimited, 60, None)],
            &[(RateLimited, 0, again(60)), (CaDown, 1, again(11))],
            &[
                (Config, 0, Some(Retry::Park)),
                (Dns, 9, Some(Retry::Park)),
                (Validation, 999, Some(Retry::Park)),
            ],
            &[(CaDown, 0, again(10)), (Validation, 10, Some(Retry::Park)), (CaDown, 100, again(110))],
            &[(CaDown, 600, again(610)), (CaDown, 5, again(15)), (CaDown, 65, None)],
        ];
        for case in cases {
            let mut away = None;
            for (class, minute, expected) in *case {
                assert_eq!(
                    next_rehearsal(*class, &mut away, at(*minute)),
                    *expected,
                    "{class:?} at {minute} of {case:?}"
                );
            }
        }
    }
}
