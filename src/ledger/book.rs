//! What a CA has counted, as pure arithmetic: one number for each thing that is limited.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use crate::issuer::{CaLimits, Rate, Spent};
use crate::name::HostPattern;

/// One more failure in a row is forgiven each day (Let's Encrypt's documentation of pauses).
const PAUSE_REFILL: Duration = Duration::from_secs(24 * 3600);

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
    /// Whether the CA would take `ask` at `now`; the refusal is the one that lasts longest.
    pub fn check(&self, limits: &CaLimits, ask: &Ask<'_>, now: SystemTime) -> Result<(), Refusal> {
        let mut worst: Option<Refusal> = None;
        for (limit, of) in looked_at(ask) {
            let Some(rate) = limit.rate(limits) else { continue };
            let until = self.free_at(limit, &of, rate, now);
            if until > now && worst.as_ref().is_none_or(|w| w.until < until) {
                worst = Some(Refusal { limit, of, until });
            }
        }
        worst.map_or(Ok(()), Err)
    }

    /// Counts `ask` as the CA will if it takes the order and signs. What does not come to pass is given back by
    /// [`Book::settle`]: a crash in between leaves too much counted rather than too little. An account is counted when it is
    /// there: of many first orders one registers it, and they must not use the limit up before.
    pub fn reserve(&mut self, limits: &CaLimits, ask: &Ask<'_>, now: SystemTime) {
        for (limit, of) in spent_by(ask) {
            self.take(limits, limit, &of, now);
        }
    }

    /// Corrects what was reserved for `ask` by what the CA counted. `issued`: a certificate was signed.
    pub fn settle(&mut self, limits: &CaLimits, ask: &Ask<'_>, spent: &Spent, issued: bool, now: SystemTime) {
        // The CA did not take the order as a successor after all: it counts like any other.
        if ask.exempt && spent.ordered && !spent.replaced {
            self.reserve(limits, &Ask { exempt: false, ..*ask }, now);
        }
        if spent.registered {
            self.take(limits, Limit::Accounts, "", now);
        }
        let counted = |limit: Limit| match limit {
            _ if spent.replaced => false,
            Limit::Orders => spent.ordered,
            _ => issued,
        };
        let ask = &Ask { exempt: ask.exempt && (spent.replaced || !spent.ordered), ..*ask };
        for (limit, of) in spent_by(ask) {
            if !counted(limit) {
                self.give_back(limits, limit, &of);
            }
        }
        for name in &spent.failed {
            for limit in [Limit::Failures, Limit::Pause] {
                self.take(limits, limit, name.as_str(), now);
            }
        }
        if issued {
            for name in ask.names.iter().filter_map(HostPattern::base) {
                self.entries.remove(&entry(Limit::Pause, name.as_str()));
            }
        }
    }

    /// How many more of `limit` the CA allows at `now`, by the entry that is used most; `None` if it is not limited.
    pub fn remaining(&self, limits: &CaLimits, limit: Limit, now: SystemTime) -> Option<u32> {
        let rate = limit.rate(limits)?;
        let prefix = format!("{}:", limit.as_str());
        let used = self.entries.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let left = |end: u64| {
            let used = Duration::from_millis(end.saturating_sub(millis(now)));
            let units = used.as_millis().div_ceil(u128::from(unit(rate).max(1)));
            rate.burst.saturating_sub(u32::try_from(units).unwrap_or(u32::MAX))
        };
        Some(used.map(|(_, end)| left(*end)).min().unwrap_or(rate.burst))
    }

    /// Forgets what says nothing any more.
    pub fn prune(&mut self, now: SystemTime) {
        self.entries.retain(|_, end| *end > millis(now));
    }

    /// From when on one more is allowed. However far ahead a wrong clock has counted, no more than one burst is used.
    fn free_at(&self, limit: Limit, of: &str, rate: Rate, now: SystemTime) -> SystemTime {
        let end = self.entries.get(&entry(limit, of)).copied().unwrap_or_default();
        let burst = unit(rate).saturating_mul(u64::from(rate.burst));
        let end = end.min(millis(now).saturating_add(burst));
        SystemTime::UNIX_EPOCH + Duration::from_millis(end.saturating_sub(burst - unit(rate).min(burst)))
    }

    fn take(&mut self, limits: &CaLimits, limit: Limit, of: &str, now: SystemTime) {
        let Some(rate) = limit.rate(limits) else { return };
        let end = self.entries.entry(entry(limit, of)).or_default();
        let most = millis(now).saturating_add(unit(rate).saturating_mul(u64::from(rate.burst)));
        *end = (*end).max(millis(now)).saturating_add(unit(rate)).min(most);
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
    let mut all = spent_by(ask);
    if ask.registers {
        all.push((Limit::Accounts, String::new()));
    }
    if !ask.exempt {
        for name in bases(ask.names) {
            all.push((Limit::Failures, name.clone()));
            all.push((Limit::Pause, name));
        }
    }
    all
}

/// Every entry that `ask` uses one of when the CA signs, apart from the account.
fn spent_by(ask: &Ask<'_>) -> Vec<(Limit, String)> {
    let mut all = Vec::new();
    if ask.exempt {
        return all;
    }
    all.push((Limit::Names, set(ask.names)));
    if !ask.renewal {
        all.push((Limit::Orders, String::new()));
        all.extend(domains(ask.names).into_iter().map(|domain| (Limit::Domain, domain)));
    }
    all
}

pub(super) fn entry(limit: Limit, of: &str) -> Entry {
    format!("{}:{of}", limit.as_str())
}

fn set(names: &[HostPattern]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
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
        Ask { names, renewal: false, exempt: false, registers: false }
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

    const ORDERED: Spent = Spent { registered: false, ordered: true, replaced: false, failed: Vec::new() };

    fn order(book: &mut Book, ask: &Ask<'_>, now: SystemTime) -> Result<(), Refusal> {
        book.check(&limits(), ask, now)?;
        book.reserve(&limits(), ask, now);
        book.settle(&limits(), ask, &ORDERED, true, now);
        Ok(())
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
            book.check(&limits(), &exempt, at(n)).unwrap();
            book.reserve(&limits(), &exempt, at(n));
            book.settle(&limits(), &exempt, &Spent { replaced: true, ..ORDERED }, true, at(n));
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
        let registered = Spent { registered: true, ..ORDERED };
        // ask, what the CA counted, whether it is sent
        let mut book = Book::default();
        for (ask, spent, sent) in [
            (first, ORDERED, true), // somebody else was faster
            (Ask { exempt: true, ..first }, registered.clone(), true),
            (ask(&set), registered, true), // the CA had forgotten it
            (first, ORDERED, false),
            (Ask { exempt: true, ..first }, ORDERED, false), // ARI is about orders
            (ask(&set), ORDERED, true),
        ] {
            for _ in 0..5 {
                book.reserve(&limits, &ask, at(0)); // first orders at once, or a crash of each
            }
            let said = book.check(&limits, &ask, at(0));
            assert_eq!(said.is_ok(), sent, "{ask:?}: {said:?}");
            match said {
                Ok(()) => book.settle(&limits, &ask, &spent, true, at(0)),
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
        book.reserve(&limits(), &ask, at(0));
        book.settle(&limits(), &ask, &Spent::default(), false, at(1));
        book.prune(at(1));
        assert_eq!(book, Book::default());
        book.reserve(&limits(), &ask, at(0));
        let failed =
            Spent { failed: vec![HostName::parse("a.example.com").unwrap()], registered: true, ..ORDERED };
        book.settle(&limits(), &ask, &failed, false, at(1));
        let left = Limit::ALL.map(|limit| book.remaining(&limits(), limit, at(1)).unwrap());
        assert_eq!(left, [5, 50, 299, 4, 1151, 9]);
        for n in 0..4 {
            book.reserve(&limits(), &ask, at(n));
            book.settle(&limits(), &ask, &failed, false, at(n));
        }
        let refusal = book.check(&limits(), &ask, at(5)).unwrap_err();
        assert_eq!((refusal.limit, refusal.of.as_str()), (Limit::Failures, "a.example.com"));
        assert_eq!(refusal.until, at(1) + slower(Duration::from_secs(720)), "one more each 12 minutes");
    }

    #[test]
    fn a_success_ends_a_row_of_failures() {
        let (mut book, set) = (Book::default(), names(&["example.com"]));
        let limits = CaLimits { pause_after: Some(2), ..CaLimits::default() };
        let failed = Spent { failed: vec![HostName::parse("example.com").unwrap()], ..ORDERED };
        for n in 0..2 {
            book.check(&limits, &ask(&set), at(n)).unwrap();
            book.settle(&limits, &ask(&set), &failed, false, at(n));
        }
        assert_eq!(book.check(&limits, &ask(&set), at(2)).unwrap_err().limit, Limit::Pause);
        book.settle(&limits, &ask(&set), &ORDERED, true, at(3));
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
