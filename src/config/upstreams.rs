//! `[upstreams]`: servers by name, and the routes that lead to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::balancing;
use super::blame::{refusal, toml_key};
use super::decode::Decoder;
use super::error::Problem;
use super::expect::unknown_upstream;
use super::passed;
use super::references::Reference;
use super::resolve::is_empty_list;
use super::routes::{self, Action, Destination, Route};
use super::scalar;
use super::value::{At, Entry, Fields, Value};
use crate::balance::{
    ProxyProtocol, RetrySpec, ServerSpec, TlsHttp, TlsIdentity, TlsSpec, Transport, UpstreamSpec,
    UpstreamTimeouts,
};
use crate::proxy::{ActionSpec, ForwardSpec, MirrorSpec, RouteSpec, ShareSpec};
use crate::secret::SecretSource;

/// Time-outs that an upstream may have of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usual {
    timeouts: UpstreamTimeouts,
    attempt: Duration,
}

impl Default for Usual {
    fn default() -> Self {
        Self { timeouts: UpstreamTimeouts::default(), attempt: RetrySpec::default().attempt }
    }
}

/// The time-outs that a section says, with `usual` for the others.
pub(super) fn time_outs(section: &Fields, usual: Usual) -> Usual {
    let Usual { timeouts, attempt } = usual;
    Usual {
        timeouts: UpstreamTimeouts {
            connect: section.value("connect").unwrap_or(timeouts.connect),
            response: section.value("response").unwrap_or(timeouts.response),
            stall: section.value("stall").unwrap_or(timeouts.stall),
            upstream_idle: section.value("upstream_idle").unwrap_or(timeouts.upstream_idle),
        },
        attempt: section.value("attempt").unwrap_or(attempt),
    }
}

/// An `[upstreams.NAME]` section.
pub(super) struct Declared {
    pub(super) name: At<String>,
    /// `None` if it is wrong; that was said.
    pub(super) spec: Option<UpstreamSpec>,
}

/// Reads all sections, used or not.
pub(super) fn declared(decoder: &mut Decoder<'_>, file: &Fields, usual: Usual) -> Vec<Declared> {
    let entries: Vec<Entry> = file.value("upstreams").unwrap_or_default();
    let mut all = Vec::new();
    for Entry { key, value } in entries {
        if !routes::is_upstream_name(&key.value) {
            let message = format!("`{}` cannot name an upstream", key.value);
            decoder.push(Problem::error(key.span.clone(), message).label("names have a-z, 0-9, `_` and `-`"));
        }
        let spec = match value {
            Some(Value::Table(fields)) => upstream(decoder, &key, &fields, usual),
            _ => None,
        };
        all.push(Declared { name: key, spec });
    }
    all
}

fn upstream(
    decoder: &mut Decoder<'_>,
    key: &At<String>,
    fields: &Fields,
    usual: Usual,
) -> Option<UpstreamSpec> {
    let tables: Vec<At<Fields>> = fields.list("servers")?;
    if decoder.text.get(fields.span_of("servers")).is_some_and(is_empty_list) {
        let message = format!("`servers` of [upstreams.{}] is empty", toml_key(&key.value));
        decoder
            .push(Problem::error(fields.span_of("servers"), message).label("an upstream needs at least one"));
    }
    let mut servers: Vec<At<ServerSpec>> = Vec::new();
    for table in tables {
        let Some(url) = table.value.slot::<String>("url").given() else { continue };
        match scalar::server(&url.value) {
            Ok(server) => match servers.iter().find(|other| other.value.place() == server.place()) {
                Some(first) => decoder.push(
                    Problem::error(url.span, format!("{server} is there twice"))
                        .label("again here")
                        .also(first.span.clone(), "first here"),
                ),
                None => {
                    servers.push(At { value: balancing::shares(&table.value, server), span: url.span });
                }
            },
            Err(wrong) => {
                decoder.push(refusal(
                    &wrong,
                    url.span,
                    "a server must be a URL such as \"http://10.0.0.11:3000\"",
                    "url",
                ));
            }
        }
    }
    let timeouts = fields.value::<Fields>("timeouts").unwrap_or_else(Fields::empty);
    let Usual { timeouts, attempt } = time_outs(&timeouts, usual);
    transport(decoder, key, fields, &mut servers);
    let spec = UpstreamSpec {
        balance: balancing::balance(decoder, fields),
        sticky: balancing::sticky(decoder, fields),
        slow_start: fields.value("slow_start").unwrap_or(Duration::ZERO),
        passive: balancing::passive(decoder, fields),
        active: balancing::active(decoder, fields),
        retries: balancing::retries(fields, attempt),
        ..UpstreamSpec::new(key.value.as_str(), servers.into_iter().map(|at| at.value).collect(), timeouts)
    };
    if let (Some(first), true) = (
        fields.list::<Fields>("servers").and_then(|list| list.into_iter().next()),
        !spec.servers.is_empty() && spec.servers.iter().all(|s| s.backup),
    ) {
        let message = format!("every server of [upstreams.{}] is a backup", toml_key(&key.value));
        decoder.push(Problem::warning(first.span, message).help("`backup = true` means nothing then"));
    }
    Some(spec)
}

/// Reads what is said of the way to the servers, and gives it to them.
fn transport(decoder: &mut Decoder<'_>, key: &At<String>, fields: &Fields, servers: &mut [At<ServerSpec>]) {
    let version = match fields.value::<&str>("proxy_protocol") {
        Some("v1") => Some(ProxyProtocol::V1),
        Some(_) => Some(ProxyProtocol::V2),
        None => None,
    };
    for server in &mut *servers {
        server.value.proxy_protocol = version;
    }
    let Some(table) = fields.value::<Fields>("tls") else { return };
    let spec = Arc::new(tls(decoder, key, &table));
    let mut used = false;
    for server in servers {
        if let Transport::Tls(held) = &mut server.value.transport {
            *held = spec.clone();
            used = true;
        }
    }
    if !used {
        let message = format!("`tls` of [upstreams.{}] is for nothing", toml_key(&key.value));
        decoder.push(
            Problem::error(fields.span_of("tls"), message)
                .help("TLS is spoken to servers whose URL begins with https://"),
        );
    }
}

fn tls(decoder: &mut Decoder<'_>, key: &At<String>, table: &Fields) -> TlsSpec {
    let path = |name: &str| table.value::<PathBuf>(name);
    let identity = match (path("cert"), path("key")) {
        (Some(cert), Some(key)) => Some(TlsIdentity { cert, key }),
        _ => None,
    };
    for (there, missing) in [("cert", "key"), ("key", "cert")] {
        if table.has(there) && !table.has(missing) {
            let message = format!("`tls.{there}` needs `tls.{missing}`");
            decoder.push(
                Problem::error(table.span_of(there), message).help("a certificate is presented with its key"),
            );
        }
    }
    for name in ["ca", "cert"] {
        if let Some(at) = table.slot::<PathBuf>(name).given() {
            decoder.references.push((at.span, Reference::Certificates(at.value)));
        }
    }
    if let Some(at) = table.slot::<PathBuf>("key").given() {
        decoder.references.push((at.span, Reference::Secret(SecretSource::File(at.value))));
    }
    let skip_verify = table.value("danger_skip_verify").unwrap_or(false);
    if skip_verify {
        let message = format!("certificates of [upstreams.{}] are not verified", toml_key(&key.value));
        decoder.push(
            Problem::warning(table.span_of("danger_skip_verify"), message)
                .label("whoever gets between Starlock and these servers reads and changes everything")
                .help("name the root that signed their certificates: ca = \"/path/root.pem\""),
        );
        if table.has("ca") {
            let message = "`ca` and `danger_skip_verify` contradict each other";
            decoder.push(Problem::error(table.span_of("ca"), message).help("leave `danger_skip_verify` out"));
        }
    }
    TlsSpec {
        ca: path("ca"),
        identity,
        sni: table.value("sni"),
        skip_verify,
        http: match table.value::<&str>("http") {
            Some("1.1") => TlsHttp::One,
            Some("2") => TlsHttp::Two,
            _ => TlsHttp::Auto,
        },
    }
}

/// Looks up where routes go. Gives the routes of the plan, and the upstreams that are used, sorted by name.
pub(super) fn destinations(
    decoder: &mut Decoder<'_>,
    routes: &[Route],
    declared: &[Declared],
    usual: Usual,
) -> (Vec<RouteSpec>, Vec<UpstreamSpec>) {
    let names: Vec<&str> = declared.iter().map(|d| d.name.value.as_str()).collect();
    let mut used: BTreeMap<Arc<str>, UpstreamSpec> = BTreeMap::new();
    let mut specs = Vec::new();
    let direct = |server: &ServerSpec| UpstreamSpec {
        retries: RetrySpec { attempt: usual.attempt, ..RetrySpec::default() },
        ..UpstreamSpec::new(server.to_string(), vec![server.clone()], usual.timeouts)
    };
    for route in routes {
        if let Some(server) = &route.asks {
            let spec = direct(server);
            used.entry(spec.name.clone()).or_insert(spec);
        }
        let action = match &route.action {
            None => continue,
            Some(Action::Respond(action)) => action.clone(),
            Some(Action::Redirect { spec, .. }) => ActionSpec::Redirect(spec.clone()),
            Some(Action::Forward(forward)) => {
                let mut find = |to: &At<Destination>| find(decoder, to, declared, &names, &direct, &mut used);
                let shares = forward
                    .to
                    .iter()
                    .map(|(to, weight)| Some(ShareSpec { upstream: find(to)?, weight: *weight }));
                let to: Vec<Option<ShareSpec>> = shares.collect();
                let mirror = forward
                    .mirror
                    .as_ref()
                    .map(|(to, percent)| Some(MirrorSpec { upstream: find(to)?, percent: *percent }));
                let Some(to) = to.into_iter().collect() else { continue };
                ActionSpec::Forward(ForwardSpec { to, mirror: mirror.flatten(), ..forward.spec.clone() })
            }
            Some(Action::Passthrough { to }) => {
                let Some(upstream) = find(decoder, to, declared, &names, &direct, &mut used) else {
                    continue;
                };
                if let (Destination::Upstream(_), Some(spec)) = (&to.value, used.get(&upstream)) {
                    passed::check_upstream(decoder, route, to, spec);
                }
                ActionSpec::Passthrough { upstream }
            }
        };
        specs.push(route.spec(action));
    }
    for idle in declared.iter().filter(|d| !used.contains_key(d.name.value.as_str())) {
        decoder.push(
            Problem::warning(
                idle.name.span.clone(),
                format!("no route leads to upstream `{}`", idle.name.value),
            )
            .help("it is not used"),
        );
    }
    (specs, used.into_values().collect())
}

/// The name of the upstream that `to` means, which is used from now on; `None` if there is none, which is said.
fn find(
    decoder: &mut Decoder<'_>,
    to: &At<Destination>,
    declared: &[Declared],
    names: &[&str],
    direct: &impl Fn(&ServerSpec) -> UpstreamSpec,
    used: &mut BTreeMap<Arc<str>, UpstreamSpec>,
) -> Option<Arc<str>> {
    match &to.value {
        Destination::Server(server) => {
            let spec = direct(server);
            let name = spec.name.clone();
            used.entry(name.clone()).or_insert(spec);
            Some(name)
        }
        Destination::Upstream(wanted) => {
            let Some(declared) = declared.iter().find(|d| d.name.value == *wanted) else {
                decoder.push(unknown_upstream(to.span.clone(), wanted, names));
                return None;
            };
            let name: Arc<str> = wanted.as_str().into();
            if let Some(spec) = &declared.spec {
                used.insert(name.clone(), spec.clone());
            }
            Some(name)
        }
    }
}
