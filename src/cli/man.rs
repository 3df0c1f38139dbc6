//! `starlock man`: the manual page, every verb included.

use std::io;
use std::process::ExitCode;

use clap::CommandFactory;

use super::{Cli, FAILURE, fail, print};

const AFTER: &str = r#".SH EXIT STATUS
.TP
\fB0\fR
Done, or the answer is yes.
.TP
\fB1\fR
Something went wrong, or the answer is no.
.TP
\fB64\fR
The command line is wrong.
.TP
\fB78\fR
The configuration is wrong.
.SH FILES
.TP
\fI./starlock.toml\fR, \fI/etc/starlock/starlock.toml\fR
The configuration, unless \fB\-\-config\fR or \fBSTARLOCK_CONFIG\fR names another one. \fBstarlock schema \-\-text\fR lists its keys.
"#;

pub(super) fn run() -> ExitCode {
    match page() {
        Ok(page) => print(&page),
        Err(error) => fail(FAILURE, &error.to_string()),
    }
}

fn page() -> io::Result<String> {
    let mut out = Vec::new();
    let command = Cli::command();
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    out.extend_from_slice(b".SH COMMANDS\n");
    for verb in command.get_subcommands() {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        out.extend_from_slice(format!(".SS starlock {}\n{}\n", verb.get_name(), roff(&about)).as_bytes());
        for option in verb.get_arguments().filter(|a| !a.is_hide_set() && a.get_id() != "help") {
            let name = match option.get_long() {
                Some(long) => format!("--{long}"),
                None => option.get_id().as_str().to_uppercase(),
            };
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            out.extend_from_slice(format!(".TP\n\\fB{}\\fR\n{}\n", roff(&name), roff(&help)).as_bytes());
        }
    }
    out.extend_from_slice(AFTER.as_bytes());
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Keeps roff from reading hyphens as soft ones, and a dot or quote at the beginning of a line as a request.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_in_the_manual() {
        let page = page().unwrap();
        for verb in Cli::command().get_subcommands() {
            assert!(page.contains(&format!(".SS starlock {}\n", verb.get_name())), "{}", verb.get_name());
        }
        assert!(page.contains("\\-\\-config"));
    }
}
