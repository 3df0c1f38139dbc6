//! The field `Forwarded` (RFC 7239), read from its end: what stands left is a stranger's, and may be broken on purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What one element says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hop {
    /// `None`: it is unknown, hidden, missing or malformed.
    pub(super) address: Option<IpAddr>,
    /// What this one came by: `http` or `https`.
    pub(super) scheme: Option<&'static str>,
}

/// The hops of one field's value, from right to left.
pub(super) fn hops(value: &[u8]) -> impl Iterator<Item = Hop> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        loop {
            let (left, element) = last(rest?, b',');
            rest = left;
            let element = element.trim_ascii();
            // A list may have empty elements (RFC 9110 section 5.6.1.2).
            if !element.is_empty() {
                return Some(hop(element).unwrap_or_default());
            }
        }
    })
}

/// What follows the last `separator` outside of quotes, and what precedes it. Quotes are matched from the end, so that one left
/// open on the left swallows nothing.
fn last(text: &[u8], separator: u8) -> (Option<&[u8]>, &[u8]) {
    let mut quoted = false;
    for (at, byte) in text.iter().enumerate().rev() {
        match byte {
            b'"' if !quoted => quoted = true,
            b'"' => {
                let escapes = text[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                quoted = escapes % 2 == 1;
            }
            byte if *byte == separator && !quoted => return (Some(&text[..at]), &text[at + 1..]),
            _ => {}
        }
    }
    (None, text)
}

/// What an element's only `for`, and its `proto`, say. Nothing if any of its pairs is malformed.
fn hop(element: &[u8]) -> Option<Hop> {
    let (mut rest, mut found, mut scheme) = (Some(element), None, None);
    while let Some(text) = rest {
        let (left, pair) = last(text, b';');
        rest = left;
        let pair = pair.trim_ascii();
        if pair.is_empty() {
            continue;
        }
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (&pair[..equals], unquoted(&pair[equals + 1..])?);
        if !is_token(name) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") && found.replace(value).is_some() {
            return None;
        }
        if name.eq_ignore_ascii_case(b"proto") {
            scheme = ["http", "https"].into_iter().find(|known| value.eq_ignore_ascii_case(known.as_bytes()));
        }
    }
    Some(Hop { address: node(found?), scheme })
}

/// A token, or what is between quotes. An address needs no escape: text with one is nothing that we read.
fn unquoted(value: &[u8]) -> Option<&[u8]> {
    match value.strip_prefix(b"\"") {
        None => Some(value).filter(|value| is_token(value)),
        Some(rest) => {
            let inner = rest.strip_suffix(b"\"")?;
            let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..) && !b"\"".contains(byte);
            let mut plain = inner.iter();
            while let Some(byte) = plain.next() {
                // An escaped one may be anything but a control.
                if *byte == b'\\' {
                    plain.next().filter(|byte| **byte == b'"' || is_text(byte))?;
                } else if !is_text(byte) {
                    return None;
                }
            }
            Some(inner)
        }
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// `1.2.3.4`, `1.2.3.4:5`, `[::1]` or `[::1]:5`; a port may be hidden (RFC 7239 section 6).
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let (address, port): (IpAddr, &str) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address.parse::<Ipv6Addr>().ok()?.into(), port)
        }
        None => {
            let (address, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (address.parse::<Ipv4Addr>().ok()?.into(), port)
        }
    };
    let is_port = |port: &str| match port.strip_prefix('_') {
        Some(hidden) => !hidden.is_empty() && hidden.bytes().all(is_hidden),
        None => (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit()),
    };
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then(|| address.to_canonical())
}

fn is_hidden(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_elements_say() {
        for (value, expected) in [
            ("for=192.0.2.43", &["192.0.2.43"][..]),
            ("For=\"[2001:db8:cafe::17]:4711\"", &["2001:db8:cafe::17"]),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", &["192.0.2.60"]),
            ("by=203.0.113.43; FOR=\"192.0.2.60:_port\" ;proto=http", &["192.0.2.60"]),
            ("for=192.0.2.43, for=198.51.100.17", &["198.51.100.17", "192.0.2.43"]),
            ("for=192.0.2.43 ,, ,for=198.51.100.17,", &["198.51.100.17", "192.0.2.43"]),
            ("for=\"::ffff:1.2.3.4\"", &["-"]),
            ("for=\"[::ffff:1.2.3.4]\"", &["1.2.3.4"]),
            ("for=1.2.3.4;host=\"a,b;for=6.6.6.6\\\"\"", &["1.2.3.4"]),
            ("for=unknown, for=_gazonk, for=_SEVKISEK", &["-", "-", "-"]),
            ("proto=https", &["-"]),
            ("", &[]),
            (" , ", &[]),
            // Not what the grammar says.
            ("for=[::1]", &["-"]),
            ("for=1.2.3.4:80", &["-"]),
            ("for = 1.2.3.4", &["-"]),
            ("for=1.2.3.4;for=1.2.3.4", &["-"]),
            ("for=1.2.3.4;x", &["-"]),
            ("for=\"1.2.3.4", &["-"]),
            ("for=\"1.2.3.4\"x", &["-"]),
            ("for=\"1.2.3\\.4\"", &["-"]),
            ("for=\"1.2.3.4:\"", &["-"]),
            ("for=\"1.2.3.4:123456\"", &["-"]),
            ("for=\"[1.2.3.4]\"", &["-"]),
            ("for=\"[::1\"", &["-"]),
            ("for=\"[::1]x\"", &["-"]),
            ("1.2.3.4", &["-"]),
            // Broken on the left.
            ("for=\", for=1.2.3.4", &["1.2.3.4", "-"]),
            ("for=\"\\, for=\"1.2.3.4\"", &["1.2.3.4", "-"]),
        ] {
            let found: Vec<String> = hops(value.as_bytes())
                .map(|hop| hop.address.map_or_else(|| "-".to_owned(), |address| address.to_string()))
                .collect();
            assert_eq!(found, expected, "{value}");
        }
    }
}
