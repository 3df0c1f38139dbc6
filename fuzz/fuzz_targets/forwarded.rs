//! Who a client is by `Forwarded` (RFC 7239), alone and beside `X-Forwarded-For`: nobody says so but trusted proxies.
//!
//! The input's lines are `Forwarded` fields; those that begin with `!` are `X-Forwarded-For` fields.

#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use starlock::proxy::client::Client;

static TRUSTED: LazyLock<Vec<IpNet>> =
    LazyLock::new(|| ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a net")).to_vec());
const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const STANDARD: HeaderName = HeaderName::from_static("forwarded");
const PLAIN: HeaderName = HeaderName::from_static("x-forwarded-for");

fn of(peer: IpAddr, headers: &HeaderMap) -> Client {
    Client::of(peer, &TRUSTED, headers)
}

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

    let forged = of(STRANGER, &headers);
    assert_eq!((forged.address, forged.trusted, forged.disputed), (STRANGER, false, false), "a stranger is believed");
    let alone = Client::of(PROXY, &[], &headers);
    assert_eq!((alone.address, alone.trusted, alone.disputed), (PROXY, false, false), "nobody is trusted");

    let client = of(PROXY, &headers);
    assert!(client.trusted && client.peer == PROXY);
    assert!(!client.disputed || client.address == PROXY, "a disputed client is nobody in particular");
    if !client.disputed && !is_trusted(&client.address) {
        // What stands to the left of the nearest hop that is not trusted changes nothing, broken or not.
        for (name, claim) in [
            (&STANDARD, &b"for=198.51.100.7"[..]),
            (&STANDARD, b"for=\""),
            (&STANDARD, b"for=\"\\"),
            (&PLAIN, b"198.51.100.7"),
        ] {
            if headers.contains_key(name) {
                assert_eq!(of(PROXY, &with(&headers, name, claim, true)), client, "{claim:?}");
            }
        }
        // The same within the field to which the proxy adds; quotes of its own might close the one that was left open.
        let first = headers.get(&STANDARD).map(HeaderValue::as_bytes).unwrap_or_default();
        if headers.contains_key(&STANDARD) && !first.contains(&b'"') {
            let mut joined = headers.clone();
            joined.remove(&STANDARD);
            joined.append(STANDARD, HeaderValue::from_bytes(&[b"for=\"x, ", first].concat()).expect("a value"));
            for value in headers.get_all(&STANDARD).iter().skip(1) {
                joined.append(STANDARD, value.clone());
            }
            assert_eq!(of(PROXY, &joined), client);
        }
    }
    // A client cannot choose who it is by the field that its proxy does not write.
    for (written, other) in [(&STANDARD, &PLAIN), (&PLAIN, &STANDARD)] {
        let mut claimed = headers.clone();
        claimed.remove(written);
        let claimed = with(&claimed, written, if *written == STANDARD { b"for=203.0.113.9" } else { b"203.0.113.9" }, false);
        let seen = of(PROXY, &claimed);
        assert!(seen.disputed || seen.address.to_string() == "203.0.113.9", "{other} was believed: {seen:?}");
    }
    // What the nearest proxy adds is what counts.
    headers.remove(&PLAIN);
    let added = with(&headers, &STANDARD, b"for=203.0.113.9;proto=https", false);
    assert_eq!(of(PROXY, &added).address.to_string(), "203.0.113.9");
});
