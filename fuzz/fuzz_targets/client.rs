//! Who a client is: nobody says so but trusted proxies, whatever the fields hold.
//!
//! The input's lines are `X-Forwarded-For` fields.

#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use http::header::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use starlock::proxy::client::{Client, TrustedHeader};

static TRUSTED: LazyLock<Vec<IpNet>> =
    LazyLock::new(|| ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a net")).to_vec());
const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const FIELD: &str = "x-forwarded-for";

fuzz_target!(|input: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(8) {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        headers.append(FIELD, value);
    }
    let is_trusted = |address: &IpAddr| TRUSTED.iter().any(|net| net.contains(address));

    let of = |peer: IpAddr, headers: &HeaderMap| Client::of(peer, &TRUSTED, TrustedHeader::XForwardedFor, headers);
    let forged = of(STRANGER, &headers);
    assert_eq!((forged.address, forged.trusted), (STRANGER, None), "a stranger is believed nothing");
    let alone = Client::of(PROXY, &[], TrustedHeader::XForwardedFor, &headers);
    assert_eq!((alone.address, alone.trusted), (PROXY, None), "nobody is trusted");

    let client = of(PROXY, &headers);
    assert!(client.trusted.is_some() && client.peer == PROXY);
    if !is_trusted(&client.address) {
        // What the client itself wrote, to the left of what proxies added, changes nothing.
        let mut claimed = HeaderMap::new();
        claimed.append(FIELD, HeaderValue::from_static("198.51.100.7"));
        for value in headers.get_all(FIELD) {
            claimed.append(FIELD, value.clone());
        }
        assert_eq!(of(PROXY, &claimed).address, client.address);
    }
    // What the nearest proxy adds is what counts.
    headers.append(FIELD, HeaderValue::from_static("203.0.113.9"));
    assert_eq!(of(PROXY, &headers).address.to_string(), "203.0.113.9");
});
