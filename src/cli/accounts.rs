//! `starlock accounts`: accounts at CAs, through the running process.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::options::SocketArgs;
use super::{FAILURE, USAGE, fail, json, print};
use crate::admin::{AccountCommand, AccountStatus};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    socket: SocketArgs,
    /// As JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// CA is a word such as letsencrypt, a host, or the URL of a directory.
#[derive(Debug, Subcommand)]
enum Verb {
    /// The accounts of every CA of the configuration, as they are kept (the default).
    List,
    /// An account as the CA has it. CA can be left out if there is one.
    Show { ca: Option<String> },
    /// Give an account a new key. Orders under way go on with it.
    RollKey { ca: String },
    /// Replace the contact; without EMAIL, take it away.
    Contact { ca: String, email: Option<String> },
    /// End an account for good: nothing can be ordered or revoked with it any more.
    Deactivate {
        ca: String,
        /// Yes, it cannot be undone.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let (ca, command) = match &arguments.verb {
        None | Some(Verb::List) => {
            return match arguments.socket.client().accounts() {
                Ok(accounts) => all(arguments, &accounts),
                Err(error) => fail(FAILURE, &error.to_string()),
            };
        }
        Some(Verb::Show { ca: None }) => match arguments.socket.client().accounts() {
            Ok(accounts) => match &*accounts {
                [] => return all(arguments, &accounts),
                [only] => (&only.ca.clone(), AccountCommand::Show),
                several => {
                    let cas: Vec<_> = several.iter().map(|account| &*account.ca).collect();
                    let said = format!("there are several accounts: say which, {}", cas.join(" or "));
                    return fail(USAGE, &said);
                }
            },
            Err(error) => return fail(FAILURE, &error.to_string()),
        },
        Some(Verb::Show { ca: Some(ca) }) => (ca, AccountCommand::Show),
        Some(Verb::RollKey { ca }) => (ca, AccountCommand::RollKey),
        Some(Verb::Contact { ca, email }) => {
            let email =
                email.as_deref().map(|email| email.strip_prefix("mailto:").unwrap_or(email).to_owned());
            (ca, AccountCommand::Contact(email))
        }
        Some(Verb::Deactivate { ca, yes: true }) => (ca, AccountCommand::Deactivate),
        Some(Verb::Deactivate { ca, yes: false }) => {
            return fail(
                USAGE,
                &format!(
                    "deactivating the account at {ca} cannot be undone: nothing can be ordered or revoked with it any more, and no \
                     other one is registered by itself. Say --yes if that is meant"
                ),
            );
        }
    };
    match arguments.socket.client().account(ca, &command) {
        Ok(account) if arguments.json => json(&account),
        Ok(account) => print(&show(&account)),
        Err(error) => fail(FAILURE, &error.to_string()),
    }
}

fn all(arguments: &Arguments, accounts: &[AccountStatus]) -> ExitCode {
    if arguments.json { json(&accounts) } else { print(&list(accounts)) }
}

fn list(accounts: &[AccountStatus]) -> String {
    if accounts.is_empty() {
        return "no certificate is ordered from a CA\n".to_owned();
    }
    let mut out = String::new();
    let width = accounts.iter().map(|a| a.ca.chars().count()).max().unwrap_or(0).clamp(2, 40);
    let _ = writeln!(out, "{:<width$}  ACCOUNT", "CA");
    for account in accounts {
        let url = account.url.as_deref().unwrap_or("not registered yet");
        let status = account.status.as_ref().map(|status| format!("  ({status})")).unwrap_or_default();
        let _ = writeln!(out, "{:<width$}  {url}{status}", account.ca);
    }
    out
}

fn show(account: &AccountStatus) -> String {
    let mut out = format!("{}\n", account.ca);
    let contacts = match account.contacts.as_slice() {
        [] => "none".to_owned(),
        contacts => contacts.join(", "),
    };
    let rolling = account.rolling.then(|| "a roll-over has not ended; the next order settles it".to_owned());
    let rows = [
        ("directory", Some(account.directory.clone())),
        ("account", account.url.clone()),
        ("status", account.status.clone()),
        ("contacts", account.status.is_some().then_some(contacts)),
        ("key", account.thumbprint.as_ref().map(|thumbprint| format!("{thumbprint} (RFC 7638 thumbprint)"))),
        ("note", rolling),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            let _ = writeln!(out, "  {name:<9}  {value}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_to_put_into_caa() {
        let account = AccountStatus {
            ca: "letsencrypt".into(),
            directory: "https://ca.test/dir".into(),
            url: Some("https://ca.test/acct/1".into()),
            status: Some("valid".into()),
            thumbprint: Some("abc".into()),
            ..AccountStatus::default()
        };
        let text = list(&[account.clone(), AccountStatus { ca: "x".into(), ..AccountStatus::default() }]);
        assert!(text.contains("letsencrypt  https://ca.test/acct/1  (valid)\n"), "{text}");
        assert!(text.ends_with("x            not registered yet\n"), "{text}");
        let text = show(&account);
        assert!(
            text.contains("  account    https://ca.test/acct/1\n") && text.contains("contacts   none"),
            "{text}"
        );
        assert!(!text.contains("note"), "{text}");
    }
}
