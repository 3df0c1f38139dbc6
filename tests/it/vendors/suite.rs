//! The contract itself, and the world of fakes that it runs in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use starlock::clock::SystemClock;
use starlock::dns::{
    CommonKeys, DnsError, ProviderKind, ProviderSpec, Surroundings, TxtProvider, TxtRecord, VendorValue,
    ZoneTurns, build, vendors,
};
use starlock::name::DnsName;
use starlock::resolver::Resolver;
use starlock::secret::{Secret, SecretSource};

use super::zone::{Answer, DUCK, FOREIGN, NAMES, ZONE, Zone};
use crate::support::connect::{self, Asked, Said};

/// One vendor's fake.
pub struct Fake {
    pub name: &'static str,
    /// Where its API is.
    pub hosts: &'static [&'static str],
    /// Keys of the configuration that work.
    pub keys: fn() -> Vec<(&'static str, String)>,
    /// The same with credentials that do not.
    pub wrong: fn() -> Vec<(&'static str, String)>,
    pub answer: fn(&mut Zone, &Asked) -> Answer,
    /// Whether what is left of the vendor's refusal is told with doubt, as something that may pass.
    pub doubts: bool,
}

fn first_name(vendor: &str) -> &'static str {
    if vendor == "duckdns" { DUCK } else { NAMES[0] }
}

/// Keys that are plain text.
pub fn pairs(pairs: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    pairs.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
}

/// A vendor as it is now.
struct State {
    zone: Zone,
    /// Answered to everything while it is set.
    trouble: Option<u16>,
    violations: Vec<String>,
}

#[derive(Clone)]
pub struct World(Arc<BTreeMap<&'static str, Mutex<State>>>, Arc<Vec<(&'static str, &'static Fake)>>);

impl World {
    pub fn new(fakes: &[&'static Fake]) -> Self {
        let state = || Mutex::new(State { zone: Zone::new(), trouble: None, violations: Vec::new() });
        let hosts = fakes.iter().flat_map(|fake| fake.hosts.iter().map(move |host| (*host, *fake)));
        Self(Arc::new(fakes.iter().map(|fake| (fake.name, state())).collect()), Arc::new(hosts.collect()))
    }

    pub fn answer(&self) -> connect::Answer {
        let world = self.clone();
        Arc::new(move |asked| world.respond(asked))
    }

    fn state(&self, vendor: &str) -> MutexGuard<'_, State> {
        self.0[vendor].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn respond(&self, asked: &Asked) -> Said {
        let Some((_, fake)) = self.1.iter().find(|(host, _)| *host == asked.host) else {
            panic!("nobody is {}", asked.host)
        };
        let mut state = self.state(fake.name);
        if let Some(status) = state.trouble {
            return Said::new(status, "{\"message\": \"trouble\"}").with("retry-after", "0");
        }
        match (fake.answer)(&mut state.zone, asked) {
            Ok(said) if said.headers.iter().any(|(field, _)| *field == "content-type") => said,
            Ok(said) => said.with("content-type", "application/json"),
            Err(wrong) => {
                let wrong = format!("{} {}{}: {wrong}", asked.method, asked.host, asked.path);
                state.violations.push(wrong.clone());
                Said::new(400, wrong)
            }
        }
    }
}

/// Every vendor through the suite, at once. What went wrong, one line each.
pub async fn run(fakes: &[&'static Fake], world: &World) -> Vec<String> {
    let each = fakes.iter().map(|fake| async {
        let done = tokio::time::timeout(Duration::from_secs(150), one(fake, world)).await;
        let mut problems: Vec<String> = world.state(fake.name).violations.clone();
        problems.extend(match done {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(problem),
            Err(_) => Some("it took too long".to_owned()),
        });
        eprintln!("{}: {}", fake.name, if problems.is_empty() { "ok" } else { "FAILED" });
        problems.into_iter().map(|problem| format!("{}: {problem}", fake.name)).collect::<Vec<_>>()
    });
    join_all(each).await.concat()
}

async fn one(fake: &Fake, world: &World) -> Result<(), String> {
    let provider = provider(fake.name, &(fake.keys)());
    let first = first_name(fake.name);
    let seen = |name: &str| {
        let state = world.state(fake.name);
        if state.zone.dirty { vec!["(not published)".to_owned()] } else { state.zone.txt(name) }
    };
    let before = world.state(fake.name).zone.others();
    // Where one value stands, there is no room for somebody else's.
    if provider.holds_one_value() {
        single(&*provider, first, &seen).await?;
    } else {
        contract(&*provider, NAMES[0], &[FOREIGN], &seen).await?;
        contract(&*provider, NAMES[1], &[], &seen).await?;
        at_once(&*provider, &seen).await?;
        let after = world.state(fake.name).zone.others();
        if before != after {
            return Err(format!("other records were touched: {before:?} became {after:?}"));
        }
    }
    refusal(fake, world).await?;
    for status in [429, 500] {
        world.state(fake.name).trouble = Some(status);
        for fresh in [provider.clone(), self::provider(fake.name, &(fake.keys)())] {
            match fresh.add_txt(&record(first, "later")).await {
                Err(DnsError::Unavailable(said)) => no_secret(fake, &said, &(fake.keys)())?,
                other => return Err(format!("HTTP {status} gave {other:?}")),
            }
        }
        world.state(fake.name).trouble = None;
    }
    provider.add_txt(&record(first, "later")).await.map_err(|e| format!("after the trouble: {e}"))?;
    provider.remove_txt(&record(first, "later")).await.map_err(|e| format!("after the trouble: {e}"))
}

/// The contract of `TxtProvider`, at a name where `others` stand already. `seen` gives what is published there, sorted.
pub async fn contract(
    provider: &dyn TxtProvider,
    name: &str,
    others: &[&str],
    seen: &(dyn Fn(&str) -> Vec<String> + Sync),
) -> Result<(), String> {
    // The first value begins with a dash, as one in sixty-four does.
    let (apex, wild) = ("-apex_9Bx0ZpQnJ2hU5wK8sYtGvC1dFeRmLqAoTi3N7b", "wild-4XyZ");
    let steps: &[(bool, &str, &[&str])] = &[
        (true, apex, &[apex]),
        (true, wild, &[apex, wild]),
        (true, apex, &[apex, wild]),
        (false, apex, &[wild]),
        (false, apex, &[wild]),
        (true, wild, &[wild]),
        (false, wild, &[]),
        (false, wild, &[]),
    ];
    for (number, (add, value, standing)) in steps.iter().enumerate() {
        let record = record(name, value);
        let done = if *add { provider.add_txt(&record).await } else { provider.remove_txt(&record).await };
        done.map_err(|error| format!("step {number} at {name}: {error}"))?;
        let mut expected: Vec<String> = standing.iter().chain(others).map(|v| (*v).to_owned()).collect();
        expected.sort();
        let found = seen(name);
        if found != expected {
            return Err(format!("step {number} at {name}: {found:?} stand instead of {expected:?}"));
        }
    }
    Ok(())
}

/// Several orders at once: vendors whose API is to read a set and write it back must not lose a value.
async fn at_once(
    provider: &dyn TxtProvider,
    seen: &(dyn Fn(&str) -> Vec<String> + Sync),
) -> Result<(), String> {
    let values = ["one", "two", "three", "four"];
    for (add, expected) in [(true, &["four", "one", "three", "two"][..]), (false, &[])] {
        let calls = values.iter().map(|value| async {
            let record = record(NAMES[1], value);
            if add { provider.add_txt(&record).await } else { provider.remove_txt(&record).await }
        });
        for done in join_all(calls).await {
            done.map_err(|error| format!("at once: {error}"))?;
        }
        if seen(NAMES[1]) != expected {
            return Err(format!("at once: {:?} stand instead of {expected:?}", seen(NAMES[1])));
        }
    }
    Ok(())
}

/// What is left of it where one value can stand: the newer replaces, and removing the older does not hurt it.
async fn single(
    provider: &dyn TxtProvider,
    name: &str,
    seen: &(dyn Fn(&str) -> Vec<String> + Sync),
) -> Result<(), String> {
    let steps: &[(bool, &str, &[&str])] = &[
        (true, "apex", &["apex"]),
        (true, "apex", &["apex"]),
        (true, "wild", &["wild"]),
        (false, "apex", &["wild"]),
        (false, "wild", &[]),
        (false, "wild", &[]),
    ];
    for (number, (add, value, standing)) in steps.iter().enumerate() {
        let record = record(name, value);
        let done = if *add { provider.add_txt(&record).await } else { provider.remove_txt(&record).await };
        done.map_err(|error| format!("step {number}: {error}"))?;
        if seen(name) != *standing {
            return Err(format!("step {number}: {:?} stand instead of {standing:?}", seen(name)));
        }
    }
    Ok(())
}

async fn refusal(fake: &Fake, world: &World) -> Result<(), String> {
    let wrong = (fake.wrong)();
    let before = world.state(fake.name).zone.records.clone();
    let said = match provider(fake.name, &wrong).add_txt(&record(first_name(fake.name), "v")).await {
        Err(DnsError::Refused(said)) => said,
        Err(DnsError::Unavailable(said)) if fake.doubts => said,
        other => return Err(format!("wrong credentials gave {other:?}")),
    };
    let row = vendors().iter().find(|row| row.name == fake.name).unwrap();
    let secret = row.keys.iter().find(|key| key.secret && key.required).unwrap();
    if !said.contains(&format!("`{}`", secret.name)) {
        return Err(format!("the refusal does not name `{}`: {said}", secret.name));
    }
    no_secret(fake, &said, &wrong)?;
    if world.state(fake.name).zone.records != before {
        return Err("wrong credentials changed the zone".to_owned());
    }
    Ok(())
}

fn no_secret(fake: &Fake, said: &str, given: &[(&'static str, String)]) -> Result<(), String> {
    let row = vendors().iter().find(|row| row.name == fake.name).unwrap();
    for (key, value) in given.iter().filter(|(key, _)| row.keys.iter().any(|k| k.name == *key && k.secret)) {
        if said.contains(value.as_str()) {
            return Err(format!("`{key}` is told: {said}"));
        }
    }
    Ok(())
}

pub fn record(name: &str, value: &str) -> TxtRecord {
    TxtRecord { name: DnsName::parse(name).unwrap(), value: value.to_owned() }
}

/// A provider as the configuration would give it, that knows its zone.
pub fn provider(vendor: &'static str, given: &[(&'static str, String)]) -> Arc<dyn TxtProvider> {
    let row = vendors().iter().find(|row| row.name == vendor).unwrap_or_else(|| panic!("no {vendor}"));
    let value = |(key, text): &(&'static str, String)| {
        let secret =
            row.keys.iter().find(|k| k.name == *key).unwrap_or_else(|| panic!("{vendor}.{key}")).secret;
        let plain = || VendorValue::Secret(SecretSource::Plain(Secret::new(text.clone())));
        (*key, if secret { plain() } else { VendorValue::Text(text.clone()) })
    };
    let zone = if vendor == "duckdns" { "duckdns.org" } else { ZONE };
    let spec = ProviderSpec {
        kind: ProviderKind::Vendor { name: vendor, keys: given.iter().map(value).collect() },
        common: CommonKeys { zone: DnsName::parse(zone).ok(), ..CommonKeys::default() },
    };
    let with = Surroundings {
        resolver: Arc::new(Resolver::new(vec![])),
        clock: Arc::new(SystemClock),
        turns: ZoneTurns::new(),
        builtin: None,
    };
    build(&spec, &with).unwrap()
}
