//! Servers behind TLS, behind sockets, and told of the client.

use std::process::Command;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::client::Raw;
use crate::support::nginx::Nginx;
use crate::support::process::Process;
use crate::support::rig::{Plan, Rig};
use crate::support::server::Server;
use crate::support::starlock::Starlock;
use crate::support::{eventually, free_port};

/// What nginx says of a request.
const SEEN: &str = "location / { add_header X-Host $host; return 200 \"$server_protocol|$ssl_server_name|$ssl_client_verify|$ssl_client_serial|$ssl_session_reused\"; }";

/// A root that signs for names.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test root");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Chain and key.
    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

fn https(ca: &Ca, listen: &str, more: &str, change: impl FnOnce(&mut CertificateParams)) -> Nginx {
    let (cert, key) = ca.sign("app.internal.test", change);
    let server = format!(
        "listen 127.0.0.1:PORT {listen}; ssl_certificate DIR/cert.pem; ssl_certificate_key DIR/key.pem; {more} {SEEN}"
    );
    Nginx::start(&server, &[("cert.pem", &cert), ("key.pem", &key), ("ca.pem", &ca.pem())])
}

/// A rig in front of `nginx` with this `tls` table.
async fn front(nginx: &Nginx, tls: &str) -> Rig {
    let text = format!(
        "[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\n\
         servers = [\"https://127.0.0.1:{}\"]\ntls = {{ {} }}\ntimeouts = {{ connect = \"10s\" }}\n",
        nginx.port,
        tls.replace("DIR", &nginx.dir().display().to_string())
    );
    Plan::toml(&text).start().await
}

async fn seen(rig: &Rig) -> String {
    let answer = rig.connect().await.get("a.test", "/").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().to_owned()
}

async fn refused(rig: &Rig, status: u16, reason: &str) {
    assert_eq!(rig.connect().await.get("a.test", "/").await.status, status);
    let line = rig.logged(|line| line["status"] == status).await;
    assert_eq!(line["reason"], reason, "{line}");
}

const NAMED: &str = "ca = \"DIR/ca.pem\", sni = \"app.internal.test\"";

#[tokio::test]
async fn the_server_picks_the_http_it_likes() {
    let nginx = https(&Ca::new(), "ssl http2", "", |_| {});
    let rig = front(&nginx, NAMED).await;
    assert!(seen(&rig).await.starts_with("HTTP/2.0|app.internal.test|"));
    let answer = rig.connect().await.get("a.test:8080", "/").await;
    assert_eq!(answer.field("x-host"), Some("a.test"), "Host is the client's");
    let rig = front(&nginx, &format!("{NAMED}, http = \"1.1\"")).await;
    assert!(seen(&rig).await.starts_with("HTTP/1.1|app.internal.test|"));
    let rig = front(&nginx, &format!("{NAMED}, http = \"2\"")).await;
    assert!(seen(&rig).await.starts_with("HTTP/2.0|"));
    let old = https(&Ca::new(), "ssl", "", |_| {});
    let rig = front(&old, NAMED).await;
    assert!(seen(&rig).await.starts_with("HTTP/1.1|"), "nothing was picked");
    let rig = front(&old, &format!("{NAMED}, http = \"2\"")).await;
    assert_eq!(rig.connect().await.get("a.test", "/").await.status, 502);
}

#[tokio::test]
async fn a_certificate_must_be_trusted_in_force_and_for_the_name() {
    let ca = Ca::new();
    let nginx = https(&ca, "ssl http2", "", |_| {});
    // The system does not know this root; the address is not in the certificate.
    refused(&front(&nginx, "sni = \"app.internal.test\"").await, 502, "upstream_tls_certificate").await;
    refused(&front(&nginx, "ca = \"DIR/ca.pem\"").await, 502, "upstream_tls_certificate").await;
    refused(
        &front(&nginx, "ca = \"DIR/ca.pem\", sni = \"other.internal.test\"").await,
        502,
        "upstream_tls_certificate",
    )
    .await;
    let other = Ca::new().pem();
    std::fs::write(nginx.dir().join("other.pem"), other).unwrap();
    let wrong = "ca = \"DIR/other.pem\", sni = \"app.internal.test\"";
    refused(&front(&nginx, wrong).await, 502, "upstream_tls_certificate").await;
    let rig = front(&nginx, "danger_skip_verify = true").await;
    assert!(seen(&rig).await.starts_with("HTTP/2.0||"), "an address is no SNI");

    let expired = https(&ca, "ssl http2", "", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    refused(&front(&expired, NAMED).await, 502, "upstream_tls_certificate").await;
}

/// What the log says of a server's TLS names what mends it.
#[test]
fn what_is_wrong_with_a_servers_tls_is_said_with_what_mends_it() {
    let ca = Ca::new();
    let nginx = https(&ca, "ssl", "", |_| {});
    let own = https(&ca, "ssl", "", |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let plain = Nginx::start(&format!("listen 127.0.0.1:PORT; {SEEN}"), &[]);
    let cases = [
        (&nginx, "{ sni = \"app.internal.test\" }".to_owned(), "UnknownIssuer (`tls.ca` names the PEM file"),
        (&nginx, format!("{{ ca = \"{}/ca.pem\" }}", nginx.dir().display()), "(`tls.sni` says which name"),
        (
            &own,
            format!("{{ ca = \"{}/ca.pem\", sni = \"app.internal.test\" }}", own.dir().display()),
            "openssl req -x509",
        ),
        (&plain, "{ danger_skip_verify = true }".to_owned(), "its URL begins with http://"),
    ];
    for (server, tls, wanted) in cases {
        let starlock = Starlock::start(&format!(
            "[listen]\nhttps = []\nhttp = [\"127.0.0.1:0\"]\n[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\n\
             servers = [\"https://127.0.0.1:{}\"]\ntls = {tls}\n",
            server.port
        ));
        let got = curl_status(starlock.address("http"));
        assert_eq!(got, "502", "{wanted}");
        eventually(wanted, || starlock.log().contains(wanted).then_some(()));
    }
}

fn curl_status(address: std::net::SocketAddr) -> String {
    let output = Command::new("curl")
        .args(["-s", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: a.test"])
        .arg(format!("http://{address}/"))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_server_that_does_not_shake_hands_is_told_apart() {
    let text = |port: u16| {
        format!(
            "[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\n\
             servers = [\"https://127.0.0.1:{port}\"]\ntls = {{ danger_skip_verify = true }}\ntimeouts = {{ connect = \"1500ms\" }}\n"
        )
    };
    let talker = Server::raw(|mut stream| async move {
        drop(tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
    });
    refused(&Plan::toml(&text(talker.address.port())).start().await, 502, "upstream_tls_failed").await;
    let silent = Server::raw(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    refused(&Plan::toml(&text(silent.address.port())).start().await, 503, "upstream_tls_timeout").await;
    refused(&Plan::toml(&text(free_port())).start().await, 503, "upstream_connect_refused").await;
}

#[tokio::test]
async fn a_client_certificate_is_presented_and_read_again_when_it_changes() {
    let ca = Ca::new();
    let client = Ca::new();
    let (cert, key) = ca.sign("app.internal.test", |_| {});
    let server = format!(
        "listen 127.0.0.1:PORT ssl; ssl_certificate DIR/cert.pem; ssl_certificate_key DIR/key.pem; keepalive_timeout 0; \
         ssl_client_certificate DIR/clients.pem; ssl_verify_client on; {SEEN}"
    );
    let (mine, mine_key) = client.sign("starlock.test", |params| params.serial_number = Some(7_u64.into()));
    let files = [
        ("cert.pem", cert.as_str()),
        ("key.pem", &key),
        ("ca.pem", &ca.pem()),
        ("clients.pem", &client.pem()),
        ("mine.pem", &mine),
        ("mine.key", &mine_key),
    ];
    let nginx = Nginx::start(&server, &files);
    let rig = front(&nginx, NAMED).await;
    let answer = rig.connect().await.get("a.test", "/").await;
    assert_eq!(answer.status, 400, "nginx's own words: {}", answer.text());
    let with = format!("{NAMED}, cert = \"DIR/mine.pem\", key = \"DIR/mine.key\"");
    let mut rig = front(&nginx, &with).await;
    assert_eq!(seen(&rig).await.split('|').nth(2), Some("SUCCESS"));
    assert_eq!(seen(&rig).await.split('|').nth(3), Some("07"));

    let (mine, mine_key) = client.sign("starlock.test", |params| params.serial_number = Some(8_u64.into()));
    std::fs::write(nginx.dir().join("mine.key"), mine_key).unwrap();
    std::fs::write(nginx.dir().join("mine.pem"), mine).unwrap();
    rig.upstream_tls_changed().await;
    assert_eq!(seen(&rig).await.split('|').nth(3), Some("08"));
}

#[tokio::test]
async fn an_alert_after_the_handshake_is_the_servers_refusal() {
    let ca = Ca::new();
    let (cert, key) = ca.sign("app.internal.test", |_| {});
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("cert.pem", &cert), ("key.pem", &key), ("ca.pem", &ca.pem())] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let port = free_port();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut command = Command::new("openssl");
    command.args([
        "s_server",
        "-accept",
        &port.to_string(),
        "-cert",
        &path("cert.pem"),
        "-key",
        &path("key.pem"),
    ]);
    command.args(["-CAfile", &path("ca.pem"), "-Verify", "1", "-verify_return_error", "-tls1_3", "-www"]);
    let server = Process::start(&mut command, &dir.path().join("log"));
    eventually("openssl listens", || server.log().contains("ACCEPT").then_some(()));
    let text = format!(
        "[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\n\
         servers = [\"https://127.0.0.1:{port}\"]\ntls = {{ ca = \"{}\", sni = \"app.internal.test\" }}\n",
        path("ca.pem")
    );
    refused(&Plan::toml(&text).start().await, 502, "upstream_tls_refused").await;
}

#[tokio::test]
async fn files_that_are_no_use_are_told_of_before_they_are_needed() {
    let nginx = https(&Ca::new(), "ssl", "", |_| {});
    let path = |name: &str| nginx.dir().join(name).display().to_string();
    let load = |tls: &str| {
        let text = format!(
            "acme.ca = \"local\"\nroutes.\"a.localhost\" = \"app\"\n[upstreams.app]\nservers = [\"https://10.0.0.1\"]\ntls = {{ {tls} }}\n"
        );
        let environment =
            starlock::config::Environment { state_dir: "/nowhere".into(), runtime_dir: "/nowhere".into() };
        starlock::config::parse(&text, "test.toml", &environment)
            .unwrap_or_else(|problems| panic!("{problems}"))
    };
    let warnings = load("danger_skip_verify = true").warnings.to_string();
    assert!(
        warnings.contains("not verified") && warnings.contains("reads and changes everything"),
        "{warnings}"
    );
    let (publisher, _) = starlock::upstream::client_tls();
    let missing = load("ca = \"/nowhere/ca.pem\", cert = \"/nowhere/a.pem\", key = \"/nowhere/a.key\"");
    assert_eq!(missing.references.unreadable().len(), 3, "{}", missing.references.unreadable());
    let error = publisher.prepare(&missing.plan.upstreams).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/ca.pem"), "{error}");
    let no_roots = load(&format!("ca = \"{}\"", path("key.pem")));
    assert_eq!(no_roots.references.unreadable().len(), 1);
    let error = publisher.prepare(&no_roots.plan.upstreams).await.unwrap_err().to_string();
    assert!(error.contains("no PEM certificate"), "{error}");
    let (_, other) = Ca::new().sign("a.test", |_| {});
    std::fs::write(nginx.dir().join("other.key"), other).unwrap();
    let mismatch = load(&format!("cert = \"{}\", key = \"{}\"", path("cert.pem"), path("other.key")));
    let error = publisher.prepare(&mismatch.plan.upstreams).await.unwrap_err().to_string();
    assert!(error.contains("does not go with the key"), "{error}");
}

#[tokio::test]
async fn sessions_are_resumed() {
    let nginx = https(&Ca::new(), "ssl", "keepalive_timeout 0;", |_| {});
    let rig = front(&nginx, &format!("{NAMED}, http = \"1.1\"")).await;
    assert!(seen(&rig).await.ends_with("|."));
    assert!(seen(&rig).await.ends_with("|r"), "another connection, the same session");
}

#[tokio::test]
async fn a_socket_in_the_file_system_is_a_server() {
    let nginx = Nginx::start(
        "listen 127.0.0.1:PORT; listen unix:DIR/app.sock; location / { return 200 \"$host $connection\"; }",
        &[],
    );
    let text = format!("[routes]\n\"a.test\" = \"unix:{}/app.sock\"\n", nginx.dir().display());
    let rig = Plan::toml(&text).with(|plan| plan.workers = 1).start().await;
    let mut client = rig.connect().await;
    let first = client.get("a.test", "/").await.text().to_owned();
    assert!(first.starts_with("a.test "), "Host as it came: {first}");
    assert_eq!(client.get("a.test", "/").await.text(), first, "the connection is kept");
    let line = rig.logged(|line| line["status"] == 200).await;
    assert_eq!(line["server"], format!("unix:{}/app.sock", nginx.dir().display()));
}

/// What nginx was told by a header of `version`, and on which connection.
async fn told(version: &str, transport: &str) {
    let ca = Ca::new();
    let (cert, key) = ca.sign("app.internal.test", |_| {});
    let tls = "ssl_certificate DIR/cert.pem; ssl_certificate_key DIR/key.pem;";
    let (listen, tls) = match transport {
        "https" => ("ssl http2 proxy_protocol", tls),
        "h2c" => ("http2 proxy_protocol", ""),
        _ => ("proxy_protocol", ""),
    };
    let server = format!(
        "listen 127.0.0.1:PORT {listen}; {tls} location / {{ \
         return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port $connection\"; }}"
    );
    let nginx = Nginx::start(&server, &[("cert.pem", &cert), ("key.pem", &key)]);
    let tls = if transport == "https" { "tls = { danger_skip_verify = true }" } else { "" };
    let text = format!(
        "[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\n\
         servers = [\"{transport}://127.0.0.1:{}\"]\nproxy_protocol = \"{version}\"\n{tls}\n",
        nginx.port
    );
    let rig = Plan::toml(&text).with(|plan| plan.workers = 1).start().await;
    let connect = async |from: [u8; 4]| -> (Raw<TcpStream>, u16) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let stream = socket.connect(rig.http()).await.unwrap();
        let port = stream.local_addr().unwrap().port();
        (Raw::over(stream), port)
    };
    let ((mut one, one_port), (mut two, two_port)) =
        (connect([127, 0, 0, 1]).await, connect([127, 0, 0, 9]).await);
    let mut connections = Vec::new();
    for _ in 0..2 {
        for (client, address, port) in [(&mut one, "127.0.0.1", one_port), (&mut two, "127.0.0.9", two_port)]
        {
            let answer = client.get("a.test", "/").await;
            let text = answer.text();
            let (said, connection) = text.rsplit_once(' ').unwrap();
            assert_eq!(said, format!("{address} {port} {}", rig.http().port()));
            connections.push(connection.to_owned());
        }
    }
    assert_eq!(connections[..2], connections[2..], "each client's connection is kept for that client");
    assert_ne!(connections[0], connections[1]);
}

#[tokio::test]
async fn servers_are_told_of_each_client_by_the_proxy_protocol() {
    for (version, transport) in [("v1", "http"), ("v2", "http"), ("v2", "https"), ("v1", "h2c")] {
        tokio::time::timeout(Duration::from_secs(60), told(version, transport)).await.unwrap();
    }
}
