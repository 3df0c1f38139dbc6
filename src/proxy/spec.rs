//! What the configuration says about routes.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::name::HostPattern;
use crate::policy::PolicySpec;

/// Everything the proxy needs that is not an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySpec {
    /// In any order; no two have the same host and path.
    pub routes: Vec<RouteSpec>,
    /// Peers whose `X-Forwarded-*` and `Forwarded` are believed.
    pub trusted_proxies: Vec<IpNet>,
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
    /// What it asks of requests and adds to answers.
    pub policy: PolicySpec,
    /// What happens.
    pub action: ActionSpec,
}

impl RouteSpec {
    /// Whether a request gets the same from `other`: then it does not matter which of them it takes.
    pub fn does_the_same_as(&self, other: &Self) -> bool {
        self.policy == other.policy && self.action == other.action
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
    Forward {
        /// Name of one of the plan's upstreams.
        upstream: Arc<str>,
        /// Whether the route's path prefix is taken off first.
        strip_prefix: bool,
    },
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
        /// The body; its `Content-Type` is `text/plain; charset=utf-8`. Without one, an error status gets the error page.
        body: Option<Arc<str>>,
    },
}

/// Where a redirect goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectSpec {
    /// `https://host[:port]`, no path.
    pub origin: Arc<str>,
    /// Its own path and query; without it, those of the request are kept.
    pub path: Option<Arc<str>>,
    /// 301, 302, 303, 307 or 308 (default).
    pub status: u16,
}
