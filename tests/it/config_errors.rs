//! Wrong configurations: every problem is reported, at its line, in words for a person.
//!
//! Each fixture says in its first line how many problems it has; `.expected` beside it holds the whole report.
//! `STARLOCK_BLESS=1` writes the reports anew: read each of them as the person who made the mistake would.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use starlock::config::{Environment, Problems, parse};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/config_errors")
}

fn environment() -> Environment {
    Environment { state_dir: "/var/lib/starlock".into(), runtime_dir: "/run/starlock".into() }
}

fn files(extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

fn problems(text: &str) -> Problems {
    match parse(text, "starlock.toml", &environment()) {
        Err(problems) => problems,
        Ok(loaded) => loaded.warnings,
    }
}

fn announced(text: &str) -> Option<usize> {
    text.lines().next()?.strip_prefix("# problems: ")?.trim().parse().ok()
}

#[test]
fn every_wrong_file_gets_the_whole_report() {
    let bless = std::env::var_os("STARLOCK_BLESS").is_some();
    let mut failures = Vec::new();
    let files = files("toml");
    for path in &files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let problems = problems(&text);
        let report = format!("{problems}\n");
        let golden = path.with_extension("expected");
        if bless {
            std::fs::write(&golden, &report).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if report != expected {
            failures.push(format!("{name} differs from its .expected:\n{report}"));
        }
        if announced(&text) != Some(problems.len()) {
            failures.push(format!("{name} announces {:?} problems:\n{report}", announced(&text)));
        }
        for problem in problems.iter() {
            let place = format!("--> starlock.toml:{}:{}", problems.line(problem), problems.column(problem));
            if !report.contains(&place) || !report.contains(problem.message()) {
                failures.push(format!("{name}: {place} is not in the report: {}", problem.message()));
            }
        }
    }
    assert!(files.len() >= 40, "only {} fixtures", files.len());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn the_command_reports_and_exits_with_78() {
    for path in files("toml") {
        let text = std::fs::read_to_string(&path).unwrap();
        let command = |verb: &str| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_starlock"));
            let directory = "/nonexistent";
            command.env_clear().env("STATE_DIRECTORY", directory).env("RUNTIME_DIRECTORY", directory);
            let output = command.args([verb, "--config"]).arg(&path).output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let problems = problems(&text);
        for verb in ["check", "run"] {
            let (code, stderr) = command(verb);
            assert_eq!(code, Some(78), "{verb} {}: {stderr}", path.display());
            for problem in problems.iter() {
                let line =
                    format!("{}:{}:{}", path.display(), problems.line(problem), problems.column(problem));
                assert!(
                    stderr.contains(problem.message()) && stderr.contains(&line),
                    "{verb} {line}: {stderr}"
                );
            }
        }
    }
}

#[test]
fn no_report_is_left_over() {
    for golden in files("expected") {
        assert!(golden.with_extension("toml").exists(), "{} belongs to no fixture", golden.display());
    }
}

/// A file that uses every section, to be damaged.
const WHOLE: &str = include_str!("config_errors/whole_file.txt");

#[test]
fn the_whole_file_is_good() {
    let loaded =
        parse(WHOLE, "starlock.toml", &environment()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.warnings.len(), 1, "the plain token alone: {}", loaded.warnings);
    assert!(!format!("{loaded:?}{}", loaded.warnings).contains("hunter2"));
}

/// One damage: at this byte, take away so many bytes, put this in their place.
fn damage() -> impl Strategy<Value = (usize, usize, String)> {
    let pieces = vec![
        "", "\"", "[", "]", "{", "}", "=", ".", "\n", "#", "'", ",", "0", "\u{0}", "ä", "\"\"\"", "true",
        "[[", "*", "://",
    ];
    (0..WHOLE.len(), 0..12_usize, prop::sample::select(pieces).prop_map(str::to_owned))
}

fn damaged(text: &str, damages: &[(usize, usize, String)]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for (at, length, piece) in damages {
        let start = (*at).min(bytes.len());
        let end = (start + length).min(bytes.len());
        bytes.splice(start..end, piece.bytes());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_files_never_panic(damages in prop::collection::vec(damage(), 1..5)) {
        let text = damaged(WHOLE, &damages);
        if let Err(problems) = parse(&text, "starlock.toml", &environment()) {
            prop_assert!(!problems.is_empty());
            let lines = text.lines().count().max(1) + 1;
            for problem in problems.iter() {
                prop_assert!(problems.line(problem) <= lines && !problem.message().is_empty());
            }
            prop_assert!(problems.render(true).len() >= problems.to_string().len());
        }
    }

    #[test]
    fn no_report_shows_a_secret(damages in prop::collection::vec(damage(), 1..5)) {
        let (before, rest) = WHOLE.split_once("token = ").unwrap();
        let (token, after) = rest.split_once('\n').unwrap();
        prop_assert!(token.contains("hunter2"));
        let inside = |from: usize, to: usize| -> Vec<_> {
            let shift = |(at, length, piece): &(usize, usize, String)| (at - from, *length, piece.clone());
            damages.iter().filter(|(at, length, _)| (from..to).contains(at) && at + length < to).map(shift).collect()
        };
        let before_damaged = damaged(before, &inside(0, before.len()));
        let after_damaged = damaged(after, &inside(WHOLE.len() - after.len(), WHOLE.len()));
        let text = format!("{before_damaged}token = {token}\n{after_damaged}");
        let report = problems(&text).to_string();
        prop_assert!(!report.contains("hunter2"), "{}", report);
    }
}

#[test]
fn a_reader_that_went_away_changes_no_exit_code() {
    let path = files("toml").into_iter().next().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_starlock"))
        .args(["check", "--config"])
        .arg(&path)
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(78));
}
