//! `[[expect]]`: requests, and what must become of them.

use http::{HeaderMap, HeaderValue, Method};

use super::blame::refusal;
use super::conditions::header_name;
use super::decode::Decoder;
use super::error::Problem;
use super::routes::{Destination, destination};
use super::scalar::{self, Wrong};
use super::table::nearest;
use super::value::{At, Entry, Fields, Value};
use crate::proxy::Facts;

/// One test of the routes, run by `starlock check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The line of the request, counted from 1.
    pub line: usize,
    /// What is asked.
    pub request: ExpectRequest,
    /// What must become of it.
    pub want: Want,
}

/// A request as a client would make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectRequest {
    /// In upper case.
    pub method: Method,
    /// Whether it comes by `https`.
    pub tls: bool,
    /// Lower case, A-labels, no port, no brackets.
    pub host: String,
    /// The port, if one is written.
    pub port: Option<u16>,
    /// Path and query as written, at least `/`.
    pub target: String,
    /// Fields that conditions may look at.
    pub headers: HeaderMap,
}

/// What must become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// It reaches this upstream (one of the plan's, by name).
    To(String),
    /// Starlock itself answers with this status.
    Status(u16),
    /// It is sent to this URL.
    Redirect(String),
}

impl ExpectRequest {
    /// Parses the URL that a person asks about; a missing scheme is taken as `https`, a missing path as `/`.
    pub fn parse_url(url: &str) -> Result<Self, String> {
        let whole = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        Self::new(Method::GET, &whole).map_err(|wrong| match wrong.fix {
            Some(fix) => format!("{}; {fix}", wrong.why),
            None => wrong.why,
        })
    }

    /// What conditions look at.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            method: &self.method,
            headers: &self.headers,
            query: self.target.split_once('?').map(|(_, query)| query),
        }
    }

    fn new(method: Method, url: &str) -> Result<Self, Wrong> {
        let url = scalar::web_url(url)?;
        let target = if url.path.is_empty() { "/".to_owned() } else { url.path };
        let host = url.host.to_string();
        Ok(Self { method, tls: url.tls, host, port: url.port, target, headers: HeaderMap::new() })
    }
}

/// Reads all of them; `upstreams` are the names of those that exist.
pub(super) fn read(decoder: &mut Decoder<'_>, file: &Fields, upstreams: &[&str]) -> Vec<Expect> {
    let sections: Vec<At<Fields>> = file.list("expect").unwrap_or_default();
    sections.iter().filter_map(|section| one(decoder, &section.value, upstreams)).collect()
}

fn one(decoder: &mut Decoder<'_>, fields: &Fields, upstreams: &[&str]) -> Option<Expect> {
    let kinds: Vec<&str> = ["to", "status", "redirect"].into_iter().filter(|key| fields.has(key)).collect();
    if kinds.is_empty() {
        let help = "add one of to = \"upstream\", status = 404, redirect = \"https://...\"";
        decoder.push(Problem::error(fields.span.clone(), "[[expect]] expects nothing").help(help));
    } else if let [first, second, ..] = kinds[..] {
        decoder.push(
            Problem::error(fields.span_of(second), format!("[[expect]] has both `{first}` and `{second}`"))
                .label("one of them is too much")
                .also(fields.span_of(first), "beside this"),
        );
    }
    let want = want(decoder, fields, upstreams);
    let text: At<String> = fields.slot("request").given()?;
    let parsed = match text.value.split_once(' ') {
        Some((method, url))
            if !method.is_empty() && method.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-') =>
        {
            match Method::from_bytes(method.to_ascii_uppercase().as_bytes()) {
                Ok(method) => ExpectRequest::new(method, url.trim()),
                Err(_) => Err(Wrong::new("a method and a URL are wanted")),
            }
        }
        _ if text.value.contains('@') => Err(Wrong::new("a method and a URL are wanted")),
        _ => Err(Wrong::new("a method and a URL are wanted").fix(format!("write \"GET {}\"", text.value))),
    };
    let mut request = match parsed {
        Ok(request) => request,
        Err(wrong) => {
            decoder.push(refusal(
                &wrong,
                text.span,
                "`request` must be like \"GET https://example.com/\"",
                "request",
            ));
            return None;
        }
    };
    for Entry { key, value } in fields.value::<Vec<Entry>>("header").unwrap_or_default() {
        let name = header_name(decoder, &key);
        let (Some(name), Some(Value::Text(value))) = (name, value) else { continue };
        match HeaderValue::from_str(&value) {
            Ok(value) => drop(request.headers.append(name, value)),
            Err(_) => decoder.push(Problem::error(key.span, "this cannot be the value of a header")),
        }
    }
    let line = 1 + decoder.text.get(..text.span.start).unwrap_or_default().matches('\n').count();
    Some(Expect { line, request, want: want? })
}

fn want(decoder: &mut Decoder<'_>, fields: &Fields, upstreams: &[&str]) -> Option<Want> {
    if let Some(to) = fields.slot::<String>("to").given() {
        return match destination(&to.value) {
            Ok(Destination::Server(server)) => Some(Want::To(server.to_string())),
            Ok(Destination::Upstream(name)) if upstreams.contains(&name.as_str()) => Some(Want::To(name)),
            Ok(Destination::Upstream(name)) => {
                decoder.push(unknown_upstream(to.span, &name, upstreams));
                None
            }
            Err(wrong) => {
                decoder.push(refusal(
                    &wrong,
                    to.span,
                    "`to` must be the name of an upstream, or a URL",
                    "to",
                ));
                None
            }
        };
    }
    if let Some(status) = fields.value::<u64>("status") {
        return u16::try_from(status).ok().map(Want::Status);
    }
    let redirect: At<String> = fields.slot("redirect").given()?;
    match scalar::web_url(&redirect.value) {
        Ok(url) => {
            let path = if url.path.is_empty() { "/" } else { url.path.as_str() };
            Some(Want::Redirect(format!("{}{path}", url.origin())))
        }
        Err(wrong) => {
            decoder.push(refusal(&wrong, redirect.span, "`redirect` must be a URL", "redirect"));
            None
        }
    }
}

/// The problem of a destination that does not exist.
pub(super) fn unknown_upstream(span: super::error::Span, name: &str, upstreams: &[&str]) -> Problem {
    let problem = Problem::error(span, format!("there is no upstream `{name}`"));
    match nearest(name, upstreams.iter().copied()) {
        Some(near) => problem.label(format!("did you mean `{near}`?")),
        None if upstreams.is_empty() => problem
            .help(format!("add [upstreams.{name}] with servers = [\"http://...\"], or write the URL itself")),
        None => problem.help(format!("the upstreams are {}", upstreams.join(", "))),
    }
}
