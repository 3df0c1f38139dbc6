//! Hosts whose TLS is somebody else's: every byte goes through as it came.

use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use starlock::config;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::support::client::Raw;
use crate::support::process::Process;
use crate::support::rig::{Plan, Rig};
use crate::support::server::Server;
use crate::support::web::curl;
use crate::support::{eventually, free_port, local};

fn plan(routes: &str) -> Plan {
    Plan::toml(&format!("[listen]\nhttps = [\"127.0.0.1:0\"]\n{routes}"))
}

/// A ClientHello for `name`, as a real client sends it.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config =
        builder.unwrap().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut bytes = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// A server that sends everything back.
fn mirror() -> Server {
    Server::raw(|mut stream| async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            if stream.write_all(&bytes[..n]).await.is_err() {
                return;
            }
        }
        let _ = stream.write_all(b"bye").await;
    })
}

/// A client whose first bytes were sent.
async fn begun(rig: &Rig, name: &str) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(rig.https()).await.unwrap();
    let hello = hello(name);
    stream.write_all(&hello).await.unwrap();
    (stream, hello)
}

/// Writes one byte at a time.
struct Drip(TcpStream);

impl AsyncRead for Drip {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Drip {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handshake_is_nginxs_and_the_certificate_too() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let names = ["db.test", "one.many.test", "a.test"].map(ToOwned::to_owned);
    let cert = CertificateParams::new(names.to_vec()).unwrap().self_signed(&key).unwrap();
    for (file, text) in [("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    let (port, place) = (free_port(), dir.path().display());
    let text = format!(
        "daemon off; master_process off; pid {place}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off; \
         client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fcgi; \
         uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {place}/cert.pem; ssl_certificate_key {place}/key.pem;\n\
         location / {{ return 200 \"nginx $ssl_server_name $request_method $ssl_session_reused\"; }} }} }}\n"
    );
    std::fs::write(dir.path().join("nginx.conf"), text).unwrap();
    let _nginx = Process::start(
        Command::new("nginx").arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf")),
        &dir.path().join("nginx.log"),
    );
    eventually("nginx listens", || std::net::TcpStream::connect(local(port)).ok());
    let rig = plan(&format!(
        "[routes]\n\"a.test\" = {{ respond = 200, body = \"ours\" }}\n\"db.test\" = {{ passthrough = \"127.0.0.1:{port}\" }}\n\
         \"*.many.test\" = {{ passthrough = \"localhost:{port}\" }}"
    ))
    .start()
    .await;
    for name in ["db.test", "one.many.test"] {
        let said = curl(rig.https(), &cert.pem(), &format!("https://{name}/"), &[]).unwrap();
        assert_eq!(said, format!("nginx {name} GET ."));
    }
    let line = rig.logged(|line| line["host"] == "db.test").await;
    assert_eq!(
        (&line["method"], &line["path"], &line["protocol"]),
        (&"-".into(), &"-".into(), &"TLS".into())
    );
    assert_eq!((&line["status"], &line["route"]), (&200.into(), &"db.test".into()));
    assert!(line["received"].as_u64() > Some(300) && line["sent"].as_u64() > Some(500), "{line}");
    assert!(line.get("reason").is_none(), "{line}");
    // What is ours stays ours, beside it.
    assert_eq!(rig.connect_tls("a.test").await.get("a.test", "/").await.text(), "ours");
    // A hello in single bytes.
    let stream = TcpStream::connect(rig.https()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let tls = Rig::handshake(Drip(stream), roots, "db.test", "http/1.1", None).await;
    assert!(Raw::over(tls).get("db.test", "/").await.text().starts_with("nginx db.test"));
    // In clear, its clients are sent to TLS like all others.
    let answer = rig.connect().await.get("db.test", "/x").await;
    let https = rig.https().port();
    assert_eq!(answer.status, 308);
    assert_eq!(answer.field("location"), Some(&*format!("https://db.test:{https}/x")));
}

#[tokio::test]
async fn both_directions_end_on_their_own_and_each_byte_is_counted() {
    let server = mirror();
    let rig =
        plan(&format!("[routes]\n\"db.test\" = {{ passthrough = \"{}\" }}", server.address)).start().await;
    let (mut stream, mut sent) = begun(&rig, "db.test").await;
    let more: Vec<u8> = (0..1_000_000_u32).map(|n| (n * 7) as u8).collect();
    sent.extend(&more);
    let (mut reader, mut writer) = stream.split();
    let write = async {
        writer.write_all(&more).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let mut back = Vec::new();
        reader.read_to_end(&mut back).await.unwrap();
        back
    };
    let ((), back) = tokio::join!(write, read);
    assert!(back.ends_with(b"bye"), "what the server says after our end still comes");
    assert!(back[..back.len() - 3] == sent, "{} of {}", back.len(), sent.len());
    let line = rig.logged(|line| line["host"] == "db.test").await;
    assert_eq!(
        (line["received"].as_u64(), line["sent"].as_u64()),
        (Some(sent.len() as u64), Some(back.len() as u64))
    );
    assert!(line.get("reason").is_none(), "{line}");
    let series = "starlock_http_requests_total{route=\"db.test\"";
    let text = rig.metrics.render();
    assert!(text.lines().any(|line| line.starts_with(series) && line.ends_with("code=\"200\"} 1")), "{text}");
}

#[tokio::test]
async fn it_survives_a_reload_and_ends_when_nothing_moves_or_the_process_goes() {
    let server = mirror();
    let text = format!(
        "[timeouts]\ntunnel = \"1600ms\"\n[routes]\n\"db.test\" = {{ passthrough = \"{}\" }}",
        server.address
    );
    let mut rig = plan(&text).start().await;
    let (mut stream, hello) = begun(&rig, "db.test").await;
    let mut back = vec![0; hello.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, hello);
    let mut other = Plan::tls().respond("a.test", 200, None);
    other.proxy.tunnel_timeout = Duration::from_secs(3600);
    rig.load(&other).await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut back[..4]).await.unwrap();
    }
    assert_eq!(stream.read(&mut back).await.unwrap_or(0), 0, "and then it was silent for too long");
    let line = rig.logged(|line| line["host"] == "db.test").await;
    assert_eq!(line["reason"], "tunnel_idle");

    let held = plan(&text.replace("400ms", "1h")).start().await;
    let (mut stream, hello) = begun(&held, "db.test").await;
    stream.read_exact(&mut vec![0; hello.len()]).await.unwrap();
    let start = std::time::Instant::now();
    assert_eq!(held.traffic.drain(Duration::from_millis(500)).await.cut, 1);
    assert!(start.elapsed() >= Duration::from_millis(500), "it had its time");
    assert_eq!(stream.read(&mut back).await.unwrap_or(0), 0);
    assert_eq!(held.logged(|line| line["host"] == "db.test").await["reason"], "tunnel_cut");
}

#[tokio::test]
async fn who_may_not_come_or_finds_no_server_gets_an_alert() {
    let server = mirror();
    let closed = free_port();
    let rig = plan(&format!(
        "[routes]\n\"db.test\" = {{ passthrough = \"two\", deny = [\"192.0.2.0/24\"] }}\n\
         \"mine.test\" = {{ passthrough = \"{0}\", allow = [\"192.0.2.0/24\"] }}\n\
         \"gone.test\" = {{ passthrough = \"127.0.0.1:{closed}\" }}\n\
         [upstreams.two]\nservers = [\"http://127.0.0.1:{closed}\", \"http://{0}\"]",
        server.address
    ))
    .start()
    .await;
    for (name, alert, status, reason) in
        [("mine.test", 49, 403, "address_denied"), ("gone.test", 80, 503, "upstream_connect_refused")]
    {
        let (mut stream, _) = begun(&rig, name).await;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, [21, 3, 3, 0, 2, 2, alert], "{name}");
        let line = rig.logged(|line| line["host"] == name).await;
        assert_eq!((&line["status"], &line["reason"]), (&status.into(), &reason.into()));
    }
    // One of the two servers is down: nobody notices.
    for _ in 0..20 {
        let (mut stream, hello) = begun(&rig, "db.test").await;
        let mut back = vec![0; hello.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert!(back == hello);
    }
}

#[tokio::test]
async fn a_request_for_a_passed_host_on_a_connection_for_another_is_misdirected() {
    let server = mirror();
    let rig = plan(&format!(
        "[routes]\n\"*.wild.test\" = {{ respond = 200 }}\n\"db.wild.test\" = {{ passthrough = \"{}\" }}",
        server.address
    ))
    .start()
    .await;
    let mut client = rig.connect_tls("app.wild.test").await;
    assert_eq!(client.get("app.wild.test", "/").await.status, 200);
    assert_eq!(client.get("db.wild.test", "/").await.status, 421);
    // What is no hello, or asks for nobody, is refused as ever.
    for (bytes, first) in
        [(&b"\0GET / HTTP/1.1\r\n\r\n"[..], 21), (b"GET / HTTP/1.1\r\nHost: db.wild.test\r\n\r\n", b'H')]
    {
        let mut raw = TcpStream::connect(rig.https()).await.unwrap();
        raw.write_all(bytes).await.unwrap();
        let mut said = Vec::new();
        raw.read_to_end(&mut said).await.unwrap_or_default();
        assert_eq!(said.first(), Some(&first), "an alert, or HTTP: {said:?}");
    }
    assert_eq!(server.connections(), 0);
}

#[test]
fn no_certificate_is_ordered_for_a_passed_host() {
    let env = config::Environment { state_dir: "/nowhere".into(), runtime_dir: "/nowhere".into() };
    let text = "[routes]\n\"app.example.com\" = { respond = 200 }\n\"db.example.com\" = { passthrough = \"10.0.0.5:5432\" }\n\
                \"*.example.net\" = { passthrough = \"10.0.0.5:443\" }";
    let plan = config::parse(text, "test.toml", &env).unwrap_or_else(|problems| panic!("{problems}")).plan;
    let names: Vec<_> = plan.certificates.iter().flat_map(|c| &c.names).map(ToString::to_string).collect();
    assert_eq!(names, ["app.example.com"], "and a wildcard without DNS is none of our business");
}

#[tokio::test]
async fn a_server_that_wants_to_know_is_told_of_the_client_before_its_first_byte() {
    let server = mirror();
    let rig = plan(&format!(
        "[routes]\n\"db.test\" = {{ passthrough = \"db\" }}\n[upstreams.db]\nservers = [\"http://{}\"]\nproxy_protocol = \"v1\"\n",
        server.address
    ))
    .start()
    .await;
    let (mut stream, sent) = begun(&rig, "db.test").await;
    let told = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
        stream.local_addr().unwrap().port(),
        rig.https().port()
    );
    let mut seen = vec![0; told.len() + sent.len()];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen[..told.len()]), told);
    assert!(seen[told.len()..] == sent, "and then the hello as it came");
}
