//! DuckDNS, by `https://www.duckdns.org/spec.jsp`.
//!
//! Not through the crate: that clears the record by an empty `txt`, which the specification does not know; without
//! `clear=true` such a request is an update of the host's address to wherever it came from.

use async_trait::async_trait;
use dns_update::Error;
use http::{HeaderMap, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::own::{OwnApi, ask, client};
use super::{Keys, MakeError};
use crate::dns::TxtRecord;
use crate::http_client::HttpClient;
use crate::name::DnsName;
use crate::secret::Secret;

const ENDPOINT: &str = "https://www.duckdns.org/update";
const SUFFIX: &str = ".duckdns.org";

#[derive(Debug)]
pub(super) struct DuckDns {
    token: Secret,
    client: HttpClient,
}

pub(super) fn make(keys: &Keys) -> Result<Box<dyn OwnApi>, MakeError> {
    let (token, client) = (Secret::new(keys.get("token")), client(keys.timeout)?);
    Ok(Box::new(DuckDns { token, client }))
}

impl DuckDns {
    async fn update(&self, record: &TxtRecord, clear: bool) -> Result<(), Error> {
        let domain = domain(&record.name).ok_or_else(|| {
            Error::Client(format!("{} does not lie below a host of duckdns.org", record.name))
        })?;
        let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let clear = if clear { "&clear=true" } else { "" };
        let (token, value) = (escape(self.token.expose()), escape(&record.value));
        let url = format!("{ENDPOINT}?domains={domain}&token={token}&txt={value}{clear}");
        let said = ask(&self.client, Method::GET, url, HeaderMap::new(), "").await?;
        match said.trim() {
            "OK" => Ok(()),
            "KO" => Err(Error::Unauthorized),
            said => Err(Error::Response(format!("it said `{said}` instead of OK or KO"))),
        }
    }
}

/// `x` of `_acme-challenge.x.duckdns.org`; one record serves every name below it.
fn domain(name: &DnsName) -> Option<&str> {
    name.as_str().strip_suffix(SUFFIX)?.rsplit('.').next()
}

#[async_trait]
impl OwnApi for DuckDns {
    async fn add(&self, _zone: &DnsName, record: &TxtRecord) -> Result<(), Error> {
        self.update(record, false).await
    }

    async fn remove(&self, _zone: &DnsName, record: &TxtRecord) -> Result<(), Error> {
        self.update(record, true).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_label_before_the_suffix() {
        for (name, host) in [
            ("_acme-challenge.home.duckdns.org", Some("home")),
            ("_acme-challenge.www.home.duckdns.org", Some("home")),
            ("_acme-challenge.example.com", None),
            ("duckdns.org", None),
        ] {
            assert_eq!(domain(&DnsName::parse(name).unwrap()), host, "{name}");
        }
    }
}
