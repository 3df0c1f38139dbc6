use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

/// Counts what `choice` gives in `rounds`, with these loads and these servers usable; keys count up.
fn shares(choice: &Choice, weights: &[u32], loads: &[i64], usable: &[bool], rounds: u64) -> Vec<u64> {
    let cursor = AtomicUsize::new(0);
    let mut counts = vec![0; weights.len()];
    for round in 0..rounds {
        let view = View {
            usable: |n: usize| usable[n],
            load: |n: usize| loads[n],
            weights,
            key: hash(&round.to_le_bytes()),
            cursor: &cursor,
        };
        match choice.choose(&view) {
            Some(n) => counts[n] += 1,
            None => assert!(usable.iter().all(|u| !u)),
        }
    }
    counts
}

fn all(weights: &[u32]) -> [Choice; 4] {
    let names: Vec<String> = (0..weights.len()).map(|n| format!("http://10.0.0.{n}:80")).collect();
    [
        Choice::P2c(Draw::new(weights)),
        Choice::Random(Draw::new(weights)),
        Choice::RoundRobin(Sequence::new(weights)),
        Choice::Hash(Ring::new(names.iter().map(String::as_str), weights)),
    ]
}

#[test]
fn shares_follow_weights_when_nobody_is_busy() {
    let weights = [1, 2, 5, 2];
    // Five deviations of the lightest share: chance alone must not fail a build.
    for (choice, tolerance) in all(&weights).iter().zip([0.08, 0.08, 0.0, 0.35]) {
        let counts = shares(choice, &weights, &[0; 4], &[true; 4], 40_000);
        for (count, weight) in counts.iter().zip(weights) {
            let (share, expected) = (*count as f64, 4_000.0 * f64::from(weight));
            assert!((share - expected).abs() <= expected * tolerance + 1.0, "{choice:?}: {counts:?}");
        }
    }
}

#[test]
fn what_a_dead_server_leaves_is_shared_evenly() {
    let weights = [1; 4];
    for (choice, tolerance) in all(&weights).iter().zip([0.05, 0.05, 0.001, 0.35]) {
        let counts = shares(choice, &weights, &[0; 4], &[true, false, true, true], 30_000);
        assert_eq!(counts[1], 0);
        for n in [0, 2, 3] {
            assert!((counts[n] as f64 - 10_000.0).abs() < 10_000.0 * tolerance, "{choice:?}: {counts:?}");
        }
    }
}

#[test]
fn round_robin_is_smooth() {
    let sequence = |weights: &[u32]| Sequence::new(weights).0.to_vec();
    assert_eq!(sequence(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(sequence(&[100, 100]), [0, 1]);
    let long = sequence(&vec![256; 255].into_iter().chain([255]).collect::<Vec<_>>());
    assert!(long.len() <= SEQUENCE + 256, "{}", long.len());
}

#[test]
fn a_hung_server_gets_no_more_than_the_others_have() {
    // Every third request hangs for ever at server 0; the others answer at once.
    let weights = [1, 1, 1];
    let choice = Choice::P2c(Draw::new(&weights));
    let hung = std::cell::Cell::new(0);
    let cursor = AtomicUsize::new(0);
    for _ in 0..10_000 {
        let view = View {
            usable: |_| true,
            load: |n: usize| if n == 0 { hung.get() } else { 1 },
            weights: &weights,
            key: 0,
            cursor: &cursor,
        };
        if choice.choose(&view) == Some(0) {
            hung.set(hung.get() + 1);
        }
    }
    assert!(hung.get() <= 2, "{}", hung.get());
}

#[test]
fn a_busy_server_sends_its_keys_on() {
    let weights = [1; 5];
    let choice = &all(&weights)[3];
    let loads = RefCell::new([0_i64; 5]);
    let cursor = AtomicUsize::new(0);
    for _ in 0..1_000 {
        // One key that everybody asks for, and nobody ever finishes.
        let view = View {
            usable: |_| true,
            load: |n: usize| loads.borrow()[n],
            weights: &weights,
            key: 42,
            cursor: &cursor,
        };
        let n = choice.choose(&view).unwrap();
        loads.borrow_mut()[n] += 1;
        let (most, total) = (*loads.borrow().iter().max().unwrap(), loads.borrow().iter().sum::<i64>());
        assert!(most <= SLACK.max(total / 4 + 1), "{:?}", loads.borrow());
    }
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(1_u32..=256, 1..12)
}

proptest! {
    #[test]
    fn what_is_chosen_is_usable_and_something_is_if_it_can(
        weights in weights(),
        usable in prop::collection::vec(any::<bool>(), 12),
        loads in prop::collection::vec(0_i64..100, 12),
    ) {
        let usable = &usable[..weights.len()];
        for choice in all(&weights) {
            let counts = shares(&choice, &weights, &loads, usable, 50);
            let expected = if usable.contains(&true) { 50 } else { 0 };
            prop_assert_eq!(counts.iter().sum::<u64>(), expected);
            prop_assert!(counts.iter().zip(usable).all(|(count, usable)| *usable || *count == 0));
        }
    }

    #[test]
    fn an_alias_table_holds_each_weight(weights in weights()) {
        let draw = Draw::new(&weights);
        let mut mass = vec![0.0; weights.len()];
        for (own, (threshold, other)) in draw.columns.iter().enumerate() {
            let part = (f64::from(*threshold) + 1.0) / 2_f64.powi(32);
            mass[own] += part;
            mass[*other as usize] += 1.0 - part;
        }
        let total = f64::from(weights.iter().sum::<u32>());
        for (mass, weight) in mass.iter().zip(&weights) {
            let expected = f64::from(*weight) / total * weights.len() as f64;
            prop_assert!((mass - expected).abs() < 1e-6, "{mass} {expected}");
        }
    }

    #[test]
    fn a_period_of_round_robin_has_each_as_often_as_it_weighs(weights in weights()) {
        let sequence = Sequence::new(&weights);
        let divisor = weights.iter().fold(0, |a, b| gcd(a, *b));
        for (n, weight) in weights.iter().enumerate() {
            let turns = sequence.0.iter().filter(|turn| usize::from(**turn) == n).count();
            prop_assert_eq!(turns as u32, weight / divisor);
        }
    }

    #[test]
    fn the_less_loaded_of_two_is_taken(
        weights in prop::collection::vec(1_u32..=256, 2..3),
        loads in prop::collection::vec(0_i64..1000, 2),
    ) {
        let counts = shares(&Choice::P2c(Draw::new(&weights)), &weights, &loads, &[true; 2], 20);
        let relative = |n: usize| loads[n] * i64::from(weights[1 - n]);
        if relative(0) != relative(1) {
            prop_assert_eq!(counts[usize::from(relative(1) < relative(0))], 20);
        }
    }

    #[test]
    fn a_new_server_takes_its_share_of_the_keys_and_moves_no_other(count in 1_usize..20, salt: u16) {
        let name = |n: usize| format!("http://10.{salt}.0.{n}:80");
        let names: Vec<String> = (0..=count).map(name).collect();
        let ring = |n: usize| {
            Choice::Hash(Ring::new(names[..n].iter().map(String::as_str), &vec![1; n]))
        };
        let (before, after) = (ring(count), ring(count + 1));
        let cursor = AtomicUsize::new(0);
        let (mut moved, keys) = (0, 4_000_u64);
        for key in 0..keys {
            let of = |choice: &Choice, count: usize| {
                let weights = vec![1; count];
                let view = View { usable: |_| true, load: |_| 0, weights: &weights, key: mix(key), cursor: &cursor };
                choice.choose(&view).unwrap()
            };
            let (old, new) = (of(&before, count), of(&after, count + 1));
            prop_assert!(new == old || new == count, "a key moved from {old} to {new}");
            moved += u64::from(new != old);
        }
        let share = moved as f64 / keys as f64 * (count + 1) as f64;
        prop_assert!((0.5..1.7).contains(&share), "{moved} of {keys} moved to one of {}", count + 1);
    }
}
