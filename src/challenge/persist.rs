//! dns-persist-01 (draft-ietf-acme-dns-persist): a person adds one TXT record, once, and it stays. Nothing is ever written here;
//! the record is looked for at every authoritative server before the CA hears of an order.
//!
//! Two formats are about: CAs that publish `accountHashPrefix` want the account hashed together with the name (-02), all others
//! read the account's URL itself (-00, -01).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use futures_util::stream::{self, StreamExt};
use sha2::{Digest, Sha256};

use super::{AccountFacts, Batch, Challenge, ChallengeKind, ChallengeSolver, PresentError, Presented};
use crate::clock::SharedClock;
use crate::name::{DnsName, HostName};
use crate::resolver::{AskError, Here, Resolver, TxtReply, Zone};

/// Names looked at at once.
const AT_ONCE: usize = 8;
/// For one name, everything included.
const LIMIT: Duration = Duration::from_secs(60);
/// Values shown of what a server has.
const MAX_SHOWN: usize = 3;

/// A record that has to be there and is not at every server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingRecord {
    /// As it stands in a zone file.
    pub record: String,
    /// What the servers say instead, a line each.
    pub said: String,
}

/// Looks for records that a person added.
#[derive(Debug)]
pub struct PersistSolver {
    resolver: Arc<Resolver>,
    clock: SharedClock,
}

impl PersistSolver {
    /// Asks `resolver` for zones, and their servers for records.
    pub fn new(resolver: Arc<Resolver>, clock: SharedClock) -> Self {
        Self { resolver, clock }
    }

    /// Looks for the records of all names; the error shows each that is missing, as it has to be added.
    async fn look(&self, names: &[(HostName, bool)], account: &AccountFacts) -> Result<(), PresentError> {
        let mut wanted: BTreeMap<&HostName, bool> = BTreeMap::new();
        for (name, wildcard) in names {
            *wanted.entry(name).or_default() |= wildcard;
        }
        let wanted: Vec<Wanted> =
            wanted.into_iter().map(|(name, wildcard)| Wanted::new(name, wildcard, account)).collect();
        let looks: Vec<_> = wanted.iter().map(|wanted| self.missing(wanted)).collect();
        let mut looks = stream::iter(looks).buffered(AT_ONCE);
        let mut missing = String::new();
        while let Some(said) = looks.next().await {
            if let Some(MissingRecord { record, said }) = said {
                let _ = writeln!(missing, "  add: {record}");
                missing.extend(said.lines().map(|line| format!("       {line}\n")));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(PresentError {
            permanent: false,
            message: format!(
                "dns-persist-01 needs a TXT record that is not there yet. Nothing was asked of the CA; it is looked for again by \
                 itself.\n{missing}"
            ),
        })
    }

    /// Looks for the record of one name, and of `*.` below it if `wildcard`; `None` if every server shows it. The account's
    /// `issuers` are not empty. Takes a minute at most.
    pub async fn look_for(
        &self,
        name: &HostName,
        wildcard: bool,
        account: &AccountFacts,
    ) -> Option<MissingRecord> {
        self.missing(&Wanted::new(name, wildcard, account)).await
    }

    /// What to add and what the servers say instead; `None` if every server shows it.
    async fn missing(&self, wanted: &Wanted) -> Option<MissingRecord> {
        let missing = |said| Some(MissingRecord { record: wanted.record(), said });
        let mut text = String::new();
        let said = match tokio::time::timeout(LIMIT, self.ask(&wanted.name)).await {
            Ok(Ok(said)) => said,
            Ok(Err(why)) => return missing(why),
            Err(_) => {
                return missing(format!("its name servers did not answer within {} s", LIMIT.as_secs()));
            }
        };
        let now = self.clock.now();
        let mut complete = !said.is_empty();
        for (server, replies) in &said {
            let shows = |reply: &Reply| matches!(reply, Ok(TxtReply::Values(values)) if values.iter().any(|v| wanted.fits(v, now)));
            let silent = |reply: &Reply| reply.is_err();
            // An address that is silent does not count while another one of the same server answers.
            let good =
                replies.iter().any(|(_, r)| shows(r)) && replies.iter().all(|(_, r)| shows(r) || silent(r));
            complete &= good;
            if !good && replies.is_empty() {
                let _ = writeln!(text, "{server}: its name does not resolve");
            }
            for (address, reply) in replies.iter().filter(|(_, reply)| !good && !shows(reply)) {
                let _ = writeln!(text, "{server} ({address}): {}", describe(reply));
            }
        }
        if complete { None } else { missing(text) }
    }

    async fn ask(&self, name: &DnsName) -> Result<Vec<(DnsName, Vec<(SocketAddr, Reply)>)>, String> {
        let target = self.resolver.follow(name, &Here::default()).await.map_err(|e| e.to_string())?;
        let servers = target.zone.map(|Zone { servers, .. }| servers).unwrap_or_default();
        let asking = servers.into_iter().map(|server| {
            let target = &target.name;
            async move {
                let replies = server
                    .addresses
                    .into_iter()
                    .map(|address| async move { (address, self.resolver.txt(address, target).await) });
                (server.name, futures_util::future::join_all(replies).await)
            }
        });
        Ok(futures_util::future::join_all(asking).await)
    }
}

type Reply = Result<TxtReply, AskError>;

#[async_trait]
impl ChallengeSolver for PersistSolver {
    fn kinds(&self, _name: &HostName) -> Vec<ChallengeKind> {
        vec![ChallengeKind::DnsPersist01]
    }

    fn batches(&self, challenges: &[Challenge]) -> Vec<Batch> {
        if challenges.is_empty() { Vec::new() } else { vec![challenges.to_vec()] }
    }

    async fn before_order(
        &self,
        names: &[(HostName, bool)],
        account: &AccountFacts,
    ) -> Result<(), PresentError> {
        // A CA may name itself only in its challenges; then `present` looks.
        if account.issuers.is_empty() { Ok(()) } else { self.look(names, account).await }
    }

    async fn present(&self, batch: &[Challenge]) -> Result<Box<dyn Presented>, PresentError> {
        for challenge in batch {
            let account = &challenge.account;
            if account.issuers.is_empty() {
                return Err(PresentError {
                    permanent: true,
                    message:
                        "the CA offers dns-persist-01 and does not say by which name it calls itself in DNS"
                            .into(),
                });
            }
            self.look(&[(challenge.name.clone(), challenge.wildcard)], account).await?;
        }
        Ok(Box::new(Nothing))
    }
}

#[derive(Debug)]
struct Nothing;

#[async_trait]
impl Presented for Nothing {
    async fn clean_up(self: Box<Self>) {}
}

/// A record that has to be there.
#[derive(Debug)]
struct Wanted {
    name: DnsName,
    issuers: Vec<String>,
    account: String,
    wildcard: bool,
}

impl Wanted {
    fn new(name: &HostName, wildcard: bool, account: &AccountFacts) -> Self {
        let uri = match &account.hash_prefix {
            Some(prefix) => hashed(prefix, name, account),
            None => account.url.clone(),
        };
        Self { name: persist_name(name), issuers: account.issuers.clone(), account: uri, wildcard }
    }

    /// As in a zone file.
    fn record(&self) -> String {
        let issuer = self.issuers.first().map_or("", String::as_str);
        persist_record(&self.name, issuer, &self.account, self.wildcard)
    }

    /// Whether a CA takes `value`: one of its names, this account, wildcards allowed where needed, not over yet. Tags and
    /// the policy are read in any case; a parameter that is there twice spoils the record.
    fn fits(&self, value: &str, now: SystemTime) -> bool {
        let mut parts = value.split(';').map(str::trim);
        let issuer = parts.next().unwrap_or_default().trim_end_matches('.');
        if !self.issuers.iter().any(|ours| ours.trim_end_matches('.').eq_ignore_ascii_case(issuer)) {
            return false;
        }
        let mut parameters: BTreeMap<String, &str> = BTreeMap::new();
        for part in parts.filter(|part| !part.is_empty()) {
            let Some((tag, value)) = part.split_once('=') else { return false };
            if parameters.insert(tag.trim().to_ascii_lowercase(), value.trim()).is_some() {
                return false;
            }
        }
        let over = |until: &&str| {
            let seconds = until.parse::<u64>().map(Duration::from_secs).ok();
            seconds.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(s)).is_none_or(|until| now > until)
        };
        let wild = || parameters.get("policy").is_some_and(|policy| policy.eq_ignore_ascii_case("wildcard"));
        parameters.get("accounturi") == Some(&self.account.as_str())
            && (!self.wildcard || wild())
            && !parameters.get("persistuntil").is_some_and(over)
    }
}

/// Where the record for `name` stands.
pub fn persist_name(name: &HostName) -> DnsName {
    DnsName::from(name).with_label("_validation-persist")
}

/// The record as it stands in a zone file.
pub fn persist_record(name: &DnsName, issuer: &str, account: &str, wildcard: bool) -> String {
    let policy = if wildcard { "; policy=wildcard" } else { "" };
    format!("{}  TXT  \"{issuer}; accounturi={account}{policy}\"", name.to_fqdn())
}

/// The account as -02 names it: bound to the name, so that records do not show whose names belong together.
fn hashed(prefix: &str, name: &HostName, account: &AccountFacts) -> String {
    let mut digest = Sha256::new();
    let name = name.as_str();
    digest.update([u8::try_from(name.len()).unwrap_or(u8::MAX)]);
    digest.update(name);
    digest.update(&account.thumbprint);
    digest.update(&account.url);
    format!("{prefix}sha-256/{}", BASE64_URL_SAFE_NO_PAD.encode(digest.finalize()))
}

fn describe(reply: &Reply) -> String {
    match reply {
        Ok(TxtReply::Values(values)) => {
            let shown: Vec<String> = values
                .iter()
                .take(MAX_SHOWN)
                .map(|v| v.chars().take(200).collect::<String>().escape_debug().to_string())
                .collect();
            let more = values.len().saturating_sub(MAX_SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("it has: {}{more}", shown.join(", "))
        }
        Ok(TxtReply::Absent) => "no TXT record there".to_owned(),
        Ok(TxtReply::Cname) => "a CNAME stands there".to_owned(),
        Ok(TxtReply::Referral(zone)) => format!("it refers to the servers of {zone}"),
        Ok(TxtReply::Unhelpful(why)) => why.clone(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(prefix: Option<&str>) -> AccountFacts {
        AccountFacts {
            url: "https://ca.example/acct/123".into(),
            thumbprint: "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs".into(),
            issuers: vec!["ca.example".into(), "backup.ca.example".into()],
            hash_prefix: prefix.map(Into::into),
        }
    }

    fn wanted(wildcard: bool, prefix: Option<&str>) -> Wanted {
        Wanted::new(&HostName::parse("example.com").unwrap(), wildcard, &account(prefix))
    }

    #[test]
    fn the_record_in_both_formats() {
        assert_eq!(
            wanted(false, None).record(),
            "_validation-persist.example.com.  TXT  \"ca.example; accounturi=https://ca.example/acct/123\""
        );
        let record = wanted(true, Some("https://ca.example/hashed/")).record();
        let begin = "_validation-persist.example.com.  TXT  \"ca.example; accounturi=https://ca.example/hashed/sha-256/";
        let hash = record.strip_prefix(begin).and_then(|r| r.strip_suffix("; policy=wildcard\"")).unwrap();
        // printf '\x0bexample.comNzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xshttps://ca.example/acct/123' | openssl sha256 -binary | base64url
        assert_eq!(hash, "5SQm7n6tPh2-PlLbCKGnViTXX5z19SCN4cPGQHSk-kw");
        let other = Wanted::new(&HostName::parse("example.net").unwrap(), true, &account(Some("x:"))).account;
        assert_ne!(other.rsplit('/').next(), Some(hash), "bound to the name");
    }

    #[test]
    fn what_a_ca_would_take() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let uri = "accounturi=https://ca.example/acct/123";
        for (value, plain, wild) in [
            (format!("ca.example; {uri}"), true, false),
            (format!("CA.example. ;{uri};"), true, false),
            (format!("backup.ca.example;{uri};policy=wildcard"), true, true),
            ("ca.example;AccountURI=https://ca.example/acct/123;Policy=WildCard".into(), true, true),
            (format!("ca.example; {uri}; policy=other"), true, false),
            (format!("ca.example; {uri}; persistUntil=1000"), true, false),
            (format!("ca.example; {uri}; persistUntil=999"), false, false),
            (format!("ca.example; {uri}; persistUntil=soon"), false, false),
            (format!("ca.example; {uri}; {uri}"), false, false),
            (format!("ca.example; {uri}4"), false, false),
            ("ca.example; accounturi=https://CA.example/acct/123".into(), false, false),
            ("ca.example".into(), false, false),
            (format!("other.example; {uri}"), false, false),
            (format!("ca.example; {uri}; junk"), false, false),
            (String::new(), false, false),
        ] {
            assert_eq!(wanted(false, None).fits(&value, now), plain, "{value}");
            assert_eq!(wanted(true, None).fits(&value, now), wild, "{value}");
        }
    }
}
