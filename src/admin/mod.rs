//! The socket that operators talk to: HTTP/1.1 and JSON over a Unix socket, and metrics over TCP.
//!
//! `app` implements [`Control`]; [`AdminServer`] puts it on a socket; [`Client`] is what `starlock status` and its like use. The
//! types below are both ends' idea of an answer, and a stable interface for scripts.

mod accounts;
mod client;
mod http;
mod server;
mod side;
mod upstreams;

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use accounts::{AccountCommand, AccountStatus};
pub use client::{Client, ClientError};
pub use server::{AdminServer, BindError};
pub use side::SideServer;
pub use upstreams::{ServerStatus, UpstreamStatus};

/// What operators may ask and command. Calls may run concurrently, and dropping one stops nothing that has begun.
#[async_trait]
pub trait Control: Send + Sync {
    /// The process as it stands.
    async fn status(&self) -> Status;

    /// Every certificate, sorted by its first name.
    async fn certificates(&self) -> Vec<CertificateStatus>;

    /// Reads the configuration again and takes it over, or changes nothing. The error is the whole text for a person, all
    /// problems included. Waits no longer than the implementation's own bound, and the server waits 60 s.
    async fn reload(&self) -> Result<ReloadReport, String>;

    /// Whether it does its work.
    async fn health(&self) -> Health;

    /// Begins something with the certificate `id`; [`Control::job`] tells of it by the number. The error is for a person.
    async fn command(&self, id: &str, verb: CertificateVerb) -> Result<u64, String>;

    /// What was begun, as it stands; `None` if that number is not known (any more).
    async fn job(&self, number: u64) -> Option<JobStatus>;

    /// The served chain of the certificate `id`, with its key. The error is for a person.
    async fn export(&self, id: &str) -> Result<ExportedCertificate, String>;

    /// The account at each CA of the configuration, as it is kept. Asks no CA.
    async fn accounts(&self) -> Vec<AccountStatus>;

    /// Does something with the account at `ca`: a word of the configuration, a host, or a directory's URL. Asks the CA and waits
    /// for it, a minute at most. The error is for a person.
    async fn account(&self, ca: &str, command: AccountCommand) -> Result<AccountStatus, String>;

    /// Every upstream with its servers, by name.
    async fn upstreams(&self) -> Vec<UpstreamStatus>;

    /// Keeps new requests away from a server of an upstream until it is told otherwise, over reloads too; requests it works on
    /// finish. The error is for a person.
    async fn drain(&self, upstream: &str, server: &str, drained: bool) -> Result<UpstreamStatus, String>;
}

/// What may be done with a certificate: `POST /certificates/ID/` and the word; `revoke/` takes the reason's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateVerb {
    /// `renew`, or `renew-force`: whatever the limits say.
    Renew {
        /// Whether the CA's limits are left out of account.
        force: bool,
    },
    /// `rehearse`: at the CA's staging; nothing is served.
    Rehearse,
    /// `revoke/REASON`, and order a new one.
    Revoke {
        /// RFC 5280 section 5.3.1.
        reason: u8,
    },
    /// `rollback`: serve the previous generation.
    RollBack,
}

impl CertificateVerb {
    fn path(self) -> String {
        match self {
            Self::Renew { force: false } => "renew".to_owned(),
            Self::Renew { force: true } => "renew-force".to_owned(),
            Self::Rehearse => "rehearse".to_owned(),
            Self::Revoke { reason } => format!("revoke/{reason}"),
            Self::RollBack => "rollback".to_owned(),
        }
    }

    fn parse(path: &str) -> Option<Self> {
        let known =
            [Self::Renew { force: false }, Self::Renew { force: true }, Self::Rehearse, Self::RollBack];
        let reason = || path.strip_prefix("revoke/")?.parse().ok().map(|reason| Self::Revoke { reason });
        known.into_iter().find(|verb| verb.path() == path).or_else(reason)
    }
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    job: u64,
}

/// `GET /jobs/NUMBER`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobStatus {
    /// What it has done, for a person.
    pub steps: Vec<String>,
    /// Whether it has ended.
    pub done: bool,
    /// Whether it ended well.
    pub ok: bool,
    /// What came of it, or why not.
    pub message: String,
}

/// `GET /certificates/ID/export`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportedCertificate {
    /// PEM, leaf first.
    pub chain: String,
    /// PKCS#8 PEM: a secret.
    pub key: String,
}

impl std::fmt::Debug for ExportedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExportedCertificate")
    }
}

/// `GET /status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Of the running program.
    pub version: String,
    /// Of the running process.
    pub pid: u32,
    /// RFC 3339.
    pub started_at: String,
    /// The configuration's path; empty for `starlock proxy`.
    pub config_path: String,
    /// The last attempt to reload, if there was one.
    pub last_reload: Option<LastReload>,
    /// What is bound, the real ports where the configuration says 0.
    pub listeners: Vec<ListenerStatus>,
    /// A shutdown has begun.
    pub draining: bool,
    /// Clients at this moment.
    pub connections_open: u64,
    /// Since the start, of the routes in force.
    pub requests_total: u64,
    /// How many certificates there are in each state.
    pub certificates: BTreeMap<String, u64>,
    /// How many servers of upstreams there are in each condition: `up`, `down`, `ejected`, `drained`.
    pub servers: BTreeMap<String, u64>,
}

/// An attempt to reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastReload {
    /// RFC 3339.
    pub at: String,
    /// Whether the file was taken over.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
}

/// A bound address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerStatus {
    /// `address:port`, or a path.
    pub address: String,
    /// `https`, `http`, `responder`, `metrics` or `admin`.
    pub kind: String,
}

/// An element of `GET /certificates`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateStatus {
    /// Its name in commands.
    pub id: String,
    /// What it is for.
    pub names: Vec<String>,
    /// Who signs it.
    pub issuer: String,
    /// Of the one being served, in hexadecimal.
    pub serial: Option<String>,
    /// RFC 3339.
    pub not_before: Option<String>,
    /// RFC 3339.
    pub not_after: Option<String>,
    /// `valid`, `ordering`, `waiting`, `parked`, `wanted`, `following` or `local`.
    pub state: String,
    /// What happens next by itself, for a person.
    pub next_action: String,
    /// When, RFC 3339.
    pub next_action_at: Option<String>,
    /// Failures in a row.
    pub attempts: u32,
    /// What the last attempt failed with.
    pub last_error: Option<String>,
    /// What a running order is doing.
    pub step: Option<String>,
    /// How passing it on to others went last, a line for each.
    pub deploy: Option<String>,
}

/// The answer to a good `POST /reload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadReport {
    /// `false`: the file says what is already done.
    pub changed: bool,
    /// What changed, a line each, for a person.
    pub changes: Vec<String>,
    /// The configuration's warnings as text; may be empty.
    pub warnings: String,
}

/// `GET /health`: 200 if `healthy`, else 503.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Whether it does its work.
    pub healthy: bool,
    /// Why not, for a person.
    pub reason: Option<String>,
}

/// The body of every refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Refusal {
    error: String,
}
