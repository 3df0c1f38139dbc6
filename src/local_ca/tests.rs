//! The local CA over years, as a client with another implementation of X.509 sees it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::mint::Facts;
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::issuer::Step;
use crate::storage::MemoryStorage;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Silent;

impl Progress for Silent {
    fn step(&self, _step: Step) {}
}

struct Rig {
    storage: Arc<MemoryStorage>,
    clock: Arc<ManualClock>,
}

fn patterns(names: &[&str]) -> Vec<HostPattern> {
    names.iter().map(|name| HostPattern::parse(name).unwrap()).collect()
}

impl Rig {
    fn new() -> Self {
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        Self { storage: Arc::new(MemoryStorage::new()), clock: Arc::new(clock) }
    }

    fn ca(&self, configured: &[&str]) -> LocalCa {
        LocalCa::new(self.storage.clone(), self.clock.clone(), patterns(configured))
    }

    async fn issue(&self, ca: &LocalCa, names: &[&str]) -> Result<String, IssueError> {
        let request = IssueRequest::new(patterns(names).into());
        ca.issue(&request, &Silent).await.map(|issued| issued.chain_pem)
    }

    /// Whether a client that trusts `roots` takes `chain` for `name` now.
    fn trusts(&self, roots: &[LocalRoot], chain: &str, name: &str) -> Result<(), rustls::Error> {
        let mut store = rustls::RootCertStore::empty();
        for root in roots {
            store.add(CertificateDer::from_pem_slice(root.pem.as_bytes()).unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(store.into(), provider).build().unwrap();
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
        let now = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::since_unix_epoch(now))
            .map(drop)
    }

    async fn put_root(&self, root: &StoredRoot) {
        let value = serde_json::to_vec(root).unwrap();
        self.storage.store(&Line::Private.root(), &value, Expect::Anything).await.unwrap();
    }
}

fn intermediate_of(chain: &str) -> String {
    let second = chain.rfind("-----BEGIN").unwrap();
    Facts::read(&chain[second..]).unwrap().fingerprint
}

#[tokio::test]
async fn one_root_outlives_its_intermediates_and_what_they_signed_stays_good() {
    let rig = Rig::new();
    let ca = rig.ca(&[]);
    let root = ca.needed_roots().await.unwrap();
    assert!(root.len() == 1 && root[0].limited, "{root:?}");
    let mut before = rig.issue(&ca, &["app.localhost", "127.0.0.1"]).await.unwrap();
    let mut intermediates = vec![intermediate_of(&before)];
    for day in 0..400 {
        rig.clock.advance(DAY);
        let chain = rig.issue(&ca, &["app.localhost", "127.0.0.1"]).await.unwrap();
        for name in ["app.localhost", "127.0.0.1"] {
            rig.trusts(&root, &chain, name).unwrap_or_else(|e| panic!("day {day}: {name}: {e}"));
            rig.trusts(&root, &before, name)
                .unwrap_or_else(|e| panic!("day {day}, yesterday's: {name}: {e}"));
        }
        assert!(rig.trusts(&root, &chain, "other.localhost").is_err());
        intermediates.push(intermediate_of(&chain));
        before = chain;
    }
    intermediates.dedup();
    assert_eq!(intermediates.len(), 7, "one for each 60 days");
    assert_eq!(rig.ca(&[]).roots().await.unwrap(), root);
}

#[tokio::test]
async fn what_is_not_private_comes_from_a_second_root_and_an_intermediate_for_these_names_alone() {
    let rig = Rig::new();
    let ca = rig.ca(&["*.example.com", "app.localhost", "203.0.113.7"]);
    let private = rig.issue(&ca, &["app.localhost"]).await.unwrap();
    let other = rig.issue(&ca, &["*.example.com", "203.0.113.7"]).await.unwrap();
    let roots = ca.roots().await.unwrap();
    assert_eq!(roots.iter().map(|root| root.limited).collect::<Vec<_>>(), [true, false]);
    rig.trusts(&roots[..1], &private, "app.localhost").unwrap();
    rig.trusts(&roots[1..], &other, "a.example.com").unwrap();
    rig.trusts(&roots[1..], &other, "203.0.113.7").unwrap();
    assert!(rig.trusts(&roots[..1], &other, "a.example.com").is_err());

    // A leaf for another name under the same intermediate is refused by clients, not only by us.
    let key = Line::Any.intermediate();
    let stored = rig.storage.load(&key).await.unwrap().unwrap();
    let stored: StoredIntermediate = serde_json::from_slice(&stored.value).unwrap();
    for name in ["example.org", "203.0.113.8"] {
        let stolen = mint::leaf(&stored, &patterns(&[name]), rig.clock.now()).unwrap().chain_pem;
        let error = rig.trusts(&roots, &stolen, name).unwrap_err().to_string();
        assert!(error.contains("NameConstraint"), "{name}: {error}");
    }
    let before = intermediate_of(&other);
    assert_eq!(intermediate_of(&rig.issue(&ca, &["*.example.com"]).await.unwrap()), before);
    // Another configuration gets another intermediate under the same root.
    let more = rig.ca(&["*.example.com", "example.org"]);
    let chain = rig.issue(&more, &["example.org"]).await.unwrap();
    rig.trusts(&roots, &chain, "example.org").unwrap();
    assert_ne!(intermediate_of(&chain), before);
    assert_eq!(more.needed_roots().await.unwrap(), roots);
}

#[tokio::test]
async fn kinds_of_names_that_are_not_asked_for_are_excluded() {
    let rig = Rig::new();
    for (configured, stolen) in [("example.com", "203.0.113.8"), ("203.0.113.7", "example.org")] {
        let rig = Rig { storage: Arc::new(MemoryStorage::new()), clock: rig.clock.clone() };
        let ca = rig.ca(&[configured]);
        let chain = rig.issue(&ca, &[configured]).await.unwrap();
        let roots = ca.roots().await.unwrap();
        rig.trusts(&roots, &chain, configured).unwrap();
        let stored = rig.storage.load(&Line::Any.intermediate()).await.unwrap().unwrap();
        let stored: StoredIntermediate = serde_json::from_slice(&stored.value).unwrap();
        let chain = mint::leaf(&stored, &patterns(&[stolen]), rig.clock.now()).unwrap().chain_pem;
        assert!(rig.trusts(&roots, &chain, stolen).is_err(), "{configured}: {stolen}");
    }
}

#[tokio::test]
async fn a_root_of_the_old_kind_goes_on_signing_by_itself() {
    let rig = Rig::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.not_before = (rig.clock.now() - DAY).into();
    params.not_after = (rig.clock.now() + 3000 * DAY).into();
    let certificate = params.self_signed(&key).unwrap().pem();
    rig.put_root(&StoredRoot { certificate: certificate.clone(), key: key.serialize_pem() }).await;
    let ca = rig.ca(&["example.com"]);
    let chain = rig.issue(&ca, &["app.localhost", "example.com"]).await.unwrap();
    assert!(chain.ends_with(&certificate));
    let roots = ca.needed_roots().await.unwrap();
    assert!(roots.len() == 1 && roots[0].pem == certificate && !roots[0].limited);
    rig.trusts(&roots, &chain, "example.com").unwrap();
}

#[tokio::test]
async fn a_root_from_the_future_or_the_past_is_set_aside_and_a_wrong_clock_judges_nothing() {
    let rig = Rig::new();
    let ca = rig.ca(&[]);
    let right = rig.clock.now();
    rig.clock.set(right + 365 * DAY);
    let far = ca.needed_roots().await.unwrap();
    rig.clock.set(SystemTime::UNIX_EPOCH + DAY);
    let error = rig.issue(&ca, &["a.localhost"]).await.unwrap_err();
    assert!(error.message.contains("clock of this machine says 1970"), "{error}");
    assert_eq!(ca.roots().await.unwrap(), far, "nothing happened to it");
    rig.clock.set(right);
    let chain = rig.issue(&ca, &["a.localhost"]).await.unwrap();
    let new = ca.roots().await.unwrap();
    assert_ne!(new, far);
    rig.trusts(&new, &chain, "a.localhost").unwrap();

    rig.clock.advance(3649 * DAY);
    let chain = rig.issue(&ca, &["a.localhost"]).await.unwrap();
    let last = ca.roots().await.unwrap();
    assert_ne!(last, new);
    rig.trusts(&last, &chain, "a.localhost").unwrap();
}

#[tokio::test]
async fn a_damaged_root_is_never_replaced_by_itself() {
    let rig = Rig::new();
    let ca = rig.ca(&[]);
    rig.storage.store(&Line::Private.root(), b"{}", Expect::Absent).await.unwrap();
    let error = rig.issue(&ca, &["a.localhost"]).await.unwrap_err();
    assert!(error.message.contains("damaged"), "{error}");
}
