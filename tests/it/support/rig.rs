//! Starlock's data plane in this process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use starlock::balance::{ServerHost, ServerSpec, UpstreamSpec, UpstreamTimeouts};
use starlock::clock::SystemClock;
use starlock::listen::{Inherited, ListenSpec, Traffic};
use starlock::policy::PolicySpec;
use starlock::probe::Prober;
use starlock::proxy::{
    ActionSpec, ConditionSpec, ForwardSpec, Proxy, ProxySpec, RedirectSpec, RouteHost, RouteSpec, Snapshot,
    SnapshotPublisher, snapshot_cell,
};
use starlock::resolver::Hosts;
use starlock::task::{Shutdown, Supervisor};
use starlock::telemetry::{AccessFormat, AccessLog, AccessLogSpec, AccessTarget, Metrics};
use starlock::tls::{
    Bundle, CertPublisher, CertTable, ClientAuthPublisher, ClientAuthSpec, TlsServer, cert_store,
    client_auth_cell,
};
use starlock::upstream::{Pools, TlsPublisher, client_tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{PATIENCE, Raw};

/// What a rig is to do.
pub(crate) struct Plan {
    pub(crate) listen: ListenSpec,
    pub(crate) proxy: ProxySpec,
    pub(crate) upstreams: Vec<UpstreamSpec>,
    pub(crate) client_auth: Vec<ClientAuthSpec>,
    pub(crate) workers: usize,
    /// Who is asked for upstreams' names.
    pub(crate) hosts: Hosts,
}

impl Plan {
    /// Listens on a port in clear.
    pub(crate) fn clear() -> Self {
        Self {
            listen: ListenSpec { http: vec![local()], ..ListenSpec::default() },
            proxy: ProxySpec {
                routes: vec![],
                trusted_proxies: vec![],
                trusted_header: Default::default(),
                body_timeout: Duration::from_secs(60),
                tunnel_timeout: Duration::from_secs(3600),
                max_body: None,
            },
            upstreams: vec![],
            client_auth: vec![],
            workers: 2,
            hosts: Hosts::system(),
        }
    }

    /// What a configuration says about routes, upstreams and clients. It listens on free ports of its own: in clear, and with
    /// TLS if the text says `listen.https`. Nothing is ordered: with TLS the certificate is the one of [`Plan::tls`].
    pub(crate) fn toml(text: &str) -> Self {
        let env =
            starlock::config::Environment { state_dir: "/nowhere".into(), runtime_dir: "/nowhere".into() };
        let tls = text.contains("https =");
        let loaded = starlock::config::parse(&format!("acme.ca = \"local\"\n{text}"), "test.toml", &env)
            .unwrap_or_else(|problems| panic!("{problems}"));
        let mut listen = loaded.plan.listen;
        listen.http = vec![local()];
        listen.https = if tls { vec![local()] } else { vec![] };
        let starlock::config::Plan { proxy, upstreams, client_auth, .. } = loaded.plan;
        Self { listen, proxy, upstreams, client_auth, workers: 2, hosts: Hosts::system() }
    }

    /// Listens with TLS as well; its certificate is for `a.test`, `b.test`, `*.wild.test` and `127.0.0.1`.
    pub(crate) fn tls() -> Self {
        let mut plan = Self::clear();
        plan.listen.https = vec![local()];
        plan
    }

    pub(crate) fn route(mut self, key: &str, action: ActionSpec) -> Self {
        let (host, path) = key.split_once('/').map_or((key, "/".to_owned()), |(h, p)| (h, format!("/{p}")));
        let host = match host {
            "*" => RouteHost::Any,
            host => RouteHost::Pattern(host.parse().unwrap()),
        };
        self.proxy.routes.push(RouteSpec {
            key: key.into(),
            host,
            path: path.into(),
            when: ConditionSpec::default(),
            policy: PolicySpec::default(),
            action,
        });
        self
    }

    /// A route to the server at `address`.
    pub(crate) fn forward(self, key: &str, address: SocketAddr) -> Self {
        self.forward_to_host(key, ServerHost::Ip(address.ip()), address.port(), false)
    }

    pub(crate) fn forward_stripped(self, key: &str, address: SocketAddr) -> Self {
        self.forward_to_host(key, ServerHost::Ip(address.ip()), address.port(), true)
    }

    pub(crate) fn forward_to_host(
        mut self,
        key: &str,
        host: ServerHost,
        port: u16,
        strip_prefix: bool,
    ) -> Self {
        let upstream: Arc<str> = format!("to-{key}").into();
        let servers = vec![ServerSpec::new(host, port)];
        self.upstreams.push(UpstreamSpec::new(upstream.clone(), servers, UpstreamTimeouts::default()));
        self.route(key, ActionSpec::Forward(ForwardSpec { strip_prefix, ..ForwardSpec::to(upstream) }))
    }

    pub(crate) fn respond(self, key: &str, status: u16, body: Option<&str>) -> Self {
        self.route(key, ActionSpec::Respond { status, body: body.map(Into::into), content_type: None })
    }

    pub(crate) fn redirect(self, key: &str, origin: &str, path: Option<&str>, status: u16) -> Self {
        self.route(
            key,
            ActionSpec::Redirect(RedirectSpec {
                origin: origin.into(),
                path: path.map(Into::into),
                pattern: None,
                status,
            }),
        )
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) async fn start(self) -> Rig {
        Rig::start(self).await
    }
}

fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// What a client shows of itself.
pub(crate) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A running data plane.
pub(crate) struct Rig {
    pub(crate) traffic: Traffic,
    pub(crate) publisher: SnapshotPublisher,
    pub(crate) metrics: Arc<Metrics>,
    prober: Prober,
    stop: Shutdown,
    certs: CertPublisher,
    client_auth: ClientAuthPublisher,
    upstream_tls: TlsPublisher,
    trusted: RootCertStore,
    root_pem: String,
    log: AccessLog,
    log_path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn start(plan: Plan) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log_path = dir.path().join("access.log");
        let metrics = Metrics::new("test");
        let target = AccessTarget::open(&AccessLogSpec::File(log_path.clone())).unwrap();
        let log = AccessLog::start(target, AccessFormat::Json, metrics.access_dropped().clone()).unwrap();

        let (mut certs, reader) = cert_store();
        let (bundle, trusted, root_pem) = certificate(&["a.test", "b.test", "*.wild.test", "127.0.0.1"]);
        certs.publish(CertTable::new([bundle], None));
        let (client_auth, asked) = client_auth_cell();
        let tls = TlsServer::new(reader).unwrap().asking(asked);

        let first = Snapshot::build(&plan.proxy, &plan.upstreams, None, None, &metrics).unwrap();
        let (publisher, snapshots) = snapshot_cell(first, metrics.clone());
        let stop = Shutdown::new();
        let (upstream_tls, tls_reader) = client_tls();
        let prober = Prober::new(Supervisor::new(stop.clone()), plan.hosts.clone(), tls_reader.clone());
        let (hosts, counts, access, workers) =
            (plan.hosts.clone(), metrics.clone(), log.clone(), plan.workers);
        let traffic = Traffic::start(workers, tls, metrics.clone(), move |_| {
            let pools = Pools::new(256 / workers, hosts.clone(), tls_reader.clone());
            Proxy::new(snapshots.clone(), pools, counts.clone(), access.writer(), Arc::new(SystemClock))
        })
        .unwrap();
        let mut rig = Self {
            traffic,
            publisher,
            metrics,
            prober,
            stop,
            certs,
            client_auth,
            upstream_tls,
            trusted,
            root_pem,
            log,
            log_path,
            _dir: dir,
        };
        rig.load(&plan).await;
        rig
    }

    /// What a reload does.
    pub(crate) async fn load(&mut self, plan: &Plan) {
        let listeners = self.traffic.prepare(&plan.listen, &mut Inherited::default()).await.unwrap();
        let port = listeners.addresses().https_port();
        let current = self.publisher.current();
        let client_auth = self.client_auth.current().next(&plan.client_auth).unwrap();
        let next = Snapshot::build(&plan.proxy, &plan.upstreams, port, Some(&current), &self.metrics)
            .unwrap()
            .asking(client_auth.policies());
        self.client_auth.publish(client_auth);
        let tls = self.upstream_tls.prepare(&plan.upstreams).await.unwrap_or_else(|error| panic!("{error}"));
        self.upstream_tls.commit(tls);
        self.publisher.publish(next);
        self.prober.watch(self.publisher.current().upstreams());
        listeners.commit();
    }

    /// Waits for a file of the servers' TLS to change, and uses it: what the running process does all the time.
    pub(crate) async fn upstream_tls_changed(&mut self) {
        let fresh = self.upstream_tls.changed().await;
        self.upstream_tls.commit(fresh);
    }

    /// The root that clients need to know.
    pub(crate) fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Serves another certificate from now on.
    pub(crate) fn renew(&mut self, names: &[&str]) {
        let (bundle, trusted, root_pem) = certificate(names);
        self.root_pem = root_pem;
        self.certs.publish(CertTable::new([bundle], None));
        self.trusted = trusted;
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.traffic.addresses().http[0]
    }

    pub(crate) fn https(&self) -> SocketAddr {
        self.traffic.addresses().https[0]
    }

    pub(crate) async fn connect(&self) -> Raw {
        Raw::connect(self.http()).await
    }

    /// An HTTP/1.1 client by https that asks for `name`.
    pub(crate) async fn connect_tls(&self, name: &str) -> Raw<TlsStream<TcpStream>> {
        Raw::over(self.tls(name, "http/1.1").await)
    }

    /// A handshake for `name`, offering `alpn`.
    pub(crate) async fn tls(&self, name: &str, alpn: &str) -> TlsStream<TcpStream> {
        self.tls_showing(name, alpn, None).await
    }

    /// As [`Rig::tls`], with a certificate of the client's.
    pub(crate) async fn tls_showing(
        &self,
        name: &str,
        alpn: &str,
        shown: Option<Shown>,
    ) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.https()).await.unwrap();
        Self::handshake(stream, self.trusted.clone(), name, alpn, shown).await
    }

    /// As [`Rig::tls`], on a connection that is there already.
    pub(crate) async fn tls_over<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: IO,
        name: &str,
        alpn: &str,
    ) -> TlsStream<IO> {
        Self::handshake(stream, self.trusted.clone(), name, alpn, None).await
    }

    /// A client's handshake that trusts `roots`.
    pub(crate) async fn handshake<IO: AsyncRead + AsyncWrite + Unpin>(
        stream: IO,
        roots: RootCertStore,
        name: &str,
        alpn: &str,
        shown: Option<Shown>,
    ) -> TlsStream<IO> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match shown {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// The first line of the access log for which `wanted` holds, as soon as there is one.
    pub(crate) async fn logged(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.log_path).unwrap();
            let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
            if let Some(line) = lines.into_iter().find(|line| wanted(line)) {
                return line;
            }
            assert!(start.elapsed() < PATIENCE, "no such line in {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until `condition` holds.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "{what} did not come about\n{}", self.metrics.render());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The server at `address`, of whichever upstream.
    pub(crate) fn endpoint(&self, address: SocketAddr) -> Arc<starlock::balance::Endpoint> {
        let current = self.publisher.current();
        let mut all = current.upstreams().endpoints();
        all.find(|e| e.spec().ip() == Some(address.ip()) && e.spec().port == address.port()).unwrap()
    }

    /// The value of the metric whose line begins with `series`; 0 if there is none.
    pub(crate) fn metric(&self, series: &str) -> i64 {
        let load = self.traffic.load();
        self.metrics.loaded(load.requests(), load.buffered());
        let text = self.metrics.render();
        text.lines()
            .filter_map(|line| line.strip_prefix(series)?.trim().parse().ok())
            .next()
            .unwrap_or_default()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.trigger();
        self.traffic.abort();
        self.log.close(PATIENCE);
    }
}

/// A certificate, and the root that signed it: itself.
fn certificate(names: &[&str]) -> (Arc<Bundle>, RootCertStore, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let mut trusted = RootCertStore::empty();
    trusted.add(cert.der().clone()).unwrap();
    (Arc::new(Bundle::from_pem(&cert.pem(), &key.serialize_pem()).unwrap()), trusted, cert.pem())
}
