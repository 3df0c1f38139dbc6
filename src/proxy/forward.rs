//! Sending a request to a server, and its answer back.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body;
use hyper::body::Incoming;

use super::attempts::Attempts;
use super::body::Answer;
use super::error::Refusal;
use super::handler::Shared;
use super::headers;
use super::record::Record;
use super::reply::refuse;
use super::upgrade::Upgrade;
use crate::balance::{Ask, Balancer, InFlight};
use crate::conn::Load;
use crate::upstream::{Exchange, Failure, ResponseBody, Upload};

/// The target for the server: `path`, which was matched, and the query as it came. Nothing is copied if `path` is what came.
pub(super) fn target(uri: &Uri, path: &str) -> Option<Uri> {
    let given = uri.path_and_query();
    let target = match given {
        Some(given) if given.path() == path => given.clone(),
        _ => {
            let mut text = String::with_capacity(path.len() + 1 + uri.query().map_or(0, str::len));
            text.push_str(path);
            if let Some(query) = uri.query() {
                text.push('?');
                text.push_str(query);
            }
            PathAndQuery::from_maybe_shared(Bytes::from(text)).ok()?
        }
    };
    Some(Uri::from(target))
}

/// Forwards a request whose head is ready for the server. Dropping the future means that the client left: the server is let go too.
pub(super) async fn forward(
    shared: &Shared,
    load: &Arc<Load>,
    balancer: &Arc<Balancer>,
    request: Box<Request<Incoming>>,
    upgrade: Option<Upgrade>,
    mut record: Box<Record>,
) -> Response<Answer> {
    let limits = record.limits(balancer);
    let hint = request.body().size_hint();
    if limits.max_body.is_some_and(|max| hint.lower() > max) {
        return refuse(Refusal::BodyTooLarge, record);
    }
    let (mut parts, body) = request.into_parts();
    let ask = Ask { client: record.client, headers: &parts.headers, path: parts.uri.path() };
    let preference = balancer.prefer(&ask);
    headers::announce_body(&mut parts.headers, &parts.method, hint.exact());
    parts.version = Version::HTTP_11;
    let copy = record.copy.take();
    let (local, route) = (record.local.clone(), record.route);
    let mut attempts = Attempts::new(balancer, &parts.method, |keep| {
        let sift = move |trailers: &mut HeaderMap| {
            headers::sift_trailers(trailers);
            if let Some(route) = route {
                local.snapshot.policies[route].sift_trailers(trailers);
            }
        };
        Upload::new(body, keep, load, sift).copied(copy)
    });
    attempts.give_up_after(record.attempt());
    attempts.may_switch = upgrade.is_some();
    let mut parts = Some(parts);
    loop {
        let in_flight = match attempts.pick(&preference).await {
            Ok(in_flight) => in_flight,
            Err(failure) => return refuse(Refusal::Upstream(failure), record),
        };
        let exchange = Rc::new(
            Exchange::new(attempts.limits(limits)).of_client(record.addresses()).of_call(record.grpc),
        );
        record.endpoint = Some(in_flight.endpoint().clone());
        record.exchange = Some(exchange.clone());
        // Copied only if there may be another attempt.
        let head = if attempts.others() > 0 { parts.clone() } else { parts.take() };
        let Some(head) = head else { return refuse(Refusal::Upstream(Failure::NoServer), record) };
        let request = Box::new(Request::from_parts(head, attempts.upload.body(exchange.clone())));
        let pool = shared.pools.to(in_flight.endpoint());
        let response = match attempts.send(&pool, &exchange, request, &in_flight).await {
            Ok(Some(response)) => response,
            Ok(None) => continue,
            Err(failure) => return refuse(Refusal::Upstream(failure), record),
        };
        if upgrade.as_ref().is_some_and(|upgrade| upgrade.is_mistaken_by(response.status())) {
            return refuse(Refusal::Upstream(Failure::Malformed), record);
        }
        let cookie = balancer.cookie(in_flight.endpoint(), &preference, record.tls_resumed.is_some());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return switch(response, upgrade, cookie, in_flight, record).await;
        }
        let (mut head, body) = response.into_parts();
        headers::to_client(&mut head.headers);
        if let Some(cookie) = cookie {
            head.headers.append(header::SET_COOKIE, cookie);
        }
        head.version = Version::HTTP_11;
        record.answered(head.status);
        return Response::from_parts(head, Answer::server(body, in_flight, record));
    }
}

/// Answers that the server has switched to the protocol the client asked for, if that is so: a 101 that nobody asked for, or to
/// something else, is no answer.
async fn switch(
    response: Response<ResponseBody>,
    upgrade: Option<Upgrade>,
    cookie: Option<HeaderValue>,
    in_flight: InFlight,
    mut record: Box<Record>,
) -> Response<Answer> {
    let (mut head, mut body) = response.into_parts();
    let granted = upgrade.filter(|upgrade| upgrade.is_granted(&head.headers)).zip(body.switched());
    let Some((upgrade, switched)) = granted else {
        return refuse(Refusal::Upstream(Failure::Malformed), record);
    };
    match switched.await {
        Ok(server) => {
            headers::to_client(&mut head.headers);
            head.status = upgrade.grant(&mut head.headers);
            head.headers.extend(cookie.map(|cookie| (header::SET_COOKIE, cookie)));
            head.version = Version::HTTP_11;
            record.answered(head.status);
            Response::from_parts(head, Answer::switched(server, in_flight, record))
        }
        Err(failure) => refuse(Refusal::Upstream(failure), record),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::path::{has_prefix, normalise};
    use super::super::rewrite::Rewrite;
    use super::super::snapshot::Forward;
    use super::super::spec::RouteTimeouts;
    use super::super::split::Split;
    use super::*;

    fn route(strip_prefix: bool, rewrite: Option<(&str, &str)>) -> Forward {
        Forward {
            split: Split::new(std::iter::empty(), None),
            strip_prefix,
            rewrite: rewrite.map(|(pattern, template)| Rewrite::new(pattern, template).unwrap()),
            mirror: None,
            timeouts: RouteTimeouts::default(),
        }
    }

    /// What a server is sent for `asked`; `None` if the request is refused.
    fn sent(route: &Forward, prefix: &str, asked: &Uri) -> Option<Uri> {
        let matched = normalise(asked.path()).ok()?;
        has_prefix(&matched, prefix).then_some(())?;
        let path = route.path(prefix, &matched).ok()?;
        target(asked, &path)
    }

    proptest! {
        /// What is forwarded is what was matched, whole or without its prefix: its own normal form, with the query as it came. A
        /// second proxy of the kind would match and forward the same.
        #[test]
        fn what_was_matched_is_what_is_forwarded(
            path in r"(/api|/%61pi|/x/../api)?/([a-zA-Z.%/;20-9eEfF~]|%2[eEfF]|%25|\.\./|/\.){0,24}",
            query in r"(\?([a-z.%/;=&20-9eEfF~]|%2[eEfF]|\.\./){0,12})?",
        ) {
            let Ok(asked) = format!("{path}{query}").parse::<Uri>() else { return Ok(()) };
            for (strips, rewrite, prefix) in [
                (false, None, "/"),
                (false, None, "/api"),
                (true, None, "/api"),
                (false, Some(("^/api/(.*)$", "/v2/$1")), "/api"),
            ] {
                let route = route(strips, rewrite);
                let Some(uri) = sent(&route, prefix, &asked) else { continue };
                let normal = normalise(asked.path()).unwrap();
                let expected = match (strips, rewrite) {
                    (true, _) => match normal.strip_prefix(prefix).unwrap() {
                        "" => "/".to_owned(),
                        rest => rest.to_owned(),
                    },
                    (false, Some(_)) => match normal.strip_prefix("/api/") {
                        Some(rest) => format!("/v2/{rest}"),
                        None => normal.to_string(),
                    },
                    (false, None) => normal.to_string(),
                };
                prop_assert_eq!(uri.path(), &*expected);
                prop_assert_eq!(uri.query(), asked.query());
                let again = normalise(uri.path());
                prop_assert_eq!(again.as_deref(), Ok(uri.path()), "it reads one way");
                let onwards = sent(&self::route(false, None), "/", &uri);
                prop_assert_eq!(onwards, Some(uri.clone()));
            }
        }
    }
}
