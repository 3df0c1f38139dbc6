//! The keys of an upstream that say how its servers are chosen, watched and given up.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::decode::Decoder;
use super::error::Problem;
use super::value::{At, Fields, Value};
use crate::balance::{
    ActiveSpec, BalanceSpec, HashKey, PassiveSpec, Question, RetrySpec, ServerSpec, StickySpec,
};
use crate::secret::SecretSource;

/// Shorter secrets can be guessed.
const SECRET: usize = 16;

/// What a server's table says beside its URL.
pub(super) fn shares(table: &Fields, server: ServerSpec) -> ServerSpec {
    let bound = |key: &str| table.value::<u64>(key).and_then(|n| NonZeroU32::new(u32::try_from(n).ok()?));
    ServerSpec {
        weight: table.value::<u64>("weight").and_then(|n| u16::try_from(n).ok()).unwrap_or(server.weight),
        backup: table.value("backup").unwrap_or(server.backup),
        max_connections: bound("max_connections"),
        max_requests: bound("max_requests"),
        ..server
    }
}

pub(super) fn balance(decoder: &mut Decoder<'_>, fields: &Fields) -> BalanceSpec {
    let table = match fields.any("balance") {
        Some(Value::Table(table)) => table.clone(),
        _ => Fields::empty(),
    };
    let word = || fields.any("balance").cloned().and_then(Option::<&'static str>::from);
    let by = table.value("by").or_else(word).unwrap_or("p2c");
    let key = table.slot::<String>("key").given();
    if let (Some(key), true) = (&key, by != "hash") {
        let problem = Problem::error(key.span.clone(), format!("`key` means nothing to `{by}`"));
        decoder.push(problem.help("write by = \"hash\", or leave `key` out"));
    }
    match by {
        "round_robin" => BalanceSpec::RoundRobin,
        "random" => BalanceSpec::Random,
        "hash" => BalanceSpec::Hash(key.map_or(HashKey::Ip, |key| hash_key(decoder, &key))),
        _ => BalanceSpec::P2c,
    }
}

fn hash_key(decoder: &mut Decoder<'_>, key: &At<String>) -> HashKey {
    let named = key.value.split_once(':').map(|(kind, name)| (kind, name.trim()));
    let found = match (key.value.as_str(), named) {
        ("ip", _) => Some(HashKey::Ip),
        ("path", _) => Some(HashKey::Path),
        (_, Some(("header", name))) => name.parse::<HeaderName>().ok().map(HashKey::Header),
        (_, Some(("cookie", name))) if is_token(name) => Some(HashKey::Cookie(name.into())),
        _ => None,
    };
    found.unwrap_or_else(|| {
        let message = format!("`{}` is nothing that requests can be told apart by", key.value);
        let help = "write \"ip\", \"path\", \"header:X-User\" or \"cookie:session\"";
        decoder.push(Problem::error(key.span.clone(), message).help(help));
        HashKey::Ip
    })
}

pub(super) fn sticky(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<StickySpec> {
    let table = fields.value::<Fields>("sticky")?;
    let cookie = table.slot::<String>("cookie").given()?;
    if !is_token(&cookie.value) {
        let message = format!("`{}` cannot name a cookie", cookie.value);
        decoder
            .push(Problem::error(cookie.span, message).help("names have letters, digits, `-`, `_` and `.`"));
        return None;
    }
    let secret = table.slot::<SecretSource>("secret").given()?;
    if let SecretSource::Plain(text) = &secret.value
        && text.expose().len() < SECRET
    {
        let problem = Problem::error(secret.span, format!("`secret` has fewer than {SECRET} characters"));
        decoder.push(problem.help("`openssl rand -base64 24` makes a good one"));
    }
    Some(StickySpec {
        cookie: cookie.value.as_str().into(),
        secret: secret.value,
        ttl: table.value::<Duration>("ttl"),
    })
}

/// A token (RFC 9110 section 5.6.2), as far as anybody uses it.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

pub(super) fn active(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<ActiveSpec> {
    let table = fields.value::<Fields>("health")?;
    let kind: &'static str = table.value("kind").unwrap_or("http");
    let path = table.slot::<String>("path").given();
    for (key, only) in [("path", "http"), ("status", "http"), ("service", "grpc")] {
        if table.has(key) && kind != only {
            let message = format!("`{key}` means nothing to a health check by `{kind}`");
            decoder.push(Problem::error(table.span_of(key), message).help("leave it out"));
        }
    }
    let every = table.value("every").unwrap_or(Duration::from_secs(10));
    let timeout = table.value("timeout").unwrap_or(Duration::from_secs(3));
    if timeout > every {
        let problem =
            Problem::error(table.span_of("timeout"), "`timeout` of `health` is longer than `every`");
        decoder.push(problem.help("the next question must not come before the last one is given up"));
    }
    let question = match kind {
        "grpc" => {
            Question::Grpc { service: table.value::<String>("service").unwrap_or_default().as_str().into() }
        }
        "tcp" => Question::Tcp,
        _ => Question::Http { path: health_path(decoder, &table, path)?, status: statuses(&table, "status") },
    };
    Some(ActiveSpec {
        question,
        every,
        timeout,
        fall: small(&table, "fall").unwrap_or(3),
        rise: small(&table, "rise").unwrap_or(2),
    })
}

fn health_path(decoder: &mut Decoder<'_>, table: &Fields, path: Option<At<String>>) -> Option<Arc<str>> {
    let Some(path) = path else {
        let problem = Problem::error(table.span.clone(), "`health` needs a `path`");
        decoder.push(problem.help("for example \"/healthz\"; kind = \"tcp\" and \"grpc\" need none"));
        return None;
    };
    if !path.value.starts_with('/') || path.value.parse::<http::uri::PathAndQuery>().is_err() {
        let problem = Problem::error(path.span, format!("`{}` is not a path", path.value));
        decoder.push(problem.help("write for example \"/healthz\""));
        return None;
    }
    Some(path.value.as_str().into())
}

fn statuses(table: &Fields, key: &str) -> Vec<u16> {
    let list: Vec<At<u64>> = table.list(key).unwrap_or_default();
    list.into_iter().filter_map(|at| u16::try_from(at.value).ok()).collect()
}

fn small(table: &Fields, key: &str) -> Option<u8> {
    table.value::<u64>(key).and_then(|n| u8::try_from(n).ok())
}

pub(super) fn passive(decoder: &mut Decoder<'_>, fields: &Fields) -> Option<PassiveSpec> {
    let usual = PassiveSpec::default();
    let table = match fields.any("passive") {
        Some(Value::Flag(false)) => return None,
        Some(Value::Table(table)) => table,
        _ => return Some(usual),
    };
    let spec = PassiveSpec {
        connect_errors: small(table, "connect_errors").unwrap_or(usual.connect_errors),
        failures: small(table, "failures").unwrap_or(usual.failures),
        within: table.value("within").unwrap_or(usual.within),
        eject: table.value("eject").unwrap_or(usual.eject),
        eject_max: table.value("eject_max").unwrap_or(usual.eject_max),
    };
    if spec.eject > spec.eject_max {
        let key = if table.has("eject_max") { "eject_max" } else { "eject" };
        decoder.push(Problem::error(table.span_of(key), "`eject` is longer than `eject_max`"));
    }
    Some(spec)
}

/// `attempt` is the time-out of the same name.
pub(super) fn retries(fields: &Fields, attempt: Duration) -> RetrySpec {
    let usual = RetrySpec { attempt, ..RetrySpec::default() };
    match fields.any("retries") {
        Some(Value::Flag(false)) => RetrySpec { connect: 0, idempotent: 0, ..usual },
        Some(Value::Table(table)) => RetrySpec {
            connect: small(table, "connect").unwrap_or(usual.connect),
            idempotent: small(table, "idempotent").unwrap_or(usual.idempotent),
            statuses: if table.has("on") { statuses(table, "on") } else { usual.statuses },
            attempt,
            budget: small(table, "budget").unwrap_or(usual.budget),
        },
        _ => usual,
    }
}
