//! Somebody else's program: no shell, a small environment, an end in time, and the end of everything it started.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// What is kept of each output: its end.
const MAX_OUTPUT: usize = 16 * 1024;
/// What a program needs to run at all; everything else, secrets included, stays here.
const PASSED: [&str; 7] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// After the program has ended, for what it started to let go of its output.
const LINGER: Duration = Duration::from_millis(200);
/// A program that was just written may still be open for writing in a process being forked.
const BUSY_TRIES: u32 = 10;
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// A running program and everything in its process group. Dropping it kills them all.
#[derive(Debug)]
pub struct Program(Child);

/// How a program ended, with the end of what it wrote; output beyond the bound was read and forgotten.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// The last 16 KiB of stdout.
    pub stdout: Vec<u8>,
    /// The last 16 KiB of stderr.
    pub stderr: Vec<u8>,
}

impl Program {
    /// Starts `program` with `arguments`; of our environment it gets what a program needs to run at all, and `variables`.
    pub async fn start<S: AsRef<OsStr>>(
        program: &OsStr,
        arguments: &[S],
        variables: &[(&'static str, String)],
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", OsString::from("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
            .envs(PASSED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut tries = 0;
        loop {
            match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                    tries += 1;
                    sleep(BUSY_WAIT).await;
                }
                started => return started.map(Self),
            }
        }
    }

    /// What a person may look at when [`Program::start`] failed; empty if there is nothing to say.
    pub fn hint(error: &io::Error) -> &'static str {
        match error.kind() {
            io::ErrorKind::NotFound => "; is the path right, and is the interpreter in its first line there?",
            io::ErrorKind::PermissionDenied => "; is it executable for the user that runs Starlock?",
            _ => "",
        }
    }

    /// Waits for the end.
    pub async fn finish(&mut self) -> io::Result<Ended> {
        let (mut out, mut err) = (VecDeque::new(), VecDeque::new());
        let (stdout, stderr) = (self.0.stdout.take(), self.0.stderr.take());
        let status = {
            let reading = async { tokio::join!(drain(stdout, &mut out), drain(stderr, &mut err)) };
            tokio::pin!(reading);
            tokio::select! {
                status = self.0.wait() => {
                    // What the program left running may hold the pipes open for ever.
                    drop(timeout(LINGER, &mut reading).await);
                    status?
                }
                _ = &mut reading => self.0.wait().await?,
            }
        };
        Ok(Ended { status, stdout: out.into(), stderr: err.into() })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // `id` is `None` once the program was waited for: its number may belong to somebody else by then.
        let pid = self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            // An error means that the group is gone already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>, kept: &mut VecDeque<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        kept.extend(&buffer[..length]);
        let excess = kept.len().saturating_sub(MAX_OUTPUT);
        kept.drain(..excess);
    }
}
