//! The walls of the house: who may import whom, how large a file may be, which room names which vendor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// A room and the rooms it may use. Bottom-up: nothing uses a room that stands below it.
const ROOMS: &[(&str, &[&str])] = &[
    ("name", &[]),
    ("secret", &[]),
    ("clock", &[]),
    ("backoff", &[]),
    ("task", &["backoff"]),
    ("conn", &["name"]),
    ("issuer", &["name", "clock", "secret"]),
    ("http_client", &["secret", "clock"]),
    ("telemetry", &["task", "clock"]),
    ("resolver", &["name", "clock", "task", "http_client"]),
    ("tls", &["name", "clock", "conn", "telemetry"]),
    ("storage", &["name", "clock", "task", "http_client", "telemetry"]),
    ("dns", &["name", "secret", "clock", "backoff", "resolver", "http_client", "task"]),
    ("balance", &["name", "secret", "clock", "backoff", "telemetry"]),
    ("upstream", &["name", "secret", "clock", "backoff", "task", "conn", "balance", "resolver", "telemetry"]),
    ("probe", &["backoff", "task", "balance", "upstream", "resolver"]),
    ("policy", &["name", "secret", "clock", "conn", "telemetry"]),
    ("responder", &["name", "task", "dns", "storage", "telemetry"]),
    ("ledger", &["name", "clock", "issuer", "storage"]),
    ("local_ca", &["name", "clock", "secret", "issuer", "storage"]),
    ("trust", &[]),
    ("import", &["secret"]),
    (
        "challenge",
        &["name", "clock", "backoff", "task", "conn", "dns", "resolver", "tls", "storage", "telemetry"],
    ),
    ("listen", &["name", "clock", "task", "tls", "conn", "telemetry"]),
    ("proxy", &["name", "secret", "clock", "task", "conn", "balance", "upstream", "policy", "telemetry"]),
    (
        "acme",
        &["name", "secret", "clock", "backoff", "task", "issuer", "challenge", "storage", "http_client"],
    ),
    (
        "certs",
        &["name", "secret", "clock", "backoff", "task", "issuer", "storage", "ledger", "tls", "telemetry"],
    ),
    ("deploy", &["name", "secret", "clock", "backoff", "task", "storage", "tls", "telemetry", "certs"]),
    (
        "notify",
        &["name", "secret", "clock", "backoff", "task", "http_client", "storage", "telemetry", "certs"],
    ),
    ("simulate", &["name", "issuer", "ledger", "certs"]),
    (
        "config",
        &[
            "deploy",
            "notify",
            "name",
            "secret",
            "issuer",
            "telemetry",
            "tls",
            "storage",
            "dns",
            "balance",
            "policy",
            "responder",
            "challenge",
            "listen",
            "proxy",
            "acme",
        ],
    ),
    ("admin", &["backoff", "clock", "task", "telemetry"]),
    (
        "doctor",
        &[
            "name",
            "secret",
            "clock",
            "task",
            "issuer",
            "http_client",
            "telemetry",
            "resolver",
            "tls",
            "storage",
            "ledger",
            "dns",
            "upstream",
            "responder",
            "challenge",
            "proxy",
            "acme",
            "notify",
            "config",
            "admin",
        ],
    ),
    (
        "app",
        &[
            "name",
            "secret",
            "clock",
            "backoff",
            "task",
            "conn",
            "issuer",
            "http_client",
            "telemetry",
            "resolver",
            "tls",
            "storage",
            "dns",
            "balance",
            "upstream",
            "probe",
            "policy",
            "responder",
            "ledger",
            "local_ca",
            "import",
            "challenge",
            "listen",
            "proxy",
            "acme",
            "certs",
            "deploy",
            "notify",
            "config",
            "admin",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "acme",
            "admin",
            "config",
            "clock",
            "doctor",
            "name",
            "secret",
            "telemetry",
            "policy",
            "proxy",
            "balance",
            "dns",
            "issuer",
            "responder",
            "challenge",
            "task",
            "trust",
            "import",
            "simulate",
        ],
    ),
];

/// A crate (or a path inside one) and the only rooms that may name it.
const CONFINED: &[(&str, &[&str])] = &[
    ("instant_acme", &["acme"]),
    ("rustls::server", &["tls"]),
    ("dns_update", &["dns"]),
    ("quick_xml", &["dns"]),
    ("hickory_server", &["responder"]),
    ("clap", &["cli"]),
    ("rpassword", &["cli"]),
    ("argon2", &["policy"]),
    ("bcrypt", &["policy"]),
    ("psl", &["ledger"]),
    ("toml", &["config"]),
    ("listenfd", &["listen", "responder"]),
    ("arc_swap", &["tls", "proxy", "listen", "responder", "balance", "upstream", "challenge", "app"]),
    ("reqwest", &["http_client", "dns"]),
    ("sd_notify", &["app"]),
];

const LINE_BUDGET: usize = 500;

struct Source {
    path: PathBuf,
    room: String,
    text: String,
    /// `crate::a::b` and `vendor::a::b`, as segments.
    paths: BTreeSet<String>,
}

#[test]
fn rooms_use_only_what_stands_above_them() {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut problems = Vec::new();
    for source in sources() {
        let Some(row) = allowed.get(source.room.as_str()) else {
            if !["lib", "main"].contains(&source.room.as_str()) {
                problems.push(format!(
                    "{}: `{}` is no room of the table",
                    source.path.display(),
                    source.room
                ));
            }
            continue;
        };
        let depth = source.path.components().count() - usize::from(source.path.ends_with("mod.rs"));
        for path in &source.paths {
            let supers = path.split("::").take_while(|s| *s == "super").count();
            if supers >= depth.max(1) && !path.contains("tests") {
                problems.push(format!(
                    "{}: leaves the room with `{path}`; write `crate::`",
                    source.path.display()
                ));
            }
            let mut segments = path.split("::");
            let (Some("crate"), Some(target)) = (segments.next(), segments.next()) else { continue };
            if target != source.room && allowed.contains_key(target) && !row.contains(&target) {
                problems.push(format!(
                    "{}: `{}` must not use `{target}` ({path})",
                    source.path.display(),
                    source.room
                ));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn the_table_itself_has_no_cycle() {
    let mut above = BTreeSet::new();
    for (room, uses) in ROOMS {
        for used in *uses {
            assert!(above.contains(used), "`{room}` may use `{used}`, which does not stand above it");
        }
        above.insert(*room);
    }
}

#[test]
fn files_stay_within_the_budget() {
    let over: Vec<String> = sources()
        .iter()
        .map(|source| (source, code_lines(&source.text)))
        .filter(|(source, lines)| *lines > LINE_BUDGET && !is_test_file(&source.path))
        .map(|(source, lines)| format!("{}: {lines} lines", source.path.display()))
        .collect();
    assert!(over.is_empty(), "over {LINE_BUDGET} lines without tests:\n{}", over.join("\n"));
}

#[test]
fn vendors_stay_in_their_rooms() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|s| !is_test_file(&s.path)) {
        for path in &source.paths {
            for (vendor, rooms) in CONFINED {
                let named = path == vendor || path.starts_with(&format!("{vendor}::"));
                if named && !rooms.contains(&source.room.as_str()) {
                    problems.push(format!(
                        "{}: only {rooms:?} may name `{vendor}` ({path})",
                        source.path.display()
                    ));
                }
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn only_the_task_room_starts_threads_and_tasks() {
    let spawns = [
        "tokio::spawn",
        "tokio::task::spawn",
        "tokio::task::spawn_local",
        "std::thread::spawn",
        "std::thread::Builder",
    ];
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| source.room != "task" && !is_test_file(&source.path))
        .filter(|source| {
            spawns.iter().any(|spawn| without_tests(&source.text).contains(&format!("{spawn}(")))
        })
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(found.is_empty(), "these start tasks themselves: {found:?}");
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    for entry in walkdir::WalkDir::new(&root) {
        let path = entry.unwrap().into_path();
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let relative = path.strip_prefix(&root).unwrap();
        let room = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut paths = Paths::default();
        paths.visit_file(&file);
        sources.push(Source { path: relative.to_owned(), room, text, paths: paths.0 });
    }
    assert!(sources.len() > 50, "the sources were not found");
    sources
}

/// Collects every path outside of `#[cfg(test)]` items, those in `use` trees and in attributes' siblings included.
#[derive(Default)]
struct Paths(BTreeSet<String>);

impl Paths {
    fn use_tree(&mut self, prefix: &str, tree: &syn::UseTree) {
        let join = |ident: &syn::Ident| {
            if prefix.is_empty() { ident.to_string() } else { format!("{prefix}::{ident}") }
        };
        match tree {
            syn::UseTree::Path(path) => self.use_tree(&join(&path.ident), &path.tree),
            syn::UseTree::Name(name) => drop(self.0.insert(join(&name.ident))),
            syn::UseTree::Rename(name) => drop(self.0.insert(join(&name.ident))),
            syn::UseTree::Glob(_) => drop(self.0.insert(format!("{prefix}::*"))),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(prefix, item)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test_only(&item.attrs) {
            self.use_tree("", &item.tree);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test_only(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let text: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.0.insert(text.join("::"));
        syn::visit::visit_path(self, path);
    }
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

fn is_test_file(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests" || stem.to_string_lossy().ends_with("_tests"))
        || path.components().any(|c| c.as_os_str() == "tests")
}

fn without_tests(text: &str) -> &str {
    let end = ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(test)]\npub(crate) mod tests {"]
        .iter()
        .find_map(|mark| text.find(mark));
    &text[..end.unwrap_or(text.len())]
}

fn code_lines(text: &str) -> usize {
    without_tests(text).lines().count()
}
