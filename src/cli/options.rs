//! Options that several verbs share: which configuration, which socket, how to log.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{CONFIG, colours, fail};
use crate::admin::Client;
use crate::config::{self, Environment, LoadError, Loaded, admin_socket};
use crate::telemetry::LogFormat;

const DEFAULTS: [&str; 2] = ["./starlock.toml", "/etc/starlock/starlock.toml"];

/// Where a configuration comes from; a reload reads it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// A file.
    File(PathBuf),
    /// A text that the command line made.
    Text {
        /// What it is called in messages.
        name: String,
        /// The configuration itself.
        text: String,
    },
}

impl ConfigSource {
    /// Reads it. Blocking.
    pub fn load(&self) -> Result<Loaded, LoadError> {
        match self {
            Self::File(path) => config::load(path),
            Self::Text { name, text } => {
                config::parse(text, name, &Environment::of_process()).map_err(LoadError::Problems)
            }
        }
    }

    /// The path for `status`; empty for a text.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Text { .. } => Path::new(""),
        }
    }
}

/// What `run` and `proxy` hand over to whoever serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// What to serve.
    pub source: ConfigSource,
    /// How a log line looks.
    pub log_format: LogFormat,
    /// A level or a filter; without one `RUST_LOG` decides, then `info`.
    pub log_level: Option<String>,
}

#[derive(Args, Clone, Debug, Default)]
pub(super) struct ConfigArgs {
    /// The configuration [default: ./starlock.toml, then /etc/starlock/starlock.toml]
    #[arg(long, short, env = "STARLOCK_CONFIG", value_name = "FILE", global = true)]
    pub(super) config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The path that is meant. The error is for a person.
    pub(super) fn find(&self) -> Result<PathBuf, String> {
        if let Some(path) = self.config.as_ref().filter(|path| !path.as_os_str().is_empty()) {
            return Ok(path.clone());
        }
        DEFAULTS.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
            let [here, etc] = DEFAULTS;
            format!(
                "no configuration: neither {here} nor {etc} exists; name one with --config, or serve a single host with `starlock proxy`"
            )
        })
    }

    /// Reads it; problems are printed, and the exit code says so.
    pub(super) fn load(&self) -> Result<(PathBuf, Loaded), ExitCode> {
        let path = self.find().map_err(|error| fail(CONFIG, &error))?;
        match config::load(&path) {
            Ok(loaded) => Ok((path, loaded)),
            Err(LoadError::Problems(problems)) => {
                let errors = super::count(problems.len(), "problem");
                Err(fail(
                    CONFIG,
                    &format!("{}\n\nerror: {errors} in {}", problems.render(colours()), path.display()),
                ))
            }
            Err(error) => Err(fail(CONFIG, &error.to_string())),
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(super) struct SocketArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// The admin socket [default: `listen.admin` of the configuration]
    #[arg(long, value_name = "PATH", global = true)]
    pub(super) socket: Option<PathBuf>,
}

impl SocketArgs {
    /// A client of the socket that is meant. A configuration that is missing or wrong does not keep it from being found.
    pub(super) fn client(&self) -> Client {
        if let Some(path) = &self.socket {
            return Client::new(path);
        }
        let env = Environment::of_process();
        match self.config.find().ok().and_then(|path| std::fs::read_to_string(path).ok()) {
            Some(text) => Client::new(admin_socket(&text, &env)),
            None => Client::guess(admin_socket("", &env)),
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(super) struct LogArgs {
    /// Text on a terminal, JSON otherwise, or one of the two.
    #[arg(long, value_name = "auto|text|json", default_value = "auto")]
    pub(super) log_format: LogFormat,
    /// error, warn, info, debug, trace, or a filter as in RUST_LOG.
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
}

impl LogArgs {
    pub(super) fn with(&self, source: ConfigSource) -> RunOptions {
        RunOptions { source, log_format: self.log_format, log_level: self.log_level.clone() }
    }
}
