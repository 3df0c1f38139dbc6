//! All traffic: the workers, their listeners, and how these change.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};

use super::caps::{self, Caps};
use super::connection::Settings;
use super::gate::Gate;
use super::socket::{Inherited, ListenError, bind, raise_file_limit, reserve_files};
use super::spec::ListenSpec;
use super::worker::{Add, Phase, Shared, Stage, Worker};
use crate::conn::{Load, Service};
use crate::task::{self, Shutdown, Thread};
use crate::telemetry::Metrics;
use crate::tls::TlsServer;

/// The traffic threads and their listeners. Belongs to the control plane; dropping it stops everything at once.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    stage: watch::Sender<Stage>,
    adds: Vec<mpsc::Sender<Add>>,
    threads: Mutex<Vec<Thread>>,
    held: Mutex<Vec<Listener>>,
    ended: Shutdown,
    files: u64,
    memory: u64,
}

/// One address being listened on.
#[derive(Debug)]
struct Listener {
    key: Key,
    /// With the port that was given for port 0.
    address: SocketAddr,
    phase: watch::Sender<Phase>,
}

/// What makes a listener the same one over a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    tls: bool,
    /// As configured.
    address: SocketAddr,
    only_v6: bool,
}

/// Where clients come in, with real ports, in the order of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// With TLS.
    pub https: Vec<SocketAddr>,
    /// In clear.
    pub http: Vec<SocketAddr>,
}

impl Addresses {
    /// Where clear-text clients are to be sent: 443 if we listen there, else the first port. `None` without a TLS listener.
    pub fn https_port(&self) -> Option<u16> {
        let ports = || self.https.iter().map(SocketAddr::port);
        ports().find(|port| *port == 443).or_else(|| ports().next())
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had not ended in time and were cut.
    pub cut: usize,
}

impl Traffic {
    /// Starts `workers` threads (at least one), each with a service that `make` builds on it. Raises the limit of open files.
    /// Nothing is accepted before listeners are committed. Errors if the system has no thread left.
    pub fn start<S: Service>(
        workers: usize,
        tls: TlsServer,
        metrics: Arc<Metrics>,
        make: impl Fn(usize) -> S + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let (files, memory) = (raise_file_limit(), caps::memory());
        reserve_files(files);
        let usual = ListenSpec::default();
        let caps = Caps::new(&usual.limits, files, memory);
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings(&usual)),
            gate: Arc::new(Gate::new(caps.connections)),
            load: Arc::new(Load::default()),
            workers: workers.max(1),
            tls,
            metrics,
        });
        let (stage, _) = watch::channel(Stage::Serving);
        let ended = Shutdown::new();
        let (mut adds, mut threads) = (Vec::new(), Vec::new());
        for index in 0..workers.max(1) {
            let (sender, receiver) = mpsc::channel(4);
            let (shared, stage, make) = (shared.clone(), stage.subscribe(), make.clone());
            let guard = EndGuard(ended.clone());
            threads.push(task::spawn_thread(&format!("worker-{index}"), move || async move {
                let _guard = guard;
                Worker::new(shared, make(index)).run(receiver, stage).await;
            })?);
            adds.push(sender);
        }
        let (threads, held) = (Mutex::new(threads), Mutex::default());
        Ok(Self { shared, stage, adds, threads, held, ended, files, memory })
    }

    /// Resolves when a worker has ended although nobody told it to: the process cannot go on.
    pub async fn failed(&self) {
        self.ended.wait().await;
    }

    /// Does everything that can fail for listening as `spec` says: new addresses are bound, on every worker, and their connections
    /// wait. Nothing is in force before [`PreparedListeners::commit`]; dropping it instead undoes it. One at a time.
    pub async fn prepare(
        &self,
        spec: &ListenSpec,
        inherited: &mut Inherited,
    ) -> Result<PreparedListeners<'_>, ListenError> {
        let wanted: Vec<Key> = keys(spec);
        let mut listeners = Vec::new();
        for key in &wanted {
            let held = lock(&self.held).iter().find(|held| held.key == *key).map(|held| held.address);
            listeners.push(match held {
                // Port 0 may be asked for twice, and then stands for two ports.
                Some(address)
                    if key.address.port() != 0 || wanted.iter().filter(|k| *k == key).count() == 1 =>
                {
                    Prepared::Kept(*key, address)
                }
                _ => Prepared::New(self.open(*key, inherited).await?),
            });
        }
        let caps = Caps::new(&spec.limits, self.files, self.memory);
        Ok(PreparedListeners { traffic: self, listeners, settings: settings(spec), caps })
    }

    async fn open(&self, key: Key, inherited: &mut Inherited) -> Result<Listener, ListenError> {
        let mut tries = 0;
        let bound = loop {
            match bind(key.address, key.only_v6, self.adds.len(), inherited) {
                // Perhaps it is still ours: what a reload gave up a moment ago is closed by the workers.
                Err(ListenError::InUse { .. }) if tries < 5 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => break other?,
            }
        };
        let (sender, phase) = watch::channel(Phase::Paused);
        let label: Arc<str> = bound.address.to_string().into();
        for (adds, socket) in self.adds.iter().zip(bound.sockets) {
            let (reply, done) = oneshot::channel();
            let add = Add { socket, tls: key.tls, label: label.clone(), phase: phase.clone(), reply };
            adds.send(add).await.map_err(|_| ListenError::WorkerGone)?;
            done.await
                .map_err(|_| ListenError::WorkerGone)?
                .map_err(|error| ListenError::of(key.address, error))?;
        }
        Ok(Listener { key, address: bound.address, phase: sender })
    }

    /// Where clients come in now.
    pub fn addresses(&self) -> Addresses {
        addresses(lock(&self.held).iter().map(|listener| (listener.key, listener.address)))
    }

    /// Open connections of all workers.
    pub fn open_connections(&self) -> usize {
        self.shared.gate.open()
    }

    /// What all workers carry.
    pub fn load(&self) -> &Arc<Load> {
        &self.shared.load
    }

    /// Stops accepting, tells clients (`Connection: close`, GOAWAY), lets requests in flight end, and stops the workers; whatever
    /// is still there after `limit` is cut. Cancelling it leaves the draining going on.
    pub async fn drain(&self, limit: Duration) -> Drained {
        // Never back from Stopped.
        self.stage.send_if_modified(|stage| {
            let serving = *stage == Stage::Serving;
            if serving {
                *stage = Stage::Draining;
            }
            serving
        });
        let mut stage = self.stage.subscribe();
        tokio::select! {
            _ = tokio::time::timeout(limit, self.shared.gate.empty()) => {}
            _ = stage.wait_for(|stage| *stage == Stage::Stopped) => {}
        }
        let cut = self.open_connections();
        self.abort();
        let threads = std::mem::take(&mut *lock(&self.threads));
        task::blocking(move || {
            for thread in threads {
                if let Err(error) = thread.join() {
                    tracing::error!(%error, "a traffic worker ended badly");
                }
            }
        })
        .await;
        Drained { cut }
    }

    /// Stops the workers now; every connection is cut.
    pub fn abort(&self) {
        self.stage.send_replace(Stage::Stopped);
    }
}

/// New listeners, bound and waiting.
#[derive(Debug)]
#[must_use = "listeners that are not committed are closed"]
pub struct PreparedListeners<'a> {
    traffic: &'a Traffic,
    listeners: Vec<Prepared>,
    settings: Settings,
    caps: Caps,
}

#[derive(Debug)]
enum Prepared {
    Kept(Key, SocketAddr),
    New(Listener),
}

impl PreparedListeners<'_> {
    /// Where clients will come in.
    pub fn addresses(&self) -> Addresses {
        addresses(self.listeners.iter().map(|listener| match listener {
            Prepared::Kept(key, address) => (*key, *address),
            Prepared::New(listener) => (listener.key, listener.address),
        }))
    }

    /// Puts it into force: new listeners accept, those that are not wanted any more take what waits in them and close, new
    /// connections get the new timeouts and limits, everything the new caps. No connection is closed. Cannot fail.
    pub fn commit(self) {
        let shared = &self.traffic.shared;
        shared.settings.store(Arc::new(self.settings));
        shared.load.cap(self.caps.requests, self.caps.buffered);
        shared.gate.set_limit(self.caps.connections);
        let mut held = lock(&self.traffic.held);
        let mut next = Vec::with_capacity(self.listeners.len());
        for prepared in self.listeners {
            match prepared {
                Prepared::New(listener) => {
                    listener.phase.send_replace(Phase::Open);
                    next.push(listener);
                }
                Prepared::Kept(key, address) => {
                    let place = held.iter().position(|h| h.key == key && h.address == address);
                    next.extend(place.map(|place| held.swap_remove(place)));
                }
            }
        }
        for gone in held.drain(..) {
            gone.phase.send_replace(Phase::Retired);
        }
        *held = next;
    }
}

fn addresses(listeners: impl Iterator<Item = (Key, SocketAddr)>) -> Addresses {
    let mut addresses = Addresses::default();
    for (key, address) in listeners {
        if key.tls { addresses.https.push(address) } else { addresses.http.push(address) }
    }
    addresses
}

/// `[::]` takes IPv4 too, unless `0.0.0.0` is asked for with the same port.
fn keys(spec: &ListenSpec) -> Vec<Key> {
    let all = || spec.https.iter().chain(&spec.http);
    let key = |tls: bool, address: SocketAddr| {
        let only_v6 = address.is_ipv6()
            && address.ip().is_unspecified()
            && address.port() != 0
            && all().any(|other| {
                other.is_ipv4() && other.ip().is_unspecified() && other.port() == address.port()
            });
        Key { tls, address, only_v6 }
    };
    let https = spec.https.iter().map(|address| key(true, *address));
    https.chain(spec.http.iter().map(|address| key(false, *address))).collect()
}

fn settings(spec: &ListenSpec) -> Settings {
    Settings {
        timeouts: spec.timeouts,
        limits: spec.limits,
        proxy_protocol: spec.proxy_protocol.clone().into(),
        h2c: spec.h2c,
    }
}

/// Says that a worker has ended, however it ended.
struct EndGuard(Shutdown);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.trigger();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
