//! The tables of keys as JSON Schema (draft 2020-12), for editors.

use serde_json::{Map, Value, json};

use super::sections;
use super::table::{Key, Kind, More, Section, vendor_keys};
use crate::dns::{VendorKind, vendors};

/// The schema of the whole file.
pub fn json_schema() -> Value {
    let mut schema = table(&sections::FILE);
    if let Some(object) = schema.as_object_mut() {
        object.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        object.insert("title".into(), json!("Starlock"));
        object.insert("$defs".into(), json!({ "secret": secret() }));
    }
    schema
}

fn table(section: &Section) -> Value {
    match section.more {
        More::Nothing => object(section.doc, section.keys, None),
        More::Provider => json!({ "description": section.doc, "oneOf": providers(section) }),
    }
}

/// One object for each provider, so that an editor offers the right keys.
fn providers(section: &Section) -> Vec<Value> {
    let own = sections::OWN_PROVIDERS.iter().map(|(name, keys)| (*name, keys.to_vec()));
    let all = own.chain(vendors().iter().map(|vendor| (vendor.name, vendor_keys(vendor))));
    let one = |(name, own): (&str, Vec<Key>)| {
        let keys: Vec<Key> = section.keys.iter().copied().chain(own).collect();
        object(section.doc, &keys, Some(name))
    };
    all.map(one).collect()
}

fn object(doc: &str, keys: &[Key], provider: Option<&str>) -> Value {
    let mut properties = Map::new();
    for key in keys.iter().filter(|key| !matches!(key.kind, Kind::Later)) {
        let mut schema = match provider {
            Some(provider) if key.name == "provider" => json!({ "const": provider }),
            _ => kind(&key.kind),
        };
        if let Some(object) = schema.as_object_mut() {
            let doc = match key.default {
                "" => key.doc.to_owned(),
                default => format!("{} (default {default})", key.doc),
            };
            object.insert("description".into(), json!(doc));
        }
        properties.entry(key.name).or_insert(schema);
    }
    let required: Vec<&str> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let mut schema = json!({ "type": "object", "description": doc, "properties": properties, "additionalProperties": false });
    if let (false, Some(object)) = (required.is_empty(), schema.as_object_mut()) {
        object.insert("required".into(), json!(required));
    }
    schema
}

fn kind(of: &Kind) -> Value {
    match of {
        Kind::Text | Kind::Path => json!({ "type": "string", "minLength": 1 }),
        Kind::Vendor(VendorKind::Text) => json!({ "type": "string", "minLength": 1 }),
        Kind::Vendor(VendorKind::Number) => json!({ "type": "integer", "minimum": 0 }),
        Kind::Vendor(VendorKind::Bool) => json!({ "type": "boolean" }),
        Kind::Vendor(VendorKind::Choice(words)) => json!({ "enum": words }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Duration { .. } => {
            json!({ "type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$", "examples": ["10s"] })
        }
        Kind::Size => {
            json!({ "type": "string", "pattern": "^[0-9]+ ?([KkMmGg]i?)?[Bb]$", "examples": ["32KiB"] })
        }
        Kind::Listen(port) => json!({ "type": "string", "examples": [format!("[::]:{port}")] }),
        Kind::Server(port) => json!({ "type": "string", "examples": [format!("192.0.2.53:{port}")] }),
        Kind::Ip => json!({ "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] }),
        Kind::Net => json!({ "type": "string", "examples": ["10.0.0.0/8"] }),
        Kind::Host | Kind::Dns => json!({ "type": "string", "examples": ["example.com"] }),
        Kind::Pattern => json!({ "type": "string", "examples": ["example.com", "*.example.com"] }),
        Kind::Secret => json!({ "$ref": "#/$defs/secret" }),
        Kind::PasswordHash => json!({ "type": "string", "pattern": "^\\$(argon2|2[abxy]\\$)" }),
        Kind::Word(words) => json!({ "enum": words.now }),
        Kind::List(element) => json!({ "type": "array", "items": kind(element) }),
        Kind::OneOrMore(element) => {
            json!({ "anyOf": [kind(element), { "type": "array", "items": kind(element) }] })
        }
        Kind::Table(section) => table(section),
        Kind::Or(scalar, section) => json!({ "anyOf": [kind(scalar), table(section)] }),
        Kind::Either(one, other) => json!({ "anyOf": [kind(one), kind(other)] }),
        Kind::Map(element) => json!({ "type": "object", "additionalProperties": kind(element) }),
        Kind::Hosts(element) => {
            let one = kind(element);
            json!({
                "type": "object",
                "additionalProperties": { "anyOf": [one, { "type": "array", "minItems": 1, "items": one }] },
            })
        }
        Kind::Later => json!(false),
    }
}

fn secret() -> Value {
    let one = |name: &str, doc: &str| {
        json!({
            "type": "object",
            "properties": { name: { "type": "string", "description": doc } },
            "required": [name],
            "additionalProperties": false,
        })
    };
    json!({ "anyOf": [
        one("env", "Environment variable, or the file that NAME_FILE names"),
        one("file", "Path of a file"),
        one("credential", "Name of a systemd credential"),
        { "type": "string", "minLength": 1, "description": "The secret itself; `starlock check` warns" },
    ] })
}

/// Every key of every section as text for people: name, what it may be, default, what it does.
pub fn reference() -> String {
    let mut out = String::new();
    for outer in sections::FILE.keys {
        let (header, section) = match outer.kind {
            Kind::Table(section) | Kind::Or(_, section) => (format!("[{}]", outer.name), section),
            Kind::List(Kind::Table(section)) => (format!("[[{}]]", outer.name), *section),
            Kind::Map(Kind::Table(section)) => (format!("[{}.NAME]", outer.name), *section),
            Kind::Hosts(Kind::Or(_, section)) => {
                (format!("[{}] \"HOST/PATH\" = {{ ... }}", outer.name), *section)
            }
            _ => continue,
        };
        push_section(&mut out, &header, outer.doc, section.keys);
        if section.more == More::Provider {
            let own = sections::OWN_PROVIDERS.iter().map(|(name, keys)| (*name, keys.to_vec()));
            for (name, keys) in own {
                push_section(&mut out, &format!("{header} provider = \"{name}\""), "", &keys);
            }
            for vendor in vendors() {
                let proven = format!("Shown to work against: {}", vendor.proven.words());
                let header = format!("{header} provider = \"{}\"", vendor.name);
                push_section(&mut out, &header, &proven, &vendor_keys(vendor));
            }
        }
    }
    out
}

fn push_section(out: &mut String, header: &str, doc: &str, keys: &[Key]) {
    out.push_str(header);
    out.push('\n');
    if !doc.is_empty() {
        out.push_str(&format!("  {doc}.\n"));
    }
    for key in keys {
        let what = match key {
            Key { kind: Kind::Later, .. } => "not supported yet".to_owned(),
            Key { required: true, kind, .. } => format!("{}; required", kind.wants()),
            Key { default: "", kind, .. } => kind.wants().into_owned(),
            Key { default, kind, .. } => format!("{}; default {default}", kind.wants()),
        };
        out.push_str(&format!("  {:<18} {} ({what})\n", key.name, key.doc));
        let inner = match key.kind {
            Kind::Table(inner) | Kind::Or(_, inner) => Some(inner),
            Kind::List(Kind::Table(inner) | Kind::Or(_, inner)) | Kind::OneOrMore(Kind::Table(inner)) => {
                Some(*inner)
            }
            _ => None,
        };
        // `dns` and `acme` of a certificate have sections of their own above.
        if let Some(inner) = inner.filter(|inner| inner.more == More::Nothing && inner.grows_from != "ca") {
            for key in inner.keys {
                out.push_str(&format!("    .{:<15} {}\n", key.name, key.doc));
            }
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_and_provider_is_described() {
        let schema = json_schema();
        let text = schema.to_string();
        for key in sections::FILE.keys {
            assert!(schema["properties"].get(key.name).is_some(), "{}", key.name);
        }
        for vendor in vendors() {
            assert!(text.contains(&format!("\"const\":\"{}\"", vendor.name)), "{}", vendor.name);
        }
        assert_eq!(schema["properties"]["routes"]["type"], "object");
        assert!(!text.contains("\"etcd\""), "what is refused is not offered");
        let reference = reference();
        for word in
            ["strip_prefix", "provider = \"rfc2136\"", "key_name", "[upstreams.NAME]", "not supported yet"]
        {
            assert!(reference.contains(word), "{word}");
        }
    }
}
