//! `starlock health`: for health checks; says nothing but the exit code and why.

use std::process::ExitCode;

use super::options::SocketArgs;
use super::{FAILURE, fail, print};

pub(super) fn run(socket: &SocketArgs) -> ExitCode {
    match socket.client().health() {
        Ok(health) if health.healthy => print("healthy\n"),
        Ok(health) => {
            fail(FAILURE, &format!("not healthy: {}", health.reason.as_deref().unwrap_or("no reason given")))
        }
        Err(error) => fail(FAILURE, &error.to_string()),
    }
}
