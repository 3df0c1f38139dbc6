//! `error_pages`: what errors look like.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

/// A page is no larger than this.
pub const MAX_PAGE: u64 = 256 << 10;

/// Which file is shown for which status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PagesSpec {
    /// A status comes before its class.
    pub files: Vec<(PageFor, PathBuf)>,
    /// Whether the errors of servers are shown so, too.
    pub upstream: bool,
}

/// What a page is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFor {
    /// 400 to 599.
    Status(u16),
    /// 4 or 5: `4xx`.
    Class(u16),
}

impl PageFor {
    /// Reads `404` or `5xx`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "4xx" => Some(Self::Class(4)),
            "5xx" => Some(Self::Class(5)),
            _ => text
                .parse()
                .ok()
                .filter(|status| (400..600).contains(status) && text.len() == 3)
                .map(Self::Status),
        }
    }
}

impl fmt::Display for PageFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

/// The error pages of a route, read.
#[derive(Debug, Default)]
pub struct Pages {
    pages: Box<[(PageFor, Arc<Page>)]>,
    upstream: bool,
}

impl Pages {
    /// The page for `status`. `upstream`: a server made the answer.
    pub fn page(&self, status: StatusCode, upstream: bool) -> Option<&Page> {
        if upstream && !self.upstream {
            return None;
        }
        let found = |wanted: PageFor| self.pages.iter().find(|(page, _)| *page == wanted);
        let status = status.as_u16();
        let (_, page) = found(PageFor::Status(status)).or_else(|| found(PageFor::Class(status / 100)))?;
        Some(page)
    }
}

/// Files that are read once for all routes.
#[derive(Debug, Default)]
pub struct PageFiles(HashMap<PathBuf, Arc<Page>>);

impl PageFiles {
    /// Reads the pages of a route. Blocking.
    pub fn read(&mut self, spec: &PagesSpec) -> Result<Pages, PageError> {
        let mut pages = Vec::with_capacity(spec.files.len());
        for (wanted, path) in &spec.files {
            let page = match self.0.get(path) {
                Some(page) => page.clone(),
                None => {
                    let page = Arc::new(Page::read(path)?);
                    self.0.insert(path.clone(), page.clone());
                    page
                }
            };
            pages.push((*wanted, page));
        }
        Ok(Pages { pages: pages.into(), upstream: spec.upstream })
    }
}

/// A page that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the error page {} cannot be used: {reason}", path.display())]
pub struct PageError {
    path: PathBuf,
    reason: String,
}

/// A page with its placeholders.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    kind: &'static str,
    pieces: Box<[Piece]>,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Status,
    Reason,
    RequestId,
}

impl Page {
    /// Reads a page: UTF-8, at most [`MAX_PAGE`]. `{status}`, `{reason}` and `{request_id}` are filled in, all else stays. Blocking.
    pub fn read(path: &Path) -> Result<Self, PageError> {
        let error = |reason: String| PageError { path: path.to_owned(), reason };
        let metadata = std::fs::metadata(path).map_err(|e| error(e.to_string()))?;
        if !metadata.is_file() {
            return Err(error("it is not a file".to_owned()));
        }
        let file = std::fs::File::open(path).map_err(|e| error(e.to_string()))?;
        let mut bytes = Vec::new();
        file.take(MAX_PAGE + 1).read_to_end(&mut bytes).map_err(|e| error(e.to_string()))?;
        if bytes.len() as u64 > MAX_PAGE {
            return Err(error(format!("it is over the limit of {} KiB", MAX_PAGE >> 10)));
        }
        let text = String::from_utf8(bytes).map_err(|_| error("it is not UTF-8".to_owned()))?;
        let kind = match path.extension().and_then(|e| e.to_str()) {
            Some("html" | "htm") => "text/html; charset=utf-8",
            Some("json") => "application/json",
            Some("xml") => "application/xml",
            Some("txt") | None => "text/plain; charset=utf-8",
            Some(other) => {
                return Err(error(format!("`.{other}` is none of .html, .htm, .txt, .json, .xml")));
            }
        };
        Ok(Self { kind, pieces: pieces(&text) })
    }

    /// The media type and the page for one answer.
    pub fn fill(&self, status: StatusCode, id: &str) -> (HeaderValue, Bytes) {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Status => out.push_str(status.as_str()),
                Piece::Reason => self.escape(status.canonical_reason().unwrap_or("Error"), &mut out),
                Piece::RequestId => self.escape(id, &mut out),
            }
        }
        (HeaderValue::from_static(self.kind), out.into())
    }

    /// Text within HTML and XML, quoted attributes included; within a JSON text.
    fn escape(&self, text: &str, out: &mut String) {
        for c in text.chars() {
            match c {
                '"' | '\\' if self.kind == "application/json" => out.extend(['\\', c]),
                _ if self.kind.starts_with("text/plain") || self.kind == "application/json" => out.push(c),
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\'' => out.push_str("&#39;"),
                c => out.push(c),
            }
        }
    }
}

fn pieces(text: &str) -> Box<[Piece]> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let known =
            [("{status}", Piece::Status), ("{reason}", Piece::Reason), ("{request_id}", Piece::RequestId)];
        plain.push_str(&rest[..at]);
        match known.into_iter().find(|(word, _)| rest[at..].starts_with(word)) {
            Some((word, piece)) => {
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
                }
                pieces.push(piece);
                rest = &rest[at + word.len()..];
            }
            None => {
                plain.push('{');
                rest = &rest[at + 1..];
            }
        }
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain.into()));
    }
    pieces.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_comes_before_its_class_and_servers_only_if_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let html = file("a.html", "<style>a{b:c}</style><h1>{status} {reason}</h1>{request_id}{status");
        let json = file("b.json", r#"{"status": {status}, "id": "{request_id}"}"#);
        let mut spec = PagesSpec {
            files: vec![(PageFor::Class(4), json.clone()), (PageFor::Status(404), html)],
            upstream: false,
        };
        let pages = PageFiles::default().read(&spec).unwrap();
        let shown = |status: u16, id: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            let (kind, page) = pages.page(status, false)?.fill(status, id);
            Some((kind.to_str().unwrap().to_owned(), String::from_utf8(page.to_vec()).unwrap()))
        };
        let (kind, page) = shown(404, "<a&\"'>").unwrap();
        assert_eq!(kind, "text/html; charset=utf-8");
        assert_eq!(page, "<style>a{b:c}</style><h1>404 Not Found</h1>&lt;a&amp;&quot;&#39;&gt;{status");
        let (kind, page) = shown(403, "a\"").unwrap();
        assert_eq!((&*kind, &*page), ("application/json", r#"{"status": 403, "id": "a\""}"#));
        assert_eq!(shown(500, ""), None);
        assert!(pages.page(StatusCode::NOT_FOUND, true).is_none());
        spec.upstream = true;
        let mut files = PageFiles::default();
        assert!(files.read(&spec).unwrap().page(StatusCode::NOT_FOUND, true).is_some());
        std::fs::remove_file(json).unwrap();
        assert!(files.read(&spec).is_ok(), "read once for all routes");
    }

    #[test]
    fn pages_that_cannot_be_used_say_why() {
        let dir = tempfile::tempdir().unwrap();
        let reason = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            Page::read(&path).map(drop).unwrap_err().to_string()
        };
        assert!(
            reason("large.html", &vec![b'x'; MAX_PAGE as usize + 1]).contains("over the limit of 256 KiB")
        );
        assert!(reason("bytes.html", b"\xff").contains("not UTF-8"));
        assert!(reason("page.php", b"").contains("`.php` is none of"));
        assert!(Page::read(dir.path()).unwrap_err().to_string().contains("not a file"));
        assert!(Page::read(&dir.path().join("none.html")).is_err());
    }

    #[test]
    fn keys() {
        assert_eq!(PageFor::parse("404"), Some(PageFor::Status(404)));
        assert_eq!(PageFor::parse("5xx"), Some(PageFor::Class(5)));
        for bad in ["200", "600", "3xx", "0404", "+404", "x", ""] {
            assert_eq!(PageFor::parse(bad), None, "{bad}");
        }
    }
}
