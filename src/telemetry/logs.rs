//! Where `tracing` goes: stderr, as text for a person and as JSON for a collector.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For a person.
    Text,
    /// One object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("`{other}` is not a log format: one of auto, text, json")),
        }
    }
}

/// What is logged when nobody says otherwise: libraries only when something is wrong. What h2 warns of is hostile clients, line by
/// line as they like.
const DEFAULT: &str =
    "info,hickory_net=warn,hickory_resolver=warn,hyper=warn,h2=error,rustls=warn,reqwest=warn";

/// Sets logging up for the process. `level` is a filter in `RUST_LOG`'s syntax; without one `RUST_LOG` decides, then `info`.
///
/// Errors if the filter cannot be parsed. A second call changes nothing and is an error too.
pub fn init(format: LogFormat, level: Option<&str>) -> Result<(), String> {
    let variable = std::env::var("RUST_LOG").ok().filter(|v| !v.trim().is_empty());
    let wanted = match (level, &variable) {
        (Some(level), _) => {
            level.parse::<tracing::Level>().map_or_else(|_| level.to_owned(), with_quiet_libraries)
        }
        (None, Some(variable)) => variable.clone(),
        (None, None) => DEFAULT.to_owned(),
    };
    let filter = EnvFilter::try_new(&wanted).map_err(|e| format!("`{wanted}` is not a log filter: {e}"))?;
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_timer(SystemTime).with_writer(std::io::stderr);
    let result = if json {
        builder.json().flatten_event(true).with_span_list(false).with_current_span(false).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).compact().try_init()
    };
    result.map_err(|e| e.to_string())
}

fn with_quiet_libraries(level: tracing::Level) -> String {
    DEFAULT.replacen("info", &level.to_string().to_lowercase(), 1)
}
