//! DNS-01 through real name servers: what is published, who shows it, and that nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use starlock::challenge::{
    Challenge, ChallengeSolver, Dns01Solver, Janitor, OwnResponder, PresentError, Presented, janitor,
};
use starlock::clock::SystemClock;
use starlock::dns::{
    CommonKeys, Propagation, PropagationCheck, ProviderKind, ProviderSpec, Surroundings, TxtProvider,
    VendorValue, ZoneTurns, build,
};
use starlock::name::HostName;
use starlock::resolver::{Here, LookupError, Resolver};
use starlock::secret::{Secret, SecretSource};
use starlock::storage::{Expect, Key, Lease, MemoryStorage, Revision, Storage, StorageError, Stored};
use starlock::task::{Shutdown, Supervisor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::responder::{Responder, name, parent};
use crate::support::dns::{Knot, PowerDns, Recursor, hook, loopback, script, txt};
use crate::support::eventually;

const CHALLENGE: &str = "_acme-challenge.example.test";

/// Storage, janitor, and the resolver that knows where to begin.
pub(crate) struct Rig {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) supervisor: Supervisor,
    pub(crate) janitor: Janitor,
    pub(crate) resolver: Arc<Resolver>,
}

impl Rig {
    pub(crate) fn new(recursor: SocketAddr) -> Self {
        Self::with_storage(recursor, Arc::new(MemoryStorage::new()))
    }

    pub(crate) fn with_storage(recursor: SocketAddr, storage: Arc<dyn Storage>) -> Self {
        let supervisor = Supervisor::new(Shutdown::new());
        let janitor = janitor(storage.clone(), Arc::new(SystemClock), &supervisor);
        Self { storage, supervisor, janitor, resolver: Arc::new(Resolver::new(vec![recursor])) }
    }

    pub(crate) fn provider(&self, kind: ProviderKind) -> Arc<dyn TxtProvider> {
        self.provider_with(kind, CommonKeys::default())
    }

    pub(crate) fn provider_with(&self, kind: ProviderKind, common: CommonKeys) -> Arc<dyn TxtProvider> {
        let with = Surroundings {
            resolver: self.resolver.clone(),
            clock: Arc::new(SystemClock),
            turns: ZoneTurns::new(),
            builtin: None,
        };
        build(&ProviderSpec { kind, common }, &with).unwrap()
    }

    pub(crate) fn solver(&self, provider: Arc<dyn TxtProvider>) -> Dns01Solver {
        self.solver_with(provider, Duration::from_secs(30), None)
    }

    pub(crate) fn solver_with(
        &self,
        provider: Arc<dyn TxtProvider>,
        timeout: Duration,
        own: Option<OwnResponder>,
    ) -> Dns01Solver {
        let propagation =
            Propagation { check: PropagationCheck::Authoritative, timeout, ..Propagation::default() };
        Dns01Solver::new(provider, self.resolver.clone(), self.janitor.clone(), propagation, own)
    }

    /// Ends the janitor; gives what is left in the journal.
    pub(crate) async fn end(self) -> usize {
        self.supervisor.shutdown().trigger();
        assert!(self.supervisor.join(Duration::from_secs(15)).await);
        self.storage.list("journal").await.unwrap().len()
    }
}

pub(crate) fn challenges(host: &str, values: &[&str]) -> Vec<Challenge> {
    let name = HostName::parse(host).unwrap();
    values.iter().map(|value| Challenge::dns01(name.clone(), value)).collect()
}

pub(crate) fn plain(text: &str) -> SecretSource {
    SecretSource::Plain(Secret::new(text))
}

pub(crate) fn rfc2136(knot: &Knot) -> ProviderKind {
    ProviderKind::Rfc2136 {
        server: knot.address,
        key_name: knot.key_name.clone(),
        secret: plain(&knot.secret),
        algorithm: "hmac-sha256".into(),
    }
}

fn pdns(server: &PowerDns, key: &str) -> ProviderKind {
    let keys = BTreeMap::from([
        ("url", VendorValue::Text(server.url.clone())),
        ("api_key", VendorValue::Secret(plain(key))),
    ]);
    ProviderKind::Vendor { name: "pdns", keys }
}

async fn refused(solver: &Dns01Solver) -> PresentError {
    let error = solver.present(&challenges("example.test", &["v"])).await.expect_err("refused");
    assert!(error.message.contains("no CA was asked"), "{error}");
    error
}

/// Presents apex and wildcard in one batch at `server`, and sees them come and go beside a value of somebody else.
async fn comes_and_goes(rig: Rig, provider: Arc<dyn TxtProvider>, server: SocketAddr) {
    let solver = rig.solver(provider.clone());
    let foreign = crate::responder::record(CHALLENGE, "somebody-else");
    provider.add_txt(&foreign).await.unwrap();
    let batches = solver.batches(&challenges("example.test", &["apex", "wild"]));
    assert_eq!(batches.len(), 1);
    let standing = solver.present(&batches[0]).await.unwrap();
    assert_eq!(txt(server, CHALLENGE), ["apex", "somebody-else", "wild"]);
    assert_eq!(rig.storage.list("journal/txt").await.unwrap().len(), 2);
    // Presenting again, as a resumed order does, and removing twice, changes nothing.
    let again = solver.present(&batches[0]).await.unwrap();
    standing.clean_up().await;
    assert_eq!(txt(server, CHALLENGE), ["apex", "somebody-else", "wild"]);
    again.clean_up().await;
    assert_eq!(txt(server, CHALLENGE), ["somebody-else"]);
    provider.remove_txt(&foreign).await.unwrap();
    provider.remove_txt(&foreign).await.unwrap();
    assert!(txt(server, CHALLENGE).is_empty());
    assert_eq!(rig.end().await, 0);
}

#[tokio::test]
async fn rfc2136_writes_two_values_at_one_name_into_knot() {
    let knot = Knot::start(&[("example.test", "")]);
    let rig = Rig::new(knot.address);
    let provider = rig.provider(rfc2136(&knot));
    comes_and_goes(rig, provider, knot.address).await;
}

#[tokio::test]
async fn rfc2136_says_which_part_of_the_key_is_wrong() {
    let knot = Knot::start(&[("example.test", "")]);
    let rig = Rig::new(knot.address);
    let with = |key_name: &str, secret: &str, algorithm: &str| ProviderKind::Rfc2136 {
        server: knot.address,
        key_name: key_name.into(),
        secret: plain(secret),
        algorithm: algorithm.into(),
    };
    for (kind, word) in [
        (with("acme", "d3Jvbmctc2VjcmV0LXdyb25nLXNlY3JldA==", "hmac-sha256"), "BADSIG"),
        (with("other", &knot.secret, "hmac-sha256"), "BADKEY"),
        (with("acme", &knot.secret, "hmac-sha512"), "BADKEY"),
    ] {
        let error = refused(&rig.solver(rig.provider(kind))).await;
        assert!(error.permanent && error.message.contains(word), "{error}");
        assert!(!error.message.contains(&knot.secret), "{error}");
    }
    let common = CommonKeys { zone: Some(name("test")), ..CommonKeys::default() };
    let foreign_zone = rig.provider_with(rfc2136(&knot), common);
    let error = refused(&rig.solver(foreign_zone)).await;
    assert!(error.permanent && error.message.contains("NOTAUTH"), "{error}");
    let common = CommonKeys { zone: Some(name("example.org")), ..CommonKeys::default() };
    let error = refused(&rig.solver(rig.provider_with(rfc2136(&knot), common))).await;
    assert!(error.permanent && error.message.contains("`zone = \"example.org\"`"), "{error}");
    // Nobody there: that may change.
    let gone = ProviderKind::Rfc2136 {
        server: (loopback(), 53).into(),
        key_name: "acme".into(),
        secret: plain(&knot.secret),
        algorithm: "hmac-sha256".into(),
    };
    assert!(!refused(&rig.solver(rig.provider(gone))).await.permanent);
    assert!(txt(knot.address, CHALLENGE).is_empty());
}

#[tokio::test]
async fn powerdns_is_reached_through_the_vendor_bridge() {
    let server = PowerDns::start("example.test");
    let rig = Rig::new(server.address);
    let provider = rig.provider(pdns(&server, &server.api_key));
    let record = |value: &str| crate::responder::record(CHALLENGE, value);
    for value in ["apex", "wild", "apex", "quo\"ted\\"] {
        provider.add_txt(&record(value)).await.unwrap();
    }
    let seen = txt(server.address, CHALLENGE);
    assert_eq!(seen.len(), 3);
    assert!(seen.contains(&"apex".to_owned()) && seen.contains(&"wild".to_owned()), "{seen:?}");
    for value in ["quo\"ted\\", "apex", "apex"] {
        provider.remove_txt(&record(value)).await.unwrap();
    }
    assert_eq!(txt(server.address, CHALLENGE), ["wild"]);
    provider.remove_txt(&record("wild")).await.unwrap();
    assert!(txt(server.address, CHALLENGE).is_empty());

    let wrong_key = rig.provider(pdns(&server, "not-the-key-at-all"));
    let error = wrong_key.add_txt(&record("v")).await.unwrap_err();
    assert!(matches!(&error, starlock::dns::DnsError::Refused(why) if why.contains("`api_key`")), "{error}");
    assert!(!error.to_string().contains("not-the-key"), "{error}");
    let common = CommonKeys { zone: Some(name("test")), ..CommonKeys::default() };
    let no_zone = rig.provider_with(pdns(&server, &server.api_key), common);
    let error = no_zone.add_txt(&record("v")).await.unwrap_err();
    assert!(matches!(&error, starlock::dns::DnsError::Refused(_)), "{error}");
    comes_and_goes(rig, provider, server.address).await;
}

#[tokio::test]
async fn exec_drives_a_program() {
    let knot = Knot::start(&[("example.test", "")]);
    let rig = Rig::new(knot.address);
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hook");
    hook(&knot, &program);
    let provider = rig.provider(ProviderKind::Exec { program });
    comes_and_goes(rig, provider, knot.address).await;
}

/// An endpoint that insists on the contract and writes into the responder.
async fn endpoint(listener: TcpListener, responder: starlock::responder::TxtTable) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (head, body) = request(&mut stream).await;
        let lower = head.to_ascii_lowercase();
        let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let (fqdn, value) = (parsed["fqdn"].as_str(), parsed["value"].as_str());
        let verb = head.strip_prefix("POST /hook/").and_then(|rest| rest.split(' ').next());
        let strict = lower.contains("content-type: application/json")
            && parsed.as_object().is_some_and(|keys| keys.len() == 2)
            && fqdn.is_some_and(|name| name.ends_with('.'));
        // user:p@ss
        let authorised = head.contains("Basic dXNlcjpwQHNz");
        let status = match (verb, fqdn, value) {
            _ if !strict => "400 Bad Request",
            _ if !authorised => "401 Unauthorized",
            (Some(verb), Some(fqdn), Some(value)) => {
                let record = crate::responder::record(fqdn, value);
                let done = match verb {
                    "present" => responder.add_txt(&record).await,
                    "cleanup" => responder.remove_txt(&record).await,
                    _ => panic!("{verb}"),
                };
                if done.is_ok() { "204 No Content" } else { "503 Unavailable" }
            }
            _ => "404 Not Found",
        };
        let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
}

async fn request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return (head, bytes[end + 4..].to_vec());
            }
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn httpreq_keeps_its_contract() {
    let responder = Responder::start();
    let knot = parent(&responder);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook/", listener.local_addr().unwrap());
    let rig = Rig::new(knot.address);
    let with = |password: &str| ProviderKind::Httpreq {
        endpoint: url.clone(),
        username: Some("user".into()),
        password: Some(plain(password)),
    };
    let (provider, wrong) = (rig.provider(with("p@ss")), rig.provider(with("hunter22")));
    tokio::select! {
        () = endpoint(listener, responder.table.clone()) => unreachable!(),
        () = async {
            let error = refused(&rig.solver(wrong)).await;
            assert!(error.permanent && error.message.contains("401"), "{error}");
            assert!(!error.message.contains("hunter22"), "{error}");
            comes_and_goes(rig, provider, responder.address).await;
        } => {}
    }
}

#[tokio::test]
async fn the_responder_serves_both_kinds_of_delegation() {
    let responder = Responder::start();
    let knot = parent(&responder);
    let unbound = Recursor::unbound("test", knot.address.ip());
    let rig = Rig::new(unbound.address);
    let own = OwnResponder { addresses: vec![responder.address], zone: Some(name("acme.test")) };
    let table: Arc<dyn TxtProvider> = Arc::new(responder.table.clone());
    let solver = rig.solver_with(table.clone(), Duration::from_secs(30), Some(own));
    for host in ["example.test", "other.test"] {
        let standing = solver.present(&challenges(host, &["apex", "wild"])).await.unwrap();
        let owner = format!("_acme-challenge.{host}");
        // Whoever validates asks a resolver that has never heard of the name: nobody asked it too early.
        assert_eq!(txt(unbound.address, &owner), ["apex", "wild"], "{host}");
        standing.clean_up().await;
    }
    assert!(txt(responder.address, "d1.acme.test").is_empty());
    // Without a zone nothing is followed, so nothing has to be reachable.
    let own = OwnResponder { addresses: vec![responder.address], zone: None };
    let nowhere = Rig::new((loopback(), 53).into());
    let solver = nowhere.solver_with(table, Duration::from_secs(30), Some(own));
    let standing = solver.present(&challenges("example.test", &["v"])).await.unwrap();
    assert_eq!(txt(responder.address, CHALLENGE), ["v"]);
    drop(standing);
    assert_eq!((nowhere.end().await, rig.end().await), (0, 0));
    assert!(txt(responder.address, CHALLENGE).is_empty());
}

#[tokio::test]
async fn aliases_are_followed_unless_a_wildcard_made_them() {
    let knot = Knot::start(&[
        (
            "test",
            "*.wild CNAME web\n_acme-challenge.chain CNAME one\none CNAME two.deep\ntwo.deep A 192.0.2.1\n\
             _acme-challenge.loop CNAME again\nagain CNAME _acme-challenge.loop\nweb A 192.0.2.1",
        ),
        ("child.test", ""),
    ]);
    let resolver = Resolver::new(vec![knot.address]);
    let follow =
        async |host: &str| resolver.follow(&name(&format!("_acme-challenge.{host}")), &Here::default()).await;
    assert_eq!(follow("wild.test").await.unwrap().name, name("_acme-challenge.wild.test"));
    let chain = follow("chain.test").await.unwrap();
    assert_eq!((chain.name, chain.zone.unwrap().apex), (name("two.deep.test"), name("test")));
    assert!(matches!(follow("loop.test").await, Err(LookupError::Aliases { .. })));
    // A zone of its own on the same server, without a delegation to walk along.
    assert_eq!(follow("child.test").await.unwrap().zone.unwrap().apex, name("child.test"));
    assert_eq!(
        resolver.zone_of(&name("_acme-challenge.a.b.child.test")).await.unwrap().apex,
        name("child.test")
    );
    let zone = follow("nothing.here.test").await.unwrap().zone.unwrap();
    assert_eq!(zone.apex, name("test"));
    assert_eq!(zone.servers[0].addresses, [knot.address]);
    assert!(matches!(follow("example.org").await, Err(LookupError::NoZone { .. })));
}

#[tokio::test]
async fn a_server_that_lags_or_refuses_fails_the_order_with_a_table() {
    let (primary, lagging, refusing, silent) = (loopback(), loopback(), loopback(), loopback());
    let zone = [("lag.test", "")];
    let first = Knot::start_at(primary, &zone);
    let _second = Knot::start_at(lagging, &zone);
    let _third = Knot::start_at(refusing, &[("unrelated.test", "")]);
    let mut body = String::new();
    for (index, ip) in [primary, lagging, refusing, silent].iter().enumerate() {
        body.push_str(&format!("lag NS ns{index}.lag\nns{index}.lag A {ip}\n"));
    }
    let top = Knot::start(&[("test", &body)]);
    let rig = Rig::new(top.address);
    let solver = rig.solver_with(rig.provider(rfc2136(&first)), Duration::from_secs(6), None);
    let error = solver.present(&challenges("lag.test", &["apex", "wild"])).await.unwrap_err();
    assert!(!error.permanent);
    for line in [
        format!("ns0.lag.test  {:16}  shows all of them", format!("{primary}:53")),
        format!("{lagging}:53"),
        "no TXT record there".to_owned(),
        "REFUSED".to_owned(),
        format!("{silent}:53"),
        "nothing listens there".to_owned(),
        "no CA was asked".to_owned(),
    ] {
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeeze(&error.message).contains(&squeeze(&line)), "{line}\n{error}");
    }
    assert_eq!(rig.end().await, 0);
    assert!(txt(first.address, "_acme-challenge.lag.test").is_empty());
}

#[tokio::test]
async fn a_cancelled_order_leaves_nothing_behind() {
    let knot = Knot::start(&[("example.test", "")]);
    let rig = Rig::new(knot.address);
    let dir = tempfile::tempdir().unwrap();
    let (program, log) = (dir.path().join("hook"), dir.path().join("log"));
    // It writes, then blocks until it is told to go on.
    script(
        &program,
        &format!(
            "#!/bin/sh\necho \"$1 $3\" >> {0}\nif [ $1 = present ]; then until [ -e {0}.go ]; do sleep 0.05; done; fi\n\
             echo \"end $1 $3\" >> {0}\n",
            log.display()
        ),
    );
    let solver = rig.solver(rig.provider(ProviderKind::Exec { program }));
    let order = challenges("example.test", &["v", "w"]);
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let started = async {
        while !said().contains("present") {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        done = solver.present(&order) => panic!("{done:?}"),
        () = started => {}
    }
    fs::write(dir.path().join("log.go"), "").unwrap();
    assert_eq!(rig.end().await, 0);
    let said = said();
    let lines: Vec<&str> = said.lines().collect();
    // What was begun was brought to its end, then taken back.
    let place = |line: String| lines.iter().position(|l| **l == line);
    assert!(place("present v".into()).is_some(), "{said}");
    for value in ["v", "w"] {
        let (begun, gone) = (place(format!("end present {value}")), place(format!("end cleanup {value}")));
        assert!(begun.is_none() || begun < gone, "{said}");
    }
}

/// A storage whose process dies after a number of writes: that one is on disk, and nothing happens ever after.
#[derive(Debug)]
struct Dying {
    inner: MemoryStorage,
    writes: AtomicUsize,
}

impl Dying {
    async fn alive(&self) {
        if self.writes.load(Ordering::SeqCst) == 0 {
            std::future::pending::<()>().await;
        }
    }

    async fn wrote<T>(&self, result: T) -> T {
        if self.writes.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::future::pending::<()>().await;
        }
        result
    }
}

#[async_trait]
impl Storage for Dying {
    async fn load(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        self.alive().await;
        self.inner.load(key).await
    }

    async fn load_previous(&self, key: &Key) -> Result<Option<Stored>, StorageError> {
        self.alive().await;
        self.inner.load_previous(key).await
    }

    async fn store(&self, key: &Key, value: &[u8], expect: Expect) -> Result<Revision, StorageError> {
        self.alive().await;
        let stored = self.inner.store(key, value, expect).await;
        self.wrote(stored).await
    }

    async fn remove(&self, key: &Key) -> Result<(), StorageError> {
        self.alive().await;
        let removed = self.inner.remove(key).await;
        self.wrote(removed).await
    }

    async fn set_aside(&self, key: &Key) -> Result<String, StorageError> {
        self.alive().await;
        self.inner.set_aside(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Key>, StorageError> {
        self.alive().await;
        self.inner.list(prefix).await
    }

    async fn try_lease(&self, name: &Key) -> Result<Option<Box<dyn Lease>>, StorageError> {
        self.inner.try_lease(name).await
    }
}

#[test]
fn the_next_start_removes_what_a_crash_left_at_every_step() {
    let responder = Responder::start();
    let own = || OwnResponder { addresses: vec![responder.address], zone: None };
    let table: Arc<dyn TxtProvider> = Arc::new(responder.table.clone());
    let nowhere: SocketAddr = (Ipv4Addr::LOCALHOST, 1).into();
    let order = challenges("example.test", &["apex", "wild"]);
    let mut left_by_crash = Vec::new();
    // Two entries written and two removed: the process dies after each of them, and once not at all.
    for writes in 1..=5 {
        let disk = MemoryStorage::new();
        let storage = Arc::new(Dying { inner: disk.clone(), writes: AtomicUsize::new(writes) });
        let life = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let finished = life.block_on(async {
            let rig = Rig::with_storage(nowhere, storage.clone());
            let solver = rig.solver_with(table.clone(), Duration::from_secs(5), Some(own()));
            let work = async {
                let standing = solver.present(&order).await.unwrap();
                standing.clean_up().await;
            };
            let dead = async {
                while storage.writes.load(Ordering::SeqCst) > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                () = work => true,
                () = dead => false,
            }
        });
        // kill -9: no task runs any more.
        life.shutdown_background();
        assert_eq!(finished, writes == 5);
        let standing = txt(responder.address, CHALLENGE);
        left_by_crash.push(standing.len());

        let life = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        life.block_on(async {
            let journal = disk.list("journal/txt").await.unwrap();
            assert!(journal.len() >= standing.len(), "{standing:?} stand, {journal:?}");
            let rig = Rig::with_storage(nowhere, Arc::new(disk.clone()));
            let swept = rig.janitor.sweep(std::slice::from_ref(&table)).await.unwrap();
            assert_eq!((swept.records, swept.orphans), (journal.len(), 0));
            assert_eq!(rig.end().await, 0);
        });
        assert!(txt(responder.address, CHALLENGE).is_empty(), "after {writes} writes");
    }
    // The test would prove nothing if a crash never left a record.
    assert!(left_by_crash.iter().any(|count| *count > 0), "{left_by_crash:?}");
    assert_eq!(left_by_crash.last(), Some(&0));
}

#[tokio::test]
async fn records_dropped_at_a_shutdown_are_removed_from_a_real_server() {
    let knot = Knot::start(&[("example.test", "")]);
    let rig = Rig::new(knot.address);
    let solver = rig.solver(rig.provider(rfc2136(&knot)));
    let standing: Box<dyn Presented> = solver.present(&challenges("example.test", &["v"])).await.unwrap();
    assert_eq!(txt(knot.address, CHALLENGE), ["v"]);
    rig.supervisor.shutdown().trigger();
    drop(standing);
    assert_eq!(rig.end().await, 0);
    eventually("the record is gone", || txt(knot.address, CHALLENGE).is_empty().then_some(()));
}
