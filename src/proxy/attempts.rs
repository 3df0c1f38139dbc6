//! The attempts to have a request answered: which server next, and whether there is a next one.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, sleep, timeout_at};

use crate::balance::{Balancer, Connection, InFlight, NoEndpoint, Outcome, Preference, Tried};
use crate::upstream::{
    ClientAddresses, Exchange, ExchangeLimits, Failure, Pool, Pools, RequestBody, ResponseBody, ServerStream,
    Upload,
};

/// Answers that say that a server, or what is behind it, cannot. 503 is one of them: one of three servers that says nothing else
/// would cost a third of all requests a repetition, and the budget allows for a fifth.
const BROKEN: [StatusCode; 3] =
    [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];

/// What has become of a request so far.
pub(super) struct Attempts<'a> {
    balancer: &'a Arc<Balancer>,
    pub(super) upload: Upload,
    /// Whether the request asks for another protocol, so that a 101 is an answer.
    pub(super) may_switch: bool,
    idempotent: bool,
    tried: Tried,
    /// Left of each kind.
    connects: usize,
    repeats: usize,
    /// Whether a server that refuses a connection is passed over, without counting as one of `connects`.
    passes_over: bool,
    /// A connection must be had by then, whichever server it is to.
    connected_by: Option<Instant>,
    /// Without the beginning of an answer for so long, another server is asked.
    patience: Duration,
    /// Why the last attempt came to nothing.
    last: Option<Failure>,
}

/// Why a request goes to another server; an index of `RETRY_REASONS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    Connect = 0,
    NoAnswer = 1,
    Timeout = 2,
    Status = 3,
}

impl<'a> Attempts<'a> {
    /// `upload` makes the body, told whether it may have to be sent again.
    pub(super) fn new(
        balancer: &'a Arc<Balancer>,
        method: &Method,
        upload: impl FnOnce(bool) -> Upload,
    ) -> Self {
        balancer.count_request();
        let idempotent = method.is_idempotent();
        let retries = balancer.retries();
        let most = |count: u8| usize::from(count).min(Tried::MOST / 2 - 1);
        Self {
            balancer,
            upload: upload(idempotent && retries.idempotent > 0),
            may_switch: false,
            idempotent,
            tried: Tried::default(),
            connects: most(retries.connect),
            repeats: most(retries.idempotent),
            passes_over: retries.connect > 0,
            connected_by: None,
            patience: retries.attempt,
            last: None,
        }
    }

    /// The route's own `timeouts.attempt`, if it has one.
    pub(super) fn give_up_after(&mut self, patience: Option<Duration>) {
        self.patience = patience.unwrap_or(self.patience);
    }

    /// The server of the next attempt.
    pub(super) async fn pick(&mut self, preference: &Preference) -> Result<InFlight, Failure> {
        let limit = self.balancer.timeouts().connect;
        loop {
            let none = match self.balancer.pick(preference, &self.tried) {
                Ok(in_flight) => {
                    self.tried.add(in_flight.endpoint().id());
                    return Ok(in_flight);
                }
                Err(none) => none,
            };
            return Err(match (none, self.last) {
                (NoEndpoint::Pending, _) => {
                    let by = *self.connected_by.get_or_insert_with(|| Instant::now() + limit);
                    match timeout_at(by, self.balancer.resolved()).await {
                        Ok(()) => continue,
                        Err(_) => Failure::Resolve,
                    }
                }
                (NoEndpoint::Unresolved, _) => Failure::Resolve,
                (_, Some(last)) => last,
                (NoEndpoint::Full, None) => Failure::Full,
                (NoEndpoint::Nobody, None) => Failure::NoServer,
            });
        }
    }

    /// How many servers are left to try.
    pub(super) fn others(&self) -> usize {
        let is_last = self.connects == 0 && self.repeats == 0 && !self.passes_over;
        if is_last { 0 } else { self.balancer.others(&self.tried) }
    }

    /// `limits` for the next attempt: all attempts to connect share the time for one, so that a client learns in that time that
    /// nobody is there.
    pub(super) fn limits(&mut self, mut limits: ExchangeLimits) -> ExchangeLimits {
        limits.timeouts.connect = self.share(limits.timeouts.connect);
        limits
    }

    /// What the next attempt may have of the time to connect, which is `whole` for all of them.
    fn share(&mut self, whole: Duration) -> Duration {
        let others = self.balancer.others(&self.tried).min(self.connects);
        if others == 0 && self.connected_by.is_none() {
            return whole;
        }
        let now = Instant::now();
        let by = *self.connected_by.get_or_insert(now + whole);
        let left = by.saturating_duration_since(now).max(Duration::from_millis(1));
        left / u32::try_from(others + 1).unwrap_or(u32::MAX)
    }

    /// Connects to the server that was picked, for bytes that are not HTTP. `None`: another attempt is due.
    pub(super) async fn connect(
        &mut self,
        pools: &Pools,
        in_flight: &InFlight,
        client: &ClientAddresses,
    ) -> Result<Option<(ServerStream, Connection)>, Failure> {
        let limit = self.share(self.balancer.timeouts().connect);
        match pools.connect(in_flight.endpoint(), client, limit).await {
            Ok(connected) => {
                self.balancer.report(in_flight, Outcome::Fine);
                Ok(Some(connected))
            }
            Err(failure) => self.failed(failure, in_flight).map(|()| None),
        }
    }

    /// Sends the request to the server that was picked. `None`: it came to nothing, and another attempt is due.
    pub(super) async fn send(
        &mut self,
        pool: &Rc<Pool>,
        exchange: &Rc<Exchange>,
        request: Box<Request<RequestBody>>,
        in_flight: &InFlight,
    ) -> Result<Option<Response<ResponseBody>>, Failure> {
        let failure = match self.answer(pool, exchange, request, in_flight).await {
            None => {
                self.again(Retry::Timeout);
                return Ok(None);
            }
            Some(Ok(response))
                if response.status() == StatusCode::SWITCHING_PROTOCOLS && !self.may_switch =>
            {
                Failure::Malformed
            }
            Some(Ok(response)) => {
                self.balancer.report(in_flight, verdict_of(response.status()));
                let status = response.status().as_u16();
                // An answer in hand is worth more than a try at a server that is known to be no better.
                if self.balancer.retries().statuses.contains(&status)
                    && self.balancer.has_other(&self.tried)
                    && self.may_repeat()
                {
                    self.again(Retry::Status);
                    return Ok(None);
                }
                return Ok(Some(response));
            }
            Some(Err(failure)) => failure,
        };
        self.failed(failure, in_flight).map(|()| None)
    }

    /// What follows from a failure: `Ok` if another attempt is due, else what the client is told.
    fn failed(&mut self, failure: Failure, in_flight: &InFlight) -> Result<(), Failure> {
        if let Some(outcome) = blame(failure) {
            self.balancer.report(in_flight, outcome);
        }
        self.last = Some(failure);
        if never_started(failure) {
            if self.upload.can_start_over() && self.may_connect(failure) {
                self.again(Retry::Connect);
                return Ok(());
            }
        } else if matches!(failure, Failure::Closed | Failure::ResponseTimeout) && self.may_repeat() {
            self.again(Retry::NoAnswer);
            return Ok(());
        }
        Err(failure)
    }

    /// Whether another server is asked for the connection that was not had. Who refuses it has seen nothing and costs hardly any time:
    /// then the request goes on, beyond `connects`, for as long as there is a server that is not known to fail.
    fn may_connect(&self, failure: Failure) -> bool {
        if self.connects > 0 {
            return self.balancer.others(&self.tried) > 0;
        }
        self.passes_over
            && matches!(failure, Failure::ConnectRefused | Failure::Connect)
            && self.connected_by.is_some_and(|by| Instant::now() < by)
            && self.tried.count() + self.repeats < Tried::MOST
            && self.balancer.has_untroubled(&self.tried)
    }

    /// The answer; `None` if it takes too long to begin, and another server is to be asked instead. As long as there is none that
    /// is up and has room, this one is waited for, and slow as it is, it has failed only if no answer comes.
    async fn answer(
        &mut self,
        pool: &Rc<Pool>,
        exchange: &Rc<Exchange>,
        request: Box<Request<RequestBody>>,
        in_flight: &InFlight,
    ) -> Option<Result<Response<ResponseBody>, Failure>> {
        let mut answer = pin!(pool.send(exchange, request));
        if self.repeats == 0 || !self.idempotent || self.balancer.others(&self.tried) == 0 {
            return Some(answer.await);
        }
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => return Some(answered),
                () = sleep(self.patience) => {}
            }
            // While the client still sends, nobody else can be to blame.
            if self.upload.is_whole() && self.balancer.has_other(&self.tried) {
                break;
            }
        }
        if !self.may_repeat() {
            return Some(answer.await);
        }
        self.balancer.report(in_flight, Outcome::Failed);
        None
    }

    /// Whether a request that a server has had already may be sent to another one; takes it from the budget.
    fn may_repeat(&self) -> bool {
        self.idempotent
            && self.repeats > 0
            && self.upload.can_start_over()
            && self.balancer.others(&self.tried) > 0
            && self.balancer.may_repeat()
    }

    fn again(&mut self, reason: Retry) {
        self.balancer.count_retry(reason as usize);
        match reason {
            Retry::Connect => self.connects = self.connects.saturating_sub(1),
            Retry::NoAnswer | Retry::Timeout | Retry::Status => {
                self.repeats -= 1;
                self.connected_by = None;
            }
        }
    }
}

/// Whether the server cannot have seen anything of the request.
fn never_started(failure: Failure) -> bool {
    use Failure::{
        Connect, ConnectRefused, ConnectTimeout, Full, NoSocket, NotHttp2, Resolve, Tls, TlsCertificate,
        TlsRefused, TlsTimeout, Unstarted,
    };
    matches!(
        failure,
        Resolve
            | ConnectRefused
            | ConnectTimeout
            | Connect
            | NoSocket
            | TlsTimeout
            | TlsCertificate
            | TlsRefused
            | Tls
            | NotHttp2
            | Unstarted
            | Full
    )
}

/// What a failure says about the server; nothing if others are to blame.
fn blame(failure: Failure) -> Option<Outcome> {
    match failure {
        Failure::Resolve
        | Failure::ConnectRefused
        | Failure::ConnectTimeout
        | Failure::Connect
        | Failure::TlsTimeout
        | Failure::TlsCertificate
        | Failure::TlsRefused
        | Failure::Tls
        | Failure::NotHttp2 => Some(Outcome::Unreachable),
        Failure::Unstarted | Failure::Closed | Failure::Malformed | Failure::ResponseTimeout => {
            Some(Outcome::Failed)
        }
        Failure::ClientBody
        | Failure::ClientBodyTimeout
        | Failure::ClientBodyTooLarge
        | Failure::NoServer
        | Failure::NoSwitch
        | Failure::NoSocket
        | Failure::Full
        | Failure::ClientDeadline
        | Failure::AnswerBroken
        | Failure::AnswerStalled => None,
    }
}

/// What an answer says about the server.
fn verdict_of(status: StatusCode) -> Outcome {
    if BROKEN.contains(&status) { Outcome::Failed } else { Outcome::Fine }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_server_did_is_held_against_it() {
        for (failure, expected) in [
            (Failure::ConnectRefused, Some(Outcome::Unreachable)),
            (Failure::TlsRefused, Some(Outcome::Unreachable)),
            (Failure::ResponseTimeout, Some(Outcome::Failed)),
            (Failure::Closed, Some(Outcome::Failed)),
            // What a client asked for, or did.
            (Failure::ClientDeadline, None),
            (Failure::ClientBodyTimeout, None),
            (Failure::NoSwitch, None),
            // What we have not.
            (Failure::NoSocket, None),
            (Failure::Full, None),
        ] {
            assert_eq!(blame(failure), expected, "{failure:?}");
        }
        assert!(never_started(Failure::NoSocket) && !never_started(Failure::ClientDeadline));
        for (status, expected) in
            [(502, Outcome::Failed), (504, Outcome::Failed), (503, Outcome::Failed), (500, Outcome::Fine)]
        {
            assert_eq!(verdict_of(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
    }
}
