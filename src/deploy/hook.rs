//! The hook: no shell, a small environment, an end in time, and the end of everything it started.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// What is kept of each output: its end.
const MAX_OUTPUT: usize = 16 * 1024;
/// Of what is shown.
const MAX_SHOWN: usize = 300;
/// What a program needs to run at all; everything else, secrets included, stays here.
const PASSED: [&str; 7] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// After the program has ended, for what it started to let go of its output.
const LINGER: Duration = Duration::from_millis(200);

/// Runs `words` (a program and its arguments) to its end. Dropping the future kills it and what it started. The error is for a
/// person.
pub(super) async fn run(
    words: &[String],
    variables: &[(&'static str, String)],
    limit: Duration,
) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
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
    let child = command.spawn().map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; is the path right, and is the interpreter in its first line there?",
            io::ErrorKind::PermissionDenied => "; is it executable for the user that runs Starlock?",
            _ => "",
        };
        format!("the hook `{program}` could not be started: {error}{hint}")
    })?;
    let mut group = Group(child);
    let Ok(ended) = timeout(limit, group.finish()).await else {
        return Err(format!("the hook `{program}` did not end within {} s and was killed", limit.as_secs()));
    };
    let (status, said) = ended.map_err(|e| format!("the hook `{program}` could not be waited for: {e}"))?;
    match (status.success(), last_line(&said)) {
        (true, _) => Ok(()),
        (false, Some(line)) => Err(format!("the hook `{program}` failed ({status}): {line}")),
        (false, None) => Err(format!("the hook `{program}` failed ({status}) and wrote nothing")),
    }
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect())
}

/// A running program and everything in its process group.
struct Group(Child);

impl Group {
    /// Waits for the end; gives the end of stderr, or of stdout if that is empty. Output beyond the bound is read and forgotten.
    async fn finish(&mut self) -> io::Result<(std::process::ExitStatus, Vec<u8>)> {
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
        Ok((status, if err.is_empty() { out.into() } else { err.into() }))
    }
}

impl Drop for Group {
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, limit: Duration) -> Result<(), String> {
        let words = ["/bin/sh", "-c", script].map(ToOwned::to_owned);
        run(&words, &[("STARLOCK_CERT_NAMES", "a.test b.test".to_owned())], limit).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn it_gets_its_variables_and_nothing_else() {
        sh("test \"$STARLOCK_CERT_NAMES\" = 'a.test b.test' && test -z \"$CARGO\"", LONG).await.unwrap();
        let error = sh("echo first >&2; echo 'last words' >&2; exit 3", LONG).await.unwrap_err();
        assert!(error.contains("exit status: 3") && error.ends_with("last words"), "{error}");
        let error = run(&["/no/such/hook".into()], &[], LONG).await.unwrap_err();
        assert!(error.contains("is the path right"), "{error}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_what_it_started_and_one_that_talks_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("alive");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        // The child of the hook holds the pipe open for as long as it lives.
        let script = format!("(exec 9<>{0}; echo started >&9; sleep 1000 9>&9) & sleep 1000", pipe.display());
        let read = crate::task::blocking(move || {
            let mut text = String::new();
            // Ends only when nobody holds the other end any more.
            std::fs::File::open(pipe).and_then(|mut file| io::Read::read_to_string(&mut file, &mut text))
        });
        let (ended, read) = tokio::join!(sh(&script, Duration::from_millis(300)), read);
        let error = ended.unwrap_err();
        assert!(error.contains("was killed"), "{error}");
        assert_eq!(read.unwrap(), "started\n".len());
        sh("yes | head -c 3000000; yes | head -c 3000000 >&2", LONG).await.unwrap();
    }
}
