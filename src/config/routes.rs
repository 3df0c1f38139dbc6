//! `[routes]`: keys that are hosts and paths, values that say what happens.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::blame::{Subject, refusal};
use super::decode::{Decoder, sorted};
use super::error::Problem;
use super::scalar::{self, WebUrl, Wrong};
use super::table::{Kind, Section};
use super::value::{At, Entry, Fields, Value};
use super::{conditions, forwarding, passed, policies, replies, sections};
use crate::balance::ServerSpec;
use crate::name::HostPattern;
use crate::policy::PolicySpec;
use crate::proxy::{ActionSpec, ConditionSpec, ForwardSpec, RedirectSpec, RouteHost, RouteSpec, path};

/// A route whose destination is not looked up yet.
pub(super) struct Route {
    pub(super) key: At<String>,
    pub(super) host: RouteHost,
    pub(super) path: Arc<str>,
    pub(super) when: ConditionSpec,
    pub(super) policy: PolicySpec,
    /// The server that `forward_auth` asks.
    pub(super) asks: Option<ServerSpec>,
    /// `None` if it is wrong; that was said.
    pub(super) action: Option<Action>,
}

/// What a route does.
pub(super) enum Action {
    /// Sends the request on.
    Forward(Box<Forward>),
    /// Hands the connection on as it is.
    Passthrough { to: At<Destination> },
    /// Sends the client to a URL.
    Redirect { url: At<WebUrl>, spec: RedirectSpec },
    /// Answers alone.
    Respond(ActionSpec),
}

/// How a request is sent on, with destinations that are not looked up yet.
pub(super) struct Forward {
    /// Each with its weight; at least one.
    pub(super) to: Vec<(At<Destination>, u32)>,
    /// Who gets copies, of how many of a hundred.
    pub(super) mirror: Option<(At<Destination>, u8)>,
    /// All else.
    pub(super) spec: ForwardSpec,
}

/// Where `to` points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Upstream(String),
    Server(ServerSpec),
}

impl Route {
    /// The route of the plan, with `upstream` as its destination.
    pub(super) fn spec(&self, action: ActionSpec) -> RouteSpec {
        RouteSpec {
            key: self.key.value.as_str().into(),
            host: self.host.clone(),
            path: self.path.clone(),
            when: self.when.clone(),
            policy: self.policy.clone(),
            action,
        }
    }

    /// Whether its host's TLS is somebody else's.
    pub(super) fn is_passed_through(&self) -> bool {
        matches!(self.action, Some(Action::Passthrough { .. }))
    }

    /// The host, if it is one that a certificate can name.
    pub(super) fn pattern(&self) -> Option<&HostPattern> {
        match &self.host {
            RouteHost::Pattern(pattern) => Some(pattern),
            RouteHost::Any => None,
        }
    }
}

impl Decoder<'_> {
    /// Decodes the table of routes.
    pub(super) fn hosts(&mut self, table: &DeTable<'_>, element: Kind) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (key, node) in sorted(table) {
            let name: &str = key.get_ref();
            if self.is_unquoted_host(key, node, &sections::ROUTE, "routes") {
                continue;
            }
            let value = match node.get_ref() {
                DeValue::Array(array) => {
                    if array.is_empty() {
                        let message = format!("route `{name}` is an empty list");
                        self.push(Problem::error(node.span(), message).help("list at least one table"));
                    }
                    let place = format!("route `{name}`");
                    let subject = Subject { name, place: &place, each: true };
                    let good =
                        |node| Some(At { value: self.value(node, element, &subject)?, span: node.span() });
                    Some(Value::List(array.iter().filter_map(good).collect()))
                }
                DeValue::String(_) | DeValue::Table(_) => {
                    let place = format!("route `{name}`");
                    self.value(node, element, &Subject { name, place: &place, each: false })
                }
                other => {
                    let message = format!("route `{name}` must be an upstream, a URL, or a table");
                    let problem = Problem::error(node.span(), message);
                    self.push(match other {
                        DeValue::Integer(status) => problem
                            .label("this is a number")
                            .help(format!("to answer with a status, write {{ respond = {status} }}")),
                        _ => problem.help("for example \"http://127.0.0.1:3000\", or { respond = 404 }"),
                    });
                    None
                }
            };
            entries.push(Entry { key: At { value: name.to_owned(), span: key.span() }, value });
        }
        entries
    }

    /// Whether `key` is the front of a host that TOML took apart, since it has no quotes; that was said then. A table behind it
    /// that has only keys of `section` is none.
    pub(super) fn is_unquoted_host(
        &mut self,
        key: &Spanned<Cow<'_, str>>,
        node: &Spanned<DeValue<'_>>,
        section: &Section,
        header: &str,
    ) -> bool {
        let DeValue::Table(inner) = node.get_ref() else { return false };
        let known =
            |key: &Spanned<Cow<'_, str>>| section.keys.iter().any(|known| known.name == key.get_ref());
        let host = self.goes_on_with_a_dot(key) && !inner.keys().all(known);
        if host {
            self.unquoted(inner, key.get_ref(), header);
        }
        host
    }

    /// Whether `key` has no quotes and TOML reads a dot behind it.
    fn goes_on_with_a_dot(&self, key: &Spanned<Cow<'_, str>>) -> bool {
        let span = key.span();
        let quoted = self.text.get(span.clone()).is_some_and(|k| k.starts_with(['"', '\'']));
        let after = self.text.get(span.end..).unwrap_or_default();
        !quoted && after.trim_start_matches([' ', '\t']).starts_with('.')
    }

    /// Says which host was meant by keys that TOML took apart at their dots.
    fn unquoted(&mut self, table: &DeTable<'_>, front: &str, header: &str) {
        for (key, node) in sorted(table) {
            let whole = format!("{front}.{}", key.get_ref());
            match node.get_ref() {
                DeValue::Table(inner) if self.goes_on_with_a_dot(key) => self.unquoted(inner, &whole, header),
                _ => {
                    let end = key.span().end;
                    let start = match self.text.get(..end) {
                        Some(before) if before.ends_with(&whole) => end - whole.len(),
                        _ => key.span().start,
                    };
                    let in_header =
                        self.text.get(end..).is_some_and(|after| after.trim_start().starts_with(']'));
                    let fix = if in_header {
                        format!("[{header}.\"{whole}\"]")
                    } else {
                        format!("\"{whole}\" = ...")
                    };
                    self.push(
                        Problem::error(start..end, format!("host `{whole}` needs quotes"))
                            .label("TOML reads each dot as a table inside a table")
                            .help(format!("write {fix}")),
                    );
                }
            }
        }
    }
}

/// Reads keys and values of all routes; duplicates are found on the normalised keys.
pub(super) fn read(decoder: &mut Decoder<'_>, entries: Vec<Entry>) -> Vec<Route> {
    let mut routes = Vec::new();
    let mut seen: HashMap<(RouteHost, Arc<str>), At<String>> = HashMap::new();
    for Entry { key, value } in entries {
        let (host, path) = match key_parts(&key.value) {
            Ok(parts) => parts,
            Err(wrong) => {
                let message = format!("route `{}` is not a host with an optional path", key.value);
                decoder.push(refusal(&wrong, key.span.clone(), &message, &key.value));
                for fields in tables(&value) {
                    action(decoder, &key, None, fields); // for its problems
                }
                continue;
            }
        };
        if let Some(first) = seen.get(&(host.clone(), path.clone())) {
            decoder.push(
                Problem::error(key.span.clone(), format!("route `{}` is there twice", key.value))
                    .label("after normalisation this is the same host and path")
                    .also(first.span.clone(), "as here"),
            );
        } else {
            seen.insert((host.clone(), path.clone()), key.clone());
        }
        let variants = tables(&value);
        if variants.is_empty() {
            let (when, policy) = (ConditionSpec::default(), PolicySpec::default());
            routes.push(Route { key, host, path, when, policy, asks: None, action: None });
            continue;
        }
        let several = variants.len() > 1;
        let mut always: Option<&Fields> = None;
        for fields in variants {
            let when = conditions::read(decoder, fields);
            if several && fields.has("passthrough") {
                let problem = Problem::error(fields.span_of("passthrough"), "`passthrough` stands alone");
                decoder.push(
                    problem.help("who passes a connection through sees no request that could be chosen by"),
                );
            }
            if let Some(first) = always {
                let message = format!("this table of route `{}` is never reached", key.value);
                decoder.push(
                    Problem::error(fields.span.clone(), message)
                        .also(first.span.clone(), "this one has no condition and takes every request")
                        .help("the table without `when` comes last"),
                );
            } else if when.is_always() {
                always = Some(fields);
            }
            let action = action(decoder, &key, Some(&path), fields);
            let (policy, asks) = policies::read(decoder, fields);
            routes.push(Route {
                key: key.clone(),
                host: host.clone(),
                path: path.clone(),
                when,
                policy,
                asks,
                action,
            });
        }
    }
    routes
}

/// The tables of a route: one, or those of its list.
fn tables(value: &Option<Value>) -> Vec<&Fields> {
    fn table(value: &Value) -> Option<&Fields> {
        if let Value::Table(fields) = value { Some(fields) } else { None }
    }
    match value {
        Some(Value::List(list)) => list.iter().filter_map(|at| table(&at.value)).collect(),
        Some(value) => table(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Takes `host/path` apart and normalises both.
fn key_parts(key: &str) -> Result<(RouteHost, Arc<str>), Wrong> {
    if let Some((_, rest)) = key.split_once("://") {
        return Err(
            Wrong::new("a route has no scheme").fix(format!("write \"{}\"", rest.trim_end_matches('/')))
        );
    }
    let (host, path) = key.split_at(key.find('/').unwrap_or(key.len()));
    let host = match host {
        "" => {
            let fix = format!("for every host write \"*{path}\"");
            return Err(Wrong::new("the host is missing").fix(fix));
        }
        "*" => RouteHost::Any,
        host => RouteHost::Pattern(route_host(host, path)?),
    };
    Ok((host, normal_path(path)?))
}

fn route_host(host: &str, path: &str) -> Result<HostPattern, Wrong> {
    HostPattern::parse(host).map_err(|error| {
        let port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        match port {
            Some((bare, _)) if HostPattern::parse(bare).is_ok() => Wrong::new("a route has no port")
                .fix(format!("write \"{bare}{path}\"; ports stand in [listen]")),
            _ => scalar::bad_name(&error),
        }
    })
}

/// The path of a route: normalised as those of requests are, without a trailing slash.
fn normal_path(path: &str) -> Result<Arc<str>, Wrong> {
    if path.is_empty() {
        return Ok("/".into());
    }
    if let Some(mark) = path.find(['?', '#']) {
        return Err(Wrong::new(format!("a route's path ends before `{}`", &path[mark..=mark])));
    }
    if let Some(prefix) = path.strip_suffix('*') {
        let fix = format!(
            "leave `*` off: \"{}\" already matches everything below it",
            prefix.trim_end_matches('/')
        );
        return Err(Wrong::new("a path is always a prefix").fix(fix));
    }
    let normal = path::normalise(path).map_err(|error| Wrong::new(error.to_string()))?;
    match normal.trim_end_matches('/') {
        "" => Ok("/".into()),
        trimmed => Ok(trimmed.into()),
    }
}

/// Keys of a route that belong to one action.
const OWNERS: [(&str, &str); 9] = [
    ("strip_prefix", "to"),
    ("stick", "to"),
    ("rewrite", "to"),
    ("mirror", "to"),
    ("timeouts", "to"),
    ("status", "redirect"),
    ("match", "redirect"),
    ("body", "respond"),
    ("content_type", "respond"),
];

fn action(
    decoder: &mut Decoder<'_>,
    key: &At<String>,
    path: Option<&Arc<str>>,
    fields: &Fields,
) -> Option<Action> {
    let kinds: Vec<&str> =
        ["to", "redirect", "respond", "passthrough"].into_iter().filter(|key| fields.has(key)).collect();
    let [kind] = kinds[..] else {
        let problem = match kinds[..] {
            [] => Problem::error(fields.span.clone(), format!("route `{}` does nothing", key.value))
                .help("give it one of `to`, `redirect`, `respond`, `passthrough`"),
            [first, second, ..] => Problem::error(
                fields.span_of(second),
                format!("route `{}` has both `{first}` and `{second}`", key.value),
            )
            .label("one of them is too much")
            .also(fields.span_of(first), "beside this"),
            [_] => return None,
        };
        decoder.push(problem);
        return None;
    };
    let mut fits = true;
    for (extra, owner) in OWNERS {
        if fields.has(extra) && kind != owner && kind != "passthrough" {
            fits = false;
            let message = format!("`{extra}` goes with `{owner}`, and route `{}` has `{kind}`", key.value);
            let problem = Problem::error(fields.span_of(extra), message);
            decoder.push(match (extra, kind) {
                ("match", "to") => {
                    problem.help("to change the path, write rewrite = { match = ..., to = ... }")
                }
                ("status", "respond") => problem.help("the status is the value of `respond` itself"),
                _ => problem,
            });
        }
    }
    let action = match kind {
        "to" => forward(decoder, path, fields),
        "redirect" => replies::redirect(decoder, fields),
        "passthrough" => passed::read(decoder, key, path, fields),
        _ => replies::respond(decoder, fields),
    };
    action.filter(|_| fits)
}

fn forward(decoder: &mut Decoder<'_>, path: Option<&Arc<str>>, fields: &Fields) -> Option<Action> {
    let strip_prefix = fields.value::<bool>("strip_prefix").unwrap_or(false);
    if strip_prefix && path.is_some_and(|path| &**path == "/") {
        decoder.push(
            Problem::error(fields.span_of("strip_prefix"), "`strip_prefix` on a route without a path")
                .label("there is nothing to take off"),
        );
    }
    let spec = ForwardSpec {
        to: Vec::new(),
        stick: forwarding::stick(decoder, fields),
        strip_prefix,
        rewrite: forwarding::rewrite(decoder, fields),
        mirror: None,
        timeouts: forwarding::time_outs(fields),
    };
    let mirror = forwarding::mirror(decoder, fields);
    let to = forwarding::shares(decoder, fields)?;
    Some(Action::Forward(Box::new(Forward { to, mirror, spec })))
}

/// A destination and its place; what is wrong with it is said.
pub(super) fn read_destination(decoder: &mut Decoder<'_>, text: At<String>) -> Option<At<Destination>> {
    match destination(&text.value) {
        Ok(value) => Some(At { value, span: text.span }),
        Err(wrong) => {
            let message = "a destination must be the name of an upstream, or a URL";
            decoder.push(refusal(&wrong, text.span, message, "to"));
            None
        }
    }
}

/// What `text` after `to` points at: with `://` or `unix:` a server, else an upstream's name.
pub(super) fn destination(text: &str) -> Result<Destination, Wrong> {
    if text.contains("://") || text.starts_with("unix:") {
        return scalar::server(text).map(Destination::Server);
    }
    if is_upstream_name(text) {
        return Ok(Destination::Upstream(text.to_owned()));
    }
    let url = format!("http://{text}");
    Err(match scalar::server(&url) {
        Ok(_) => Wrong::new("a URL needs its scheme").fix(format!("write \"{url}\"")),
        Err(_) => Wrong::new("names have a-z, 0-9, `_` and `-`"),
    })
}

/// Whether `text` can name an upstream.
pub(super) fn is_upstream_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(key: &str) -> (String, String) {
        let (host, path) = key_parts(key).unwrap();
        let host = match host {
            RouteHost::Any => "*".to_owned(),
            RouteHost::Pattern(pattern) => pattern.to_string(),
        };
        (host, path.to_string())
    }

    #[test]
    fn keys_are_normalised() {
        let same = |key: &str, host: &str, path: &str| {
            assert_eq!(parts(key), (host.to_owned(), path.to_owned()), "{key}");
        };
        same("App.Example.COM.", "app.example.com", "/");
        same("app.example.com/", "app.example.com", "/");
        same("bücher.example/api/", "xn--bcher-kva.example", "/api");
        same("*", "*", "/");
        same("*/health", "*", "/health");
        same("*.example.com/a/b", "*.example.com", "/a/b");
        same("[::1]/x", "::1", "/x");
        same("127.0.0.1", "127.0.0.1", "/");
        for bad in [
            "https://a.example",
            "a.example:443",
            "/api",
            "a.example/x?y",
            "a.example/x/*",
            "*.*.example.com",
            "a b",
        ] {
            assert!(key_parts(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations() {
        assert_eq!(destination("app_1-x"), Ok(Destination::Upstream("app_1-x".into())));
        assert!(matches!(destination("http://127.0.0.1:4000"), Ok(Destination::Server(_))));
        assert_eq!(
            destination("127.0.0.1:4000").unwrap_err().fix.unwrap(),
            "write \"http://127.0.0.1:4000\""
        );
        assert!(destination("App!").is_err());
        assert!(destination("ws://a").unwrap_err().fix.unwrap().contains("https://"));
    }
}
