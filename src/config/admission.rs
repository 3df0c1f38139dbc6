//! The keys of a route that say who may come, and how often.

use std::time::Duration;

use http::HeaderName;

use super::blame::refusal;
use super::decode::Decoder;
use super::error::Problem;
use super::references::Reference;
use super::scalar::{self, Wrong};
use super::value::{At, Entry, Fields, Value};
use crate::balance::ServerSpec;
use crate::policy::{BasicAuthSpec, ConcurrencySpec, ForwardAuthSpec, PolicySpec, RateKey, RateSpec};

/// Fields that belong to a connection, or say what Starlock itself knows: nobody else sets them.
const RESERVED: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-real-ip",
    "cookie",
];

/// Reads them into `spec`. Gives the server that `forward_auth` asks.
pub(super) fn read(decoder: &mut Decoder<'_>, fields: &Fields, spec: &mut PolicySpec) -> Option<ServerSpec> {
    spec.rate = fields.value("rate_limit").and_then(|fields| rate(decoder, &fields));
    spec.concurrency = fields.value("concurrency").and_then(|fields| concurrency(decoder, &fields));
    spec.basic_auth = fields.value("basic_auth").and_then(|fields| basic_auth(decoder, &fields));
    let (server, forward) =
        fields.value("forward_auth").and_then(|fields| forward_auth(decoder, &fields)).unzip();
    spec.forward_auth = forward;
    if fields.has("basic_auth") && fields.has("forward_auth") {
        decoder.push(
            Problem::error(
                fields.span_of("forward_auth"),
                "a route has `basic_auth` or `forward_auth`, not both",
            )
            .also(fields.span_of("basic_auth"), "beside this"),
        );
    }
    server
}

fn rate(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<RateSpec> {
    let whole = fields.slot::<String>("rate").given();
    let apart = ["requests", "per"].into_iter().filter(|key| fields.has(key)).count();
    if fields.has("rate") == (apart > 0) || apart == 1 {
        let problem =
            Problem::error(fields.span.clone(), "`rate_limit` needs a number of requests and a time");
        decoder.push(problem.help("write \"100/1m\", or { requests = 100, per = \"1m\" }"));
        return None;
    }
    let (requests, per) = match whole {
        Some(rate) => match pace(&rate.value) {
            Ok(pace) => pace,
            Err(wrong) => {
                decoder.push(refusal(&wrong, rate.span, "`rate` must be requests in a time", "rate"));
                return None;
            }
        },
        None => (u32::try_from(fields.value::<u64>("requests")?).ok()?, fields.value("per")?),
    };
    let by = match fields.slot::<String>("by").given() {
        None if fields.has("by") => return None,
        None => RateKey::Ip,
        Some(by) => match by.value.as_str() {
            "ip" => RateKey::Ip,
            "route" => RateKey::Route,
            text => match text.strip_prefix("header:") {
                Some(name) => {
                    RateKey::Header(header_name(decoder, &At { value: name.to_owned(), span: by.span })?)
                }
                None => {
                    decoder.push(
                        Problem::error(by.span, "`by` must be ip, route or header:NAME")
                            .help("for example \"header:X-Api-Key\""),
                    );
                    return None;
                }
            },
        },
    };
    let burst = fields.value::<u64>("burst").and_then(|burst| u32::try_from(burst).ok());
    Some(RateSpec { requests, per, burst: burst.unwrap_or(requests), by })
}

/// `100/1m`, or `100/m`.
fn pace(text: &str) -> Result<(u32, Duration), Wrong> {
    let help = |wrong: &str| Wrong::new(wrong).fix("write it like \"100/1m\"");
    let (requests, per) = text.split_once('/').ok_or_else(|| help("there is no `/`"))?;
    let requests = requests.trim().parse().ok().filter(|n| (1..=1_000_000).contains(n));
    let requests = requests.ok_or_else(|| help("the number must be from 1 to 1000000"))?;
    let per = per.trim();
    let one = if per.starts_with(|first: char| first.is_ascii_digit()) { "" } else { "1" };
    match scalar::duration(&format!("{one}{per}"))? {
        Duration::ZERO => Err(help("this is no time at all")),
        per => Ok((requests, per)),
    }
}

fn concurrency(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<ConcurrencySpec> {
    let by = fields.slot::<String>("by").given();
    let by_ip = match by.as_ref().map(|by| by.value.as_str()) {
        None | Some("route") => false,
        Some("ip") => true,
        Some(_) => {
            let problem = Problem::error(fields.span_of("by"), "`by` must be route or ip");
            decoder.push(problem.help("requests at a time are not counted by header"));
            return None;
        }
    };
    Some(ConcurrencySpec { requests: usize::try_from(fields.value::<u64>("requests")?).ok()?, by_ip })
}

fn basic_auth(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<BasicAuthSpec> {
    let entries: Vec<Entry> = fields.value("users").unwrap_or_default();
    let file = fields.slot("file").given();
    if !fields.has("file") && entries.is_empty() && fields.any("users").is_some() == fields.has("users") {
        let problem = Problem::error(fields.span.clone(), "`basic_auth` names no user");
        decoder.push(
            problem.help("give it `users`, a name and a hash each, or a `file` as `htpasswd -B` writes it"),
        );
    }
    let mut users = Vec::new();
    for Entry { key, value } in entries {
        if let Err(error) = crate::policy::check_user(&key.value) {
            decoder.push(Problem::error(key.span, error.to_string()));
        } else if let Some(Value::Text(hash)) = value {
            users.push((key.value, hash));
        }
    }
    users.sort();
    if let Some(At { value, span }) = &file {
        decoder.references.push((span.clone(), Reference::Users(std::path::PathBuf::clone(value))));
    }
    let user_header = match fields.slot::<String>("user_header").given() {
        Some(name) => Some(header_name(decoder, &name)?),
        None => None,
    };
    Some(BasicAuthSpec {
        users,
        file: file.map(|at| at.value),
        realm: fields.value("realm").unwrap_or_else(|| "restricted".to_owned()),
        forward_credentials: fields.value("forward_credentials").unwrap_or(false),
        user_header,
    })
}

fn forward_auth(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<(ServerSpec, ForwardAuthSpec)> {
    let url: At<String> = fields.slot("url").given()?;
    let names: Vec<At<String>> = fields.list("copy").unwrap_or_default();
    let copy = names.iter().filter_map(|name| header_name(decoder, name)).collect();
    let start = url.value.find("://").map_or(0, |at| at + 3);
    let end = url.value[start..].find(['/', '?', '#']).map_or(url.value.len(), |at| start + at);
    let (origin, rest) = url.value.split_at(end);
    let target = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    let wrong = match scalar::server(origin) {
        Ok(_) if target.contains('#') => Wrong::new("a fragment never reaches a server"),
        Ok(_) if target.parse::<http::uri::PathAndQuery>().is_err() => Wrong::new("its path cannot be sent"),
        Ok(server) => {
            let spec = ForwardAuthSpec {
                upstream: server.to_string().into(),
                host: origin[start..].into(),
                target: target.into(),
                copy,
                timeout: fields.value("timeout").unwrap_or(Duration::from_secs(5)),
            };
            return Some((server, spec));
        }
        Err(wrong) => wrong,
    };
    decoder.push(refusal(
        &wrong,
        url.span,
        "`url` must be a URL such as \"http://127.0.0.1:9091/api/authz/forward-auth\"",
        "url",
    ));
    None
}

/// The name of a field that may be set.
fn header_name(decoder: &mut Decoder<'_>, at: &At<String>) -> Option<HeaderName> {
    let Ok(name) = HeaderName::from_bytes(at.value.as_bytes()) else {
        let message = format!("`{}` is not the name of a header field", at.value);
        decoder.push(Problem::error(at.span.clone(), message).help("for example \"Remote-User\""));
        return None;
    };
    let text = name.as_str();
    let ours = text.starts_with("x-forwarded-") || text.starts_with("proxy-");
    if ours || RESERVED.contains(&text) || crate::policy::client_cert::is_claim(text) {
        let problem = Problem::error(at.span.clone(), format!("`{}` cannot be used here", at.value));
        decoder.push(problem.label("it belongs to the connection, or Starlock itself sets it"));
        return None;
    }
    Some(name)
}
