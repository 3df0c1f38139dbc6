//! `[mtls]`: hosts that ask for client certificates.

use std::path::PathBuf;

use super::blame::refusal;
use super::decode::Decoder;
use super::error::Problem;
use super::references::Reference;
use super::routes::Route;
use super::scalar;
use super::value::{At, Entry, Fields, Value};
use crate::name::HostPattern;
use crate::policy::ClientCertSpec;
use crate::proxy::RouteHost;
use crate::tls::ClientAuthSpec;

/// Reads all of them, and tells the routes whose hosts they are for. `tls`: whether clients come in by https.
pub(super) fn read(
    decoder: &mut Decoder<'_>,
    file: &Fields,
    routes: &mut [Route],
    tls: bool,
) -> Vec<ClientAuthSpec> {
    let entries: Vec<Entry> = file.value("mtls").unwrap_or_default();
    if !tls && let Some(first) = entries.first() {
        decoder.push(
            Problem::error(
                first.key.span.clone(),
                "client certificates are shown in TLS handshakes, and `https` is []",
            )
            .help("clients that come in clear have none: the routes of these hosts could not be used"),
        );
    }
    let mut specs: Vec<ClientAuthSpec> = Vec::new();
    let mut seen: Vec<At<HostPattern>> = Vec::new();
    for Entry { key, value } in entries {
        let host = match HostPattern::parse(&key.value) {
            Ok(HostPattern::Ip(_)) => {
                decoder.push(
                    Problem::error(
                        key.span.clone(),
                        "client certificates are asked for by name, not by address",
                    )
                    .label("a handshake with an address names no host"),
                );
                continue;
            }
            Ok(host) => host,
            Err(error) => {
                let message = format!("`{}` is not a host", key.value);
                decoder.push(refusal(&scalar::bad_name(&error), key.span.clone(), &message, &key.value));
                continue;
            }
        };
        if let Some(first) = seen.iter().find(|other| other.value == host) {
            decoder.push(
                Problem::error(key.span.clone(), format!("`{}` is there twice", key.value))
                    .also(first.span.clone(), "as here"),
            );
            continue;
        }
        seen.push(At { value: host.clone(), span: key.span.clone() });
        if !routes.iter().any(|route| meets(&route.host, &host)) {
            decoder.push(
                Problem::error(key.span.clone(), format!("no route is for `{host}`"))
                    .label("nobody could use the certificate")
                    .help("the name has to be that of a route, or `*.` and the zone of one"),
            );
        }
        if let Some(route) = passed(routes, &host) {
            let message = format!(
                "`{host}` is to ask for client certificates, and `{}` is passed through",
                route.key.value
            );
            decoder.push(
                Problem::error(key.span.clone(), message)
                    .label("its TLS is not ours: nobody here would ever ask")
                    .also(route.key.span.clone(), "passed through here")
                    .help(
                        "let the server behind it ask for certificates, or name only hosts here that are not passed through",
                    ),
            );
        }
        let Some(Value::Table(fields)) = value else { continue };
        let Some(ca) = fields.slot::<PathBuf>("ca").given() else { continue };
        decoder.references.push((ca.span, Reference::ClientCa(ca.value.clone())));
        let optional = fields.value("optional").unwrap_or(false);
        specs.push(ClientAuthSpec { host, ca: ca.value, optional });
    }
    specs.sort_by(|a, b| a.host.cmp(&b.host));
    for route in routes {
        let exact =
            specs.iter().any(|spec| matches!(&route.host, RouteHost::Pattern(host) if *host == spec.host));
        let one = matches!(&route.host, RouteHost::Pattern(HostPattern::Exact(_))) && exact;
        let here = |spec: &&ClientAuthSpec| {
            meets(&route.host, &spec.host)
                && (!one || matches!(&route.host, RouteHost::Pattern(host) if *host == spec.host))
        };
        route.policy.client_certs = specs
            .iter()
            .filter(here)
            .map(|spec| ClientCertSpec {
                host: spec.host.clone(),
                ca: spec.ca.clone(),
                optional: spec.optional,
            })
            .collect();
    }
    specs
}

/// The route by which a connection for `host`, or for one of the hosts that it stands for, is passed through.
fn passed<'r>(routes: &'r [Route], host: &HostPattern) -> Option<&'r Route> {
    let has_own = routes.iter().any(|route| !route.is_passed_through() && route.pattern() == Some(host));
    let is_met = |pattern: &HostPattern| host.covers(pattern) || (pattern.covers(host) && !has_own);
    routes.iter().find(|route| route.is_passed_through() && route.pattern().is_some_and(is_met))
}

/// Whether a request for the route can be one for `host`.
fn meets(route: &RouteHost, host: &HostPattern) -> bool {
    match route {
        RouteHost::Any => true,
        RouteHost::Pattern(pattern) => pattern.covers(host) || host.covers(pattern),
    }
}
