//! A program that writes the records: `PROGRAM present|cleanup FQDN. VALUE`; status 0 is success.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::redact::one_line;
use super::turns::ZoneTurns;
use super::{DnsError, TxtProvider, TxtRecord};
use crate::task::Program;

#[derive(Debug)]
pub(super) struct Exec {
    pub(super) id: String,
    pub(super) program: PathBuf,
    pub(super) timeout: Duration,
    pub(super) turns: ZoneTurns,
}

impl Exec {
    async fn run(&self, verb: &str, record: &TxtRecord) -> Result<(), DnsError> {
        let _turn = self.turns.take(&self.id).await;
        let context = format!("`{} {verb} {}`", self.program.display(), record.name.to_fqdn());
        let arguments = [verb, &record.name.to_fqdn(), &record.value];
        // Dropped by a time-out or by the caller, it ends with everything that it started.
        let mut running =
            Program::start(self.program.as_os_str(), &arguments, &[]).await.map_err(|error| {
                DnsError::Refused(format!("{context} could not be started: {error}{}", Program::hint(&error)))
            })?;
        let Ok(ended) = timeout(self.timeout, running.finish()).await else {
            return Err(DnsError::Unavailable(format!(
                "{context} did not end within {} s and was killed",
                self.timeout.as_secs()
            )));
        };
        let ended =
            ended.map_err(|e| DnsError::Unavailable(format!("{context} could not be waited for: {e}")))?;
        if ended.status.success() {
            return Ok(());
        }
        let last = String::from_utf8_lossy(&ended.stderr);
        let last = match last.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("; its last line on stderr: {}", one_line(line)),
            None => "; it wrote nothing to stderr".into(),
        };
        // A program cannot say whether another try helps: the schedule tries again.
        Err(DnsError::Unavailable(format!("{context} failed ({}){last}", ended.status)))
    }
}

#[async_trait]
impl TxtProvider for Exec {
    fn id(&self) -> &str {
        &self.id
    }

    async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.run("present", record).await
    }

    async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.run("cleanup", record).await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Instant;

    use super::*;
    use crate::name::DnsName;

    fn program(dir: &Path, script: &str) -> Exec {
        let path = dir.join("hook");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let timeout = Duration::from_secs(20);
        Exec { id: "exec".into(), program: path, timeout, turns: ZoneTurns::new() }
    }

    fn record() -> TxtRecord {
        TxtRecord { name: DnsName::parse("_acme-challenge.example.com").unwrap(), value: "-v a l'ue".into() }
    }

    #[tokio::test]
    async fn it_gets_the_contract_and_a_small_environment() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let exec = program(dir.path(), &format!("printf '%s|' \"$@\" >> {0}; env >> {0}", log.display()));
        exec.add_txt(&record()).await.unwrap();
        let seen = fs::read_to_string(&log).unwrap();
        assert!(seen.starts_with("present|_acme-challenge.example.com.|-v a l'ue|"), "{seen}");
        assert!(!seen.contains("CARGO"), "{seen}");
        fs::remove_file(&log).unwrap();
        exec.remove_txt(&record()).await.unwrap();
        assert!(fs::read_to_string(&log).unwrap().starts_with("cleanup|_acme-challenge.example.com.|"));
    }

    #[tokio::test]
    async fn a_failure_shows_its_last_line_bounded_and_escaped() {
        let dir = tempfile::tempdir().unwrap();
        let script = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo >&2\n\
                      echo first >&2; printf 'no \\033[31mzone\\n\\n' >&2; exit 3";
        let error = program(dir.path(), script).add_txt(&record()).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no \\u{1b}[31mzone"), "{error}");
        assert!(!error.contains("first"), "{error}");
        let silent = program(dir.path(), "exit 1").add_txt(&record()).await.unwrap_err().to_string();
        assert!(silent.contains("nothing to stderr"), "{silent}");
        let mut missing = program(dir.path(), "exit 0");
        missing.program = dir.path().join("nowhere");
        let missing = missing.add_txt(&record()).await.unwrap_err();
        assert!(
            matches!(&missing, DnsError::Refused(why) if why.contains("could not be started")),
            "{missing}"
        );
    }

    #[tokio::test]
    async fn a_hanging_program_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let mut exec = program(dir.path(), &format!("sleep 600 & echo $! $$ > {}; wait", pids.display()));
        exec.timeout = Duration::from_secs(1);
        let error = exec.add_txt(&record()).await.unwrap_err();
        assert!(error.to_string().contains("was killed"), "{error}");
        for pid in fs::read_to_string(&pids).unwrap().split_whitespace() {
            gone(pid).await;
        }
    }

    #[tokio::test]
    async fn a_dropped_call_kills_it_too_and_a_daemon_does_not_hold_a_finished_one() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        let exec = program(dir.path(), &format!("echo $$ > {}; sleep 600", pids.display()));
        let record = record();
        let call = exec.add_txt(&record);
        let written = async {
            while !fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n')) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = call => panic!("it cannot end by itself"),
            () = written => {}
        }
        gone(fs::read_to_string(&pids).unwrap().trim()).await;

        let exec = program(dir.path(), "sleep 5 & exit 0");
        let start = Instant::now();
        exec.add_txt(&record).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(4));
    }

    /// A killed process is gone, or a zombie that nobody has waited for yet.
    async fn gone(pid: &str) {
        let dead = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !dead() {
            assert!(Instant::now() < deadline, "process {pid} is still there");
            tokio::task::yield_now().await;
        }
    }
}
