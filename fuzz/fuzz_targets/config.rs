//! What a person may write into the file: no text makes it panic, and whatever is refused is refused with a place.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use starlock::config::{Environment, parse};

static PLACES: LazyLock<Environment> = LazyLock::new(|| Environment::from_variables(|_| None, true));

fuzz_target!(|text: &str| {
    let first = parse(text, "starlock.toml", &PLACES);
    match &first {
        Ok(loaded) => drop(loaded.warnings.to_string()),
        Err(problems) => assert!(problems.to_string().contains("starlock.toml"), "{problems}"),
    }
    // The same text means the same: a reload of an unchanged file changes nothing.
    let again = parse(text, "starlock.toml", &PLACES);
    assert_eq!(first.map_err(|e| e.to_string()), again.map_err(|e| e.to_string()));
});
