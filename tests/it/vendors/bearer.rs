//! Vendors whose API is JSON behind one token in `Authorization`.

use serde_json::{Value, json};

use super::suite::{Fake, pairs};
use super::zone::{
    Answer, Record, ZONE, Zone, bare, full, is_json, keys, quoted, relative, text, ttl, undocumented,
    unquoted, want,
};
use crate::support::connect::{Asked, Said};

const TOKEN: &str = "right-token-0123456789";

macro_rules! fake {
    ($name:literal, $host:literal, $key:literal, $answer:expr) => {
        &Fake {
            name: $name,
            hosts: &[$host],
            keys: || pairs(&[($key, TOKEN)]),
            wrong: || pairs(&[($key, "wrong-token-9876543210")]),
            answer: $answer,
            doubts: false,
        }
    };
}

pub const FAKES: &[&Fake] = &[
    fake!("cloudflare", "api.cloudflare.com", "token", cloudflare),
    fake!("digitalocean", "api.digitalocean.com", "token", digitalocean),
    fake!("hetzner", "api.hetzner.cloud", "token", hetzner),
    fake!("linode", "api.linode.com", "token", linode),
    fake!("desec", "desec.io", "token", desec),
    fake!("gandiv5", "api.gandi.net", "token", gandi),
    fake!("vultr", "api.vultr.com", "api_key", vultr),
    fake!("hostinger", "developers.hostinger.com", "token", hostinger),
    &Fake {
        name: "dnsimple",
        hosts: &["api.dnsimple.com"],
        keys: || pairs(&[("token", TOKEN), ("account_id", "1010")]),
        wrong: || pairs(&[("token", "wrong-token-9876543210"), ("account_id", "1010")]),
        answer: dnsimple,
        doubts: false,
    },
];

fn authorised(asked: &Asked, scheme: &str) -> bool {
    asked.header("authorization") == format!("{scheme} {TOKEN}")
}

/// developers.cloudflare.com/api: zones, dns/records. An identical record is refused (81058); TXT content is in quotes.
fn cloudflare(zone: &mut Zone, asked: &Asked) -> Answer {
    let no = |status, code, what: &str| {
        let errors = json!([{ "code": code, "message": what }]);
        Ok(Said::new(status, json!({ "success": false, "errors": errors, "messages": [], "result": null })))
    };
    let ok = |result: Value| {
        Ok(Said::new(200, json!({ "success": true, "errors": [], "messages": [], "result": result })))
    };
    if !authorised(asked, "Bearer") {
        return no(403, 9109, "Invalid access token");
    }
    let (parts, query) = (asked.parts(), asked.query());
    match (asked.method.as_str(), parts.as_slice()) {
        ("GET", ["client", "v4", "zones"]) => {
            let zones: Vec<Value> =
                (query["name"] == ZONE).then(|| json!({ "id": "z1", "name": ZONE })).into_iter().collect();
            ok(zones.into())
        }
        ("GET", ["client", "v4", "zones", "z1", "dns_records"]) => {
            let found: Vec<Value> = zone
                .at(&query["name"], &query["type"])
                .iter()
                .map(|r| {
                    json!({ "id": r.id.to_string(), "name": r.name, "type": r.kind, "content": quoted(&r.value), "ttl": r.ttl,
                        "proxied": false, "proxiable": false, "settings": {}, "tags": [] })
                })
                .collect();
            ok(found.into())
        }
        ("POST", ["client", "v4", "zones", "z1", "dns_records"]) => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["name", "type", "content", "ttl", "proxied"])?;
            let (name, value) = (text(&body["name"])?, unquoted(text(&body["content"])?)?);
            want(body["proxied"] == false, || "TXT records are not proxied".to_owned())?;
            if zone.holds(name, &value) {
                return no(400, 81_058, "An identical record already exists.");
            }
            let id = zone.add(name, text(&body["type"])?, &value, ttl(&body["ttl"], 60)?);
            ok(json!({ "id": id.to_string() }))
        }
        ("DELETE", ["client", "v4", "zones", "z1", "dns_records", id]) if zone.remove(id) => {
            ok(json!({ "id": id }))
        }
        ("DELETE", ["client", "v4", "zones", "z1", "dns_records", _]) => {
            no(404, 81_044, "Record does not exist.")
        }
        _ => undocumented(asked),
    }
}

/// docs.digitalocean.com/reference/api: domain records. `name` filters by the full name; names in records are relative.
fn digitalocean(zone: &mut Zone, asked: &Asked) -> Answer {
    if !authorised(asked, "Bearer") {
        return Ok(Said::new(401, json!({ "id": "Unauthorized", "message": "Unable to authenticate you" })));
    }
    let shown = |r: &&Record| {
        json!({ "id": r.id, "type": r.kind, "name": relative(&r.name, "@"), "data": r.value, "priority": null, "port": null,
            "ttl": r.ttl, "weight": null, "flags": null, "tag": null })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        (_, ["v2", "domains", other, ..]) if *other != ZONE => {
            Ok(Said::new(404, json!({ "id": "not_found", "message": "The resource was not found." })))
        }
        ("GET", ["v2", "domains", _, "records"]) => {
            let query = asked.query();
            want(query["per_page"].parse().is_ok_and(|n: u32| (1..=200).contains(&n)), || {
                "per_page".to_owned()
            })?;
            let found: Vec<Value> = zone.at(&query["name"], &query["type"]).iter().map(shown).collect();
            let total = found.len();
            Ok(Said::new(200, json!({ "domain_records": found, "links": {}, "meta": { "total": total } })))
        }
        ("POST", ["v2", "domains", _, "records"]) => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["name", "type", "data", "ttl"])?;
            let name = full(text(&body["name"])?, "@");
            zone.add(&name, text(&body["type"])?, text(&body["data"])?, ttl(&body["ttl"], 30)?);
            let made = zone.records.last().map(|r| shown(&r));
            Ok(Said::new(201, json!({ "domain_record": made })))
        }
        ("DELETE", ["v2", "domains", _, "records", id]) => {
            Ok(Said::new(if zone.remove(id) { 204 } else { 404 }, ""))
        }
        _ => undocumented(asked),
    }
}

/// docs.hetzner.cloud/reference/cloud: zone RRSet actions. Values of TXT are quoted strings.
fn hetzner(zone: &mut Zone, asked: &Asked) -> Answer {
    let no =
        |status, code: &str| Ok(Said::new(status, json!({ "error": { "code": code, "message": code } })));
    let done = || {
        Ok(Said::new(
            201,
            json!({ "action": { "id": 1, "status": "running", "progress": 0, "error": null } }),
        ))
    };
    if !authorised(asked, "Bearer") {
        return no(401, "unauthorized");
    }
    let (parts, body) = (asked.parts(), asked.json());
    let values = || -> Result<Vec<String>, String> {
        is_json(asked)?;
        keys(&body, &["records"])?;
        let records = body["records"].as_array().filter(|all| !all.is_empty()).ok_or("no records")?;
        records.iter().map(|r| unquoted(text(&r["value"])?)).collect()
    };
    match (asked.method.as_str(), parts.as_slice()) {
        (_, ["v1", "zones", other, ..]) if *other != ZONE => no(404, "not_found"),
        ("GET", ["v1", "zones", _, "rrsets"]) => {
            let (query, mut sets) = (asked.query(), Vec::new());
            let found = zone.at(&full(&query["name"], "@"), &query["type"]);
            let records: Vec<Value> =
                found.iter().map(|r| json!({ "value": quoted(&r.value), "comment": "" })).collect();
            if let Some(first) = found.first() {
                sets.push(json!({ "id": "x", "name": query["name"], "type": first.kind, "ttl": first.ttl, "labels": {},
                    "protection": { "change": false }, "records": records, "zone": 42 }));
            }
            Ok(Said::new(
                200,
                json!({ "rrsets": sets, "meta": { "pagination": { "page": 1, "next_page": null } } }),
            ))
        }
        ("POST", ["v1", "zones", _, "rrsets", name, kind, "actions", action]) => {
            let name = full(name, "@");
            let exists = !zone.at(&name, kind).is_empty();
            match *action {
                "add_records" => {
                    for value in values()? {
                        if zone.holds(&name, &value) {
                            return no(422, "invalid_input");
                        }
                        zone.add(&name, kind, &value, 3600);
                    }
                    done()
                }
                "remove_records" | "change_ttl" if !exists => no(404, "not_found"),
                "remove_records" => {
                    for value in values()? {
                        if !zone.holds(&name, &value) {
                            return no(422, "invalid_input");
                        }
                        zone.records.retain(|r| r.name != name || r.kind != *kind || r.value != value);
                    }
                    done()
                }
                "change_ttl" => ttl(&body["ttl"], 60).and_then(|_| done()),
                _ => undocumented(asked),
            }
        }
        _ => undocumented(asked),
    }
}

/// techdocs.akamai.com/linode-api: domains, domain records. `X-Filter` is JSON.
fn linode(zone: &mut Zone, asked: &Asked) -> Answer {
    if !authorised(asked, "Bearer") {
        return Ok(Said::new(401, json!({ "errors": [{ "reason": "Invalid Token" }] })));
    }
    let filter: Value = serde_json::from_str(asked.header("x-filter")).unwrap_or_default();
    let page = |data: Vec<Value>| {
        let results = data.len();
        Ok(Said::new(200, json!({ "data": data, "page": 1, "pages": 1, "results": results })))
    };
    let shown = |r: &Record| {
        json!({ "id": r.id, "type": r.kind, "name": relative(&r.name, ""), "target": r.value, "priority": 0, "weight": 0, "port": 0,
            "service": null, "protocol": null, "ttl_sec": r.ttl, "tag": null })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        ("GET", ["v4", "domains"]) => {
            let found =
                (filter["domain"] == ZONE).then(|| json!({ "id": 77, "domain": ZONE, "type": "master" }));
            page(found.into_iter().collect())
        }
        ("GET", ["v4", "domains", "77", "records"]) => {
            let size = asked.query()["page_size"].parse().unwrap_or(0);
            want((25..=500).contains(&size), || format!("page_size {size}"))?;
            page(zone.records.iter().filter(|r| filter["type"] == r.kind.as_str()).map(shown).collect())
        }
        ("POST", ["v4", "domains", "77", "records"]) => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["name", "type", "target", "ttl_sec"])?;
            let name = full(text(&body["name"])?, "");
            zone.add(&name, text(&body["type"])?, text(&body["target"])?, ttl(&body["ttl_sec"], 0)?);
            Ok(Said::new(200, zone.records.last().map(shown).unwrap_or_default()))
        }
        ("DELETE", ["v4", "domains", "77", "records", id]) if zone.remove(id) => {
            Ok(Said::new(200, json!({})))
        }
        ("DELETE", ["v4", "domains", "77", "records", _]) => {
            Ok(Said::new(404, json!({ "errors": [{ "reason": "Not found" }] })))
        }
        _ => undocumented(asked),
    }
}

/// desec.readthedocs.io: RRsets. The least TTL is 3600; content is in quotes.
fn desec(zone: &mut Zone, asked: &Asked) -> Answer {
    if !authorised(asked, "Token") {
        return Ok(Said::new(401, json!({ "detail": "Invalid token." })));
    }
    let none = || Ok(Said::new(404, json!({ "detail": "Not found." })));
    let shown = |zone: &Zone, name: &str, kind: &str| {
        let at = zone.at(name, kind);
        let records: Vec<String> = at.iter().map(|r| quoted(&r.value)).collect();
        json!({ "created": "2026-01-01T00:00:00Z", "domain": ZONE, "subname": relative(name, ""), "name": format!("{name}."),
            "type": kind, "ttl": at.first().map_or(3600, |r| r.ttl), "records": records, "touched": "2026-01-01T00:00:00Z" })
    };
    let write = |zone: &mut Zone, name: &str, body: &Value| {
        is_json(asked)?;
        keys(body, &["subname", "type", "ttl", "records"])?;
        want(full(text(&body["subname"])?, "") == name, || "another subname".to_owned())?;
        let (kind, ttl) = (text(&body["type"])?, ttl(&body["ttl"], 3600)?);
        zone.remove_set(name, kind);
        for value in body["records"].as_array().ok_or("no records")? {
            zone.add(name, kind, &unquoted(text(value)?)?, ttl);
        }
        Ok::<_, String>(shown(zone, name, kind))
    };
    let name = |sub: &str| if sub == "@" { ZONE.to_owned() } else { full(sub, "") };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        (_, ["api", "v1", "domains", other, ..]) if *other != ZONE => none(),
        ("GET", ["api", "v1", "domains", _, ""]) => {
            Ok(Said::new(200, json!({ "name": ZONE, "minimum_ttl": 3600 })))
        }
        ("POST", ["api", "v1", "domains", _, "rrsets", ""]) => {
            let body = asked.json();
            let name = full(text(&body["subname"])?, "");
            want(zone.at(&name, "TXT").is_empty(), || "this RRset exists".to_owned())?;
            Ok(Said::new(201, write(zone, &name, &body)?))
        }
        (_, ["api", "v1", "domains", _, "rrsets", sub, kind, ""]) if zone.at(&name(sub), kind).is_empty() => {
            none()
        }
        ("GET", ["api", "v1", "domains", _, "rrsets", sub, kind, ""]) => {
            Ok(Said::new(200, shown(zone, &name(sub), kind)))
        }
        ("PUT", ["api", "v1", "domains", _, "rrsets", sub, _, ""]) => {
            Ok(Said::new(200, write(zone, &name(sub), &asked.json())?))
        }
        ("DELETE", ["api", "v1", "domains", _, "rrsets", sub, kind, ""]) => {
            zone.remove_set(&name(sub), kind);
            Ok(Said::new(204, ""))
        }
        _ => undocumented(asked),
    }
}

/// api.gandi.net/docs/livedns: records of one name and type. TTLs from 300; values are given back in quotes.
fn gandi(zone: &mut Zone, asked: &Asked) -> Answer {
    let no = |code: u16, what: &str| {
        Ok(Said::new(code, json!({ "code": code, "message": what, "object": "error" })))
    };
    if !authorised(asked, "Bearer") {
        return no(
            401,
            "The server could not verify that you authorized to access the document you requested.",
        );
    }
    let parts = asked.parts();
    let ["v5", "livedns", "domains", domain, "records", name, kind] = parts.as_slice() else {
        return undocumented(asked);
    };
    let name = full(name, "@");
    let exists = !zone.at(&name, kind).is_empty();
    match asked.method.as_str() {
        _ if *domain != ZONE => no(404, "Can't find the domain"),
        "GET" | "DELETE" if !exists => no(404, "Can't find the DNS record"),
        "GET" => {
            let values: Vec<String> = zone.at(&name, kind).iter().map(|r| quoted(&r.value)).collect();
            Ok(Said::new(
                200,
                json!({ "rrset_name": relative(&name, "@"), "rrset_type": kind, "rrset_ttl": 300,
                "rrset_values": values, "rrset_href": "x" }),
            ))
        }
        "PUT" => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["rrset_ttl", "rrset_values"])?;
            let ttl = ttl(&body["rrset_ttl"], 300)?;
            zone.remove_set(&name, kind);
            for value in body["rrset_values"].as_array().ok_or("no values")? {
                zone.add(&name, kind, &bare(text(value)?), ttl);
            }
            Ok(Said::new(201, json!({ "message": "DNS Record Created" })))
        }
        "DELETE" => {
            zone.remove_set(&name, kind);
            Ok(Said::new(204, ""))
        }
        _ => undocumented(asked),
    }
}

/// www.vultr.com/api: DNS records. TXT data is in quotes; TTLs from 120.
fn vultr(zone: &mut Zone, asked: &Asked) -> Answer {
    if !authorised(asked, "Bearer") {
        return Ok(Said::new(401, json!({ "error": "Invalid API token.", "status": 401 })));
    }
    let shown = |r: &Record| {
        let data = if r.kind == "TXT" { quoted(&r.value) } else { r.value.clone() };
        json!({ "id": r.id.to_string(), "type": r.kind, "name": relative(&r.name, ""), "data": data, "priority": -1, "ttl": r.ttl })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        (_, ["v2", "domains", other, ..]) if *other != ZONE => {
            Ok(Said::new(404, json!({ "error": "Invalid domain.", "status": 404 })))
        }
        ("GET", ["v2", "domains", _, "records"]) => {
            let all: Vec<Value> = zone.records.iter().map(shown).collect();
            let meta = json!({ "total": all.len(), "links": { "next": "", "prev": "" } });
            Ok(Said::new(200, json!({ "records": all, "meta": meta })))
        }
        ("POST", ["v2", "domains", _, "records"]) => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["name", "type", "data", "ttl"])?;
            let name = full(text(&body["name"])?, "");
            zone.add(&name, text(&body["type"])?, &unquoted(text(&body["data"])?)?, ttl(&body["ttl"], 120)?);
            Ok(Said::new(201, json!({ "record": zone.records.last().map(shown) })))
        }
        ("DELETE", ["v2", "domains", _, "records", id]) => {
            Ok(Said::new(if zone.remove(id) { 204 } else { 404 }, ""))
        }
        _ => undocumented(asked),
    }
}

/// developers.hostinger.com: the zone as sets; `overwrite` replaces the sets that are sent. TXT may come back in quotes.
fn hostinger(zone: &mut Zone, asked: &Asked) -> Answer {
    if !authorised(asked, "Bearer") {
        return Ok(Said::new(401, json!({ "message": "Unauthenticated", "correlation_id": "x" })));
    }
    let parts = asked.parts();
    let ["api", "dns", "v1", "zones", ZONE] = parts.as_slice() else { return undocumented(asked) };
    let accepted = || Ok(Said::new(200, json!({ "message": "Request accepted" })));
    match asked.method.as_str() {
        "GET" => {
            let mut sets: Vec<Value> = Vec::new();
            let mut seen: Vec<(&str, &str)> = Vec::new();
            for r in &zone.records {
                if seen.contains(&(&r.name, &r.kind)) {
                    continue;
                }
                seen.push((&r.name, &r.kind));
                let content = |r: &&Record| {
                    let content = if r.kind == "TXT" { quoted(&r.value) } else { r.value.clone() };
                    json!({ "content": content, "is_disabled": false })
                };
                let records: Vec<Value> = zone.at(&r.name, &r.kind).iter().map(content).collect();
                sets.push(json!({ "name": relative(&r.name, "@"), "type": r.kind, "ttl": r.ttl, "records": records }));
            }
            Ok(Said::new(200, Value::from(sets)))
        }
        "PUT" => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["overwrite", "zone"])?;
            want(body["overwrite"] == true, || "not sent to replace the set".to_owned())?;
            for set in body["zone"].as_array().ok_or("no zone")? {
                let (name, kind) = (full(text(&set["name"])?, "@"), text(&set["type"])?);
                let ttl = ttl(&set["ttl"], 1)?;
                zone.remove_set(&name, kind);
                for record in set["records"].as_array().ok_or("no records")? {
                    zone.add(&name, kind, &bare(text(&record["content"])?), ttl);
                }
            }
            accepted()
        }
        "DELETE" => {
            is_json(asked)?;
            for filter in asked.json()["filters"].as_array().filter(|f| !f.is_empty()).ok_or("no filters")? {
                keys(filter, &["name", "type"])?;
                zone.remove_set(&full(text(&filter["name"])?, "@"), text(&filter["type"])?);
            }
            accepted()
        }
        _ => undocumented(asked),
    }
}

/// developer.dnsimple.com/v2/zones/records. Since 2024 TXT content is stored and given back in quotes, however it was sent.
fn dnsimple(zone: &mut Zone, asked: &Asked) -> Answer {
    if !authorised(asked, "Bearer") {
        return Ok(Said::new(401, json!({ "message": "Authentication failed" })));
    }
    let shown = |r: &&Record| {
        json!({ "id": r.id, "zone_id": ZONE, "parent_id": null, "name": relative(&r.name, ""), "content": quoted(&r.value),
            "ttl": r.ttl, "priority": null, "type": r.kind, "regions": ["global"], "system_record": false })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        ("GET", ["v2", "1010", "zones", ZONE, "records"]) => {
            let query = asked.query();
            let data: Vec<Value> =
                zone.at(&full(&query["name"], ""), &query["type"]).iter().map(shown).collect();
            let pagination =
                json!({ "current_page": 1, "per_page": 100, "total_entries": data.len(), "total_pages": 1 });
            Ok(Said::new(200, json!({ "data": data, "pagination": pagination })))
        }
        ("POST", ["v2", "1010", "zones", ZONE, "records"]) => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["name", "type", "content", "ttl"])?;
            let (name, value) = (full(text(&body["name"])?, ""), bare(text(&body["content"])?));
            want(!zone.holds(&name, &value), || "Validation failed: the record exists".to_owned())?;
            zone.add(&name, text(&body["type"])?, &value, ttl(&body["ttl"], 60)?);
            Ok(Said::new(201, json!({ "data": zone.records.last().map(|r| shown(&r)) })))
        }
        ("DELETE", ["v2", "1010", "zones", ZONE, "records", id]) => {
            Ok(Said::new(if zone.remove(id) { 204 } else { 404 }, json!({ "message": "Record not found" })))
        }
        ("GET" | "POST" | "DELETE", ["v2", _, "zones", ..]) => {
            Ok(Said::new(404, json!({ "message": "Zone not found" })))
        }
        _ => undocumented(asked),
    }
}
