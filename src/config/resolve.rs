//! From a read file to a plan. Every rule that looks at more than one key is here or below.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Method};
use ipnet::IpNet;

use super::certificates::{self, Defaults, Wanted};
use super::decode::Decoder;
use super::environment::Environment;
use super::error::{Problem, Span};
use super::expect::{self, Expect};
use super::plan::Plan;
use super::routes::{self, Action, Route};
use super::value::{At, Fields, Slot, Value};
use super::{accounts, mtls, passed, passing, responder, upstreams};
use crate::dns::ProviderKind;
use crate::listen::{Limits, ListenSpec, ListenTimeouts};
use crate::name::{HostName, HostPattern};
use crate::proxy::client::TrustedHeader;
use crate::proxy::{ActionSpec, Facts, ProxySpec, Router, path};
use crate::storage::StorageSpec;
use crate::telemetry::{AccessLogSpec, TelemetrySpec};

/// Makes the plan. It is only good if the decoder holds no error afterwards.
pub(super) fn resolve(decoder: &mut Decoder<'_>, file: &Fields, env: &Environment) -> (Plan, Vec<Expect>) {
    let section = |name: &str| file.value::<Fields>(name).unwrap_or_else(Fields::empty);
    let listen_section = section("listen");
    let (listen, Beside { metrics, ready }) =
        listen(decoder, &listen_section, &section("timeouts"), &section("limits"));
    let upstream_defaults = upstreams::time_outs(&section("timeouts"), upstreams::Usual::default());

    let mut read_routes = routes::read(decoder, file.value("routes").unwrap_or_default());
    let client_auth = mtls::read(decoder, file, &mut read_routes, !listen.https.is_empty());
    let declared = upstreams::declared(decoder, file, upstream_defaults);
    let names: Vec<&str> = declared.iter().map(|d| d.name.value.as_str()).collect();
    let (route_specs, upstreams) =
        upstreams::destinations(decoder, &read_routes, &declared, upstream_defaults);
    endless_redirects(decoder, &read_routes, &listen);
    passed::check(decoder, &read_routes, !listen.https.is_empty());

    let defaults = Defaults::read(decoder, file, &listen);
    let wanted = certificates::wanted(decoder, file, &defaults, &read_routes, !listen.https.is_empty());
    let mut plans: Vec<_> = wanted.iter().filter_map(|wanted| wanted.plan.clone()).collect();
    plans.sort_by(|a, b| a.names.cmp(&b.names));
    accounts::agree(decoder, file, &mut plans);
    let responder = match responder::read(decoder, file) {
        Slot::Given(section) => {
            let builtin = names_proven_by_builtin(&plans, &defaults);
            if !builtin {
                let problem = Problem::warning(section.span.clone(), "[responder] has nothing to answer");
                decoder.push(problem.help("no certificate uses provider \"builtin\""));
            }
            let hosts: Vec<&HostPattern> = wanted
                .iter()
                .flat_map(|w| &w.names)
                .chain(read_routes.iter().filter_map(Route::pattern))
                .collect();
            let spec = section.value.spec(decoder, certificates::challenge_names(&plans), &hosts);
            builtin.then_some(spec)
        }
        Slot::Broken => None,
        Slot::Absent => {
            needs_responder(decoder, file);
            None
        }
    };
    default_sni(decoder, &listen_section, &wanted);
    something_to_do(decoder, file, &read_routes, &wanted, &listen);

    let expects = expect::read(decoder, file, &names);
    let proxy = ProxySpec {
        routes: route_specs,
        trusted_header: trusted_header(decoder, &listen_section),
        trusted_proxies: trusted(decoder, &listen_section),
        body_timeout: section("timeouts").value("body").unwrap_or(Duration::from_secs(60)),
        tunnel_timeout: section("timeouts").value("tunnel").unwrap_or(Duration::from_secs(3600)),
        max_body: section("limits").value("body"),
    };
    let plan = Plan {
        listen,
        admin: listen_section.value("admin").unwrap_or_else(|| env.admin_socket()),
        ready,
        lame_duck: section("timeouts").value("lame_duck").unwrap_or(if ready.is_some() {
            LAME_DUCK
        } else {
            Duration::ZERO
        }),
        proxy,
        client_auth,
        upstreams,
        certificates: plans,
        responder,
        notify: passing::notify(decoder, file),
        storage: StorageSpec {
            path: section("storage").value("path").unwrap_or_else(|| env.state_dir.clone()),
        },
        telemetry: TelemetrySpec { access: access_log(&section("log")), metrics },
    };
    (plan, expects)
}

/// What is listened on beside the traffic.
struct Beside {
    metrics: Option<SocketAddr>,
    ready: Option<SocketAddr>,
}

/// Balancers ask every few seconds; without one nobody would use the time.
const LAME_DUCK: Duration = Duration::from_secs(5);

fn listen(
    decoder: &mut Decoder<'_>,
    section: &Fields,
    timeouts: &Fields,
    limits: &Fields,
) -> (ListenSpec, Beside) {
    let addresses = |key: &str, port: u16| match section.list::<SocketAddr>(key) {
        Some(list) => list,
        None if section.has(key) => Vec::new(),
        None => {
            let address = SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port);
            vec![At { value: address, span: section.span.clone() }]
        }
    };
    let https = addresses("https", 443);
    let http = addresses("http", 80);
    let metrics = section.slot::<SocketAddr>("metrics").given();
    let ready = section.slot::<SocketAddr>("ready").given();
    let written =
        ["https", "http"].iter().all(|key| decoder.text.get(section.span_of(key)).is_some_and(is_empty_list));
    if section.has("https") && section.has("http") && https.is_empty() && http.is_empty() && written {
        decoder.push(
            Problem::error(section.span_of("http"), "nobody can come in: `https` and `http` are both []")
                .also(section.span_of("https"), "and this"),
        );
    }
    let mut seen: Vec<&At<SocketAddr>> = Vec::new();
    for at in https.iter().chain(&http).chain(&metrics).chain(&ready).filter(|at| at.value.port() != 0) {
        match seen.iter().find(|other| other.value == at.value) {
            Some(first) if first.span == at.span => {} // both are defaults
            Some(first) => decoder.push(
                Problem::error(at.span.clone(), format!("{} is used twice", at.value))
                    .label("again here")
                    .also(first.span.clone(), "first here"),
            ),
            None => seen.push(at),
        }
    }
    let duration = |key: &str, default: Duration| timeouts.value(key).unwrap_or(default);
    let usual = ListenTimeouts::default();
    let usual_limits = Limits::default();
    let number = |key: &str| limits.value::<u64>(key).and_then(|n| usize::try_from(n).ok());
    let spec = ListenSpec {
        https: https.into_iter().map(|at| at.value).collect(),
        http: http.into_iter().map(|at| at.value).collect(),
        default_sni: section.value("default_sni"),
        proxy_protocol: balancers(decoder, section),
        h2c: section.value("h2c").unwrap_or(false),
        timeouts: ListenTimeouts {
            handshake: duration("handshake", usual.handshake),
            header: duration("header", usual.header),
            idle: duration("idle", usual.idle),
            write: duration("write", usual.write),
            drain: duration("drain", usual.drain),
        },
        limits: Limits {
            header: number("header").unwrap_or(usual_limits.header),
            header_fields: number("header_fields").unwrap_or(usual_limits.header_fields),
            uri: number("uri").unwrap_or(usual_limits.uri),
            h2_streams: limits
                .value::<u64>("h2_streams")
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(usual_limits.h2_streams),
            connections: number("connections"),
            requests: number("requests"),
            buffered: number("buffered"),
            connections_per_ip: number("connections_per_ip"),
        },
    };
    if spec.limits.uri > spec.limits.header {
        decoder.push(
            Problem::error(
                limits.span_of(if limits.has("uri") { "uri" } else { "header" }),
                "`uri` is larger than `header`",
            )
            .label("the target of a request is a part of its head"),
        );
    }
    if let (Some(all), Some(one)) = (spec.limits.connections, spec.limits.connections_per_ip)
        && one > all
    {
        decoder.push(
            Problem::error(
                limits.span_of("connections_per_ip"),
                "`connections_per_ip` is larger than `connections`",
            )
            .also(limits.span_of("connections"), "which is this"),
        );
    }
    let value = |at: At<SocketAddr>| at.value;
    (spec, Beside { metrics: metrics.map(value), ready: ready.map(value) })
}

pub(super) fn is_empty_list(source: &str) -> bool {
    source.strip_prefix('[').and_then(|s| s.strip_suffix(']')).is_some_and(|inner| inner.trim().is_empty())
}

fn trusted(decoder: &mut Decoder<'_>, listen: &Fields) -> Vec<IpNet> {
    let nets: Vec<At<IpNet>> = listen.list("trusted_proxies").unwrap_or_default();
    for all in nets.iter().filter(|at| at.value.prefix_len() == 0) {
        decoder.push(
            Problem::warning(all.span.clone(), format!("{} lets every client say who it is", all.value))
                .help("list the addresses of the proxies in front, nothing else"),
        );
    }
    nets.into_iter().map(|at| at.value).collect()
}

fn trusted_header(decoder: &mut Decoder<'_>, listen: &Fields) -> TrustedHeader {
    let Some(word) = listen.value::<&'static str>("trusted_header") else { return TrustedHeader::default() };
    if !listen.has("trusted_proxies") {
        decoder.push(
            Problem::error(listen.span_of("trusted_header"), "`trusted_header` does nothing without `trusted_proxies`")
                .help("nobody is believed when they say who their client is; list the proxies in front, or take this line out"),
        );
    }
    TrustedHeader::from_word(word).unwrap_or_default()
}

fn balancers(decoder: &mut Decoder<'_>, listen: &Fields) -> Vec<IpNet> {
    let nets: Vec<At<IpNet>> = listen.list("proxy_protocol").unwrap_or_default();
    for all in nets.iter().filter(|at| at.value.prefix_len() == 0) {
        decoder.push(
            Problem::error(
                all.span.clone(),
                format!("{} lets every client say who it is, and no other one in", all.value),
            )
            .help("list the addresses of the balancers in front, nothing else"),
        );
    }
    nets.into_iter().map(|at| at.value).collect()
}

/// Finds redirects that lead to their own route again.
fn endless_redirects(decoder: &mut Decoder<'_>, routes: &[Route], listen: &ListenSpec) {
    let nothing = || ActionSpec::Respond { status: 404, body: None, content_type: None };
    let specs: Vec<_> = routes.iter().map(|route| route.spec(nothing())).collect();
    let router = Router::new(&specs);
    for (index, route) in routes.iter().enumerate() {
        let Some(Action::Redirect { url, spec }) = &route.action else { continue };
        if spec.pattern.is_some() || !route.when.is_always() {
            continue; // where it leads is up to the request
        }
        let (ours, usual) = match (url.value.tls, listen.https.is_empty()) {
            (true, false) => (&listen.https, 443),
            (false, true) => (&listen.http, 80),
            _ => continue,
        };
        let port = url.value.port.unwrap_or(usual);
        if !ours.iter().any(|address| address.port() == port) {
            continue;
        }
        let target = url.value.path.split('?').next().unwrap_or_default();
        let target = if target.is_empty() { &*route.path } else { target };
        let Ok(target) = path::normalise(target) else { continue };
        let facts = Facts { method: &Method::GET, headers: &HeaderMap::new(), query: None };
        if router
            .route(&url.value.host.to_string(), &target, &facts)
            .is_some_and(|matched| matched.index == index)
        {
            let problem =
                Problem::error(url.span.clone(), format!("route `{}` redirects to itself", route.key.value))
                    .label("clients would go round in circles");
            decoder.push(match url.value.tls {
                true => problem.help("http is redirected to https without any route"),
                false => problem,
            });
        }
    }
}

fn names_proven_by_builtin(plans: &[super::CertificatePlan], defaults: &Defaults) -> bool {
    let by_default = matches!(&defaults.dns, Slot::Given(dns) if dns.value.kind == ProviderKind::Builtin);
    by_default || !certificates::challenge_names(plans).is_empty()
}

/// Says where `builtin` is used without a responder.
fn needs_responder(decoder: &mut Decoder<'_>, file: &Fields) {
    let sections: Vec<At<Fields>> = file.list("certificates").unwrap_or_default();
    for fields in std::iter::once(file).chain(sections.iter().map(|at| &at.value)) {
        let Some(dns) = fields.value::<Fields>("dns") else { continue };
        if dns.value::<String>("provider").as_deref() == Some("builtin") {
            decoder.push(
                Problem::error(dns.span_of("provider"), "provider `builtin` needs a [responder] section").help(
                    "for example [responder] listen = [\"203.0.113.7:53\"], nameservers = [{ name = \"ns.example.net\", addresses = [\"203.0.113.7\"] }]",
                ),
            );
        }
    }
}

fn default_sni(decoder: &mut Decoder<'_>, listen: &Fields, wanted: &[Wanted]) {
    let Some(name) = listen.slot::<HostName>("default_sni").given() else { return };
    let host = HostPattern::Exact(name.value);
    if !wanted.iter().flat_map(|w| &w.names).any(|pattern| pattern.covers(&host)) {
        decoder.push(
            Problem::error(name.span, format!("no certificate is for `{host}`"))
                .help("`default_sni` is a name of one of the certificates"),
        );
    }
}

fn something_to_do(
    decoder: &mut Decoder<'_>,
    file: &Fields,
    routes: &[Route],
    wanted: &[Wanted],
    listen: &ListenSpec,
) {
    let place: Span = file.span_of("routes");
    if !file.has("routes") && !file.has("certificates") {
        decoder.push(Problem::error(0..0, "there is nothing to serve").help(
            "the smallest useful file is one route: [routes] \"app.example.com\" = \"http://127.0.0.1:3000\"",
        ));
    } else if routes.is_empty() && decoder.problems.is_empty() {
        decoder.push(Problem::warning(place, "there are no routes: every request is answered with 404"));
    } else if wanted.is_empty() && !listen.https.is_empty() && decoder.problems.is_empty() {
        let problem = Problem::warning(place, "there is no certificate, so no client can come in by https");
        decoder
            .push(problem.help("routes for `*` need a [[certificates]] section that says for which names"));
    }
}

fn access_log(log: &Fields) -> AccessLogSpec {
    match log.any("access") {
        Some(Value::Word("off")) => AccessLogSpec::Off,
        Some(Value::Table(table)) => {
            table.value::<PathBuf>("file").map_or(AccessLogSpec::Stdout, AccessLogSpec::File)
        }
        _ => AccessLogSpec::Stdout,
    }
}
