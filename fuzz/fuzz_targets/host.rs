//! Which host a client asks for: what is matched is what is forwarded, and nothing in it reads two ways.
//!
//! The input's lines are the request's target and its Host fields.

#![no_main]

use http::header::{HOST, HeaderMap, HeaderValue};
use http::Uri;
use libfuzzer_sys::fuzz_target;
use starlock::proxy::host::Authority;

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let Some(Ok(target)) = lines.next().map(Uri::try_from) else { return };
    let mut headers = HeaderMap::new();
    for line in lines.take(3) {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        headers.append(HOST, value);
    }
    let Ok(authority) = Authority::of(&target, &headers) else { return };
    assert!(headers.len() <= 1, "several hosts: {headers:?}");
    let host = &*authority.host;
    let address = host.contains(':');
    let plain = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || b"-_.".contains(&byte);
    assert!(!host.is_empty() && host.len() <= 253 && (address || host.bytes().all(plain)), "{host}");
    assert!(address || host.split('.').all(|label| !label.is_empty()), "{host}");
    assert_eq!(address, host.parse::<std::net::Ipv6Addr>().is_ok(), "{host}");

    let text = authority.to_text();
    assert_eq!(Authority::parse(&text).as_ref(), Ok(&authority), "{text} is read as it was meant");
    let value = authority.to_value(headers.get(HOST)).expect("it fits into a field");
    assert_eq!(value.as_bytes(), text.as_bytes());
    // As the server will read it: alone, in its own Host field.
    let sent = HeaderMap::from_iter([(HOST, value)]);
    let root = Uri::from_static("/");
    assert_eq!(Authority::of(&root, &sent).as_ref(), Ok(&authority), "{text}");
});
