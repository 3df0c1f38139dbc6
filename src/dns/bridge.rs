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
use super::zone::ZoneFinder;
use super::{DnsError, TxtProvider, TxtRecord};
use crate::name::DnsName;

/// Names whose last value is remembered, for vendors that hold one.
const MAX_LAST: usize = 1024;

pub(super) struct Bridge {
    pub(super) id: String,
    pub(super) vendor: &'static str,
    pub(super) updater: DnsUpdater,
    pub(super) one_value: bool,
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
        let name = &record.name;
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(verdict(
                &error,
                &format!("{}: cannot {what} the TXT record {name}", self.vendor),
                &self.redactor,
            )),
            Err(_) => Err(DnsError::Unavailable(format!(
                "{}: no answer within {} s while trying to {what} the TXT record {name}; it may have been done nevertheless",
                self.vendor,
                self.timeout.as_secs()
            ))),
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, HashMap<DnsName, String>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl TxtProvider for Bridge {
    fn id(&self) -> &str {
        &self.id
    }

    fn holds_one_value(&self) -> bool {
        self.one_value
    }

    async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        let zone = self.zones.zone_of(&record.name).await?;
        let _turn = self.turns.take(zone.as_str()).await;
        let (name, origin) = (record.name.as_str(), zone.as_str());
        let values = vec![DnsRecord::TXT(record.value.clone())];
        if !self.one_value {
            let call = self.updater.add_to_rrset(name, DnsRecordType::TXT, self.ttl, values, origin);
            return self.bounded("add", record, call).await;
        }
        {
            let mut last = self.last();
            if last.len() >= MAX_LAST {
                last.clear();
            }
            last.insert(record.name.clone(), record.value.clone());
        }
        let call = self.updater.set_rrset(name, DnsRecordType::TXT, self.ttl, values, origin);
        self.bounded("set", record, call).await
    }

    async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        let zone = self.zones.zone_of(&record.name).await?;
        let _turn = self.turns.take(zone.as_str()).await;
        let (name, origin) = (record.name.as_str(), zone.as_str());
        if !self.one_value {
            let values = vec![DnsRecord::TXT(record.value.clone())];
            let call = self.updater.remove_from_rrset(name, DnsRecordType::TXT, values, origin);
            return self.bounded("remove", record, call).await;
        }
        if self.last().get(&record.name).is_some_and(|value| *value != record.value) {
            return Ok(());
        }
        let call = self.updater.set_rrset(name, DnsRecordType::TXT, self.ttl, Vec::new(), origin);
        self.bounded("clear", record, call).await?;
        self.last().remove(&record.name);
        Ok(())
    }
}

/// Whose turn it is, by what the crate says. It gives HTTP status codes as text of a fixed form; nothing else is read
/// out of text.
pub(super) fn verdict(error: &Error, context: &str, redactor: &Redactor) -> DnsError {
    let refused = |why: &str| DnsError::Refused(format!("{context}: {why}"));
    match error {
        Error::Unauthorized => {
            refused("the credentials were not accepted (HTTP 401); check the key and its rights")
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
            let message = format!("{context}: {clean}");
            if is_refusal(what) { DnsError::Refused(message) } else { DnsError::Unavailable(message) }
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
        let verdict = |error| verdict(&error, "duckdns: cannot set the TXT record x", &redactor);
        for (error, refused) in [
            (Error::Unauthorized, true),
            (Error::NotFound, true),
            (Error::Api("HTTP 403: no".into()), true),
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
