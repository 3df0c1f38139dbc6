//! Orders against a model CA over HTTP: states that a real one shows once a year, and crashes after each write.

use std::convert::Infallible;
use std::sync::Mutex as StdMutex;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, CertificateSigningRequestParams, IsCa, Issuer as Signer, KeyPair};
use rustls_pki_types::CertificateSigningRequestDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::challenge::{Batch, Challenge, PresentError, Presented};
use crate::clock::SystemClock;
use crate::name::HostPattern;
use crate::storage::MemoryStorage;
use crate::storage::dying_tests::Dying;
use crate::task::{OnExit, Shutdown, Supervisor};

/// An answer that is given instead of the CA's own, once.
struct Instead {
    path: &'static str,
    status: u16,
    retry_after: Option<&'static str>,
    body: String,
}

#[derive(Default)]
struct Order {
    names: Vec<String>,
    status: &'static str,
    authorizations: Vec<&'static str>,
    certificate: Option<String>,
    no_certificate_url: bool,
    replaces: Option<String>,
}

#[derive(Default)]
struct Book {
    url: String,
    orders: Vec<Order>,
    accounts: usize,
    /// What the next validations end with.
    refuse: bool,
    /// Whether the CA knows ARI, and then whether it says so of an order that it took as a successor.
    ari: bool,
    echoes: bool,
    /// Whether the CA says of an order that it is invalid once an authorization is.
    lags_behind: bool,
    /// Whether the answer to a new order ends in its middle.
    cut_order: bool,
    signer: Option<(String, KeyPair)>,
    instead: Vec<Instead>,
    log: Vec<String>,
}

struct ModelCa {
    book: Arc<StdMutex<Book>>,
    supervisor: Supervisor,
}

impl Drop for ModelCa {
    fn drop(&mut self) {
        self.supervisor.shutdown().trigger();
    }
}

impl ModelCa {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        let book = Book { url, signer: Some((root, key)), ..Book::default() };
        let book = Arc::new(StdMutex::new(book));
        let supervisor = Supervisor::new(Shutdown::new());
        let (shared, tasks) = (book.clone(), supervisor.clone());
        let listener = Arc::new(listener);
        supervisor.spawn("model CA".into(), OnExit::Done, move |shutdown| {
            let (listener, book, tasks) = (listener.clone(), shared.clone(), tasks.clone());
            async move {
                loop {
                    let stream = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap().0,
                        () = shutdown.wait() => return,
                    };
                    let (book, stream) = (book.clone(), StdMutex::new(Some(stream)));
                    tasks.spawn("connection".into(), OnExit::Done, move |shutdown| {
                        let (book, stream) = (book.clone(), stream.lock().unwrap().take().unwrap());
                        async move {
                            let service = service_fn(move |request| answer(book.clone(), request));
                            let connection = hyper::server::conn::http1::Builder::new()
                                .serve_connection(TokioIo::new(stream), service);
                            tokio::select! {
                                _ = connection => {}
                                () = shutdown.wait() => {}
                            }
                        }
                    });
                }
            }
        });
        Self { book, supervisor }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    fn instead(&self, path: &'static str, status: u16, body: impl Into<String>) {
        self.book().instead.push(Instead { path, status, retry_after: None, body: body.into() });
    }

    fn asked(&self, path: &str) -> usize {
        self.book().log.iter().filter(|line| line.starts_with(path)).count()
    }

    fn issuer(&self, storage: Arc<dyn Storage>) -> AcmeIssuer {
        self.issuer_of(storage, |_| {})
    }

    fn issuer_of(&self, storage: Arc<dyn Storage>, change: impl FnOnce(&mut AcmeSpec)) -> AcmeIssuer {
        let mut spec = AcmeSpec::new(format!("{}/dir", self.book().url));
        change(&mut spec);
        AcmeIssuer::new(spec, Arc::new(Yes), storage, Arc::new(SystemClock)).unwrap()
    }

    /// Makes an order up to the point where the records stand and the CA is asked to look, and drops it there.
    async fn interrupted(&self, storage: &Arc<dyn Storage>) {
        self.instead("/chal/", 503, "busy");
        self.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap_err();
        assert_eq!(self.book().orders.len(), 1);
    }
}

async fn answer(
    book: Arc<StdMutex<Book>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let payload = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|jws| BASE64_URL_SAFE_NO_PAD.decode(jws["payload"].as_str()?).ok())
        .unwrap_or_default();
    let mut book = book.lock().unwrap();
    book.log.push(path.clone());
    let mut response = Response::builder().header("replay-nonce", "bm9uY2U");
    if let Some(at) = book.instead.iter().position(|i| path.starts_with(i.path)) {
        let instead = book.instead.remove(at);
        if let Some(seconds) = instead.retry_after {
            response = response.header("retry-after", seconds);
        }
        return Ok(response.status(instead.status).body(Full::new(instead.body.into())).unwrap());
    }
    let (status, location, mut text) = book.respond(&path, &payload);
    if path == "/new-order" && book.cut_order {
        text.truncate(20);
    }
    if let Some(location) = location {
        response = response.header("location", location);
    }
    Ok(response.status(status).body(Full::new(text.into())).unwrap())
}

impl Book {
    fn respond(&mut self, path: &str, payload: &[u8]) -> (u16, Option<String>, String) {
        let url = self.url.clone();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let number = |n: usize| parts.get(n).and_then(|t| t.parse::<usize>().ok()).unwrap_or(usize::MAX);
        let json: Value = serde_json::from_slice(payload).unwrap_or_default();
        match parts[0] {
            "dir" if self.ari => (
                200,
                None,
                json!({ "newNonce": format!("{url}/nonce"), "newAccount": format!("{url}/new-account"),
                        "newOrder": format!("{url}/new-order"), "renewalInfo": format!("{url}/ari") })
                .to_string(),
            ),
            "dir" => (
                200,
                None,
                json!({ "newNonce": format!("{url}/nonce"), "newAccount": format!("{url}/new-account"),
                        "newOrder": format!("{url}/new-order"), "revokeCert": format!("{url}/revoke"),
                        "keyChange": format!("{url}/key-change") })
                .to_string(),
            ),
            "nonce" => (200, None, String::new()),
            "new-account" => {
                self.accounts += 1;
                (201, Some(format!("{url}/account/1")), json!({ "status": "valid" }).to_string())
            }
            "new-order" => {
                let names: Vec<String> = json["identifiers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|i| i["value"].as_str().unwrap().to_owned())
                    .collect();
                let authorizations = vec!["pending"; names.len()];
                let replaces = json["replaces"].as_str().filter(|_| self.echoes).map(ToOwned::to_owned);
                self.orders.push(Order {
                    names,
                    status: "pending",
                    authorizations,
                    replaces,
                    ..Order::default()
                });
                let n = self.orders.len() - 1;
                (201, Some(format!("{url}/order/{n}")), self.order(n))
            }
            _ if number(1) >= self.orders.len() => (404, None, problem("malformed", "no such thing")),
            "order" => (200, None, self.order(number(1))),
            "authz" => (200, None, self.authorization(number(1), number(2))),
            "chal" => {
                let (n, refuse, lags_behind) = (number(1), self.refuse, self.lags_behind);
                let order = &mut self.orders[n];
                order.authorizations[number(2)] = if refuse { "invalid" } else { "valid" };
                if refuse && !lags_behind {
                    order.status = "invalid";
                } else if order.authorizations.iter().all(|status| *status == "valid") {
                    order.status = "ready";
                }
                (200, None, challenge(&url, n, number(2), "processing").to_string())
            }
            "finalize" => {
                let der = BASE64_URL_SAFE_NO_PAD.decode(json["csr"].as_str().unwrap()).unwrap();
                let (root, key) = self.signer.as_ref().unwrap();
                let signer = Signer::from_ca_cert_pem(root, key).unwrap();
                let mut csr =
                    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
                        .unwrap();
                csr.params.not_before = time::OffsetDateTime::now_utc();
                csr.params.not_after = csr.params.not_before + time::Duration::days(30);
                csr.params.use_authority_key_identifier_extension = true;
                let chain = csr.signed_by(&signer).unwrap().pem();
                let order = &mut self.orders[number(1)];
                (order.certificate, order.status) = (Some(chain), "valid");
                (200, None, self.order(number(1)))
            }
            "cert" => match &self.orders[number(1)].certificate {
                Some(chain) => (200, None, chain.clone()),
                None => (404, None, problem("malformed", "no such certificate")),
            },
            _ => (404, None, problem("malformed", "no such thing")),
        }
    }

    fn order(&self, n: usize) -> String {
        let (url, order) = (&self.url, &self.orders[n]);
        let identifiers: Vec<Value> =
            order.names.iter().map(|n| json!({ "type": "dns", "value": n })).collect();
        let authorizations: Vec<String> =
            (0..order.names.len()).map(|i| format!("{url}/authz/{n}/{i}")).collect();
        let mut json = json!({ "status": order.status, "identifiers": identifiers, "authorizations": authorizations,
                               "finalize": format!("{url}/finalize/{n}") });
        if let Some(replaces) = &order.replaces {
            json["replaces"] = replaces.as_str().into();
        }
        if order.status == "valid" && !order.no_certificate_url {
            json["certificate"] = format!("{url}/cert/{n}").into();
        }
        json.to_string()
    }

    fn authorization(&self, n: usize, i: usize) -> String {
        let order = &self.orders[n];
        let name = order.names[i].trim_start_matches("*.");
        let status = order.authorizations[i];
        let mut challenge = challenge(&self.url, n, i, status);
        if status == "invalid" {
            challenge["error"] =
                serde_json::from_str(&problem("unauthorized", "looked and found nothing")).unwrap();
        }
        json!({ "identifier": { "type": "dns", "value": name }, "status": status, "challenges": [challenge] })
            .to_string()
    }
}

fn challenge(url: &str, n: usize, i: usize, status: &str) -> Value {
    let status = if matches!(status, "expired" | "deactivated") { "pending" } else { status };
    json!({ "type": "dns-01", "url": format!("{url}/chal/{n}/{i}"), "token": format!("token-{n}-{i}"), "status": status })
}

fn problem(kind: &str, detail: &str) -> String {
    json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail }).to_string()
}

/// A solver to which every name is at hand.
#[derive(Debug)]
struct Yes;

#[derive(Debug)]
struct Standing;

#[async_trait]
impl ChallengeSolver for Yes {
    fn batches(&self, challenges: &[Challenge]) -> Vec<Batch> {
        vec![challenges.to_vec()]
    }

    async fn present(&self, batch: &[Challenge]) -> Result<Box<dyn Presented>, PresentError> {
        assert!(!batch.is_empty());
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

fn request() -> IssueRequest {
    IssueRequest::new(["example.com", "*.example.com"].map(|n| HostPattern::parse(n).unwrap()).into())
}

fn memory() -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new())
}

fn usable(issued: &IssuedCert) -> bool {
    let key = KeyPair::from_pem(issued.key_pem.expose()).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(issued.chain_pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    use rcgen::PublicKeyData;
    certificate.public_key().raw == key.subject_public_key_info()
}

#[tokio::test]
async fn an_order_goes_through_and_is_found_again_until_it_is_let_go() {
    let (ca, storage) = (ModelCa::start().await, memory());
    let issuer = ca.issuer(storage);
    let first = issuer.issue(&request(), &Silent).await.unwrap();
    assert!(usable(&first) && !first.resumed);
    let again = issuer.issue(&request(), &Silent).await.unwrap();
    assert!(again.resumed && again.chain_pem == first.chain_pem);
    issuer.stored(&request()).await;
    let next = issuer.issue(&request(), &Silent).await.unwrap();
    assert!(!next.resumed && usable(&next) && next.chain_pem != first.chain_pem);
    let book = ca.book();
    assert_eq!((book.accounts, book.orders.len()), (1, 2));
}

/// What became of the order between two runs, and whether it can still be used.
#[tokio::test]
async fn an_interrupted_order_goes_on_or_makes_way_for_a_new_one() {
    type Change = fn(&mut Order);
    let cases: [(&str, Change, usize); 8] = [
        ("nothing", |_| {}, 1),
        ("one name was proven meanwhile", |o| o.authorizations[0] = "valid", 1),
        ("ready", |o| (o.authorizations, o.status) = (vec!["valid"; 2], "ready"), 1),
        ("invalid", |o| o.status = "invalid", 2),
        ("an authorization is invalid and the order not yet", |o| o.authorizations[1] = "invalid", 2),
        ("an authorization has expired", |o| o.authorizations[0] = "expired", 2),
        ("an authorization was deactivated", |o| o.authorizations[0] = "deactivated", 2),
        (
            "valid, and nobody knows where the certificate is",
            |o| (o.status, o.no_certificate_url) = ("valid", true),
            2,
        ),
    ];
    for (what, change, orders) in cases {
        let (ca, storage) = (ModelCa::start().await, memory());
        ca.interrupted(&storage).await;
        change(&mut ca.book().orders[0]);
        let issued = ca.issuer(storage).issue(&request(), &Silent).await.unwrap();
        assert!(usable(&issued), "{what}");
        assert_eq!((ca.book().orders.len(), issued.resumed), (orders, orders == 1), "{what}");
    }
}

#[tokio::test]
async fn a_gateway_that_says_gone_in_html_does_not_pin_the_order() {
    for status in [404, 410] {
        let (ca, storage) = (ModelCa::start().await, memory());
        ca.interrupted(&storage).await;
        ca.instead("/order/", status, "<h1>Not here</h1>");
        assert!(usable(&ca.issuer(storage).issue(&request(), &Silent).await.unwrap()));
        assert_eq!(ca.book().orders.len(), 2);
    }
    // A gateway that is in trouble says nothing about the order.
    let (ca, storage) = (ModelCa::start().await, memory());
    ca.interrupted(&storage).await;
    ca.instead("/order/", 502, "<h1>Oops</h1>");
    let error = ca.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap_err();
    assert_eq!((error.class, error.retry), (FailureClass::CaDown, Retry::Backoff));
    assert!(ca.issuer(storage).issue(&request(), &Silent).await.unwrap().resumed);
}

#[tokio::test]
async fn an_order_that_cannot_end_well_is_not_taken_up_again() {
    // The CA looked and found nothing, and says of the order that it is pending.
    let (ca, storage) = (ModelCa::start().await, memory());
    {
        let mut book = ca.book();
        (book.refuse, book.lags_behind) = (true, true);
    }
    let error = ca.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap_err();
    assert_eq!(error.class, FailureClass::Validation);
    assert!(error.message.contains("looked and found nothing") && error.message.contains("_acme-challenge"));
    ca.book().refuse = false;
    assert!(!ca.issuer(storage).issue(&request(), &Silent).await.unwrap().resumed);

    // The CA does not like the key.
    let (ca, storage) = (ModelCa::start().await, memory());
    ca.instead("/finalize/", 400, problem("badPublicKey", "too round"));
    let error = ca.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap_err();
    assert!(error.retry == Retry::Park && error.message.contains("too round"), "{error}");
    assert!(!ca.issuer(storage).issue(&request(), &Silent).await.unwrap().resumed);

    // The CA has lost what it signed.
    let (ca, storage) = (ModelCa::start().await, memory());
    ca.instead("/cert/", 404, problem("malformed", "no such certificate"));
    let error = ca.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap_err();
    assert!(error.retry == Retry::Backoff && error.message.contains("no such certificate"), "{error}");
    assert!(!ca.issuer(storage).issue(&request(), &Silent).await.unwrap().resumed);
}

#[tokio::test]
async fn a_ca_that_wants_hours_is_left_alone_for_hours_and_the_order_is_kept() {
    let (ca, storage) = (ModelCa::start().await, memory());
    let processing = json!({ "status": "processing", "identifiers": [], "authorizations": [],
                             "finalize": format!("{}/finalize/0", ca.book().url) });
    let body = processing.to_string();
    ca.book().instead.push(Instead { path: "/finalize/", status: 200, retry_after: Some("7200"), body });
    let before = crate::clock::Clock::now(&SystemClock);
    let error = ca.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap_err();
    let Retry::At(moment) = error.retry else { panic!("{error:?}") };
    assert!(moment >= before + Duration::from_secs(7000) && error.message.contains("come back"), "{error}");
    assert!(ca.issuer(storage).issue(&request(), &Silent).await.unwrap().resumed);
    assert_eq!(ca.asked("/new-order"), 1);
}

#[tokio::test]
async fn what_is_no_acme_server_is_said_to_be_none() {
    for (status, body, says) in [
        (200, "<html>Welcome</html>", "acme.ca"),
        (301, "<html>Moved</html>", "acme.ca"),
        (429, "<html>Slow down</html>", "429"),
        (503, "", "503"),
    ] {
        let (ca, storage) = (ModelCa::start().await, memory());
        ca.instead("/dir", status, body);
        let error = ca.issuer(storage).issue(&request(), &Silent).await.unwrap_err();
        assert!(error.message.contains(says) && error.message.contains("example.com"), "{error}");
        assert!(error.message.contains("by itself"), "{error}");
    }
    let (ca, storage) = (ModelCa::start().await, memory());
    ca.instead("/new-order", 403, problem("unauthorized", "account is deactivated"));
    let error = ca.issuer(storage).issue(&request(), &Silent).await.unwrap_err();
    assert_eq!((error.class, error.retry), (FailureClass::Config, Retry::Park));
    assert!(!error.message.contains("_acme-challenge"), "{error}");
}

/// Issues and lets go, as `certs` does; `None` if the process died at a write.
async fn life(ca: &ModelCa, storage: Arc<Dying>) -> Option<IssuedCert> {
    let issuer = ca.issuer(storage.clone());
    let whole = async {
        let issued = issuer.issue(&request(), &Silent).await.unwrap();
        issuer.stored(&request()).await;
        issued
    };
    let died = async {
        while !storage.is_dead() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        issued = whole => Some(issued),
        () = died => None,
    }
}

#[tokio::test]
async fn a_crash_after_any_write_of_an_order_costs_at_most_one_more_order() {
    let mut deaths = 0;
    for writes in 1.. {
        let (ca, dir) = (ModelCa::start().await, tempfile::tempdir().unwrap());
        let died = life(&ca, Dying::open(dir.path(), writes)).await.is_none();
        deaths += u32::from(died);
        let orders = ca.book().orders.len();
        let issued = life(&ca, Dying::open(dir.path(), usize::MAX)).await.unwrap();
        assert!(usable(&issued), "after write {writes}");
        assert!(ca.book().orders.len() <= orders + 1, "after write {writes}");
        // An order whose URL was written is never paid for twice.
        assert!(
            !died || issued.resumed == (orders == 1 && ca.book().orders.len() == 1),
            "after write {writes}"
        );
        for entry in walkdir::WalkDir::new(dir.path()) {
            let entry = entry.unwrap();
            let name = entry.path().display().to_string();
            let left = name.contains(".tmp-") || name.contains("/orders/") && entry.file_type().is_file();
            assert!(!left, "after write {writes}: {name}");
        }
        if !died {
            break;
        }
    }
    assert!(deaths >= 5, "{deaths} writes: key, account, order's key, order's URL, its end");
}

#[tokio::test]
async fn a_successor_is_one_order_whatever_the_ca_makes_of_it() {
    let (ca, storage) = (ModelCa::start().await, memory());
    ca.book().ari = true;
    let issuer = ca.issuer(storage);
    let first = issuer.issue(&request(), &Silent).await.unwrap();
    issuer.stored(&request()).await;
    let (_, leaf) = x509_parser::pem::parse_x509_pem(first.chain_pem.as_bytes()).unwrap();
    let renewal = IssueRequest { replaces: Some(leaf.contents.into()), ..request() };
    // Whether it says so, says nothing, stops in the middle of its answer, refuses, or wants to be left alone.
    let refused = || Some((409, problem("alreadyReplaced", "somebody was quicker")));
    let limited = || Some((429, problem("rateLimited", "too many new orders")));
    type Row = (&'static str, bool, Option<(u16, String)>, usize, Option<bool>);
    let cases: [Row; 4] = [
        ("it echoes", true, None, 1, Some(true)),
        ("it does not echo", false, None, 1, Some(false)),
        ("it refuses", true, refused(), 2, Some(false)),
        ("it counts", true, limited(), 1, None),
    ];
    for (what, echoes, instead, asked, replaced) in cases {
        let before = ca.asked("/new-order");
        let orders = ca.book().orders.len();
        ca.book().echoes = echoes;
        if let Some((status, body)) = instead {
            ca.instead("/new-order", status, body);
        }
        let result = issuer.issue(&renewal, &Silent).await;
        assert_eq!(ca.asked("/new-order") - before, asked, "{what}");
        assert_eq!(ca.book().orders.len() - orders, usize::from(replaced.is_some()), "{what}: one order");
        let spent = match (result, replaced) {
            (Ok(issued), Some(_)) => issued.spent,
            (Err(error), None) => error.spent,
            (result, _) => panic!("{what}: {result:?}"),
        };
        let taken = replaced.is_some();
        let expected =
            Spent { ordered: taken, replaced: replaced == Some(true), signed: taken, ..Spent::default() };
        assert_eq!(spent, expected, "{what}");
        issuer.stored(&renewal).await;
    }
}

#[tokio::test]
async fn what_the_ca_counted_is_told_with_the_failure() {
    let (ca, storage) = (ModelCa::start().await, memory());
    ca.book().refuse = true;
    let error = ca.issuer(storage).issue(&request(), &Silent).await.unwrap_err();
    let failed = vec![crate::name::HostName::parse("example.com").unwrap()];
    assert_eq!(error.spent, Spent { registered: true, ordered: true, failed, ..Spent::default() });

    // An order whose answer is cut off exists: it is not paid for twice.
    let (ca, storage) = (ModelCa::start().await, memory());
    ca.book().cut_order = true;
    let issued = ca.issuer(storage).issue(&request(), &Silent).await.unwrap();
    assert!(usable(&issued) && issued.spent.ordered);
    assert_eq!(ca.asked("/new-order"), 1);
    assert_eq!(ca.book().orders.len(), 1);
}

#[tokio::test]
async fn what_names_an_account_whose_key_was_lost_gets_no_other_one() {
    let (ca, storage) = (ModelCa::start().await, memory());
    let pinned = || ca.issuer_of(storage.clone(), |spec| spec.pinned = true);
    pinned().issue(&request(), &Silent).await.unwrap();
    pinned().stored(&request()).await;
    let account = AcmeIssuer::account_key(&AcmeSpec::new(format!("{}/dir", ca.book().url)));
    storage.remove(&account).await.unwrap();
    let error = pinned().issue(&request(), &Silent).await.unwrap_err();
    assert_eq!((error.class, error.retry, ca.book().accounts), (FailureClass::Config, Retry::Park, 1));
    assert!(error.message.contains("/account/1") && error.message.contains("Restore that file"), "{error}");
    // What nobody names is registered again; and so is the pinned one when a person says so.
    ca.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap();
    ca.issuer(storage.clone()).stored(&request()).await;
    assert_eq!(ca.book().accounts, 2);
    storage.remove(&account).await.unwrap();
    storage.remove(&storage.list("registered").await.unwrap()[0]).await.unwrap();
    pinned().issue(&request(), &Silent).await.unwrap();
    assert_eq!(ca.book().accounts, 3);
}

#[tokio::test]
async fn a_profile_that_the_ca_has_retired_hinders_no_revocation() {
    let (ca, storage) = (ModelCa::start().await, memory());
    let issued = ca.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap();
    let (_, leaf) = x509_parser::pem::parse_x509_pem(issued.chain_pem.as_bytes()).unwrap();
    let retired = ca.issuer_of(storage, |spec| spec.profile = Some("retired".to_owned()));
    let error = retired.issue(&request(), &Silent).await.unwrap_err();
    assert!(error.message.contains("has no profile `retired`"), "{error}");
    ca.instead("/revoke", 200, "");
    retired.revoke(&leaf.contents, 1).await.unwrap();
    assert_eq!(ca.asked("/revoke"), 1);
}

#[tokio::test]
async fn an_order_that_is_gone_on_with_later_is_told_of() {
    let (ca, storage) = (ModelCa::start().await, memory());
    let issuer = ca.issuer(storage);
    assert!(!issuer.resumes(&request()).await);
    ca.instead("/chal/", 503, "busy");
    let error = issuer.issue(&request(), &Silent).await.unwrap_err();
    assert_eq!(error.spent, Spent { registered: true, ordered: true, open: true, ..Spent::default() });
    assert!(issuer.resumes(&request()).await);
    let issued = issuer.issue(&request(), &Silent).await.unwrap();
    assert_eq!(issued.spent, Spent { signed: true, ..Spent::default() });
    issuer.stored(&request()).await;
    assert!(!issuer.resumes(&request()).await);
}

#[tokio::test]
async fn nothing_is_ordered_with_an_rsa_key_that_was_taken_over() {
    let (ca, storage) = (ModelCa::start().await, memory());
    let made = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let spec = AcmeSpec::new(format!("{}/dir", ca.book().url));
    let url = format!("{}/account/9", ca.book().url);
    assert!(import_account(&*storage, &spec, &made.serialize_der(), Some(&url), false).await.unwrap());
    let error = ca.issuer(storage.clone()).issue(&request(), &Silent).await.unwrap_err();
    assert_eq!((error.class, error.retry), (FailureClass::Config, Retry::Park));
    assert!(error.message.contains("`starlock accounts roll-key`"), "{error}");
    assert_eq!((ca.asked("/new-order"), ca.book().accounts), (0, 0));
    forget_account(&*storage, &spec).await.unwrap();
    ca.issuer(storage).issue(&request(), &Silent).await.unwrap();
}
