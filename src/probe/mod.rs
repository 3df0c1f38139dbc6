//! What is learnt of servers without waiting for requests: whether they say that they are well, and where names have moved.

mod names;
mod question;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

use crate::backoff::{self, Backoff};
use crate::balance::{ActiveSpec, Balancer, Endpoint, Upstreams};
use crate::resolver::Hosts;
use crate::task::{OnExit, Shutdown, Supervisor};
use crate::upstream::{TlsReader, Unreached};

/// `starlock_upstream_up` is never older than this.
const SHOW: Duration = Duration::from_secs(1);
/// After a panic, which is a defect of ours.
const RESTART: Backoff = Backoff::new(&[Duration::from_secs(1), Duration::from_secs(10)]);
/// Questions are this much earlier or later, so that many proxies do not ask at once. Percent.
const JITTER: f64 = 10.0;

/// Watches the servers of the plan in force.
#[derive(Debug)]
pub struct Prober {
    supervisor: Supervisor,
    hosts: Hosts,
    tls: TlsReader,
    /// Ends what watches the servers of the last plan.
    current: Shutdown,
}

impl Prober {
    /// Watches nothing yet. `supervisor` must be one of a runtime without traffic.
    pub fn new(supervisor: Supervisor, hosts: Hosts, tls: TlsReader) -> Self {
        let current = supervisor.shutdown().child();
        Self { supervisor, hosts, tls, current }
    }

    /// Watches these upstreams from now on, and no others. What is known of their servers stays.
    pub fn watch(&mut self, upstreams: &Arc<Upstreams>) {
        self.current.trigger();
        self.current = self.supervisor.shutdown().child();
        for balancer in upstreams.balancers() {
            if balancer.spec().active.is_none() {
                balancer.endpoints().iter().for_each(|endpoint| endpoint.unasked());
            }
            if balancer.spec().active.is_some() || balancer.unresolved().next().is_some() {
                let (balancer, hosts, tls) = (balancer.clone(), self.hosts.clone(), self.tls.clone());
                self.spawn(format!("upstream {}", balancer.name()), move || {
                    watch(balancer.clone(), hosts.clone(), tls.clone())
                });
            }
        }
        let upstreams = upstreams.clone();
        self.spawn("upstreams".to_owned(), move || show(upstreams.clone()));
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: String,
        mut work: impl FnMut() -> F + Send + 'static,
    ) {
        let until = self.current.clone();
        self.supervisor.spawn_until(name.into(), OnExit::Restart(RESTART), until, move |shutdown| {
            let work = work();
            async move {
                tokio::select! {
                    () = work => {}
                    () = shutdown.wait() => {}
                }
            }
        });
    }
}

/// Keeps the metrics true when nobody asks for a server.
async fn show(upstreams: Arc<Upstreams>) {
    loop {
        upstreams.endpoints().for_each(|endpoint| endpoint.show());
        sleep(SHOW).await;
    }
}

/// Asks the servers of one upstream, and resolves its names. Does not end.
async fn watch(balancer: Arc<Balancer>, hosts: Hosts, tls: TlsReader) {
    let names: FuturesUnordered<_> = balancer
        .unresolved()
        .map(|(index, server)| names::follow(&balancer, index, server, &hosts))
        .collect();
    let mut names = names.into_future();
    let mut asked = HashSet::new();
    let mut questions = FuturesUnordered::new();
    loop {
        let changed = balancer.changed();
        if let Some(spec) = &balancer.spec().active {
            for endpoint in balancer.endpoints() {
                if asked.insert(endpoint.id()) {
                    questions.push(ask(&balancer, endpoint, spec, &tls));
                }
            }
        }
        tokio::select! {
            _ = &mut names, if balancer.unresolved().next().is_some() => {}
            Some(id) = questions.next() => drop(asked.remove(&id)),
            () = changed => {}
        }
    }
}

/// Asks one server again and again, until it is none of the upstream's any more. Gives its id.
async fn ask(balancer: &Balancer, endpoint: Arc<Endpoint>, spec: &ActiveSpec, tls: &TlsReader) -> u64 {
    // Who was asked before a reload is not asked at once again, and not all are asked at the same moment.
    let first = if endpoint.was_asked() { spec.every } else { spec.every / 20 };
    sleep(first.mul_f64(rand::random())).await;
    while balancer.endpoints().iter().any(|e| e.id() == endpoint.id()) {
        let answer = question::ask(&endpoint, tls, &spec.question, spec.timeout).await;
        let (upstream, server) = (balancer.name(), endpoint.label());
        if let Err(Unreached::Ours(why)) = &answer {
            tracing::debug!(%upstream, %server, why, "the server could not be asked; what it said before stands");
            sleep(backoff::jitter(spec.every, JITTER, backoff::dice())).await;
            continue;
        }
        let answer = answer.map_err(|why| why.to_string());
        match (endpoint.answered(answer.is_ok(), spec), answer) {
            (Some(true), _) => tracing::info!(%upstream, %server, "the server says that it is well again"),
            (Some(false), Err(why)) => {
                tracing::warn!(%upstream, %server, why, "the server is down; others get its requests");
            }
            (_, Err(why)) => {
                tracing::debug!(%upstream, %server, why, "the server does not say that it is well");
            }
            _ => {}
        }
        sleep(backoff::jitter(spec.every, JITTER, backoff::dice())).await;
    }
    endpoint.id()
}
