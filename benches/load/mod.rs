//! A paced load of verified HTTPS requests: kept-alive and new connections, HTTP/1.1 and HTTP/2.
//!
//! Used by the demo and by the behaviour tests. Every request, handshake and certificate is checked and counted; the load is
//! bounded by its rate and ends with [`Load::stop`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(10);

/// What to ask, how often.
#[derive(Clone)]
pub struct Spec {
    pub address: SocketAddr,
    /// Hosts that are asked in turn; each must be covered by the served certificate.
    pub hosts: Vec<String>,
    pub path: String,
    /// The only root that is trusted, as PEM.
    pub root_pem: String,
    /// Requests a second over everything.
    pub rate: u32,
}

/// What came of it.
#[derive(Default)]
pub struct Report {
    pub sent: AtomicU64,
    pub failed: AtomicU64,
    pub handshakes: AtomicU64,
    pub failed_handshakes: AtomicU64,
    pub resumed: AtomicU64,
    pub connections_closed: AtomicU64,
    serials: Mutex<BTreeSet<String>>,
    times: Mutex<Vec<Duration>>,
    errors: Mutex<Vec<String>>,
}

impl Report {
    /// Serial numbers of all certificates that full handshakes showed.
    pub fn serials(&self) -> BTreeSet<String> {
        self.serials.lock().unwrap().clone()
    }

    /// How long each answer took since this was asked last, the quickest first.
    #[allow(dead_code, reason = "one of its users measures")]
    pub fn take_times(&self) -> Vec<Duration> {
        let mut times = std::mem::take(&mut *self.times.lock().unwrap());
        times.sort_unstable();
        times
    }

    /// The first errors, at most twenty.
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }

    fn fail(&self, counter: &AtomicU64, what: String) {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors.lock().unwrap();
        if errors.len() < 20 {
            errors.push(what);
        }
    }
}

/// A running load.
pub struct Load {
    pub report: Arc<Report>,
    stop: Arc<AtomicBool>,
    runtime: Option<tokio::runtime::Runtime>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Http {
    One,
    Two,
}

#[derive(Clone)]
struct Client {
    spec: Spec,
    report: Arc<Report>,
    stop: Arc<AtomicBool>,
    h1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    /// Without tickets: every handshake is a full one and shows the certificate.
    h1_full: Arc<ClientConfig>,
}

impl Load {
    /// Starts: two fifths on kept-alive HTTP/1.1, two fifths on kept-alive HTTP/2, one fifth on new connections: full
    /// handshakes for HTTP/1.1, resumed ones for HTTP/2.
    pub fn start(spec: Spec) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (report, stop) = (Arc::new(Report::default()), Arc::new(AtomicBool::new(false)));
        let config = |alpn| tls_config(&spec.root_pem, alpn);
        let mut full = config("http/1.1");
        full.resumption = Resumption::disabled();
        let client = Client {
            report: report.clone(),
            stop: stop.clone(),
            h1: config("http/1.1").into(),
            h2: config("h2").into(),
            h1_full: full.into(),
            spec,
        };
        let rate = client.spec.rate;
        let mut tasks = Vec::new();
        for http in [Http::One, Http::Two] {
            for _ in 0..4 {
                tasks.push(runtime.spawn(client.clone().kept_alive(http, rate / 10)));
            }
            tasks.push(runtime.spawn(client.clone().new_connections(http, rate / 10)));
        }
        Self { report, stop, runtime: Some(runtime), tasks }
    }

    /// Lets running requests finish and gives the report.
    pub fn stop(mut self) -> Arc<Report> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(async {
                for task in self.tasks.drain(..) {
                    if task.await.is_err() {
                        self.report.fail(&self.report.failed, "a load task panicked".to_owned());
                    }
                }
            });
        }
        self.report.clone()
    }
}

enum Sender {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    fn running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    async fn kept_alive(self, http: Http, rate: u32) {
        let mut pace = Pace::new(rate);
        let mut sender = None;
        while self.running() {
            pace.next().await;
            let usable = match &sender {
                None => false,
                Some(Sender::One(sender)) => !sender.is_closed(),
                Some(Sender::Two(sender)) => !sender.is_closed(),
            };
            if !usable {
                if sender.is_some() {
                    self.report.connections_closed.fetch_add(1, Ordering::Relaxed);
                }
                sender = self.connect(http, false).await;
            }
            if let Some(open) = &mut sender
                && !self.ask(open).await
            {
                sender = None;
            }
        }
    }

    async fn new_connections(self, http: Http, rate: u32) {
        let mut pace = Pace::new(rate);
        while self.running() {
            pace.next().await;
            if let Some(mut sender) = self.connect(http, http == Http::One).await {
                self.ask(&mut sender).await;
            }
        }
    }

    fn host(&self) -> &str {
        let turn = self.report.handshakes.load(Ordering::Relaxed) as usize;
        &self.spec.hosts[turn % self.spec.hosts.len()]
    }

    async fn connect(&self, http: Http, full: bool) -> Option<Sender> {
        match tokio::time::timeout(DEADLINE, self.try_connect(http, full)).await {
            Ok(Ok(sender)) => Some(sender),
            Ok(Err(error)) => {
                self.report.fail(&self.report.failed_handshakes, format!("handshake: {error}"));
                None
            }
            Err(_) => {
                self.report.fail(&self.report.failed_handshakes, "handshake: no end within 10 s".to_owned());
                None
            }
        }
    }

    async fn try_connect(&self, http: Http, full: bool) -> Result<Sender, String> {
        self.report.handshakes.fetch_add(1, Ordering::Relaxed);
        let tcp = TcpStream::connect(self.spec.address).await.map_err(|e| e.to_string())?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let name = ServerName::try_from(self.host().to_owned()).map_err(|e| e.to_string())?;
        let config = match (http, full) {
            (Http::One, true) => &self.h1_full,
            (Http::One, false) => &self.h1,
            (Http::Two, _) => &self.h2,
        };
        let stream =
            TlsConnector::from(config.clone()).connect(name, tcp).await.map_err(|e| e.to_string())?;
        let (_, connection) = stream.get_ref();
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.report.resumed.fetch_add(1, Ordering::Relaxed);
        } else if let Some(leaf) = connection.peer_certificates().and_then(|chain| chain.first()) {
            self.report.serials.lock().unwrap().insert(serial(leaf));
        }
        let io = TokioIo::new(stream);
        match http {
            Http::One => {
                let (sender, connection) = http1::handshake(io).await.map_err(|e| e.to_string())?;
                tokio::spawn(connection);
                Ok(Sender::One(sender))
            }
            Http::Two => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder.timer(TokioTimer::new());
                let (sender, connection) = builder.handshake(io).await.map_err(|e| e.to_string())?;
                tokio::spawn(connection);
                Ok(Sender::Two(sender))
            }
        }
    }

    async fn ask(&self, sender: &mut Sender) -> bool {
        self.report.sent.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        match tokio::time::timeout(DEADLINE, self.try_ask(sender)).await {
            Ok(Ok(())) => {
                self.report.times.lock().unwrap().push(start.elapsed());
                true
            }
            Ok(Err(error)) => {
                self.report.fail(&self.report.failed, error);
                false
            }
            Err(_) => {
                self.report.fail(&self.report.failed, "no answer within 10 s".to_owned());
                false
            }
        }
    }

    async fn try_ask(&self, sender: &mut Sender) -> Result<(), String> {
        // Connections are for one host each; the first is covered by every certificate of the demo.
        let (host, path) = (&self.spec.hosts[0], &self.spec.path);
        let response = match sender {
            Sender::One(sender) => {
                sender.ready().await.map_err(|e| e.to_string())?;
                let request =
                    Request::get(path).header("host", host).body(Empty::new()).map_err(|e| e.to_string())?;
                sender.send_request(request).await
            }
            Sender::Two(sender) => {
                sender.ready().await.map_err(|e| e.to_string())?;
                let url = format!("https://{host}{path}");
                let request = Request::get(url).body(Empty::new()).map_err(|e| e.to_string())?;
                sender.send_request(request).await
            }
        };
        let response = response.map_err(|e| format!("{e:?}"))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| format!("body: {e:?}"))?;
        if status.is_success() { Ok(()) } else { Err(format!("status {status}: {:?}", body.to_bytes())) }
    }
}

/// Evenly spaced ticks; a late one is not made up for, so that a slow server is not pushed over.
struct Pace {
    next: Instant,
    every: Duration,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { next: Instant::now(), every: Duration::from_secs(1) / rate.max(1) }
    }

    async fn next(&mut self) {
        let now = Instant::now();
        self.next = (self.next + self.every).max(now.checked_sub(Duration::from_millis(200)).unwrap_or(now));
        tokio::time::sleep_until(self.next.into()).await;
    }
}

fn tls_config(root_pem: &str, alpn: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(root_pem.as_bytes()) {
        roots.add(root.expect("the root is PEM")).expect("the root is a certificate");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config
}

fn serial(leaf: &CertificateDer<'_>) -> String {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, leaf) = X509Certificate::from_der(leaf).expect("the handshake verified it");
    let digits: String = leaf.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    digits.strip_prefix("00").unwrap_or(&digits).to_owned()
}
