//! What is wrong with a file as TOML, in words for a person.

use std::ops::ControlFlow;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::blame::toml_key;
use super::decode::{Node, sorted};
use super::error::{Problem, Span};

/// The tree as far as it could be made out, and what TOML itself says.
pub(super) fn tree(text: &str) -> (Spanned<DeTable<'_>>, Vec<Error>) {
    let (root, mut errors) = DeTable::parse_recoverable(text);
    errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    (root, errors)
}

/// Every syntax problem that is not a consequence of another one.
pub(super) struct Explained {
    pub(super) problems: Vec<Problem>,
    /// Whether the tree is whole enough to look for other problems in it.
    pub(super) usable: bool,
}

/// Puts `errors` into words. `text` may have its secrets masked; every place in it is the same.
pub(super) fn explain(text: &str, errors: &[Error], root: &DeTable<'_>) -> Explained {
    let mut problems: Vec<Problem> = Vec::new();
    let mut usable = true;
    let mut swallowed: Vec<Span> = Vec::new();
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if let Some(open) = unclosed(error, &span, root) {
            problems.push(open_bracket(text, &open));
            swallowed.push(open);
            usable = false;
        }
    }
    let mut last_line = None;
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if swallowed.iter().any(|open| (open.start..=open.end).contains(&span.start)) {
            continue;
        }
        let line = text.get(..span.start).unwrap_or_default().matches('\n').count();
        if last_line.replace(line) == Some(line) {
            continue; // one slip of the pen makes several errors in a row
        }
        let (problem, harmless) = explain_one(text, error, span, root);
        usable &= harmless;
        problems.push(problem);
    }
    Explained { problems, usable }
}

/// A problem for `error`, and whether the tree can be trusted in spite of it.
fn explain_one(text: &str, error: &Error, span: Span, root: &DeTable<'_>) -> (Problem, bool) {
    let message = error.message();
    if message == "duplicate key" {
        return (duplicate(text, span, root), true);
    }
    if message.starts_with("invalid unquoted key") {
        let whole = around(text, &span, |c| !c.is_whitespace() && !"=[]{},\"'#".contains(c));
        let key = text.get(whole.clone()).unwrap_or_default().to_owned();
        let problem = Problem::error(whole, format!("key `{key}` needs quotes")).label("not a bare TOML key");
        return (problem.help(format!("write \"{key}\"")), true);
    }
    if message.starts_with("string values must be quoted") {
        let value = text.get(span.clone()).unwrap_or_default().to_owned();
        let secret = value.contains('*');
        let problem = Problem::error(span, "a text needs quotes");
        return (if secret { problem } else { problem.label(format!("write {value:?}")) }, true);
    }
    let nothing = text.get(span.clone()).is_none_or(str::is_empty);
    let own = |words: &str, label: &str| (Problem::error(span.clone(), words).label(label), false);
    match message {
        m if nothing && m.starts_with("invalid basic string") => {
            return own("a text is not closed on its line", "its `\"` is missing");
        }
        m if nothing && m.starts_with("invalid literal string") => {
            return own("a text is not closed on its line", "its `'` is missing");
        }
        m if m.starts_with("unclosed table") => {
            return own("a section header is not closed", "its `]` is missing");
        }
        m if m.starts_with("unclosed array table") => {
            return own("a section header is not closed", "its `]]` is missing");
        }
        m if m.starts_with("key with no value") => return own("a key has no value", "`=` is missing here"),
        m if m.starts_with("unquoted keys cannot be empty") => return own("a key is missing", "before this"),
        _ => {}
    }
    let problem = match message.split_once(", expected ") {
        Some((what, expected)) if nothing => {
            Problem::error(span, format!("TOML: {what}")).label(format!("expected {expected}"))
        }
        Some((what, expected)) => {
            Problem::error(span, format!("TOML: {what}")).help(format!("expected {expected}"))
        }
        None => Problem::error(span, format!("TOML: {message}")),
    };
    (problem, false)
}

/// A key or a header that is there twice.
fn duplicate(text: &str, span: Span, root: &DeTable<'_>) -> Problem {
    let before = text.get(..span.start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let front = &text[line_start..span.start];
    if front.trim_start().starts_with('[') && !front.contains('=') {
        let header = text[line_start..].lines().next().unwrap_or_default();
        let header = header.split('#').next().unwrap_or_default().trim();
        let problem = Problem::error(span, format!("section {header} is there twice"));
        let first = starts_of_lines(text)
            .map(|at| (at, text[at..].lines().next().unwrap_or_default()))
            .take_while(|(at, _)| *at < line_start)
            .find(|(_, line)| line.split('#').next().unwrap_or_default().trim() == header);
        return match first {
            Some((at, line)) => problem.label("again here").also(at..at + line.len(), "first here"),
            None => problem.label("its keys were already given"),
        };
    }
    let key = text.get(span.clone()).unwrap_or_default().trim_matches(['"', '\'']).to_owned();
    let mut first = None;
    let _ = visit(root, &mut |known, _| {
        let place = known.span();
        if known.get_ref() == key.as_str() && place.start < span.start && !place.is_empty() {
            first = first.clone().max_by_start(place);
        }
        ControlFlow::Continue(())
    });
    let problem = Problem::error(span, format!("{} is there twice", quoted(&key)));
    match first {
        Some(first) => problem.label("again here").also(first, "first here"),
        None => problem,
    }
}

fn quoted(key: &str) -> String {
    format!("`{}`", if toml_key(key) == key { key } else { key.trim() })
}

trait Later {
    fn max_by_start(self, other: Span) -> Option<Span>;
}

impl Later for Option<Span> {
    fn max_by_start(self, other: Span) -> Option<Span> {
        match self {
            Some(span) if span.start > other.start => Some(span),
            _ => Some(other),
        }
    }
}

fn starts_of_lines(text: &str) -> impl Iterator<Item = usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1))
}

/// The brackets that `error` says are open: their value ends where the error stands.
fn unclosed(error: &Error, span: &Span, root: &DeTable<'_>) -> Option<Span> {
    if !error.message().starts_with("unclosed array") && !error.message().starts_with("unclosed inline table")
    {
        return None;
    }
    let mut open = None;
    let _ = visit(root, &mut |_, node| {
        if matches!(node.get_ref(), DeValue::Array(_) | DeValue::Table(_)) && node.span().end == span.start {
            open = Some(node.span());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    open.filter(|open| open.start < open.end)
}

fn open_bracket(text: &str, open: &Span) -> Problem {
    let bracket = text.get(open.start..=open.start).unwrap_or("[");
    let close = if bracket == "{" { "}" } else { "]" };
    Problem::error(open.start..open.start + 1, format!("this `{bracket}` is never closed"))
        .label(format!("its `{close}` is missing"))
}

type Visitor<'v> = dyn FnMut(&Spanned<std::borrow::Cow<'_, str>>, &Node<'_>) -> ControlFlow<()> + 'v;

fn visit(table: &DeTable<'_>, seen: &mut Visitor<'_>) -> ControlFlow<()> {
    fn node(
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Node<'_>,
        seen: &mut Visitor<'_>,
    ) -> ControlFlow<()> {
        seen(key, value)?;
        match value.get_ref() {
            DeValue::Table(table) => visit(table, seen),
            DeValue::Array(array) => array.iter().try_for_each(|element| match element.get_ref() {
                DeValue::Table(table) => visit(table, seen),
                _ => ControlFlow::Continue(()),
            }),
            _ => ControlFlow::Continue(()),
        }
    }
    sorted(table).into_iter().try_for_each(|(key, value)| node(key, value, seen))
}

/// `span` grown to both sides over characters that `belongs` accepts.
fn around(text: &str, span: &Span, belongs: impl Fn(char) -> bool) -> Span {
    let before = text.get(..span.start).unwrap_or_default();
    let after = text.get(span.end..).unwrap_or_default();
    let left: usize = before.chars().rev().take_while(|c| belongs(*c)).map(char::len_utf8).sum();
    let right: usize = after.chars().take_while(|c| belongs(*c)).map(char::len_utf8).sum();
    span.start - left..span.end + right
}
