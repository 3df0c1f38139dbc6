//! The hook: run to its end, its failure said in its own last words.

use std::ffi::OsStr;
use std::time::Duration;

use tokio::time::timeout;

use crate::task::Program;

/// Of what is shown.
const MAX_SHOWN: usize = 300;

/// Runs `words` (a program and its arguments) to its end. Dropping the future kills it and what it started. The error is for a
/// person.
pub(super) async fn run(
    words: &[String],
    variables: &[(&'static str, String)],
    limit: Duration,
) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let started = Program::start(OsStr::new(program), arguments, variables).await;
    let mut running = started
        .map_err(|e| format!("the hook `{program}` could not be started: {e}{}", Program::hint(&e)))?;
    let Ok(ended) = timeout(limit, running.finish()).await else {
        return Err(format!("the hook `{program}` did not end within {} s and was killed", limit.as_secs()));
    };
    let ended = ended.map_err(|e| format!("the hook `{program}` could not be waited for: {e}"))?;
    let said = if ended.stderr.is_empty() { &ended.stdout } else { &ended.stderr };
    match (ended.status.success(), last_line(said)) {
        (true, _) => Ok(()),
        (false, Some(line)) => Err(format!("the hook `{program}` failed ({}): {line}", ended.status)),
        (false, None) => Err(format!("the hook `{program}` failed ({}) and wrote nothing", ended.status)),
    }
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect())
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
            std::fs::File::open(pipe).and_then(|mut file| std::io::Read::read_to_string(&mut file, &mut text))
        });
        let (ended, read) = tokio::join!(sh(&script, Duration::from_millis(300)), read);
        let error = ended.unwrap_err();
        assert!(error.contains("was killed"), "{error}");
        assert_eq!(read.unwrap(), "started\n".len());
        sh("yes | head -c 3000000; yes | head -c 3000000 >&2", LONG).await.unwrap();
    }
}
