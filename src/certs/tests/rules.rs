//! The rules of renewal, and what a person may ask for, each against a model CA.

use super::*;
use crate::certs::record::cert_key;
use crate::issuer::{CaLimits, Rate};
use crate::storage::{Lease, Revision, StorageError, Stored};

pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn ca(
    clock: &SharedClock,
    name: &str,
    lifetime: Duration,
    change: impl FnOnce(&mut ModelCa),
) -> Arc<ModelCa> {
    let mut ca = ModelCa::new(clock, lifetime);
    let model = Arc::get_mut(&mut ca).unwrap();
    model.id = IssuerId::new(name);
    change(model);
    ca
}

fn counts(model: &mut ModelCa) {
    let names = Some(Rate { burst: 2, every: 34 * HOUR });
    let limits = CaLimits { names, ..CaLimits::default() };
    model.budget = Some(Budget { ca: model.id.clone(), limits });
}

pub(super) fn by(cas: &[&Arc<ModelCa>]) -> Wanted {
    let issuers = cas.iter().map(|ca| (*ca).clone() as Arc<dyn Issuer>).collect();
    Wanted { issuers, ..wanted(cas[0], EXAMPLE) }
}

pub(super) async fn with(storage: &MemoryStorage, clock: &SharedClock, wanted: Wanted) -> Process {
    let process = Process::start(storage, clock);
    process.manager.set_wanted(vec![wanted], vec![], None).await;
    tokio::time::sleep(MINUTE / 2).await;
    process
}

impl Process {
    /// Does it and waits for its end.
    pub(super) async fn ask(&self, verb: Verb) -> Result<String, String> {
        let number = self.manager.command(&self.view().id, verb).await.unwrap();
        loop {
            if let Some(outcome) = self.manager.job(number).unwrap().outcome {
                // What is held is in the table a little later.
                tokio::time::sleep(Duration::from_secs(1)).await;
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(super) fn host(&self) -> String {
        self.served("example.com").expect("it is served")
    }
}

#[tokio::test(start_paused = true)]
async fn the_cas_window_is_kept_over_a_restart_and_obeyed() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, counts);
    let begin = clock.now();
    let window = |from: u32, to: u32| {
        let (start, end) = (begin + from * DAY, begin + to * DAY);
        Some(Some(RenewalHint { start, end, explanation: Some("https://ca.test/why".into()), again_at: end }))
    };
    *ca.hint.lock().unwrap() = window(20, 22);
    let process = with(&storage, &clock, by(&[&ca])).await;
    let first = process.host();
    tokio::time::sleep(2 * HOUR).await;
    let view = process.view();
    let due = view.next_at.unwrap();
    assert!(due >= begin + 20 * DAY && due <= begin + 22 * DAY, "{view:?}");
    assert!(view.next_action().contains("ARI window"), "{}", view.next_action());
    assert_eq!(view.explanation.as_deref(), Some("https://ca.test/why"));
    process.stop().await;

    // The CA does not answer any more: nothing changes.
    *ca.hint.lock().unwrap() = None;
    let process = with(&storage, &clock, by(&[&ca])).await;
    assert_eq!(process.view().next_at, Some(due), "kept");
    let polled = ca.polled.load(Ordering::SeqCst);
    tokio::time::sleep(10 * DAY).await;
    let polled = ca.polled.load(Ordering::SeqCst) - polled;
    assert!((9..=16).contains(&polled), "{polled} polls in ten days");
    assert_eq!((process.view().next_at, process.view().failures), (Some(due), 0));
    assert_eq!(process.host(), first);
    tokio::time::sleep(12 * DAY).await;
    assert_ne!(process.host(), first);
    assert_eq!(*ca.replacing.lock().unwrap(), [false, true], "the successor was called that");

    // Mass revocation: at once, and once.
    *ca.hint.lock().unwrap() = window(1, 2);
    tokio::time::sleep(3 * DAY).await;
    assert!((3..=4).contains(&ca.signed()), "{}", ca.signed());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_ca_takes_over_and_the_preferred_one_is_gone_back_to() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let (first, second) = (ca(&clock, "first", 9 * DAY, |_| {}), ca(&clock, "second", 9 * DAY, |_| {}));
    first.down.store(true, Ordering::SeqCst);
    let process = with(&storage, &clock, by(&[&first, &second])).await;
    assert_eq!((first.signed(), second.signed()), (0, 1), "at once: there was nothing to serve");
    assert_eq!(process.view().issuer.as_str(), "second");
    // A restart knows whose it is.
    process.stop().await;
    let process = with(&storage, &clock, by(&[&first, &second])).await;
    assert_eq!((process.view().issuer.as_str(), process.view().phase), ("second", Phase::Valid));
    first.down.store(false, Ordering::SeqCst);
    tokio::time::sleep(5 * DAY).await;
    assert_eq!((process.view().issuer.as_str(), second.signed()), ("first", 1));
    assert_eq!(*first.replacing.lock().unwrap(), [false], "that CA did not sign the old one");
    // There is time: the preferred one may be down for a while.
    first.down.store(true, Ordering::SeqCst);
    tokio::time::sleep(5 * DAY).await;
    assert_eq!((process.view().phase, second.signed()), (Phase::Waiting, 1), "{:?}", process.view());
    tokio::time::sleep(2 * DAY).await;
    assert_eq!((process.view().issuer.as_str(), second.signed()), ("second", 2));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_clients_would_refuse_is_kept_and_not_served_until_nothing_else_is_good() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 9 * DAY, |_| {});
    let process = with(&storage, &clock, by(&[&ca])).await;
    let first = process.host();
    ca.postdates.store(true, Ordering::SeqCst);
    tokio::time::sleep(5 * DAY).await;
    let view = process.view();
    assert_eq!((process.host(), ca.signed()), (first.clone(), 2), "signed and kept");
    // Its first day comes, and it is looked at again: no order was needed.
    assert_eq!(view.phase, Phase::Parked, "{view:?}");
    assert!(view.last_error.unwrap().contains("not now by this machine's clock"));
    tokio::time::sleep(2 * DAY).await;
    assert_ne!(process.host(), first);
    assert_eq!(ca.signed(), 2);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn with_nothing_else_to_serve_an_unproven_one_is_served() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 9 * DAY, |_| {});
    ca.postdates.store(true, Ordering::SeqCst);
    let process = with(&storage, &clock, by(&[&ca])).await;
    assert_eq!((process.view().serial, ca.signed()), (Some(process.host()), 1));
    assert!(storage.list("unproven").await.unwrap().is_empty());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_person_renews_within_the_limits_or_in_spite_of_them() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let (counting, free) = (ca(&clock, "public", 90 * DAY, counts), ca(&clock, "free", 90 * DAY, |_| {}));
    let process = with(&storage, &clock, by(&[&counting])).await;
    let first = process.host();
    let error = process.ask(Verb::Renew { force: false }).await.unwrap_err();
    assert!(error.contains("--force") && counting.signed() == 1, "{error}");
    let done = process.ask(Verb::Renew { force: true }).await.unwrap();
    let second = process.host();
    assert!(done.contains(&second) && second != first, "{done}");
    // The CA's limit is used up: not even asked, without force.
    tokio::time::sleep(33 * HOUR).await;
    process.ask(Verb::Renew { force: true }).await.unwrap();
    process.stop().await;
    let process = with(&storage, &clock, by(&[&counting])).await;
    // What was demanded beyond the limit is counted too.
    tokio::time::sleep(70 * HOUR).await;
    let before = process.host();
    process.ask(Verb::Renew { force: false }).await.unwrap();
    assert_ne!(process.host(), before);
    counting.down.store(true, Ordering::SeqCst);
    let before = process.host();
    let error = process.ask(Verb::Renew { force: true }).await.unwrap_err();
    assert!(error.contains("model CA is down"), "{error}");
    assert_eq!(
        (process.host(), process.view().phase),
        (before, Phase::Valid),
        "it is renewed when it is due"
    );
    process.stop().await;

    let process = with(&MemoryStorage::new(), &clock, by(&[&free])).await;
    process.ask(Verb::Renew { force: false }).await.unwrap();
    assert_eq!(free.signed(), 2, "a CA without known limits");
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_order_that_would_be_refused_is_not_sent() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, counts);
    let process = with(&storage, &clock, by(&[&ca])).await;
    process.ask(Verb::Renew { force: true }).await.unwrap();
    process.stop().await;
    // The directory is lost with everything in it but the ledger.
    for prefix in ["certs", "attempts", "inventory"] {
        for key in storage.list(prefix).await.unwrap() {
            storage.remove(&key).await.unwrap();
        }
    }
    storage.remove(&Key::new(&["inventory"])).await.unwrap();
    let process = with(&storage, &clock, by(&[&ca])).await;
    let view = process.view();
    assert_eq!((ca.asked.load(Ordering::SeqCst), view.phase), (2, Phase::Waiting), "{view:?}");
    assert!(view.next_action().contains("the CA's limit"), "{}", view.next_action());
    assert!(view.last_error.unwrap().contains("would refuse the order"));
    tokio::time::sleep(35 * HOUR).await;
    assert_eq!((ca.signed(), process.view().phase), (3, Phase::Valid));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_person_goes_back_and_it_lasts() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, counts);
    let process = with(&storage, &clock, by(&[&ca])).await;
    assert!(process.ask(Verb::RollBack).await.unwrap_err().contains("no previous generation"));
    let first = process.host();
    tokio::time::sleep(62 * DAY).await;
    let second = process.host();
    assert!(second != first && ca.signed() == 2);
    process.ask(Verb::RollBack).await.unwrap();
    assert_eq!(process.host(), first);
    assert!(process.view().next_action().contains("rolled back"), "{}", process.view().next_action());
    process.stop().await;
    let process = with(&storage, &clock, by(&[&ca])).await;
    assert_eq!((process.host(), ca.signed()), (first.clone(), 2), "after a restart");
    tokio::time::sleep(5 * DAY).await;
    assert_eq!((process.host(), ca.signed()), (first.clone(), 2), "not renewed at once");
    // And forth, and on.
    process.ask(Verb::RollBack).await.unwrap();
    assert_eq!(process.host(), second);
    process.ask(Verb::Renew { force: false }).await.unwrap();
    assert!(process.host() != first && process.host() != second);
    process.ask(Verb::RollBack).await.unwrap();
    assert_eq!(process.host(), second);
    tokio::time::sleep(100 * DAY).await;
    assert!(process.view().validity.unwrap().1 > clock.now(), "{:?}", process.view());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_back_while_another_process_orders() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, counts);
    let process = with(&storage, &clock, by(&[&ca])).await;
    let first = process.host();
    process.ask(Verb::Renew { force: true }).await.unwrap();
    let second = process.host();
    let key = cert_key(&ca.id, &process.view().id);
    let theirs = storage.try_lease(&key).await.unwrap().expect("nobody holds it");
    let kept = storage.load(&key).await.unwrap().unwrap().value;
    let refused = process.ask(Verb::RollBack).await.unwrap_err();
    assert!(refused.contains("another process is ordering it"), "{refused}");
    assert_eq!(storage.load(&key).await.unwrap().unwrap().value, kept);
    assert_eq!(process.host(), second);
    drop(theirs);
    process.ask(Verb::RollBack).await.unwrap();
    assert_eq!(process.host(), first);
    assert!(storage.try_lease(&key).await.unwrap().is_some(), "it is let go of");
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_one_is_replaced_whatever_comes_between() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, |_| {});
    let process = with(&storage, &clock, by(&[&ca])).await;
    let first = process.host();
    ca.down.store(true, Ordering::SeqCst);
    let error = process.ask(Verb::Revoke { reason: 1 }).await.unwrap_err();
    assert!(error.contains("it is revoked, and there is no new one yet"), "{error}");
    assert_eq!((process.host(), ca.revoked.lock().unwrap().clone()), (first.clone(), vec![1]));
    process.stop().await;
    ca.down.store(false, Ordering::SeqCst);
    let process = with(&storage, &clock, by(&[&ca])).await;
    tokio::time::sleep(5 * MINUTE).await;
    assert_ne!(process.host(), first, "it is not forgotten over a restart");
    let second = process.host();
    process.ask(Verb::Revoke { reason: 0 }).await.unwrap();
    assert_ne!(process.host(), second);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_exported_is_what_is_served() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, |_| {});
    let process = with(&storage, &clock, by(&[&ca])).await;
    let exported = process.manager.export(&process.view().id).await.unwrap();
    let bundle = crate::tls::Bundle::from_pem(&exported.chain_pem, exported.key_pem.expose()).unwrap();
    assert_eq!(bundle.serial(), process.host());
    let nobody = CertId::of(&[HostPattern::parse("nobody.example").unwrap()]);
    assert!(process.manager.export(&nobody).await.is_err());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_set_is_rehearsed_and_a_known_one_is_not() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let production = ca(&clock, "public", 9 * DAY, |_| {});
    let staging = ca(&clock, "staging", 9 * DAY, |_| {});
    let wanted = Wanted { rehearsal: Some(staging.clone()), rehearse: true, ..by(&[&production]) };
    *staging.confused.lock().unwrap() = Some(vec!["other.example".into()]);
    let process = with(&storage, &clock, wanted.clone()).await;
    let view = process.view();
    assert_eq!((view.phase, production.asked.load(Ordering::SeqCst)), (Phase::Parked, 0), "{view:?}");
    assert!(view.last_error.unwrap().contains("the rehearsal at staging failed"));
    let error = process.ask(Verb::Rehearse).await.unwrap_err();
    assert!(error.contains("other.example"), "{error}");
    *staging.confused.lock().unwrap() = None;
    process.ask(Verb::Renew { force: false }).await.unwrap();
    assert_eq!(process.view().issuer.as_str(), "public");
    let rehearsed = staging.asked.load(Ordering::SeqCst);
    tokio::time::sleep(20 * DAY).await;
    assert!(production.signed() >= 3);
    assert_eq!(staging.asked.load(Ordering::SeqCst), rehearsed, "renewals are not rehearsed");
    let served = process.host();
    let words = process.ask(Verb::Rehearse).await.unwrap();
    assert!(words.contains("rehearsed at staging"), "{words}");
    assert_eq!(process.host(), served, "nothing of it is served");
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn more_new_sets_are_rehearsed_at_once_than_a_ca_is_asked_for_at_once() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let production = ca(&clock, "public", 90 * DAY, |_| {});
    let staging = ca(&clock, "staging", 90 * DAY, |_| {});
    let process = Process::start(&storage, &clock);
    let hosts: Vec<String> = (0..30).map(|n| format!("h{n}.example.com")).collect();
    let rehearsed = |host: &String| Wanted {
        rehearsal: Some(staging.clone()),
        rehearse: true,
        ..super::wanted(&production, &[host])
    };
    process.manager.set_wanted(hosts.iter().map(rehearsed).collect(), vec![], None).await;
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!((staging.signed(), production.signed()), (30, 30), "{:?}", process.view());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_staging_that_cannot_be_asked_holds_production_back_for_an_hour_and_no_longer() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    for limited in [false, true] {
        let production = ca(&clock, "public", 90 * DAY, |_| {});
        let staging = ca(&clock, "staging", 90 * DAY, |model| {
            counts(model);
            model.budget.as_mut().unwrap().limits.orders =
                Some(Rate { burst: u32::from(!limited), every: DAY });
        });
        staging.down.store(!limited, Ordering::SeqCst);
        let storage = if limited { MemoryStorage::new() } else { storage.clone() };
        let wanted = Wanted { rehearsal: Some(staging.clone()), rehearse: true, ..by(&[&production]) };
        let process = with(&storage, &clock, wanted).await;
        tokio::time::sleep(50 * MINUTE).await;
        let view = process.view();
        assert_eq!((view.phase, production.asked.load(Ordering::SeqCst)), (Phase::Waiting, 0), "{view:?}");
        let error = view.last_error.unwrap();
        assert!(
            error.contains("the rehearsal at staging failed") && error.contains("After 60 min"),
            "{error}"
        );
        if limited {
            assert_eq!(staging.asked.load(Ordering::SeqCst), 0, "what staging would refuse is not sent");
        }
        tokio::time::sleep(15 * MINUTE).await;
        assert_eq!((process.view().phase, production.signed()), (Phase::Valid, 1), "{:?}", process.view());
        process.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rehearsal_is_proven_as_what_is_served_and_counted_where_staging_counts() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let production = ca(&clock, "public", 90 * DAY, |_| {});
    let staging = ca(&clock, "staging", 90 * DAY, counts);
    let wanted = Wanted { rehearsal: Some(staging.clone()), rehearse: false, ..by(&[&production]) };
    let process = with(&storage, &clock, wanted).await;
    staging.postdates.store(true, Ordering::SeqCst);
    let error = process.ask(Verb::Rehearse).await.unwrap_err();
    assert!(error.contains("not now by this machine's clock"), "{error}");
    staging.postdates.store(false, Ordering::SeqCst);
    process.ask(Verb::Rehearse).await.unwrap();
    let error = process.ask(Verb::Rehearse).await.unwrap_err();
    assert!(error.contains("the CA's limit") && staging.signed() == 2, "{error}");
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_never_ends_keeps_no_other_from_being_asked() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let stuck = ca(&clock, "stuck", 90 * DAY, |model| model.takes = 30 * DAY);
    let healthy = ca(&clock, "healthy", 90 * DAY, |_| {});
    let hosts: Vec<String> = (0..20).map(|n| format!("h{n}.example.com")).collect();
    let mut all: Vec<Wanted> = hosts.iter().map(|host| super::wanted(&stuck, &[host])).collect();
    let process = Process::start(&storage, &clock);
    process.manager.set_wanted(all.clone(), vec![], None).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!(stuck.most.load(Ordering::SeqCst), 8);
    all.push(super::wanted(&healthy, &["healthy.example"]));
    process.manager.set_wanted(all, vec![], None).await;
    tokio::time::sleep(MINUTE).await;
    assert!(process.served("healthy.example").is_some());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_ca_that_does_not_say_when_it_wants_a_renewal() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 9 * DAY, |_| {});
    ca.mute.store(true, Ordering::SeqCst);
    let process = with(&storage, &clock, by(&[&ca])).await;
    let first = process.host();
    tokio::time::sleep(DAY).await;
    assert!(ca.polled.load(Ordering::SeqCst) > 0 && ca.signed() == 1);
    // A person is heard in the middle of it.
    process.ask(Verb::Renew { force: false }).await.unwrap();
    let second = process.host();
    assert_ne!(second, first);
    // And what falls due is ordered.
    tokio::time::sleep(5 * DAY).await;
    assert!(process.host() != second && ca.signed() == 3, "{:?}", process.view());
    process.stop().await;
}

/// Storage that can be read and not written.
#[derive(Debug)]
struct Full(MemoryStorage, AtomicBool);

impl Full {
    fn check(&self) -> Result<(), StorageError> {
        let full =
            || StorageError::Io { what: "cannot write".into(), reason: "no space left on device".into() };
        if self.1.load(Ordering::SeqCst) { Err(full()) } else { Ok(()) }
    }
}

#[async_trait]
impl Storage for Full {
    async fn load(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        self.0.load(key).await
    }

    async fn load_previous(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        self.0.load_previous(key).await
    }

    async fn store(&self, key: &Key, value: &[u8], expect: Expect) -> Result<Revision, StorageError> {
        self.check()?;
        self.0.store(key, value, expect).await
    }

    async fn remove(&self, key: &Key) -> Result<(), StorageError> {
        self.check()?;
        self.0.remove(key).await
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StorageError> {
        self.check()?;
        self.0.set_aside(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Key>, StorageError> {
        self.0.list(prefix).await
    }

    async fn try_lease(&self, name: &Key) -> Result<Option<Box<dyn Lease>>, StorageError> {
        self.0.try_lease(name).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_served_all_the_same_and_stored_later() {
    let clock = clock();
    let ca = ca(&clock, "public", 9 * DAY, |_| {});
    let disk = Arc::new(Full(MemoryStorage::new(), AtomicBool::new(false)));
    let process = Process::on(disk.clone(), &clock);
    process.want(&ca, &[EXAMPLE]).await;
    tokio::time::sleep(MINUTE).await;
    let first = process.host();
    disk.1.store(true, Ordering::SeqCst);
    tokio::time::sleep(5 * DAY).await;
    let second = process.host();
    assert!(second != first && ca.signed() == 2, "{:?}", process.view());
    let exported = process.manager.export(&process.view().id).await.unwrap();
    assert!(
        crate::tls::Bundle::from_pem(&exported.chain_pem, exported.key_pem.expose()).unwrap().serial()
            == second
    );
    disk.1.store(false, Ordering::SeqCst);
    tokio::time::sleep(2 * MINUTE).await;
    process.stop().await;
    let process = with(&disk.0, &clock, by(&[&ca])).await;
    assert_eq!((process.host(), ca.signed()), (second, 2));
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_of_removed_certificates_is_forgotten() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 9 * DAY, |_| {});
    ca.down.store(true, Ordering::SeqCst);
    let process = Process::start(&storage, &clock);
    process.want(&ca, &[EXAMPLE, &["example.org"]]).await;
    tokio::time::sleep(MINUTE / 2).await;
    assert_eq!(storage.list("attempts").await.unwrap().len(), 2);
    process.want(&ca, &[&["example.org"]]).await;
    tokio::time::sleep(MINUTE / 2).await;
    let left = storage.list("attempts").await.unwrap();
    assert!(left.len() == 1 && left[0].as_str().contains("example.org"), "{left:?}");
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn first_orders_wait_for_the_limit_of_accounts_and_only_they() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let one = Rate { burst: 1, every: 40 * HOUR };
    let ca = ca(&clock, "public", 90 * DAY, |model| {
        let limits = CaLimits { accounts: Some(one), ..CaLimits::default() };
        model.budget = Some(Budget { ca: model.id.clone(), limits });
        model.registered = AtomicBool::new(false);
    });
    let process = with(&storage, &clock, by(&[&ca])).await;
    assert_eq!(ca.signed(), 1, "the first account");
    tokio::time::sleep(35 * HOUR).await; // past the minimum gap
    // It is lost, and needed again.
    ca.registered.store(false, Ordering::SeqCst);
    let error = process.ask(Verb::Renew { force: false }).await.unwrap_err();
    assert!(error.contains("limit of new accounts"), "{error}");
    assert_eq!(ca.asked.load(Ordering::SeqCst), 1);
    ca.registered.store(true, Ordering::SeqCst);
    process.ask(Verb::Renew { force: false }).await.unwrap();
    assert_eq!(ca.signed(), 2);
    process.stop().await;
}
