//! Who a client is by `Forwarded` (RFC 7239), alone and beside `X-Forwarded-For`: nobody says so but trusted proxies.
//!
//! The input's lines are `Forwarded` fields; those that begin with `!` are `X-Forwarded-For` fields.

#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use starlock::proxy::client::{Client, TrustedHeader};

static TRUSTED: LazyLock<Vec<IpNet>> =
    LazyLock::new(|| ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a net")).to_vec());
const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const STANDARD: HeaderName = HeaderName::from_static("forwarded");
const PLAIN: HeaderName = HeaderName::from_static("x-forwarded-for");

/// `headers` with one more field of `name` at its place in the list.
fn with(headers: &HeaderMap, name: &HeaderName, value: &[u8], first: bool) -> HeaderMap {
    let mut more = HeaderMap::new();
    let value = HeaderValue::from_bytes(value).expect("a value");
    if first {
        more.append(name, value.clone());
    }
    for (name, value) in headers {
        more.append(name, value.clone());
    }
    if !first {
        more.append(name, value);
    }
    more
}

fuzz_target!(|input: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(8) {
        let (name, value) = line.strip_prefix(b"!").map_or((STANDARD, line), |value| (PLAIN, value));
        let Ok(value) = HeaderValue::from_bytes(value) else { return };
        headers.append(name, value);
    }
    let is_trusted = |address: &IpAddr| TRUSTED.iter().any(|net| net.contains(address));

    for (header, name, other) in
        [(TrustedHeader::Forwarded, &STANDARD, &PLAIN), (TrustedHeader::XForwardedFor, &PLAIN, &STANDARD)]
    {
        let of = |peer: IpAddr, headers: &HeaderMap| Client::of(peer, &TRUSTED, header, headers);
        let forged = of(STRANGER, &headers);
        assert_eq!((forged.address, forged.trusted), (STRANGER, None), "a stranger is believed");
        let alone = Client::of(PROXY, &[], header, &headers);
        assert_eq!((alone.address, alone.trusted), (PROXY, None), "nobody is trusted");

        let client = of(PROXY, &headers);
        assert!(client.trusted == Some(header) && client.peer == PROXY);
        // A client cannot choose who it is by the field that its proxy does not write.
        let mut without = headers.clone();
        without.remove(other);
        assert_eq!(of(PROXY, &without), client, "{other} was read");
        if !is_trusted(&client.address) {
            // What stands to the left of the nearest hop that is not trusted changes nothing, broken or not.
            for claim in [&b"for=198.51.100.7"[..], b"for=\"", b"for=\"\\", b"198.51.100.7"] {
                assert_eq!(of(PROXY, &with(&headers, name, claim, true)), client, "{claim:?}");
            }
            // The same within the field to which the proxy adds; quotes of its own might close the one that was left open.
            let first = headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
            if headers.contains_key(name) && !first.contains(&b'"') {
                let mut joined = headers.clone();
                joined.remove(name);
                joined.append(name, HeaderValue::from_bytes(&[b"for=\"x, ", first].concat()).expect("a value"));
                for value in headers.get_all(name).iter().skip(1) {
                    joined.append(name, value.clone());
                }
                assert_eq!(of(PROXY, &joined), client);
            }
        }
        // What the nearest proxy adds is what counts.
        let nearest: &[u8] =
            if header == TrustedHeader::Forwarded { b"for=203.0.113.9;proto=https" } else { b"203.0.113.9" };
        let added = of(PROXY, &with(&headers, name, nearest, false));
        assert_eq!(added.address.to_string(), "203.0.113.9");
    }
});
