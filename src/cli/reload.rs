//! `starlock reload`: makes the running process read its configuration again, and waits.

use std::process::ExitCode;

use super::options::SocketArgs;
use super::{FAILURE, fail, print, tell};
use crate::admin::ClientError;

pub(super) fn run(socket: &SocketArgs) -> ExitCode {
    match socket.client().reload() {
        Ok(report) => {
            if !report.warnings.is_empty() {
                tell(&format!("{}\n\n", report.warnings.trim_end()));
            }
            let first = if report.changed { "reloaded" } else { "nothing has changed" };
            let lines: String = report.changes.iter().map(|change| format!("  {change}\n")).collect();
            print(&format!("{first}\n{lines}"))
        }
        Err(ClientError::Refused(problems)) => fail(
            FAILURE,
            &format!(
                "{}\n\nerror: not reloaded; the former configuration is still served",
                problems.trim_end()
            ),
        ),
        Err(error) => fail(FAILURE, &error.to_string()),
    }
}
