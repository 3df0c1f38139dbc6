//! The shipped binary as a process, with a configuration and a state directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use super::eventually;
use super::process::Process;

pub struct Starlock {
    process: Process,
    /// Last: the process writes its log there to its end.
    dir: TempDir,
}

impl Starlock {
    /// Writes the configuration and starts; returns when it serves. `{dir}` in the text is this instance's directory; the admin
    /// socket and the state directory are set unless the text does it.
    pub fn start(config: &str) -> Self {
        Self::start_as(config, |_, command| command)
    }

    /// As `start`, in other surroundings: `change` gets this instance's directory and the command.
    pub fn start_with(config: &str, change: impl FnOnce(&Path, &mut Command)) -> Self {
        Self::start_as(config, |dir, mut command| {
            change(dir, &mut command);
            command
        })
    }

    /// As `start`, by whatever command `wrap` makes of the usual one.
    pub fn start_as(config: &str, wrap: impl FnOnce(&Path, Command) -> Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_config(dir.path(), config);
        let mut command = wrap(dir.path(), run(dir.path()));
        let process = Process::start(&mut command, &dir.path().join("starlock.log"));
        let this = Self { dir, process };
        this.wait();
        this
    }

    /// After `kill` or a drain: the same directory again.
    pub fn start_again(&mut self) {
        self.start_again_with(|_| {});
    }

    /// As `start_again`, in other surroundings.
    pub fn start_again_with(&mut self, change: impl FnOnce(&mut Command)) {
        assert!(!self.process.is_running(), "the former process is still there");
        self.process = spawn(self.dir.path(), change);
        self.wait();
    }

    fn wait(&self) {
        eventually("starlock answers on its admin socket", || self.try_status());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Replaces the configuration and asks for a reload.
    pub fn reload(&self, config: &str) -> Output {
        write_config(self.dir.path(), config);
        self.command(&["reload"])
    }

    pub fn command(&self, arguments: &[&str]) -> Output {
        command(self.dir.path(), arguments)
    }

    pub fn try_status(&self) -> Option<Value> {
        let output = self.command(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("status prints JSON"))
    }

    pub fn status(&self) -> Value {
        self.try_status().expect("starlock answers")
    }

    /// The first address of a listener of `kind`: `https`, `http`, `responder`, `metrics`.
    pub fn address(&self, kind: &str) -> SocketAddr {
        let status = self.status();
        let listeners = status["listeners"].as_array().expect("listeners");
        let found =
            listeners.iter().find(|l| l["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {status}"));
        found["address"].as_str().unwrap().parse().unwrap()
    }

    /// Every certificate as `certs --json` shows it.
    pub fn certificates(&self) -> Vec<Value> {
        let output = self.command(&["certs", "list", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("certs prints a JSON array")
    }

    /// Waits until a certificate that holds `name` and whose serial is not `old` is there and is served.
    pub fn serial_other_than(&self, name: &str, old: Option<&str>) -> String {
        let https = self.address("https");
        eventually(&format!("a new certificate for {name}"), || {
            let certificates = self.certificates();
            let holds =
                |c: &&Value| c["names"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
            let serial = certificates.iter().find(holds)?["serial"].as_str()?.to_owned();
            // What is shown is in the table a few milliseconds later.
            let served = served_serial(https, &name.replace('*', "probe"));
            (Some(serial.as_str()) != old && served.as_deref() == Some(&*serial)).then_some(serial)
        })
    }
}

/// The root of this instance's local CA, as PEM.
pub fn local_root(starlock: &Starlock) -> String {
    root_of_local_ca(&starlock.path("state"))
}

/// As PEM, from a state directory; behind it the second root, if there is one.
pub fn root_of_local_ca(state: &Path) -> String {
    let pem = |name: &str| -> Option<String> {
        let stored = std::fs::read_to_string(state.join("local-ca").join(name)).ok()?;
        Some(serde_json::from_str::<Value>(&stored).unwrap()["certificate"].as_str().unwrap().to_owned())
    };
    pem("root.json").expect("the local CA has a root") + &pem("root-for-any-name.json").unwrap_or_default()
}

fn served_serial(https: SocketAddr, host: &str) -> Option<String> {
    let https =
        (if https.ip().is_unspecified() { [127, 0, 0, 1].into() } else { https.ip() }, https.port()).into();
    let chain = super::web::served_chain(https, host);
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).ok()?;
    let digits: String = pem.parse_x509().ok()?.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    Some(digits.strip_prefix("00").unwrap_or(&digits).to_owned())
}

/// Runs the binary in `dir`, with a clean environment apart from what it needs.
pub fn command(dir: &Path, arguments: &[&str]) -> Output {
    binary(dir).args(arguments).output().unwrap()
}

/// What `STARLOCK` names, to look at a release; else the binary that cargo built for this test; for an example, the one beside it.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("STARLOCK") {
        return named.into();
    }
    match option_env!("CARGO_BIN_EXE_starlock") {
        Some(path) => path.into(),
        None => std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("starlock"),
    }
}

pub fn binary(dir: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir)
        .env("STARLOCK_CONFIG", dir.join("starlock.toml"))
        .env("STATE_DIRECTORY", dir.join("state"))
        .env("RUNTIME_DIRECTORY", dir);
    command
}

/// Sets the wall clock that `process` sees, by so many seconds from the right time; waits are as long as ever.
pub fn set_clock(process: &mut Command, seconds: i64) {
    let library = std::fs::read_dir("/usr/lib")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("faketime/libfaketime.so.1"))
        .find(|path| path.exists())
        .expect("faketime is installed; scripts/test does it");
    process
        .env("LD_PRELOAD", library)
        .env("FAKETIME", format!("{seconds:+}"))
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

pub fn write_config(dir: &Path, config: &str) {
    std::fs::write(dir.join("starlock.toml"), config.replace("{dir}", dir.to_str().unwrap())).unwrap();
}

fn run(dir: &Path) -> Command {
    let mut command = binary(dir);
    command.args(["run", "--log-format", "text", "--log-level", "debug"]);
    command
}

fn spawn(dir: &Path, change: impl FnOnce(&mut Command)) -> Process {
    let mut command = run(dir);
    change(&mut command);
    Process::start(&mut command, &dir.join("starlock.log"))
}
