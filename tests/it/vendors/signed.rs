//! Vendors that want requests signed. The signatures are made here again, from what the vendors' documents say.

use std::sync::LazyLock;
use std::time::SystemTime;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::suite::{Fake, pairs};
use super::zone::{
    Answer, Record, ZONE, Zone, bare, full, is_json, keys, quoted, relative, text, ttl, undocumented,
    unquoted, want,
};
use crate::support::connect::{Asked, Said};

const KEY: &str = "right-key-0123456789";
const SECRET: &str = "right-secret-abcdefgh";
const WRONG: &str = "wrong-secret-hgfedcba";

pub const FAKES: &[&Fake] = &[
    &Fake {
        name: "ovh",
        hosts: &["eu.api.ovh.com"],
        keys: || ovh_keys(SECRET),
        wrong: || ovh_keys(WRONG),
        answer: ovh,
        doubts: true,
    },
    &Fake {
        name: "exoscale",
        hosts: &["api-ch-gva-2.exoscale.com"],
        keys: || pairs(&[("api_key", KEY), ("api_secret", SECRET)]),
        wrong: || pairs(&[("api_key", KEY), ("api_secret", WRONG)]),
        answer: exoscale,
        doubts: false,
    },
    &Fake {
        name: "dnsmadeeasy",
        hosts: &["api.dnsmadeeasy.com"],
        keys: || pairs(&[("api_key", KEY), ("api_secret", SECRET)]),
        wrong: || pairs(&[("api_key", KEY), ("api_secret", WRONG)]),
        answer: dnsmadeeasy,
        doubts: false,
    },
    &Fake {
        name: "transip",
        hosts: &["api.transip.nl"],
        keys: || pairs(&[("login", "me"), ("private_key_pem", google_key())]),
        wrong: || pairs(&[("login", "me"), ("private_key_pem", other_key())]),
        answer: transip,
        doubts: false,
    },
    &Fake {
        name: "route53",
        hosts: &["route53.amazonaws.com"],
        keys: || pairs(&[("access_key", "AKIDEXAMPLE"), ("secret_key", SECRET)]),
        wrong: || pairs(&[("access_key", "AKIDEXAMPLE"), ("secret_key", WRONG)]),
        answer: route53,
        doubts: false,
    },
];

static RSA_KEYS: LazyLock<[(String, Vec<u8>); 2]> = LazyLock::new(|| [pem(), pem()]);

fn pem() -> (String, Vec<u8>) {
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let body = STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = body.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap()).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    (pem, pair.public_key().as_ref().to_vec())
}

/// The RSA key that vendors know, PEM.
pub fn google_key() -> &'static str {
    &RSA_KEYS[0].0
}

/// One that they do not.
pub fn other_key() -> &'static str {
    &RSA_KEYS[1].0
}

pub fn public_key(pem: &str) -> Vec<u8> {
    RSA_KEYS.iter().find(|(known, _)| known == pem).unwrap().1.clone()
}

pub fn rsa_holds(public: &[u8], sha512: bool, message: &[u8], signature: &[u8]) -> bool {
    let algorithm = if sha512 { &RSA_PKCS1_2048_8192_SHA512 } else { &RSA_PKCS1_2048_8192_SHA256 };
    UnparsedPublicKey::new(algorithm, public).verify(message, signature).is_ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mac(algorithm: hmac::Algorithm, key: &[u8], message: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, key), message.as_bytes()).as_ref().to_vec()
}

fn sha256(text: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, text).as_ref())
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn ovh_keys(secret: &str) -> Vec<(&'static str, String)> {
    pairs(&[
        ("application_key", KEY),
        ("application_secret", secret),
        ("consumer_key", "right-consumer-key"),
        ("endpoint", "ovh-eu"),
    ])
}

/// help.ovhcloud.com "First steps with the OVHcloud APIs", and the console of /domain/zone. Changes are published by
/// `refresh`; TXT targets come back in quotes however they were sent.
fn ovh(zone: &mut Zone, asked: &Asked) -> Answer {
    let query = if asked.query.is_empty() { String::new() } else { format!("?{}", asked.query) };
    let stamp = asked.header("x-ovh-timestamp");
    let url = format!("https://{}{}{query}", asked.host, asked.path);
    let signed = format!("{SECRET}+right-consumer-key+{}+{url}+{}+{stamp}", asked.method, asked.text());
    let signature =
        format!("$1${}", hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, signed.as_bytes()).as_ref()));
    let fresh = stamp.parse::<u64>().is_ok_and(|stamp| stamp.abs_diff(now()) < 60);
    if asked.header("x-ovh-application") != KEY
        || asked.header("x-ovh-consumer") != "right-consumer-key"
        || asked.header("x-ovh-signature") != signature
        || !fresh
    {
        let what = "Invalid signature";
        return Ok(Said::new(400, json!({ "class": "Client::BadRequest", "message": what })));
    }
    let missing = || Ok(Said::new(404, json!({ "class": "Client::NotFound", "message": "does not exist" })));
    let shown = |r: &Record| {
        json!({ "id": r.id, "zone": ZONE, "subDomain": relative(&r.name, ""), "fieldType": r.kind, "target": quoted(&r.value),
            "ttl": r.ttl })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        (_, ["1.0", "domain", "zone", other, ..]) if *other != ZONE => missing(),
        ("GET", ["1.0", "domain", "zone", _]) => {
            Ok(Said::new(200, json!({ "name": ZONE, "dnssecSupported": true })))
        }
        ("GET", ["1.0", "domain", "zone", _, "record"]) => {
            let query = asked.query();
            let found: Vec<u64> =
                zone.at(&full(&query["subDomain"], ""), &query["fieldType"]).iter().map(|r| r.id).collect();
            Ok(Said::new(200, json!(found)))
        }
        ("GET", ["1.0", "domain", "zone", _, "record", id]) => {
            match zone.records.iter().find(|r| r.id.to_string() == *id) {
                Some(record) => Ok(Said::new(200, shown(record))),
                None => missing(),
            }
        }
        ("POST", ["1.0", "domain", "zone", _, "record"]) => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["fieldType", "subDomain", "target", "ttl"])?;
            let name = full(text(&body["subDomain"])?, "");
            zone.add(&name, text(&body["fieldType"])?, &bare(text(&body["target"])?), ttl(&body["ttl"], 60)?);
            zone.dirty = true;
            Ok(Said::new(200, zone.records.last().map(shown).unwrap_or_default()))
        }
        ("DELETE", ["1.0", "domain", "zone", _, "record", id]) if zone.remove(id) => {
            zone.dirty = true;
            Ok(Said::new(200, "null"))
        }
        ("DELETE", ["1.0", "domain", "zone", _, "record", _]) => missing(),
        ("POST", ["1.0", "domain", "zone", _, "refresh"]) => {
            zone.dirty = false;
            Ok(Said::new(200, "null"))
        }
        _ => undocumented(asked),
    }
}

/// openapi-v2.exoscale.com: EXO2-HMAC-SHA256 over method, path, body, query and headers (none), and the expiry.
fn exoscale(zone: &mut Zone, asked: &Asked) -> Answer {
    let authorization = asked.header("authorization");
    let fields: Vec<(&str, &str)> = authorization
        .strip_prefix("EXO2-HMAC-SHA256 ")
        .ok_or("no EXO2 authorization")?
        .split(',')
        .filter_map(|field| field.split_once('='))
        .collect();
    let field = |name: &str| fields.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| *value);
    let message = format!("{} {}\n{}\n\n\n{}", asked.method, asked.path, asked.text(), field("expires"));
    let expected = STANDARD.encode(mac(hmac::HMAC_SHA256, SECRET.as_bytes(), &message));
    want(field("expires").parse::<u64>().is_ok_and(|at| at > now()), || "expired".to_owned())?;
    if field("credential") != KEY || field("signature") != expected {
        return Ok(Said::new(403, json!({ "message": "Invalid credentials" })));
    }
    let operation =
        || Ok(Said::new(200, json!({ "id": "op-1", "state": "success", "reference": { "id": "x" } })));
    match (asked.method.as_str(), asked.parts().as_slice()) {
        ("GET", ["v2", "dns-domain"]) => {
            Ok(Said::new(200, json!({ "dns-domains": [{ "id": "d-1", "unicode-name": ZONE }] })))
        }
        ("GET", ["v2", "dns-domain", "d-1", "record"]) => {
            let shown = |r: &Record| json!({ "id": r.id.to_string(), "name": relative(&r.name, ""), "type": r.kind, "content": r.value, "ttl": r.ttl });
            let all: Vec<Value> = zone.records.iter().filter(|r| r.kind != "MX").map(shown).collect();
            Ok(Said::new(200, json!({ "dns-domain-records": all })))
        }
        ("POST", ["v2", "dns-domain", "d-1", "record"]) => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["name", "type", "content", "ttl"])?;
            let (name, value) = (full(text(&body["name"])?, ""), bare(text(&body["content"])?));
            zone.add(&name, text(&body["type"])?, &value, ttl(&body["ttl"], 0)?);
            operation()
        }
        ("DELETE", ["v2", "dns-domain", "d-1", "record", id]) if zone.remove(id) => operation(),
        ("DELETE", ["v2", "dns-domain", "d-1", "record", _]) => {
            Ok(Said::new(404, json!({ "message": "Not found" })))
        }
        _ => undocumented(asked),
    }
}

/// api-docs.dnsmadeeasy.com: HMAC-SHA1 of the date in hex. TXT values come back in quotes.
fn dnsmadeeasy(zone: &mut Zone, asked: &Asked) -> Answer {
    let date = asked.header("x-dnsme-requestdate");
    let at = httpdate::parse_http_date(date).map_err(|_| format!("not a date: {date}"))?;
    let age = SystemTime::now().duration_since(at).unwrap_or_default();
    want(age.as_secs() < 30, || "an old request".to_owned())?;
    let expected = hex(&mac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, SECRET.as_bytes(), date));
    if asked.header("x-dnsme-apikey") != KEY || asked.header("x-dnsme-hmac") != expected {
        return Ok(Said::new(403, json!({ "error": ["API key or HMAC is not right"] })));
    }
    let shown = |r: &&Record| {
        json!({ "id": r.id, "name": relative(&r.name, ""), "type": r.kind, "value": quoted(&r.value), "ttl": r.ttl, "source": 1,
            "gtdLocation": "DEFAULT", "failover": false, "monitor": false })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        ("GET", ["V2.0", "dns", "managed", "name"]) if asked.query()["domainname"] == ZONE => {
            Ok(Said::new(200, json!({ "id": 88, "name": ZONE })))
        }
        ("GET", ["V2.0", "dns", "managed", "88", "records"]) => {
            let query = asked.query();
            let data: Vec<Value> =
                zone.at(&full(&query["recordName"], ""), &query["type"]).iter().map(shown).collect();
            let total = data.len();
            Ok(Said::new(200, json!({ "totalRecords": total, "totalPages": 1, "page": 0, "data": data })))
        }
        ("POST", ["V2.0", "dns", "managed", "88", "records", "createMulti"]) => {
            is_json(asked)?;
            for body in
                asked.json().as_array().filter(|all| !all.is_empty()).ok_or("not a list of records")?
            {
                keys(body, &["name", "type", "value", "ttl", "gtdLocation"])?;
                let (name, value) = (full(text(&body["name"])?, ""), bare(text(&body["value"])?));
                want(!zone.holds(&name, &value), || {
                    "Record with this name and value already exists".to_owned()
                })?;
                zone.add(&name, text(&body["type"])?, &value, ttl(&body["ttl"], 30)?);
            }
            Ok(Said::new(201, json!([])))
        }
        ("DELETE", ["V2.0", "dns", "managed", "88", "records"]) => {
            for pair in asked.query.split('&') {
                let id = pair.strip_prefix("ids=").ok_or("not `ids`")?;
                want(zone.remove(id), || format!("no record {id}"))?;
            }
            Ok(Said::new(200, ""))
        }
        _ => undocumented(asked),
    }
}

/// api.transip.nl/rest/docs.html: a token for a signed request (RSA, SHA-512), then entries of a domain.
fn transip(zone: &mut Zone, asked: &Asked) -> Answer {
    let parts = asked.parts();
    if parts == ["v6", "auth"] {
        is_json(asked)?;
        let body = asked.json();
        keys(&body, &["login", "nonce", "read_only", "expiration_time", "label", "global_key"])?;
        let signature = STANDARD.decode(asked.header("signature")).map_err(|e| e.to_string())?;
        let holds = rsa_holds(&public_key(google_key()), true, &asked.body, &signature);
        if body["login"] != "me" || !holds {
            return Ok(Said::new(
                401,
                json!({ "error": "Invalid API signature, signature does not match the request." }),
            ));
        }
        return Ok(Said::new(201, json!({ "token": "transip-token" })));
    }
    if asked.header("authorization") != "Bearer transip-token" {
        return Ok(Said::new(401, json!({ "error": "Your access token is invalid." })));
    }
    let ["v6", "domains", domain, "dns"] = parts.as_slice() else { return undocumented(asked) };
    if *domain != ZONE {
        return Ok(Said::new(404, json!({ "error": "Domain not found" })));
    }
    let entry = || -> Result<(String, String, String, u64), String> {
        is_json(asked)?;
        let body = asked.json();
        keys(&body, &["dnsEntry"])?;
        let entry = &body["dnsEntry"];
        keys(entry, &["name", "expire", "type", "content"])?;
        let (name, kind) = (full(text(&entry["name"])?, "@"), text(&entry["type"])?.to_owned());
        Ok((name, kind, text(&entry["content"])?.to_owned(), ttl(&entry["expire"], 60)?))
    };
    match asked.method.as_str() {
        "GET" => {
            let shown = |r: &Record| json!({ "name": relative(&r.name, "@"), "expire": r.ttl, "type": r.kind, "content": r.value });
            Ok(Said::new(200, json!({ "dnsEntries": zone.records.iter().map(shown).collect::<Vec<_>>() })))
        }
        "POST" => {
            let (name, kind, value, ttl) = entry()?;
            want(!zone.holds(&name, &value), || "the entry exists".to_owned())?;
            zone.add(&name, &kind, &value, ttl);
            Ok(Said::new(201, ""))
        }
        "DELETE" => {
            let (name, kind, value, ttl) = entry()?;
            let before = zone.records.len();
            zone.records.retain(|r| r.name != name || r.kind != kind || r.value != value || r.ttl != ttl);
            Ok(Said::new(if zone.records.len() < before { 204 } else { 404 }, ""))
        }
        _ => undocumented(asked),
    }
}

/// docs.aws.amazon.com: Signature Version 4 over the canonical request, then Route 53's XML (2013-04-01).
fn route53(zone: &mut Zone, asked: &Asked) -> Answer {
    let no = |status, code: &str| {
        let xml = format!(
            "<?xml version=\"1.0\"?><ErrorResponse xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><Error>\
             <Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error><RequestId>x</RequestId></ErrorResponse>"
        );
        Ok(Said::new(status, xml).with("content-type", "text/xml"))
    };
    if signature_v4(asked)? != asked.header("authorization").rsplit_once("Signature=").map_or("", |(_, s)| s)
    {
        return no(403, "SignatureDoesNotMatch");
    }
    let reply = |inner: String| {
        let xml = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{inner}");
        Ok(Said::new(200, xml).with("content-type", "text/xml"))
    };
    const NS: &str = "xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"";
    match (asked.method.as_str(), asked.parts().as_slice()) {
        ("GET", ["2013-04-01", "hostedzonesbyname"]) => reply(format!(
            "<ListHostedZonesByNameResponse {NS}><HostedZones><HostedZone><Id>/hostedzone/Z1</Id><Name>example.com.</Name>\
             <CallerReference>x</CallerReference><Config><PrivateZone>false</PrivateZone></Config>\
             <ResourceRecordSetCount>4</ResourceRecordSetCount></HostedZone></HostedZones><IsTruncated>false</IsTruncated>\
             <MaxItems>100</MaxItems></ListHostedZonesByNameResponse>"
        )),
        ("GET", ["2013-04-01", "hostedzone", "Z1", "rrset"]) => {
            let query = asked.query();
            let at = zone.at(query["name"].trim_end_matches('.'), &query["type"]);
            let values: String = at
                .iter()
                .map(|r| format!("<ResourceRecord><Value>{}</Value></ResourceRecord>", quoted(&r.value)))
                .collect();
            let set = at.first().map_or_else(String::new, |first| {
                format!(
                    "<ResourceRecordSet><Name>{}.</Name><Type>{}</Type><TTL>{}</TTL><ResourceRecords>{values}\
                     </ResourceRecords></ResourceRecordSet>",
                    first.name, first.kind, first.ttl
                )
            });
            reply(format!(
                "<ListResourceRecordSetsResponse {NS}><ResourceRecordSets>{set}</ResourceRecordSets>\
                 <IsTruncated>false</IsTruncated><MaxItems>300</MaxItems></ListResourceRecordSetsResponse>"
            ))
        }
        ("POST", ["2013-04-01", "hostedzone", "Z1", "rrset"]) => {
            let body = asked.text();
            want(body.contains(NS), || "not in Route 53's name space".to_owned())?;
            let inside = |tag: &str| -> Vec<String> {
                let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
                let parts = body.split(&open).skip(1);
                parts
                    .filter_map(|part| part.split_once(&close))
                    .map(|(text, _)| text.replace("&quot;", "\""))
                    .collect()
            };
            let one = |tag: &str| inside(tag).first().cloned().ok_or_else(|| format!("no {tag}"));
            let (name, kind) = (one("Name")?, one("Type")?);
            let name = name.strip_suffix('.').ok_or("the name has no final dot")?;
            let seconds = ttl(&one("TTL")?.parse::<u64>().unwrap_or(0).into(), 1)?;
            let values: Result<Vec<String>, String> =
                inside("Value").iter().map(|value| unquoted(value)).collect();
            let mut values = values?;
            match one("Action")?.as_str() {
                "UPSERT" => {
                    zone.remove_set(name, &kind);
                    for value in values {
                        zone.add(name, &kind, &value, seconds);
                    }
                }
                "DELETE" => {
                    values.sort();
                    if zone.txt(name) != values || zone.at(name, &kind).iter().any(|r| r.ttl != seconds) {
                        return no(400, "InvalidChangeBatch");
                    }
                    zone.remove_set(name, &kind);
                }
                other => return Err(format!("action {other}")),
            }
            reply(format!(
                "<ChangeResourceRecordSetsResponse {NS}><ChangeInfo><Id>/change/C1</Id><Status>PENDING</Status>\
                 <SubmittedAt>2026-01-01T00:00:00Z</SubmittedAt></ChangeInfo></ChangeResourceRecordSetsResponse>"
            ))
        }
        _ => undocumented(asked),
    }
}

/// The signature that this request has to carry.
fn signature_v4(asked: &Asked) -> Result<String, String> {
    let authorization = asked.header("authorization");
    let fields = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or("no AWS4 authorization")?;
    let field = |name: &str| {
        let mut fields = fields.split(", ").filter_map(|field| field.split_once('='));
        fields.find(|(n, _)| *n == name).map(|(_, value)| value).ok_or_else(|| format!("no {name}"))
    };
    let date = asked.header("x-amz-date");
    let day = date.get(..8).ok_or("no x-amz-date")?;
    let scope = format!("{day}/us-east-1/route53/aws4_request");
    want(field("Credential")? == format!("AKIDEXAMPLE/{scope}"), || {
        format!("credential in {authorization}")
    })?;
    let signed = field("SignedHeaders")?;
    for must in ["host", "x-amz-date"] {
        want(signed.split(';').any(|name| name == must), || format!("{must} is not signed"))?;
    }
    let headers: String =
        signed.split(';').map(|name| format!("{name}:{}\n", asked.header(name).trim())).collect();
    let mut query: Vec<&str> = asked.query.split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    let request = format!(
        "{}\n{}\n{}\n{headers}\n{signed}\n{}",
        asked.method,
        asked.path,
        query.join("&"),
        sha256(&asked.body)
    );
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256(request.as_bytes()));
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in scope.split('/') {
        key = mac(hmac::HMAC_SHA256, &key, part);
    }
    Ok(hex(&mac(hmac::HMAC_SHA256, &key, &to_sign)))
}

/// docs.aws.amazon.com, "Examples of the complete Signature Version 4 signing process": the check itself is right.
#[test]
fn the_signing_key_is_that_of_the_documents() {
    let mut key = b"AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_vec();
    for part in ["20120215", "us-east-1", "iam", "aws4_request"] {
        key = mac(hmac::HMAC_SHA256, &key, part);
    }
    assert_eq!(hex(&key), "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d");
}
