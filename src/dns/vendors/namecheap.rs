//! Namecheap, by `https://www.namecheap.com/support/api/methods/domains-dns/`.
//!
//! Not through the crate: `setHosts` replaces the whole zone, its mail setting included, and the crate leaves `EmailType` out:
//! the zone's MX records would be lost with the first certificate.

use async_trait::async_trait;
use dns_update::Error;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::own::{OwnApi, ask, client};
use super::{Keys, MakeError};
use crate::dns::TxtRecord;
use crate::http_client::HttpClient;
use crate::name::DnsName;
use crate::secret::Secret;

const ENDPOINT: &str = "https://api.namecheap.com/xml.response";
/// Seconds; the vendor takes 60 to 60000.
const TTL: &str = "60";

#[derive(Debug)]
pub(super) struct Namecheap {
    api_user: String,
    username: String,
    client_ip: String,
    key: Secret,
    client: HttpClient,
}

pub(super) fn make(keys: &Keys) -> Result<Box<dyn OwnApi>, MakeError> {
    Ok(Box::new(Namecheap {
        api_user: keys.owned("api_user"),
        username: keys.opt("username").unwrap_or(keys.get("api_user")).to_owned(),
        client_ip: keys.owned("client_ip"),
        key: Secret::new(keys.get("api_key")),
        client: client(keys.timeout)?,
    }))
}

/// Everything that a zone holds, as the vendor gives it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Zone {
    email_type: String,
    hosts: Vec<Host>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Host {
    name: String,
    kind: String,
    address: String,
    mx_pref: String,
    ttl: String,
}

impl Namecheap {
    async fn change(&self, zone: &DnsName, record: &TxtRecord, present: bool) -> Result<(), Error> {
        let name = match record.name.as_str().strip_suffix(zone.as_str()) {
            Some(front) if !front.is_empty() => front.trim_end_matches('.'),
            _ => "@",
        };
        let (sld, tld) = zone
            .as_str()
            .split_once('.')
            .ok_or_else(|| Error::Client(format!("{zone} is not a registered domain")))?;
        let place = [("SLD", sld.to_owned()), ("TLD", tld.to_owned())];
        let mut held = parse(&self.call("getHosts", &place).await?)?;
        let ours = |host: &Host| {
            host.kind == "TXT" && host.name.eq_ignore_ascii_case(name) && host.address == record.value
        };
        match (held.hosts.iter().any(ours), present) {
            (true, true) | (false, false) => return Ok(()),
            (false, true) => held.hosts.push(Host {
                name: name.to_owned(),
                kind: "TXT".to_owned(),
                address: record.value.clone(),
                mx_pref: "10".to_owned(),
                ttl: TTL.to_owned(),
            }),
            (true, false) => held.hosts.retain(|host| !ours(host)),
        }
        let mut form = place.to_vec();
        let numbered: Vec<(String, String)> = held
            .hosts
            .iter()
            .zip(1..)
            .flat_map(|(host, n)| {
                [
                    (format!("HostName{n}"), host.name.clone()),
                    (format!("RecordType{n}"), host.kind.clone()),
                    (format!("Address{n}"), host.address.clone()),
                    (format!("MXPref{n}"), host.mx_pref.clone()),
                    (format!("TTL{n}"), host.ttl.clone()),
                ]
            })
            .filter(|(_, value)| !value.is_empty())
            .collect();
        form.extend(numbered.iter().map(|(key, value)| (key.as_str(), value.clone())));
        if !held.email_type.is_empty() {
            form.push(("EmailType", held.email_type));
        }
        let answer = self.call("setHosts", &form).await?;
        if answer.contains("IsSuccess=\"true\"") {
            Ok(())
        } else {
            Err(Error::Response("setHosts was answered without success".to_owned()))
        }
    }

    /// Answers are XML with `Status="OK"`, whatever the HTTP status says.
    async fn call(&self, command: &str, fields: &[(&str, String)]) -> Result<String, Error> {
        let command = format!("namecheap.domains.dns.{command}");
        let own = [
            ("ApiUser", self.api_user.as_str()),
            ("ApiKey", self.key.expose()),
            ("UserName", self.username.as_str()),
            ("ClientIp", self.client_ip.as_str()),
            ("Command", command.as_str()),
        ];
        let fields = fields.iter().map(|(key, value)| (*key, value.as_str()));
        let form: Vec<String> = own
            .into_iter()
            .chain(fields)
            .map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let text = ask(&self.client, Method::POST, ENDPOINT.to_owned(), headers, form.join("&")).await?;
        match failure(&text)? {
            None => Ok(text),
            Some(said) => Err(Error::Api(format!("namecheap {said}"))),
        }
    }
}

/// What went wrong by an answer's own words; `None` if it says `Status="OK"`.
fn failure(xml: &str) -> Result<Option<String>, Error> {
    let mut reader = Reader::from_str(xml);
    let (mut ok, mut number, mut said) = (false, None, String::new());
    loop {
        match reader.read_event().map_err(broken)? {
            Event::Start(tag) | Event::Empty(tag) => match tag.local_name().as_ref() {
                "ApiResponse" => ok = attribute(&tag, "Status")? == "OK",
                "Error" => number = Some(attribute(&tag, "Number")?),
                _ => {}
            },
            Event::Text(text) if number.is_some() && said.is_empty() => {
                said = text.to_string();
            }
            Event::Eof if ok && number.is_none() => return Ok(None),
            Event::Eof => return Ok(Some(format!("{}: {said}", number.unwrap_or_default()))),
            _ => {}
        }
    }
}

/// The zone in an answer to `getHosts`. An answer that does not hold one is an error: what is read is written back.
fn parse(xml: &str) -> Result<Zone, Error> {
    let mut reader = Reader::from_str(xml);
    let mut zone: Option<Zone> = None;
    loop {
        match reader.read_event().map_err(broken)? {
            Event::Start(tag) | Event::Empty(tag) => match tag.local_name().as_ref() {
                "DomainDNSGetHostsResult" => {
                    if attribute(&tag, "IsUsingOurDNS")? == "false" {
                        return Err(Error::Client(
                            "the domain does not use Namecheap's name servers".to_owned(),
                        ));
                    }
                    let email_type = attribute(&tag, "EmailType")?;
                    zone = Some(Zone { email_type, hosts: Vec::new() });
                }
                "host" | "Host" => {
                    let host = Host {
                        name: attribute(&tag, "Name")?,
                        kind: attribute(&tag, "Type")?,
                        address: attribute(&tag, "Address")?,
                        mx_pref: attribute(&tag, "MXPref")?,
                        ttl: attribute(&tag, "TTL")?,
                    };
                    zone.as_mut().ok_or_else(|| broken("a host outside of a zone"))?.hosts.push(host);
                }
                _ => {}
            },
            Event::Eof => return zone.ok_or_else(|| broken("no zone in it")),
            _ => {}
        }
    }
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Result<String, Error> {
    let found = tag.try_get_attribute(name).map_err(broken)?;
    found.map_or(Ok(String::new()), |value| {
        value
            .normalized_value(quick_xml::XmlVersion::Implicit1_0)
            .map(std::borrow::Cow::into_owned)
            .map_err(broken)
    })
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Parse(format!("not the XML that is documented: {error}"))
}

#[async_trait]
impl OwnApi for Namecheap {
    async fn add(&self, zone: &DnsName, record: &TxtRecord) -> Result<(), Error> {
        self.change(zone, record, true).await
    }

    async fn remove(&self, zone: &DnsName, record: &TxtRecord) -> Result<(), Error> {
        self.change(zone, record, false).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_read_whole_or_not_at_all() {
        let xml = r#"<?xml version="1.0"?><ApiResponse Status="OK"><Errors /><CommandResponse>
            <DomainDNSGetHostsResult Domain="a.com" EmailType="MX" IsUsingOurDNS="true">
            <host HostId="1" Name="@" Type="TXT" Address="a &amp; b" MXPref="10" TTL="1800" />
            </DomainDNSGetHostsResult></CommandResponse></ApiResponse>"#;
        let zone = parse(xml).unwrap();
        assert_eq!((zone.email_type.as_str(), zone.hosts[0].address.as_str()), ("MX", "a & b"));
        assert_eq!(failure(xml).unwrap(), None);
        for other in ["", "<html>busy</html>", "<ApiResponse Status=\"OK\"><CommandResponse/></ApiResponse>"]
        {
            assert!(parse(other).is_err(), "{other}");
        }
        let refused = r#"<ApiResponse Status="ERROR"><Errors><Error Number="1011102">no</Error></Errors></ApiResponse>"#;
        assert_eq!(failure(refused).unwrap().unwrap(), "1011102: no");
    }
}
