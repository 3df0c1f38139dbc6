//! What a vendor's fake holds: a zone with records that are none of our business.

use serde_json::Value;

use crate::support::connect::{Asked, Said};

pub const ZONE: &str = "example.com";
pub const FOREIGN: &str = "somebody-else";
/// The names that the suite writes at: below the apex, and deeper.
pub const NAMES: [&str; 2] = ["_acme-challenge.example.com", "_acme-challenge.deep.www.example.com"];

/// Where DuckDNS can hold a value.
pub const DUCK: &str = "_acme-challenge.home.duckdns.org";

/// What a fake says; `Err` tells what about the request is not as documented.
pub type Answer = Result<Said, String>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub id: u64,
    /// Without a final dot.
    pub name: String,
    pub kind: String,
    /// Without quotes.
    pub value: String,
    pub ttl: u64,
}

#[derive(Debug)]
pub struct Zone {
    pub records: Vec<Record>,
    /// Whether a change waits to be published.
    pub dirty: bool,
    /// Sessions and tokens that the fake has given out.
    pub sessions: Vec<String>,
    next: u64,
}

impl Zone {
    pub fn new() -> Self {
        let mut zone = Self { records: Vec::new(), dirty: false, sessions: Vec::new(), next: 4001 };
        zone.add(ZONE, "A", "192.0.2.1", 3600);
        zone.add(ZONE, "MX", "mail.example.com", 3600);
        zone.add(ZONE, "TXT", "v=spf1 mx -all", 3600);
        zone.add(NAMES[0], "TXT", FOREIGN, 3600);
        zone
    }

    pub fn add(&mut self, name: &str, kind: &str, value: &str, ttl: u64) -> u64 {
        let (name, kind, value) = (name.to_owned(), kind.to_owned(), value.to_owned());
        self.records.push(Record { id: self.next, name, kind, value, ttl });
        self.next += 1;
        self.next - 1
    }

    pub fn holds(&self, name: &str, value: &str) -> bool {
        self.at(name, "TXT").iter().any(|record| record.value == value)
    }

    pub fn at(&self, name: &str, kind: &str) -> Vec<&Record> {
        self.records.iter().filter(|record| record.name == name && record.kind == kind).collect()
    }

    pub fn remove(&mut self, id: &str) -> bool {
        let before = self.records.len();
        self.records.retain(|record| record.id.to_string() != id);
        self.records.len() < before
    }

    pub fn remove_set(&mut self, name: &str, kind: &str) {
        self.records.retain(|record| record.name != name || record.kind != kind);
    }

    /// What is published at a name, sorted.
    pub fn txt(&self, name: &str) -> Vec<String> {
        let mut values: Vec<String> = self.at(name, "TXT").iter().map(|r| r.value.clone()).collect();
        values.sort();
        values
    }

    /// Everything that the suite does not write.
    pub fn others(&self) -> Vec<(String, String, String)> {
        let foreign =
            |r: &&Record| r.kind != "TXT" || !NAMES.contains(&r.name.as_str()) || r.value == FOREIGN;
        let triple = |r: &Record| (r.name.clone(), r.kind.clone(), r.value.clone());
        let mut others: Vec<_> = self.records.iter().filter(foreign).map(triple).collect();
        others.sort();
        others
    }
}

/// `a.example.com` as `a`, the zone itself as `apex`.
pub fn relative(name: &str, apex: &str) -> String {
    if name == ZONE { apex.to_owned() } else { name.strip_suffix(".example.com").unwrap_or(name).to_owned() }
}

pub fn full(name: &str, apex: &str) -> String {
    if name == apex { ZONE.to_owned() } else { format!("{name}.{ZONE}") }
}

pub fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// The text inside quotes; it has to be in quotes.
pub fn unquoted(text: &str) -> Result<String, String> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    inner.map(str::to_owned).ok_or_else(|| format!("not in quotes: {text}"))
}

/// The text, with or without quotes.
pub fn bare(text: &str) -> String {
    unquoted(text).unwrap_or_else(|_| text.to_owned())
}

/// Fails unless the object has exactly these keys, in any order.
pub fn keys(value: &Value, wanted: &[&str]) -> Result<(), String> {
    let object = value.as_object().ok_or_else(|| format!("not an object: {value}"))?;
    let mut found: Vec<&str> = object.keys().map(String::as_str).collect();
    let mut wanted = wanted.to_vec();
    found.sort_unstable();
    wanted.sort_unstable();
    want(found == wanted, || format!("keys {found:?} instead of {wanted:?}"))
}

pub fn want(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

pub fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("not a string: {value}"))
}

pub fn ttl(value: &Value, least: u64) -> Result<u64, String> {
    let ttl = value.as_u64().ok_or_else(|| format!("not a number: {value}"))?;
    want(ttl >= least, || format!("a TTL of {ttl}, below {least}"))?;
    Ok(ttl)
}

pub fn is_json(asked: &Asked) -> Result<(), String> {
    want(asked.header("content-type").starts_with("application/json"), || "not sent as JSON".to_owned())
}

/// A request that nothing in the vendor's documents explains.
pub fn undocumented(asked: &Asked) -> Answer {
    Err(format!("no such call: {} {}?{} {}", asked.method, asked.path, asked.query, asked.text()))
}
