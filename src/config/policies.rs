//! The keys of a route that say what it asks of requests and adds to answers.

use std::time::Duration;

use ipnet::IpNet;

use super::decode::Decoder;
use super::error::Problem;
use super::value::{At, Fields, Value};
use super::{admission, answers};
use crate::balance::ServerSpec;
use crate::policy::{AccessSpec, Direction, HstsSpec, PolicySpec};

/// How long browsers remember that a host is for https only.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Reads the policies of a route, and the server that one of them asks. What its hosts ask of clients in the handshake is read
/// later.
pub(super) fn read(decoder: &mut Decoder<'_>, fields: &Fields) -> (PolicySpec, Option<ServerSpec>) {
    let mut spec = PolicySpec {
        access: access(decoder, fields),
        hsts: hsts(decoder, fields),
        max_body: fields.value("max_body"),
        request_headers: answers::fields(decoder, fields, "request_headers", Direction::Request),
        response_headers: answers::fields(decoder, fields, "response_headers", Direction::Response),
        compress: answers::compress(decoder, fields),
        pages: answers::pages(decoder, fields),
        ..PolicySpec::default()
    };
    let asks = admission::read(decoder, fields, &mut spec);
    (spec, asks)
}

fn access(decoder: &mut Decoder<'_>, fields: &Fields) -> AccessSpec {
    let nets = |key: &str| -> Vec<IpNet> {
        fields.list(key).unwrap_or_default().into_iter().map(|at| at.value).collect()
    };
    let spec = AccessSpec { allow: nets("allow"), deny: nets("deny") };
    for key in ["allow", "deny"]
        .into_iter()
        .filter(|key| fields.value::<Vec<At<Value>>>(key).is_some_and(|list| list.is_empty()))
    {
        let problem = Problem::error(fields.span_of(key), format!("`{key}` is empty"));
        decoder.push(
            problem.help(
                "leave it out, or list networks; `deny = [\"0.0.0.0/0\", \"::/0\"]` keeps everybody out",
            ),
        );
    }
    spec
}

fn hsts(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<HstsSpec> {
    let table = match fields.any("hsts")? {
        Value::Flag(false) => return None,
        Value::Table(table) => table.clone(),
        _ => Fields::empty(),
    };
    let spec = HstsSpec {
        max_age: table.value("max_age").unwrap_or(YEAR),
        subdomains: table.value("subdomains").unwrap_or(false),
        preload: table.value("preload").unwrap_or(false),
    };
    if spec.preload && (!spec.subdomains || spec.max_age < YEAR) {
        decoder.push(
            Problem::error(table.span_of("preload"), "browsers do not take this host into their lists")
                .help("`preload = true` needs `subdomains = true` and a `max_age` of at least \"365d\""),
        );
    }
    Some(spec)
}
