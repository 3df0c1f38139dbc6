//! Proving every name of an order (RFC 8555 section 7.5).

use std::time::Duration;

use instant_acme::{
    AuthorizationState, AuthorizationStatus, ChallengeStatus, ChallengeType, Error, Identifier, Order,
    Problem,
};
use tokio::time::Instant;

use super::order::{FIRST_POLL, OrderError, OrderRun};
use super::signed;
use crate::challenge::{AccountFacts, Challenge, ChallengeKind, PresentError};
use crate::issuer::{FailureClass, IssueError, Retry, Step};
use crate::name::{HostName, HostPattern};

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
            let presented = self.solver.present(&batch).await.map_err(|error| self.not_presented(&error))?;
            self.progress.step(Step::Validate);
            let outcome = self.validate(order, open.iter().filter(|o| batch.contains(&o.challenge))).await;
            presented.clean_up().await;
            outcome?;
        }
        Ok(())
    }

    /// Lets the solver look at what has to be there before the CA hears of an order.
    pub(super) async fn before_order(&self) -> Result<(), OrderError> {
        let base = |name: &HostPattern| Some((name.base()?.clone(), name.is_wildcard()));
        let names: Vec<(HostName, bool)> = self.request.names.iter().filter_map(base).collect();
        let ready = self.solver.before_order(&names, &self.account_facts(None)).await;
        ready.map_err(|error| self.not_presented(&error))
    }

    fn not_presented(&self, error: &PresentError) -> OrderError {
        let (class, retry) = match error.permanent {
            true => (FailureClass::Config, Retry::Park),
            false => (FailureClass::Dns, Retry::Backoff),
        };
        OrderError::Verdict(IssueError::new(class, retry, format!("{}: {}", self.names, error.message)))
    }

    fn account_facts(&self, challenge: Option<&str>) -> AccountFacts {
        let facts = self.client.facts();
        AccountFacts {
            url: self.account.id().to_owned(),
            thumbprint: self.account.key_thumbprint().to_owned(),
            issuers: facts.issuers(challenge),
            hash_prefix: facts.hash_prefix(),
        }
    }

    /// Which challenge to answer for `name`: one that the CA was told of in an earlier run, else the solver's best that is
    /// offered.
    fn choose(&self, name: &HostName, state: &AuthorizationState) -> Result<ChallengeKind, OrderError> {
        let kinds = self.solver.kinds(name);
        let offer = |kind: &ChallengeKind| state.challenges.iter().find(|c| c.r#type == wire(*kind));
        let told = kinds.iter().find(|k| offer(k).is_some_and(|c| c.status == ChallengeStatus::Processing));
        if let Some(kind) = told.or_else(|| kinds.iter().find(|kind| offer(kind).is_some())) {
            return Ok(*kind);
        }
        let words = |all: Vec<&str>| if all.is_empty() { "nothing".to_owned() } else { all.join(", ") };
        let wanted = words(kinds.iter().map(|kind| kind.as_str()).collect());
        let offered = words(state.challenges.iter().map(|challenge| word(&challenge.r#type)).collect());
        let offered: String = offered.chars().filter(|c| !c.is_control()).take(200).collect();
        Err(self.config(&format!(
            "the CA does not offer {wanted} for {name}; it offers {offered}. Set `acme.challenge` to one of those, or `acme.ca` to \
             another CA"
        )))
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
            let Some(name) = name else {
                return Err(self.config("the CA wants something proven that is not a name"));
            };
            let (kind, wildcard) = (self.choose(&name, &authorization)?, authorization.wildcard);
            let Some(challenge) = authorization.challenge(wire(kind)) else { continue };
            let key_authorization = challenge.key_authorization();
            open.push(Open {
                index: index - 1,
                challenge: Challenge {
                    kind,
                    name,
                    wildcard,
                    token: challenge.token.clone(),
                    key_authorization: key_authorization.as_str().to_owned(),
                    value: key_authorization.dns_value(),
                    account: self.account_facts(Some(&challenge.url)),
                },
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
            signed!(tell(order, open.index, open.challenge.kind))
                .map_err(|e| self.judge(&e, "telling the CA that the challenge is answered"))?;
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
                        self.solver.refused(&open.challenge);
                        // What the CA says of the order may lag behind; the authorization alone decides.
                        return Err(OrderError::Dead(self.refused(problem.as_ref(), &open.challenge)));
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

/// instant-acme knows the first three; the others are answered by the same empty object all the same.
fn wire(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Dns01 => ChallengeType::Dns01,
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
        ChallengeKind::DnsAccount01 | ChallengeKind::DnsPersist01 => {
            ChallengeType::Unknown(kind.as_str().into())
        }
    }
}

fn word(offered: &ChallengeType) -> &str {
    match offered {
        ChallengeType::Dns01 => "dns-01",
        ChallengeType::Http01 => "http-01",
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        ChallengeType::Unknown(word) => word,
        _ => "something else",
    }
}

async fn tell(order: &mut Order, index: usize, kind: ChallengeKind) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    for _ in 0..index {
        authorizations.next().await.transpose()?;
    }
    let Some(mut authorization) = authorizations.next().await.transpose()? else { return Ok(()) };
    match authorization.challenge(wire(kind)) {
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
