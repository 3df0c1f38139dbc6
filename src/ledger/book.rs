//! What a CA has counted, as pure arithmetic: one number for each thing that is limited.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use crate::issuer::{CaLimits, Rate, Spent};
use crate::name::HostPattern;

/// One more failure in a row is forgiven each day (Let's Encrypt's documentation of pauses).
const PAUSE_REFILL: Duration = Duration::from_secs(24 * 3600);
/// What was reserved waits so long for the end of its order: Let's Encrypt keeps one for a week, and then it cannot end well.
const OPEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// So long an order that was made counts as one that will be signed: whatever is tried again within hours is over by then, and what
/// hangs, or is configured no more, must not hold the others of its domain up for long.
const HELD: Duration = Duration::from_secs(24 * 3600);
/// An older one that is tried again may be signed at any moment of that attempt.
const TRIED: Duration = Duration::from_secs(3600);

/// What a CA limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Limit {
    /// Certificates for one exact set of names.
    Names,
    /// Certificates for one registered domain.
    Domain,
    /// Orders of the account.
    Orders,
    /// Failed authorizations of one name.
    Failures,
    /// Failed authorizations of one name in a row, before the CA pauses it.
    Pause,
    /// Accounts registered from here.
    Accounts,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 6] =
        [Self::Names, Self::Domain, Self::Orders, Self::Failures, Self::Pause, Self::Accounts];

    /// One word for metrics and storage; the key of `acme.limits`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Domain => "domain",
            Self::Orders => "orders",
            Self::Failures => "failures",
            Self::Pause => "pause",
            Self::Accounts => "accounts",
        }
    }

    /// The rate that `limits` sets for it.
    pub fn rate(self, limits: &CaLimits) -> Option<Rate> {
        match self {
            Self::Names => limits.names,
            Self::Domain => limits.domain,
            Self::Orders => limits.orders,
            Self::Failures => limits.failures,
            Self::Accounts => limits.accounts,
            Self::Pause => limits.pause_after.map(|burst| Rate { burst, every: PAUSE_REFILL }),
        }
    }
}

/// An order that is about to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The names, sorted.
    pub names: &'a [HostPattern],
    /// Whether this exact set was issued before by the same CA: it escapes the limits on orders and on registered domains.
    pub renewal: bool,
    /// Whether the CA wants it now (ARI: inside the window, with `replaces`): it escapes every limit.
    pub exempt: bool,
    /// Whether the account has to be registered first.
    pub registers: bool,
    /// Whether it goes on with an order that the CA has taken already: nothing of that is measured again.
    pub resumes: bool,
}

/// What is reserved for an order from before it is sent until it is known how it ended, over restarts and reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// One of each registered domain and one of the exact set.
    First,
    /// One of the exact set.
    Renewal,
    /// Nothing.
    Exempt,
}

impl Open {
    const ALL: [Self; 3] = [Self::First, Self::Renewal, Self::Exempt];

    fn of(ask: &Ask<'_>) -> Self {
        match (ask.exempt, ask.renewal) {
            (true, _) => Self::Exempt,
            (false, true) => Self::Renewal,
            (false, false) => Self::First,
        }
    }

    /// Beside the exact set of names, so that it lies with what is counted for it.
    fn entry(self, names: &[HostPattern]) -> Entry {
        let kind = match self {
            Self::First => "open-first",
            Self::Renewal => "open-renewal",
            Self::Exempt => "open-exempt",
        };
        format!("{kind}:{}", set(names))
    }

    /// What the CA counts when it signs.
    fn units(self, names: &[HostPattern]) -> Vec<(Limit, String)> {
        let mut units = Vec::new();
        if self != Self::Exempt {
            units.push((Limit::Names, set(names)));
        }
        if self == Self::First {
            units.extend(domains(names).into_iter().map(|domain| (Limit::Domain, domain)));
        }
        units
    }
}

/// Why an order would be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which limit.
    pub limit: Limit,
    /// What it is counted for: a name, a registered domain, or the names of the set.
    pub of: String,
    /// When the CA would take the order.
    pub until: SystemTime,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            Limit::Names => write!(f, "the CA's limit of certificates for exactly {}", self.of),
            Limit::Domain => write!(f, "the CA's limit of certificates for {}", self.of),
            Limit::Orders => f.write_str("the CA's limit of orders for this account"),
            Limit::Failures => write!(f, "the CA's limit of failed validations for {}", self.of),
            Limit::Pause => write!(f, "the failures in a row for {}, after which the CA pauses it", self.of),
            Limit::Accounts => f.write_str("the CA's limit of new accounts"),
        }
    }
}

/// One thing that is counted, as it is named in storage.
pub(super) type Entry = String;

/// What a CA has counted. An entry is the moment at which nothing of it is used any more (GCRA's theoretical arrival time),
/// in milliseconds since 1970; one that lies in the past says nothing and is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    pub(super) entries: BTreeMap<Entry, u64>,
}

impl Book {
    /// Whether the CA would take `ask` at `now`; the refusal is the one that lasts longest. What other orders under way will use when
    /// they end is used already.
    pub fn check(&self, limits: &CaLimits, ask: &Ask<'_>, now: SystemTime) -> Result<(), Refusal> {
        let own = set(ask.names);
        let mut worst: Option<Refusal> = None;
        for (limit, of) in looked_at(ask) {
            let Some(rate) = limit.rate(limits) else { continue };
            // Of other sets of names only what they share is of interest. Few of thousands can, and only those are looked at closely.
            let shares = |open: Open, names: &str| {
                open == Open::First && names.contains(&of) && domains(&parsed(names)).contains(&of)
            };
            let held = match limit {
                Limit::Domain => {
                    self.under_way(now).filter(|(open, names)| *names != own && shares(*open, names)).count()
                }
                _ => 0,
            };
            let held = u32::try_from(held).unwrap_or(u32::MAX);
            let until = self.free_at(limit, &of, rate, held, now);
            if until > now && worst.as_ref().is_none_or(|w| w.until < until) {
                worst = Some(Refusal { limit, of, until });
            }
        }
        worst.map_or(Ok(()), Err)
    }

    /// Reserves what the CA will count if it takes the order and signs, unless it would refuse it (never if `force`d). It belongs to
    /// the order until [`Book::settle`] is told how that ended: an order that is dropped half-way and resumed later is counted once.
    /// Whether something was reserved for these names before is the answer.
    ///
    /// An account is counted when it is there: of many first orders one registers it, and they must not use the limit up before.
    pub fn begin(
        &mut self,
        limits: &CaLimits,
        ask: &Ask<'_>,
        now: SystemTime,
        force: bool,
    ) -> Result<bool, Refusal> {
        self.set_clock(limits, ask, now);
        if !force {
            self.check(limits, ask, now)?;
        }
        let before = self.open(ask.names, now);
        let open = match before.filter(|_| ask.resumes) {
            Some(open) => {
                let until = self.entries.get(&open.entry(ask.names)).copied().unwrap_or_default();
                self.mark(ask.names, open, until.max(millis(now + OPEN - HELD + TRIED)));
                open
            }
            None => {
                // What was reserved for an order that never was, or is gone, is reserved for this one.
                let open = Open::of(ask);
                self.mark(ask.names, open, millis(now + OPEN));
                open
            }
        };
        if open == Open::First && !ask.resumes {
            self.take(limits, Limit::Orders, "", now);
        }
        Ok(before.is_some())
    }

    /// Takes in what the CA has counted since [`Book::begin`]. What is reserved stays while the order is under way; it is counted if
    /// a certificate was signed, and given back if none ever will be.
    pub fn settle(&mut self, limits: &CaLimits, ask: &Ask<'_>, spent: &Spent, now: SystemTime) {
        let mut open = self.open(ask.names, now).unwrap_or_else(|| Open::of(ask));
        if spent.registered {
            self.take(limits, Limit::Accounts, "", now);
        }
        if spent.ordered && open == Open::Exempt && !spent.replaced {
            // The CA did not take it as a successor after all: it counts like any other.
            open = Open::of(&Ask { exempt: false, ..*ask });
            self.mark(ask.names, open, millis(now + OPEN));
            if open == Open::First {
                self.take(limits, Limit::Orders, "", now);
            }
        } else if open == Open::First {
            match (spent.ordered, ask.resumes) {
                (true, true) => self.take(limits, Limit::Orders, "", now), // the former one was gone
                (false, false) => self.give_back(limits, Limit::Orders, ""),
                _ => {}
            }
        }
        if spent.signed {
            // The CA counts when it signs, however long ago the order was made.
            for (limit, of) in open.units(ask.names) {
                self.take(limits, limit, &of, now);
            }
            // Whoever signs had one left: what was demanded in spite of the book shows that too much was in it.
            self.set_clock(limits, ask, now);
        }
        if !spent.open {
            self.unmark(ask.names);
        } else if spent.signed {
            // What is left of the order is to fetch the certificate.
            self.mark(ask.names, Open::Exempt, millis(now + OPEN));
        }
        for name in &spent.failed {
            for limit in [Limit::Failures, Limit::Pause] {
                self.take(limits, limit, name.as_str(), now);
            }
        }
        if spent.signed {
            for name in ask.names.iter().filter_map(HostPattern::base) {
                self.entries.remove(&entry(Limit::Pause, name.as_str()));
            }
        }
    }

    /// What is reserved for exactly `names`. One that a wrong clock wrote far ahead says nothing.
    fn open(&self, names: &[HostPattern], now: SystemTime) -> Option<Open> {
        let (from, to) = (millis(now), millis(now + OPEN));
        let stands = |open: &Open| {
            self.entries.get(&open.entry(names)).is_some_and(|until| (from + 1..=to).contains(until))
        };
        Open::ALL.into_iter().find(stands)
    }

    fn mark(&mut self, names: &[HostPattern], open: Open, until: u64) {
        self.unmark(names);
        self.entries.insert(open.entry(names), until);
    }

    fn unmark(&mut self, names: &[HostPattern]) {
        for open in Open::ALL {
            self.entries.remove(&open.entry(names));
        }
    }

    /// Orders under way that are likely to be signed, by what they will use then and for which names.
    fn under_way(&self, now: SystemTime) -> impl Iterator<Item = (Open, &str)> {
        let held = millis(now + OPEN - HELD) + 1..=millis(now + OPEN);
        [Open::First, Open::Renewal].into_iter().flat_map(move |open| {
            let (prefix, held) = (open.entry(&[]), held.clone());
            let all = self.entries.range(prefix.clone()..);
            all.map_while(move |(entry, until)| Some((entry.strip_prefix(&prefix)?, until)))
                .filter(move |(_, until)| held.contains(until))
                .map(move |(names, _)| (open, names))
        })
    }

    /// How many more of `limit` the CA allows at `now`, by the entry that is used most; `None` if it is not limited.
    pub fn remaining(&self, limits: &CaLimits, limit: Limit, now: SystemTime) -> Option<u32> {
        let rate = limit.rate(limits)?;
        let prefix = format!("{}:", limit.as_str());
        let mut used: BTreeMap<Entry, u32> = BTreeMap::new();
        for (open, names) in self.under_way(now).filter(|_| matches!(limit, Limit::Names | Limit::Domain)) {
            for (_, of) in open.units(&parsed(names)).into_iter().filter(|(of, _)| *of == limit) {
                *used.entry(entry(limit, &of)).or_default() += 1;
            }
        }
        let counted = self.entries.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        for (entry, end) in counted {
            let rest = Duration::from_millis(end.saturating_sub(millis(now)));
            let units = rest.as_millis().div_ceil(u128::from(unit(rate).max(1)));
            let used = used.entry(entry.clone()).or_default();
            *used = used.saturating_add(u32::try_from(units).unwrap_or(u32::MAX));
        }
        let most = used.values().max().copied().unwrap_or(0);
        Some(rate.burst.saturating_sub(most))
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets what says nothing any more.
    pub fn prune(&mut self, now: SystemTime) {
        self.entries.retain(|_, end| *end > millis(now));
    }

    /// From when on one more is allowed, if `held` are used beside what is counted.
    fn free_at(&self, limit: Limit, of: &str, rate: Rate, held: u32, now: SystemTime) -> SystemTime {
        if rate.burst == 0 {
            return now + rate.every;
        }
        let end = self.entries.get(&entry(limit, of)).copied().unwrap_or_default();
        let end = believed(end, limit, rate, now);
        let end = match held {
            0 => end,
            held => end.max(millis(now)).saturating_add(unit(rate).saturating_mul(u64::from(held))),
        };
        let rest = unit(rate).saturating_mul(u64::from(rate.burst - 1));
        SystemTime::UNIX_EPOCH + Duration::from_millis(end.saturating_sub(rest))
    }

    fn take(&mut self, limits: &CaLimits, limit: Limit, of: &str, now: SystemTime) {
        let Some(rate) = limit.rate(limits) else { return };
        let end = self.entries.entry(entry(limit, of)).or_default();
        *end = (*end).max(millis(now)).saturating_add(unit(rate));
    }

    /// No entry says more than is [`believed`] of it. What is demanded beyond that is counted, and can be given back.
    fn set_clock(&mut self, limits: &CaLimits, ask: &Ask<'_>, now: SystemTime) {
        for (limit, of) in looked_at(&Ask { exempt: false, renewal: false, resumes: false, ..*ask }) {
            let Some(rate) = limit.rate(limits) else { continue };
            if let Some(end) = self.entries.get_mut(&entry(limit, &of)) {
                *end = believed(*end, limit, rate, now);
            }
        }
    }

    fn give_back(&mut self, limits: &CaLimits, limit: Limit, of: &str) {
        let Some(rate) = limit.rate(limits) else { return };
        if let Some(end) = self.entries.get_mut(&entry(limit, of)) {
            *end = end.saturating_sub(unit(rate));
        }
    }
}

/// Every entry that `ask` is measured by.
pub(super) fn looked_at(ask: &Ask<'_>) -> Vec<(Limit, String)> {
    let mut all = Vec::new();
    if ask.registers {
        all.push((Limit::Accounts, String::new()));
    }
    if ask.resumes || ask.exempt {
        return all;
    }
    let open = Open::of(ask);
    all.extend(open.units(ask.names));
    if open == Open::First {
        all.push((Limit::Orders, String::new()));
    }
    for name in bases(ask.names) {
        all.push((Limit::Failures, name.clone()));
        all.push((Limit::Pause, name));
    }
    all
}

pub(super) fn entry(limit: Limit, of: &str) -> Entry {
    format!("{}:{of}", limit.as_str())
}

fn set(names: &[HostPattern]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The other way round.
fn parsed(set: &str) -> Vec<HostPattern> {
    set.split(',').filter_map(|name| HostPattern::parse(name).ok()).collect()
}

fn bases(names: &[HostPattern]) -> Vec<String> {
    let mut bases: Vec<String> =
        names.iter().map(|name| name.base().map_or_else(|| name.to_string(), ToString::to_string)).collect();
    bases.sort();
    bases.dedup();
    bases
}

/// The registered domains of `names` by the public suffix list that this binary was built with, sorted.
pub fn domains(names: &[HostPattern]) -> Vec<String> {
    let registered = |name: String| match psl::domain_str(&name) {
        Some(domain) => domain.to_owned(),
        None => name, // a public suffix itself, or an address
    };
    let mut domains: Vec<String> = bases(names).into_iter().map(registered).collect();
    domains.sort();
    domains.dedup();
    domains
}

/// A fiftieth slower than the CA says: it counts when it signs, which is later than when it is asked.
fn unit(rate: Rate) -> u64 {
    let every = rate.every + rate.every / 50;
    u64::try_from(every.as_millis()).unwrap_or(u64::MAX)
}

/// What an entry says at `now`. However far ahead a wrong clock has counted, no more than one burst is used. Of a domain it may be
/// more: what was under way for days is signed beside what was ordered since. Two bursts are more than that explains.
fn believed(end: u64, limit: Limit, rate: Rate, now: SystemTime) -> u64 {
    let burst = unit(rate).saturating_mul(u64::from(rate.burst));
    let most = |bursts: u64| millis(now).saturating_add(burst.saturating_mul(bursts));
    let likely = limit == Limit::Domain && end <= most(2);
    if likely { end } else { end.min(most(1)) }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::HostName;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn slower(every: Duration) -> Duration {
        every + every / 50
    }

    fn names(texts: &[&str]) -> Vec<HostPattern> {
        texts.iter().map(|text| HostPattern::parse(text).unwrap()).collect()
    }

    fn ask(names: &[HostPattern]) -> Ask<'_> {
        Ask { names, renewal: false, exempt: false, registers: false, resumes: false }
    }

    fn limits() -> CaLimits {
        let rate = |burst, every| Some(Rate { burst, every });
        CaLimits {
            names: rate(5, HOUR * 34),
            domain: rate(50, Duration::from_secs(202 * 60)),
            orders: rate(300, Duration::from_secs(36)),
            failures: rate(5, Duration::from_secs(720)),
            accounts: rate(10, Duration::from_secs(1080)),
            pause_after: Some(1152),
        }
    }

    /// The CA took the order, and no more is known of it.
    const ORDERED: Spent = took(false, false);
    const SIGNED: Spent = took(true, false);
    /// Dropped half-way, or the CA is down: the order stands.
    const LEFT: Spent = took(false, true);

    const fn took(signed: bool, open: bool) -> Spent {
        Spent { registered: false, ordered: true, replaced: false, signed, open, failed: Vec::new() }
    }

    fn order(book: &mut Book, ask: &Ask<'_>, now: SystemTime) -> Result<(), Refusal> {
        book.begin(&limits(), ask, now, false)?;
        book.settle(&limits(), ask, &SIGNED, now);
        Ok(())
    }

    type Attempt<'a> = (Ask<'a>, Option<Spent>);

    fn resumed(ask: Ask<'_>) -> Ask<'_> {
        Ask { resumes: true, ..ask }
    }

    fn left(book: &Book, now: SystemTime) -> [u32; 6] {
        Limit::ALL.map(|limit| book.remaining(&limits(), limit, now).unwrap())
    }

    #[test]
    fn a_restart_loop_stops_at_five() {
        let (mut book, set) = (Book::default(), names(&["*.example.com", "example.com"]));
        for n in 0..5 {
            order(&mut book, &ask(&set), at(n)).unwrap();
        }
        let refusal = order(&mut book, &ask(&set), at(5)).unwrap_err();
        assert_eq!((refusal.limit, refusal.until), (Limit::Names, at(0) + slower(HOUR * 34)));
        assert_eq!(
            refusal.to_string(),
            "the CA's limit of certificates for exactly *.example.com,example.com"
        );
        assert_eq!(book.remaining(&limits(), Limit::Names, at(5)), Some(0));
        order(&mut book, &ask(&set), at(0) + slower(HOUR * 34)).unwrap();
        let (mut book, exempt) = (Book::default(), Ask { exempt: true, ..ask(&set) });
        order(&mut book, &exempt, at(0)).unwrap();
        let left = book.remaining(&limits(), Limit::Names, at(0));
        assert_eq!(left, Some(4), "taken without `replaces`, it was counted after all");
    }

    #[test]
    fn what_is_exempt_is_not_counted() {
        let (mut book, set) = (Book::default(), names(&["example.com"]));
        let exempt = Ask { exempt: true, renewal: true, ..ask(&set) };
        for n in 0..100 {
            book.begin(&limits(), &exempt, at(n), false).unwrap();
            book.settle(&limits(), &exempt, &Spent { replaced: true, ..SIGNED }, at(n));
        }
        assert_eq!(book, Book::default());
        let renewal = Ask { renewal: true, ..ask(&set) };
        order(&mut book, &renewal, at(100)).unwrap();
        assert_eq!(book.remaining(&limits(), Limit::Domain, at(100)), Some(50));
        assert_eq!(book.remaining(&limits(), Limit::Orders, at(100)), Some(300));
        assert_eq!(book.remaining(&limits(), Limit::Names, at(100)), Some(4));
    }

    #[test]
    fn an_account_is_counted_once_it_is_there() {
        let set = names(&["a.example.com"]);
        let limits = CaLimits {
            accounts: Some(Rate { burst: 2, every: Duration::from_secs(3 * 3600) }),
            ..CaLimits::default()
        };
        let first = Ask { registers: true, ..ask(&set) };
        let registered = Spent { registered: true, ..SIGNED };
        // ask, what the CA counted, whether it is sent
        let mut book = Book::default();
        for (ask, spent, sent) in [
            (first, SIGNED, true), // somebody else was faster
            (Ask { exempt: true, ..first }, registered.clone(), true),
            (ask(&set), registered, true), // the CA had forgotten it
            (first, SIGNED, false),
            (Ask { exempt: true, ..first }, SIGNED, false), // ARI is about orders
            (Ask { resumes: true, ..first }, SIGNED, false),
            (ask(&set), SIGNED, true),
        ] {
            for _ in 0..5 {
                drop(book.begin(&limits, &ask, at(0), true)); // first orders at once, or a crash of each
            }
            let said = book.begin(&limits, &ask, at(0), false).map(|_| ());
            assert_eq!(said.is_ok(), sent, "{ask:?}: {said:?}");
            match said {
                Ok(()) => book.settle(&limits, &ask, &spent, at(0)),
                Err(refusal) => {
                    assert_eq!(
                        (refusal.limit, refusal.until),
                        (Limit::Accounts, at(0) + slower(Duration::from_secs(3 * 3600)))
                    );
                }
            }
        }
        book.check(&limits, &first, at(0) + slower(Duration::from_secs(3 * 3600))).unwrap();
    }

    #[test]
    fn an_order_that_came_to_nothing_is_given_back() {
        let (mut book, set) = (Book::default(), names(&["a.example.com"]));
        let ask = Ask { registers: true, ..ask(&set) };
        book.begin(&limits(), &ask, at(0), false).unwrap();
        book.settle(&limits(), &ask, &Spent::default(), at(1));
        book.prune(at(1));
        assert_eq!(book, Book::default());
        book.begin(&limits(), &ask, at(0), false).unwrap();
        let failed =
            Spent { failed: vec![HostName::parse("a.example.com").unwrap()], registered: true, ..ORDERED };
        book.settle(&limits(), &ask, &failed, at(1));
        assert_eq!(left(&book, at(1)), [5, 50, 299, 4, 1151, 9]);
        for n in 0..4 {
            book.begin(&limits(), &ask, at(n), true).unwrap();
            book.settle(&limits(), &ask, &failed, at(n));
        }
        let refusal = book.check(&limits(), &ask, at(5)).unwrap_err();
        assert_eq!((refusal.limit, refusal.of.as_str()), (Limit::Failures, "a.example.com"));
        assert_eq!(refusal.until, at(1) + slower(Duration::from_secs(720)), "one more each 12 minutes");
    }

    /// What is reserved belongs to the order, however often the process is interrupted before it ends.
    #[test]
    fn an_order_is_counted_once_however_often_it_is_interrupted() {
        let set = names(&["a.example.com"]);
        let (first, renewal) = (ask(&set), Ask { renewal: true, ..ask(&set) });
        let exempt = Ask { exempt: true, ..renewal };
        let (taken, succeeds) = (Spent::default(), Spent { replaced: true, ..ORDERED });
        let (went_on, signed) =
            (Spent { open: true, ..taken.clone() }, Spent { signed: true, ..taken.clone() });
        // Attempts with what the CA counted (`None`: the attempt was dropped), and what is left of sets, domains and orders.
        let cases: &[(&str, &[Attempt<'_>], [u32; 3])] = &[
            ("signed at once", &[(first, Some(SIGNED))], [4, 49, 299]),
            (
                "left and resumed",
                &[(first, Some(LEFT)), (resumed(first), Some(signed.clone()))],
                [4, 49, 299],
            ),
            (
                "the certificate is there and not fetched yet",
                &[(first, Some(Spent { signed: true, ..LEFT })), (resumed(first), Some(signed.clone()))],
                [4, 49, 299],
            ),
            (
                "dropped five times",
                &[
                    (first, None),
                    (resumed(first), None),
                    (resumed(first), None),
                    (resumed(first), None),
                    (resumed(first), Some(signed.clone())),
                ],
                [4, 49, 299],
            ),
            (
                "dropped before the CA heard of it",
                &[(first, None), (first, None), (first, Some(SIGNED))],
                [4, 49, 297],
            ),
            (
                "left and still standing",
                &[(renewal, Some(LEFT)), (resumed(renewal), Some(went_on))],
                [4, 50, 300],
            ),
            (
                "signed, and not fetched yet",
                &[(first, Some(Spent { signed: true, ..LEFT })), (resumed(first), None)],
                [4, 49, 299],
            ),
            (
                "signed, not fetched, and ordered again",
                &[(first, Some(Spent { signed: true, ..LEFT })), (resumed(first), Some(SIGNED))],
                [3, 48, 298],
            ),
            ("left and lost", &[(first, Some(LEFT)), (resumed(first), Some(taken))], [5, 50, 299]),
            (
                "lost, and another one made",
                &[(first, Some(LEFT)), (resumed(first), Some(SIGNED))],
                [4, 49, 298],
            ),
            ("known to the CA and not to us", &[(resumed(first), Some(signed.clone()))], [4, 49, 300]),
            ("signed and of no use", &[(renewal, Some(Spent { signed: true, ..ORDERED }))], [4, 50, 300]),
            (
                "a successor outside the window",
                &[(renewal, Some(Spent { signed: true, ..succeeds.clone() }))],
                [4, 50, 300],
            ),
            (
                "a successor inside",
                &[(exempt, Some(Spent { signed: true, ..succeeds.clone() }))],
                [5, 50, 300],
            ),
            (
                "inside, and ended outside",
                &[(exempt, Some(Spent { open: true, ..succeeds })), (resumed(renewal), Some(signed))],
                [5, 50, 300],
            ),
            ("dropped inside, ordered outside", &[(exempt, None), (renewal, Some(SIGNED))], [4, 50, 300]),
            (
                "not taken as a successor",
                &[(Ask { renewal: false, ..exempt }, Some(LEFT)), (resumed(first), Some(SIGNED))],
                [4, 49, 298],
            ),
        ];
        for (what, attempts, expected) in cases {
            let mut book = Book::default();
            for (ask, spent) in *attempts {
                book.begin(&limits(), ask, at(0), false).unwrap();
                if let Some(spent) = spent {
                    book.settle(&limits(), ask, spent, at(0));
                }
            }
            assert_eq!(left(&book, at(0))[..3], *expected, "{what}");
        }
    }

    #[test]
    fn an_order_under_way_goes_on_although_the_limit_is_used_up() {
        let (mut book, set) = (Book::default(), names(&["example.com"]));
        for n in 0..4 {
            order(&mut book, &ask(&set), at(n)).unwrap();
        }
        book.begin(&limits(), &ask(&set), at(4), false).unwrap();
        book.begin(&limits(), &Ask { resumes: true, ..ask(&set) }, at(5), false).unwrap();
        book.begin(&limits(), &ask(&set), at(6), false).unwrap(); // never sent: what was reserved is there for it
        book.settle(&limits(), &ask(&set), &SIGNED, at(7));
        assert_eq!(book.begin(&limits(), &ask(&set), at(8), false).unwrap_err().limit, Limit::Names);
        // Demanded in spite of that, and refused: as before.
        let before = book.clone();
        book.begin(&limits(), &ask(&set), at(8), true).unwrap();
        book.settle(&limits(), &ask(&set), &Spent::default(), at(8));
        assert_eq!(left(&book, at(8)), left(&before, at(8)));
        assert_eq!(
            book.check(&limits(), &ask(&set), at(8)).unwrap_err(),
            before.check(&limits(), &ask(&set), at(8)).unwrap_err()
        );
        // Nobody waits for an order for ever.
        book.begin(&limits(), &Ask { resumes: true, ..ask(&set) }, at(0), true).unwrap();
        book.prune(at(0) + OPEN);
        assert!(book.entries.keys().all(|entry| !entry.starts_with("open")), "{book:?}");
    }

    /// The CA counts when it signs: what is under way for hours is not refilled meanwhile, and used from its end on.
    #[test]
    fn what_is_under_way_for_long_is_counted_when_it_ends() {
        let sets: Vec<_> = (0..51).map(|n| names(&[&format!("h{n}.example.com")])).collect();
        let mut book = Book::default();
        for set in &sets[..50] {
            book.begin(&limits(), &ask(set), at(0), false).unwrap();
        }
        let refusal = book.begin(&limits(), &ask(&sets[50]), at(20 * 3600), false).unwrap_err();
        assert_eq!(refusal.limit, Limit::Domain);
        for set in &sets[..50] {
            let resumed = resumed(ask(set));
            book.begin(&limits(), &resumed, at(20 * 3600), false).unwrap();
            book.settle(&limits(), &resumed, &SIGNED, at(20 * 3600));
        }
        assert_eq!(left(&book, at(20 * 3600))[1], 0);
        let refusal = book.begin(&limits(), &ask(&sets[50]), at(20 * 3600), false).unwrap_err();
        assert_eq!(refusal.until, at(20 * 3600) + slower(Duration::from_secs(202 * 60)));
    }

    #[test]
    fn orders_that_hang_hold_the_others_up_for_a_day_and_are_counted_all_the_same() {
        let sets: Vec<_> = (0..100).map(|n| names(&[&format!("h{n}.example.com")])).collect();
        let (mut book, day) = (Book::default(), 24 * 3600);
        for set in &sets[..50] {
            book.begin(&limits(), &ask(set), at(0), false).unwrap();
        }
        book.check(&limits(), &ask(&sets[50]), at(day - 1)).unwrap_err();
        book.check(&limits(), &ask(&sets[50]), at(day)).unwrap();
        // While one is tried again it may be signed at any moment.
        for set in &sets[..50] {
            book.begin(&limits(), &resumed(ask(set)), at(2 * day), false).unwrap();
        }
        book.check(&limits(), &ask(&sets[50]), at(2 * day + 3599)).unwrap_err();
        book.check(&limits(), &ask(&sets[50]), at(2 * day + 3600)).unwrap();
        for set in &sets[50..] {
            book.begin(&limits(), &ask(set), at(3 * day), false).unwrap();
        }
        // All of them are signed at once, which is more than the limit: the CA wants it back before it takes another.
        for set in &sets {
            let resumed = resumed(ask(set));
            book.begin(&limits(), &resumed, at(3 * day), false).unwrap();
            book.settle(&limits(), &resumed, &SIGNED, at(3 * day));
        }
        let other = names(&["other.example.com"]);
        let refusal = book.check(&limits(), &ask(&other), at(3 * day)).unwrap_err();
        assert_eq!(refusal.until, at(3 * day) + slower(Duration::from_secs(202 * 60)) * 51);
    }

    #[test]
    fn a_success_ends_a_row_of_failures() {
        let (mut book, set) = (Book::default(), names(&["example.com"]));
        let limits = CaLimits { pause_after: Some(2), ..CaLimits::default() };
        let failed = Spent { failed: vec![HostName::parse("example.com").unwrap()], ..ORDERED };
        for n in 0..2 {
            book.begin(&limits, &ask(&set), at(n), false).unwrap();
            book.settle(&limits, &ask(&set), &failed, at(n));
        }
        assert_eq!(book.check(&limits, &ask(&set), at(2)).unwrap_err().limit, Limit::Pause);
        // An order from before is resumed, and signed.
        let resumed = Ask { resumes: true, ..ask(&set) };
        book.begin(&limits, &resumed, at(3), false).unwrap();
        book.settle(&limits, &resumed, &Spent { signed: true, ..Spent::default() }, at(3));
        book.check(&limits, &ask(&set), at(4)).unwrap();
    }

    #[test]
    fn a_clock_that_ran_ahead_costs_one_burst_at_most() {
        let (mut book, set) = (Book::default(), names(&["example.com"]));
        for _ in 0..3 {
            order(&mut book, &ask(&set), at(365 * 24 * 3600)).unwrap();
        }
        let refusal = book.check(&limits(), &ask(&set), at(0)).unwrap_err();
        assert_eq!(refusal.until, at(0) + slower(HOUR * 34), "a year ahead counts as all of it");
        assert!(book.begin(&limits(), &ask(&set), at(0), false).is_err());
        order(&mut book, &ask(&set), refusal.until).unwrap();
    }

    #[test]
    fn domains_are_those_of_the_public_suffix_list() {
        let set = names(&["*.a.example.co.uk", "b.example.co.uk", "x.github.io", "example.com", "com"]);
        assert_eq!(domains(&set), ["com", "example.co.uk", "example.com", "x.github.io"]);
    }

    proptest! {
        /// Judged by a token bucket that is counted the long way round.
        #[test]
        fn no_more_is_taken_than_a_bucket_holds(gaps in proptest::collection::vec(0u64..200_000, 1..200)) {
            let (mut book, set, mut now, mut tokens) = (Book::default(), names(&["example.com"]), 0, 5.0_f64);
            for gap in gaps {
                now += gap;
                #[allow(clippy::cast_precision_loss, reason = "small numbers")]
                let refill = gap as f64 / slower(HOUR * 34).as_secs_f64();
                tokens = (tokens + refill).min(5.0);
                let taken = order(&mut book, &ask(&set), at(now)).is_ok();
                prop_assert!(!taken || tokens > 0.999_999, "{tokens} left");
                prop_assert!(taken || tokens < 1.000_001, "{tokens} left and refused");
                tokens -= f64::from(u8::from(taken));
            }
        }

        #[test]
        fn what_is_refused_is_taken_at_the_promised_moment(gaps in proptest::collection::vec(0u64..100_000, 1..60)) {
            let (mut book, set, mut now) = (Book::default(), names(&["example.com"]), 0);
            for gap in gaps {
                now += gap;
                if let Err(refusal) = order(&mut book, &ask(&set), at(now)) {
                    prop_assert!(refusal.until > at(now));
                    prop_assert!(book.check(&limits(), &ask(&set), refusal.until).is_ok());
                    prop_assert!(book.check(&limits(), &ask(&set), refusal.until - Duration::from_millis(1)).is_err());
                }
            }
        }
    }
}
