//! A CA's directory: found, reached, what it is, what it demands, and what time it thinks it is.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::DATE;
use http::{HeaderMap, Method};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::finding::Note;
use crate::acme::{KnownCa, names_in_dns};
use crate::http_client::{HttpClient, HttpError, Question};
use crate::task;

const LIMIT: Duration = Duration::from_secs(15);
const CONNECT_LIMIT: Duration = Duration::from_secs(8);
/// A clock further away from the CA's than this makes certificates look expired, or not yet valid.
const MAX_SKEW: Duration = Duration::from_secs(600);

/// What the configuration wants of a CA.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Wanted {
    pub(super) directory: String,
    pub(super) ca_root: Option<PathBuf>,
    /// Whether an external account is configured.
    pub(super) external_account: bool,
    pub(super) profile: Option<String>,
}

/// How far the way to the directory went.
#[derive(Clone, Debug)]
pub(super) enum CaFacts {
    /// `ca_root` cannot be used.
    Root(String),
    /// Its name has no address.
    Name(String),
    /// Nothing answers at any address.
    Connect(String),
    /// TLS or HTTP failed.
    Exchange(String),
    /// It answered.
    Answer(Answer),
}

/// What was answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// `None`: it is not a directory.
    pub(super) meta: Option<Meta>,
    /// Of the answer, and ours at that moment.
    pub(super) date: Option<(SystemTime, SystemTime)>,
}

/// The `meta` of a directory (RFC 8555 section 7.1.1), with profiles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) external_account: bool,
    pub(super) identities: Vec<String>,
    pub(super) profiles: BTreeSet<String>,
    /// What dns-persist-01 needs: its names in records that stay, and what hashed accounts begin with.
    pub(super) persist: (Vec<String>, Option<String>),
}

/// Walks to the directory step by step, so that it is known where it ends. Within half a minute.
pub(super) async fn gather(wanted: &Wanted, now: impl Fn() -> SystemTime) -> CaFacts {
    let root = wanted.ca_root.clone();
    let http = match task::blocking(move || HttpClient::new(root.as_deref(), LIMIT)).await {
        Ok(http) => http,
        Err(HttpError::Roots { reason, .. }) => return CaFacts::Root(reason),
        Err(error) => return CaFacts::Exchange(error.to_string()),
    };
    if let Err(stopped) = reach(&wanted.directory).await {
        return stopped;
    }
    let question = Question {
        method: Method::GET,
        url: wanted.directory.clone(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    match http.ask(question).await {
        Err(error) => CaFacts::Exchange(error.to_string()),
        Ok(answer) => {
            let date = answer.headers.get(DATE).and_then(|v| v.to_str().ok());
            let date =
                date.and_then(|text| httpdate::parse_http_date(text).ok()).map(|theirs| (theirs, now()));
            let meta = (answer.status.as_u16() == 200).then(|| read(&answer.body)).flatten();
            CaFacts::Answer(Answer { status: answer.status.as_u16(), meta, date })
        }
    }
}

async fn reach(directory: &str) -> Result<(), CaFacts> {
    let url: http::Uri = directory.parse().map_err(|_| CaFacts::Name("it is not a URL".into()))?;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_u16().unwrap_or(443);
    let addresses: Vec<SocketAddr> = match host.parse() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => match timeout(LIMIT, tokio::net::lookup_host((host.as_str(), port))).await {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => return Err(CaFacts::Name(error.to_string())),
            Err(_) => return Err(CaFacts::Name(format!("no answer within {} s", LIMIT.as_secs()))),
        },
    };
    let mut said = Vec::new();
    for address in addresses.into_iter().take(4) {
        match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => said.push(format!("{address}: {error}")),
            Err(_) => said.push(format!("{address}: no answer within {} s", CONNECT_LIMIT.as_secs())),
        }
    }
    Err(CaFacts::Connect(said.join("; ")))
}

fn read(body: &[u8]) -> Option<Meta> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    if !["newNonce", "newAccount", "newOrder"].iter().all(|key| json[key].is_string()) {
        return None;
    }
    let meta = &json["meta"];
    let text = |value: &serde_json::Value| value.as_str().map(ToOwned::to_owned);
    Some(Meta {
        external_account: meta["externalAccountRequired"].as_bool().unwrap_or(false),
        identities: meta["caaIdentities"].as_array().into_iter().flatten().filter_map(text).collect(),
        persist: names_in_dns(body),
        profiles: meta["profiles"].as_object().into_iter().flat_map(|p| p.keys().cloned()).collect(),
    })
}

/// What a public CA calls itself in CAA records, from the CAs' own documents; by the host of its directory.
const CAA_IDENTITIES: &[(&str, &[&str])] = &[
    ("acme-v02.api.letsencrypt.org", &["letsencrypt.org"]),
    ("acme-staging-v02.api.letsencrypt.org", &["letsencrypt.org"]),
    (
        "acme.zerossl.com",
        &["sectigo.com", "trust-provider.com", "usertrust.com", "comodoca.com", "comodo.com"],
    ),
    ("dv.acme-v02.api.pki.goog", &["pki.goog"]),
    ("dv.acme-v02.test-api.pki.goog", &["pki.goog"]),
    ("acme.ssl.com", &["ssl.com"]),
];

fn host_of(directory: &str) -> Option<String> {
    directory.parse::<http::Uri>().ok()?.host().map(ToOwned::to_owned)
}

/// What people call the CA.
pub(super) fn name(directory: &str) -> String {
    let title = KnownCa::of_directory(directory).map(|ca| ca.title.to_owned());
    title.or_else(|| host_of(directory)).unwrap_or_else(|| directory.to_owned())
}

/// What the CA calls itself in CAA records: by its directory, else as is known.
pub(super) fn identities(directory: &str, facts: Option<&CaFacts>) -> Vec<String> {
    match facts {
        Some(CaFacts::Answer(Answer { meta: Some(meta), .. })) if !meta.identities.is_empty() => {
            meta.identities.clone()
        }
        _ => {
            let host = host_of(directory);
            let row = CAA_IDENTITIES.iter().find(|(known, _)| host.as_deref() == Some(known));
            row.map(|(_, list)| list.iter().map(|id| (*id).to_owned()).collect()).unwrap_or_default()
        }
    }
}

pub(super) fn judge(wanted: &Wanted, facts: &CaFacts) -> Vec<Note> {
    let (directory, place) = (&wanted.directory, "[acme] ca");
    let host = host_of(directory).unwrap_or_default();
    let fail = |id, what: String| Note::failure(id, what).place(place);
    let nothing =
        "no certificate can be ordered or renewed; what is held goes on being served until it expires";
    let answer = match facts {
        CaFacts::Root(reason) => {
            let path = wanted.ca_root.as_deref().unwrap_or(Path::new("")).display();
            return vec![
                fail("ca.root", format!("the root certificates in {path} cannot be used: {reason}"))
                    .why("Starlock does not start with it")
                    .fix(format!("put the CA's root there in PEM, readable for the user that Starlock runs as: ls -l {path}"))
                    .place("[acme] ca_root"),
            ];
        }
        CaFacts::Name(reason) => {
            return vec![
                fail("ca.name", format!("the name of the CA, {host}, does not resolve: {reason}"))
                    .why(nothing)
                    .fix(format!("see that this machine can resolve it (getent hosts {host}), or correct `ca` in [acme]")),
            ];
        }
        CaFacts::Connect(reason) => {
            return vec![
                fail("ca.unreachable", format!("the CA at {host} cannot be reached: {reason}"))
                    .why(nothing)
                    .fix(format!("let this machine connect to it: curl -v {directory}")),
            ];
        }
        CaFacts::Exchange(reason) => {
            let root = if wanted.ca_root.is_none() && KnownCa::of_directory(directory).is_none() {
                "; for a private CA: [acme] ca_root = \"/path/to/root.pem\""
            } else {
                ""
            };
            return vec![
                fail("ca.tls", format!("the CA's directory cannot be read: {reason}"))
                    .why(nothing)
                    .fix(format!("see what answers there: curl -v {directory}{root}")),
            ];
        }
        CaFacts::Answer(answer) => answer,
    };
    let mut notes = Vec::new();
    if let Some((theirs, ours)) = answer.date {
        let (skew, word) = match ours.duration_since(theirs) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        if skew > MAX_SKEW {
            notes.push(
                fail("ca.clock", format!("this machine's clock is {} min {word} the CA's", skew.as_secs() / 60))
                    .why("new certificates look not yet valid, or old ones expired, and renewals come at the wrong time")
                    .fix("timedatectl set-ntp true")
                    .place("the clock of this machine"),
            );
        }
    }
    let Some(meta) = &answer.meta else {
        notes.push(
            fail("ca.not-acme", format!("{directory} answers {} with something that is not an ACME directory", answer.status))
                .why(nothing)
                .fix(format!("correct `ca` in [acme]; a directory names newNonce, newAccount and newOrder: curl -s {directory}")),
        );
        return notes;
    };
    if meta.external_account && !wanted.external_account {
        notes.push(
            fail(
                "ca.external-account",
                format!("{} demands an external account, and none is configured", name(directory)),
            )
            .why("it refuses to register an account without it")
            .fix("[acme] eab = { kid = \"...\", hmac = { file = \"/etc/starlock/eab-hmac\" } }"),
        );
    }
    if let Some(profile) = wanted.profile.as_ref().filter(|profile| !meta.profiles.contains(*profile)) {
        let offered: Vec<&str> = meta.profiles.iter().map(String::as_str).collect();
        let (what, fix) = match offered.first() {
            None => (
                format!("{} offers no profiles, and `{profile}` is configured", name(directory)),
                "take `profile` out of [acme]".to_owned(),
            ),
            Some(first) => (
                format!(
                    "{} does not offer the profile `{profile}`, but {}",
                    name(directory),
                    offered.join(", ")
                ),
                format!("[acme] profile = \"{first}\""),
            ),
        };
        notes.push(
            fail("ca.profile", what)
                .why("it refuses orders for a profile that it does not have")
                .fix(fix)
                .place("[acme] profile"),
        );
    }
    if notes.is_empty() {
        notes.push(Note::ok("ca.directory", format!("{} answers, and its clock agrees", name(directory))));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            directory: "https://ca.example/dir".into(),
            ca_root: None,
            external_account: false,
            profile: None,
        }
    }

    #[test]
    fn a_directory_is_told_from_anything_else() {
        assert_eq!(read(b"<html>"), None);
        assert_eq!(read(b"{\"newNonce\":\"x\"}"), None);
        let meta = read(
            br#"{"newNonce":"a","newAccount":"b","newOrder":"c","meta":{"externalAccountRequired":true,
            "caaIdentities":["ca.example"],"profiles":{"short":"x"}}}"#,
        )
        .unwrap();
        assert!(meta.external_account && meta.profiles.contains("short"));
        assert_eq!(meta.identities, ["ca.example"]);
        let facts = CaFacts::Answer(Answer { status: 200, meta: Some(meta), date: None });
        assert_eq!(identities("https://ca.example/dir", Some(&facts)), ["ca.example"]);
        assert_eq!(identities("https://acme.ssl.com/dv", None), ["ssl.com"]);
    }

    #[test]
    fn each_mistake_has_its_finding() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let answer = |change: fn(&mut Meta)| {
            let mut meta = Meta::default();
            change(&mut meta);
            CaFacts::Answer(Answer { status: 200, meta: Some(meta), date: Some((now, now)) })
        };
        let skewed = |by: u64| {
            CaFacts::Answer(Answer {
                status: 200,
                meta: Some(Meta::default()),
                date: Some((now + Duration::from_secs(by), now)),
            })
        };
        let short = Wanted { profile: Some("short".into()), ..wanted() };
        let cases = [
            (wanted(), answer(|_| {}), "ca.directory"),
            (wanted(), CaFacts::Name("x".into()), "ca.name"),
            (wanted(), CaFacts::Connect("x".into()), "ca.unreachable"),
            (wanted(), CaFacts::Exchange("x".into()), "ca.tls"),
            (wanted(), CaFacts::Root("x".into()), "ca.root"),
            (wanted(), CaFacts::Answer(Answer { status: 404, meta: None, date: None }), "ca.not-acme"),
            (wanted(), answer(|meta| meta.external_account = true), "ca.external-account"),
            (
                Wanted { external_account: true, ..wanted() },
                answer(|meta| meta.external_account = true),
                "ca.directory",
            ),
            (short.clone(), answer(|_| {}), "ca.profile"),
            (short, answer(|meta| meta.profiles = ["short".to_owned()].into()), "ca.directory"),
            (wanted(), skewed(599), "ca.directory"),
            (wanted(), skewed(660), "ca.clock"),
        ];
        for (wanted, facts, id) in cases {
            let notes = judge(&wanted, &facts);
            assert_eq!(notes.iter().map(|note| note.id).collect::<Vec<_>>(), [id], "{facts:?}");
            assert!(id == "ca.directory" || !(notes[0].fix.is_empty() || notes[0].why.is_empty()));
        }
        assert!(judge(&wanted(), &skewed(660))[0].what.contains("11 min behind"));
    }
}
