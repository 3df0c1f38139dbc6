//! netcup, by the documents of its CCP API (`https://ccp.netcup.net/run/webservice/servers/endpoint.php`).
//!
//! Not through the crate: netcup gives every record a `priority`, TXT included, and the crate then takes no record for the
//! one it looks for: it adds it again and again, and never removes one.

use async_trait::async_trait;
use dns_update::Error;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, json};

use super::own::{OwnApi, ask, client};
use super::{Keys, MakeError};
use crate::dns::TxtRecord;
use crate::http_client::HttpClient;
use crate::name::DnsName;
use crate::secret::Secret;

const ENDPOINT: &str = "https://ccp.netcup.net/run/webservice/servers/endpoint.php?JSON";
/// "No records found for this domain."
const NOTHING_FOUND: u64 = 5029;

#[derive(Debug)]
pub(super) struct Netcup {
    customer: String,
    key: Secret,
    password: Secret,
    client: HttpClient,
}

pub(super) fn make(keys: &Keys) -> Result<Box<dyn OwnApi>, MakeError> {
    Ok(Box::new(Netcup {
        customer: keys.owned("customer_number"),
        key: Secret::new(keys.get("api_key")),
        password: Secret::new(keys.get("api_password")),
        client: client(keys.timeout)?,
    }))
}

impl Netcup {
    async fn call(&self, action: &str, param: Value) -> Result<Value, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut param = param;
        param["customernumber"] = self.customer.clone().into();
        param["apikey"] = self.key.expose().into();
        let body = json!({ "action": action, "param": param }).to_string();
        let text = ask(&self.client, Method::POST, ENDPOINT.to_owned(), headers, body).await?;
        let answer: Value = serde_json::from_str(&text).map_err(|e| Error::Parse(e.to_string()))?;
        let word = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        match word("status").as_str() {
            "success" => Ok(answer["responsedata"].clone()),
            _ if answer["statuscode"] == NOTHING_FOUND => Ok(Value::Null),
            _ => Err(Error::Api(format!(
                "netcup {}: {} {}",
                answer["statuscode"],
                word("shortmessage"),
                word("longmessage")
            ))),
        }
    }

    /// Logs in, finds the record, does what is to do about it, logs out: sessions are few, and end after a quarter of an hour.
    async fn change(&self, zone: &DnsName, record: &TxtRecord, present: bool) -> Result<(), Error> {
        let login = self.call("login", json!({ "apipassword": self.password.expose() })).await?;
        let session = login["apisessionid"].as_str().unwrap_or_default().to_owned();
        let done = self.change_within(&session, zone, record, present).await;
        // A session that could not be ended ends by itself.
        drop(self.call("logout", json!({ "apisessionid": session })).await);
        done
    }

    async fn change_within(
        &self,
        session: &str,
        zone: &DnsName,
        record: &TxtRecord,
        present: bool,
    ) -> Result<(), Error> {
        let at = json!({ "apisessionid": session, "domainname": zone.as_str() });
        let listed = self.call("infoDnsRecords", at.clone()).await?;
        let host = host(&record.name, zone);
        let ours = |r: &&Value| {
            r["hostname"] == host && r["type"] == "TXT" && r["destination"] == record.value.as_str()
        };
        let found = listed["dnsrecords"].as_array().and_then(|records| records.iter().find(ours)).cloned();
        let change = match (found, present) {
            (Some(_), true) | (None, false) => return Ok(()),
            (None, true) => json!({ "hostname": host, "type": "TXT", "destination": record.value }),
            (Some(mut found), false) => {
                found["deleterecord"] = true.into();
                found
            }
        };
        let mut param = at;
        param["dnsrecordset"] = json!({ "dnsrecords": [change] });
        self.call("updateDnsRecords", param).await.map(drop)
    }
}

fn host(name: &DnsName, zone: &DnsName) -> String {
    match name.as_str().strip_suffix(zone.as_str()) {
        Some("") | None => "@".to_owned(),
        Some(front) => front.trim_end_matches('.').to_owned(),
    }
}

#[async_trait]
impl OwnApi for Netcup {
    async fn add(&self, zone: &DnsName, record: &TxtRecord) -> Result<(), Error> {
        self.change(zone, record, true).await
    }

    async fn remove(&self, zone: &DnsName, record: &TxtRecord) -> Result<(), Error> {
        self.change(zone, record, false).await
    }
}
