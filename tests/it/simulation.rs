//! Years of renewals against model CAs with Let's Encrypt's limits, by the code that decides in production.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use starlock::name::HostPattern;
use starlock::simulate::{CaModel, Outcome, Scenario, SimulatedCert, lets_encrypt, public_ca, run};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// 2026-11-24: both changes of Let's Encrypt's default lifetime lie within two years.
fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + DAY * 20_781
}

/// Four certificates for each registered domain, one of them a wildcard with its apex.
fn fleet(count: usize, cas: &[usize]) -> Vec<SimulatedCert> {
    let certificate = |n: usize| {
        let zone = format!("zone{}.com", n / 4);
        let texts = match n % 4 {
            0 => vec![zone.clone(), format!("*.{zone}")],
            m => vec![format!("s{m}.{zone}")],
        };
        let mut names: Vec<HostPattern> = texts.iter().map(|t| HostPattern::parse(t).unwrap()).collect();
        names.sort();
        SimulatedCert { names: names.into(), cas: cas.to_vec() }
    };
    (0..count).map(certificate).collect()
}

/// One validation in two hundred fails for no lasting reason.
fn public() -> CaModel {
    CaModel { unlucky: 0.005, ..lets_encrypt("classic") }
}

fn at(days: u32) -> SystemTime {
    start() + DAY * days
}

fn days(from: u32, to: u32) -> Range<SystemTime> {
    at(from)..at(to)
}

#[track_caller]
fn nothing_went_wrong(scenario: &Scenario, outcome: &Outcome) {
    let seed = scenario.seed;
    let first = |list: &[(usize, Duration)]| format!("{:?}", &list[..list.len().min(5)]);
    assert!(outcome.expired.is_empty(), "seed {seed}: served expired: {}", first(&outcome.expired));
    assert!(outcome.violations.is_empty(), "seed {seed}: over a limit: {:?}", outcome.violations);
    assert!(outcome.late.is_empty(), "seed {seed}: after the window: {}", first(&outcome.late));
}

#[test]
fn ten_thousand_certificates_for_two_years() {
    let mut scenario = Scenario::calm(20_261_124, start(), DAY * 730, fleet(10_000, &[0]), vec![public()])
        .with_outages(0, 0.01, DAY * 5)
        .with_restarts(1000);
    // DNS of fifty certificates is broken for ten days, and the CA is slow for three.
    scenario.broken_dns = (0..50).map(|n| (n * 7, days(200, 210))).collect();
    scenario.cas[0].slow = vec![days(300, 303)];
    let begun = std::time::Instant::now();
    let outcome = run(&scenario);
    println!("{:.1} s", begun.elapsed().as_secs_f64());
    nothing_went_wrong(&scenario, &outcome);
    // Lifetimes shorten twice, so that the mean of two years lies between those of its parts: both are kept.
    let (busiest, mean) = outcome.busiest();
    assert!(
        f64::from(busiest) <= 3.0 * mean,
        "{busiest} orders in an hour, {mean:.1} on average over the whole run"
    );
    let (of_month, of_mean) = outcome.spread();
    assert!(
        f64::from(of_month) <= 3.0 * of_mean,
        "{of_month} orders in an hour, {of_mean:.1} on average in its month"
    );
    assert_eq!(outcome.restarts, 1000);
    assert!(outcome.issued > 150_000, "{}", outcome.issued);
    assert!(
        outcome.failed_down > 100 && outcome.failed_validation > 100,
        "the mishaps were real: {outcome:.0?}"
    );
    println!(
        "{} orders, {} polls, {} steps; busiest undisturbed hour {busiest}, mean {mean:.1} (in one month {of_month}, {of_mean:.1}); least left {:.2}",
        outcome.issued,
        outcome.polls,
        outcome.steps,
        outcome.closest.unwrap_or_default()
    );
}

#[test]
fn certificates_of_160_hours_live_through_five_days_without_their_ca() {
    let cas = vec![lets_encrypt("shortlived"), public_ca("fallback")];
    let scenario = Scenario::calm(7, start(), DAY * 730, fleet(1000, &[0, 1]), cas)
        .with_outages(0, 0.05, DAY * 5)
        .with_restarts(600);
    let outcome = run(&scenario);
    nothing_went_wrong(&scenario, &outcome);
    assert!(outcome.fallen_back > 1000, "{}", outcome.fallen_back);
    // Without the second CA this is not to be survived: the property can fail.
    let alone = Scenario { certificates: fleet(200, &[0]), length: DAY * 365, ..scenario };
    assert!(!run(&alone).expired.is_empty());
}

#[test]
fn a_mass_revocation_is_over_in_days_and_breaks_no_limit() {
    let mut ca = public();
    ca.revocations = vec![(at(100), 1.0), (at(250), 0.5)];
    let scenario = Scenario {
        keep_renewals: true,
        ..Scenario::calm(3, start(), DAY * 365, fleet(2000, &[0]), vec![ca]).with_restarts(100)
    };
    let outcome = run(&scenario);
    nothing_went_wrong(&scenario, &outcome);
    for (begin, least) in [(100, 1900), (250, 900)] {
        let window = at(begin)..at(begin + 2);
        let replaced = outcome.renewals.iter().filter(|r| window.contains(&r.at)).count();
        assert!(replaced >= least, "{replaced} of 2000 within two days of day {begin}");
    }
}

/// Revoked while the CA is down every other day for hours, and while it is away for two days from the next hour on.
#[test]
fn a_mass_revocation_among_outages_is_caught_up_with() {
    let mut ca = public();
    ca.revocations = vec![(at(100), 1.0), (at(250), 0.7)];
    let hours = |from: u32, to: u32| start() + HOUR * from..start() + HOUR * to;
    ca.outages = (0..10).map(|n| hours(98 * 24 + n * 48, 98 * 24 + n * 48 + 14)).collect();
    ca.outages.push(hours(250 * 24 + 1, 252 * 24));
    let scenario = Scenario {
        keep_renewals: true,
        ..Scenario::calm(11, start(), DAY * 365, fleet(2000, &[0]), vec![ca]).with_restarts(200)
    };
    let outcome = run(&scenario);
    nothing_went_wrong(&scenario, &outcome);
    for (begin, end, least) in [(100, 104, 1900), (250, 256, 1250)] {
        let window = at(begin)..at(end);
        let replaced = outcome.renewals.iter().filter(|r| window.contains(&r.at)).count();
        assert!(replaced >= least, "{replaced} of 2000 between the days {begin} and {end}");
    }
}

/// The CA takes orders and is down when they should end: what is resumed later, after days and restarts too, is counted once, and when
/// it is signed.
#[test]
fn orders_that_are_interrupted_all_the_time_break_no_limit_and_wait_no_longer_than_they_must() {
    let certificates = (0..150).map(|n| SimulatedCert {
        names: [HostPattern::parse(&format!("h{n}.example.com")).unwrap()].into(),
        cas: vec![0],
    });
    let certificates: Vec<_> = certificates.collect();
    let mut ca = lets_encrypt("classic");
    let minutes = |from: u32, to: u32| start() + HOUR * from / 60..start() + HOUR * to / 60;
    // Four minutes of every ten, all through the first issuance.
    ca.outages = (0..4000).map(|n| minutes(n * 10 + 6, n * 10 + 10)).collect();
    ca.slow = vec![start()..start() + DAY * 5];
    for seed in 10..18 {
        let calm = Scenario::calm(seed, start(), DAY * 30, certificates.clone(), vec![ca.clone()]);
        let scenario = Scenario { keep_renewals: true, ..calm.with_restarts(3000) };
        let outcome = run(&scenario);
        nothing_went_wrong(&scenario, &outcome);
        assert!(outcome.failed_down > 500, "the mishaps were real: {}", outcome.failed_down);
        let mut firsts = std::collections::BTreeMap::new();
        for renewal in &outcome.renewals {
            firsts.entry(renewal.certificate).or_insert(renewal.at.duration_since(start()).unwrap());
        }
        let mut firsts: Vec<Duration> = firsts.into_values().collect();
        firsts.sort();
        assert_eq!(firsts.len(), 150);
        let days = |n: usize| firsts[n].as_secs_f64() / DAY.as_secs_f64();
        println!("seed {seed}: 140 after {:.1} days, all after {:.1}", days(139), days(149));
        // A hundred beyond the first fifty, one each 206 minutes: 14.3 days. Of those whose turn comes last a few fail four times in a
        // row, and are then tried daily; each try goes well with three in ten or more, so that ten of them are enough for anyone.
        assert!(firsts[139] < DAY * 15, "seed {seed}: {:?}", firsts[139]);
        assert!(firsts[149] < DAY * 143 / 10 + DAY * 10, "seed {seed}: {:?}", firsts[149]);
    }
}

#[test]
fn the_same_seed_is_the_same_run_and_another_is_not() {
    let with = |seed| {
        let scenario = Scenario::calm(seed, start(), DAY * 200, fleet(60, &[0]), vec![public()]);
        let scenario = scenario.with_outages(0, 0.02, DAY * 2).with_restarts(20);
        run(&Scenario { keep_renewals: true, ..scenario })
    };
    assert!(with(1) == with(1));
    assert!(with(1) != with(2));
}

#[test]
fn many_seeds_go_well() {
    for seed in 0..20 {
        let scenario = Scenario::calm(seed, start(), DAY * 500, fleet(80, &[0]), vec![public()])
            .with_outages(0, 0.03, DAY * 5)
            .with_restarts(60);
        nothing_went_wrong(&scenario, &run(&scenario));
    }
}

/// All names below one registered domain: fifty a week are allowed, and the ledger makes them wait for it.
#[test]
fn three_hundred_hosts_of_one_domain_come_as_fast_as_the_limit_allows() {
    let certificates = (0..300).map(|n| SimulatedCert {
        names: [HostPattern::parse(&format!("h{n}.example.com")).unwrap()].into(),
        cas: vec![0],
    });
    let scenario = Scenario {
        keep_renewals: true,
        ..Scenario::calm(5, start(), DAY * 60, certificates.collect(), vec![lets_encrypt("classic")])
    };
    let outcome = run(&scenario);
    nothing_went_wrong(&scenario, &outcome);
    let mut firsts = std::collections::BTreeMap::new();
    for renewal in &outcome.renewals {
        firsts.entry(renewal.certificate).or_insert(renewal.at);
    }
    assert_eq!(firsts.len(), 300);
    let all_by = firsts.values().max().unwrap().duration_since(start()).unwrap();
    // 250 beyond the first fifty, one each 202 minutes: 35 days, and some hours behind them.
    assert!(all_by > DAY * 34 && all_by < DAY * 37 + HOUR, "{all_by:?}");
}
