//! Vendors with a key in a header field of their own, in the body or in the query.

use serde_json::{Value, json};

use super::suite::{Fake, pairs};
use super::zone::{
    Answer, DUCK, Record, ZONE, Zone, full, is_json, keys, quoted, relative, text, ttl, undocumented,
    unquoted, want,
};
use crate::support::connect::{Asked, Said};

const KEY: &str = "right-key-0123456789";
const SECRET: &str = "right-secret-abcdefgh";
const WRONG: &str = "wrong-key-9876543210";

pub const FAKES: &[&Fake] = &[
    &Fake {
        name: "bunny",
        hosts: &["api.bunny.net"],
        keys: || pairs(&[("api_key", KEY)]),
        wrong: || pairs(&[("api_key", WRONG)]),
        answer: bunny,
        doubts: false,
    },
    &Fake {
        name: "ionos",
        hosts: &["api.hosting.ionos.com"],
        keys: || pairs(&[("api_key", "prefix.right-secret-abcdefgh")]),
        wrong: || pairs(&[("api_key", "prefix.wrong-secret-abcdefgh")]),
        answer: ionos,
        doubts: false,
    },
    &Fake {
        name: "scaleway",
        hosts: &["api.scaleway.com"],
        keys: || pairs(&[("token", KEY)]),
        wrong: || pairs(&[("token", WRONG)]),
        answer: scaleway,
        doubts: false,
    },
    &Fake {
        name: "godaddy",
        hosts: &["api.godaddy.com"],
        keys: || pairs(&[("api_key", KEY), ("api_secret", SECRET)]),
        wrong: || pairs(&[("api_key", KEY), ("api_secret", WRONG)]),
        answer: godaddy,
        doubts: false,
    },
    &Fake {
        name: "porkbun",
        hosts: &["api.porkbun.com"],
        keys: || pairs(&[("api_key", KEY), ("secret_api_key", SECRET)]),
        wrong: || pairs(&[("api_key", KEY), ("secret_api_key", WRONG)]),
        answer: porkbun,
        doubts: false,
    },
    &Fake {
        name: "namesilo",
        hosts: &["www.namesilo.com"],
        keys: || pairs(&[("api_key", KEY)]),
        wrong: || pairs(&[("api_key", WRONG)]),
        answer: namesilo,
        doubts: false,
    },
    &Fake {
        name: "namecheap",
        hosts: &["api.namecheap.com"],
        keys: || pairs(&[("api_user", "me"), ("api_key", KEY), ("client_ip", "192.0.2.9")]),
        wrong: || pairs(&[("api_user", "me"), ("api_key", WRONG), ("client_ip", "192.0.2.9")]),
        answer: namecheap,
        doubts: false,
    },
    &Fake {
        name: "duckdns",
        hosts: &["www.duckdns.org"],
        keys: || pairs(&[("token", KEY)]),
        wrong: || pairs(&[("token", WRONG)]),
        answer: duckdns,
        doubts: false,
    },
];

/// docs.bunny.net: DNS zones. The type is a number, names are relative, empty at the apex.
fn bunny(zone: &mut Zone, asked: &Asked) -> Answer {
    if asked.header("accesskey") != KEY {
        return Ok(Said::new(401, json!({ "HttpCode": 401, "Message": "Unauthorized" })));
    }
    let number = |kind: &str| match kind {
        "A" => 0,
        "TXT" => 3,
        _ => 4,
    };
    let shown = |r: &Record| {
        json!({ "Id": r.id, "Type": number(&r.kind), "Ttl": r.ttl, "Value": r.value, "Name": relative(&r.name, ""),
            "Weight": 0, "Priority": 0, "Port": 0, "Flags": 0, "Tag": null, "Accelerated": false,
            "AcceleratedPullZoneId": 0, "LinkName": null, "IPGeoLocationInfo": null, "MonitorStatus": 0,
            "MonitorType": 0, "Disabled": false, "Comment": null })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        ("GET", ["dnszone"]) => {
            let items: Vec<Value> = if ZONE.contains(&asked.query()["search"]) {
                let records: Vec<Value> = zone.records.iter().map(shown).collect();
                vec![json!({ "Id": 5, "Domain": ZONE, "Records": records, "NameserversDetected": true })]
            } else {
                Vec::new()
            };
            let total = items.len();
            let page =
                json!({ "Items": items, "CurrentPage": 1, "TotalItems": total, "HasMoreItems": false });
            Ok(Said::new(200, page))
        }
        ("PUT", ["dnszone", "5", "records"]) => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["Name", "Ttl", "Type", "Value"])?;
            want(body["Type"] == 3, || "not the number of TXT".to_owned())?;
            zone.add(&full(text(&body["Name"])?, ""), "TXT", text(&body["Value"])?, ttl(&body["Ttl"], 15)?);
            Ok(Said::new(201, zone.records.last().map(shown).unwrap_or_default()))
        }
        ("DELETE", ["dnszone", "5", "records", id]) => {
            Ok(Said::new(if zone.remove(id) { 204 } else { 404 }, ""))
        }
        _ => undocumented(asked),
    }
}

/// developer.hosting.ionos.com/docs/dns: records with full names; content of TXT in quotes.
fn ionos(zone: &mut Zone, asked: &Asked) -> Answer {
    if asked.header("x-api-key") != "prefix.right-secret-abcdefgh" {
        let what = json!([{ "code": "UNAUTHORIZED", "message": "The customer is not authorized to do this operation." }]);
        return Ok(Said::new(401, what));
    }
    let shown = |r: &&Record| {
        json!({ "id": r.id.to_string(), "name": r.name, "rootName": ZONE, "type": r.kind, "content": quoted(&r.value),
            "changeDate": "2026-01-01T00:00:00.000Z", "ttl": r.ttl, "disabled": false })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        ("GET", ["dns", "v1", "zones"]) => {
            Ok(Said::new(200, json!([{ "name": ZONE, "id": "z-1", "type": "NATIVE" }])))
        }
        ("GET", ["dns", "v1", "zones", "z-1"]) => {
            let query = asked.query();
            let found: Vec<Value> =
                zone.at(&query["recordName"], &query["recordType"]).iter().map(shown).collect();
            Ok(Said::new(200, json!({ "id": "z-1", "name": ZONE, "type": "NATIVE", "records": found })))
        }
        ("POST", ["dns", "v1", "zones", "z-1", "records"]) => {
            is_json(asked)?;
            for body in
                asked.json().as_array().filter(|all| !all.is_empty()).ok_or("not a list of records")?
            {
                keys(body, &["name", "type", "content", "ttl", "prio"])?;
                let (name, value) = (text(&body["name"])?, unquoted(text(&body["content"])?)?);
                want(!zone.holds(name, &value), || "the record exists".to_owned())?;
                zone.add(name, text(&body["type"])?, &value, ttl(&body["ttl"], 60)?);
            }
            Ok(Said::new(
                201,
                Value::from(zone.records.last().map(|r| shown(&r)).into_iter().collect::<Vec<_>>()),
            ))
        }
        ("DELETE", ["dns", "v1", "zones", "z-1", "records", id]) => {
            Ok(Said::new(if zone.remove(id) { 200 } else { 404 }, ""))
        }
        _ => undocumented(asked),
    }
}

/// www.scaleway.com/en/developers/api/domains-and-dns: changes to a zone's records. TXT data in quotes.
fn scaleway(zone: &mut Zone, asked: &Asked) -> Answer {
    if asked.header("x-auth-token") != KEY {
        return Ok(Said::new(
            401,
            json!({ "message": "authentication is denied", "type": "denied_authentication" }),
        ));
    }
    let parts = asked.parts();
    let ["domain", "v2beta1", "dns-zones", domain, "records"] = parts.as_slice() else {
        return undocumented(asked);
    };
    if *domain != ZONE {
        return Ok(Said::new(404, json!({ "message": "resource is not found", "type": "not_found" })));
    }
    match asked.method.as_str() {
        "GET" => {
            let query = asked.query();
            let shown = |r: &&Record| {
                json!({ "id": r.id.to_string(), "name": relative(&r.name, ""), "type": r.kind, "data": quoted(&r.value),
                    "ttl": r.ttl, "priority": 0, "comment": null })
            };
            let found: Vec<Value> =
                zone.at(&full(&query["name"], ""), &query["type"]).iter().map(shown).collect();
            let total = found.len();
            Ok(Said::new(200, json!({ "total_count": total, "records": found })))
        }
        "PATCH" => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["return_all_records", "disallow_new_zone_creation", "changes"])?;
            want(body["disallow_new_zone_creation"] == true, || "it would make a zone".to_owned())?;
            for change in body["changes"].as_array().ok_or("no changes")? {
                if let Some(add) = change.get("add") {
                    for record in add["records"].as_array().ok_or("no records")? {
                        keys(record, &["name", "type", "data", "ttl"])?;
                        let (name, value) =
                            (full(text(&record["name"])?, ""), unquoted(text(&record["data"])?)?);
                        want(!zone.holds(&name, &value), || "the record exists".to_owned())?;
                        zone.add(&name, text(&record["type"])?, &value, ttl(&record["ttl"], 60)?);
                    }
                } else {
                    let fields = &change["delete"]["id_fields"];
                    keys(fields, &["name", "type", "data"])?;
                    let (name, value) = (full(text(&fields["name"])?, ""), unquoted(text(&fields["data"])?)?);
                    if !zone.holds(&name, &value) {
                        return Ok(Said::new(404, json!({ "message": "resource is not found" })));
                    }
                    zone.records.retain(|r| r.name != name || r.kind != "TXT" || r.value != value);
                }
            }
            Ok(Said::new(200, json!({ "records": [] })))
        }
        _ => undocumented(asked),
    }
}

/// developer.godaddy.com/doc/endpoint/domains: records of a type and name. TTLs from 600.
fn godaddy(zone: &mut Zone, asked: &Asked) -> Answer {
    let no = |status, code: &str| Ok(Said::new(status, json!({ "code": code, "message": code })));
    if asked.header("authorization") != format!("sso-key {KEY}:{SECRET}") {
        return no(401, "UNABLE_TO_AUTHENTICATE");
    }
    let parts = asked.parts();
    let ["v1", "domains", domain, "records", kind, name] = parts.as_slice() else {
        return undocumented(asked);
    };
    let name = full(name, "@");
    match asked.method.as_str() {
        _ if *domain != ZONE => no(404, "UNKNOWN_DOMAIN"),
        "GET" => {
            let shown = |r: &&Record| json!({ "data": r.value, "name": relative(&r.name, "@"), "ttl": r.ttl, "type": r.kind });
            Ok(Said::new(200, Value::from(zone.at(&name, kind).iter().map(shown).collect::<Vec<_>>())))
        }
        "PUT" => {
            is_json(asked)?;
            let body = asked.json();
            let records = body.as_array().filter(|all| !all.is_empty()).ok_or("not a list of records")?;
            zone.remove_set(&name, kind);
            for record in records {
                zone.add(&name, kind, text(&record["data"])?, ttl(&record["ttl"], 600)?);
            }
            Ok(Said::new(200, ""))
        }
        "DELETE" => {
            let gone = zone.at(&name, kind).is_empty();
            zone.remove_set(&name, kind);
            if gone { no(404, "NOT_FOUND") } else { Ok(Said::new(204, "")) }
        }
        _ => undocumented(asked),
    }
}

/// porkbun.com/api/json/v3/documentation: everything is POST, the keys are in the body, numbers come back as text.
fn porkbun(zone: &mut Zone, asked: &Asked) -> Answer {
    is_json(asked)?;
    let body = asked.json();
    if body["apikey"] != KEY || body["secretapikey"] != SECRET {
        return Ok(Said::new(400, json!({ "status": "ERROR", "message": "Invalid API key. (002)" })));
    }
    want(asked.method == "POST", || "not POST".to_owned())?;
    let parts = asked.parts();
    let ["api", "json", "v3", "dns", call @ ..] = parts.as_slice() else { return undocumented(asked) };
    match call {
        ["retrieveByNameType", ZONE, kind, name @ ..] => {
            keys(&body, &["apikey", "secretapikey"])?;
            let shown = |r: &&Record| {
                json!({ "id": r.id.to_string(), "name": r.name, "type": r.kind, "content": r.value, "ttl": r.ttl.to_string(),
                    "prio": "0", "notes": "" })
            };
            let name = full(name.first().copied().unwrap_or_default(), "");
            let found: Vec<Value> = zone.at(&name, kind).iter().map(shown).collect();
            Ok(Said::new(200, json!({ "status": "SUCCESS", "records": found })))
        }
        ["create", ZONE] => {
            keys(&body, &["apikey", "secretapikey", "name", "type", "content", "ttl"])?;
            let name = full(text(&body["name"])?, "");
            let id = zone.add(&name, text(&body["type"])?, text(&body["content"])?, ttl(&body["ttl"], 600)?);
            Ok(Said::new(200, json!({ "status": "SUCCESS", "id": id })))
        }
        ["delete", ZONE, id] if zone.remove(id) => Ok(Said::new(200, json!({ "status": "SUCCESS" }))),
        ["delete", ..] => Ok(Said::new(400, json!({ "status": "ERROR", "message": "Invalid record ID." }))),
        _ => undocumented(asked),
    }
}

/// www.namesilo.com/api-reference: GET, XML, always 200. TTLs from 3600; hosts are listed with their full name.
fn namesilo(zone: &mut Zone, asked: &Asked) -> Answer {
    let query = asked.query();
    let reply = |code: u16, inner: &str| {
        let detail = if code == 300 { "success" } else { "Invalid API Key" };
        let xml = format!(
            "<?xml version=\"1.0\"?><namesilo><request><operation>x</operation><ip>192.0.2.1</ip></request><reply>\
             <code>{code}</code><detail>{detail}</detail>{inner}</reply></namesilo>"
        );
        Ok(Said::new(200, xml).with("content-type", "text/xml"))
    };
    want(asked.method == "GET" && query["version"] == "1" && query["type"] == "xml", || {
        "how it is asked".to_owned()
    })?;
    if query["key"] != KEY {
        return reply(110, "");
    }
    want(query["domain"] == ZONE, || "another domain".to_owned())?;
    match asked.path.as_str() {
        "/api/dnsListRecords" => {
            let shown = |r: &Record| {
                format!(
                    "<resource_record><record_id>{}</record_id><type>{}</type><host>{}</host><value>{}</value><ttl>{}</ttl>\
                     <distance>0</distance></resource_record>",
                    r.id, r.kind, r.name, r.value, r.ttl
                )
            };
            reply(300, &zone.records.iter().map(shown).collect::<String>())
        }
        "/api/dnsAddRecord" => {
            let ttl = ttl(&query["rrttl"].parse::<u64>().unwrap_or(0).into(), 3600)?;
            let id = zone.add(&full(&query["rrhost"], ""), &query["rrtype"], &query["rrvalue"], ttl);
            reply(300, &format!("<record_id>{id}</record_id>"))
        }
        "/api/dnsDeleteRecord" => reply(if zone.remove(&query["rrid"]) { 300 } else { 280 }, ""),
        _ => undocumented(asked),
    }
}

/// namecheap.com/support/api: `setHosts` replaces everything; without `EmailType` the MX records are lost.
fn namecheap(zone: &mut Zone, asked: &Asked) -> Answer {
    let form = asked.form();
    let reply = |status: &str, errors: &str, inner: &str| {
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><ApiResponse Status=\"{status}\" \
             xmlns=\"http://api.namecheap.com/xml.response\"><Errors>{errors}</Errors><CommandResponse>{inner}\
             </CommandResponse></ApiResponse>"
        );
        Ok(Said::new(200, xml).with("content-type", "text/xml"))
    };
    want(asked.method == "POST" && asked.path == "/xml.response" && asked.query.is_empty(), || {
        "where".to_owned()
    })?;
    want(asked.header("content-type") == "application/x-www-form-urlencoded", || "not a form".to_owned())?;
    if form["ApiKey"] != KEY || form["ApiUser"] != "me" {
        return reply(
            "ERROR",
            "<Error Number=\"1011102\">API Key is invalid or API access has not been enabled</Error>",
            "",
        );
    }
    if form["ClientIp"] != "192.0.2.9" || form["UserName"] != "me" {
        return reply("ERROR", "<Error Number=\"1011150\">Invalid request IP</Error>", "");
    }
    want(form["SLD"] == "example" && form["TLD"] == "com", || "another domain".to_owned())?;
    match form["Command"].as_str() {
        "namecheap.domains.dns.getHosts" => {
            let shown = |r: &Record| {
                format!(
                    "<host HostId=\"{}\" Name=\"{}\" Type=\"{}\" Address=\"{}\" MXPref=\"10\" TTL=\"{}\" IsActive=\"true\" />",
                    r.id,
                    relative(&r.name, "@"),
                    r.kind,
                    r.value,
                    r.ttl
                )
            };
            let hosts: String = zone.records.iter().map(shown).collect();
            reply(
                "OK",
                "",
                &format!(
                    "<DomainDNSGetHostsResult Domain=\"{ZONE}\" EmailType=\"MX\" IsUsingOurDNS=\"true\">{hosts}</DomainDNSGetHostsResult>"
                ),
            )
        }
        "namecheap.domains.dns.setHosts" => {
            let mail = form.get("EmailType").is_some_and(|kind| kind == "MX");
            zone.records.clear();
            for n in 1.. {
                let field = |name: &str| form.get(&format!("{name}{n}"));
                let (Some(name), Some(kind), Some(address)) =
                    (field("HostName"), field("RecordType"), field("Address"))
                else {
                    break;
                };
                let ttl = ttl(&field("TTL").and_then(|t| t.parse::<u64>().ok()).unwrap_or(1800).into(), 60)?;
                if kind != "MX" || mail {
                    zone.add(&full(name, "@"), kind, address, ttl);
                }
            }
            reply("OK", "", &format!("<DomainDNSSetHostsResult Domain=\"{ZONE}\" IsSuccess=\"true\" />"))
        }
        _ => undocumented(asked),
    }
}

/// www.duckdns.org/spec.jsp: one TXT for a host. `clear=true` clears it; an update of neither is one of the host's address.
fn duckdns(zone: &mut Zone, asked: &Asked) -> Answer {
    let query = asked.query();
    want(asked.method == "GET" && asked.path == "/update", || "where".to_owned())?;
    if query["token"] != KEY || query["domains"] != "home" {
        return Ok(Said::new(200, "KO").with("content-type", "text/plain"));
    }
    let value = query.get("txt").cloned().unwrap_or_default();
    let clear = query.get("clear").is_some_and(|clear| clear == "true");
    want(clear || !value.is_empty(), || "this sets the host's address to that of the caller".to_owned())?;
    zone.remove_set(DUCK, "TXT");
    if !clear {
        zone.add(DUCK, "TXT", &value, 60);
    }
    Ok(Said::new(200, "OK").with("content-type", "text/plain"))
}
