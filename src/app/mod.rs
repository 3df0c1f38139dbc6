//! The composition root: the only place that knows everyone.
//!
//! Start and reload are the same path: `load` → `Plan` → `App::prepare`, which can fail and changes nothing → `commit`, which
//! changes everything and cannot fail.

mod accounts;
mod control;
mod issuers;
mod kept;
mod minting;
mod observer;
mod offline;
mod responders;
mod secrets;
mod serve;
mod systemd;
mod takeover;
mod upstreams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use self::issuers::{Ground, Issuers};
use self::responders::{PreparedResponders, Responders};
use crate::certs::CertManager;
use crate::clock::SharedClock;
use crate::config::{Loaded, Plan};
use crate::deploy::Deployer;
use crate::listen::{Addresses, Inherited, PreparedListeners, Traffic};
use crate::notify::{Notifier, PreparedNotify};
use crate::probe::Prober;
use crate::proxy::{Snapshot, SnapshotPublisher};
use crate::task::{self, Supervisor};
use crate::telemetry::{AccessLog, AccessTarget, Metrics};
use crate::tls::{ClientAuth, ClientAuthPublisher};
use crate::upstream::{PreparedTls, TlsPublisher};

pub use kept::KeptState;
pub use offline::local_roots;
pub use serve::{Failure, serve};
pub use takeover::{Moved, TakeOver, Taking, take_over};

/// Reads the configuration, from wherever it is: called at start and at each reload. Blocking. The error is for a person.
pub type Loader = Arc<dyn Fn() -> Result<Loaded, String> + Send + Sync>;

/// A plan is in force within this time after a reload, or the reload is refused.
const PREPARE_LIMIT: Duration = Duration::from_secs(30);

/// The running process. One task owns it; everyone else sends it commands.
struct App {
    loader: Loader,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    access: AccessLog,
    traffic: Arc<Traffic>,
    inherited: Inherited,
    snapshots: SnapshotPublisher,
    client_auth: ClientAuthPublisher,
    prober: Prober,
    upstream_tls: TlsPublisher,
    responders: Responders,
    certs: CertManager,
    deployer: Deployer,
    notifier: Notifier,
    ground: Ground,
    plan: Plan,
    /// What the plan's secrets said before its issuers were made of them.
    secrets: secrets::Seen,
}

/// Everything a plan needs, taken and checked. Dropping it gives everything back.
struct Prepared<'a> {
    plan: Plan,
    listeners: PreparedListeners<'a>,
    responders: PreparedResponders,
    snapshot: Snapshot,
    client_auth: ClientAuth,
    upstream_tls: PreparedTls,
    issuers: Issuers,
    notify: PreparedNotify,
    secrets: secrets::Seen,
    /// `None`: the access log stays where it is.
    access: Option<AccessTarget>,
}

/// What a reload came to.
struct Reloaded {
    changed: bool,
    changes: Vec<String>,
    warnings: String,
}

impl App {
    /// Does everything for `plan` that can fail. Changes nothing.
    async fn prepare<'a>(&mut self, traffic: &'a Traffic, plan: Plan) -> Result<Prepared<'a>, String> {
        if plan.storage != self.plan.storage {
            return Err("storage.path cannot change while running: restart Starlock for it".to_owned());
        }
        if plan.admin != self.plan.admin
            || plan.telemetry.metrics != self.plan.telemetry.metrics
            || plan.ready != self.plan.ready
        {
            return Err(
                "listen.admin, listen.metrics and listen.ready cannot change while running: restart Starlock for them"
                    .to_owned(),
            );
        }
        let access = match plan.telemetry.access != self.plan.telemetry.access {
            true => Some(AccessTarget::open(&plan.telemetry.access).map_err(|e| format!("log.access: {e}"))?),
            false => None,
        };
        let listeners =
            traffic.prepare(&plan.listen, &mut self.inherited).await.map_err(|e| e.to_string())?;
        let responders = self.responders.prepare(plan.responder.as_ref(), &mut self.inherited);
        let responders = responders.map_err(|e| e.to_string())?;
        // Before they are read for use: a rotation in between is seen at the next look.
        let secrets = secrets::look(&issuers::sources(&plan));
        let issuers = issuers::build(&plan, &self.ground, &responders.addresses)?;
        let notify = Notifier::prepare(plan.notify.as_ref())?;
        let client_auth =
            self.client_auth.current().next(&plan.client_auth).map_err(|error| error.to_string())?;
        let upstream_tls = self.upstream_tls.prepare(&plan.upstreams).await.map_err(|e| e.to_string())?;
        let https_port = listeners.addresses().https_port();
        let current = self.snapshots.current();
        let snapshot =
            Snapshot::build(&plan.proxy, &plan.upstreams, https_port, Some(&*current), &self.metrics)
                .map_err(|e| e.to_string())?
                .asking(client_auth.policies());
        Ok(Prepared {
            plan,
            listeners,
            responders,
            snapshot,
            client_auth,
            upstream_tls,
            issuers,
            notify,
            secrets,
            access,
        })
    }

    /// Puts a prepared plan into force: answers for DNS first, then certificates, then routes, then doors.
    async fn commit(&mut self, prepared: Prepared<'_>) {
        let Prepared {
            plan,
            listeners,
            responders,
            snapshot,
            client_auth,
            upstream_tls,
            issuers,
            notify,
            secrets,
            access,
        } = prepared;
        self.responders.commit(responders, plan.responder.as_ref());
        self.secrets = secrets;
        self.notifier.commit(notify);
        self.deployer.set(issuers.deploys);
        self.certs.set_wanted(issuers.wanted, issuers.files, plan.listen.default_sni.clone()).await;
        // In between, a request finds that its connection was made under another policy, and comes again.
        self.client_auth.publish(client_auth);
        self.upstream_tls.commit(upstream_tls);
        self.snapshots.publish(snapshot);
        self.prober.watch(self.snapshots.current().upstreams());
        if let Some(target) = access {
            self.access.commit(target);
        }
        listeners.commit();
        self.plan = plan;
    }

    /// Loads, prepares, commits. A refusal changes nothing, and is remembered in the metrics.
    async fn reload(&mut self) -> Result<Reloaded, String> {
        systemd::reloading();
        let result = self.try_reload().await;
        self.metrics.reloaded(result.is_ok(), self.clock.now());
        match &result {
            Ok(reloaded) if reloaded.changed => {
                tracing::info!(changes = ?reloaded.changes, "configuration reloaded");
            }
            Ok(_) => tracing::info!("reload: the configuration says what is already in force"),
            Err(error) => tracing::error!("reload refused, nothing has changed:\n{error}"),
        }
        systemd::ready(&self.summary());
        result
    }

    async fn try_reload(&mut self) -> Result<Reloaded, String> {
        let loader = self.loader.clone();
        let loaded = tokio::time::timeout(PREPARE_LIMIT, task::blocking(move || loader()));
        let loaded =
            loaded.await.map_err(|_| "the configuration could not be read within 30 s".to_owned())??;
        let warnings = loaded.warnings.to_string();
        // The same text may still mean other secrets; those are part of what certificates are compared by.
        let changes = changes(&self.plan, &loaded.plan);
        let traffic = self.traffic.clone();
        let prepared = self.prepare(&traffic, loaded.plan).await?;
        self.commit(prepared).await;
        Ok(Reloaded { changed: !changes.is_empty(), changes, warnings })
    }

    /// After a secret has changed: makes the issuers and the upstreams anew, as a reload would. What cannot be made leaves those
    /// in force.
    async fn renew_secrets(&mut self, seen: secrets::Seen) {
        self.secrets = seen;
        self.renew_upstreams();
        match issuers::build(&self.plan, &self.ground, &self.responders.addresses()) {
            Ok(issuers) => {
                tracing::info!("a secret has changed; what depends on it uses the new one");
                let default_sni = self.plan.listen.default_sni.clone();
                self.certs.set_wanted(issuers.wanted, issuers.files, default_sni).await;
            }
            Err(error) => {
                tracing::error!(
                    "a secret has changed, but the new one cannot be used; the old one stays: {error}"
                );
            }
        }
    }

    fn renew_upstreams(&mut self) {
        if self.plan.upstreams.iter().all(|upstream| upstream.sticky.is_none()) {
            return;
        }
        let (current, port) = (self.snapshots.current(), self.traffic.addresses().https_port());
        let made =
            Snapshot::build(&self.plan.proxy, &self.plan.upstreams, port, Some(&*current), &self.metrics);
        match made {
            Ok(snapshot) => {
                self.snapshots.publish(snapshot.asking(self.client_auth.current().policies()));
                self.prober.watch(self.snapshots.current().upstreams());
            }
            Err(error) => {
                tracing::error!(
                    "a secret has changed, but the upstreams cannot be made with it; the old one stays: {error}"
                );
            }
        }
    }

    fn summary(&self) -> String {
        let count = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
        let (routes, certificates) = (self.plan.proxy.routes.len(), self.plan.certificates.len());
        format!("{}, {}", count(routes, "route"), count(certificates, "certificate"))
    }

    fn listeners(&self) -> Vec<(SocketAddr, &'static str)> {
        let Addresses { https, http } = self.traffic.addresses();
        let kinds = [(https, "https"), (http, "http"), (self.responders.addresses(), "responder")];
        kinds
            .into_iter()
            .flat_map(|(all, kind)| all.into_iter().map(move |address| (address, kind)))
            .collect()
    }
}

/// What differs, a line each, for a person.
fn changes(old: &Plan, new: &Plan) -> Vec<String> {
    let mut changes = Vec::new();
    let mut note = |what: &str, differs: bool| {
        if differs {
            changes.push(what.to_owned());
        }
    };
    note("listeners", old.listen != new.listen || old.lame_duck != new.lame_duck);
    note("routes", old.proxy != new.proxy);
    note("client certificates", old.client_auth != new.client_auth);
    note("upstreams", old.upstreams != new.upstreams);
    note("certificates", old.certificates != new.certificates);
    note("notifications", old.notify != new.notify);
    note("responder", old.responder != new.responder);
    note("logs", old.telemetry != new.telemetry);
    changes
}

/// Ends background work and waits for it.
async fn end(supervisor: &Supervisor, limit: Duration) {
    supervisor.shutdown().trigger();
    if !supervisor.join(limit).await {
        tracing::warn!("background tasks were still running at the end");
    }
}
