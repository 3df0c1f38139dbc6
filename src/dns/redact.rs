//! Foreign text on its way to a person: without secrets, on one line, of bounded length.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::secret::Secret;

/// An error page is cut here.
const MAX_TEXT: usize = 400;
/// Shorter secrets would blank out ordinary words.
const MIN_SECRET: usize = 4;
const MARK: &str = "[redacted]";

/// What may not be shown, in every shape in which it travels.
#[derive(Clone, Default)]
pub(super) struct Redactor(Vec<Secret>);

impl Redactor {
    /// Hides these values: as they are, percent-encoded, as a form, escaped in JSON, and in base64.
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut shapes = Vec::new();
        for secret in secrets {
            // Credentials of several lines or parts leak by the line.
            let parts = secret.split(|c: char| c.is_whitespace() || c == ',').chain([secret.trim()]);
            for part in parts.filter(|part| part.len() >= MIN_SECRET) {
                let percent = utf8_percent_encode(part, NON_ALPHANUMERIC).to_string();
                let json = serde_json::Value::from(part).to_string();
                shapes.extend([
                    part.to_owned(),
                    percent.replace("%20", "+"),
                    percent.replace("%2D", "-").replace("%2E", ".").replace("%5F", "_").replace("%2A", "*"),
                    percent,
                    json.trim_matches('"').to_owned(),
                    STANDARD.encode(part),
                ]);
            }
        }
        shapes.sort_by_key(|shape| std::cmp::Reverse(shape.len()));
        shapes.dedup();
        Self(shapes.into_iter().map(Secret::new).collect())
    }

    /// `text` without secrets and without URL queries, control characters escaped, cut at 400 characters.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.0 {
            text = text.replace(secret.expose(), MARK);
        }
        one_line(&without_queries(&text))
    }
}

/// One line of printable characters, cut at 400.
pub(super) fn one_line(text: &str) -> String {
    let mut line: String = text
        .trim()
        .chars()
        .take(MAX_TEXT + 1)
        .flat_map(|c| {
            let escaped = if c.is_control() { c.escape_default().collect() } else { vec![c] };
            escaped.into_iter()
        })
        .collect();
    if line.chars().count() > MAX_TEXT {
        line = line.chars().take(MAX_TEXT).collect();
        line.push('…');
    }
    line
}

/// Vendors put credentials into queries; nothing in one helps a person.
fn without_queries(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (front, url) = rest.split_at(start + 3);
        clean.push_str(front);
        let end = url.find(|c: char| c.is_whitespace() || "\"'<>)".contains(c)).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        match url.split_once('?') {
            Some((path, _)) => {
                clean.push_str(path);
                clean.push_str("?…");
                // The query may have ended with the sentence's punctuation.
                clean.push_str(if url.ends_with(':') { ":" } else { "" });
            }
            None => clean.push_str(url),
        }
        rest = after;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_gone_in_every_shape() {
        let redactor = Redactor::new(["hunter2 &/=", "line-one\nline-two"]);
        let json = serde_json::json!({ "key": "hunter2 &/=" }).to_string();
        for text in [
            "bad token hunter2 &/=".to_owned(),
            format!("GET /?t={}", utf8_percent_encode("hunter2 &/=", NON_ALPHANUMERIC)),
            "token=hunter2+%26%2F%3D&x".to_owned(),
            format!("Authorization: {}", STANDARD.encode("hunter2 &/=")),
            json,
            "…line-two…".to_owned(),
        ] {
            let clean = redactor.clean(&text);
            assert!(!clean.contains("hunter2") && !clean.contains("line-two"), "{clean}");
            assert!(clean.contains(MARK), "{clean}");
        }
    }

    #[test]
    fn queries_newlines_and_length_are_cut() {
        let redactor = Redactor::default();
        let text = "Failed to send request to https://api.example/x?token=abc&y=1: timed out\n\u{1b}[31mred";
        let clean = redactor.clean(text);
        assert_eq!(clean, "Failed to send request to https://api.example/x?…: timed out\\n\\u{1b}[31mred");
        assert_eq!(redactor.clean(&"é".repeat(1000)).chars().count(), MAX_TEXT + 1);
    }
}
