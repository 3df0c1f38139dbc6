//! What a CA may offer beyond RFC 8555's minimum, and demand: against a Pebble that has all of it and finds every name proven.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde_json::Value;
use starlock::acme::{AccountInfo, Accounts, AcmeIssuer, AcmeSpec, EabSpec};
use starlock::challenge::{Batch, Challenge, ChallengeSolver, PresentError, Presented};
use starlock::clock::SystemClock;
use starlock::issuer::{
    FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, Progress, Retry, Spent, Step,
};
use starlock::name::HostPattern;
use starlock::secret::{Secret, SecretSource};
use starlock::storage::{MemoryStorage, Storage};
use x509_parser::pem::Pem;

use crate::support::pebble::{Options, Pebble, ari_misses, verify_chain};
use crate::support::starlock::Starlock;
use crate::support::stopper::{Stop, Stopper};
use crate::support::web::served_chain;
use crate::support::{eventually, free_port, local};

/// Every name is at hand.
#[derive(Debug)]
struct Yes;

#[derive(Debug)]
struct Standing;

#[async_trait]
impl ChallengeSolver for Yes {
    fn batches(&self, challenges: &[Challenge]) -> Vec<Batch> {
        vec![challenges.to_vec()]
    }

    async fn present(&self, _batch: &[Challenge]) -> Result<Box<dyn Presented>, PresentError> {
        Ok(Box::new(Standing))
    }
}

#[async_trait]
impl Presented for Standing {
    async fn clean_up(self: Box<Self>) {}
}

struct Silent;

impl Progress for Silent {
    fn step(&self, _step: Step) {}
}

struct Rig {
    pebble: Pebble,
    storage: Arc<dyn Storage>,
    runtime: tokio::runtime::Runtime,
}

fn easy() -> Options {
    let environment = vec![("PEBBLE_VA_ALWAYS_VALID".to_owned(), "1".to_owned())];
    Options { newer: true, environment, ..Options::with_dns(local(free_port())) }
}

impl Rig {
    fn start(options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { pebble: Pebble::start(options), storage: Arc::new(MemoryStorage::new()), runtime }
    }

    fn spec(&self) -> AcmeSpec {
        let ca_root = Some(self.pebble.ca_root.clone());
        AcmeSpec { ca_root, ..AcmeSpec::new(self.pebble.directory_url.as_str()) }
    }

    fn issuer(&self, change: impl FnOnce(&mut AcmeSpec)) -> AcmeIssuer {
        let mut spec = self.spec();
        change(&mut spec);
        AcmeIssuer::new(spec, Arc::new(Yes), self.storage.clone(), Arc::new(SystemClock)).unwrap()
    }

    /// A new order, and forgotten as soon as it has ended.
    fn issue(&self, issuer: &AcmeIssuer, replaces: Option<&[u8]>) -> Result<IssuedCert, IssueError> {
        let names = ["example.test", "*.example.test"].map(|name| HostPattern::parse(name).unwrap());
        let request = IssueRequest { names: names.into(), replaces: replaces.map(Into::into) };
        self.runtime.block_on(async {
            let issued = issuer.issue(&request, &Silent).await;
            issuer.stored(&request).await;
            issued
        })
    }

    /// The leaf of a new certificate that Pebble's ARI knows.
    fn issue_with_ari(&self, issuer: &AcmeIssuer) -> (String, Vec<u8>) {
        let leaves = (0..3).map(|_| leaf(&self.issue(issuer, None).unwrap()));
        leaves.into_iter().find(|(_, der)| !ari_misses(&serial(der))).expect("three odd serials in a row")
    }

    fn orders(&self) -> usize {
        self.pebble.log().matches("Added order ").count()
    }

    fn accounts(&self) -> Accounts {
        Accounts::new(self.storage.clone(), Arc::new(SystemClock))
    }
}

/// The leaf: PEM and DER.
fn leaf(issued: &IssuedCert) -> (String, Vec<u8>) {
    let end = "-----END CERTIFICATE-----\n";
    let pem = issued.chain_pem.split_inclusive(end).next().unwrap().to_owned();
    let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    (pem, parsed.contents)
}

fn serial(der: &[u8]) -> Vec<u8> {
    x509_parser::parse_x509_certificate(der).unwrap().1.raw_serial().to_vec()
}

fn common_name_of(pem: &str) -> String {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    pem.parse_x509().unwrap().subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

fn top_issuer(chain: &str) -> String {
    let last = Pem::iter_from_buffer(chain.as_bytes()).last().unwrap().unwrap();
    let certificate = last.parse_x509().unwrap();
    certificate.issuer().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

fn lifetime(der: &[u8]) -> i64 {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    let validity = certificate.validity();
    validity.not_after.timestamp() - validity.not_before.timestamp()
}

#[test]
fn renewal_windows_are_told_and_odd_ones_are_not_believed() {
    let rig = Rig::start(easy());
    let issuer = rig.issuer(|_| {});
    assert!(!rig.runtime.block_on(issuer.registered()));
    let issued = rig.issue(&issuer, None).unwrap();
    assert!(rig.runtime.block_on(issuer.registered()));
    assert!(issued.spent.registered && issued.spent.ordered && !issued.spent.replaced);
    let (pem, der) = rig.issue_with_ari(&issuer);
    let ask = |der: &[u8]| rig.runtime.block_on(issuer.renewal_hint(der));
    let now = SystemTime::now();
    let hint = ask(&der).unwrap().expect("Pebble has ARI");
    assert!(hint.start < hint.end);
    let poll = hint.again_at.duration_since(now).unwrap();
    assert!(poll >= Duration::from_secs(3200) && poll <= Duration::from_secs(27 * 3600), "{poll:?}");

    let window = |start: &str, end: &str| {
        format!(
            r#"{{"suggestedWindow":{{"start":"{start}","end":"{end}"}},"explanationURL":"https://ca.test/why"}}"#
        )
    };
    rig.pebble.set_renewal_info(&pem, &window("2021-01-03T00:00:00Z", "2021-01-07T00:00:00Z"));
    let past = ask(&der).unwrap().expect("a window in the past is one: renew now");
    assert!(past.end < now && past.explanation.as_deref() == Some("https://ca.test/why"));
    rig.pebble.set_renewal_info(&pem, &window("2031-01-07T00:00:00Z", "2031-01-03T00:00:00Z"));
    assert_eq!(ask(&der).unwrap(), None, "it begins after its end");
    for broken in ["{\"suggestedWindow\":", "[]", &window("soon", "2031-01-03T00:00:00Z")] {
        rig.pebble.set_renewal_info(&pem, broken);
        let error = ask(&der).unwrap_err();
        assert_eq!((error.class, error.retry), (FailureClass::CaDown, Retry::Backoff), "{error}");
        assert!(error.message.contains("asking when to renew"), "{error}");
    }
    // Somebody else's certificate.
    let other = Rig::start(easy());
    let foreign = other.issue(&other.issuer(|_| {}), None).unwrap();
    assert_eq!(ask(&leaf(&foreign).1).unwrap(), None);
}

#[test]
fn a_ca_without_renewal_windows_says_nothing_and_takes_no_successors() {
    let rig = Rig::start(Options { newer: false, ..easy() });
    let issuer = rig.issuer(|_| {});
    let (_, der) = leaf(&rig.issue(&issuer, None).unwrap());
    assert_eq!(rig.runtime.block_on(issuer.renewal_hint(&der)).unwrap(), None);
    let next = rig.issue(&issuer, Some(&der)).unwrap();
    assert_eq!(next.spent, Spent { ordered: true, signed: true, ..Spent::default() });
}

#[test]
fn a_renewal_names_its_predecessor_and_goes_on_without_when_that_is_refused() {
    let rig = Rig::start(easy());
    let issuer = rig.issuer(|_| {});
    let (_, first) = rig.issue_with_ari(&issuer);
    let orders = rig.orders();
    let second = rig.issue(&issuer, Some(&first)).unwrap();
    assert_eq!(second.spent, Spent { ordered: true, replaced: true, signed: true, ..Spent::default() });
    assert_eq!(rig.orders(), orders + 1, "{}", rig.pebble.log());
    // It was replaced already: Pebble refuses, and one order is made without.
    let third = rig.issue(&issuer, Some(&first)).unwrap();
    assert_eq!(third.spent, Spent { ordered: true, signed: true, ..Spent::default() });
    assert_eq!(rig.orders(), orders + 2);
}

#[test]
fn a_profile_is_ordered_if_the_ca_offers_it() {
    let profiles = vec![("brief".to_owned(), 600)];
    let rig = Rig::start(Options { profiles, ..easy() });
    let plain = rig.issuer(|_| {});
    let brief = rig.issuer(|spec| spec.profile = Some("brief".into()));
    assert_ne!(plain.id(), brief.id());
    assert!(rig.issue(&plain, None).unwrap().spent.registered);
    let issued = rig.issue(&brief, None).unwrap();
    assert!(!issued.spent.registered, "the account is the CA's, not the profile's");
    let seconds = lifetime(&leaf(&issued).1);
    assert!((595..=605).contains(&seconds), "{seconds} s");
    let orders = rig.orders();
    let error = rig.issue(&rig.issuer(|spec| spec.profile = Some("breif".into())), None).unwrap_err();
    assert_eq!(
        (error.class, error.retry, &error.spent),
        (FailureClass::Config, Retry::Park, &Spent::default())
    );
    assert_eq!(
        error.message,
        "example.test, *.example.test: localhost has no profile `breif`; it offers `brief`, `default`: correct acme.profile, \
         then `starlock reload`. Nothing was ordered."
    );
    assert_eq!(rig.orders(), orders);
}

#[test]
fn the_preferred_chain_is_served_if_the_ca_has_it() {
    let mut options = easy();
    options.environment.push(("PEBBLE_ALTERNATE_ROOTS".into(), "2".into()));
    let rig = Rig::start(options);
    let roots: Vec<String> = (0..3).map(|n| rig.pebble.alternate_root(n).unwrap()).collect();
    for root in &roots {
        let wanted = common_name_of(root);
        let issued =
            rig.issue(&rig.issuer(|spec| spec.preferred_chain = Some(wanted.clone())), None).unwrap();
        assert_eq!(top_issuer(&issued.chain_pem), wanted);
        verify_chain(&issued.chain_pem, root, "app.example.test");
    }
    let issued =
        rig.issue(&rig.issuer(|spec| spec.preferred_chain = Some("Nobody's Root".into())), None).unwrap();
    verify_chain(&issued.chain_pem, &roots[0], "app.example.test");
}

#[test]
fn an_external_account_is_bound_once() {
    let hmac = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let rig = Rig::start(Options { external_account: Some(("kid-1".into(), hmac.into())), ..easy() });
    let dir = tempfile::tempdir().unwrap();
    let file: PathBuf = dir.path().join("hmac");
    let bound =
        |kid: &str, file: &PathBuf| EabSpec { kid: kid.into(), hmac: SecretSource::File(file.clone()) };

    let error = rig.issue(&rig.issuer(|_| {}), None).unwrap_err();
    assert_eq!((error.class, error.retry), (FailureClass::Config, Retry::Park));
    assert!(error.message.contains("wants an external account binding: set acme.eab"), "{error}");
    let error = rig.issue(&rig.issuer(|spec| spec.eab = Some(bound("kid-1", &file))), None).unwrap_err();
    assert!(error.message.contains("acme.eab.hmac: cannot read the secret"), "{error}");
    std::fs::write(&file, "not base64url!").unwrap();
    let error = rig.issue(&rig.issuer(|spec| spec.eab = Some(bound("kid-1", &file))), None).unwrap_err();
    assert!(error.message.contains("acme.eab.hmac is not base64url"), "{error}");
    std::fs::write(&file, hmac).unwrap();
    let error = rig.issue(&rig.issuer(|spec| spec.eab = Some(bound("kid-2", &file))), None).unwrap_err();
    assert_eq!((error.class, error.retry), (FailureClass::Config, Retry::Park), "{error}");
    assert!(error.message.contains("Check acme.eab") && !error.message.contains(hmac), "{error}");

    let issuer = rig.issuer(|spec| spec.eab = Some(bound("kid-1", &file)));
    assert!(rig.issue(&issuer, None).unwrap().spent.registered);
    // Used once: nobody needs the secret any more.
    std::fs::remove_file(&file).unwrap();
    assert!(!rig.issue(&issuer, None).unwrap().spent.registered);
    let plain = SecretSource::Plain(Secret::new(hmac));
    let spec = AcmeSpec { eab: Some(EabSpec { kid: "kid-1".into(), hmac: plain }), ..rig.spec() };
    assert!(!format!("{spec:?}").contains(hmac));
}

#[test]
fn three_nonces_of_ten_may_be_refused() {
    let rig = Rig::start(Options { nonce_reject: 30, ..easy() });
    let issuer = rig.issuer(|_| {});
    for _ in 0..5 {
        rig.issue(&issuer, None).unwrap();
    }
    let (accounts, spec) = (rig.accounts(), rig.spec());
    for _ in 0..5 {
        assert_eq!(rig.runtime.block_on(accounts.show(&spec)).unwrap().status.as_deref(), Some("valid"));
    }
}

#[test]
fn a_revoked_certificate_may_be_revoked_again_and_is_to_be_renewed_now() {
    let rig = Rig::start(easy());
    let issuer = rig.issuer(|_| {});
    let (_, der) = rig.issue_with_ari(&issuer);
    rig.runtime.block_on(issuer.revoke(&der, 4)).unwrap();
    rig.runtime.block_on(issuer.revoke(&der, 4)).unwrap();
    let hint = rig.runtime.block_on(issuer.renewal_hint(&der)).unwrap().unwrap();
    assert!(hint.start < SystemTime::now());
}

#[test]
fn a_roll_over_that_is_cut_off_leaves_the_account_usable_whoever_got_the_last_word() {
    // What is held must be the roll-over's end, not a refused nonce.
    let mut rig = Rig::start(Options { nonce_reject: 0, ..easy() });
    for after in [false, true] {
        rig.storage = Arc::new(MemoryStorage::new());
        let stopper = Stopper::before(&rig.pebble);
        let spec = AcmeSpec { directory: stopper.directory_url.clone(), ..rig.spec() };
        let issuer = rig.issuer(|own| *own = spec.clone());
        rig.issue(&issuer, None).unwrap();
        let accounts = rig.accounts();
        let kept = |rig: &Rig| -> AccountInfo { rig.runtime.block_on(accounts.kept(&spec)).unwrap() };
        let before = kept(&rig);
        stopper.arm(Stop { path: "/rollover-account-key", after });
        rig.runtime.block_on(async {
            tokio::select! {
                result = accounts.roll_key(&spec) => panic!("{result:?}"),
                () = async {
                    while stopper.hits() == 0 {
                        tokio::task::yield_now().await;
                    }
                } => {}
            }
        });
        assert!(kept(&rig).rolling, "both keys are kept while the CA has not answered");
        stopper.arm(Stop { path: "/nothing", after }); // what is held stays there
        assert!(!rig.issue(&issuer, None).unwrap().spent.registered);
        let now = kept(&rig);
        assert_eq!(now.url, before.url);
        assert_eq!(now.thumbprint != before.thumbprint, after, "the key that the CA has");
        if !after {
            // The request may still be on its way somewhere.
            assert!(now.rolling);
            let error = rig.runtime.block_on(accounts.roll_key(&spec)).unwrap_err();
            assert!(error.to_string().contains("has not ended"), "{error}");
            continue;
        }
        assert!(!now.rolling);
        let rolled = rig.runtime.block_on(accounts.roll_key(&spec)).unwrap();
        assert_ne!(rolled.thumbprint, now.thumbprint);
        assert!(!rig.issue(&issuer, None).unwrap().spent.registered);
    }
}

#[test]
fn a_pinned_account_is_not_replaced() {
    let mut rig = Rig::start(easy());
    let issuer = rig.issuer(|spec| spec.pinned = true);
    rig.issue(&issuer, None).unwrap();
    let url = rig.runtime.block_on(rig.accounts().kept(&rig.spec())).unwrap().url.unwrap();
    rig.pebble.restart();
    let issuer = rig.issuer(|spec| spec.pinned = true); // whose connections are alive
    let error = rig.issue(&issuer, None).unwrap_err();
    assert_eq!(
        (error.class, error.retry, error.spent.clone()),
        (FailureClass::Config, Retry::Park, Spent::default())
    );
    assert!(error.message.contains(&url) && error.message.contains("accounturi"), "{error}");
    let unpinned = rig.issuer(|_| {});
    assert!(rig.issue(&unpinned, None).unwrap().spent.registered);
}

#[test]
fn key_types_are_served_and_accounts_obey_commands() {
    let (pebble, port) = (Pebble::start(easy()), free_port());
    let acme = |key: &str| {
        format!(
            "acme = {{ ca = \"{}\", ca_root = \"{}\", key = \"{key}\" }}",
            pebble.directory_url,
            pebble.ca_root.display()
        )
    };
    let starlock = Starlock::start(&format!(
        r#"
[listen]
https = ["127.0.0.1:0"]
http = []
[dns]
provider = "builtin"
[responder]
listen = ["127.0.0.1:{port}"]
nameservers = [{{ name = "ns.example.test", addresses = ["127.0.0.1"] }}]
[log]
access = "off"
[[certificates]]
names = ["rsa.example.test"]
{}
[[certificates]]
names = ["p384.example.test"]
{}
[routes]
"rsa.example.test" = {{ respond = 204 }}
"p384.example.test" = {{ respond = 204 }}
"#,
        acme("rsa2048"),
        acme("p384")
    ));
    for (host, bits) in [("rsa.example.test", "2048"), ("p384.example.test", "384")] {
        starlock.serial_other_than(host, None);
        let chain = served_chain(starlock.address("https"), host);
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let key = certificate.public_key().parsed().unwrap();
        let rsa = matches!(key, x509_parser::public_key::PublicKey::RSA(_));
        assert_eq!((rsa, key.key_size().to_string().as_str()), (host.starts_with("rsa"), bits));
    }
    let run = |arguments: &[&str]| {
        let output = starlock.command(&[&["accounts"], arguments, &["--json"]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(), error)
    };
    let (code, list, error) = run(&["list"]);
    assert_eq!((code, list.as_array().map(Vec::len)), (Some(0), Some(1)), "{list} {error}");
    let url = list[0]["url"].as_str().unwrap().to_owned();
    assert_eq!(list[0]["ca"], "localhost");
    let (_, shown, error) = run(&["show", "localhost"]);
    assert_eq!((&shown["status"], &shown["url"]), (&"valid".into(), &url.as_str().into()), "{shown} {error}");
    assert_eq!(run(&["show"]).1, shown, "the only one needs no name");
    let (_, changed, error) = run(&["contact", &pebble.directory_url, "new@example.test"]);
    assert_eq!(changed["contacts"][0], "mailto:new@example.test", "{error}");
    let (_, changed, error) = run(&["contact", "localhost"]);
    assert_eq!(changed["contacts"], Value::Array(Vec::new()), "{error}");
    let (_, rolled, error) = run(&["roll-key", "localhost"]);
    assert!(
        rolled["thumbprint"].is_string() && rolled["thumbprint"] != shown["thumbprint"],
        "{rolled} {error}"
    );
    assert_eq!(
        (&run(&["show", "localhost"]).1["status"], &rolled["url"]),
        (&"valid".into(), &url.as_str().into())
    );
    let (code, _, error) = run(&["deactivate", "localhost"]);
    assert!(code == Some(64) && error.contains("--yes"), "{code:?} {error}");
    let (code, _, error) = run(&["show", "zerossl"]);
    assert!(code == Some(1) && error.contains("there are localhost"), "{error}");
    let (_, ended, error) = run(&["deactivate", "localhost", "--yes"]);
    assert_eq!(ended["status"], "deactivated", "{error}");
    let (code, _, error) = run(&["roll-key", "localhost"]);
    assert!(code == Some(1) && error.contains("deactivated"), "{error}");

    // Nothing registers another account by itself.
    let file = starlock.path("starlock.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let third = format!("[[certificates]]\nnames = [\"new.example.test\"]\n{}\n[routes]", acme("p256"));
    std::fs::write(&file, text.replace("[routes]", &third)).unwrap();
    let reload = starlock.command(&["reload"]);
    assert!(reload.status.success(), "{reload:?}");
    let error = eventually("the order is refused", || {
        let new = starlock.certificates().into_iter().find(|c| c["names"][0] == "new.example.test")?;
        new["last_error"].as_str().map(ToOwned::to_owned)
    });
    assert!(error.contains("deactivated by `starlock accounts deactivate`"), "{error}");
    assert!(error.contains("accounts/localhost-"), "{error}");
}
