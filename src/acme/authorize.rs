//! Proving every name of an order (RFC 8555 section 7.5).

use std::time::Duration;

use instant_acme::{AuthorizationStatus, ChallengeStatus, ChallengeType, Error, Identifier, Order, Problem};
use tokio::time::Instant;

use super::order::{FIRST_POLL, OrderError, OrderRun};
use super::signed;
use crate::challenge::Challenge;
use crate::issuer::{FailureClass, IssueError, Retry, Step};
use crate::name::HostName;

/// A CA that has not looked by then is down.
pub(super) const VALIDATION_LIMIT: Duration = Duration::from_secs(300);

/// An authorization that is not valid yet.
struct Open {
    index: usize,
    challenge: Challenge,
    /// Whether the CA was told in an earlier run.
    told: bool,
}

impl OrderRun<'_> {
    /// Proves every name whose authorization is not valid yet, batch by batch; records are always taken away again.
    pub(super) async fn authorize(&self, order: &mut Order) -> Result<(), OrderError> {
        let open = self.open_authorizations(order).await?;
        let challenges: Vec<Challenge> = open.iter().map(|o| o.challenge.clone()).collect();
        for batch in self.solver.batches(&challenges) {
            self.progress.step(Step::Present { records: batch.len() });
            let presented = self.solver.present(&batch).await.map_err(|error| {
                let (class, retry) = match error.permanent {
                    true => (FailureClass::Config, Retry::Park),
                    false => (FailureClass::Dns, Retry::Backoff),
                };
                OrderError::Verdict(IssueError::new(
                    class,
                    retry,
                    format!("{}: {}", self.names, error.message),
                ))
            })?;
            self.progress.step(Step::Validate);
            let outcome = self.validate(order, open.iter().filter(|o| batch.contains(&o.challenge))).await;
            presented.clean_up().await;
            outcome?;
        }
        Ok(())
    }

    async fn open_authorizations(&self, order: &mut Order) -> Result<Vec<Open>, OrderError> {
        signed!(fetch_authorizations(order)).map_err(|e| self.judge(&e, "reading the authorizations"))?;
        let mut open = Vec::new();
        let mut index = 0;
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut authorization = next.map_err(|e| self.judge(&e, "reading the authorizations"))?;
            let status = authorization.status;
            index += 1;
            if status == AuthorizationStatus::Valid {
                continue;
            }
            let name = match authorization.identifier().identifier {
                Identifier::Dns(name) => HostName::parse(name).ok(),
                _ => None,
            };
            let offered = authorization.challenge(ChallengeType::Dns01);
            let (Some(name), Some(challenge)) = (name, offered) else {
                return Err(self.config("the CA does not offer dns-01 for one of the names"));
            };
            open.push(Open {
                index: index - 1,
                challenge: Challenge { name, value: challenge.key_authorization().dns_value() },
                told: challenge.status != ChallengeStatus::Pending,
            });
        }
        Ok(open)
    }

    async fn validate<'o>(
        &self,
        order: &mut Order,
        batch: impl Iterator<Item = &'o Open>,
    ) -> Result<(), OrderError> {
        let batch: Vec<&Open> = batch.collect();
        for open in batch.iter().filter(|o| !o.told) {
            signed!(tell(order, open.index))
                .map_err(|e| self.judge(&e, "telling the CA that the records are there"))?;
        }
        let deadline = Instant::now() + VALIDATION_LIMIT;
        for open in batch {
            let mut wait = FIRST_POLL;
            loop {
                let (status, problem) = signed!(look(order, open.index))
                    .map_err(|e| self.judge(&e, "asking for the validation's result"))?;
                match (status, problem) {
                    (AuthorizationStatus::Valid, _) => break,
                    (AuthorizationStatus::Pending, _) if Instant::now() < deadline => {
                        // Not left before the deadline, whatever the CA asks for: the records stand here.
                        let left = deadline.saturating_duration_since(Instant::now());
                        let asked = self.asked_to_wait().map(|asked| asked.min(left));
                        self.pause(&mut wait, asked).await;
                    }
                    (AuthorizationStatus::Pending, _) => {
                        return Err(self.ca_down("the CA did not finish validating within 5 minutes"));
                    }
                    (_, problem) => {
                        // What the CA says of the order may lag behind; the authorization alone decides.
                        return Err(OrderError::Dead(self.refused(problem.as_ref(), &open.challenge.name)));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Fetches what is not known of the authorizations; what was fetched is kept in the order.
pub(super) async fn fetch_authorizations(order: &mut Order) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

async fn tell(order: &mut Order, index: usize) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    for _ in 0..index {
        authorizations.next().await.transpose()?;
    }
    let Some(mut authorization) = authorizations.next().await.transpose()? else { return Ok(()) };
    match authorization.challenge(ChallengeType::Dns01) {
        Some(mut challenge) => challenge.set_ready().await,
        None => Ok(()),
    }
}

async fn look(order: &mut Order, index: usize) -> Result<(AuthorizationStatus, Option<Problem>), Error> {
    let mut authorizations = order.authorizations();
    for _ in 0..index {
        authorizations.next().await.transpose()?;
    }
    let Some(mut authorization) = authorizations.next().await.transpose()? else {
        return Err(Error::Str("an authorization of the order"));
    };
    let state = authorization.refresh().await?;
    Ok((state.status, state.challenges.iter().find_map(|c| c.error.clone())))
}
