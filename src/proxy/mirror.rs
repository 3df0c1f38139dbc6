//! Copies of requests for another upstream. The original never waits for a copy and never learns of its fate.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Uri, Version};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::oneshot::Receiver;

use super::attempts::Attempts;
use super::handler::Shared;
use crate::balance::{Ask, Balancer};
use crate::conn::Load;
use crate::task;
use crate::telemetry::{Counter, Metrics};
use crate::upstream::{BodyCopy, ClientAddresses, Copied, Exchange, ExchangeLimits, ResponseBody, Upload};

/// Requests with larger bodies are not copied.
pub(super) const MAX_BODY: usize = 64 << 10;

/// Copies of one worker that are under way at a time; more are not made. With their bodies these are at most 4 MiB.
const MAX_COPIES: usize = 64;

/// So much of an answer that nobody sees is read, so that the connection can be kept.
const DRAINED: u64 = 256 << 10;

/// And no longer than this.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// Says that a request is a copy.
const MARK: HeaderName = HeaderName::from_static("x-starlock-mirror");

/// Who gets copies of a route's requests.
#[derive(Debug)]
pub(super) struct Mirror {
    balancer: Arc<Balancer>,
    percent: u8,
    sent: Counter,
    failed: Counter,
    too_large: Counter,
    busy: Counter,
    incomplete: Counter,
}

/// How many copies a worker has under way.
#[derive(Debug, Default)]
pub(super) struct Copies(Rc<Cell<usize>>);

/// Client, method, target and fields of a copy.
type Head = (ClientAddresses, Method, Uri, HeaderMap);

struct Permit(Rc<Cell<usize>>);

impl Copies {
    fn permit(&self) -> Option<Permit> {
        let taken = self.0.get();
        (taken < MAX_COPIES).then(|| {
            self.0.set(taken + 1);
            Permit(self.0.clone())
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Mirror {
    pub(super) fn new(balancer: Arc<Balancer>, percent: u8, metrics: &Metrics) -> Self {
        let counter = |result| metrics.mirrored(balancer.name(), result);
        Self {
            percent,
            sent: counter("sent"),
            failed: counter("failed"),
            too_large: counter("too_large"),
            busy: counter("busy"),
            incomplete: counter("incomplete"),
            balancer,
        }
    }

    fn is_chosen(&self) -> bool {
        self.percent >= 100 || rand::random_range(0..100) < self.percent
    }
}

/// Begins a copy of a request that is ready for its server, if its turn has come. What is given back has to see the request's body go by.
pub(super) fn copy<B: Body>(
    shared: &Rc<Shared>,
    mirror: &Arc<Mirror>,
    from: ClientAddresses,
    request: &Request<B>,
    limits: ExchangeLimits,
    load: &Arc<Load>,
) -> Option<Box<BodyCopy>> {
    if !mirror.is_chosen() || *request.method() == Method::CONNECT {
        return None;
    }
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        mirror.too_large.inc();
        return None;
    }
    let Some(permit) = shared.copies.permit().filter(|_| load.has_room()) else {
        mirror.busy.inc();
        return None;
    };
    let (copy, whole) = BodyCopy::new(MAX_BODY, load);
    let head = (from, request.method().clone(), request.uri().clone(), request.headers().clone());
    let (shared, mirror, load) = (shared.clone(), mirror.clone(), load.clone());
    let limits = ExchangeLimits { timeouts: *mirror.balancer.timeouts(), ..limits };
    task::spawn_local(async move {
        let _permit = permit;
        mirror.run(&shared, head, whole, limits, &load).await;
    });
    Some(Box::new(copy))
}

impl Mirror {
    async fn run(
        &self,
        shared: &Shared,
        head: Head,
        whole: Receiver<Copied>,
        limits: ExchangeLimits,
        load: &Arc<Load>,
    ) {
        let counter = match whole.await {
            Ok(Copied::Whole(body)) => self.send(shared, head, Upload::whole(body, load), limits).await,
            Ok(Copied::TooLarge) => &self.too_large,
            Err(_) => &self.incomplete,
        };
        counter.inc();
    }

    async fn send(
        &self,
        shared: &Shared,
        (from, method, uri, mut fields): Head,
        body: Upload,
        limits: ExchangeLimits,
    ) -> &Counter {
        for name in [TRANSFER_ENCODING, TRAILER, TE, http::header::CONNECTION] {
            fields.remove(name);
        }
        let length = body.length();
        if fields.remove(CONTENT_LENGTH).is_some() || length > 0 {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        fields.insert(MARK, HeaderValue::from_static("1"));
        let ask = Ask { client: from.from.ip(), headers: &fields, path: uri.path() };
        let preference = self.balancer.prefer(&ask);
        // As if it could not be repeated: a copy is worth a second connection, not a second request.
        let mut attempts = Attempts::new(&self.balancer, &Method::POST, |_| body);
        loop {
            let Ok(in_flight) = attempts.pick(&preference).await else { return &self.failed };
            let exchange = Rc::new(Exchange::new(attempts.limits(limits)).of_client(from));
            let mut request = Box::new(Request::new(attempts.upload.body(exchange.clone())));
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = fields.clone();
            *request.version_mut() = Version::HTTP_11;
            let pool = shared.pools.to(in_flight.endpoint());
            match attempts.send(&pool, &exchange, request, &in_flight).await {
                Ok(None) => {}
                Ok(Some(answer)) => {
                    // Whatever is not over by then is a stream, and the connection is let go.
                    let _ = tokio::time::timeout(DRAIN_TIME, drain(answer.into_body())).await;
                    return &self.sent;
                }
                Err(failure) => {
                    tracing::debug!(upstream = %self.balancer.name(), ?failure, "a copy had no answer");
                    return &self.failed;
                }
            }
        }
    }
}

async fn drain(mut body: ResponseBody) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > DRAINED {
            return;
        }
    }
}

/// What a stranger says of copies is not passed on.
pub(super) fn unmark(headers: &mut HeaderMap) {
    headers.remove(MARK);
}
