//! What instant-acme leaves out of a CA's answers and some challenges need: by which names the CA calls itself in DNS.

use std::collections::HashMap;

use serde::Deserialize;

/// The draft allows ten; a CA that sends more is not believed further.
const MAX_ISSUERS: usize = 10;
/// Challenges remembered of one order: a hundred names, five kinds each.
const MAX_CHALLENGES: usize = 500;

/// Gathered from the answers of one order.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    meta: Meta,
    /// By the challenge's URL.
    challenges: HashMap<String, Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    issuer_domain_names: Vec<String>,
    account_hash_prefix: Option<String>,
    caa_identities: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    #[serde(rename = "newOrder")]
    _new_order: String,
    #[serde(default)]
    meta: Meta,
}

#[derive(Deserialize)]
struct Authorization {
    challenges: Vec<Challenge>,
}

#[derive(Deserialize)]
struct Challenge {
    url: String,
    /// `issuer-domain-names` until draft -01.
    #[serde(default, rename = "issuerDomainNames", alias = "issuer-domain-names")]
    issuers: Vec<String>,
}

impl Facts {
    /// Takes what is of use out of an answer. What is something else is left alone.
    pub(super) fn notice(&mut self, body: &[u8]) {
        let has = |word: &str| body.windows(word.len()).any(|window| window == word.as_bytes());
        if has("\"newOrder\"") {
            if let Ok(directory) = serde_json::from_slice::<Directory>(body) {
                self.meta = directory.meta;
            }
        } else if (has("\"issuerDomainNames\"") || has("\"issuer-domain-names\""))
            && let Ok(authorization) = serde_json::from_slice::<Authorization>(body)
        {
            for challenge in authorization.challenges.into_iter().filter(|c| !c.issuers.is_empty()) {
                if self.challenges.len() < MAX_CHALLENGES {
                    self.challenges.insert(challenge.url, bounded(challenge.issuers));
                }
            }
        }
    }

    /// The CA's names: as the challenge says, else as the directory does.
    pub(super) fn issuers(&self, challenge: Option<&str>) -> Vec<String> {
        if let Some(issuers) = challenge.and_then(|url| self.challenges.get(url)) {
            return issuers.clone();
        }
        let meta = &self.meta;
        let names = if meta.issuer_domain_names.is_empty() {
            &meta.caa_identities
        } else {
            &meta.issuer_domain_names
        };
        bounded(names.clone())
    }

    /// What hashed account URIs begin with.
    pub(super) fn hash_prefix(&self) -> Option<String> {
        self.meta.account_hash_prefix.clone().filter(|prefix| is_parameter(prefix))
    }
}

/// By which names a CA calls itself in DNS, and what its hashed account URIs begin with, by its directory (JSON).
pub fn names_in_dns(directory: &[u8]) -> (Vec<String>, Option<String>) {
    let mut facts = Facts::default();
    facts.notice(directory);
    (facts.issuers(None), facts.hash_prefix())
}

/// What could not stand in a record is none; it would be shown to a person to add.
fn bounded(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| crate::name::HostName::parse(name).is_ok());
    names.truncate(MAX_ISSUERS);
    names
}

fn is_parameter(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 1000
        && text.bytes().all(|b| b.is_ascii_graphic() && !b";\"\\".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_understood() {
        let mut facts = Facts::default();
        facts.notice(br#"{"newOrder":"https://ca/o","meta":{"caaIdentities":["ca.example"]}}"#);
        assert_eq!((facts.issuers(None), facts.hash_prefix()), (vec!["ca.example".to_owned()], None));
        facts.notice(
            br#"{"newOrder":"https://ca/o","meta":{"caaIdentities":["x.example"],"issuerDomainNames":["a.example"],"accountHashPrefix":"https://ca/h/"}}"#,
        );
        assert_eq!(facts.issuers(None), ["a.example"]);
        assert_eq!(facts.hash_prefix().as_deref(), Some("https://ca/h/"));
        for (key, url) in [("issuer-domain-names", "https://ca/c/1"), ("issuerDomainNames", "https://ca/c/2")]
        {
            let body = format!(
                r#"{{"status":"pending","challenges":[{{"type":"http-01","url":"x"}},{{"type":"dns-persist-01","url":"{url}","{key}":["b.example","not a name\""]}}]}}"#
            );
            facts.notice(body.as_bytes());
            assert_eq!(facts.issuers(Some(url)), ["b.example"]);
        }
        assert_eq!(facts.issuers(Some("x")), ["a.example"]);
        for junk in ["", "{", "[]", r#"{"newOrder":1}"#, r#"{"issuerDomainNames":{}}"#] {
            facts.notice(junk.as_bytes());
        }
        assert_eq!(facts.issuers(None), ["a.example"], "junk changes nothing");
        // In a zone file a backslash and a quote mean something else.
        for prefix in ["https://ca/\\\\h/", "https://ca/\\\"h/", "https://ca/;h/", "https://ca/ h/", ""] {
            let body = format!(r#"{{"newOrder":"https://ca/o","meta":{{"accountHashPrefix":"{prefix}"}}}}"#);
            assert_eq!(names_in_dns(body.as_bytes()).1, None, "{body}");
        }
    }
}
