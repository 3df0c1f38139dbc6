//! What goes wrong around an order: storage, interrupted orders, confused CAs, reloads at the wrong moment.

use tokio::sync::watch;

use super::*;
use crate::certs::inventory::Noted;
use crate::certs::record::CertRecords;
use crate::storage::dying_tests::Dying;
use crate::storage::{Lease, Revision, StorageError, Stored};

/// Storage that can be told to fail, and to hold every store back.
#[derive(Debug)]
struct Faulty {
    inner: MemoryStorage,
    broken: AtomicBool,
    open: watch::Sender<bool>,
    reads: AtomicU32,
    stores: AtomicU32,
}

impl Faulty {
    fn over(inner: &MemoryStorage) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            broken: AtomicBool::new(false),
            open: watch::Sender::new(true),
            reads: AtomicU32::new(0),
            stores: AtomicU32::new(0),
        })
    }

    fn check(&self) -> Result<(), StorageError> {
        match self.broken.load(Ordering::SeqCst) {
            true => {
                Err(StorageError::Io { what: "cannot read the disk".into(), reason: "on purpose".into() })
            }
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Storage for Faulty {
    async fn load(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        self.check()?;
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.load(key).await
    }

    async fn load_previous(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        self.check()?;
        self.inner.load_previous(key).await
    }

    async fn store(&self, key: &Key, value: &[u8], expect: Expect) -> Result<Revision, StorageError> {
        self.check()?;
        self.stores.fetch_add(1, Ordering::SeqCst);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        self.inner.store(key, value, expect).await
    }

    async fn remove(&self, key: &Key) -> Result<(), StorageError> {
        self.check()?;
        self.inner.remove(key).await
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StorageError> {
        self.check()?;
        self.inner.set_aside(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Key>, StorageError> {
        self.check()?;
        self.inner.list(prefix).await
    }

    async fn try_lease(&self, name: &Key) -> Result<Option<Box<dyn Lease>>, StorageError> {
        self.check()?;
        self.inner.try_lease(name).await
    }
}

/// A process that has got its certificate, and where that lies.
async fn settled(storage: &MemoryStorage, clock: &SharedClock, ca: &Arc<ModelCa>) -> (Process, Key) {
    let process = Process::start(storage, clock);
    process.want(ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(process.served("example.com").is_some());
    (process, storage.list("certs").await.unwrap().pop().unwrap())
}

#[tokio::test(start_paused = true)]
async fn the_predecessor_of_a_damaged_value_is_served_start_after_start_and_renewed() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let (process, key) = settled(&storage, &clock, &ca).await;
    let first = process.served("example.com");
    process.stop().await;
    storage.store(&key, b"{", Expect::Anything).await.unwrap();
    for start in 1..=3 {
        let process = Process::start(&storage, &clock);
        process.want(&ca, &[EXAMPLE]).await;
        assert_eq!(process.served("example.com"), first, "start {start}");
        assert_eq!((process.view().phase, ca.signed()), (Phase::Valid, 1), "start {start}");
        process.stop().await;
    }
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(40 * DAY).await;
    assert_eq!((process.view().phase, ca.signed()), (Phase::Valid, 2));
    assert_ne!(process.served("example.com"), first);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn with_every_generation_damaged_one_order_is_made() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let (process, key) = settled(&storage, &clock, &ca).await;
    process.stop().await;
    for garbage in [&b"{"[..], b"["] {
        storage.store(&key, garbage, Expect::Anything).await.unwrap();
    }
    ca.down.store(true, Ordering::SeqCst);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(process.view().phase, Phase::Waiting, "{:?}", process.view());
    ca.down.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(process.served("example.com").is_some());
    assert_eq!((process.view().phase, ca.signed()), (Phase::Valid, 2));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_unreadable_storage_held_is_served_as_soon_as_it_can_be_read_even_if_it_is_due() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 9 * DAY);
    let (process, _) = settled(&storage, &clock, &ca).await;
    let first = process.served("example.com");
    process.stop().await;
    tokio::time::sleep(6 * DAY).await; // due
    ca.down.store(true, Ordering::SeqCst);
    let faulty = Faulty::over(&storage);
    faulty.broken.store(true, Ordering::SeqCst);
    let process = Process::on(faulty.clone(), &clock);
    process.want(&ca, &[EXAMPLE]).await;
    let view = process.view();
    assert!(view.phase == Phase::Parked && view.last_error.unwrap().contains("on purpose"));
    faulty.broken.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(
        process.served("example.com"),
        first,
        "the CA is down, and that is no reason to serve nothing"
    );
    let view = process.view();
    assert!(view.phase == Phase::Waiting && view.serial == first, "{view:?}");
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_order_that_ends_with_what_is_held_or_is_old_makes_way_for_a_new_one() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let interrupted =
        IssuedCert { resumed: true, ..ca.sign(vec!["example.com".into(), "*.example.com".into()]) };
    // The crash came between storing the certificate and forgetting its order.
    *ca.interrupted.lock().unwrap() = Some(interrupted.clone());
    let (process, _) = settled(&storage, &clock, &ca).await;
    let first = process.served("example.com");
    assert_eq!(ca.signed(), 0, "it was paid for once");
    *ca.interrupted.lock().unwrap() = Some(interrupted.clone());
    tokio::time::sleep(40 * DAY).await;
    assert_ne!(process.served("example.com"), first, "renewed by a certificate, not by itself");
    assert_eq!(ca.signed(), 1);
    process.stop().await;

    // Signed, never fetched, and found again after it has expired.
    let (storage, ca) = (MemoryStorage::new(), ModelCa::new(&clock, 45 * DAY));
    *ca.interrupted.lock().unwrap() = Some(interrupted);
    tokio::time::sleep(10 * DAY).await;
    let (process, _) = settled(&storage, &clock, &ca).await;
    assert!(process.view().validity.unwrap().1 > clock.now());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_told_to_end_shows_nothing_any_more() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    ca.down.store(true, Ordering::SeqCst);
    let faulty = Faulty::over(&storage);
    faulty.open.send_replace(false);
    let process = Process::on(faulty.clone(), &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(Duration::from_secs(10)).await; // the order failed; its attempt is being written
    *process.count.last.lock().unwrap() = None;
    process.want(&ca, &[]).await;
    faulty.open.send_replace(true);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(process.manager.views().is_empty(), "{:?}", process.manager.views());
    assert!(process.count.last.lock().unwrap().is_none(), "nor do metrics come back");
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn certificates_that_need_nobody_do_not_queue_behind_those_that_wait_for_a_ca() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let mut slow = ModelCa::new(&clock, 45 * DAY);
    Arc::get_mut(&mut slow).unwrap().takes = Duration::from_secs(300);
    let mut local = ModelCa::new(&clock, 7 * DAY);
    Arc::get_mut(&mut local).unwrap().instant = true;
    Arc::get_mut(&mut local).unwrap().takes = Duration::ZERO;
    Arc::get_mut(&mut local).unwrap().id = IssuerId::new("local");
    let process = Process::start(&storage, &clock);
    let hosts: Vec<String> = (0..10).map(|n| format!("h{n}.example.com")).collect();
    let mut all: Vec<Wanted> = hosts.iter().map(|host| wanted(&slow, &[host])).collect();
    process.manager.set_wanted(all.clone(), vec![], None).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    all.push(wanted(&local, &["app.localhost"]));
    process.manager.set_wanted(all, vec![], None).await;
    assert!(process.served("app.localhost").is_some());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_stand_ins_the_one_that_is_valid_longer_is_served() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let (short, long) = (ModelCa::new(&clock, DAY), ModelCa::new(&clock, 45 * DAY));
    for (ca, set) in [(&short, &["a.example", "b.example"]), (&long, &["a.example", "c.example"])] {
        let process = Process::start(&storage, &clock);
        process.want(ca, &[set]).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        process.stop().await;
    }
    tokio::time::sleep(3 * DAY).await;
    long.down.store(true, Ordering::SeqCst);
    // The order of two maps is at stake: once may be luck.
    for _ in 0..4 {
        let process = Process::start(&storage, &clock);
        process.want(&long, &[&["a.example", "d.example"]]).await;
        assert!(process.certs.table().lookup("a.example").unwrap().not_after() > clock.now());
        process.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_processes_on_one_storage_ask_a_ca_that_refuses_as_often_as_one() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    ca.down.store(true, Ordering::SeqCst);
    let (a, b) = (Process::start(&storage, &clock), Process::start(&storage, &clock));
    tokio::join!(a.want(&ca, &[EXAMPLE]), b.want(&ca, &[EXAMPLE]));
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    let asked = ca.asked.load(Ordering::SeqCst);
    assert!((3..=5).contains(&asked), "at 0, 1, 11 and 111 minutes, and not {asked} times");
    ca.down.store(false, Ordering::SeqCst);
    tokio::time::sleep(3 * DAY).await;
    assert_eq!(ca.signed(), 1);
    assert!(a.served("example.com").is_some());
    assert_eq!(a.served("example.com"), b.served("example.com"));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_any_write_of_a_renewal_loses_nothing_that_was_good() {
    for writes in 1.. {
        let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
        let ca = ModelCa::new(&clock, 9 * DAY);
        let process = Process::on(Dying::open(dir.path(), usize::MAX), &clock);
        process.want(&ca, &[EXAMPLE]).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let first = process.served("example.com").unwrap();
        process.stop().await;
        tokio::time::sleep(5 * DAY).await;

        let dying = Dying::open(dir.path(), writes);
        let process = Process::on(dying.clone(), &clock);
        process.want(&ca, &[EXAMPLE]).await;
        assert_eq!(process.served("example.com").as_ref(), Some(&first));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let died = dying.is_dead();
        process.supervisor.shutdown().trigger();
        process.supervisor.join(Duration::from_secs(1)).await;

        let signed = ca.signed();
        let process = Process::on(Dying::open(dir.path(), usize::MAX), &clock);
        process.want(&ca, &[EXAMPLE]).await;
        assert!(process.served("example.com").is_some(), "after write {writes}");
        tokio::time::sleep(Duration::from_secs(20)).await;
        let view = process.view();
        assert!(
            view.phase == Phase::Valid && view.serial.as_ref() != Some(&first),
            "after write {writes}: {view:?}"
        );
        assert_eq!((signed, ca.signed()), (2, 2), "what was stored is found again, after write {writes}");
        for entry in walkdir::WalkDir::new(dir.path()) {
            let name = entry.unwrap().path().display().to_string();
            assert!(!name.contains(".tmp-") && !name.contains("damaged"), "after write {writes}: {name}");
        }
        process.stop().await;
        if !died {
            assert!(writes > 1);
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_panics_is_asked_on_the_schedule_and_told_of() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 9 * DAY);
    let (process, _) = settled(&storage, &clock, &ca).await;
    let first = process.served("example.com");
    ca.broken.store(true, Ordering::SeqCst);
    let asked = ca.asked.load(Ordering::SeqCst);
    tokio::time::sleep(5 * DAY).await;
    let asked = ca.asked.load(Ordering::SeqCst) - asked;
    assert!((2..=6).contains(&asked), "{asked} times in half a day");
    let view = process.view();
    assert!(view.phase == Phase::Waiting && view.last_error.unwrap().contains("on purpose"));
    assert_eq!(process.served("example.com"), first);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_new_names_do_not_each_read_all_that_storage_holds() {
    const MANY: u32 = 60;
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ModelCa::new(&clock, 45 * DAY);
    let sets = |zone: &str| (0..MANY).map(|n| vec![format!("host-{n}.{zone}")]).collect::<Vec<_>>();
    let want = |sets: &[Vec<String>]| -> Vec<Wanted> {
        sets.iter().map(|set| wanted(&ca, &set.iter().map(String::as_str).collect::<Vec<_>>())).collect()
    };
    let process = Process::start(&storage, &clock);
    process.manager.set_wanted(want(&sets("old.example")), vec![], None).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(ca.signed(), MANY);
    process.stop().await;

    ca.down.store(true, Ordering::SeqCst);
    let faulty = Faulty::over(&storage);
    let process = Process::on(faulty.clone(), &clock);
    let mut sets = sets("new.example");
    sets[0].push("host-7.old.example".to_owned());
    process.manager.set_wanted(want(&sets), vec![], None).await;
    let reads = faulty.reads.load(Ordering::SeqCst);
    assert!(reads < 20 * MANY, "{reads} reads for {MANY} names");
    assert!(process.served("host-7.old.example").is_some(), "what is there for it is found all the same");
    assert!(process.served("host-8.old.example").is_none());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn orders_that_ask_nobody_do_not_all_hold_a_lease_at_once() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let mut ca = ModelCa::new(&clock, 45 * DAY);
    Arc::get_mut(&mut ca).unwrap().instant = true;
    let names: Vec<String> = (0..200).map(|n| format!("host-{n}.example.com")).collect();
    let process = Process::start(&storage, &clock);
    let sets = names.iter().map(|name| wanted(&ca, &[name])).collect();
    process.manager.set_wanted(sets, vec![], None).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let most = ca.most.load(Ordering::SeqCst);
    assert_eq!(ca.signed(), 200);
    assert!((9..=32).contains(&most), "{most} at once: an open file each, and more than CAs get");
    process.stop().await;
}

#[tokio::test]
async fn notes_that_wait_for_the_disk_are_written_together() {
    let storage = Faulty::over(&MemoryStorage::new());
    let records = CertRecords::new(storage.clone());
    let keys: Vec<Key> = (0..1000).map(|n| Key::new(&["certs", "ca", &format!("h{n}")])).collect();
    storage.open.send_replace(false);
    let notes = futures_util::future::join_all(keys.iter().map(|key| records.note(key, Noted::Stored)));
    let (results, _) = tokio::join!(notes, async { storage.open.send_replace(true) });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    for key in &keys {
        assert_eq!(records.noted(key).await.unwrap(), Some(Noted::Stored), "{key}");
    }
    let stores = storage.stores.load(Ordering::SeqCst);
    assert!(stores <= 2 * 64, "{stores} stores of 64 parts");
}
