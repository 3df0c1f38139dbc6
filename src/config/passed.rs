//! `passthrough`: hosts whose TLS belongs to somebody behind us.

use std::sync::Arc;

use super::blame::refusal;
use super::decode::Decoder;
use super::error::Problem;
use super::routes::{self, Action, Destination, Route};
use super::scalar::{self, Wrong};
use super::value::{At, Fields};
use crate::balance::{Transport, UpstreamSpec};
use crate::name::HostPattern;
use crate::proxy::RouteHost;

/// What may be asked of a connection whose requests nobody sees.
const BESIDE: [&str; 3] = ["passthrough", "allow", "deny"];

/// Reads the action of a route with `passthrough`.
pub(super) fn read(
    decoder: &mut Decoder<'_>,
    key: &At<String>,
    path: Option<&Arc<str>>,
    fields: &Fields,
) -> Option<Action> {
    let mut fits = true;
    for (extra, at) in fields.entries.iter().filter(|(extra, _)| !BESIDE.contains(extra)) {
        fits = false;
        let message = format!("`{extra}` beside `passthrough` in route `{}`", key.value);
        decoder.push(
            Problem::error(at.span.clone(), message)
                .label("its requests are encrypted for somebody else, so nothing can be done to them")
                .help("`allow` and `deny` are all that goes with it"),
        );
    }
    if let Some(path) = path.filter(|path| &***path != "/") {
        fits = false;
        let message = format!("`passthrough` in route `{}`, which has a path", key.value);
        decoder.push(
            Problem::error(key.span.clone(), message)
                .label("paths are encrypted for somebody else")
                .help(format!("write \"{}\"", key.value.trim_end_matches(&**path))),
        );
    }
    let to: At<String> = fields.slot("passthrough").given()?;
    match destination(&to.value) {
        Ok(value) => Some(Action::Passthrough { to: At { value, span: to.span } }).filter(|_| fits),
        Err(wrong) => {
            let message = "`passthrough` must be the name of an upstream, or an address with a port";
            decoder.push(refusal(&wrong, to.span, message, "passthrough"));
            None
        }
    }
}

fn destination(text: &str) -> Result<Destination, Wrong> {
    if routes::is_upstream_name(text) {
        return Ok(Destination::Upstream(text.to_owned()));
    }
    scalar::tcp_server(text).map(Destination::Server)
}

/// Whether `spec`, to which `route` passes connections, takes them as they are.
pub(super) fn check_upstream(
    decoder: &mut Decoder<'_>,
    route: &Route,
    to: &At<Destination>,
    spec: &UpstreamSpec,
) {
    if let Some(server) = spec.servers.iter().find(|server| matches!(server.transport, Transport::Tls(_))) {
        let message = format!("route `{}` passes TLS through to {server}", route.key.value);
        decoder.push(
            Problem::error(to.span.clone(), message)
                .label("that would be TLS inside TLS")
                .help("name it with http://: what is sent there is what the client sends, TLS and all"),
        );
    }
}

/// What can only be seen with all routes at hand. `tls`: whether anybody listens with TLS.
pub(super) fn check(decoder: &mut Decoder<'_>, routes: &[Route], tls: bool) {
    for route in routes.iter().filter(|route| route.is_passed_through()) {
        let key = &route.key;
        if !matches!(&route.host, RouteHost::Pattern(HostPattern::Exact(_) | HostPattern::Wildcard(_))) {
            let message = format!("`passthrough` in route `{}`, which has no name", key.value);
            decoder.push(
                Problem::error(key.span.clone(), message)
                    .label("clients say which host they mean by its name alone (SNI)"),
            );
        }
        if let Some(other) = routes.iter().find(|r| r.host == route.host && !r.is_passed_through()) {
            let message = format!("`{}` is passed through, and has other routes", key.value);
            decoder.push(
                Problem::error(key.span.clone(), message)
                    .label("its connections are not ours to read")
                    .also(other.key.span.clone(), "no request would ever come here"),
            );
        }
        if !tls {
            let message = format!("route `{}` passes TLS through, and nobody listens with TLS", key.value);
            decoder.push(Problem::error(key.span.clone(), message).help("`listen.https` is []"));
        }
    }
}
