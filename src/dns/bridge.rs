//! The bridge to the vendors of `dns-update`: finds the zone, takes turns, and says in words what a vendor answered.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dns_update::{DnsRecord, DnsRecordType, DnsUpdater, Error};

use super::redact::Redactor;
use super::turns::ZoneTurns;
use super::vendors::{Care, OwnApi, Row};
use super::zone::ZoneFinder;
use super::{DnsError, TxtProvider, TxtRecord};
use crate::name::DnsName;

/// Names whose last value is remembered, for vendors that hold one.
const MAX_LAST: usize = 1024;

/// Who writes.
pub(super) enum Client {
    Crate(Box<DnsUpdater>),
    Own(Box<dyn OwnApi>),
}

pub(super) struct Bridge {
    pub(super) id: String,
    pub(super) row: &'static Row,
    pub(super) client: Client,
    pub(super) ttl: u32,
    pub(super) timeout: Duration,
    pub(super) zones: ZoneFinder,
    pub(super) turns: ZoneTurns,
    pub(super) redactor: Redactor,
    /// For vendors that hold one value: what was set last, so that removing an older one does not remove a newer one.
    /// Losing it costs nothing: then there is no newer one either.
    pub(super) last: Mutex<HashMap<DnsName, String>>,
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bridge({})", self.id)
    }
}

impl Bridge {
    async fn bounded(
        &self,
        what: &str,
        record: &TxtRecord,
        call: impl Future<Output = dns_update::Result<()>> + Send,
    ) -> Result<(), DnsError> {
        let (name, vendor) = (&record.name, self.row.vendor.name);
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let context = format!("{vendor}: cannot {what} the TXT record {name}");
                Err(verdict(&error, &context, self.row, &self.redactor))
            }
            Err(_) => Err(DnsError::Unavailable(format!(
                "{vendor}: no answer within {} s while trying to {what} the TXT record {name}; it may have been done nevertheless",
                self.timeout.as_secs()
            ))),
        }
    }

    async fn add(&self, zone: &DnsName, record: &TxtRecord) -> dns_update::Result<()> {
        let updater = match &self.client {
            Client::Own(own) => return own.add(zone, record).await,
            Client::Crate(updater) => updater,
        };
        let (name, origin) = (record.name.as_str(), zone.as_str());
        let values = vec![DnsRecord::TXT(record.value.clone())];
        if self.row.one_value {
            return updater.set_rrset(name, DnsRecordType::TXT, self.ttl, values, origin).await;
        }
        if self.row.care != Care::None && stands(updater, zone, record).await? {
            return Ok(());
        }
        updater.add_to_rrset(name, DnsRecordType::TXT, self.ttl, values, origin).await
    }

    async fn remove(&self, zone: &DnsName, record: &TxtRecord) -> dns_update::Result<()> {
        let updater = match &self.client {
            Client::Own(own) => return own.remove(zone, record).await,
            Client::Crate(updater) => updater,
        };
        let (name, origin) = (record.name.as_str(), zone.as_str());
        if self.row.one_value {
            return updater.set_rrset(name, DnsRecordType::TXT, self.ttl, Vec::new(), origin).await;
        }
        if self.row.care == Care::LookFirst && !stands(updater, zone, record).await? {
            return Ok(());
        }
        let mut values = vec![DnsRecord::TXT(record.value.clone())];
        if self.row.care == Care::Quotes {
            values.push(DnsRecord::TXT(format!("\"{}\"", record.value)));
        }
        updater.remove_from_rrset(name, DnsRecordType::TXT, values, origin).await
    }

    fn last(&self) -> std::sync::MutexGuard<'_, HashMap<DnsName, String>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the value is at the name, in quotes or not.
async fn stands(updater: &DnsUpdater, zone: &DnsName, record: &TxtRecord) -> dns_update::Result<bool> {
    let listed = updater.list_rrset(record.name.as_str(), DnsRecordType::TXT, zone.as_str()).await?;
    let bare = |text: &str| {
        let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        inner.unwrap_or(text) == record.value
    };
    Ok(listed.iter().any(|record| matches!(record, DnsRecord::TXT(text) if bare(text))))
}

#[async_trait]
impl TxtProvider for Bridge {
    fn id(&self) -> &str {
        &self.id
    }

    fn holds_one_value(&self) -> bool {
        self.row.one_value
    }

    async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        let zone = self.zones.zone_of(&record.name).await?;
        let _turn = self.turns.take(zone.as_str()).await;
        if self.row.one_value {
            let mut last = self.last();
            if last.len() >= MAX_LAST {
                last.clear();
            }
            last.insert(record.name.clone(), record.value.clone());
        }
        self.bounded("add", record, self.add(&zone, record)).await
    }

    async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        let zone = self.zones.zone_of(&record.name).await?;
        let _turn = self.turns.take(zone.as_str()).await;
        // Where one value stands, an older one was replaced already.
        let newer = |value: &String| self.row.one_value && *value != record.value;
        if self.last().get(&record.name).is_some_and(newer) {
            return Ok(());
        }
        self.bounded("remove", record, self.remove(&zone, record)).await?;
        self.last().remove(&record.name);
        Ok(())
    }
}

/// Whose turn it is, by what the crate says. It gives HTTP status codes as text of a fixed form, and some vendors say in a
/// text of theirs what others say by a status: the vendor's row knows these.
pub(super) fn verdict(error: &Error, context: &str, row: &Row, redactor: &Redactor) -> DnsError {
    let refused = |why: &str| DnsError::Refused(format!("{context}: {why}"));
    let keys = || keys_of(row);
    match error {
        Error::Unauthorized => {
            refused(&format!("the credentials were not accepted; check {} and what it may do", keys()))
        }
        Error::NotFound => refused(
            "the vendor does not know the zone or the endpoint (HTTP 404); check that the account holds the zone, or name it \
             with `zone`",
        ),
        Error::BadRequest => refused("the vendor found the request wrong (HTTP 400)"),
        Error::InvalidRegion => refused("`region` is not a region's name"),
        Error::Unsupported(what) | Error::Client(what) => refused(&redactor.clean(what)),
        Error::Api(what) => {
            let clean = redactor.clean(what);
            let says = |words: &[&str]| words.iter().any(|word| what.contains(word));
            if says(row.refusals) || what.starts_with("HTTP 403") {
                refused(&format!("{clean}. Check {} and what it may do", keys()))
            } else if says(row.doubts) {
                DnsError::Unavailable(format!("{context}: {clean}. If this stays, check {}", keys()))
            } else if is_refusal(what) {
                refused(&clean)
            } else {
                DnsError::Unavailable(format!("{context}: {clean}"))
            }
        }
        Error::Protocol(what) | Error::Parse(what) | Error::Response(what) | Error::Serialize(what) => {
            DnsError::Unavailable(format!(
                "{context}: the answer could not be used: {}",
                redactor.clean(what)
            ))
        }
        other => DnsError::Unavailable(format!("{context}: {}", redactor.clean(&format!("{other:?}")))),
    }
}

/// The keys that a person looks at when the credentials are wrong.
fn keys_of(row: &Row) -> String {
    let secrets =
        row.vendor.keys.iter().filter(|key| key.secret && (key.required || !row.vendor.any_of.is_empty()));
    secrets.map(|key| format!("`{}`", key.name)).collect::<Vec<_>>().join(", ")
}

/// `HTTP 4xx`, except what is worth another try; and 400, which the crate calls `BadRequest`.
fn is_refusal(text: &str) -> bool {
    let status = text.strip_prefix("HTTP ").and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    match status {
        Some(status) => (400..500).contains(&status) && !matches!(status, 408 | 409 | 423 | 425 | 429),
        None => text.starts_with("BadRequest"),
    }
}

/// What the journal, the logs and `Arc` hold.
pub(super) fn shared(bridge: Bridge) -> Arc<dyn TxtProvider> {
    Arc::new(bridge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vendor_error_says_whose_turn_it_is_and_keeps_secrets() {
        let redactor = Redactor::new(["s3cr3t-token"]);
        let row = crate::dns::vendors::row("inwx").unwrap();
        let verdict = |error| verdict(&error, "inwx: cannot add the TXT record x", row, &redactor);
        for (error, refused) in [
            (Error::Unauthorized, true),
            (Error::NotFound, true),
            (Error::Api("HTTP 403: no".into()), true),
            (Error::Api("INWX login failed: code=2200 message=s3cr3t-token".into()), true),
            (Error::Api("INWX login failed: code=2400 message=busy".into()), false),
            (Error::Api("HTTP 422: {\"error\": \"unquoted\"}".into()), true),
            (Error::Api("BadRequest x".into()), true),
            (Error::Api("HTTP 429: slow down".into()), false),
            (Error::Api("HTTP 503".into()), false),
            (Error::Api("Failed to send request to https://x/?token=s3cr3t-token: refused".into()), false),
            (Error::Serialize("Failed to deserialize (body: s3cr3t-token)".into()), false),
        ] {
            let text = format!("{error:?}");
            let verdict = verdict(error);
            assert_eq!(matches!(verdict, DnsError::Refused(_)), refused, "{text}");
            assert!(!verdict.to_string().contains("s3cr3t"), "{verdict}");
            assert!(verdict.to_string().contains("TXT record x"), "{verdict}");
        }
    }
}
