//! The socket that operators talk to: HTTP/1.1 and JSON over a Unix socket, and metrics over TCP.
//!
//! `app` implements [`Control`]; [`AdminServer`] puts it on a socket; [`Client`] is what `starlock status` and its like use. The
//! types below are both ends' idea of an answer, and a stable interface for scripts.

mod client;
mod http;
mod metrics;
mod server;

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError};
pub use metrics::MetricsServer;
pub use server::{AdminServer, BindError};

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
    /// Clients at this moment.
    pub connections_open: u64,
    /// Since the start, of the routes in force.
    pub requests_total: u64,
    /// How many certificates there are in each state.
    pub certificates: BTreeMap<String, u64>,
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
