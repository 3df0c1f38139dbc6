//! `/accounts`: accounts at CAs, over the admin socket.

use std::sync::Arc;

use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::Control;
use super::http::{Answer, json, refuse};

/// An element of `GET /accounts`, and the answer to the rest below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountStatus {
    /// The CA's word in the configuration, or its host.
    pub ca: String,
    /// Its ACME directory.
    pub directory: String,
    /// The account's URL; none before it is registered.
    pub url: Option<String>,
    /// RFC 7638 thumbprint of the account's key.
    pub thumbprint: Option<String>,
    /// `valid`, `deactivated` or `revoked` as the CA says; none where it was not asked.
    pub status: Option<String>,
    /// As the CA has them; empty where it was not asked.
    pub contacts: Vec<String>,
    /// Whether a roll-over of the key has not ended yet: the next order settles it.
    pub rolling: bool,
}

/// What may be done with an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountCommand {
    /// Ask the CA about it.
    Show,
    /// Give it a new key.
    RollKey,
    /// Replace its contact; `None` takes it away.
    Contact(Option<String>),
    /// End it, for good.
    Deactivate,
}

impl AccountCommand {
    /// Method and path for the account at `ca`.
    pub(super) fn request(&self, ca: &str) -> (&'static str, String) {
        let ca = utf8_percent_encode(ca, NON_ALPHANUMERIC);
        match self {
            Self::Show => ("GET", format!("/accounts/{ca}")),
            Self::RollKey => ("POST", format!("/accounts/{ca}/roll-key")),
            Self::Contact(None) => ("POST", format!("/accounts/{ca}/contact")),
            Self::Contact(Some(email)) => {
                ("POST", format!("/accounts/{ca}/contact/{}", utf8_percent_encode(email, NON_ALPHANUMERIC)))
            }
            Self::Deactivate => ("POST", format!("/accounts/{ca}/deactivate")),
        }
    }

    fn parse(method: &Method, rest: &[&str]) -> Option<Self> {
        match (method.as_str(), rest) {
            ("GET", []) => Some(Self::Show),
            ("POST", ["roll-key"]) => Some(Self::RollKey),
            ("POST", ["contact"]) => Some(Self::Contact(None)),
            ("POST", ["contact", email]) => Some(Self::Contact(Some(decoded(email)))),
            ("POST", ["deactivate"]) => Some(Self::Deactivate),
            _ => None,
        }
    }
}

fn decoded(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// Answers what is below `/accounts`; `rest` is what follows that.
pub(super) async fn answer(control: Arc<dyn Control>, method: &Method, rest: &str) -> Answer {
    let segments: Vec<&str> = rest.split('/').filter(|segment| !segment.is_empty()).collect();
    let Some((ca, rest)) = segments.split_first() else {
        return match *method {
            Method::GET => json(StatusCode::OK, &control.accounts().await),
            _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "/accounts takes GET only"),
        };
    };
    let Some(command) = AccountCommand::parse(method, rest) else {
        let known = "GET /accounts/CA, POST /accounts/CA/roll-key, /contact[/EMAIL], /deactivate";
        return refuse(StatusCode::NOT_FOUND, &format!("below /accounts there are {known}"));
    };
    match control.account(&decoded(ca), command).await {
        Ok(account) => json(StatusCode::OK, &account),
        Err(error) => refuse(StatusCode::UNPROCESSABLE_ENTITY, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_survives_its_path() {
        for command in [
            AccountCommand::Show,
            AccountCommand::RollKey,
            AccountCommand::Contact(None),
            AccountCommand::Contact(Some("a/b+c@example.com".into())),
            AccountCommand::Deactivate,
        ] {
            let (method, path) = command.request("https://ca.test/dir?x");
            let segments: Vec<&str> = path.split('/').skip(2).collect();
            assert_eq!(decoded(segments[0]), "https://ca.test/dir?x", "{path}");
            assert_eq!(AccountCommand::parse(&method.parse().unwrap(), &segments[1..]), Some(command));
        }
        assert_eq!(AccountCommand::parse(&Method::GET, &["roll-key"]), None);
    }
}
