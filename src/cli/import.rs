//! `starlock import`: certificates and accounts of the program that did this before.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::options::ConfigArgs;
use super::{FAILURE, fail, print};
use crate::app::{self, TakeOver, Taking};
use crate::import::{self, Source};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Whose files they are.
    #[arg(value_enum)]
    from: From,
    /// certbot: /etc/letsencrypt; caddy: its data directory; acme.sh: ~/.acme.sh; traefik: acme.json. Nothing in it is changed.
    path: PathBuf,
    /// Say what would be taken, and take nothing.
    #[arg(long)]
    dry_run: bool,
    /// Have the CA give accounts with RSA keys (certbot's, Traefik's) a new key, and take them over: the program that they come from
    /// cannot use them any more. Without it the first order registers a new account.
    #[arg(long)]
    roll_keys: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    Certbot,
    Caddy,
    #[value(name = "acme.sh")]
    AcmeSh,
    Traefik,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let (_, loaded) = match arguments.config.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let source = match arguments.from {
        From::Certbot => Source::Certbot,
        From::Caddy => Source::Caddy,
        From::AcmeSh => Source::AcmeSh,
        From::Traefik => Source::Traefik,
    };
    let found = match import::read(source, &arguments.path) {
        Ok(found) => found,
        Err(error) => return fail(FAILURE, &error.to_string()),
    };
    let how = Taking { dry: arguments.dry_run, roll_keys: arguments.roll_keys };
    match app::take_over(&loaded.plan, &found, how) {
        Ok(result) => print(&report(&result, arguments.dry_run)),
        Err(error) => fail(FAILURE, &error),
    }
}

fn report(result: &TakeOver, dry: bool) -> String {
    if result.rows.is_empty() {
        return "nothing was found\n".to_owned();
    }
    let mut out = String::new();
    for row in &result.rows {
        let word = match (row.taken, dry) {
            (true, false) => "taken",
            (true, true) => "would take",
            (false, _) => "left",
        };
        let _ = writeln!(
            out,
            "{word:<10}  {:<11}  {}\n            {}\n            {}",
            row.what, row.name, row.why, row.place
        );
    }
    if !result.missing.is_empty() {
        let _ = writeln!(
            out,
            "\nThe configuration does not want these; add what is still needed, and import again:"
        );
        for names in &result.missing {
            let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            let _ = writeln!(out, "\n[[certificates]]\nnames = [{}]", names.join(", "));
        }
    }
    let taken = result.rows.iter().filter(|row| row.taken).count();
    let _ =
        writeln!(out, "\n{taken} of {} {}", result.rows.len(), if dry { "would be taken" } else { "taken" });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Moved;
    use crate::name::HostPattern;

    #[test]
    fn what_is_left_comes_with_its_reason_and_the_lines_to_add() {
        let row = |taken, why: &str| Moved {
            taken,
            what: "certificate",
            name: "a.test".into(),
            place: "/x".into(),
            why: why.into(),
        };
        let names = vec![HostPattern::parse("b.test").unwrap(), HostPattern::parse("*.b.test").unwrap()];
        let result =
            TakeOver { rows: vec![row(true, "until 2027"), row(false, "expired")], missing: vec![names] };
        let text = report(&result, false);
        for part in [
            "taken       certificate  a.test",
            "left        certificate",
            "expired",
            "names = [\"b.test\", \"*.b.test\"]",
            "1 of 2 taken",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(report(&result, true).contains("would take"));
        assert_eq!(report(&TakeOver::default(), true), "nothing was found\n");
    }
}
