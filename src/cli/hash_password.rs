//! `starlock hash-password`: a hash for `basic_auth`, from a password that stands on no command line.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

use super::{FAILURE, fail, print};
use crate::policy;
use crate::secret::Secret;

/// Longer than any password that a person has.
const MAX_BYTES: u64 = 4096;

pub(super) fn run() -> ExitCode {
    match read().and_then(|password| policy::hash_password(&password).map_err(|error| error.to_string())) {
        Ok(hash) => print(&format!("{hash}\n")),
        Err(error) => fail(FAILURE, &error),
    }
}

fn read() -> Result<Secret, String> {
    let password = if std::io::stdin().is_terminal() { ask()? } else { line()? };
    if password.expose().is_empty() {
        return Err("the password is empty".to_owned());
    }
    Ok(password)
}

/// From a person, twice and unseen.
fn ask() -> Result<Secret, String> {
    let prompt = |text: &str| {
        rpassword::prompt_password(text)
            .map(Secret::new)
            .map_err(|error| format!("the terminal cannot be read: {error}"))
    };
    let (first, second) = (prompt("Password: ")?, prompt("Again: ")?);
    if first.expose() != second.expose() {
        return Err("these were two different passwords".to_owned());
    }
    Ok(first)
}

/// From a program: the first line.
fn line() -> Result<Secret, String> {
    let mut line = String::new();
    let mut input = std::io::Read::take(std::io::stdin().lock(), MAX_BYTES);
    input.read_line(&mut line).map_err(|error| format!("standard input cannot be read: {error}"))?;
    if line.len() as u64 == MAX_BYTES {
        return Err(format!("a password has fewer than {MAX_BYTES} bytes"));
    }
    Ok(Secret::new(line.trim_end_matches(['\r', '\n'])))
}
