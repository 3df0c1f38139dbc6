//! Fields of requests and answers on their way through. Pure.

use std::io::Write;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName,
    HeaderValue, TE, TRAILER, TRANSFER_ENCODING, VIA,
};
use http::{Method, Version};
use smallvec::SmallVec;

use super::client::{Client, TrustedHeader};
use super::error::Refusal;
use crate::conn::{Element, Introduction, Node};
use crate::policy::client_cert::is_claim;
use crate::policy::spelling::{begins_with_spelling, is_proxy, is_spelling};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

type Names = SmallVec<[HeaderName; 8]>;

/// How a request came in, for the fields that say so to the server.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// Who asks.
    pub client: Client,
    /// `https` or `http`.
    pub scheme: &'static str,
    /// What servers are told of who is at the other end of the connection.
    pub introduction: &'a Introduction,
    /// Of the request.
    pub version: Version,
}

/// Makes a client's fields fit for an HTTP/1.1 server: hop-by-hop fields go, what is said of the client is ours or a trusted
/// proxy's, Host is what was matched.
pub fn to_server(headers: &mut HeaderMap, incoming: &Incoming<'_>) {
    let trailers = wants_trailers(headers);
    // Of what a trusted proxy does not write, nobody knows who did.
    let is_trusted = |name: &str| match incoming.client.trusted {
        None => false,
        Some(TrustedHeader::XForwardedFor) => name != "forwarded" && !name.contains(['_', '.']),
        Some(TrustedHeader::Forwarded) => name == "forwarded",
    };
    // `Expect`: the 100 is sent by us as soon as the server takes the body.
    strip(headers, |name| name == "expect" || is_claim(name) || (is_forwarding(name) && !is_trusted(name)));
    if trailers {
        // RFC 9110 section 10.1.4: TE is itself hop-by-hop.
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    headers.insert(HOST, incoming.introduction.host.clone());
    join_cookies(headers);
    match incoming.client.trusted {
        Some(_) => add_forwarded(headers, incoming),
        None => set_forwarded(headers, incoming),
    }
    let via = match incoming.version {
        Version::HTTP_2 => "2.0 starlock",
        Version::HTTP_10 => "1.0 starlock",
        _ => "1.1 starlock",
    };
    headers.append(VIA, HeaderValue::from_static(via));
}

/// Makes a server's fields fit for a client of any version.
pub(super) fn to_client(headers: &mut HeaderMap) {
    strip(headers, |_| false);
}

/// Takes from a client's trailers what must not be said there (RFC 9110 section 6.5.1): where a message ends, where it goes, who
/// sends it. Servers may add trailers to the head.
pub(super) fn sift_trailers(trailers: &mut HeaderMap) {
    const NEVER: [HeaderName; 6] = [HOST, CONTENT_LENGTH, AUTHORIZATION, COOKIE, EXPECT, TRAILER];
    let is_never = |name: &str| NEVER.iter().any(|never| is_spelling(name, never.as_str()));
    strip(trailers, |name| is_forwarding(name) || is_claim(name) || is_never(name));
}

/// Whether a body's length can be read in one way only. hyper takes any coding whose last one is `chunked`, and HTTP/2 may repeat a
/// length.
pub(super) fn framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|coding| !chunked(coding)) || codings.next().is_some() {
        return Err(Refusal::TransferCoding);
    }
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Refusal::ContentLengths);
    }
    Ok(())
}

/// Browsers keep 180 cookies for a site, and may send each as a crumb of its own. An empty crumb is one byte on the wire: without a
/// bound, fields could be had for nothing.
const CRUMBS: usize = 400;

/// How many fields a head has, the first 400 crumbs of a cookie counted once.
pub(super) fn count(headers: &HeaderMap) -> usize {
    let crumbs = headers.get_all(COOKIE).iter().count();
    headers.len() - crumbs.min(CRUMBS).saturating_sub(1)
}

/// Whether the body of such a request must be announced by hand: hyper takes for granted that GET, HEAD and others have none
/// unless a length is given.
pub(super) fn announce_body(headers: &mut HeaderMap, method: &Method, exact: Option<u64>) {
    if exact.is_none()
        && !headers.contains_key(CONTENT_LENGTH)
        && matches!(*method, Method::GET | Method::HEAD)
    {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(TE).iter().any(|value| {
        elements(value)
            .any(|te| te.split(';').next().is_some_and(|te| te.trim().eq_ignore_ascii_case("trailers")))
    })
}

/// Removes what concerns one connection only (RFC 9110 section 7.6.1), but not Trailer; what `Connection` names goes too, except
/// for fields that it must not be used to remove; and so does what is `unwanted`. Looks at each name once: nearly all of them stay.
fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let mut names = Names::new();
    for name in headers.keys() {
        let text = name.as_str();
        if is_hop_by_hop(text) || unwanted(text) {
            names.push(name.clone());
        }
    }
    if names.contains(&CONNECTION) {
        for option in headers.get_all(CONNECTION).iter().flat_map(elements) {
            if option.eq_ignore_ascii_case("keep-alive") || option.eq_ignore_ascii_case("close") {
                continue;
            }
            if let Ok(name) = HeaderName::from_bytes(option.as_bytes())
                && name != HOST
                && name != CONTENT_LENGTH
                && !is_forwarding(name.as_str())
            {
                names.push(name);
            }
        }
    }
    for name in &names {
        headers.remove(name);
    }
}

/// Whether a field is between us and our neighbour, or a server might take it for one that is.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(name, "connection" | "keep-alive" | "te" | "transfer-encoding" | "upgrade")
        || is_proxy(name)
        || is_framing_alias(name)
}

/// `Content_Length` and the like: to a server behind CGI they are the real one.
fn is_framing_alias(name: &str) -> bool {
    (is_spelling(name, "content-length") || is_spelling(name, "transfer-encoding"))
        && name.contains(['_', '.'])
}

fn elements(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|element| !element.is_empty())
}

/// HTTP/2 may split a cookie; HTTP/1.1 must not (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs = headers.get_all(COOKIE);
    if crumbs.iter().nth(1).is_none() {
        return;
    }
    let mut joined = Vec::new();
    for crumb in crumbs {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    insert(headers, COOKIE, joined);
}

/// Whether servers may take `name` for a field that says who the client is: `_` and `.` are `-` to CGI and its heirs.
fn is_forwarding(name: &str) -> bool {
    name == "forwarded"
        || is_spelling(name, "x-real-ip")
        || is_spelling(name, "x-forwarded")
        || begins_with_spelling(name, "x-forwarded-")
}

/// Tells of a client that came by no proxy of ours; what it said of itself is gone.
fn set_forwarded(headers: &mut HeaderMap, incoming: &Incoming<'_>) {
    let Introduction { host, address, forwarded } = incoming.introduction;
    headers.insert(X_FORWARDED_FOR, address.clone());
    headers.insert(X_FORWARDED_HOST, host.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(incoming.scheme));
    headers.insert(X_REAL_IP, address.clone());
    headers.insert(FORWARDED, forwarded.clone());
}

/// Adds a trusted proxy to the chain that it told of.
fn add_forwarded(headers: &mut HeaderMap, incoming: &Incoming<'_>) {
    let Client { address, peer, scheme, .. } = incoming.client;
    let host = &incoming.introduction.host;
    // It has written one of the two: the other one says the same.
    let told = |name: &HeaderName| address != peer && !headers.contains_key(name);
    let (told_plain, told_standard) = (told(&X_FORWARDED_FOR), told(&FORWARDED));
    let mut chain = joined(headers, &X_FORWARDED_FOR);
    // Writing to a Vec does not fail.
    if told_plain {
        let _ = write!(chain, "{address}, ");
    }
    let _ = write!(chain, "{peer}");
    insert(headers, X_FORWARDED_FOR, chain);
    if !headers.contains_key(X_FORWARDED_HOST) {
        headers.insert(X_FORWARDED_HOST, host.clone());
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme.unwrap_or(incoming.scheme)));
    }
    insert(headers, X_REAL_IP, address.to_string().into_bytes());
    let mut chain = joined(headers, &FORWARDED);
    if told_standard {
        let _ = write!(chain, "for={}, ", Node(address));
    }
    let _ = write!(chain, "{}", Element { peer, host, scheme: incoming.scheme });
    insert(headers, FORWARDED, chain);
}

/// The values of `name`, each followed by a comma.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let mut chain = Vec::with_capacity(48);
    for value in headers.get_all(name) {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain
}

/// Values are made of values and of text that was checked; one that is not a value after all is left out.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: Vec<u8>) {
    match HeaderValue::from_maybe_shared(Bytes::from(value)) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => drop(headers.remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn sent(fields: &[(&str, &str)], trusted: bool) -> Vec<String> {
        sent_by(fields, trusted.then_some(TrustedHeader::XForwardedFor))
    }

    fn sent_by(fields: &[(&str, &str)], trusted: Option<TrustedHeader>) -> Vec<String> {
        let mut headers = map(fields);
        let peer = IpAddr::from([10, 0, 0, 1]);
        let address = if trusted.is_some() { [1, 1, 1, 1].into() } else { peer };
        let scheme = (trusted == Some(TrustedHeader::Forwarded)).then_some("http");
        let client = Client { address, peer, trusted, scheme };
        let host = HeaderValue::from_static("a.test:8443");
        let introduction = Introduction::new(client.peer, "https", host);
        let incoming =
            Incoming { client, scheme: "https", introduction: &introduction, version: Version::HTTP_2 };
        to_server(&mut headers, &incoming);
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    const OURS: [&str; 7] = [
        "forwarded: for=10.0.0.1;host=\"a.test:8443\";proto=https",
        "host: a.test:8443",
        "via: 2.0 starlock",
        "x-forwarded-for: 10.0.0.1",
        "x-forwarded-host: a.test:8443",
        "x-forwarded-proto: https",
        "x-real-ip: 10.0.0.1",
    ];

    #[test]
    fn a_strangers_words_about_the_client_are_replaced() {
        let stranger = sent(
            &[
                ("host", "A.test:8443"),
                ("X-Forwarded-For", "6.6.6.6"),
                ("x-forwarded-for", "7.7.7.7"),
                ("x_forwarded_for", "6.6.6.6"),
                ("X-Forwarded_Host", "evil"),
                ("x.forwarded.proto", "http"),
                ("x-forwarded-client-cert", "x"),
                ("x_real_ip", "6.6.6.6"),
                ("x-real-ip", "6.6.6.6"),
                ("forwarded", "for=6.6.6.6"),
            ],
            false,
        );
        assert_eq!(stranger, OURS);
    }

    #[test]
    fn a_trusted_proxys_words_are_kept_and_added_to() {
        let lines = sent(
            &[
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-for", "1.1.1.1"),
                ("x_forwarded_for", "6.6.6.6"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "b.test"),
                ("x-forwarded-port", "80"),
                ("forwarded", "for=6.6.6.6"),
                ("x-real-ip", "6.6.6.6"),
                ("via", "1.1 other"),
            ],
            true,
        );
        assert_eq!(
            lines,
            [
                "forwarded: for=1.1.1.1, for=10.0.0.1;host=\"a.test:8443\";proto=https",
                "host: a.test:8443",
                "via: 1.1 other",
                "via: 2.0 starlock",
                "x-forwarded-for: 6.6.6.6, 1.1.1.1, 10.0.0.1",
                "x-forwarded-host: b.test",
                "x-forwarded-port: 80",
                "x-forwarded-proto: http",
                "x-real-ip: 1.1.1.1",
            ]
        );
    }

    #[test]
    fn what_a_trusted_proxy_says_in_one_field_is_said_in_both() {
        let line =
            |lines: &[String], name: &str| lines.iter().find(|line| line.starts_with(name)).cloned().unwrap();
        let plain = sent(&[("x-forwarded-for", "1.1.1.1")], true);
        let ours = "for=10.0.0.1;host=\"a.test:8443\";proto=https";
        assert_eq!(line(&plain, "forwarded:"), format!("forwarded: for=1.1.1.1, {ours}"));
        // What the proxy does not write is its client's own.
        let lines = sent_by(
            &[
                ("forwarded", "for=1.1.1.1;by=_x;proto=http"),
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil"),
                ("x-forwarded-port", "1"),
                ("x-real-ip", "6.6.6.6"),
                ("x_real_ip", "6.6.6.6"),
            ],
            Some(TrustedHeader::Forwarded),
        );
        assert_eq!(
            lines,
            [
                format!("forwarded: for=1.1.1.1;by=_x;proto=http, {ours}").as_str(),
                "host: a.test:8443",
                "via: 2.0 starlock",
                "x-forwarded-for: 1.1.1.1, 10.0.0.1",
                "x-forwarded-host: a.test:8443",
                "x-forwarded-proto: http",
                "x-real-ip: 1.1.1.1",
            ]
        );
    }

    #[test]
    fn hop_by_hop_fields_stay_here() {
        let mut lines = sent(
            &[
                ("connection", "keep-alive, X-Secret, host, content-length, x-forwarded-for"),
                ("connection", "te"),
                ("x-secret", "1"),
                ("content-length", "3"),
                ("keep-alive", "timeout=5"),
                ("proxy-authorization", "x"),
                ("proxy-connection", "x"),
                ("proxy", "http://evil"),
                ("proxyish", "1"),
                ("te", "gzip, Trailers;q=1"),
                ("trailer", "x-sum"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "websocket"),
                ("expect", "100-continue"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("accept", "*/*"),
            ],
            false,
        );
        lines.retain(|line| !OURS.contains(&&**line));
        assert_eq!(
            lines,
            [
                "accept: */*",
                "connection: te",
                "content-length: 3",
                "cookie: a=1; b=2",
                "proxyish: 1",
                "te: trailers",
                "trailer: x-sum",
            ]
        );
        let mut answer = map(&[
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("trailer", "x-sum"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]);
        to_client(&mut answer);
        assert_eq!((answer.len(), answer.get_all("set-cookie").iter().count()), (3, 2));
        assert!(answer.contains_key("trailer"));
    }

    #[test]
    fn crumbs_count_once() {
        assert_eq!(count(&map(&[("cookie", "a"), ("cookie", "b"), ("accept", "x")])), 2);
        assert_eq!(count(&map(&[("accept", "x"), ("accept", "y")])), 2);
        assert_eq!(count(&map(&vec![("cookie", ""); 400])), 1);
        assert_eq!(count(&map(&vec![("cookie", ""); 600])), 201);
        assert_eq!(count(&map(&[])), 0);
    }

    const CLAIMS: [&str; 16] = [
        "x-user",
        "x-forwarded-user",
        "x-forwarded-for",
        "x-forwarded",
        "x-real-ip",
        "forwarded",
        "x-tls-client",
        "x-tag",
        "proxy-authorization",
        "proxy",
        "keep-alive",
        "te",
        "transfer-encoding",
        "upgrade",
        "proxy-connection",
        "x-forwarded-client-cert",
    ];

    const IN_TRAILERS: [&str; 22] = [
        "x-user",
        "remote-user",
        "x-tls-client",
        "x-tag",
        "client-cert",
        "client-cert-chain",
        "x-client-cert-subject",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-real-ip",
        "proxy-authorization",
        "proxy",
        "keep-alive",
        "te",
        "transfer-encoding",
        "content-length",
        "upgrade",
        "host",
        "authorization",
        "cookie",
        "expect",
        "trailer",
    ];

    proptest! {
        #[test]
        fn no_spelling_of_a_strangers_claim_gets_through(
            separators in prop::collection::vec(prop::sample::select(vec!['-', '_', '.']), 4),
            name in prop::sample::select(vec!["X-Forwarded-For", "x-FORWARDED-user", "X-Real-IP", "x-forwarded", "Forwarded"]),
            value in "[a-z0-9.,= ]{1,20}",
        ) {
            let mut separator = separators.into_iter();
            let spelt: String =
                name.chars().map(|c| if c == '-' { separator.next().unwrap_or('-') } else { c }).collect();
            prop_assert_eq!(sent(&[(&spelt, &format!("evil{value}"))], false), OURS);
        }

        /// Whatever a client sends and whatever rules a route has: nothing of one connection, nothing that says who the client
        /// is, and no spelling of what the route sets or removes gets to the server as the client wrote it.
        #[test]
        fn no_claim_of_a_client_survives_rewriting(
            sent in prop::collection::vec((prop::sample::select(CLAIMS.to_vec()), prop::collection::vec(prop::sample::select(vec!['-', '_', '.']), 4)), 0..12),
            named in prop::collection::vec(prop::sample::select(CLAIMS.to_vec()), 0..4),
            set in prop::sample::subsequence(vec!["x-user", "x-forwarded-user", "x-tls-client", "host"], 0..4),
            removed in prop::sample::subsequence(vec!["x-user", "x-tag", "x-forwarded-for", "x-tls-client"], 0..4),
        ) {
            let mut headers = HeaderMap::new();
            for (name, separators) in &sent {
                let mut separator = separators.iter();
                let spelt: String = name.chars().map(|c| if c == '-' { *separator.next().unwrap_or(&'-') } else { c }).collect();
                headers.append(HeaderName::from_bytes(spelt.as_bytes()).unwrap(), HeaderValue::from_static("evil"));
            }
            headers.append(CONNECTION, HeaderValue::from_str(&named.join(", ")).unwrap());
            let client = Client { address: [10, 0, 0, 1].into(), peer: [10, 0, 0, 1].into(), trusted: None, scheme: None };
            let host = HeaderValue::from_static("a.test");
            let introduction = Introduction::new(client.peer, "https", host);
            to_server(&mut headers, &Incoming { client, scheme: "https", introduction: &introduction, version: Version::HTTP_11 });
            let value = crate::policy::FieldValue::parse("ours").unwrap();
            let rules = crate::policy::FieldsSpec {
                remove: removed.iter().map(|name| HeaderName::from_static(name)).collect(),
                set: set.iter().map(|name| (HeaderName::from_static(name), value.clone())).collect(),
                add: vec![],
            };
            let spec = crate::policy::PolicySpec { request_headers: rules, ..Default::default() };
            let facts = crate::policy::RequestFacts { client: client.address, host: "a.test", scheme: "https", method: &Method::GET, id: "1" };
            crate::policy::Policy::new(&spec, crate::policy::Pages::default(), &mut crate::policy::Memory::default()).unwrap().prepare(&mut headers, &facts);
            for (name, value) in &headers {
                let plain = name.as_str().replace(['_', '.'], "-");
                let evil = value.as_bytes().windows(4).any(|w| w == b"evil");
                let of_ours = set.contains(&&*plain) || removed.contains(&&*plain);
                let of_one_connection = ["keep-alive", "te", "transfer-encoding", "upgrade", "connection"].contains(&name.as_str());
                let claim = plain.starts_with("x-forwarded") || plain.starts_with("proxy") || plain == "x-real-ip" || plain == "forwarded";
                prop_assert!(!evil || !(of_ours || of_one_connection || claim), "{name}: {value:?}");
                prop_assert!(!of_one_connection, "{name}: {value:?}");
            }
            for name in &set {
                let values: Vec<_> = headers.get_all(*name).iter().collect();
                prop_assert_eq!(values, ["ours"]);
            }
            for name in removed.iter().filter(|name| !set.contains(name)) {
                prop_assert!(!headers.contains_key(*name), "{}", name);
            }
        }

        /// The same for trailers, which servers may add to the head: what is left of them says nothing that a head would not.
        #[test]
        fn no_claim_of_a_client_comes_in_by_a_trailer(
            sent in prop::collection::vec((prop::sample::select(IN_TRAILERS.to_vec()), prop::collection::vec(prop::sample::select(vec!['-', '_', '.']), 4)), 0..16),
            named in prop::collection::vec(prop::sample::select(IN_TRAILERS.to_vec()), 0..4),
            copied in prop::sample::subsequence(vec!["remote-user", "x-user", "x_tag"], 0..3),
            ruled in prop::sample::subsequence(vec!["x-tls-client", "x-tag", "x-user"], 0..3),
        ) {
            let mut trailers = HeaderMap::new();
            for (name, separators) in &sent {
                let mut separator = separators.iter();
                let spelt: String = name.chars().map(|c| if c == '-' { *separator.next().unwrap_or(&'-') } else { c }).collect();
                trailers.append(HeaderName::from_bytes(spelt.as_bytes()).unwrap(), HeaderValue::from_static("evil"));
            }
            trailers.append("x-sum", HeaderValue::from_static("fine"));
            trailers.append(CONNECTION, HeaderValue::from_str(&named.join(", ")).unwrap());
            let names = |list: &[&'static str]| list.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
            let auth = crate::policy::ForwardAuthSpec {
                upstream: "auth".into(),
                host: "auth.test".into(),
                target: "/".into(),
                copy: names(&copied),
                timeout: std::time::Duration::from_secs(1),
            };
            let rules = crate::policy::FieldsSpec { remove: names(&ruled), ..Default::default() };
            let spec = crate::policy::PolicySpec { forward_auth: Some(auth), request_headers: rules, ..Default::default() };
            let policy = crate::policy::Policy::new(&spec, crate::policy::Pages::default(), &mut crate::policy::Memory::default()).unwrap();
            sift_trailers(&mut trailers);
            policy.sift_trailers(&mut trailers);
            prop_assert_eq!(&trailers["x-sum"], "fine");
            for name in trailers.keys().filter(|name| *name != "x-sum") {
                let plain = name.as_str().replace(['_', '.'], "-");
                // What concerns a connection is read by its own name alone.
                if plain == "keep-alive" && *name != "keep-alive" {
                    continue;
                }
                let by_route = copied.iter().chain(&ruled).any(|own| own.replace('_', "-") == plain);
                prop_assert!(!by_route && ["x-user", "remote-user", "x-tag", "x-tls-client"].contains(&&*plain), "{}", name);
            }
        }

        #[test]
        fn nothing_else_is_lost(name in "[a-eg-w][a-z]{3,12}", value in "[ -~]{0,20}") {
            prop_assume!(!["host", "connection", "upgrade", "expect", "cookie"].contains(&&*name) && !name.starts_with("proxy"));
            prop_assert_eq!(sent(&[(&name, &value)], false).len(), OURS.len() + 1);
        }
    }

    #[test]
    fn a_length_is_read_one_way_or_refused() {
        let chunked = ("transfer-encoding", "chunked");
        for (fields, expected) in [
            (&[][..], Ok(())),
            (&[("content-length", "5")], Ok(())),
            (&[chunked], Ok(())),
            (&[("transfer-encoding", "CHUNKED")], Ok(())),
            (&[chunked, chunked], Err(Refusal::TransferCoding)),
            (&[("transfer-encoding", "gzip, chunked")], Err(Refusal::TransferCoding)),
            (&[("transfer-encoding", "chunked, chunked")], Err(Refusal::TransferCoding)),
            (&[("content-length", "5"), ("content-length", "5")], Err(Refusal::ContentLengths)),
        ] {
            assert_eq!(framing(&map(fields)), expected, "{fields:?}");
        }
    }

    #[test]
    fn trailers_say_nothing_that_a_head_decides() {
        let mut trailers = map(&[
            ("x-sum", "1"),
            ("host", "b.test"),
            ("content-length", "9"),
            ("content_length", "9"),
            ("transfer.encoding", "chunked"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_real_ip", "6.6.6.6"),
            ("authorization", "Basic x"),
            ("client-cert", ":AAAA:"),
            ("client_cert_chain", ":AAAA:"),
            ("x-client-cert-verify", "SUCCESS"),
            ("x.client_cert.subject", "CN=root"),
            ("connection", "x-sum-2"),
            ("x-sum-2", "1"),
        ]);
        sift_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("x-sum", "1")]));
    }
}
