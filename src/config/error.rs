//! Problems of a configuration: what a person reads when a file is wrong.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// A range of bytes in the file.
pub(super) type Span = Range<usize>;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file works, and probably does not do what its author thinks.
    Warning,
}

/// One problem, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    severity: Severity,
    message: String,
    span: Span,
    label: Option<String>,
    related: Vec<(Span, String)>,
    help: Vec<String>,
}

impl Problem {
    /// Something that makes the file unusable.
    pub(super) fn error(span: Span, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { severity: Severity::Error, message, span, label: None, related: Vec::new(), help: Vec::new() }
    }

    /// Something that a person should know.
    pub(super) fn warning(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// Words beside the carets.
    pub(super) fn label(mut self, text: impl Into<String>) -> Self {
        self.label = Some(text.into());
        self
    }

    /// What to do, below the excerpt. May be called again.
    pub(super) fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// Help if there is any to give.
    pub(super) fn maybe_help(self, text: Option<impl Into<String>>) -> Self {
        match text {
            Some(text) => self.help(text),
            None => self,
        }
    }

    /// Another place that has to do with it.
    pub(super) fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.related.push((span, text.into()));
        self
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// The first line of what is printed, without `error: `.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }
}

/// All problems of one file, in the order of their places. `Display` is the whole report, without colours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    file: String,
    text: Arc<str>,
    list: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(file: &str, text: &str, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| (problem.span.start, problem.severity));
        list.dedup();
        Self { file: file.to_owned(), text: text.into(), list }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// The line of `problem`, counted from 1.
    pub fn line(&self, problem: &Problem) -> usize {
        1 + self.before(problem).matches('\n').count()
    }

    /// The column of `problem` in characters, counted from 1.
    pub fn column(&self, problem: &Problem) -> usize {
        1 + self.before(problem).rsplit('\n').next().unwrap_or_default().chars().count()
    }

    fn before(&self, problem: &Problem) -> &str {
        &self.text[..floor(&self.text, problem.span.start)]
    }

    /// The whole report; `colour` for terminals.
    pub fn render(&self, colour: bool) -> String {
        let mut out = String::new();
        for problem in &self.list {
            out.push_str(&self.render_one(problem, colour));
            out.push_str("\n\n");
        }
        out.truncate(out.trim_end().len());
        out
    }

    /// The report of one of them; `colour` for terminals.
    pub fn render_one(&self, problem: &Problem, colour: bool) -> String {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let place = self.visible(&problem.span);
        let mut snippet = Snippet::source(&*self.text)
            .path(self.file.as_str())
            .annotation(AnnotationKind::Primary.span(place).label(problem.label.as_deref()));
        for (span, text) in &problem.related {
            snippet =
                snippet.annotation(AnnotationKind::Context.span(self.visible(span)).label(text.as_str()));
        }
        let mut group = level.primary_title(problem.message.as_str()).element(snippet);
        for help in &problem.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        without_gaps(&renderer.render(&[group]))
    }

    /// `span` cut to its first line and to whole characters, at least one character wide where there is one.
    fn visible(&self, span: &Span) -> Span {
        let start = floor(&self.text, span.start);
        let end = floor(&self.text, span.end).max(start);
        let line = self.text[start..end].find(['\n', '\r']).map_or(end, |at| start + at);
        start..line
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

/// Why no plan came out. `Display` is what a person sees.
#[derive(Debug)]
pub enum LoadError {
    /// The file cannot be read.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It can, and is wrong.
    Problems(Problems),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, reason } => write!(f, "error: cannot read {}: {reason}", path.display()),
            Self::Problems(problems) => problems.fmt(f),
        }
    }
}

impl std::error::Error for LoadError {}

/// The nearest index at or before `at` that is a character's edge.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Drops the empty gutter line that the renderer puts between the excerpt and the help.
fn without_gaps(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let bare = |line: &str| strip_colours(line).trim().to_owned();
    let keep = |(index, line): &(usize, &&str)| {
        let before_help = lines.get(index + 1).is_some_and(|next| bare(next).starts_with("= "));
        !(before_help && bare(line) == "|")
    };
    let kept: Vec<&str> = lines.iter().enumerate().filter(keep).map(|(_, line)| line.trim_end()).collect();
    kept.join("\n")
}

fn strip_colours(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        out.push_str(before);
        rest = after.split_once('m').map_or("", |(_, tail)| tail);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[upstreams.app]\nservers = []\nload_balance = \"p2c\"\n";

    fn problems(problem: Problem) -> Problems {
        Problems::new("starlock.toml", TEXT, vec![problem])
    }

    #[test]
    fn the_report_has_place_excerpt_label_and_help() {
        let at = TEXT.find("load_balance").unwrap();
        let problem = Problem::error(at..at + 12, "unknown key `load_balance` in [upstreams.app]")
            .label("did you mean `balance`?")
            .help("one of p2c, round_robin, random, hash");
        let expected = "\
error: unknown key `load_balance` in [upstreams.app]
 --> starlock.toml:3:1
  |
3 | load_balance = \"p2c\"
  | ^^^^^^^^^^^^ did you mean `balance`?
  = help: one of p2c, round_robin, random, hash";
        assert_eq!(problems(problem.clone()).to_string(), expected);
        let coloured = problems(problem).render(true);
        assert_eq!(coloured.lines().map(strip_colours).collect::<Vec<_>>().join("\n"), expected);
    }

    #[test]
    fn odd_spans_are_cut_to_what_can_be_shown() {
        for span in [0..usize::MAX, 500..600, TEXT.len()..TEXT.len()] {
            assert!(problems(Problem::warning(span, "x")).to_string().starts_with("warning: x\n"));
        }
        let umlaut = Problems::new("f", "ä = 1", vec![Problem::error(1..2, "x")]);
        assert!(umlaut.to_string().contains("f:1:1"), "{umlaut}");
        assert_eq!(umlaut.column(umlaut.iter().next().unwrap()), 1);
        assert!(Problems::new("f", "", vec![Problem::error(0..0, "x")]).to_string().contains("f:1:1"));
    }
}
