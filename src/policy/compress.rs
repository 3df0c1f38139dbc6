//! `compress`: which answers are made smaller, and how. Pure; the work itself is in `encode`.

use std::fmt;

use http::StatusCode;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, VARY,
};

/// Answers that say that they are smaller than this stay as they are.
pub(super) const MIN_LENGTH: u64 = 1 << 10;

/// A content coding (RFC 9110 section 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 8878, at level 3, with a window of 256 KiB.
    Zstd,
    /// RFC 7932, at quality 4, with a window of 256 KiB.
    Brotli,
    /// RFC 1952, at level 6.
    Gzip,
}

impl Coding {
    /// All of them, best first.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Brotli, Self::Gzip];

    /// As in Content-Encoding and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The coding for the answer to a request with these fields: the one that the client likes best, of equal ones the first of
/// `ours`. `None`: the answer stays as it is.
pub(super) fn negotiate(ours: &[Coding], request: &HeaderMap) -> Option<Coding> {
    if has_element(request, &CACHE_CONTROL, "no-transform") {
        return None;
    }
    let mut qualities = [None; 3];
    let (mut any, mut identity) = (None, None);
    for element in elements(request, &ACCEPT_ENCODING) {
        let mut parts = element.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = match parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
        {
            Some(text) => match quality(text) {
                Some(quality) => quality,
                None => continue,
            },
            None => 1000,
        };
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("*") {
            any = Some(quality);
        } else if is("identity") {
            identity = Some(quality);
        } else if let Some(at) = Coding::ALL.iter().position(|coding| is(coding.name())) {
            qualities[at] = Some(quality);
        } else if is("x-gzip") {
            qualities[2] = Some(quality);
        }
    }
    let wish = |coding: &Coding| qualities[*coding as usize].or(any).unwrap_or(0);
    let best = ours.iter().copied().rev().max_by_key(wish)?;
    let least = identity.unwrap_or(0).max(1);
    Some(best).filter(|coding| wish(coding) >= least)
}

/// In thousandths.
fn quality(text: &str) -> Option<u16> {
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    if !matches!(whole, "0" | "1") || fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "1" if thousandths > 0 => None,
        "1" => Some(1000),
        _ => Some(thousandths),
    }
}

/// Whether an answer may be compressed for clients that want it. `length`: if it is known.
pub(super) fn is_compressible(status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> bool {
    let has_content = !status.is_informational()
        && !matches!(
            status,
            StatusCode::NO_CONTENT
                | StatusCode::RESET_CONTENT
                | StatusCode::PARTIAL_CONTENT
                | StatusCode::NOT_MODIFIED
        );
    has_content
        && length.is_none_or(|length| length >= MIN_LENGTH)
        && headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(is_text_like)
        && [&CONTENT_ENCODING, &CONTENT_RANGE].iter().all(|name| !headers.contains_key(*name))
        && DIGESTS.iter().all(|name| !headers.contains_key(name))
        && !has_element(headers, &CACHE_CONTROL, "no-transform")
}

/// They are of the bytes as the server sent them.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// What a compressible answer says of itself, whether or not this client gets it compressed: caches must know.
pub(super) fn vary(headers: &mut HeaderMap) {
    let varies = |element: &str| element == "*" || element.eq_ignore_ascii_case("accept-encoding");
    if !elements(headers, &VARY).any(varies) {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// What changes in the head of an answer that is compressed.
pub(super) fn mark(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(CONTENT_LENGTH);
    // A range would be one of bytes that the client never saw.
    headers.remove(ACCEPT_RANGES);
    weaken(headers);
}

/// The bytes are others, the meaning is the same: a strong tag becomes a weak one (RFC 9110 section 8.8.1).
pub(super) fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) else { return };
    let weak = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat());
    if let Ok(weak) = weak {
        headers.insert(ETAG, weak);
    }
}

fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim)).filter(|element| !element.is_empty())
}

fn has_element(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    elements(headers, name).any(|element| element.eq_ignore_ascii_case(wanted))
}

/// Media types whose content is text or as redundant as text. Not event streams: their events are small, and not to be waited for.
fn is_text_like(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some((class, name)) = kind.split_once('/') else { return false };
    match class {
        "text" => name != "event-stream",
        "application" if name.starts_with("grpc") => false,
        _ if name.ends_with("+json") || name.ends_with("+xml") || name.ends_with("+text") => true,
        "application" => matches!(
            name,
            "json"
                | "xml"
                | "javascript"
                | "x-javascript"
                | "ecmascript"
                | "wasm"
                | "x-ndjson"
                | "ndjson"
                | "jsonl"
                | "yaml"
                | "toml"
                | "sql"
                | "graphql"
                | "rtf"
                | "xhtml"
                | "x-www-form-urlencoded"
                | "vnd.ms-fontobject"
                | "x-font-ttf"
        ),
        "font" => matches!(name, "ttf" | "otf" | "collection"),
        "image" => matches!(name, "bmp" | "x-icon" | "vnd.microsoft.icon"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_client_chooses_and_among_equals_we_do() {
        use Coding::{Brotli, Gzip, Zstd};
        for (accept, expected) in [
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, deflate, br", Some(Brotli)),
            ("gzip", Some(Gzip)),
            ("x-gzip", Some(Gzip)),
            ("GZIP;q=0.5, Br;Q=0.4", Some(Gzip)),
            ("gzip;q=1.0, br;q=0.9, zstd;q=0.800", Some(Gzip)),
            ("*", Some(Zstd)),
            ("zstd;q=0, *;q=0.1", Some(Brotli)),
            ("gzip;q=0", None),
            ("identity, *;q=0", None),
            ("identity;q=0.5, gzip;q=0.4", None),
            ("identity;q=0.5, gzip;q=0.5", Some(Gzip)),
            ("identity;q=0, gzip;q=0.001", Some(Gzip)),
            ("deflate, compress", None),
            ("", None),
            ("gzip;q=2, br;q=0.1234, zstd;q=x", None),
            ("gzip;q=1.001", None),
        ] {
            assert_eq!(negotiate(&Coding::ALL, &map(&[("accept-encoding", accept)])), expected, "{accept}");
        }
        let two = map(&[("accept-encoding", "gzip"), ("accept-encoding", "br")]);
        assert_eq!(negotiate(&[Gzip, Brotli], &two), Some(Gzip));
        assert_eq!(negotiate(&[], &two), None);
        assert_eq!(negotiate(&[Zstd], &two), None);
        assert_eq!(negotiate(&Coding::ALL, &HeaderMap::new()), None);
        let kept = map(&[("accept-encoding", "gzip"), ("cache-control", "max-age=0, No-Transform")]);
        assert_eq!(negotiate(&Coding::ALL, &kept), None);
    }

    #[test]
    fn what_may_be_compressed() {
        let json = ("content-type", "application/json");
        for (status, fields, length, expected) in [
            (200, &[json][..], None, true),
            (200, &[json], Some(1024), true),
            (200, &[json], Some(1023), false),
            (404, &[json], None, true),
            (204, &[json], None, false),
            (205, &[json], None, false),
            (206, &[json], None, false),
            (304, &[json], None, false),
            (101, &[json], None, false),
            (200, &[], None, false),
            (200, &[json, ("content-encoding", "br")], None, false),
            (200, &[json, ("content-encoding", "identity")], None, false),
            (200, &[json, ("content-range", "bytes 0-1/2")], None, false),
            (200, &[json, ("repr-digest", "sha-256=:x:")], None, false),
            (200, &[json, ("cache-control", "public"), ("cache-control", "no-transform")], None, false),
            (200, &[json, ("cache-control", "public, max-age=60")], None, true),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(
                is_compressible(status, &map(fields), length),
                expected,
                "{status} {fields:?} {length:?}"
            );
        }
        for (kind, expected) in [
            ("text/html; charset=utf-8", true),
            ("TEXT/CSS", true),
            ("text/event-stream", false),
            ("text/event-stream; charset=utf-8", false),
            ("application/grpc", false),
            ("application/grpc-web+json", false),
            ("application/grpc+proto", false),
            ("application/ld+json", true),
            ("image/svg+xml", true),
            ("image/png", false),
            ("application/wasm", true),
            ("application/octet-stream", false),
            ("application/zip", false),
            ("font/woff2", false),
            ("video/mp4", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_text_like(kind), expected, "{kind}");
        }
    }

    #[test]
    fn the_head_says_what_was_done() {
        let mut headers = map(&[
            ("content-length", "9"),
            ("accept-ranges", "bytes"),
            ("etag", "\"x\""),
            ("vary", "origin"),
        ]);
        vary(&mut headers);
        mark(&mut headers, Coding::Brotli);
        vary(&mut headers);
        let mut lines: Vec<_> =
            headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        lines.sort();
        assert_eq!(lines, ["content-encoding: br", "etag: W/\"x\"", "vary: accept-encoding", "vary: origin"]);
        weaken(&mut headers);
        assert_eq!(headers["etag"], "W/\"x\"");
        for before in ["Accept-Encoding", "origin, accept-encoding", "*"] {
            let mut headers = map(&[("vary", before)]);
            vary(&mut headers);
            assert_eq!(headers.len(), 1, "{before}");
        }
    }
}
