//! A run as a person reads it: month by month, and when each certificate is renewed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::outcome::{Outcome, Renewal};
use super::scenario::Scenario;

/// Certificates that are shown one by one.
const SHOWN: usize = 25;
/// Dates that are shown of one.
const DATES: usize = 12;
/// Certificates that are named of those for which something went wrong.
const NAMED: usize = 5;
/// Columns of the bar of the busiest month.
const BAR: u64 = 40;

/// The calendar of a run that kept its renewals.
pub fn calendar(scenario: &Scenario, outcome: &Outcome) -> String {
    let mut out = String::new();
    let end = scenario.start + scenario.length;
    let _ = writeln!(
        out,
        "{} to {}: {}, {}, {} for renewal windows, seed {}",
        date(scenario.start),
        date(end),
        count(scenario.certificates.len() as u64, "certificate"),
        count(outcome.issued, "order"),
        count(outcome.polls, "question"),
        scenario.seed
    );
    for ca in &scenario.cas {
        let _ = writeln!(out, "  {}", describe(ca, scenario.start, end));
    }
    months(&mut out, &outcome.renewals);
    certificates(&mut out, scenario, &outcome.renewals);
    verdict(&mut out, outcome);
    casualties(&mut out, scenario, "Served after its end", &outcome.expired);
    casualties(&mut out, scenario, "Late for the CA's window", &outcome.late);
    out
}

fn describe(ca: &super::CaModel, start: SystemTime, end: SystemTime) -> String {
    let days = |lifetime: Duration| match lifetime.as_secs() / 3600 {
        hours if hours < 240 => format!("{hours} h"),
        hours => format!("{} d", hours / 24),
    };
    let in_force = ca.lifetimes.iter().rev().find(|(from, _)| *from <= start).or(ca.lifetimes.first());
    let mut text = format!("{}: {}", ca.name, in_force.map_or_else(String::new, |(_, l)| days(*l)));
    for (from, lifetime) in ca.lifetimes.iter().filter(|(from, _)| *from > start && *from < end) {
        let _ = write!(text, ", {} from {}", days(*lifetime), date(*from));
    }
    let down: Duration = ca.outages.iter().map(|o| o.end.duration_since(o.start).unwrap_or_default()).sum();
    if !down.is_zero() {
        let longest = ca.outages.iter().filter_map(|o| o.end.duration_since(o.start).ok()).max();
        let hours = |d: Duration| d.as_secs() / 3600;
        let longest = longest.map_or(0, hours);
        let _ = write!(
            text,
            "; down {}, {} h in all, {longest} h at most",
            count(ca.outages.len() as u64, "time"),
            hours(down)
        );
    }
    for (at, share) in ca.revocations.iter().filter(|(at, _)| *at < end) {
        let _ = write!(text, "; {:.0} % revoked on {}", share * 100.0, date(*at));
    }
    text
}

fn months(out: &mut String, renewals: &[Renewal]) {
    let mut months: BTreeMap<String, (u64, BTreeMap<u64, u64>)> = BTreeMap::new();
    for renewal in renewals {
        let month = months.entry(date(renewal.at).chars().take(7).collect()).or_default();
        let hour = renewal.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 3600;
        month.0 += 1;
        *month.1.entry(hour).or_default() += 1;
    }
    let most = months.values().map(|(orders, _)| *orders).max().unwrap_or(1).max(1);
    let _ = writeln!(out, "\n  month    orders  busiest hour");
    for (month, (orders, hours)) in &months {
        let busiest = hours.values().max().copied().unwrap_or(0);
        let bar = "#".repeat(usize::try_from((orders * BAR).div_ceil(most)).unwrap_or(0));
        let _ = writeln!(out, "  {month}  {orders:6}  {busiest:12}  {bar}");
    }
}

fn certificates(out: &mut String, scenario: &Scenario, renewals: &[Renewal]) {
    let _ = writeln!(out, "\nOrdered on");
    for (n, certificate) in scenario.certificates.iter().enumerate().take(SHOWN) {
        let own: Vec<&Renewal> = renewals.iter().filter(|r| r.certificate == n).collect();
        let names: Vec<String> = certificate.names.iter().map(ToString::to_string).collect();
        let dates: Vec<String> = own.iter().take(DATES).map(|r| date(r.at)).collect();
        let more = match own.len().saturating_sub(DATES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let _ = writeln!(out, "  {}\n    {}{more}", names.join(", "), dates.join(" "));
    }
    if let Some(more) = scenario.certificates.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        let _ = writeln!(out, "  and {more} certificates more");
    }
}

fn verdict(out: &mut String, outcome: &Outcome) {
    let (busiest, mean) = outcome.spread();
    let violations: u64 = outcome.violations.values().sum();
    let _ = writeln!(out);
    let _ = writeln!(out, "  served after their end    {}", outcome.expired.len());
    let _ = writeln!(out, "  refused over a limit      {violations}");
    let _ = writeln!(out, "  late for the CA's window  {}", outcome.late.len());
    if let Some(closest) = outcome.closest {
        let _ = writeln!(out, "  least left at a renewal   {:.0} % of the lifetime", closest * 100.0);
    }
    let _ = writeln!(out, "  held back by the ledger   {}", count(outcome.held_back, "time"));
    let _ = writeln!(out, "  failed: the CA was down   {}", count(outcome.failed_down, "time"));
    let _ = writeln!(out, "  ordered from a fallback   {}", outcome.fallen_back);
    let _ = writeln!(out, "  restarts                  {}", outcome.restarts);
    if busiest > 0 {
        let _ =
            writeln!(out, "  busiest undisturbed hour  {busiest} orders, {mean:.1} on average in its month");
    }
}

/// `1 order`, `2 orders`.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Whom it concerns, and by how much.
fn casualties(out: &mut String, scenario: &Scenario, what: &str, list: &[(usize, Duration)]) {
    for (n, by) in list.iter().take(NAMED) {
        let names = scenario.certificates.get(*n).map_or(&[][..], |certificate| &certificate.names);
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "\n{what}: {} by {:.1} h", names.join(", "), by.as_secs_f64() / 3600.0);
    }
    if let Some(more) = list.len().checked_sub(NAMED).filter(|more| *more > 0) {
        let _ = writeln!(out, "  and {more} times more");
    }
}

fn date(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .map(|t| t.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d").to_string())
        .unwrap_or_default()
}
