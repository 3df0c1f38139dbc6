//! `starlock schema`: the configuration's keys, for editors and for people.

use std::process::ExitCode;

use super::{json, print};
use crate::config;

pub(super) fn run(text: bool) -> ExitCode {
    if text { print(&config::reference()) } else { json(&config::json_schema()) }
}
