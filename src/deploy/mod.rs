//! Certificates for other programs: files, and a hook that tells them. Never in the way of serving or renewing.

mod files;
mod hook;
mod spec;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};

use crate::backoff::{self, Backoff};
use crate::certs::{CertId, CertManager, CertView, Exported};
use crate::clock::{self, SharedClock};
use crate::name::HostPattern;
use crate::storage::{Expect, Key, Storage};
use crate::task::{self, OnExit, Shutdown, Supervisor};
use crate::telemetry::Metrics;
use crate::tls::Bundle;

pub use spec::DeploySpec;

/// Hooks that run at once: mail servers and databases restart in them.
const CONCURRENT: usize = 4;
const RETRIES: Backoff = Backoff::new(&[
    Duration::from_secs(30),
    Duration::from_secs(300),
    Duration::from_secs(1800),
    Duration::from_secs(3600),
]);
/// A worker that orders answers afterwards.
const EXPORT_LIMIT: Duration = Duration::from_secs(600);
const RESTART: Backoff = Backoff::new(&[Duration::from_secs(60)]);

/// A certificate and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its names, sorted.
    pub names: Arc<[HostPattern]>,
    /// Where it goes.
    pub spec: DeploySpec,
}

impl Job {
    /// The same after a restart, and another one when anything about it changes.
    fn id(&self) -> String {
        let digest = Sha256::digest(format!("{self:?}"));
        digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
    }
}

/// Told what is served; asked how the last deploy went. Cloning shares it.
#[derive(Clone)]
pub struct Deployments(Arc<Shared>);

struct Shared {
    storage: Arc<dyn Storage>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    turns: Semaphore,
    seen: Mutex<HashMap<CertId, Seen>>,
}

struct Seen {
    serial: watch::Sender<Option<String>>,
    /// By job.
    results: BTreeMap<String, String>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { serial: watch::Sender::new(None), results: BTreeMap::new() }
    }
}

impl Deployments {
    /// Nothing is deployed yet.
    pub fn new(storage: Arc<dyn Storage>, clock: SharedClock, metrics: Arc<Metrics>) -> Self {
        let (turns, seen) = (Semaphore::new(CONCURRENT), Mutex::default());
        Self(Arc::new(Shared { storage, clock, metrics, turns, seen }))
    }

    /// What is served for a certificate has (perhaps) changed.
    pub fn served(&self, view: &CertView) {
        let mut seen = self.0.seen();
        seen.entry(view.id.clone()).or_default().serial.send_if_modified(|serial| {
            let changed = view.serial.is_some() && *serial != view.serial;
            if changed {
                serial.clone_from(&view.serial);
            }
            changed
        });
    }

    /// The certificate is not held any more.
    pub fn forgotten(&self, id: &CertId) {
        self.0.seen().remove(id);
    }

    /// How the last deploy of a certificate went, a line for each target; `None` if it has none.
    pub fn last(&self, id: &CertId) -> Option<String> {
        let seen = self.0.seen();
        let lines: Vec<&str> = seen.get(id)?.results.values().map(String::as_str).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

impl fmt::Debug for Deployments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deployments")
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, HashMap<CertId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, job: &Job, result: String) {
        self.seen().entry(CertId::of(&job.names)).or_default().results.insert(job.id(), result);
    }
}

/// Starts and stops jobs; there is one.
#[derive(Debug)]
pub struct Deployer {
    deployments: Deployments,
    certs: CertManager,
    supervisor: Supervisor,
    running: HashMap<String, (Job, Shutdown)>,
}

impl Deployer {
    /// Without jobs.
    pub fn new(deployments: Deployments, certs: CertManager, supervisor: Supervisor) -> Self {
        Self { deployments, certs, supervisor, running: HashMap::new() }
    }

    /// Replaces the jobs; those in both sets go on.
    pub fn set(&mut self, jobs: Vec<Job>) {
        let mut before = std::mem::take(&mut self.running);
        for job in jobs {
            let id = job.id();
            let kept = before.remove(&id).or_else(|| self.running.remove(&id));
            let entry = kept.unwrap_or_else(|| self.start(job));
            self.running.insert(id, entry);
        }
        for (id, (job, stop)) in before {
            stop.trigger();
            if let Some(seen) = self.deployments.0.seen().get_mut(&CertId::of(&job.names)) {
                seen.results.remove(&id);
            }
        }
    }

    fn start(&self, job: Job) -> (Job, Shutdown) {
        let stop = self.supervisor.shutdown().child();
        let name = format!("deploy {}", CertId::of(&job.names)).into();
        let (shared, certs, template) = (self.deployments.0.clone(), self.certs.clone(), job.clone());
        self.supervisor.spawn_until(name, OnExit::Restart(RESTART), stop.clone(), move |stop| {
            let (shared, certs, job) = (shared.clone(), certs.clone(), template.clone());
            async move {
                tokio::select! {
                    biased; // nothing is counted for a certificate that may be forgotten already
                    () = stop.wait() => {}
                    () = run(&shared, &certs, &job) => {}
                }
            }
        });
        (job, stop)
    }
}

/// Never ends. Dropping it kills a hook.
async fn run(shared: &Shared, certs: &CertManager, job: &Job) {
    let cert = CertId::of(&job.names);
    let mut done: Option<String> = None;
    let mut failures = 0;
    loop {
        let mut serials = shared.seen().entry(cert.clone()).or_default().serial.subscribe();
        let current = serials.borrow_and_update().clone();
        let Some(serial) = current.filter(|serial| done.as_ref() != Some(serial)) else {
            if serials.changed().await.is_err() {
                // Forgotten, and perhaps wanted again: then there is another sender.
                tokio::time::sleep(RETRIES.after(1)).await;
            }
            continue;
        };
        let result = once(shared, certs, job, &serial).await;
        let now = clock::rfc3339(shared.clock.now());
        let label: Arc<str> = job.names.first().map(ToString::to_string).unwrap_or_default().into();
        let wait = match result {
            Ok(what) => {
                if what != "unchanged" {
                    tracing::info!(certificate = %cert, serial, "deployed: {what}");
                    shared.metrics.deploys(&label, "success").inc();
                }
                shared.note(job, format!("ok at {now}: {what}"));
                failures = 0;
                done = Some(serial);
                continue;
            }
            Err(error) => {
                failures += 1;
                let wait = backoff::jitter(RETRIES.after(failures), 10.0, backoff::dice());
                tracing::warn!(
                    certificate = %cert, serial, failures, again_in_seconds = wait.as_secs(),
                    "the certificate is served, but could not be deployed: {error}. Tried again by itself"
                );
                shared.metrics.deploys(&label, "failure").inc();
                shared.note(job, format!("failed at {now}, tried again in {} s: {error}", wait.as_secs()));
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // A new certificate may be what mends it.
            Ok(()) = serials.changed() => {}
        }
    }
}

/// Writes and runs what has to be. Says what was done.
async fn once(shared: &Shared, certs: &CertManager, job: &Job, serial: &str) -> Result<String, String> {
    let spec = &job.spec;
    let asked = tokio::time::timeout(EXPORT_LIMIT, certs.export(&CertId::of(&job.names))).await;
    let pem = asked.map_err(|_| "its worker is busy".to_owned())??;
    let bundle = Bundle::from_pem(&pem.chain_pem, pem.key_pem.expose()).map_err(|e| e.to_string())?;
    if bundle.serial() != serial {
        return Err("it has just been replaced".to_owned());
    }
    let record = Key::new(&["deploys", CertId::of(&job.names).as_str(), &job.id()]);
    let known = shared.storage.load(&record).await.map_err(|e| e.to_string())?;
    let mut is_done = known.is_some_and(|known| known.value == serial.as_bytes());
    let mut did = Vec::new();
    if let Some(dir) = &spec.dir
        && on_files(dir, spec, &pem, files::differ).await?
    {
        if is_done {
            // Before anything is written: whatever fails from here on, the next attempt runs the hook.
            let removed = shared.storage.remove(&record).await;
            removed.map_err(|e| format!("what was done before cannot be forgotten: {e}"))?;
            is_done = false;
        }
        on_files(dir, spec, &pem, files::write).await?;
        did.push(format!("wrote {}", dir.display()));
    }
    if let Some(program) = spec.run.first().filter(|_| !is_done) {
        let _turn = shared.turns.acquire().await.map_err(|e| e.to_string())?;
        hook::run(&spec.run, &variables(job, serial), spec.timeout).await?;
        did.push(format!("ran {program}"));
    }
    if !is_done {
        let stored = shared.storage.store(&record, serial.as_bytes(), Expect::Anything).await;
        stored.map_err(|e| format!("done, but it cannot be remembered: {e}"))?;
    }
    Ok(if did.is_empty() { "unchanged".to_owned() } else { did.join(", ") })
}

/// Has `act` done to the files of `dir`, away from everything that must not wait for a disk.
async fn on_files<T: Send + 'static>(
    dir: &Path,
    spec: &DeploySpec,
    pem: &Exported,
    act: fn(&Path, &DeploySpec, &Exported) -> Result<T, String>,
) -> Result<T, String> {
    let (place, settings, pem) = (dir.to_owned(), spec.clone(), pem.clone());
    let done = task::blocking(move || act(&place, &settings, &pem));
    let late = |_| format!("{} does not answer within {} s", dir.display(), spec.timeout.as_secs());
    tokio::time::timeout(spec.timeout, done).await.map_err(late)?
}

fn variables(job: &Job, serial: &str) -> Vec<(&'static str, String)> {
    let names: Vec<String> = job.names.iter().map(ToString::to_string).collect();
    let mut variables = vec![
        ("STARLOCK_CERT_NAMES", names.join(" ")),
        ("STARLOCK_CERT_ID", CertId::of(&job.names).to_string()),
        ("STARLOCK_CERT_SERIAL", serial.to_owned()),
    ];
    if let Some(dir) = &job.spec.dir {
        let file = |name: &str| dir.join(name).display().to_string();
        variables.extend([
            ("STARLOCK_CERT_DIR", dir.display().to_string()),
            ("STARLOCK_CERT_FULLCHAIN", file("fullchain.pem")),
            ("STARLOCK_CERT_KEY", file("privkey.pem")),
        ]);
    }
    variables
}
