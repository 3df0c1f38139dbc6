//! Everything a request is decided by, swapped as one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use ipnet::IpNet;

use super::client::TrustedHeader;
use super::mirror::Mirror;
use super::passthrough::PassedHosts;
use super::path;
use super::rewrite::{NotNormal, Rewrite, RewriteError};
use super::route::Router;
use super::spec::{ActionSpec, ForwardSpec, ProxySpec, RouteSpec, RouteTimeouts};
use super::split::Split;
use crate::balance::{Balancer, StickyError, UpstreamSpec, Upstreams};
use crate::conn::TlsPolicies;
use crate::policy::{Memory, PageError, PageFiles, Policy, Turns, UsersError};
use crate::telemetry::Metrics;

/// What requests are decided by. Immutable: a reload makes a new one; a request keeps the one it began with.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) router: Router,
    /// One for each route of the router.
    pub(super) targets: Box<[Target]>,
    /// One for each route of the router.
    pub(super) policies: Box<[Policy]>,
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) passed: PassedHosts,
    pub(super) trusted: (Box<[IpNet]>, TrustedHeader),
    pub(super) body_timeout: Duration,
    pub(super) tunnel_timeout: Duration,
    pub(super) max_body: Option<u64>,
    /// Where clients that come in clear are sent to.
    pub(super) https_port: Option<u16>,
    /// What each host asks of clients in the handshake.
    pub(super) tls_policies: Arc<TlsPolicies>,
    /// Who may verify a password now.
    pub(super) turns: Turns,
}

/// What a route does, with everything looked up.
#[derive(Debug)]
pub(super) enum Target {
    Forward(Box<Forward>),
    /// Its connections are none of ours: a request for such a host came on one that was made for another.
    Passthrough(Arc<Balancer>),
    Redirect {
        status: StatusCode,
        origin: Arc<str>,
        to: RedirectPath,
    },
    Respond {
        status: StatusCode,
        body: Option<(HeaderValue, Bytes)>,
    },
}

/// How a route forwards.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) split: Split,
    pub(super) strip_prefix: bool,
    pub(super) rewrite: Option<Rewrite>,
    pub(super) mirror: Option<Arc<Mirror>>,
    pub(super) timeouts: RouteTimeouts,
}

impl Forward {
    /// The path for the server, made of the normal one that was matched. It is in normal form itself.
    pub(super) fn path<'a>(&self, prefix: &str, path: &'a str) -> Result<Cow<'a, str>, NotNormal> {
        if self.strip_prefix {
            return Ok(Cow::Borrowed(path::without_prefix(path, prefix)));
        }
        let rewritten = self.rewrite.as_ref().map(|rewrite| rewrite.apply(path)).transpose()?.flatten();
        Ok(rewritten.map_or(Cow::Borrowed(path), |new| Cow::Owned(new.path)))
    }
}

/// Where a redirect goes behind its origin.
#[derive(Debug)]
pub(super) enum RedirectPath {
    /// Where the request went.
    Same,
    /// There, whatever the request was.
    Fixed(Arc<str>),
    /// What becomes of the request's path.
    Rewritten(Rewrite),
}

/// A plan that cannot be put into force. `config` refuses such plans, so whoever made this one without it is at fault.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A route names an upstream that the plan does not have.
    #[error("route `{route}` names the upstream `{upstream}`, which does not exist")]
    UnknownUpstream {
        /// The route's key.
        route: Arc<str>,
        /// What it names.
        upstream: Arc<str>,
    },
    /// The users of a route cannot be read.
    #[error("route `{route}`: {reason}")]
    Users {
        /// The route's key.
        route: Arc<str>,
        /// What is wrong with them.
        reason: UsersError,
    },
    /// Not an HTTP status that can be answered.
    #[error("route `{route}` answers with the status {status}, which does not exist")]
    BadStatus {
        /// The route's key.
        route: Arc<str>,
        /// What it answers.
        status: u16,
    },
    /// The redirect's origin or path cannot stand in a Location field.
    #[error("route `{route}` redirects to `{to}`, which cannot stand in a Location field")]
    BadLocation {
        /// The route's key.
        route: Arc<str>,
        /// Where it redirects to.
        to: String,
    },
    /// A secret is not there. The only one of these that a good configuration can meet.
    #[error(transparent)]
    Sticky(#[from] StickyError),
    /// A pattern or what it leads to cannot be used.
    #[error("route `{route}`: {source}")]
    BadRewrite {
        /// The route's key.
        route: Arc<str>,
        /// What is wrong with it.
        source: RewriteError,
    },
    /// An error page cannot be used. Its file may have been fine when the configuration was checked.
    #[error("route `{route}`: {source}")]
    Page {
        /// The route's key.
        route: Arc<str>,
        /// Which, and why.
        source: PageError,
    },
}

impl Snapshot {
    /// Builds a snapshot. `https_port` is the port that clear-text clients are redirected to, `None` if they are served.
    /// Servers that `previous` has too are taken over with their counts, and so is what policies remember. Blocking, where policies
    /// have files. Changes nothing.
    pub fn build(
        spec: &ProxySpec,
        upstreams: &[UpstreamSpec],
        https_port: Option<u16>,
        previous: Option<&Snapshot>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, BuildError> {
        let upstreams = Arc::new(Upstreams::build(upstreams, previous.map(|p| &*p.upstreams), metrics)?);
        let targets =
            spec.routes.iter().map(|route| target(route, &upstreams, metrics)).collect::<Result<_, _>>()?;
        let mut memories = previous.map(Self::memories).unwrap_or_default();
        let mut files = PageFiles::default();
        let policies = spec
            .routes
            .iter()
            .map(|route| {
                let pages = files.read(&route.policy.pages);
                let pages = pages.map_err(|source| BuildError::Page { route: route.key.clone(), source })?;
                let memory = memories.entry(route.key.clone()).or_default();
                let error = |reason| BuildError::Users { route: route.key.clone(), reason };
                Policy::new(&route.policy, pages, memory).map_err(error)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            router: Router::new(&spec.routes),
            targets,
            policies,
            passed: PassedHosts::new(&spec.routes),
            upstreams,
            trusted: (spec.trusted_proxies.clone().into(), spec.trusted_header),
            body_timeout: spec.body_timeout,
            tunnel_timeout: spec.tunnel_timeout,
            max_body: spec.max_body,
            https_port,
            tls_policies: previous.map(|p| p.tls_policies.clone()).unwrap_or_default(),
            turns: previous.map(|p| p.turns.clone()).unwrap_or_default(),
        })
    }

    /// With what hosts ask of clients in the handshake from now on; without this it is as it was.
    #[must_use]
    pub fn asking(mut self, tls_policies: Arc<TlsPolicies>) -> Self {
        self.tls_policies = tls_policies;
        self
    }

    /// What the policies of each route remember.
    fn memories(&self) -> HashMap<Arc<str>, Memory> {
        let mut memories: HashMap<Arc<str>, Memory> = HashMap::new();
        for (route, policy) in self.router.routes().iter().zip(&self.policies) {
            policy.remember(memories.entry(route.key.clone()).or_default());
        }
        memories
    }

    /// The routes.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The upstreams.
    pub fn upstreams(&self) -> &Arc<Upstreams> {
        &self.upstreams
    }
}

fn target(route: &RouteSpec, upstreams: &Upstreams, metrics: &Metrics) -> Result<Target, BuildError> {
    let status = |status: u16| {
        let known = StatusCode::from_u16(status).ok().filter(|s| (200..600).contains(&s.as_u16()));
        known.ok_or(BuildError::BadStatus { route: route.key.clone(), status })
    };
    let rewrite = |pattern: &str, to: &str| {
        Rewrite::new(pattern, to)
            .map_err(|source| BuildError::BadRewrite { route: route.key.clone(), source })
    };
    Ok(match &route.action {
        ActionSpec::Forward(spec) => Target::Forward(Box::new(forward(route, spec, upstreams, metrics)?)),
        ActionSpec::Passthrough { upstream } => Target::Passthrough(find(route, upstreams, upstream)?),
        ActionSpec::Redirect(to) => {
            let text = format!("{}{}", to.origin, to.path.as_deref().unwrap_or_default());
            if HeaderValue::from_str(&text).is_err() {
                return Err(BuildError::BadLocation { route: route.key.clone(), to: text });
            }
            let path = match (&to.path, &to.pattern) {
                (Some(path), Some(pattern)) => RedirectPath::Rewritten(rewrite(pattern, path)?),
                (Some(path), None) => RedirectPath::Fixed(path.clone()),
                (None, Some(pattern)) => RedirectPath::Rewritten(rewrite(pattern, "$0")?),
                (None, None) => RedirectPath::Same,
            };
            Target::Redirect { status: status(to.status)?, origin: to.origin.clone(), to: path }
        }
        ActionSpec::Respond { status: code, body, content_type } => {
            let kind = content_type.as_deref().unwrap_or("text/plain; charset=utf-8");
            let kind =
                HeaderValue::from_str(kind).unwrap_or(HeaderValue::from_static("application/octet-stream"));
            let body = body.as_ref().map(|text| (kind, Bytes::from(text.as_bytes().to_vec())));
            Target::Respond { status: status(*code)?, body }
        }
    })
}

fn find(route: &RouteSpec, upstreams: &Upstreams, upstream: &Arc<str>) -> Result<Arc<Balancer>, BuildError> {
    let unknown = || BuildError::UnknownUpstream { route: route.key.clone(), upstream: upstream.clone() };
    upstreams.get(upstream).cloned().ok_or_else(unknown)
}

fn forward(
    route: &RouteSpec,
    spec: &ForwardSpec,
    upstreams: &Upstreams,
    metrics: &Metrics,
) -> Result<Forward, BuildError> {
    let find = |upstream: &Arc<str>| find(route, upstreams, upstream);
    let shares = spec.to.iter().map(|share| Ok((share.weight, find(&share.upstream)?)));
    let shares = shares.collect::<Result<Vec<_>, BuildError>>()?;
    let rewrite =
        spec.rewrite.as_ref().map(|rewrite| Rewrite::new(&rewrite.pattern, &rewrite.to)).transpose();
    let mirror = spec
        .mirror
        .as_ref()
        .map(|to| Ok::<_, BuildError>(Arc::new(Mirror::new(find(&to.upstream)?, to.percent, metrics))));
    Ok(Forward {
        split: Split::new(shares.into_iter(), spec.stick.clone()),
        strip_prefix: spec.strip_prefix,
        rewrite: rewrite.map_err(|source| BuildError::BadRewrite { route: route.key.clone(), source })?,
        mirror: mirror.transpose()?,
        timeouts: spec.timeouts,
    })
}

/// Makes the two ends of what requests are decided by: one writer, any number of readers.
pub fn snapshot_cell(first: Snapshot, metrics: Arc<Metrics>) -> (SnapshotPublisher, SnapshotReader) {
    first.upstreams.enforce();
    let cell = Arc::new(ArcSwap::from_pointee(first));
    (SnapshotPublisher { cell: cell.clone(), metrics }, SnapshotReader(cell))
}

/// Puts snapshots into force. Not cloneable: there is one writer.
#[derive(Debug)]
pub struct SnapshotPublisher {
    cell: Arc<ArcSwap<Snapshot>>,
    metrics: Arc<Metrics>,
}

impl SnapshotPublisher {
    /// The snapshot in force.
    pub fn current(&self) -> Arc<Snapshot> {
        self.cell.load_full()
    }

    /// Puts `next` into force for requests that begin from now on, and forgets the metrics of what it does not have.
    pub fn publish(&mut self, next: Snapshot) {
        let previous = self.cell.swap(Arc::new(next));
        let next = self.cell.load();
        previous.upstreams.retire(&next.upstreams, &self.metrics);
        let routes: HashSet<&str> = next.router.routes().iter().map(|route| &*route.key).collect();
        self.metrics.retain_routes(&routes);
    }
}

/// Sees the snapshot in force. Cloning shares it.
#[derive(Clone, Debug)]
pub struct SnapshotReader(Arc<ArcSwap<Snapshot>>);

impl SnapshotReader {
    /// Whether `held` is still the one in force.
    pub(super) fn is_current(&self, held: &Arc<Snapshot>) -> bool {
        Arc::as_ptr(&self.0.load()) == Arc::as_ptr(held)
    }

    /// The snapshot in force.
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }
}
