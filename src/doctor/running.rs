//! What a running Starlock says of itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use super::finding::{About, Finding, Note};
use crate::admin::{CertificateStatus, Client, ClientError};

/// The process on the admin socket.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    pub(super) pid: u32,
    /// By kind and address.
    pub(super) listeners: BTreeSet<(String, SocketAddr)>,
    pub(super) certificates: Vec<CertificateStatus>,
}

/// Asks the socket. `Ok(None)`: nobody runs. Blocking.
pub(super) fn gather(socket: &Path) -> Result<Option<Running>, String> {
    let client = Client::new(socket);
    let status = match client.status() {
        Ok(status) => status,
        Err(ClientError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let certificates = client.certificates().map_err(|error| error.to_string())?;
    let listener = |l: &crate::admin::ListenerStatus| Some((l.kind.clone(), l.address.parse().ok()?));
    let listeners = status.listeners.iter().filter_map(listener).collect();
    Ok(Some(Running { pid: status.pid, listeners, certificates }))
}

/// What the process knows better than any probe: how its own orders went.
pub(super) fn judge(running: &Running) -> Vec<Finding> {
    running.certificates.iter().filter_map(judge_certificate).collect()
}

fn judge_certificate(status: &CertificateStatus) -> Option<Finding> {
    let error = status.last_error.as_ref()?;
    let names = status.names.join(", ");
    let first = status.names.first().map(String::as_str).unwrap_or_default();
    let note = match status.state.as_str() {
        "parked" => Note::failure(
            "certificate.parked",
            format!("the running Starlock has given up on it for now: {error}"),
        ),
        "waiting" => Note::warning(
            "certificate.waiting",
            format!("the last attempt of the running Starlock failed: {error}"),
        ),
        _ => return None,
    };
    let note = note
        .why(format!("what happens by itself: it {}", status.next_action))
        .fix(format!("mend what it says, then: starlock reload; watch it: starlock certs show {first}"))
        .place("starlock certs");
    Some(note.about(&About::Certificate(names)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_went_wrong_is_told() {
        let status = |state: &str, error: Option<&str>| CertificateStatus {
            names: vec!["example.com".into(), "*.example.com".into()],
            state: state.into(),
            next_action: "tries again".into(),
            last_error: error.map(Into::into),
            ..CertificateStatus::default()
        };
        let ids = |all: Vec<CertificateStatus>| {
            let running = Running { certificates: all, ..Running::default() };
            judge(&running).into_iter().map(|f| (f.about.heading(), f.note.id)).collect::<Vec<_>>()
        };
        let about = "certificate example.com, *.example.com".to_owned();
        assert_eq!(ids(vec![status("parked", Some("x"))]), [(about.clone(), "certificate.parked")]);
        assert_eq!(ids(vec![status("waiting", Some("x"))]), [(about, "certificate.waiting")]);
        assert!(ids(vec![status("valid", Some("old")), status("waiting", None)]).is_empty());
    }
}
