//! The manager with a model CA, in memory, over simulated weeks.

mod counting;
mod faults;
mod rules;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::clock::{SharedClock, TokioClock};
use crate::issuer::{
    Budget, FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, IssuerId, Progress, RenewalHint,
    Retry, Spent, Step,
};
use crate::name::HostPattern;
use crate::secret::Secret;
use crate::storage::{Expect, Key, MemoryStorage, Storage};
use crate::task::{Shutdown, Supervisor};
use crate::tls::{CertFiles, CertResolver, cert_store};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
struct ModelCa {
    id: IssuerId,
    clock: SharedClock,
    lifetime: Duration,
    takes: Duration,
    down: AtomicBool,
    broken: AtomicBool,
    instant: bool,
    /// What an order of a former run would end with.
    interrupted: Mutex<Option<IssuedCert>>,
    /// Orders under way, as the journal keeps them: what was taken and let go of, by names.
    orders: Mutex<BTreeSet<String>>,
    /// It takes orders and does not get on with them.
    stuck: AtomicBool,
    /// What it finds in DNS is wrong: orders fail, and with them the names that are under test.
    refuses: AtomicBool,
    /// It never answers when it is asked for a window.
    mute: AtomicBool,
    /// The names that it signs instead of those that it was asked for.
    confused: Mutex<Option<Vec<String>>>,
    asked: AtomicU32,
    signed: AtomicU32,
    /// Orders under way, and how many there were at most.
    running: AtomicU32,
    most: AtomicU32,
    /// Whose limits are known.
    budget: Option<Budget>,
    /// What it says of renewals; an error for `None`.
    hint: Mutex<Option<Option<RenewalHint>>>,
    polled: AtomicU32,
    /// Signs for a time that has not come.
    postdates: AtomicBool,
    /// Whether each order said what it replaces.
    replacing: Mutex<Vec<bool>>,
    revoked: Mutex<Vec<u8>>,
    /// Whether it knows our account.
    registered: AtomicBool,
}

impl ModelCa {
    fn new(clock: &SharedClock, lifetime: Duration) -> Arc<Self> {
        Arc::new(Self {
            id: IssuerId::new("model"),
            clock: clock.clone(),
            lifetime,
            takes: Duration::from_secs(5),
            down: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            instant: false,
            interrupted: Mutex::default(),
            orders: Mutex::default(),
            stuck: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            confused: Mutex::default(),
            asked: AtomicU32::new(0),
            signed: AtomicU32::new(0),
            running: AtomicU32::new(0),
            most: AtomicU32::new(0),
            budget: None,
            hint: Mutex::new(Some(None)),
            polled: AtomicU32::new(0),
            postdates: AtomicBool::new(false),
            replacing: Mutex::default(),
            revoked: Mutex::default(),
            registered: AtomicBool::new(true),
        })
    }

    fn signed(&self) -> u32 {
        self.signed.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Issuer for ModelCa {
    fn id(&self) -> &IssuerId {
        &self.id
    }

    async fn issue(&self, request: &IssueRequest, progress: &dyn Progress) -> Result<IssuedCert, IssueError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        progress.step(Step::Validate);
        let down = |spent| {
            let error = IssueError::new(FailureClass::CaDown, Retry::Backoff, "the model CA is down");
            Err(IssueError { spent, ..error })
        };
        let resumed = self.resumes(request).await;
        let mut spent = Spent { open: resumed, ..Spent::default() };
        if self.down.load(Ordering::SeqCst) {
            tokio::time::sleep(self.takes).await;
            return down(spent);
        }
        if !resumed {
            spent.registered = !self.registered.swap(true, Ordering::SeqCst);
            (spent.ordered, spent.replaced) = (true, request.replaces.is_some());
            self.orders.lock().unwrap().insert(key_of(request));
            spent.open = true;
        }
        self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let running = Running(&self.running);
        tokio::time::sleep(self.takes).await;
        drop(running);
        if self.down.load(Ordering::SeqCst) || self.stuck.load(Ordering::SeqCst) {
            return down(spent);
        }
        if self.refuses.load(Ordering::SeqCst) {
            self.orders.lock().unwrap().remove(&key_of(request));
            spent.open = false;
            spent.failed = request.names.iter().filter_map(HostPattern::base).cloned().collect();
            spent.failed.dedup();
            let error = IssueError::new(FailureClass::Validation, Retry::Backoff, "it looked in vain");
            return Err(IssueError { spent, ..error });
        }
        assert!(!self.broken.load(Ordering::SeqCst), "on purpose");
        self.replacing.lock().unwrap().push(request.replaces.is_some());
        spent = Spent { open: false, signed: true, ..spent };
        if let Some(issued) = self.interrupted.lock().unwrap().clone() {
            return Ok(issued);
        }
        self.signed.fetch_add(1, Ordering::SeqCst);
        let names = request.names.iter().map(ToString::to_string).collect();
        let names = self.confused.lock().unwrap().clone().unwrap_or(names);
        Ok(IssuedCert { resumed, spent, ..self.sign(names) })
    }

    async fn resumes(&self, request: &IssueRequest) -> bool {
        self.orders.lock().unwrap().contains(&key_of(request))
    }

    fn is_instant(&self) -> bool {
        self.instant
    }

    fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    async fn registered(&self) -> bool {
        self.registered.load(Ordering::SeqCst)
    }

    async fn renewal_hint(&self, _leaf: &[u8]) -> Result<Option<RenewalHint>, IssueError> {
        self.polled.fetch_add(1, Ordering::SeqCst);
        if self.mute.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let down = || IssueError::new(FailureClass::CaDown, Retry::Backoff, "the model CA is down");
        self.hint.lock().unwrap().clone().ok_or_else(down)
    }

    async fn revoke(&self, _leaf: &[u8], reason: u8) -> Result<(), IssueError> {
        self.revoked.lock().unwrap().push(reason);
        Ok(())
    }

    async fn stored(&self, request: &IssueRequest) {
        *self.interrupted.lock().unwrap() = None;
        self.orders.lock().unwrap().remove(&key_of(request));
    }
}

impl ModelCa {
    fn sign(&self, names: Vec<String>) -> IssuedCert {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        let ahead = if self.postdates.load(Ordering::SeqCst) { DAY } else { Duration::ZERO };
        params.not_before = (self.clock.now() + ahead).into();
        params.not_after = (self.clock.now() + self.lifetime).into();
        let chain_pem = params.self_signed(&key).unwrap().pem();
        IssuedCert {
            chain_pem,
            key_pem: Secret::new(key.serialize_pem()),
            resumed: false,
            spent: Spent::default(),
        }
    }
}

fn key_of(request: &IssueRequest) -> String {
    request.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// An order that runs, until it ends or is dropped.
struct Running<'a>(&'a AtomicU32);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Count {
    ok: AtomicU32,
    failed: AtomicU32,
    last: Mutex<Option<CertView>>,
    forgotten: Mutex<Vec<CertId>>,
    left: Mutex<Vec<BudgetLeft>>,
}

impl CertObserver for Count {
    fn ordered(&self, _names: &[HostPattern], ok: bool) {
        if ok { &self.ok } else { &self.failed }.fetch_add(1, Ordering::SeqCst);
    }

    fn changed(&self, view: &CertView) {
        *self.last.lock().unwrap() = Some(view.clone());
    }

    fn forgotten(&self, id: &CertId) {
        self.forgotten.lock().unwrap().push(id.clone());
    }

    fn budgets(&self, left: &[BudgetLeft]) {
        *self.left.lock().unwrap() = left.to_vec();
    }
}

/// One process.
struct Process {
    manager: CertManager,
    certs: CertResolver,
    supervisor: Supervisor,
    count: Arc<Count>,
}

impl Process {
    fn start(storage: &MemoryStorage, clock: &SharedClock) -> Self {
        Self::on(Arc::new(storage.clone()), clock)
    }

    fn on(storage: Arc<dyn Storage>, clock: &SharedClock) -> Self {
        let (publisher, certs) = cert_store();
        let supervisor = Supervisor::new(Shutdown::new());
        let count = Arc::new(Count::default());
        let manager = CertManager::start(publisher, storage, clock.clone(), count.clone(), &supervisor);
        Self { manager, certs, supervisor, count }
    }

    async fn want(&self, ca: &Arc<ModelCa>, sets: &[&[&str]]) {
        let wanted = sets.iter().map(|names| wanted(ca, names)).collect();
        self.manager.set_wanted(wanted, vec![], None).await;
    }

    fn served(&self, host: &str) -> Option<String> {
        self.certs.table().lookup(host).map(|b| b.serial().to_owned())
    }

    fn view(&self) -> CertView {
        self.manager.views().pop().unwrap()
    }

    async fn stop(self) {
        self.supervisor.shutdown().trigger();
        assert!(self.supervisor.join(Duration::from_secs(5)).await);
    }
}

fn wanted(ca: &Arc<ModelCa>, names: &[&str]) -> Wanted {
    let mut names: Vec<HostPattern> = names.iter().map(|n| HostPattern::parse(n).unwrap()).collect();
    names.sort();
    Wanted {
        names: names.into(),
        issuers: Arc::new([ca.clone() as Arc<dyn Issuer>]),
        rehearsal: None,
        rehearse: false,
        fingerprint: "one".into(),
    }
}

fn clock() -> SharedClock {
    Arc::new(TokioClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)))
}

const EXAMPLE: &[&str] = &["example.com", "*.example.com"];

#[tokio::test(start_paused = true)]
async fn a_year_of_renewals_is_never_without_a_valid_certificate() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    for _ in 0..365 * 4 {
        tokio::time::sleep(DAY / 4).await;
        let table = process.certs.table();
        assert!(table.lookup("a.example.com").unwrap().not_after() > clock.now());
    }
    assert!((12..=14).contains(&ca.signed()), "{}", ca.signed());
    assert_eq!(process.count.failed.load(Ordering::SeqCst), 0);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_ridden_out_on_the_old_certificate() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 9 * DAY);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let first = process.served("example.com").unwrap();
    ca.down.store(true, Ordering::SeqCst);
    tokio::time::sleep(6 * DAY).await;
    assert_eq!(process.served("a.example.com").unwrap(), first);
    let view = process.view();
    assert!(view.phase == Phase::Waiting && view.failures >= 3, "{view:?}");
    assert!(view.last_error.unwrap().contains("model CA is down"));

    // A restart in the middle goes on with the schedule instead of hammering the CA.
    let asked = ca.asked.load(Ordering::SeqCst);
    process.stop().await;
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    assert_eq!(process.served("a.example.com").unwrap(), first, "served from storage at once");
    assert_eq!(process.view().failures, view.failures);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(ca.asked.load(Ordering::SeqCst), asked);

    ca.down.store(false, Ordering::SeqCst);
    tokio::time::sleep(2 * DAY).await;
    assert_ne!(process.served("a.example.com").unwrap(), first);
    assert_eq!(process.view().failures, 0);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_called_as_it_was_shown() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let process = Process::start(&storage, &clock);
    let dir = tempfile::tempdir().unwrap();
    let files = CertFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    let pair = ca.sign(vec!["files.test".into()]);
    std::fs::write(&files.cert, &pair.chain_pem).unwrap();
    std::fs::write(&files.key, pair.key_pem.expose()).unwrap();
    let first = Arc::new(files.read().unwrap().bundle);
    let files = WantedFiles { files, names: Arc::new([]), first };
    process.manager.set_wanted(vec![wanted(&ca, EXAMPLE)], vec![files], None).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let shown: Vec<CertId> = process.manager.views().into_iter().map(|view| view.id).collect();
    assert_eq!(shown.len(), 2);
    // The host of the files comes from the CA from now on.
    process.want(&ca, &[&["files.test"]]).await;
    let mut forgotten = process.count.forgotten.lock().unwrap().clone();
    forgotten.sort();
    assert_eq!(forgotten, shown);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_processes_on_one_storage_order_once() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let (a, b) = (Process::start(&storage, &clock), Process::start(&storage, &clock));
    tokio::join!(a.want(&ca, &[EXAMPLE]), b.want(&ca, &[EXAMPLE]));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(ca.signed(), 1);
    assert!(a.served("example.com").is_some());
    assert_eq!(a.served("example.com"), b.served("example.com"));
    tokio::time::sleep(40 * DAY).await;
    assert_eq!(ca.signed(), 2);
    assert_eq!(a.served("example.com"), b.served("example.com"));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn storage_that_lost_what_it_had_parks_and_never_orders() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 9 * DAY);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let key = storage.list("certs").await.unwrap().pop().unwrap();
    let kept = storage.load(&key).await.unwrap().unwrap().value;

    // A running process serves on and does not order when its renewal is due.
    storage.remove(&key).await.unwrap();
    tokio::time::sleep(6 * DAY).await;
    assert_eq!((ca.signed(), process.view().phase), (1, Phase::Parked));
    assert!(process.served("example.com").is_some());
    process.stop().await;

    // So does a start; and when the volume is back, it goes on by itself.
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(DAY).await;
    assert_eq!((ca.signed(), process.view().phase), (1, Phase::Parked));
    assert!(process.view().last_error.unwrap().contains("inventory.json"));
    storage.store(&key, &kept, Expect::Absent).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(process.served("example.com").is_some());
    process.stop().await;

    // All of it gone under a running process.
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    let signed = ca.signed();
    storage.remove(&key).await.unwrap();
    for key in storage.list("inventory").await.unwrap() {
        storage.remove(&key).await.unwrap();
    }
    tokio::time::sleep(8 * DAY).await;
    assert_eq!((ca.signed(), process.view().phase), (signed, Phase::Parked));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_former_release_noted_in_one_value_is_never_ordered_again() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    process.stop().await;
    // As it left the directory, and then the certificate is lost.
    let key = storage.list("certs").await.unwrap().pop().unwrap();
    for key in storage.list("inventory").await.unwrap().iter().chain([&key]) {
        storage.remove(key).await.unwrap();
    }
    let text = format!(r#"{{"certificates":["{key}"]}}"#);
    storage.store(&Key::new(&["inventory"]), text.as_bytes(), Expect::Absent).await.unwrap();
    for start in 1..=2 {
        let process = Process::start(&storage, &clock);
        process.want(&ca, &[EXAMPLE]).await;
        tokio::time::sleep(DAY).await;
        assert_eq!((ca.signed(), process.view().phase), (1, Phase::Parked), "start {start}");
        process.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_value_is_set_aside_and_its_predecessor_served() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let first = process.served("example.com");
    process.stop().await;
    let key = storage.list("certs").await.unwrap().pop().unwrap();
    storage.store(&key, b"{\"names\":[\"exa", Expect::Anything).await.unwrap();
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    assert_eq!(process.served("example.com"), first);
    assert_eq!(ca.signed(), 1);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_set_of_names_is_served_by_the_old_certificate_meanwhile() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let first = process.served("a.example.com").unwrap();
    ca.down.store(true, Ordering::SeqCst);
    let more: &[&str] = &["example.com", "*.example.com", "example.org"];
    process.want(&ca, &[more]).await;
    assert_eq!(process.served("a.example.com").as_deref(), Some(&*first));
    process.stop().await;

    let process = Process::start(&storage, &clock);
    process.want(&ca, &[more]).await;
    assert_eq!(process.served("a.example.com").as_deref(), Some(&*first), "after a restart too");
    assert!(process.served("example.org").is_none());
    ca.down.store(false, Ordering::SeqCst);
    tokio::time::sleep(2 * DAY).await;
    assert_ne!(process.served("a.example.com").unwrap(), first);
    assert_eq!(process.served("a.example.com"), process.served("example.org"));

    process.want(&ca, &[]).await;
    assert!(process.served("example.com").is_none());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_far_ahead_says_so_and_makes_no_loop() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    // The CA lives two days in the past: what it signs looks expired here.
    let past: SharedClock = Arc::new(TokioClock::starting_at(clock.now() - 2 * DAY));
    let ca = ModelCa::new(&past, DAY);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(DAY).await;
    assert!(ca.signed() <= 5, "{} orders in a day", ca.signed());
    process.stop().await;
}
