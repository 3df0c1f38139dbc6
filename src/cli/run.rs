//! Where `run` and `proxy` end up: logging is set up, `app` takes over, and its end becomes an exit code.

use std::process::ExitCode;
use std::sync::Arc;

use super::{CONFIG, FAILURE, RunOptions, USAGE, fail};
use crate::app::{self, Failure, Loader};
use crate::telemetry;

pub(super) fn run(options: RunOptions) -> ExitCode {
    if let Err(error) = telemetry::init(options.log_format, options.log_level.as_deref()) {
        return fail(USAGE, &error);
    }
    let path = options.source.path().display().to_string();
    let source = options.source;
    let loader: Loader = Arc::new(move || {
        let loaded = source.load().map_err(|error| error.to_string())?;
        match loaded.references.unreadable() {
            problems if problems.is_empty() => Ok(loaded),
            problems => Err(problems.to_string()),
        }
    });
    match app::serve(loader, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Config(problems)) => fail(CONFIG, &problems),
        Err(Failure::Start(error)) => fail(FAILURE, &error),
    }
}
