//! Paths that become others: a pattern for normal paths, and what one that it matches becomes. Pure; linear in the path.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use regex::{Captures, Regex, RegexBuilder};

use super::path;

/// Bounds the memory of one pattern.
const MAX_PATTERN: usize = 1 << 20;

/// What cannot stand in a path or a query as it is; `%` can, since what is written may be escaped already.
const LITERAL: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}').add(b'^').add(b'|');

/// What parts queries; a captured piece of a path must not do it.
const IN_QUERY: &AsciiSet = &CONTROLS.add(b'&').add(b'=').add(b'+').add(b';').add(b'#');

/// A pattern and a template.
#[derive(Debug)]
pub struct Rewrite {
    pattern: Regex,
    path: Box<[Piece]>,
    query: Option<Box<[Piece]>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Group(usize),
}

/// Why a pattern or a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Not a regular expression, or one that is too large.
    #[error("the pattern cannot be used: {0}")]
    Pattern(String),
    /// A group that the pattern does not have.
    #[error("the pattern has no group `{0}`")]
    Group(String),
    /// `$` without a group.
    #[error("`$` is followed by a group such as $1 or ${{name}}; `$$` is a dollar")]
    Dollar,
    /// The path would never be its own normal form.
    #[error(
        "what paths become must begin with `/` and hold neither `.` and `..` as segments, nor `#`, nor a backslash"
    )]
    NotNormal,
}

/// What a path became, and it cannot be used: it is not its own normal form, so a server might read it as another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten path is not in normal form")]
pub struct NotNormal;

/// What a path became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Its own normal form.
    pub path: String,
    /// The query that the template has; without one, that of the request stays.
    pub query: Option<String>,
}

impl Rewrite {
    /// Reads a pattern (the syntax of the `regex` crate) and a template: `/new/$1`, `/${name}?id=$2`; `$$` is a dollar.
    pub fn new(pattern: &str, template: &str) -> Result<Self, RewriteError> {
        let pattern = RegexBuilder::new(pattern)
            .size_limit(MAX_PATTERN)
            .dfa_size_limit(MAX_PATTERN)
            .build()
            .map_err(|error| RewriteError::Pattern(last_line(&error.to_string())))?;
        let (path, query) = match template.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (template, None),
        };
        let rewrite = Self {
            path: pieces(path, &pattern)?,
            query: query.map(|query| pieces(query, &pattern)).transpose()?,
            pattern,
        };
        let sample: String =
            rewrite.path.iter().map(|piece| if let Piece::Text(text) = piece { text } else { "x" }).collect();
        let begins_with_group = matches!(rewrite.path.first(), Some(Piece::Group(_)));
        let sample = if begins_with_group { format!("/{sample}") } else { sample };
        let normal = path::normalise(&sample).is_ok_and(|normal| normal == sample);
        if !normal || template.contains('#') {
            return Err(RewriteError::NotNormal);
        }
        Ok(rewrite)
    }

    /// Whether the template has a query.
    pub fn has_query(&self) -> bool {
        self.query.is_some()
    }

    /// What the normal path `path` becomes; `None` if the pattern does not match it.
    pub fn apply(&self, path: &str) -> Result<Option<Rewritten>, NotNormal> {
        let Some(captures) = self.pattern.captures(path) else { return Ok(None) };
        let new = expand(&self.path, &captures, |piece, out| out.push_str(piece));
        if !path::normalise(&new).is_ok_and(|normal| normal == new) {
            return Err(NotNormal);
        }
        let query = self.query.as_ref().map(|query| {
            expand(query, &captures, |piece, out| out.extend(utf8_percent_encode(piece, IN_QUERY)))
        });
        Ok(Some(Rewritten { path: new, query }))
    }
}

fn expand(pieces: &[Piece], captures: &Captures<'_>, put: impl Fn(&str, &mut String)) -> String {
    let mut out = String::with_capacity(64);
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Group(index) => put(captures.get(*index).map_or("", |m| m.as_str()), &mut out),
        }
    }
    out
}

fn pieces(template: &str, pattern: &Regex) -> Result<Box<[Piece]>, RewriteError> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            text.push('$');
            rest = after;
            continue;
        }
        let (group, after) = match after.strip_prefix('{') {
            Some(inner) => inner.split_once('}').ok_or(RewriteError::Dollar)?,
            None => after.split_at(after.bytes().take_while(u8::is_ascii_digit).count()),
        };
        let index = match group.parse::<usize>() {
            Ok(index) => Some(index).filter(|index| *index < pattern.captures_len()),
            Err(_) if group.is_empty() => return Err(RewriteError::Dollar),
            Err(_) => pattern.capture_names().position(|name| name == Some(group)),
        };
        push_text(&mut pieces, &mut text);
        pieces.push(Piece::Group(index.ok_or_else(|| RewriteError::Group(group.to_owned()))?));
        rest = after;
    }
    text.push_str(rest);
    push_text(&mut pieces, &mut text);
    Ok(pieces.into())
}

fn push_text(pieces: &mut Vec<Piece>, text: &mut String) {
    if !text.is_empty() {
        pieces.push(Piece::Text(utf8_percent_encode(&std::mem::take(text), LITERAL).to_string().into()));
    }
}

/// The regex crate draws the pattern first and says what is wrong last.
fn last_line(error: &str) -> String {
    let line = error.lines().last().unwrap_or(error).trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewritten(pattern: &str, to: &str, path: &str) -> Option<String> {
        let new = Rewrite::new(pattern, to).unwrap().apply(path).unwrap()?;
        Some(match new.query {
            Some(query) => format!("{}?{query}", new.path),
            None => new.path,
        })
    }

    #[test]
    fn captures_go_where_the_template_says() {
        for (pattern, to, path, expected) in [
            ("^/old/(.*)$", "/new/$1", "/old/a/b", Some("/new/a/b")),
            ("^/old/(.*)$", "/new/$1", "/old/", Some("/new/")),
            ("^/old/(.*)$", "/new/$1", "/other", None),
            ("^/u/(?<id>[0-9]+)/(.*)", "/users/${id}-$2/$$1", "/u/7/x", Some("/users/7-x/$1")),
            ("^/(.*)$", "$0", "/a%2Fb", Some("/a%2Fb")),
            ("^/(x)?", "/y$1z", "/", Some("/yz")),
            ("(?i)^/OLD", "/ü {}", "/old", Some("/%C3%BC%20%7B%7D")),
            (
                "^/find/(.*)$",
                "/search?q=$1&x=1",
                "/find/a&b=c;d+e%26",
                Some("/search?q=a%26b%3Dc%3Bd%2Be%26&x=1"),
            ),
        ] {
            assert_eq!(rewritten(pattern, to, path).as_deref(), expected, "{pattern} {to} {path}");
        }
    }

    #[test]
    fn a_result_that_could_be_read_in_two_ways_is_refused() {
        for (pattern, to, path) in [
            ("^/a(.*)$", "$1", "/ab"),
            ("^/(a)(.*)$", "/x/$2/..", "/a"),
            ("^/a/(.)(.*)$", "/$1./$2", "/a/.x"),
            ("^/(.)(.*)$", "/$2", "/%41"),
            ("^/(..)(.*)$", "/$1", "/%2F"),
            ("^/(%2)(.*)$", "/$1", "/%2F"),
        ] {
            if let Ok(rewrite) = Rewrite::new(pattern, to) {
                let result = rewrite.apply(path);
                let normal = matches!(&result, Ok(Some(new)) if path::normalise(&new.path).as_deref() == Ok(&*new.path));
                assert!(result.is_err() || normal, "{pattern} {to} {path}: {result:?}");
            }
        }
        assert_eq!(Rewrite::new("^/a(.*)$", "$1").unwrap().apply("/ab"), Err(NotNormal));
        assert_eq!(Rewrite::new("^/(%2)(.*)$", "/$1").unwrap().apply("/%2F"), Err(NotNormal));
        assert_eq!(Rewrite::new("^/a/(.)(.*)$", "/$1./$2").unwrap().apply("/a/.x"), Err(NotNormal));
    }

    #[test]
    fn what_can_never_work_is_found_at_load() {
        assert!(matches!(Rewrite::new("(", "/"), Err(RewriteError::Pattern(_))));
        assert!(matches!(Rewrite::new("(a{1000}){1000}", "/"), Err(RewriteError::Pattern(_))));
        assert_eq!(Rewrite::new("^/(a)", "/$2").unwrap_err(), RewriteError::Group("2".into()));
        assert_eq!(Rewrite::new("^/(a)", "/${name}").unwrap_err(), RewriteError::Group("name".into()));
        for to in ["/$", "/${1", "/$x"] {
            assert_eq!(Rewrite::new("^/(a)", to).unwrap_err(), RewriteError::Dollar, "{to}");
        }
        for to in ["", "new", "/a/../b", "/./$1", "/a#b", "/a\\b", "/%41", "/%zz"] {
            assert_eq!(Rewrite::new("^/(a)", to).unwrap_err(), RewriteError::NotNormal, "{to}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_out_is_its_own_normal_form(
            path in r"/([a-z.%/;0-9]|%2F|\.\./){0,20}",
            pattern in prop::sample::select(vec!["^/(.*)$", "^/(.)(.*)$", "(.*)/(.*)", "^/a(.?)(.*)$"]),
            to in prop::sample::select(vec!["/$1", "$0", "/x$1", "/x/$1/y", "/$1/$1"]),
        ) {
            let Ok(normal) = path::normalise(&path) else { return Ok(()) };
            if let Ok(Some(new)) = Rewrite::new(pattern, to).unwrap().apply(&normal) {
                let again = path::normalise(&new.path);
                prop_assert_eq!(again.as_deref(), Ok(&*new.path));
            }
        }
    }
}
