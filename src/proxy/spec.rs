//! What the configuration says about routes.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::client::TrustedHeader;
use super::condition::ConditionSpec;
use crate::name::HostPattern;
use crate::policy::PolicySpec;

/// Everything the proxy needs that is not an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySpec {
    /// In any order, but that those of the same host and path are tried in this one.
    pub routes: Vec<RouteSpec>,
    /// Peers that are believed when they say who their client is.
    pub trusted_proxies: Vec<IpNet>,
    /// Where they say it.
    pub trusted_header: TrustedHeader,
    /// Without progress on a request's body (default 60 s).
    pub body_timeout: Duration,
    /// Without a byte in either direction of a tunnel: WebSocket, another upgrade, passthrough (default 1 h).
    pub tunnel_timeout: Duration,
    /// Request bodies larger than this are 413; `None` is unlimited.
    pub max_body: Option<u64>,
}

/// One line of `[routes]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// The key as written: metric label, log field, name in `explain`.
    pub key: Arc<str>,
    /// The hosts it is for.
    pub host: RouteHost,
    /// Normalised path prefix that matches on a segment boundary: `/` or `/api`, no trailing slash except for the root.
    pub path: Arc<str>,
    /// What requests it is for. Routes of one host and path are tried in their order, and the first whose condition is met is
    /// taken; if none is, there is no route.
    pub when: ConditionSpec,
    /// What it asks of requests and adds to answers.
    pub policy: PolicySpec,
    /// What happens.
    pub action: ActionSpec,
}

impl RouteSpec {
    /// Whether a request gets the same from `other`: then it does not matter which of them it takes.
    pub fn does_the_same_as(&self, other: &Self) -> bool {
        self.when == other.when && self.policy == other.policy && self.action == other.action
    }
}

/// The hosts a route is for. Of the routes that match a request, exact wins over wildcard, wildcard over any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteHost {
    /// A name, `*.name`, or an address.
    Pattern(HostPattern),
    /// `*`: every host; a route that names the host and matches the path comes first.
    Any,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionSpec {
    /// Sends the request to an upstream.
    Forward(ForwardSpec),
    /// Sends the client elsewhere.
    Redirect(RedirectSpec),
    /// Hands connections that ask for the host by SNI to an upstream, TLS and all. The route has no path.
    Passthrough {
        /// Name of one of the plan's upstreams.
        upstream: Arc<str>,
    },
    /// Answers by itself.
    Respond {
        /// 200 to 599.
        status: u16,
        /// The body. Without one, an error status gets the error page.
        body: Option<Arc<str>>,
        /// Its media type; `None`: `text/plain; charset=utf-8`.
        content_type: Option<Arc<str>>,
    },
}

/// How a request goes to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardSpec {
    /// The upstreams and their shares; at least one, and one with a weight above 0.
    pub to: Vec<ShareSpec>,
    /// What keeps a client at the upstream it got; `None`: every request is dealt anew.
    pub stick: Option<StickSpec>,
    /// Whether the route's path prefix is taken off first.
    pub strip_prefix: bool,
    /// What the path becomes; not together with `strip_prefix`.
    pub rewrite: Option<RewriteSpec>,
    /// Who gets copies.
    pub mirror: Option<MirrorSpec>,
    /// What replaces the time-outs of the upstream and of `[timeouts]`.
    pub timeouts: RouteTimeouts,
}

impl ForwardSpec {
    /// Everything to one upstream, as it came.
    pub fn to(upstream: Arc<str>) -> Self {
        Self {
            to: vec![ShareSpec { upstream, weight: 1 }],
            stick: None,
            strip_prefix: false,
            rewrite: None,
            mirror: None,
            timeouts: RouteTimeouts::default(),
        }
    }
}

/// One of the upstreams of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSpec {
    /// Name of one of the plan's upstreams.
    pub upstream: Arc<str>,
    /// Its part of the sum of all weights.
    pub weight: u32,
}

/// What keeps a client at an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StickSpec {
    /// Its address.
    Client,
    /// The value of this cookie, which somebody else sets; without it a request is dealt by chance.
    Cookie(Arc<str>),
}

/// Paths that become others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteSpec {
    /// A regular expression for normal paths; paths that it does not match stay as they are.
    pub pattern: Arc<str>,
    /// What they become, with groups of the pattern: `/new/$1`.
    pub to: Arc<str>,
}

/// Copies of requests for another upstream, whose answers nobody sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorSpec {
    /// Name of one of the plan's upstreams.
    pub upstream: Arc<str>,
    /// How many of a hundred requests, 1 to 100.
    pub percent: u8,
}

/// Time-outs of one route; what is `None` is as everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the end of the request to the first byte of the answer.
    pub response: Option<Duration>,
    /// Without a byte of the answer's body.
    pub stall: Option<Duration>,
    /// Without progress on the request's body.
    pub body: Option<Duration>,
    /// To the first byte, before an idempotent request is tried elsewhere.
    pub attempt: Option<Duration>,
}

/// Where a redirect goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectSpec {
    /// `https://host[:port]`, no path.
    pub origin: Arc<str>,
    /// Its own path and query; without it, those of the request are kept.
    pub path: Option<Arc<str>>,
    /// A regular expression for normal paths. With it, `path` holds groups (`/new/$1`) and keeps the query unless it has its
    /// own, and paths that it does not match have no route.
    pub pattern: Option<Arc<str>>,
    /// 301, 302, 303, 307 or 308 (default).
    pub status: u16,
}
