//! Prometheus metrics. Labels come from the configuration or from fixed lists, never from a request.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::counter::Counter as PlainCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge as PlainGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

/// A number that grows. Cloning shares it.
pub type Counter = PlainCounter;
/// A number that goes up and down. Cloning shares it.
pub type Gauge = PlainGauge;

/// The reason of a retry that cost nothing: an idle connection had been closed before the request was sent.
pub const UNSENT: &str = "unsent";
/// Why a request was tried on another server: no connection, no answer, none in time, an answer as good as none.
pub const RETRY_REASONS: [&str; 4] = ["connect", "no_answer", "timeout", "status"];

/// How an order or a deploy ended.
const OUTCOMES: [&str; 2] = ["success", "failure"];

type Labels<const N: usize> = [(&'static str, Arc<str>); N];
type Seconds = PlainGauge<f64, AtomicU64>;

/// What stands for a label that does not apply: a request without a route has `route="-"`.
pub const NONE: &str = "-";

/// Every metric of the process. Made once; handles that are used for each request are resolved when a plan is loaded.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<4>, Counter>,
    durations: Family<Labels<1>, Histogram>,
    /// Which series of `requests` exist for a route, so that those of a removed route can be forgotten.
    by_route: Mutex<HashMap<Arc<str>, Vec<Labels<4>>>>,
    upstream_up: Family<Labels<2>, Gauge>,
    upstream_in_flight: Family<Labels<2>, Gauge>,
    retries: Family<Labels<2>, Counter>,
    rejected: Family<Labels<1>, Counter>,
    mirrored: Family<Labels<2>, Counter>,
    connections: Family<Labels<2>, Gauge>,
    handshakes: Family<Labels<1>, Counter>,
    not_after: Family<Labels<1>, Seconds>,
    next_action: Family<Labels<1>, Seconds>,
    renewals: Family<Labels<2>, Counter>,
    deploys: Family<Labels<2>, Counter>,
    notifications: Family<Labels<1>, Counter>,
    acme_budget: Family<Labels<2>, Gauge>,
    budgets_shown: Mutex<HashSet<Labels<2>>>,
    reload_success: Gauge,
    reload_time: Seconds,
    access_dropped: Counter,
    requests_in_flight: Gauge,
    buffered: Gauge,
}

/// A metric that `registry` shows from now on.
fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// `version` is what `starlock_build_info` says.
    pub fn new(version: &str) -> Arc<Self> {
        let mut registry = Registry::with_prefix("starlock");
        let all = &mut registry;
        let mut metrics = Self {
            registry: Registry::default(),
            by_route: Mutex::default(),
            budgets_shown: Mutex::default(),
            // Shown in this order.
            requests: add(all, "http_requests", "Requests answered"),
            durations: add(
                all,
                "http_request_duration_seconds",
                "From a request's head to the end of its answer",
            ),
            upstream_up: add(all, "upstream_up", "1 if the server is used"),
            upstream_in_flight: add(all, "upstream_requests_in_flight", "Requests a server is working on"),
            retries: add(all, "retries", "Requests sent again"),
            rejected: add(all, "rejected", "Requests and connections refused by Starlock itself"),
            mirrored: add(all, "mirrored", "Copies of requests for another upstream"),
            connections: add(all, "connections_open", "Clients' connections"),
            handshakes: add(all, "tls_handshakes", "Handshakes with clients"),
            not_after: add(
                all,
                "certificate_not_after_timestamp_seconds",
                "When the certificate being served ends",
            ),
            next_action: add(
                all,
                "certificate_next_action_timestamp_seconds",
                "When something is next done for the certificate",
            ),
            renewals: add(all, "certificate_renewals", "Orders and how they ended"),
            deploys: add(all, "deploys", "Certificates passed on to others"),
            notifications: add(all, "notifications", "Messages to the webhook"),
            acme_budget: add(all, "acme_budget_remaining", "What is left of a CA's limit"),
            reload_success: add(all, "config_last_reload_success", "1 if the last reload was taken"),
            reload_time: add(
                all,
                "config_last_reload_timestamp_seconds",
                "When the configuration was last loaded",
            ),
            access_dropped: add(all, "access_log_dropped", "Lines lost because they could not be written"),
            requests_in_flight: add(
                all,
                "requests_in_flight",
                "Requests under way, which limits.requests caps",
            ),
            buffered: add(
                all,
                "buffered_bytes",
                "Held for clients that do not read and servers that do not take, which limits.buffered caps",
            ),
        };
        registry.register("build", "What is running", Info::new([("version", version.to_owned())]));
        metrics.registry = registry;
        Arc::new(metrics)
    }

    /// All metrics as OpenMetrics text (`application/openmetrics-text; version=1.0.0; charset=utf-8`).
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// `starlock_http_requests_total`. Takes locks: keep the handle. `method` is a known method or `other`.
    pub fn requests(
        &self,
        route: &Arc<str>,
        upstream: &Arc<str>,
        method: &'static str,
        code: u16,
    ) -> Counter {
        let labels = [
            ("route", route.clone()),
            ("upstream", upstream.clone()),
            ("method", method.into()),
            ("code", code.to_string().into()),
        ];
        let counter = self.requests.get_or_create_owned(&labels);
        let mut by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner);
        let known = by_route.entry(route.clone()).or_default();
        if !known.contains(&labels) {
            known.push(labels);
        }
        counter
    }

    /// Requests answered since the start, of the routes in force. For people; takes locks.
    pub fn requests_total(&self) -> u64 {
        let by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner);
        let series = by_route.values().flatten();
        series.filter_map(|labels| self.requests.get(labels).map(|counter| counter.get())).sum()
    }

    /// `starlock_http_request_duration_seconds`. Takes a lock: keep the handle.
    pub fn durations(&self, route: &Arc<str>) -> Histogram {
        self.durations.get_or_create_owned(&[("route", route.clone())])
    }

    /// Forgets the series of routes that are not in `routes`; those without a route stay.
    pub fn retain_routes(&self, routes: &HashSet<&str>) {
        let mut by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner);
        by_route.retain(|route, series| {
            let keep = &**route == NONE || routes.contains(&**route);
            if !keep {
                for labels in series {
                    self.requests.remove(labels);
                }
                self.durations.remove(&[("route", route.clone())]);
            }
            keep
        });
    }

    /// `starlock_upstream_up`.
    pub fn upstream_up(&self, upstream: &Arc<str>, server: &Arc<str>) -> Gauge {
        self.upstream_up.get_or_create_owned(&server_labels(upstream, server))
    }

    /// `starlock_upstream_requests_in_flight`.
    pub fn upstream_in_flight(&self, upstream: &Arc<str>, server: &Arc<str>) -> Gauge {
        self.upstream_in_flight.get_or_create_owned(&server_labels(upstream, server))
    }

    /// Forgets the series of a server that no plan names any more.
    pub fn forget_server(&self, upstream: &Arc<str>, server: &Arc<str>) {
        let labels = server_labels(upstream, server);
        self.upstream_up.remove(&labels);
        self.upstream_in_flight.remove(&labels);
    }

    /// Forgets the series of an upstream that no plan names any more.
    pub fn forget_upstream(&self, upstream: &Arc<str>) {
        for reason in RETRY_REASONS.into_iter().chain([UNSENT]) {
            self.retries.remove(&[("upstream", upstream.clone()), ("reason", reason.into())]);
        }
    }

    /// `starlock_retries_total`; `reason` is [`UNSENT`] or one of [`RETRY_REASONS`].
    pub fn retries(&self, upstream: &Arc<str>, reason: &'static str) -> Counter {
        self.retries.get_or_create_owned(&[("upstream", upstream.clone()), ("reason", reason.into())])
    }

    /// `starlock_rejected_total`.
    pub fn rejected(&self, reason: &'static str) -> Counter {
        self.rejected.get_or_create_owned(&[("reason", reason.into())])
    }

    /// `starlock_mirrored_total`; `result` from a fixed list. Takes a lock: keep the handle.
    pub fn mirrored(&self, upstream: &Arc<str>, result: &'static str) -> Counter {
        self.mirrored.get_or_create_owned(&[("upstream", upstream.clone()), ("result", result.into())])
    }

    /// `starlock_connections_open`; `protocol` is `h1` or `h2`.
    pub fn connections(&self, listener: &Arc<str>, protocol: &'static str) -> Gauge {
        self.connections.get_or_create_owned(&[("listener", listener.clone()), ("protocol", protocol.into())])
    }

    /// `starlock_tls_handshakes_total`.
    pub fn handshakes(&self, result: &'static str) -> Counter {
        self.handshakes.get_or_create_owned(&[("result", result.into())])
    }

    /// Sets `starlock_certificate_not_after_timestamp_seconds`.
    pub fn certificate_not_after(&self, name: &Arc<str>, at: SystemTime) {
        self.not_after.get_or_create_owned(&[("name", name.clone())]).set(unix(at));
    }

    /// Sets `starlock_certificate_next_action_timestamp_seconds`.
    pub fn certificate_next_action(&self, name: &Arc<str>, at: SystemTime) {
        self.next_action.get_or_create_owned(&[("name", name.clone())]).set(unix(at));
    }

    /// `starlock_certificate_renewals_total`; `result` is `success` or `failure`.
    pub fn certificate_renewals(&self, name: &Arc<str>, result: &'static str) -> Counter {
        self.renewals.get_or_create_owned(&[("name", name.clone()), ("result", result.into())])
    }

    /// `starlock_deploys_total`; `result` is `success` or `failure`.
    pub fn deploys(&self, name: &Arc<str>, result: &'static str) -> Counter {
        self.deploys.get_or_create_owned(&[("name", name.clone()), ("result", result.into())])
    }

    /// `starlock_notifications_total`; `result` from a fixed list.
    pub fn notifications(&self, result: &'static str) -> Counter {
        self.notifications.get_or_create_owned(&[("result", result.into())])
    }

    /// Forgets the series of a name that no certificate is for any more.
    pub fn forget_certificate(&self, name: &Arc<str>) {
        self.not_after.remove(&[("name", name.clone())]);
        self.next_action.remove(&[("name", name.clone())]);
        for result in OUTCOMES {
            self.renewals.remove(&[("name", name.clone()), ("result", result.into())]);
            self.deploys.remove(&[("name", name.clone()), ("result", result.into())]);
        }
    }

    /// Sets `starlock_acme_budget_remaining`: CA, limit, and how many are left. What is not in `left` is shown no more.
    pub fn acme_budgets<'a>(&self, left: impl Iterator<Item = (&'a str, &'static str, u32)>) {
        let mut shown = self.budgets_shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = std::mem::take(&mut *shown);
        for (ca, limit, remaining) in left {
            let labels: Labels<2> = [("ca", ca.into()), ("limit", limit.into())];
            self.acme_budget.get_or_create_owned(&labels).set(remaining.into());
            gone.remove(&labels);
            shown.insert(labels);
        }
        for labels in gone {
            self.acme_budget.remove(&labels);
        }
    }

    /// Records the end of a reload, or of the first load.
    pub fn reloaded(&self, success: bool, at: SystemTime) {
        self.reload_success.set(i64::from(success));
        self.reload_time.set(unix(at));
    }

    /// Sets `starlock_requests_in_flight` and `starlock_buffered_bytes`.
    pub fn loaded(&self, requests: usize, buffered: usize) {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.requests_in_flight.set(number(requests));
        self.buffered.set(number(buffered));
    }

    /// `starlock_access_log_dropped_total`.
    pub fn access_dropped(&self) -> &Counter {
        &self.access_dropped
    }
}

fn server_labels(upstream: &Arc<str>, server: &Arc<str>) -> Labels<2> {
    [("upstream", upstream.clone()), ("server", server.clone())]
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, f64::INFINITY];

/// How long things took. Cloning shares it; observing takes no lock (prometheus-client's own does).
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<HistogramInner>);

#[derive(Debug, Default)]
struct HistogramInner {
    buckets: [AtomicU64; BOUNDS.len()],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one that took `duration`.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len() - 1);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut buckets = [(0.0, 0); BOUNDS.len()];
        for (slot, (bound, count)) in buckets.iter_mut().zip(BOUNDS.iter().zip(&self.0.buckets)) {
            *slot = (*bound, count.load(Ordering::Relaxed));
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_micros(self.0.micros.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_names_are_there() {
        let metrics = Metrics::new("1.2.3");
        let (a, b): (Arc<str>, Arc<str>) = ("a.test".into(), "app".into());
        metrics.requests(&a, &b, "GET", 200).inc();
        metrics.durations(&a).observe(Duration::from_millis(3));
        metrics.durations(&a).observe(Duration::from_secs(100));
        metrics.upstream_up(&b, &a).set(1);
        metrics.upstream_in_flight(&b, &a).inc();
        metrics.retries(&b, "unsent").inc();
        metrics.rejected("no_route").inc();
        metrics.connections(&a, "h2").inc();
        metrics.handshakes("ok").inc();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        metrics.certificate_not_after(&a, at);
        metrics.certificate_next_action(&a, at);
        metrics.certificate_renewals(&a, "success").inc();
        metrics.acme_budgets([("old", "orders", 3)].into_iter());
        metrics.acme_budgets([("app", "orders", 7)].into_iter());
        metrics.reloaded(true, at);
        let text = metrics.render();
        for line in [
            "starlock_http_requests_total{route=\"a.test\",upstream=\"app\",method=\"GET\",code=\"200\"} 1",
            "starlock_http_request_duration_seconds_bucket{le=\"0.0025\",route=\"a.test\"} 0",
            "starlock_http_request_duration_seconds_bucket{le=\"0.005\",route=\"a.test\"} 1",
            "starlock_http_request_duration_seconds_bucket{le=\"+Inf\",route=\"a.test\"} 2",
            "starlock_http_request_duration_seconds_sum{route=\"a.test\"} 100.003",
            "starlock_upstream_up{upstream=\"app\",server=\"a.test\"} 1",
            "starlock_upstream_requests_in_flight{upstream=\"app\",server=\"a.test\"} 1",
            "starlock_retries_total{upstream=\"app\",reason=\"unsent\"} 1",
            "starlock_rejected_total{reason=\"no_route\"} 1",
            "starlock_connections_open{listener=\"a.test\",protocol=\"h2\"} 1",
            "starlock_tls_handshakes_total{result=\"ok\"} 1",
            "starlock_certificate_not_after_timestamp_seconds{name=\"a.test\"} 1700000000.0",
            "starlock_certificate_renewals_total{name=\"a.test\",result=\"success\"} 1",
            "starlock_certificate_next_action_timestamp_seconds{name=\"a.test\"} 1700000000.0",
            "starlock_acme_budget_remaining{ca=\"app\",limit=\"orders\"} 7",
            "starlock_config_last_reload_success 1",
            "starlock_config_last_reload_timestamp_seconds 1700000000.0",
            "starlock_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let metrics = Metrics::new("0");
        let (a, b, none): (Arc<str>, Arc<str>, Arc<str>) = ("a.test".into(), "b.test".into(), NONE.into());
        for route in [&a, &b, &none] {
            metrics.requests(route, &none, "GET", 200).inc();
            metrics.durations(route).observe(Duration::ZERO);
        }
        metrics.upstream_up(&a, &b).set(1);
        metrics.retain_routes(&HashSet::from(["a.test"]));
        metrics.retries(&b, UNSENT).inc();
        metrics.forget_server(&a, &b);
        metrics.forget_upstream(&b);
        let text = metrics.render();
        assert!(text.contains("route=\"a.test\"") && text.contains("route=\"-\""));
        assert!(!text.contains("b.test"), "{text}");
    }
}
