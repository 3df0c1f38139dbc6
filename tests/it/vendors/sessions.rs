//! Vendors where a session or a token is fetched first.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::signed::{google_key, other_key, public_key, rsa_holds};
use super::suite::{Fake, pairs};
use super::zone::{
    Answer, Record, ZONE, Zone, full, is_json, keys, quoted, relative, text, ttl, undocumented, unquoted,
    want,
};
use crate::support::connect::{Asked, Said};

const PASSWORD: &str = "right-password-01234567";
const WRONG: &str = "wrong-password-76543210";

pub const FAKES: &[&Fake] = &[
    &Fake {
        name: "netcup",
        hosts: &["ccp.netcup.net"],
        keys: || {
            pairs(&[("customer_number", "4711"), ("api_key", "right-key-0123"), ("api_password", PASSWORD)])
        },
        wrong: || {
            pairs(&[("customer_number", "4711"), ("api_key", "right-key-0123"), ("api_password", WRONG)])
        },
        answer: netcup,
        doubts: false,
    },
    &Fake {
        name: "inwx",
        hosts: &["api.domrobot.com"],
        keys: || pairs(&[("username", "me"), ("password", PASSWORD)]),
        wrong: || pairs(&[("username", "me"), ("password", WRONG)]),
        answer: inwx,
        doubts: false,
    },
    &Fake {
        name: "azuredns",
        hosts: &["login.microsoftonline.com", "management.azure.com"],
        keys: || azure_keys(PASSWORD),
        wrong: || azure_keys(WRONG),
        answer: azure,
        doubts: false,
    },
    &Fake {
        name: "google_cloud_dns",
        hosts: &["oauth2.googleapis.com", "dns.googleapis.com"],
        keys: || google_keys(google_key()),
        wrong: || google_keys(other_key()),
        answer: google,
        doubts: true,
    },
];

/// The documents of netcup's CCP API: every call is a POST of `action` and `param`; every record has a `priority`.
fn netcup(zone: &mut Zone, asked: &Asked) -> Answer {
    is_json(asked)?;
    want(asked.path == "/run/webservice/servers/endpoint.php" && asked.query == "JSON", || {
        "where".to_owned()
    })?;
    let body = asked.json();
    keys(&body, &["action", "param"])?;
    let (action, param) = (text(&body["action"])?, &body["param"]);
    let reply = |code: u32, short: &str, data: Value| {
        let status = if code == 2000 { "success" } else { "error" };
        Ok(Said::new(
            200,
            json!({ "serverrequestid": "x", "clientrequestid": "", "action": action, "status": status,
            "statuscode": code, "shortmessage": short, "longmessage": "", "responsedata": data }),
        ))
    };
    let known = param["customernumber"] == "4711" && param["apikey"] == "right-key-0123";
    if action == "login" {
        keys(param, &["customernumber", "apikey", "apipassword"])?;
        if !known || param["apipassword"] != PASSWORD {
            return reply(4013, "Validation Error.", "".into());
        }
        let session = format!("session-{}", rand::random::<u32>());
        zone.sessions.push(session.clone());
        return reply(2000, "Login successful", json!({ "apisessionid": session }));
    }
    let session = text(&param["apisessionid"])?.to_owned();
    want(known && zone.sessions.contains(&session), || "without a session".to_owned())?;
    let all = |zone: &Zone| {
        let shown = |r: &Record| {
            json!({ "id": r.id.to_string(), "hostname": relative(&r.name, "@"), "type": r.kind, "priority": "0",
                "destination": r.value, "deleterecord": false, "state": "yes" })
        };
        json!({ "dnsrecords": zone.records.iter().map(shown).collect::<Vec<_>>() })
    };
    match action {
        "logout" => {
            zone.sessions.retain(|known| *known != session);
            reply(2000, "Logout successful", "".into())
        }
        "infoDnsRecords" => {
            keys(param, &["customernumber", "apikey", "apisessionid", "domainname"])?;
            want(param["domainname"] == ZONE, || "another domain".to_owned())?;
            reply(2000, "DNS records found", all(zone))
        }
        "updateDnsRecords" => {
            keys(param, &["customernumber", "apikey", "apisessionid", "domainname", "dnsrecordset"])?;
            for record in param["dnsrecordset"]["dnsrecords"].as_array().ok_or("no records")? {
                if record["deleterecord"] == true {
                    want(zone.remove(text(&record["id"])?), || "no such record".to_owned())?;
                } else {
                    keys(record, &["hostname", "type", "destination"])?;
                    let name = full(text(&record["hostname"])?, "@");
                    zone.add(&name, text(&record["type"])?, text(&record["destination"])?, 0);
                }
            }
            reply(2000, "DNS records successful updated", all(zone))
        }
        _ => undocumented(asked),
    }
}

/// www.inwx.de/en/help/apidoc: JSON-RPC with a session cookie; codes that begin with 1 are success.
fn inwx(zone: &mut Zone, asked: &Asked) -> Answer {
    is_json(asked)?;
    want(asked.method == "POST" && asked.path == "/jsonrpc/", || "where".to_owned())?;
    let body = asked.json();
    keys(&body, &["method", "params"])?;
    let (method, params) = (text(&body["method"])?, &body["params"]);
    let reply = |code: u32, data: Value| {
        let msg = match code {
            1000 => "Command completed successfully",
            2200 => "Authentication error",
            2302 => "Object exists",
            _ => "Object does not exist",
        };
        Ok(Said::new(
            200,
            json!({ "code": code, "msg": msg, "resData": data, "svTRID": "x", "runtime": 0.1 }),
        ))
    };
    if method == "account.login" {
        keys(params, &["user", "pass"])?;
        if params["user"] != "me" || params["pass"] != PASSWORD {
            return reply(2200, json!({}));
        }
        let said = reply(
            1000,
            json!({ "customerId": 1, "accountId": 2, "tfa": "0", "builddate": "", "version": "3" }),
        )?;
        zone.sessions.push("domrobot=abc123".to_owned());
        return Ok(said.with("set-cookie", "domrobot=abc123; path=/; secure; httponly"));
    }
    if !zone.sessions.iter().any(|cookie| cookie == asked.header("cookie")) {
        return reply(2200, json!({}));
    }
    match method {
        "nameserver.info" => {
            if params["domain"] != ZONE {
                return reply(2303, json!({}));
            }
            let shown = |r: &&Record| json!({ "id": r.id, "name": r.name, "type": r.kind, "content": r.value, "ttl": r.ttl, "prio": 0 });
            let found: Vec<Value> =
                zone.at(text(&params["name"])?, text(&params["type"])?).iter().map(shown).collect();
            let mut data = json!({ "roId": 9, "domain": ZONE, "type": "MASTER", "count": found.len() });
            if !found.is_empty() {
                data["record"] = found.into();
            }
            reply(1000, data)
        }
        "nameserver.createRecord" => {
            keys(params, &["domain", "name", "type", "content", "ttl"])?;
            let (name, value) = (text(&params["name"])?, text(&params["content"])?);
            if zone.holds(name, value) {
                return reply(2302, json!({}));
            }
            let id = zone.add(name, text(&params["type"])?, value, ttl(&params["ttl"], 300)?);
            reply(1000, json!({ "id": id }))
        }
        "nameserver.deleteRecord" => {
            let id = params["id"].as_str().map_or_else(|| params["id"].to_string(), str::to_owned);
            reply(if zone.remove(&id) { 1000 } else { 2303 }, json!({}))
        }
        _ => undocumented(asked),
    }
}

fn azure_keys(secret: &str) -> Vec<(&'static str, String)> {
    pairs(&[
        ("tenant_id", "tenant-1"),
        ("client_id", "client-1"),
        ("client_secret", secret),
        ("subscription_id", "sub-1"),
        ("resource_group", "group-1"),
    ])
}

/// learn.microsoft.com: client credentials, then record sets of DNS (2018-05-01), with ETags.
fn azure(zone: &mut Zone, asked: &Asked) -> Answer {
    let parts = asked.parts();
    if asked.host == "login.microsoftonline.com" {
        let form = asked.form();
        want(parts == ["tenant-1", "oauth2", "v2.0", "token"] && asked.method == "POST", || {
            "where".to_owned()
        })?;
        want(asked.header("content-type") == "application/x-www-form-urlencoded", || {
            "not a form".to_owned()
        })?;
        want(form["grant_type"] == "client_credentials", || "grant_type".to_owned())?;
        want(form["scope"] == "https://management.azure.com/.default", || "scope".to_owned())?;
        if form["client_id"] != "client-1" || form["client_secret"] != PASSWORD {
            let what = "AADSTS7000215: Invalid client secret provided.";
            return Ok(Said::new(401, json!({ "error": "invalid_client", "error_description": what })));
        }
        return Ok(Said::new(
            200,
            json!({ "token_type": "Bearer", "expires_in": 3599, "access_token": "az-token" }),
        ));
    }
    want(asked.query == "api-version=2018-05-01", || "api-version".to_owned())?;
    let no = |status, code: &str| Ok(Said::new(status, json!({ "code": code, "message": code })));
    if asked.header("authorization") != "Bearer az-token" {
        return no(401, "InvalidAuthenticationToken");
    }
    let [
        "subscriptions",
        "sub-1",
        "resourceGroups",
        "group-1",
        "providers",
        "Microsoft.Network",
        "dnsZones",
        ZONE,
        "TXT",
        name,
    ] = parts.as_slice()
    else {
        return undocumented(asked);
    };
    let name = full(name, "@");
    let etag = |zone: &Zone| format!("etag-{}", zone.at(&name, "TXT").iter().map(|r| r.id).sum::<u64>());
    let shown = |zone: &Zone| {
        let values: Vec<Value> =
            zone.at(&name, "TXT").iter().map(|r| json!({ "value": [r.value] })).collect();
        json!({ "id": "x", "name": relative(&name, "@"), "type": "Microsoft.Network/dnszones/TXT", "etag": etag(zone),
            "properties": { "fqdn": format!("{name}."), "TTL": 60, "TXTRecords": values, "provisioningState": "Succeeded" } })
    };
    let condition = asked.header("if-match");
    let exists = !zone.at(&name, "TXT").is_empty();
    match asked.method.as_str() {
        "PUT" | "DELETE" if !condition.is_empty() && condition != etag(zone) => no(412, "PreconditionFailed"),
        "GET" if !exists => no(404, "NotFound"),
        "GET" => Ok(Said::new(200, shown(zone))),
        "PUT" => {
            is_json(asked)?;
            let body = asked.json();
            keys(&body, &["properties"])?;
            keys(&body["properties"], &["TTL", "TXTRecords"])?;
            let ttl = ttl(&body["properties"]["TTL"], 1)?;
            zone.remove_set(&name, "TXT");
            for record in body["properties"]["TXTRecords"].as_array().ok_or("no records")? {
                let chunks = record["value"].as_array().ok_or("not a list of strings")?;
                let value: Result<String, String> =
                    chunks.iter().map(|chunk| text(chunk).map(str::to_owned)).collect();
                zone.add(&name, "TXT", &value?, ttl);
            }
            Ok(Said::new(if exists { 200 } else { 201 }, shown(zone)))
        }
        "DELETE" => {
            zone.remove_set(&name, "TXT");
            Ok(Said::new(if exists { 200 } else { 204 }, ""))
        }
        _ => undocumented(asked),
    }
}

fn google_keys(key: &str) -> Vec<(&'static str, String)> {
    let account = json!({ "type": "service_account", "project_id": "proj-1", "private_key_id": "k1", "private_key": key,
        "client_email": "dns@proj-1.iam.gserviceaccount.com", "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token" });
    vec![("service_account_json", account.to_string()), ("project_id", "proj-1".to_owned())]
}

/// cloud.google.com/dns/docs/reference/rest/v1, and developers.google.com/identity for the signed assertion (RFC 7523).
fn google(zone: &mut Zone, asked: &Asked) -> Answer {
    if asked.host == "oauth2.googleapis.com" {
        let form = asked.form();
        want(asked.path == "/token" && asked.method == "POST", || "where".to_owned())?;
        want(form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer", || {
            "grant_type".to_owned()
        })?;
        let (signed, signature) = form["assertion"].rsplit_once('.').ok_or("not a JWT")?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|e| e.to_string());
        let claims: Value = serde_json::from_slice(&decode(signed.split('.').nth(1).ok_or("not a JWT")?)?)
            .map_err(|e| e.to_string())?;
        want(claims["aud"] == "https://oauth2.googleapis.com/token", || "aud".to_owned())?;
        want(claims["scope"] == "https://www.googleapis.com/auth/ndev.clouddns.readwrite", || {
            "scope".to_owned()
        })?;
        want(claims["iss"] == "dns@proj-1.iam.gserviceaccount.com", || "iss".to_owned())?;
        let lifetime = claims["exp"].as_u64().unwrap_or(0) - claims["iat"].as_u64().unwrap_or(0);
        want(lifetime <= 3600, || format!("a lifetime of {lifetime} s"))?;
        if !rsa_holds(&public_key(google_key()), false, signed.as_bytes(), &decode(signature)?) {
            let what = "Invalid JWT Signature.";
            return Ok(Said::new(400, json!({ "error": "invalid_grant", "error_description": what })));
        }
        return Ok(Said::new(
            200,
            json!({ "access_token": "ya29.x", "expires_in": 3599, "token_type": "Bearer" }),
        ));
    }
    if asked.header("authorization") != "Bearer ya29.x" {
        return Ok(Said::new(401, json!({ "error": { "code": 401, "status": "UNAUTHENTICATED" } })));
    }
    let set = |zone: &Zone, name: &str, kind: &str| {
        let at = zone.at(name.trim_end_matches('.'), kind);
        let data: Vec<String> = at.iter().map(|r| quoted(&r.value)).collect();
        at.first().map(|first| {
            json!({ "kind": "dns#resourceRecordSet", "name": name, "type": kind, "ttl": first.ttl, "rrdatas": data,
                "signatureRrdatas": [] })
        })
    };
    match (asked.method.as_str(), asked.parts().as_slice()) {
        ("GET", ["dns", "v1", "projects", "proj-1", "managedZones"]) => {
            let zones =
                json!([{ "name": "zone-1", "dnsName": "example.com.", "id": "1", "visibility": "public" }]);
            Ok(Said::new(200, json!({ "kind": "dns#managedZonesListResponse", "managedZones": zones })))
        }
        ("GET", ["dns", "v1", "projects", "proj-1", "managedZones", "zone-1", "rrsets"]) => {
            let query = asked.query();
            let sets: Vec<Value> = set(zone, &query["name"], &query["type"]).into_iter().collect();
            Ok(Said::new(200, json!({ "kind": "dns#resourceRecordSetsListResponse", "rrsets": sets })))
        }
        ("POST", ["dns", "v1", "projects", "proj-1", "managedZones", "zone-1", "changes"]) => {
            is_json(asked)?;
            let body = asked.json();
            let (none, mut gone) = (Vec::new(), Vec::new());
            for deletion in body["deletions"].as_array().unwrap_or(&none) {
                let (name, kind) = (text(&deletion["name"])?, text(&deletion["type"])?);
                let same = set(zone, name, kind).is_some_and(|held| {
                    held["ttl"] == deletion["ttl"] && held["rrdatas"] == deletion["rrdatas"]
                });
                if !same {
                    return Ok(Said::new(
                        412,
                        json!({ "error": { "code": 412, "status": "CONDITION_NOT_MET" } }),
                    ));
                }
                gone.push((name.trim_end_matches('.').to_owned(), kind.to_owned()));
            }
            for (name, kind) in gone {
                zone.remove_set(&name, &kind);
            }
            for addition in body["additions"].as_array().unwrap_or(&none) {
                keys(addition, &["name", "type", "ttl", "rrdatas"])?;
                let name = text(&addition["name"])?.strip_suffix('.').ok_or("the name has no final dot")?;
                let kind = text(&addition["type"])?;
                if !zone.at(name, kind).is_empty() {
                    return Ok(Said::new(
                        409,
                        json!({ "error": { "code": 409, "status": "ALREADY_EXISTS" } }),
                    ));
                }
                for data in addition["rrdatas"].as_array().ok_or("no rrdatas")? {
                    zone.add(name, kind, &unquoted(text(data)?)?, ttl(&addition["ttl"], 0)?);
                }
            }
            Ok(Said::new(200, json!({ "kind": "dns#change", "id": "1", "status": "pending" })))
        }
        _ => undocumented(asked),
    }
}
