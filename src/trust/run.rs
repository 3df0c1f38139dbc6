//! Programs of the system: bounded in time, their last words kept.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `update-ca-certificates` takes seconds on a small board.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// What is kept of an output: its beginning.
const MAX_OUTPUT: u64 = 256 * 1024;

/// The person whose browsers are meant: under `sudo`, who called it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Where profiles lie.
    pub home: PathBuf,
    /// Files must go on belonging to this user and group; `None`: the process's own.
    pub ids: Option<(u32, u32)>,
}

impl Caller {
    /// From variables and the password file: `$HOME`, or the home of `$SUDO_USER`.
    pub fn of_process(variable: impl Fn(&str) -> Option<String>, passwd: &str) -> Option<Self> {
        let ids = variable("SUDO_UID").zip(variable("SUDO_GID"));
        let ids = ids.and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
        if let (Some(name), Some(ids)) = (variable("SUDO_USER"), ids) {
            let home = passwd.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next() == Some(&name)).then(|| fields.nth(4).map(PathBuf::from)).flatten()
            });
            if let Some(home) = home {
                return Some(Self { home, ids: Some(ids) });
            }
        }
        variable("HOME").filter(|home| !home.is_empty()).map(|home| Self { home: home.into(), ids: None })
    }
}

/// A program of the system, found on `PATH` and in the directories for administrators.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs it to its end. Gives what it wrote to standard output, or what it said when it failed.
pub(super) fn run<S: AsRef<OsStr>>(
    program: &Path,
    arguments: &[S],
    caller: Option<&Caller>,
) -> Result<String, String> {
    run_with(program, arguments, caller, "")
}

/// As `run`, with `input` (a certificate: far less than a pipe holds) on its standard input.
pub(super) fn run_with<S: AsRef<OsStr>>(
    program: &Path,
    arguments: &[S],
    caller: Option<&Caller>,
    input: &str,
) -> Result<String, String> {
    let name = program.display();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(caller) = caller {
        command.env("HOME", &caller.home);
        if let Some((user, group)) = caller.ids {
            command.uid(user).gid(group);
        }
    }
    let mut child = command.spawn().map_err(|e| format!("{name} cannot be started: {e}"))?;
    // Closed at once, so that nobody waits for more. What a program does not read, it did not need: its status says so.
    drop(child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes())));
    // Both pipes hold far more than these programs write; one that fills them runs into the limit and is killed.
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|e| format!("{name}: {e}"))? {
            Some(status) => break status,
            None if begun.elapsed() > LIMIT => {
                let killed = child.kill().and_then(|()| child.wait());
                let rest = killed.err().map(|e| format!(" ({e})")).unwrap_or_default();
                return Err(format!("{name} did not end within {} s and was killed{rest}", LIMIT.as_secs()));
            }
            None => std::thread::sleep(POLL), // blocking, as every call here is
        }
    };
    let (out, err) = (text(child.stdout.take()), text(child.stderr.take()));
    if status.success() {
        return Ok(out);
    }
    let last =
        err.lines().chain(out.lines()).rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(format!("{name} failed ({status}): {}", last.trim()))
}

fn text(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What cannot be read was not said.
        drop(pipe.take(MAX_OUTPUT).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_means_who_called_it() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000:Ada,,,:/home/ada:/bin/bash\n";
        let of = |pairs: &[(&str, &str)]| {
            let find = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            Caller::of_process(find, passwd)
        };
        let sudo = [("HOME", "/root"), ("SUDO_USER", "ada"), ("SUDO_UID", "1000"), ("SUDO_GID", "1000")];
        assert_eq!(of(&sudo), Some(Caller { home: "/home/ada".into(), ids: Some((1000, 1000)) }));
        assert_eq!(of(&[("HOME", "/root")]), Some(Caller { home: "/root".into(), ids: None }));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn the_last_words_of_a_failure_are_kept() {
        let run = |script: &str| run(Path::new("/bin/sh"), &["-c", script], None);
        assert_eq!(run("echo yes").unwrap(), "yes\n");
        assert!(run("echo no way >&2; exit 3").unwrap_err().ends_with("no way"));
        assert_eq!(run_with(Path::new("/bin/cat"), &[] as &[&str], None, "in\n").unwrap(), "in\n");
    }
}
