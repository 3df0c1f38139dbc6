//! The admin socket's questions, answered from handles; its commands, sent to the task that owns the app.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::{Reloaded, accounts, upstreams};
use crate::acme::{Accounts, AcmeSpec};
use crate::admin::{
    AccountCommand, AccountStatus, CertificateStatus, CertificateVerb, Control, ExportedCertificate, Health,
    JobStatus, LastReload, ListenerStatus, ReloadReport, Status, UpstreamStatus,
};
use crate::certs::{CertId, CertManager, CertView, JobView, Phase, Verb};
use crate::clock::{self, SharedClock};
use crate::deploy::Deployments;
use crate::listen::Traffic;
use crate::name::HostPattern;
use crate::proxy::SnapshotReader;
use crate::telemetry::Metrics;

/// A reload asked for over the admin socket.
pub(super) struct ReloadCommand(pub(super) oneshot::Sender<Result<Reloaded, String>>);

/// What the owner of the app lets others see. Small, and changed only by reloads.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    pub(super) listeners: Vec<ListenerStatus>,
    pub(super) last_reload: Option<LastReload>,
    pub(super) draining: bool,
    /// Every CA of the plan in force.
    pub(super) cas: Vec<AcmeSpec>,
}

pub(super) type Board = Arc<Mutex<Shown>>;

pub(super) struct AppControl {
    pub(super) started: SystemTime,
    pub(super) config_path: String,
    pub(super) clock: SharedClock,
    pub(super) certs: CertManager,
    pub(super) deployments: Deployments,
    pub(super) accounts: Accounts,
    pub(super) metrics: Arc<Metrics>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) board: Board,
    pub(super) snapshots: SnapshotReader,
    pub(super) reloads: mpsc::Sender<ReloadCommand>,
}

#[async_trait]
impl Control for AppControl {
    async fn status(&self) -> Status {
        let shown = self.board.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut certificates = BTreeMap::new();
        for view in self.certs.views() {
            *certificates.entry(state(&view)).or_insert(0) += 1;
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: clock::rfc3339(self.started),
            config_path: self.config_path.clone(),
            last_reload: shown.last_reload,
            listeners: shown.listeners,
            draining: shown.draining,
            connections_open: self.traffic.open_connections() as u64,
            requests_total: self.metrics.requests_total(),
            certificates,
            servers: upstreams::conditions(self.snapshots.load().upstreams()),
        }
    }

    async fn upstreams(&self) -> Vec<UpstreamStatus> {
        upstreams::list(self.snapshots.load().upstreams())
    }

    async fn drain(&self, upstream: &str, server: &str, drained: bool) -> Result<UpstreamStatus, String> {
        upstreams::drain(self.snapshots.load().upstreams(), upstream, server, drained)
    }

    async fn certificates(&self) -> Vec<CertificateStatus> {
        let mut all: Vec<_> = self.certs.views().iter().map(|view| self.certificate(view)).collect();
        all.sort_by(|a, b| a.names.cmp(&b.names));
        all
    }

    async fn reload(&self) -> Result<ReloadReport, String> {
        let (answer, answered) = oneshot::channel();
        let gone = || "Starlock is shutting down".to_owned();
        self.reloads.send(ReloadCommand(answer)).await.map_err(|_| gone())?;
        let Reloaded { changed, changes, warnings } = answered.await.map_err(|_| gone())??;
        Ok(ReloadReport { changed, changes, warnings })
    }

    async fn accounts(&self) -> Vec<AccountStatus> {
        accounts::list(&self.accounts, &self.cas()).await
    }

    async fn account(&self, ca: &str, command: AccountCommand) -> Result<AccountStatus, String> {
        accounts::act(&self.accounts, &self.cas(), ca, command).await
    }

    async fn health(&self) -> Health {
        let draining = self.board.lock().unwrap_or_else(PoisonError::into_inner).draining;
        let now = self.clock.now();
        let views = self.certs.views();
        let expired = views.iter().find(|v| v.validity.is_some_and(|(_, end)| end <= now));
        let reason = match (draining, expired, views.iter().find(|view| is_given_up(view, &views, now))) {
            (true, ..) => Some("draining".to_owned()),
            (false, Some(view), _) => {
                Some(format!("the certificate {} has expired; it {}", view.id, view.next_action()))
            }
            (false, None, Some(view)) => {
                let error = view.last_error.as_deref().unwrap_or("no reason given");
                Some(format!("there is no certificate {}, and it {}: {error}", view.id, view.next_action()))
            }
            (false, None, None) => None,
        };
        Health { healthy: reason.is_none(), reason }
    }

    async fn command(&self, id: &str, verb: CertificateVerb) -> Result<u64, String> {
        let verb = match verb {
            CertificateVerb::Renew { force } => Verb::Renew { force },
            CertificateVerb::Rehearse => Verb::Rehearse,
            CertificateVerb::Revoke { reason } => Verb::Revoke { reason },
            CertificateVerb::RollBack => Verb::RollBack,
        };
        self.certs.command(&self.known(id)?, verb).await
    }

    async fn job(&self, number: u64) -> Option<JobStatus> {
        let JobView { steps, outcome } = self.certs.job(number)?;
        let (done, ok) = (outcome.is_some(), matches!(outcome, Some(Ok(_))));
        let message = match outcome {
            Some(Ok(text) | Err(text)) => text,
            None => String::new(),
        };
        Some(JobStatus { steps, done, ok, message })
    }

    async fn export(&self, id: &str) -> Result<ExportedCertificate, String> {
        let exported = self.certs.export(&self.known(id)?).await?;
        Ok(ExportedCertificate { chain: exported.chain_pem, key: exported.key_pem.expose().to_owned() })
    }
}

impl AppControl {
    fn known(&self, id: &str) -> Result<CertId, String> {
        let view = self.certs.views().into_iter().find(|view| view.id.as_str() == id);
        view.map(|view| view.id).ok_or_else(|| format!("there is no certificate {id}"))
    }
}

impl AppControl {
    fn cas(&self) -> Vec<AcmeSpec> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).cas.clone()
    }
}

/// Whether it waits for a person while nothing at all is served for some name of it.
fn is_given_up(view: &CertView, all: &[CertView], now: SystemTime) -> bool {
    let served = |name: &HostPattern| {
        let good = all.iter().filter(|other| other.validity.is_some_and(|(_, end)| end > now));
        good.flat_map(|other| other.names.iter()).any(|other| other.covers(name))
    };
    view.phase == Phase::Parked && !view.names.iter().all(served)
}

fn state(view: &CertView) -> String {
    view.phase.as_str().to_owned()
}

impl AppControl {
    fn certificate(&self, view: &CertView) -> CertificateStatus {
        CertificateStatus {
            id: view.id.to_string(),
            names: view.names.iter().map(ToString::to_string).collect(),
            issuer: view.issuer.to_string(),
            serial: view.serial.clone(),
            not_before: view.validity.map(|(from, _)| clock::rfc3339(from)),
            not_after: view.validity.map(|(_, to)| clock::rfc3339(to)),
            state: state(view),
            next_action: view.next_action(),
            next_action_at: view.next_at.map(clock::rfc3339),
            attempts: view.failures,
            last_error: view.last_error.clone(),
            step: view.step.clone(),
            deploy: self.deployments.last(&view.id),
        }
    }
}
