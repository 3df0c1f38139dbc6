//! Telling people by a webhook that a certificate is in danger: CAs send no mail any more.
//!
//! Never in the way: what happens is put into bounded queues, and what does not fit is counted and logged.

mod decide;
mod deliver;
mod spec;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::{mpsc, watch};

use self::decide::{Kind, Told, decide};
use self::deliver::Webhook;
use crate::backoff::Backoff;
use crate::certs::{CertId, CertView};
use crate::clock::{self, SharedClock};
use crate::storage::{Expect, Key, Storage};
use crate::task::{OnExit, Shutdown, Supervisor};
use crate::telemetry::Metrics;

pub use spec::NotifySpec;

/// Changes of certificates that were not looked at yet.
const MAX_CHANGES: usize = 4096;
/// Messages that were not posted yet.
const MAX_MESSAGES: usize = 256;
/// Ends come near without anything happening.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const RESTART: Backoff = Backoff::new(&[Duration::from_secs(10)]);

enum Change {
    View(Box<CertView>),
    Gone(CertId),
}

/// Told of everything that happens to certificates. Cloning shares it.
#[derive(Clone)]
pub struct Notifier {
    changes: mpsc::Sender<Change>,
    webhook: Arc<watch::Sender<Option<Arc<Target>>>>,
    metrics: Arc<Metrics>,
}

struct Target {
    spec: NotifySpec,
    webhook: Webhook,
}

/// A `[notify]` section that can be put into force. Dropping it changes nothing.
pub struct PreparedNotify(Option<Arc<Target>>);

impl Notifier {
    /// Starts the two tasks behind it; nobody is told anything until [`Notifier::commit`].
    pub fn start(
        storage: Arc<dyn Storage>,
        clock: SharedClock,
        metrics: Arc<Metrics>,
        supervisor: &Supervisor,
    ) -> Self {
        let (changes, received) = mpsc::channel(MAX_CHANGES);
        let (messages, outbox) = mpsc::channel(MAX_MESSAGES);
        let webhook = Arc::new(watch::Sender::new(None));
        let received = Arc::new(tokio::sync::Mutex::new(received));
        let outbox = Arc::new(tokio::sync::Mutex::new(outbox));
        let watcher = Watcher {
            webhook: webhook.subscribe(),
            storage,
            clock,
            metrics: metrics.clone(),
            messages,
            views: Arc::default(),
        };
        // The lock is for a start after a panic; there is one task at a time.
        supervisor.spawn("notify".into(), OnExit::Restart(RESTART), move |shutdown| {
            let (watcher, received) = (watcher.clone(), received.clone());
            async move { watcher.run(&mut *received.lock().await, &shutdown).await }
        });
        let (posts, counts) = (webhook.subscribe(), metrics.clone());
        supervisor.spawn("webhook".into(), OnExit::Restart(RESTART), move |shutdown| {
            let (outbox, posts, counts) = (outbox.clone(), posts.clone(), counts.clone());
            async move {
                let mut outbox = outbox.lock().await;
                tokio::select! {
                    () = shutdown.wait() => {}
                    () = post(&mut outbox, posts, &counts) => {}
                }
            }
        });
        Self { changes, webhook, metrics }
    }

    /// Everything about a section that can fail. Blocking: reads a small file. The error is for a person.
    pub fn prepare(spec: Option<&NotifySpec>) -> Result<PreparedNotify, String> {
        let Some(spec) = spec else { return Ok(PreparedNotify(None)) };
        let webhook = Webhook::new(spec.clone()).map_err(|e| format!("notify: {e}"))?;
        if let Some(secret) = &spec.secret {
            secret.resolve().map_err(|e| format!("notify.secret: {e}"))?;
        }
        Ok(PreparedNotify(Some(Arc::new(Target { spec: spec.clone(), webhook }))))
    }

    /// From now on this webhook is told.
    pub fn commit(&self, prepared: PreparedNotify) {
        self.webhook.send_replace(prepared.0);
    }

    /// A certificate has changed.
    pub fn changed(&self, view: &CertView) {
        self.tell(Change::View(Box::new(view.clone())));
    }

    /// A certificate is not held any more.
    pub fn forgotten(&self, id: &CertId) {
        self.tell(Change::Gone(id.clone()));
    }

    fn tell(&self, change: Change) {
        if self.changes.try_send(change).is_err() {
            self.metrics.notifications("dropped").inc();
        }
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notifier")
    }
}

/// Decides what is told.
#[derive(Clone)]
struct Watcher {
    webhook: watch::Receiver<Option<Arc<Target>>>,
    storage: Arc<dyn Storage>,
    clock: SharedClock,
    metrics: Arc<Metrics>,
    messages: mpsc::Sender<String>,
    /// As last seen: a start after a panic goes on from here.
    views: Arc<Mutex<BTreeMap<CertId, CertView>>>,
}

impl Watcher {
    async fn run(mut self, changes: &mut mpsc::Receiver<Change>, shutdown: &Shutdown) {
        let mut told = self.load().await;
        loop {
            let mut due = Vec::new();
            tokio::select! {
                () = shutdown.wait() => return,
                change = changes.recv() => match change {
                    None => return shutdown.wait().await,
                    Some(Change::Gone(id)) => {
                        self.views.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                        told.remove(id.as_str());
                    }
                    Some(Change::View(view)) => {
                        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
                        views.insert(view.id.clone(), (*view).clone());
                        due.push(*view);
                    }
                },
                () = tokio::time::sleep(LOOK_EVERY) => due = self.all(),
                // A new webhook hears of what is wrong already.
                Ok(()) = self.webhook.changed() => due = self.all(),
            }
            let target = self.webhook.borrow().clone();
            let Some(target) = target else { continue };
            let before = told.clone();
            for view in due {
                let now = self.clock.now();
                let memory = told.entry(view.id.to_string()).or_default();
                for kind in decide(memory, &view, &target.spec, now) {
                    self.send(message(kind, &view, now));
                }
            }
            if told != before {
                self.store(&told).await;
            }
        }
    }

    fn all(&self) -> Vec<CertView> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn send(&self, message: String) {
        if self.messages.try_send(message).is_err() {
            tracing::warn!(
                "the webhook is behind by {MAX_MESSAGES} messages; one was dropped. The log and `starlock certs` say the same"
            );
            self.metrics.notifications("dropped").inc();
        }
    }

    async fn load(&self) -> BTreeMap<String, Told> {
        match self.storage.load(&memory_key()).await {
            // What cannot be read was not told.
            Ok(found) => {
                found.and_then(|found| serde_json::from_slice(&found.value).ok()).unwrap_or_default()
            }
            Err(error) => {
                tracing::warn!(%error, "what the webhook was told cannot be read; some of it may be told again");
                BTreeMap::new()
            }
        }
    }

    async fn store(&self, told: &BTreeMap<String, Told>) {
        let Ok(value) = serde_json::to_vec(told) else { return };
        if let Err(error) = self.storage.store(&memory_key(), &value, Expect::Anything).await {
            tracing::warn!(%error, "what the webhook was told cannot be remembered; after a restart it is told again");
        }
    }
}

/// Posts one message after the other. Ends when nobody can send any more.
async fn post(
    outbox: &mut mpsc::Receiver<String>,
    webhook: watch::Receiver<Option<Arc<Target>>>,
    metrics: &Metrics,
) {
    while let Some(message) = outbox.recv().await {
        let target = webhook.borrow().clone();
        let Some(target) = target else { continue };
        match target.webhook.deliver(&message).await {
            Ok(()) => drop(metrics.notifications("sent").inc()),
            Err(error) => {
                metrics.notifications("failed").inc();
                tracing::error!("the webhook was not told, and will not be told of this again: {error}");
            }
        }
    }
}

fn memory_key() -> Key {
    Key::new(&["notify", "told"])
}

fn message(kind: Kind, view: &CertView, now: SystemTime) -> String {
    let names: Vec<String> = view.names.iter().map(ToString::to_string).collect();
    let not_after = view.validity.map(|(_, to)| clock::rfc3339(to));
    let listed = names.join(", ");
    let until = not_after.as_deref().unwrap_or("never");
    let text = match kind {
        Kind::RenewalFailed => {
            format!("The certificate for {listed} could not be renewed; it {}.", view.next_action())
        }
        Kind::Parked => format!("The certificate for {listed} cannot be had until a person acts."),
        Kind::Recovered => format!("The certificate for {listed} works again."),
        Kind::Expiring => {
            format!("The certificate for {listed} expires at {until}; it {}.", view.next_action())
        }
        Kind::Expired => format!("The certificate for {listed} has expired at {until}."),
    };
    json!({
        "event": kind.as_str(),
        "at": clock::rfc3339(now),
        "text": text,
        "certificate": {
            "id": view.id.as_str(),
            "names": names,
            "issuer": view.issuer.as_str(),
            "serial": view.serial,
            "not_after": not_after,
        },
        "failures": view.failures,
        "error": view.last_error,
        "next_action": view.next_action(),
        "next_action_at": view.next_at.map(clock::rfc3339),
    })
    .to_string()
}
