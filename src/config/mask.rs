//! Hides secrets in the lines that a report shows: a report ends up in logs, terminals and bug trackers.
//!
//! Works on the text alone too, since a file with broken syntax still holds secrets.

use super::error::Span;
use super::sections;
use super::table::Kind;
use crate::dns::vendors;

/// Parts of key names that are only used for secrets.
const TELLING: &[&str] = &["token", "secret", "passw", "api_key", "apikey", "hmac"];

/// `text` with a star for each byte of `spans`, of values whose key sounds like a secret, and of passwords in URLs. Every
/// other byte stays where it is.
pub(super) fn masked(text: &str, spans: &[Span]) -> String {
    let mut hidden: Vec<Span> = spans.to_vec();
    for (at, _) in text.match_indices('=') {
        if is_telling(key_before(text, at)) {
            hidden.extend(value_after(text, at + 1));
        }
    }
    for (at, mark) in text.match_indices("://") {
        let start = at + mark.len();
        let rest = &text[start..];
        let end = rest.find(|c: char| c.is_whitespace() || "/\"'`".contains(c)).unwrap_or(rest.len());
        if let Some(user) = rest[..end].rfind('@') {
            hidden.push(start..start + user);
        }
    }
    let mut bytes = text.as_bytes().to_vec();
    for span in hidden {
        let Some(mut inner) = bytes.get_mut(span) else { continue };
        if let [b'"' | b'\'', middle @ .., b'"' | b'\''] = inner {
            inner = middle;
        }
        inner.iter_mut().filter(|byte| !byte.is_ascii_whitespace()).for_each(|byte| *byte = b'*');
    }
    String::from_utf8(bytes).unwrap_or_default()
}

fn is_telling(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let secret_of_vendor =
        || vendors().iter().flat_map(|v| v.keys).any(|k| k.secret && k.name == key && key != "key");
    let own = || {
        let keys = sections::OWN_PROVIDERS.iter().flat_map(|(_, keys)| keys.iter());
        keys.filter(|k| matches!(k.kind, Kind::Secret)).any(|k| k.name == key)
    };
    TELLING.iter().any(|part| key.contains(part)) || own() || secret_of_vendor()
}

/// The key that ends before the `=` at `at`, without quotes and without what stands before its last dot.
fn key_before(text: &str, at: usize) -> &str {
    let before = text[..at].trim_end_matches([' ', '\t']).trim_end_matches(['"', '\'']);
    let start =
        before.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).map_or(0, |i| i + 1);
    before.get(start..).unwrap_or_default()
}

/// The contents of the string that is the value from `at` on; nothing for a table, which only names a secret.
fn value_after(text: &str, at: usize) -> Option<Span> {
    let rest = &text[at..];
    let start = at + rest.len() - rest.trim_start_matches([' ', '\t']).len();
    let rest = &text[start..];
    let inside = |open: usize, close: &str| {
        let body = start + open;
        let line = if close.len() == 3 {
            text.len()
        } else {
            text[body..].find('\n').map_or(text.len(), |n| body + n)
        };
        let end = text[body..line].find(close).map_or(line, |n| body + n);
        Some(body..end)
    };
    match rest.as_bytes() {
        [b'{', ..] => None,
        [b'"', b'"', b'"', ..] => inside(3, "\"\"\""),
        [b'\'', b'\'', b'\'', ..] => inside(3, "'''"),
        [b'"', ..] => {
            let mut escaped = false;
            let closing = |c: char| {
                let ends = c == '\n' || (c == '"' && !escaped);
                escaped = c == '\\' && !escaped;
                ends
            };
            let end = rest[1..].find(closing).map_or(text.len(), |n| start + 1 + n);
            Some(start + 1..end)
        }
        [b'\'', ..] => inside(1, "'"),
        [b'[', ..] => Some(start + 1..rest.find(']').map_or(text.len(), |n| start + n)),
        _ => {
            let end = rest.find(|c: char| c.is_whitespace() || ",}]#".contains(c)).unwrap_or(rest.len());
            Some(start..start + end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        for (text, shown) in [
            ("token = \"abc\"", "token = \"***\""),
            ("token=abc # x", "token=*** # x"),
            ("token = 'a b'", "token = '* *'"),
            ("x = { api_token = \"a\\\"b\", y = 1 }", "x = { api_token = \"****\", y = 1 }"),
            ("\"password\" = \"abc", "\"password\" = \"***"),
            ("dns.secret = \"\"\"\nabc\n\"\"\"\nx = 1", "dns.secret = \"\"\"\n***\n\"\"\"\nx = 1"),
            ("token = { env = \"NAME\" }", "token = { env = \"NAME\" }"),
            ("key = \"p256\"", "key = \"p256\""),
            ("to = \"http://ada:pw@host/x@y\"", "to = \"http://******@host/x@y\""),
            ("token = \"äö\"", "token = \"****\""),
            ("token = [\"a\", \"b\"]", "token = [\"*** **\"]"),
        ] {
            assert_eq!(masked(text, &[]), shown);
        }
        assert_eq!(masked("a = \"xyz\"", &[4..9, 50..60]), "a = \"***\"");
    }
}
