//! Client certificates by host: real clients, real certificates, and everything that could get past them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use starlock::clock::{Clock, SystemClock};
use tempfile::TempDir;

use crate::support::rig::{Plan, Rig};
use crate::support::server::Server;
use crate::support::starlock::{Starlock, command, write_config};

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

/// CAs and clients' certificates as files: `one.pem`, `two.pem`, and `NAME.pem` with `NAME.key`.
struct Papers {
    dir: TempDir,
}

impl Papers {
    fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap() };
        let (one, two) = (this.ca("one"), this.ca("two"));
        this.client("good", &one, 30);
        this.client("expired", &one, -1);
        this.client("stranger", &two, 30);
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ca(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("CA {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        Issuer::new(params, key)
    }

    fn client(&self, name: &str, ca: &Issuer<'static, KeyPair>, days: i32) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{name} ä"));
        params.distinguished_name.push(DnType::OrganizationName, "Acme");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemClock.now();
        params.not_before = (now - 10 * DAY).into();
        params.not_after = if days < 0 { now - DAY } else { now + 30 * DAY }.into();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, ca).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn der(&self, name: &str) -> Vec<u8> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap().to_vec()
    }

    /// For a client of ours that shows `name`.
    fn shown(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
        (vec![self.der(name).into()], key)
    }
}

/// `a.test` needs a certificate of CA one, `*.wild.test` asks for one of CA two, `b.test` is open.
fn plan(papers: &Papers, server: &Server, ca: &str) -> Plan {
    Plan::toml(&format!(
        r#"
        listen.https = ["[::]:443"]
        [mtls]
        "a.test" = "{one}"
        "*.wild.test" = {{ ca = "{two}", optional = true }}
        [routes]
        "a.test" = "{url}"
        "b.test" = "{url}"
        "*.wild.test" = "{url}"
        "*" = "{url}"
        "#,
        one = papers.path(ca).display(),
        two = papers.path("two.pem").display(),
        url = server.url()
    ))
}

/// What curl gets from `host` with more arguments: the status and the body, or what it says when there is none.
fn curl(
    rig: &Rig,
    papers: &Papers,
    host: &str,
    cert: Option<&str>,
    more: &[&str],
) -> Result<(u16, String), String> {
    let port = rig.https().port();
    let mut command = Command::new("curl");
    command.args([
        "-sSk",
        "--max-time",
        "30",
        "--resolve",
        &format!("{host}:{port}:127.0.0.1"),
        "-w",
        "\n%{http_code}",
    ]);
    if let Some(name) = cert {
        command.arg("--cert").arg(papers.path(&format!("{name}.pem")));
        command.arg("--key").arg(papers.path(&format!("{name}.key")));
    }
    let output = command.args(more).arg(format!("https://{host}:{port}/x")).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    Ok((status.parse().unwrap(), body.to_owned()))
}

#[tokio::test]
async fn only_a_good_certificate_comes_in_and_the_server_is_told_whose() {
    let (papers, server) = (Papers::new(), Server::echo());
    let rig = plan(&papers, &server, "one.pem").start().await;
    for version in [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3", "--tls-max", "1.3"]] {
        for (host, cert, comes) in [
            ("a.test", Some("good"), true),
            ("a.test", None, false),
            ("a.test", Some("expired"), false),
            ("a.test", Some("stranger"), false),
            ("b.test", None, true),
            ("b.test", Some("stranger"), true),
            ("x.wild.test", None, true),
            ("x.wild.test", Some("stranger"), true),
            ("x.wild.test", Some("good"), false),
        ] {
            let answer = curl(&rig, &papers, host, cert, &version);
            match comes {
                true => assert_eq!(answer.unwrap().0, 200, "{host} {cert:?} {version:?}"),
                false => assert!(answer.is_err(), "{host} {cert:?} {version:?}: {answer:?}"),
            }
        }
    }
    let refused = "starlock_tls_handshakes_total{result=\"client_certificate\"}";
    rig.until("eight are refused", |rig| rig.metric(refused) == 8).await;

    let claims = [
        "-HClient-Cert: :AAAA:",
        "-HClient_Cert_Chain: :AAAA:",
        "-HX-Client-Cert-Subject: CN=root",
        "-HX_Client.Cert-Subject: CN=root",
        "-Hx-client-cert-verify: SUCCESS",
        "-HX-Client-Cert-Fingerprint: 00",
        "-HConnection: X-Client-Cert-Verify",
    ];
    let told = |host: &str, cert| -> Vec<String> {
        let (status, body) =
            curl(&rig, &papers, host, cert, &[&claims[..], &["--http1.1"]].concat()).unwrap();
        assert_eq!(status, 200);
        let head = body.split("\n\n").next().unwrap();
        head.lines()
            .filter(|line| line.contains("client") && line.contains("cert"))
            .map(str::to_owned)
            .collect()
    };
    let der = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, papers.der("good"));
    let digest = crate::support::process::output(
        "openssl",
        &["x509", "-in", papers.path("good.pem").to_str().unwrap(), "-noout", "-fingerprint", "-sha256"],
    );
    let digest = digest.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase();
    assert_eq!(
        told("a.test", Some("good")),
        [
            format!("client-cert: :{der}:"),
            format!("x-client-cert-fingerprint: {digest}"),
            "x-client-cert-subject: CN=good %C3%A4, O=Acme".to_owned(),
            "x-client-cert-verify: SUCCESS".to_owned(),
        ]
    );
    assert_eq!(told("x.wild.test", None), ["x-client-cert-verify: NONE"]);
    assert!(told("b.test", None).is_empty());
    assert!(told("b.test", Some("good")).is_empty(), "it was not asked for");
}

/// An h2 connection made for `sni`, and the statuses of requests for `hosts` on it.
async fn statuses(rig: &Rig, papers: &Papers, sni: &str, cert: Option<&str>, hosts: &[&str]) -> Vec<u16> {
    let stream = rig.tls_showing(sni, "h2", cert.map(|name| papers.shown(name))).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut statuses = Vec::new();
    for host in hosts {
        let request = Request::get(format!("https://{host}/")).body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        statuses.push(answer.status().as_u16());
        answer.into_body().collect().await.unwrap();
    }
    driver.abort();
    statuses
}

#[tokio::test]
async fn a_connection_is_good_for_hosts_of_its_own_policy_alone() {
    let (papers, server) = (Papers::new(), Server::echo());
    let rig = plan(&papers, &server, "one.pem").start().await;
    let hosts = ["a.test", "b.test", "x.wild.test", "127.0.0.1"];
    for (sni, cert, expected) in [
        ("b.test", None, [421, 200, 421, 200]),
        ("b.test", Some("good"), [421, 200, 421, 200]),
        ("a.test", Some("good"), [200, 421, 421, 421]),
        ("x.wild.test", None, [421, 421, 200, 421]),
        ("x.wild.test", Some("stranger"), [421, 421, 200, 421]),
        // Without SNI nothing is asked.
        ("127.0.0.1", None, [421, 200, 421, 200]),
    ] {
        assert_eq!(statuses(&rig, &papers, sni, cert, &hosts).await, expected, "{sni} {cert:?}");
    }
    let port = rig.https().port();
    assert_eq!(
        statuses(&rig, &papers, "b.test", None, &[&format!("A.test:{port}"), "a.test."]).await,
        [421, 421],
        "however it is written"
    );
    assert_eq!(rig.logged(|line| line["status"] == 421).await["reason"], "misdirected");

    // A connection from before a reload is not good for what is asked since.
    let mut rig = rig;
    let mut client = rig.connect_tls("b.test").await;
    assert_eq!(client.get("b.test", "/").await.status, 200);
    let text = format!(
        "listen.https = [\"[::]:443\"]\nmtls.\"b.test\" = \"{}\"\nroutes.\"b.test\" = \"{}\"",
        papers.path("one.pem").display(),
        server.url()
    );
    rig.load(&Plan::toml(&text)).await;
    assert_eq!(client.get("b.test", "/").await.status, 421);
    assert!(curl(&rig, &papers, "b.test", None, &[]).is_err());
    assert_eq!(curl(&rig, &papers, "b.test", Some("good"), &[]).unwrap().0, 200);
}

/// One connection of `openssl s_client` for `host` with one request; what it said of the session and the answer.
fn s_client(rig: &Rig, host: &str, arguments: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &rig.https().to_string(), "-servername", host, "-ign_eof"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    // It may be gone already.
    drop(std::io::Write::write_all(&mut child.stdin.take().unwrap(), request.as_bytes()));
    let Output { stdout, stderr, .. } = child.wait_with_output().unwrap();
    format!("{}\n{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))
}

fn passes(said: &str) -> bool {
    said.contains("HTTP/1.1 200 OK")
}

#[tokio::test]
async fn tickets_stay_within_their_policy_and_die_with_it() {
    let (papers, server) = (Papers::new(), Server::echo());
    let mut rig = plan(&papers, &server, "one.pem").start().await;
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (cert, key) = (text(papers.path("good.pem")), text(papers.path("good.key")));
    for version in ["-tls1_2", "-tls1_3"] {
        let session = |name: &str| text(papers.path(&format!("{name}{version}")));
        let (closed, open) = (session("closed"), session("open"));
        let said = s_client(&rig, "a.test", &[version, "-cert", &cert, "-key", &key, "-sess_out", &closed]);
        assert!(passes(&said) && said.contains("New, TLSv1"), "{said}");
        assert!(Path::new(&closed).exists(), "{said}");
        // The ticket stands for the certificate, and the server hears of it all the same.
        let said = s_client(&rig, "a.test", &[version, "-sess_in", &closed]);
        assert!(
            passes(&said) && said.contains("Reused, TLSv1") && said.contains("x-client-cert-verify: SUCCESS"),
            "{said}"
        );
        // Nowhere else.
        let said = s_client(&rig, "b.test", &[version, "-sess_in", &closed]);
        assert!(passes(&said) && said.contains("New, TLSv1"), "{said}");
        let said = s_client(&rig, "b.test", &[version, "-sess_out", &open]);
        assert!(passes(&said) && Path::new(&open).exists(), "{said}");
        let said = s_client(&rig, "a.test", &[version, "-sess_in", &open]);
        assert!(!passes(&said) && !said.contains("Reused"), "{said}");
    }
    let session = |name: &str, version: &str| text(papers.path(&format!("{name}{version}")));
    // A reload that changes nothing about it keeps tickets good.
    rig.load(&plan(&papers, &server, "one.pem")).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(&rig, "a.test", &[version, "-sess_in", &session("closed", version)]);
        assert!(passes(&said) && said.contains("Reused"), "{said}");
    }
    // Another CA in the same file, and then the first one again: what was proven is gone for good.
    let one = std::fs::read(papers.path("one.pem")).unwrap();
    std::fs::copy(papers.path("two.pem"), papers.path("one.pem")).unwrap();
    rig.load(&plan(&papers, &server, "one.pem")).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(&rig, "a.test", &[version, "-sess_in", &session("closed", version)]);
        assert!(!passes(&said) && !said.contains("Reused"), "{said}");
    }
    std::fs::write(papers.path("one.pem"), one).unwrap();
    rig.load(&plan(&papers, &server, "one.pem")).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(&rig, "a.test", &[version, "-sess_in", &session("closed", version)]);
        assert!(!passes(&said) && !said.contains("Reused"), "{said}");
        let said = s_client(&rig, "a.test", &[version, "-cert", &cert, "-key", &key]);
        assert!(passes(&said), "{said}");
    }
}

#[test]
fn a_ca_that_cannot_be_read_stops_the_start_and_refuses_the_reload() {
    let papers = Papers::new();
    let config = |ca: &str| {
        format!(
            "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[acme]\nca = \"local\"\n[mtls.\"app.localhost\"]\nca = \"{}\"\n[routes]\n\"app.localhost\" = {{ respond = 200 }}",
            papers.path(ca).display()
        )
    };
    write_config(papers.dir.path(), &config("none.pem"));
    for verb in ["check", "run"] {
        let output = command(papers.dir.path(), &[verb]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("none.pem"), "{verb}: {said}");
    }
    // The certificate of such a host is proven and served like any other.
    let starlock = Starlock::start(&config("one.pem"));
    starlock.serial_other_than("app.localhost", None);
    let address = starlock.address("https");
    let status = |cert: &str| {
        let output = Command::new("curl")
            .args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "--cert"])
            .arg(papers.path(&format!("{cert}.pem")))
            .arg("--key")
            .arg(papers.path(&format!("{cert}.key")))
            .args(["--resolve", &format!("app.localhost:{}:127.0.0.1", address.port())])
            .arg(format!("https://app.localhost:{}/", address.port()))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!((&*status("good"), &*status("stranger")), ("200", "000"));
    let output = starlock.reload(&config("none.pem"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("none.pem"), "{said}");
    assert_eq!((&*status("good"), &*status("stranger")), ("200", "000"), "nothing has changed");
    std::fs::copy(papers.path("two.pem"), papers.path("one.pem")).unwrap();
    assert!(starlock.reload(&config("one.pem")).status.success());
    assert_eq!((&*status("good"), &*status("stranger")), ("000", "200"), "the file was read again");
}
