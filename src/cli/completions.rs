//! `starlock completions SHELL`.

use std::process::ExitCode;

use clap::CommandFactory;

use super::{Cli, print};

pub(super) fn run(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "starlock", &mut script);
    print(&String::from_utf8_lossy(&script))
}
