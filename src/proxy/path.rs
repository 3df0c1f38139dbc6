//! One path for matching and forwarding: RFC 3986 normal form, decided once for each request.

use std::borrow::Cow;

/// Why a path is refused with 400. The client is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Does not start with `/`.
    #[error("the path does not start with `/`")]
    NotAbsolute,
    /// `%` without two hexadecimal digits.
    #[error("`%` is not followed by two hexadecimal digits")]
    BadEscape,
    /// A control byte, plain or escaped; `%00` is one.
    #[error("the path holds a control byte")]
    Control,
    /// `\`, plain or escaped: some servers read it as `/`.
    #[error("the path holds a backslash")]
    Backslash,
}

/// What a byte of a path is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Stands as it is, and is never escaped.
    Unreserved,
    /// Stands as it is, but `%XX` of it means something else.
    Reserved,
    /// Only stands escaped.
    Escaped,
    Percent,
    Control,
    Backslash,
}

const CLASSES: [Class; 256] = {
    let mut table = [Class::Escaped; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Class::Unreserved,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
            | b'/' => Class::Reserved,
            b'%' => Class::Percent,
            b'\\' => Class::Backslash,
            0..=31 | 127 => Class::Control,
            _ => Class::Escaped,
        };
        byte += 1;
    }
    table
};

/// The normal form of `path` (no query): unreserved characters decoded, what must be escaped escaped, hexadecimal digits in upper
/// case, dot segments removed. `%2F` is data and stays; so do empty segments. Borrowed when `path` is normal already.
///
/// The normal form of a normal form is itself.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    let mut plain = true;
    let mut dots = false;
    let mut last = b'/';
    for &byte in bytes {
        match CLASSES[byte as usize] {
            Class::Unreserved | Class::Reserved => {}
            Class::Percent | Class::Escaped => plain = false,
            Class::Control => return Err(PathError::Control),
            Class::Backslash => return Err(PathError::Backslash),
        }
        dots |= last == b'/' && byte == b'.';
        last = byte;
    }
    if plain && !dots {
        return Ok(Cow::Borrowed(path));
    }
    let escaped = if plain { Cow::Borrowed(path) } else { Cow::Owned(escape(bytes)?) };
    Ok(remove_dot_segments(escaped))
}

fn escape(bytes: &[u8]) -> Result<String, PathError> {
    let mut out = String::with_capacity(bytes.len() + 16);
    let mut rest = bytes.iter().copied();
    while let Some(byte) = rest.next() {
        match CLASSES[byte as usize] {
            Class::Percent => {
                let mut digit =
                    || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or(PathError::BadEscape);
                let decoded = (digit()? * 16 + digit()?) as u8;
                match CLASSES[decoded as usize] {
                    Class::Unreserved => out.push(char::from(decoded)),
                    Class::Control => return Err(PathError::Control),
                    Class::Backslash => return Err(PathError::Backslash),
                    Class::Reserved | Class::Escaped | Class::Percent => push_escaped(&mut out, decoded),
                }
            }
            Class::Escaped => push_escaped(&mut out, byte),
            Class::Control => return Err(PathError::Control),
            Class::Backslash => return Err(PathError::Backslash),
            Class::Unreserved | Class::Reserved => out.push(char::from(byte)),
        }
    }
    Ok(out)
}

fn push_escaped(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(HEX[usize::from(byte >> 4)]));
    out.push(char::from(HEX[usize::from(byte & 15)]));
}

/// RFC 3986 section 5.2.4 for an absolute path.
fn remove_dot_segments(path: Cow<'_, str>) -> Cow<'_, str> {
    if !path.split('/').any(|segment| segment == "." || segment == "..") {
        return path;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_dots = false;
    for segment in path.split('/').skip(1) {
        ends_in_dots = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    if ends_in_dots {
        kept.push("");
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    Cow::Owned(out)
}

/// The other paths that a server behind us might read a normal `path` as: with `%2F` decoded, `;params` dropped, `//` merged, and
/// every combination of these. Empty for nearly every request, and then nothing is allocated.
pub fn other_readings(path: &str) -> Vec<String> {
    if !has_other_readings(path) {
        return Vec::new();
    }
    let mut readings: Vec<String> = Vec::new();
    for choice in 1..8_u8 {
        let mut reading = path.to_owned();
        // Decoding comes first: what it yields may hold parameters and empty segments of its own.
        if choice & 1 != 0 {
            reading = reading.replace("%2F", "/").replace("%3B", ";");
        }
        if choice & 2 != 0 {
            reading = without_params(&reading);
        }
        // A server that merges slashes may do so before or after it removes dot segments.
        if choice & 4 != 0 {
            add(&mut readings, path, merged(&remove_dot_segments(Cow::Borrowed(&reading))));
            reading = merged(&reading);
        }
        add(&mut readings, path, remove_dot_segments(Cow::Owned(reading)).into_owned());
    }
    readings
}

fn has_other_readings(path: &str) -> bool {
    path.contains(';') || path.contains("//") || path.contains("%2F") || path.contains("%3B")
}

fn add(readings: &mut Vec<String>, path: &str, reading: String) {
    if reading != path && !readings.contains(&reading) {
        readings.push(reading);
    }
}

fn without_params(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            out.push('/');
        }
        out.push_str(segment.split(';').next().unwrap_or_default());
    }
    out
}

fn merged(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.chars() {
        if byte != '/' || !out.ends_with('/') {
            out.push(byte);
        }
    }
    out
}

/// Whether `prefix` (normal; no trailing slash but for the root) is `path` or ends at one of its segment boundaries.
pub fn has_prefix(path: &str, prefix: &str) -> bool {
    prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `path` without `prefix`, which must be one of it (see [`has_prefix`]); at least `/`. A normal path stays normal.
pub fn without_prefix<'a>(path: &'a str, prefix: &str) -> &'a str {
    match path.strip_prefix(prefix) {
        _ if prefix == "/" => path,
        Some("") => "/",
        Some(rest) => rest,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_forms() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/%61%2d%7E", "/a-~"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%252fb", "/a%252fb"),
            ("/a b", "/a%20b"),
            ("/ü{}\"", "/%C3%BC%7B%7D%22"),
            ("/%c3%bc", "/%C3%BC"),
            ("/a/./b/../c", "/a/c"),
            ("/a/%2e%2E/b", "/b"),
            ("/..", "/"),
            ("/../../x", "/x"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a//b", "/a//b"),
            ("//", "//"),
            ("/a/..//b", "//b"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a;b=1/c", "/a;b=1/c"),
            ("/!$&'()*+,;=:@", "/!$&'()*+,;=:@"),
            ("/%21", "/%21"),
        ] {
            assert_eq!(normalise(path).as_deref(), Ok(expected), "{path}");
        }
        assert!(matches!(normalise("/.well-known/x"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn refusals() {
        for (path, expected) in [
            ("", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("a/b", PathError::NotAbsolute),
            ("/%", PathError::BadEscape),
            ("/%2", PathError::BadEscape),
            ("/%zz", PathError::BadEscape),
            ("/%+1", PathError::BadEscape),
            ("/%00", PathError::Control),
            ("/a%0d%0aX", PathError::Control),
            ("/%7f", PathError::Control),
            ("/\u{7f}", PathError::Control),
            ("/a\\..\\b", PathError::Backslash),
            ("/a%5Cb", PathError::Backslash),
        ] {
            assert_eq!(normalise(path), Err(expected), "{path}");
        }
    }

    #[test]
    fn other_readings_are_found() {
        for plain in ["/", "/a/b", "/a%20b", "/a%252Fb", "/%21"] {
            assert!(other_readings(plain).is_empty(), "{plain}");
        }
        for (path, reading) in [
            ("//admin", "/admin"),
            ("/x%2Fadmin", "/x/admin"),
            ("/%2Fadmin", "/admin"),
            ("/x%2F..%2Fadmin", "/admin"),
            ("/x/..;/admin", "/admin"),
            ("/admin;v=1/x", "/admin/x"),
            ("/admin%3Bv=1/x", "/admin/x"),
            ("/x//..%2Fadmin", "/admin"),
            ("/x//../admin", "/admin"),
            ("/;/admin", "/admin"),
        ] {
            let readings = other_readings(path);
            assert!(readings.iter().any(|r| r == reading), "{path}: {readings:?}");
        }
    }

    #[test]
    fn prefixes_end_at_a_segment() {
        for (path, prefix, has, rest) in [
            ("/api", "/api", true, "/"),
            ("/api/", "/api", true, "/"),
            ("/api/x", "/api", true, "/x"),
            ("/api//x", "/api", true, "//x"),
            ("/x", "/", true, "/x"),
            ("/apix", "/api", false, "x"),
            ("/", "/api", false, "/"),
        ] {
            assert_eq!(has_prefix(path, prefix), has, "{path} {prefix}");
            assert_eq!(without_prefix(path, prefix), rest, "{path} {prefix}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own(path in r"/([a-zA-Z.%/;20-9eEfF~ü{ ]|%2[eEfF]|\.\./|/\.){0,24}") {
            if let Ok(normal) = normalise(&path) {
                let again = normalise(&normal);
                prop_assert_eq!(again.as_deref(), Ok(&*normal));
                prop_assert!(normal.is_ascii());
                prop_assert!(!normal.split('/').any(|s| s == "." || s == ".."));
                for reading in other_readings(&normal) {
                    prop_assert!(reading.starts_with('/'));
                }
                if has_prefix(&normal, "/a") {
                    let stripped = without_prefix(&normal, "/a");
                    let again = normalise(stripped);
                    prop_assert_eq!(again.as_deref(), Ok(stripped));
                }
            }
        }
    }
}
