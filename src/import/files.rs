//! Other programs' files: bounded, sorted, and every failure told with its place.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Found;

/// A larger file holds no certificate, no key and no account.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// `acme.json` of a large installation holds thousands of certificates.
pub(super) const MAX_JSON: u64 = 256 * 1024 * 1024;
/// Nobody has more certificates in one directory.
const MAX_ENTRIES: usize = 100_000;

/// Reads a text.
pub(super) fn text(path: &Path) -> Result<String, String> {
    bounded(path, MAX_FILE)
}

/// Reads a text of at most `limit` bytes; nothing but a regular file.
pub(super) fn bounded(path: &Path, limit: u64) -> Result<String, String> {
    let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(limit + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > limit {
        return Err(format!("it is over the limit of {limit} bytes"));
    }
    Ok(text)
}

/// What lies in a directory, sorted; links are followed. A directory that is not there is empty.
pub(super) fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.take(MAX_ENTRIES).flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Directories among [`entries`].
pub(super) fn directories(dir: &Path) -> Vec<PathBuf> {
    entries(dir).into_iter().filter(|path| path.is_dir()).collect()
}

/// Every directory below `dir` that holds `name`, at most `depth` levels down.
pub(super) fn holding(dir: &Path, name: &str, depth: u8) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if dir.join(name).is_file() {
        found.push(dir.to_owned());
    }
    if depth > 0 {
        found.extend(directories(dir).iter().flat_map(|below| holding(below, name, depth - 1)));
    }
    found
}

/// The last part of a path.
pub(super) fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Found {
    /// Notes what is wrong at `place`, and goes on without it.
    pub(super) fn take<T>(&mut self, place: &Path, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(reason) => {
                self.problems.push((place.display().to_string(), reason));
                None
            }
        }
    }
}

/// `NAME = value`, `NAME='value'`, `NAME="value"` in files that are lists of them.
pub(super) fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches(|c| c == '\'' || c == '"'))
    })
}

/// A JSON file.
pub(super) fn json(path: &Path) -> Result<serde_json::Value, String> {
    serde_json::from_str(&text(path)?).map_err(|e| e.to_string())
}
