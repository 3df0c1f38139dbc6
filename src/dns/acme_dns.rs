//! acme-dns (`https://github.com/joohoi/acme-dns`): a name server for nothing but challenges, led to by a CNAME.
//!
//! Accounts lie in a file of the shape that lego and goacmedns write: an object with an account for each domain. A domain
//! without one is registered, and the person is told which CNAME to add. There is no removal: the server keeps the last two
//! values of a name, which is what an apex and its wildcard need.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Map, Value, json};

use super::build::BuildError;
use super::redact::Redactor;
use super::turns::ZoneTurns;
use super::{DnsError, TxtProvider, TxtRecord};
use crate::http_client::{HttpClient, Question};
use crate::name::DnsName;
use crate::task;

const PROVIDER: &str = "acme-dns";
const CHALLENGE: &str = "_acme-challenge.";
/// An account takes some 300 bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// What the server keeps for a name.
const KEPT: usize = 2;
/// Names whose values are remembered.
const MAX_NAMES: usize = 1024;

pub(super) struct AcmeDns {
    id: String,
    endpoint: String,
    accounts: PathBuf,
    client: HttpClient,
    turns: ZoneTurns,
    /// What stands by our own doing: setting a value again would push another one out.
    standing: Mutex<HashMap<String, VecDeque<String>>>,
}

impl fmt::Debug for AcmeDns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AcmeDns({})", self.id)
    }
}

/// One account, as far as it is needed.
struct Account {
    full: DnsName,
    subdomain: String,
    username: String,
    password: String,
}

impl AcmeDns {
    /// `endpoint` is an http or https URL. The file is first read when a record is to be written.
    pub(super) fn new(
        id: String,
        endpoint: &str,
        accounts: &Path,
        timeout: Duration,
        turns: ZoneTurns,
    ) -> Result<Self, BuildError> {
        let sound = endpoint.parse().is_ok_and(|uri: http::Uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
        });
        if !sound {
            return Err(BuildError::BadKey {
                provider: PROVIDER.into(),
                key: "endpoint",
                reason: "it is not a URL, as in `https://auth.example.net`".into(),
            });
        }
        // What is there has to be usable; a file that is not there yet is made with the first registration.
        read(accounts).map_err(|reason| BuildError::BadKey {
            provider: PROVIDER.into(),
            key: "accounts",
            reason,
        })?;
        let client = HttpClient::new(None, timeout).map_err(|e| BuildError::Client(e.to_string()))?;
        let (endpoint, accounts) = (endpoint.trim_end_matches('/').to_owned(), accounts.to_owned());
        Ok(Self { id, endpoint, accounts, client, turns, standing: Mutex::default() })
    }

    /// The account that the record's name belongs to; CNAMEs were followed already.
    async fn account(&self, name: &DnsName) -> Result<Account, DnsError> {
        let path = self.accounts.clone();
        let shown = path.display().to_string();
        let held = task::blocking(move || read(&path)).await.map_err(DnsError::Refused)?;
        let accounts: Vec<(&String, Account)> =
            held.iter().filter_map(|(domain, value)| Some((domain, account(value)?))).collect();
        let Some(domain) = name.as_str().strip_prefix(CHALLENGE) else {
            let found = accounts.into_iter().find(|(_, account)| account.full == *name);
            return found.map(|(_, account)| account).ok_or_else(|| {
                DnsError::Refused(format!(
                    "acme-dns: the challenge's CNAME leads to {name}, but no account in {shown} has that as its `fulldomain`"
                ))
            });
        };
        // No CNAME yet. A person has to add it; then the next try goes through by itself, so it is not given up for.
        let known = accounts.into_iter().find(|(known, _)| known.trim_end_matches('.') == domain);
        let (account, new) = match known {
            Some((_, account)) => (account, ""),
            None => (self.register(domain).await?, ", which was registered just now"),
        };
        Err(DnsError::Unavailable(format!(
            "acme-dns: {domain} is not led to its account{new}. Add this record at the DNS of {domain}, once:  \
             {CHALLENGE}{domain}. CNAME {}.  The next try will find it",
            account.full
        )))
    }

    /// Registers a domain and keeps what the server gives.
    async fn register(&self, domain: &str) -> Result<Account, DnsError> {
        let (status, body) = self.post("register", HeaderMap::new(), &json!({})).await?;
        let mut given: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some(made) = account(&given).filter(|_| (200..300).contains(&status)) else {
            return Err(judge(
                status,
                &format!("acme-dns: cannot register {domain} at {}", self.endpoint),
                "",
            ));
        };
        given["server_url"] = self.endpoint.clone().into();
        let _turn = self.turns.take(&format!("file {}", self.accounts.display())).await;
        let (path, domain) = (self.accounts.clone(), domain.to_owned());
        let kept = task::blocking(move || {
            let mut held = read(&path)?;
            held.insert(domain, given);
            write(&path, &held).map_err(|e| format!("cannot write {}: {e}", path.display()))
        });
        kept.await.map_err(|reason| {
            DnsError::Refused(format!("acme-dns: the account was registered but could not be kept: {reason}"))
        })?;
        Ok(made)
    }

    async fn post(&self, verb: &str, headers: HeaderMap, body: &Value) -> Result<(u16, Bytes), DnsError> {
        let mut headers = headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let url = format!("{}/{verb}", self.endpoint);
        let question = Question { method: Method::POST, url, headers, body: Bytes::from(body.to_string()) };
        let answer = self.client.ask(question).await;
        let answer = answer.map_err(|error| DnsError::Unavailable(format!("acme-dns /{verb}: {error}")))?;
        Ok((answer.status.as_u16(), answer.body))
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<String, VecDeque<String>>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl TxtProvider for AcmeDns {
    fn id(&self) -> &str {
        &self.id
    }

    fn keeps_values(&self) -> bool {
        true
    }

    async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        let _turn = self.turns.take(&format!("{} {}", self.id, record.name)).await;
        let account = self.account(&record.name).await?;
        if self.remembered().get(&account.subdomain).is_some_and(|held| held.contains(&record.value)) {
            return Ok(());
        }
        let context = format!("acme-dns: cannot set the TXT record {}", record.name);
        let mut headers = HeaderMap::new();
        for (field, text) in [("x-api-user", &account.username), ("x-api-key", &account.password)] {
            let mut value = HeaderValue::from_str(text).map_err(|_| {
                DnsError::Refused(format!("{context}: its account in {} is damaged", self.accounts.display()))
            })?;
            value.set_sensitive(true);
            headers.insert(field, value);
        }
        let body = json!({ "subdomain": account.subdomain, "txt": record.value });
        let (status, said) = self.post("update", headers, &body).await?;
        if (200..300).contains(&status) {
            let mut remembered = self.remembered();
            if remembered.len() >= MAX_NAMES {
                remembered.clear();
            }
            let held = remembered.entry(account.subdomain).or_default();
            held.push_back(record.value.clone());
            if held.len() > KEPT {
                held.pop_front();
            }
            return Ok(());
        }
        if status == 401 {
            return Err(DnsError::Refused(format!(
                "{context}: its account in `accounts` ({}) was not accepted (HTTP 401); remove it there to register anew",
                self.accounts.display()
            )));
        }
        let redactor = Redactor::new([account.username.as_str(), account.password.as_str()]);
        Err(judge(status, &context, &redactor.clean(&String::from_utf8_lossy(&said))))
    }

    /// The server has no removal; newer values replace older ones. What we know of it is forgotten.
    async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        for held in self.remembered().values_mut() {
            held.retain(|value| *value != record.value);
        }
        Ok(())
    }
}

fn judge(status: u16, context: &str, said: &str) -> DnsError {
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let message = format!("{context}: the server answered HTTP {status}{said}");
    let later = !(400..500).contains(&status) || matches!(status, 408 | 409 | 423 | 425 | 429);
    if later { DnsError::Unavailable(message) } else { DnsError::Refused(message) }
}

/// The keys are lower-case in lego's files and in the server's answers, and in camel case in old ones of goacmedns.
fn account(value: &Value) -> Option<Account> {
    let fields = value.as_object()?;
    let field = |wanted: &str| {
        let (_, value) = fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted))?;
        Some(value.as_str()?.to_owned()).filter(|text| !text.is_empty())
    };
    let full = DnsName::parse(field("fulldomain")?.trim_end_matches('.')).ok()?;
    Some(Account {
        full,
        subdomain: field("subdomain")?,
        username: field("username")?,
        password: field("password")?,
    })
}

/// The whole file; empty if there is none yet. Blocking, bounded; only a regular file is read.
fn read(path: &Path) -> Result<Map<String, Value>, String> {
    let place = path.display();
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = match std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(format!("cannot read {place}: {error}")),
    };
    if !file.metadata().is_ok_and(|data| data.is_file()) {
        return Err(format!("{place} is not a regular file"));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| format!("cannot read {place}: {e}"))?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("{place} is over the limit of {MAX_FILE} bytes"));
    }
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(&text) {
        Ok(Value::Object(accounts)) => Ok(accounts),
        // The error of the parser would show what it found.
        _ => Err(format!("{place} is not a JSON object with an account for each domain, as lego writes it")),
    }
}

/// In one step: a crash leaves the former file or the new one. Readable by its owner only.
fn write(path: &Path, accounts: &Map<String, Value>) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| std::io::Error::other("it has no file name"))?;
    let temporary = dir.join(format!(".{}.{:08x}", name.to_string_lossy(), rand::random::<u32>()));
    let fill = || {
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(accounts)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    fill().inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn accounts_of_both_generations_are_read_and_others_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.json");
        assert!(read(&path).unwrap().is_empty());
        let new = json!({ "fulldomain": "a.auth.net", "subdomain": "a", "username": "u", "password": "p",
            "server_url": "https://auth.net" });
        let old = json!({ "FullDomain": "b.auth.net", "SubDomain": "b", "Username": "u", "Password": "p" });
        let held = json!({ "a.com": new, "b.com": old, "c.com": "something else" });
        write(&path, held.as_object().unwrap()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode, std::fs::read_dir(dir.path()).unwrap().count()), (0o600, 1));
        let read = read(&path).unwrap();
        assert_eq!(Value::Object(read.clone()), held);
        let names: Vec<_> = read.values().filter_map(account).map(|a| a.full.to_string()).collect();
        assert_eq!(names, ["a.auth.net", "b.auth.net"]);
    }

    #[test]
    fn what_is_no_such_file_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accounts.json");
        std::fs::write(&path, "[\"hunter2\"]").unwrap();
        assert!(!read(&path).unwrap_err().contains("hunter2"));
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert!(read(&fifo).unwrap_err().contains("regular"));
        assert!(read(dir.path()).is_err());
    }
}
