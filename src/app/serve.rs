//! From the command line to the last log line: start, signals, drain.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::control::{AppControl, Board, ReloadCommand, Shown};
use super::issuers::Ground;
use super::observer::{Names, Observers};
use super::responders::Responders;
use super::secrets::SecretWatch;
use super::{App, Loader, accounts, end, issuers, minting, systemd};
use crate::acme::Accounts;
use crate::admin::{AdminServer, LastReload, ListenerStatus, SideServer};
use crate::backoff::Backoff;
use crate::certs::CertManager;
use crate::challenge::{Janitor, WellKnown, answers, janitor};
use crate::clock::{self, SharedClock, SystemClock};
use crate::config::Plan;
use crate::deploy::{Deployer, Deployments};
use crate::dns::{TxtProvider, ZoneTurns};
use crate::listen::{Inherited, Traffic};
use crate::local_ca::LocalCa;
use crate::notify::Notifier;
use crate::probe::Prober;
use crate::proxy::{Proxy, Snapshot, snapshot_cell};
use crate::resolver::Hosts;
use crate::storage::{FsStorage, Key, Storage};
use crate::task::{OnExit, Shutdown, Supervisor};
use crate::telemetry::{AccessFormat, AccessLog, AccessTarget, Metrics};
use crate::tls::{TlsServer, Validations, cert_store, client_auth_cell};
use crate::upstream::{Pools, client_tls};

/// Idle connections kept to one server, over all workers.
const IDLE_PER_SERVER: usize = 256;
/// Background work, TXT records included, ends within this time at shutdown: the janitor takes ten seconds at most.
const END_LIMIT: Duration = Duration::from_secs(15);
/// Blocking work of the control plane: files and secrets.
const BLOCKING_THREADS: usize = 16;
/// Files that are being written at the end get this long.
const BLOCKING_LIMIT: Duration = Duration::from_secs(2);
/// Who may sweep the journal of TXT records is asked this often, while another process has that right.
const SWEEP_AGAIN: Duration = Duration::from_secs(30);
const SWEEP: Backoff = Backoff::new(&[SWEEP_AGAIN]);

/// Why the process ends with an error. The text is for a person.
#[derive(Debug)]
pub enum Failure {
    /// The configuration is wrong: exit 78.
    Config(String),
    /// It cannot start, or has lost something it needs: exit 1.
    Start(String),
}

/// Serves until told to stop. Runs the control plane on this thread. `config_path` is for the status only.
pub fn serve(loader: Loader, config_path: String) -> Result<(), Failure> {
    let loaded = loader().map_err(Failure::Config)?;
    // An event each; its level says what it is.
    for warning in loaded.warnings.iter() {
        let report = loaded.warnings.render_one(warning, false);
        tracing::warn!("{}", report.strip_prefix("warning: ").unwrap_or(&report).trim_end());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|e| Failure::Start(format!("no runtime: {e}")))?;
    let outcome = runtime.block_on(run(loader, loaded.plan, config_path)).map_err(Failure::Start);
    // Blocking work that hangs (a dead network disk, a pipe as a secret) must not keep a stopped process alive.
    runtime.shutdown_timeout(BLOCKING_LIMIT);
    outcome
}

async fn run(loader: Loader, plan: Plan, config_path: String) -> Result<(), String> {
    let inherited = Inherited::from_env(); // before other files are opened
    let clock: SharedClock = Arc::new(SystemClock);
    let started = clock.now();
    let supervisor = Supervisor::new(Shutdown::new());
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let mut stop = Stop { term: on(SignalKind::terminate())?, int: on(SignalKind::interrupt())? };
    let (mut hangup, mut reopen) = (on(SignalKind::hangup())?, on(SignalKind::user_defined1())?);

    let (storage, warnings) = FsStorage::open(&plan.storage).map_err(|e| e.to_string())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let target = AccessTarget::open(&plan.telemetry.access).map_err(|e| format!("log.access: {e}"))?;
    let format = if std::io::stdout().is_terminal() { AccessFormat::Text } else { AccessFormat::Json };
    let access = AccessLog::start(target, format, metrics.access_dropped().clone())
        .map_err(|e| format!("no thread for the access log: {e}"))?;

    let responders = Responders::new(supervisor.shutdown().clone());
    let janitor = janitor(storage.clone(), clock.clone(), &supervisor);
    let ground = Ground {
        storage: storage.clone(),
        clock: clock.clone(),
        janitor: janitor.clone(),
        turns: ZoneTurns::new(),
        builtin: Arc::new(responders.txt_table()),
        answers: answers(storage.clone(), clock.clone(), &supervisor),
        validations: Validations::default(),
    };
    let (publisher, resolver) = cert_store();
    let deployments = Deployments::new(storage.clone(), clock.clone(), metrics.clone());
    let notifier = Notifier::start(storage.clone(), clock.clone(), metrics.clone(), &supervisor);
    let observer = Arc::new(Observers {
        metrics: metrics.clone(),
        deployments: deployments.clone(),
        notifier: notifier.clone(),
        names: Names::default(),
    });
    let certs = CertManager::start(publisher, storage.clone(), clock.clone(), observer, &supervisor);

    let first =
        Snapshot::build(&plan.proxy, &plan.upstreams, None, None, &metrics).map_err(|e| e.to_string())?;
    let (snapshots, reader) = snapshot_cell(first, metrics.clone());
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (client_auth, asked) = client_auth_cell();
    let tls = TlsServer::new(resolver)
        .map_err(|e| format!("TLS cannot be set up: {e}"))?
        .validating(ground.validations.reader())
        .asking(asked)
        .minting(minting::start(LocalCa::new(storage.clone(), clock.clone(), Vec::new()), &supervisor));
    let hosts = Hosts::system();
    let (upstream_tls, tls_reader) = client_tls();
    let prober = Prober::new(supervisor.clone(), hosts.clone(), tls_reader.clone());
    let snapshot_reader = reader.clone();
    let service = {
        let (metrics, access, clock) = (metrics.clone(), access.clone(), clock.clone());
        let answers = ground.answers.reader();
        move |_worker: usize| {
            let pools = Pools::new(IDLE_PER_SERVER.div_ceil(workers), hosts.clone(), tls_reader.clone());
            let proxy = Proxy::new(reader.clone(), pools, metrics.clone(), access.writer(), clock.clone());
            WellKnown::new(proxy, answers.clone())
        }
    };
    let traffic = Traffic::start(workers, tls, metrics.clone(), service);
    let traffic = Arc::new(traffic.map_err(|e| format!("the traffic threads cannot be started: {e}"))?);

    let mut app = App {
        loader,
        clock: clock.clone(),
        metrics: metrics.clone(),
        access,
        traffic: traffic.clone(),
        inherited,
        snapshots,
        client_auth,
        prober,
        upstream_tls,
        responders,
        certs: certs.clone(),
        deployer: Deployer::new(deployments.clone(), certs.clone(), supervisor.clone()),
        notifier,
        ground,
        plan: plan.clone(),
        secrets: Vec::new(),
    };
    let admin = AdminServer::bind(&app.plan.admin).map_err(|e| e.to_string())?;
    let board = Board::default();
    let begun = tokio::select! {
        begun = async {
            let prepared = app.prepare(&traffic, plan).await?;
            sweep(&janitor, &storage, prepared.issuers.providers.clone(), &supervisor);
            app.commit(prepared).await;
            metrics.reloaded(true, clock.now()); // the first load is one that was taken
            Ok::<(), String>(())
        } => Some(begun),
        () = stop.asked() => None,
    };
    match begun {
        Some(begun) => begun?,
        None => {
            drain(app, &board, &supervisor, &mut stop, Duration::ZERO).await;
            return Ok(());
        }
    }

    let (reloads, mut commands) = mpsc::channel(1);
    let control = Arc::new(AppControl {
        started,
        config_path,
        clock: clock.clone(),
        certs,
        deployments,
        accounts: Accounts::new(storage, clock.clone()),
        metrics: metrics.clone(),
        traffic: traffic.clone(),
        board: board.clone(),
        snapshots: snapshot_reader,
        reloads,
    });
    let beside = Beside {
        metrics: serve_metrics(&app, &metrics, &supervisor)?,
        ready: serve_ready(&app, &board, &supervisor)?,
    };
    show(&app, &board, beside);
    admin.serve(&supervisor, control);
    systemd::watch(&supervisor);
    systemd::ready(&app.summary());
    for (address, kind) in app.listeners() {
        tracing::info!(%address, kind, "listening");
    }
    tracing::info!("serving {}", app.summary());

    let mut secrets = SecretWatch::new();
    let outcome = loop {
        let sources = issuers::sources(&app.plan);
        tokio::select! {
            () = stop.asked() => break Ok(()),
            () = traffic.failed() => break Err("a traffic thread has ended; the log says why".to_owned()),
            () = supervisor.fatal() => break Err("a task that Starlock needs has ended; the log says which".to_owned()),
            seen = secrets.changed(sources, app.secrets.clone()) => app.renew_secrets(seen).await,
            fresh = app.upstream_tls.changed() => app.upstream_tls.commit(fresh),
            _ = reopen.recv() => app.access.reopen(),
            _ = hangup.recv() => tokio::select! {
                result = reload(&mut app, &board, beside) => drop(result),
                () = stop.asked() => break Ok(()), // half a reload is of no concern to a process that ends
            },
            Some(ReloadCommand(answer)) = commands.recv() => {
                let result = tokio::select! {
                    result = reload(&mut app, &board, beside) => result,
                    () = stop.asked() => break Ok(()),
                };
                if answer.send(result).is_err() {
                    tracing::debug!("whoever asked for the reload has gone");
                }
            }
        }
    };
    // Whoever asks for a reload now hears that it is too late.
    drop(commands);
    // Who cannot serve any more does not go on as if it could.
    let lame_duck = if outcome.is_ok() { app.plan.lame_duck } else { Duration::ZERO };
    drain(app, &board, &supervisor, &mut stop, lame_duck).await;
    outcome
}

async fn reload(app: &mut App, board: &Board, beside: Beside) -> Result<super::Reloaded, String> {
    let result = app.reload().await;
    show(app, board, beside);
    let last = LastReload {
        at: clock::rfc3339(app.clock.now()),
        ok: result.is_ok(),
        error: result.as_ref().err().cloned(),
    };
    board.lock().unwrap_or_else(PoisonError::into_inner).last_reload = Some(last);
    result
}

/// Says that it is going, and serves on for `lame_duck`; then stops accepting, lets requests finish, takes TXT records away, writes the
/// last lines. A second signal skips the waiting.
async fn drain(app: App, board: &Board, supervisor: &Supervisor, stop: &mut Stop, lame_duck: Duration) {
    let limit = app.plan.listen.timeouts.drain;
    board.lock().unwrap_or_else(PoisonError::into_inner).draining = true;
    systemd::stopping(lame_duck + limit + END_LIMIT);
    let mut now = false;
    if !lame_duck.is_zero() {
        tracing::info!(
            seconds = lame_duck.as_secs_f64(),
            "going: `ready` says so, everything is still served for a while; a second signal stops at once"
        );
        tokio::select! {
            () = tokio::time::sleep(lame_duck) => {}
            () = stop.asked() => now = true,
        }
    }
    tracing::info!(
        limit_seconds = limit.as_secs(),
        "draining: no new connections, requests in flight finish; a second signal stops at once"
    );
    let App { traffic, access, .. } = app;
    let mut draining = std::pin::pin!(traffic.drain(limit));
    let asked = async {
        if !now {
            stop.asked().await;
        }
    };
    let drained = tokio::select! {
        biased;
        () = asked => {
            tracing::warn!("second signal: stopping now");
            traffic.abort();
            // Milliseconds: what was cut is still logged.
            draining.await
        }
        drained = &mut draining => drained,
    };
    match drained.cut {
        0 => tracing::info!("every request in flight was finished"),
        cut => tracing::warn!(connections = cut, "some connections were still busy and were cut"),
    }
    tokio::select! {
        () = end(supervisor, END_LIMIT) => {}
        () = stop.asked() => tracing::warn!("another signal: background work was left; records in the journal are removed at the next start"),
    }
    if !access.close(Duration::from_secs(2)) {
        tracing::warn!("the last lines of the access log could not be written in time");
    }
    tracing::info!("stopped");
}

/// Removes TXT records that a former run left. Two processes may share the storage: only one of them sweeps, and the other
/// takes over when that one is gone.
fn sweep(
    janitor: &Janitor,
    storage: &Arc<dyn Storage>,
    providers: Vec<Arc<dyn TxtProvider>>,
    supervisor: &Supervisor,
) {
    let (janitor, storage) = (janitor.clone(), storage.clone());
    supervisor.spawn("sweep".into(), OnExit::Restart(SWEEP), move |shutdown| {
        let (janitor, storage, providers) = (janitor.clone(), storage.clone(), providers.clone());
        async move {
            loop {
                // Kept to the end once it is had.
                let lease = match storage.try_lease(&Key::new(&["sweep"])).await {
                    Ok(lease) => lease,
                    Err(error) => {
                        tracing::warn!(%error, "the right to sweep cannot be had; asked for again");
                        None
                    }
                };
                if lease.is_some() && swept(&janitor, &providers).await {
                    return shutdown.wait().await;
                }
                tokio::select! {
                    () = tokio::time::sleep(SWEEP_AGAIN) => {}
                    () = shutdown.wait() => return,
                }
            }
        }
    });
}

/// Whether the journal could be read; then everything in it is on its way out.
async fn swept(janitor: &Janitor, providers: &[Arc<dyn TxtProvider>]) -> bool {
    match janitor.sweep(providers).await {
        Ok(swept) => {
            if swept.records > 0 {
                tracing::info!(records = swept.records, "removing TXT records that a former run left behind");
            }
            true
        }
        Err(error) => {
            tracing::warn!(%error, "the journal of TXT records cannot be read; looked at again");
            false
        }
    }
}

fn serve_metrics(
    app: &App,
    metrics: &Arc<Metrics>,
    supervisor: &Supervisor,
) -> Result<Option<SocketAddr>, String> {
    let Some(address) = app.plan.telemetry.metrics else { return Ok(None) };
    let metrics = metrics.clone();
    let server = SideServer::bind(address).map_err(|e| format!("listen.metrics: {e}"))?;
    let bound = server.address();
    let traffic = app.traffic.clone();
    let render = move || {
        let load = traffic.load();
        metrics.loaded(load.requests(), load.buffered());
        metrics.render()
    };
    server.serve_metrics(supervisor, render);
    Ok(Some(bound))
}

/// Answers balancers that ask whether they may send requests: until the process begins to drain.
fn serve_ready(app: &App, board: &Board, supervisor: &Supervisor) -> Result<Option<SocketAddr>, String> {
    let Some(address) = app.plan.ready else { return Ok(None) };
    let server = SideServer::bind(address).map_err(|e| format!("listen.ready: {address}: {e}"))?;
    let bound = server.address();
    let board = board.clone();
    let is_ready = move || !board.lock().unwrap_or_else(PoisonError::into_inner).draining;
    server.serve_ready(supervisor, is_ready);
    Ok(Some(bound))
}

/// What listens beside the traffic, with real ports.
#[derive(Clone, Copy, Default)]
struct Beside {
    metrics: Option<SocketAddr>,
    ready: Option<SocketAddr>,
}

fn show(app: &App, board: &Board, beside: Beside) {
    let entry = |address: String, kind: &str| ListenerStatus { address, kind: kind.to_owned() };
    let mut listeners: Vec<_> =
        app.listeners().into_iter().map(|(a, kind)| entry(a.to_string(), kind)).collect();
    listeners.extend(beside.metrics.map(|address| entry(address.to_string(), "metrics")));
    listeners.extend(beside.ready.map(|address| entry(address.to_string(), "ready")));
    listeners.push(entry(app.plan.admin.display().to_string(), "admin"));
    let mut shown: std::sync::MutexGuard<'_, Shown> = board.lock().unwrap_or_else(PoisonError::into_inner);
    shown.listeners = listeners;
    shown.cas = accounts::cas(&app.plan);
}

/// SIGTERM and SIGINT mean the same.
struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

fn on(kind: SignalKind) -> Result<Signal, String> {
    signal(kind).map_err(|e| format!("signals cannot be received: {e}"))
}
