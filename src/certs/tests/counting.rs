//! What CAs count: each order once, whatever interrupts it; and what they signed is never ordered again for that.

use super::rules::{HOUR, MINUTE, by, ca, with};
use super::*;
use crate::issuer::{CaLimits, Rate};

/// Five for each set, as Let's Encrypt has it.
fn five(model: &mut ModelCa) {
    let names = Some(Rate { burst: 5, every: 34 * HOUR });
    let domain = Some(Rate { burst: 50, every: 3 * HOUR });
    let limits = CaLimits { names, domain, pause_after: Some(10), ..CaLimits::default() };
    model.budget = Some(Budget { ca: model.id.clone(), limits });
}

impl Process {
    /// What is left of sets, domains and failures in a row.
    fn left(&self) -> [u32; 3] {
        let left = self.count.left.lock().unwrap();
        ["names", "domain", "pause"].map(|limit| left.iter().find(|l| l.limit == limit).unwrap().remaining)
    }
}

/// As after a reload that has changed something about the certificate, `n` being different each time.
fn changed(ca: &Arc<ModelCa>, n: u32) -> Wanted {
    Wanted { fingerprint: format!("after reload {n}"), ..by(&[ca]) }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_reloads_and_restarts_interrupt_is_counted_once() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, |model| {
        five(model);
        model.takes = 10 * MINUTE;
    });
    let process = Process::start(&storage, &clock);
    for n in 0..7 {
        process.manager.set_wanted(vec![changed(&ca, n)], vec![], None).await;
        tokio::time::sleep(MINUTE).await;
        assert_eq!(process.view().phase, Phase::Ordering, "reload {n}: {:?}", process.view());
    }
    process.stop().await;
    let process = Process::start(&storage, &clock);
    process.manager.set_wanted(vec![changed(&ca, 9)], vec![], None).await;
    tokio::time::sleep(11 * MINUTE).await;
    assert_eq!((process.view().phase, ca.signed()), (Phase::Valid, 1));
    assert_eq!(process.left()[..2], [4, 49]);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_ca_signs_in_the_end_is_counted_and_ends_a_row_of_failures() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, five);
    ca.refuses.store(true, Ordering::SeqCst);
    let process = with(&storage, &clock, by(&[&ca])).await;
    assert_eq!(process.left(), [5, 50, 9], "nothing was signed, and a name failed");
    ca.refuses.store(false, Ordering::SeqCst);
    ca.stuck.store(true, Ordering::SeqCst);
    tokio::time::sleep(2 * MINUTE).await;
    assert_eq!((process.view().phase, process.left()), (Phase::Waiting, [4, 49, 9]), "it is under way");
    ca.stuck.store(false, Ordering::SeqCst);
    tokio::time::sleep(30 * MINUTE).await;
    assert_eq!((process.view().phase, ca.signed()), (Phase::Valid, 1));
    assert_eq!(process.left(), [4, 49, 10], "counted, and the row is over");
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_successor_is_free_inside_the_window_only() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, five);
    let begin = clock.now();
    let (start, end) = (begin + 20 * DAY, begin + 22 * DAY);
    *ca.hint.lock().unwrap() = Some(Some(RenewalHint { start, end, explanation: None, again_at: end }));
    let process = with(&storage, &clock, by(&[&ca])).await;
    tokio::time::sleep(10 * DAY).await;
    assert_eq!(process.left()[..2], [5, 50], "the first one is long ago, and it is seen without any order");
    process.ask(Verb::Renew { force: true }).await.unwrap();
    assert_eq!(process.left()[..2], [4, 50], "a successor, and outside its window");
    tokio::time::sleep(9 * DAY).await;
    assert_eq!(process.left()[..2], [5, 50]);
    let before = ca.signed();
    while ca.signed() == before {
        tokio::time::sleep(MINUTE).await;
    }
    tokio::time::sleep(MINUTE).await;
    assert!(clock.now() >= start && clock.now() < end);
    assert_eq!(process.left()[..2], [5, 50], "asked for by the CA");
    assert_eq!(*ca.replacing.lock().unwrap(), [false, true, true]);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_signed_for_other_names_is_kept_and_counted_and_not_ordered_again_by_itself() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, five);
    *ca.confused.lock().unwrap() = Some(vec!["other.example".into()]);
    let process = with(&storage, &clock, by(&[&ca])).await;
    for days in [0, 1, 8] {
        tokio::time::sleep(days * DAY).await;
        let view = process.view();
        assert_eq!(
            (view.phase, ca.signed(), ca.asked.load(Ordering::SeqCst)),
            (Phase::Parked, 1, 1),
            "{view:?}"
        );
        let error = view.last_error.unwrap();
        assert!(error.contains("other.example") && error.contains("starlock certs renew"), "{error}");
        if days == 0 {
            assert_eq!(process.left()[..2], [4, 49], "the CA has counted it");
        }
    }
    assert!(process.served("other.example").is_none());
    let kept = storage.list("unproven").await.unwrap();
    assert_eq!(kept.len(), 1);
    process.stop().await;
    // Nor after a restart.
    let process = with(&storage, &clock, by(&[&ca])).await;
    tokio::time::sleep(2 * DAY).await;
    assert_eq!((process.view().phase, ca.signed()), (Phase::Parked, 1));
    // A person tries once more, in vain, and again when it is mended.
    process.ask(Verb::Renew { force: false }).await.unwrap_err();
    assert_eq!(ca.signed(), 2);
    *ca.confused.lock().unwrap() = None;
    tokio::time::sleep(2 * DAY).await;
    assert_eq!(ca.signed(), 2);
    process.ask(Verb::Renew { force: false }).await.unwrap();
    assert_eq!((process.view().phase, ca.signed()), (Phase::Valid, 3));
    // As it is signed for other names while a good one is served, the good one stays.
    let good = process.host();
    *ca.confused.lock().unwrap() = Some(vec!["other.example".into()]);
    tokio::time::sleep(70 * DAY).await;
    assert_eq!((process.host(), process.view().phase, ca.signed()), (good, Phase::Parked, 4));
    *ca.confused.lock().unwrap() = None;
    // Another configuration is another try, and what was in the way is set aside.
    process.manager.set_wanted(vec![changed(&ca, 1)], vec![], None).await;
    tokio::time::sleep(MINUTE).await;
    assert_eq!((process.view().phase, ca.signed()), (Phase::Valid, 5));
    assert!(storage.list("unproven").await.unwrap().is_empty());
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_the_limits_is_told_from_the_start_and_forgotten_with_its_ca() {
    let (storage, clock) = (MemoryStorage::new(), clock());
    let ca = ca(&clock, "public", 90 * DAY, five);
    let process = with(&storage, &clock, by(&[&ca])).await;
    assert_eq!(process.left()[..2], [4, 49]);
    process.stop().await;
    let process = with(&storage, &clock, by(&[&ca])).await;
    assert_eq!((process.left()[..2].to_vec(), ca.signed()), (vec![4, 49], 1), "without an order");
    tokio::time::sleep(4 * HOUR).await;
    assert_eq!(process.left()[..2], [4, 50], "it refills by itself");
    process.manager.set_wanted(vec![], vec![], None).await;
    tokio::time::sleep(MINUTE).await;
    assert!(process.count.left.lock().unwrap().is_empty());
    process.stop().await;
}
