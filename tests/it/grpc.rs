//! gRPC through the proxy: its own client and server (grpcio), HTTP/2 with TLS in, HTTP/2 in clear out.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::process::Process;
use crate::support::rig::{Plan, Rig};
use crate::support::server::Server;
use crate::support::{eventually, free_port};

fn python(script: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("target/tools/python/bin/python"));
    command.arg(root.join("tests/it/grpc").join(script));
    // It says more than it should of channels that are being closed.
    command.env("GRPC_VERBOSITY", "NONE");
    command
}

/// A rig in front of a gRPC server.
struct Scene {
    rig: Rig,
    server: Process,
    dir: tempfile::TempDir,
}

impl Scene {
    async fn new(timeouts: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Process::start(&mut python("server.py"), &dir.path().join("server.log"));
        let port: u16 = eventually("the server listens", || {
            server.log().lines().find_map(|line| line.strip_prefix("port ")?.parse().ok())
        });
        let rig = front(&format!("h2c://127.0.0.1:{port}"), timeouts).await;
        Self { rig, server, dir }
    }

    async fn case(&self, case: &str) {
        run(&self.rig, self.dir.path(), case).await;
    }
}

async fn front(url: &str, timeouts: &str) -> Rig {
    let text = format!(
        "listen = {{ https = [\"127.0.0.1:443\"], http = [] }}\n[routes]\n\"a.test/test.Bytes\" = \"app\"\n[upstreams.app]\n\
         servers = [\"{url}\"]\n[timeouts]\n{timeouts}\n"
    );
    Plan::toml(&text).start().await
}

/// Runs one case of client.py.
async fn run(rig: &Rig, dir: &Path, case: &str) {
    let root: PathBuf = dir.join("root.pem");
    std::fs::write(&root, rig.root_pem()).unwrap();
    let mut command = python("client.py");
    command.arg(case).arg(rig.https().to_string()).arg(&root);
    let output = starlock::task::blocking(move || command.output().unwrap()).await;
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn all_kinds_of_calls_with_metadata_statuses_and_sizes() {
    let scene = Scene::new("").await;
    for case in ["kinds", "metadata", "statuses", "large", "many"] {
        scene.case(case).await;
    }
    let line = scene.rig.logged(|line| line["path"] == "/test.Bytes/Both").await;
    assert_eq!((&line["status"], line.get("reason")), (&200.into(), None), "{line}");
}

#[tokio::test]
async fn deadlines_and_cancellations_reach_the_server() {
    let scene = Scene::new("").await;
    scene.case("deadline").await;
    eventually("the server hears of the deadline", || {
        scene.server.log().contains("cancelled unary").then_some(())
    });
    scene.case("cancel").await;
    eventually("the server hears of the cancellation", || {
        let log = scene.server.log();
        (log.contains("cancelled stream") && log.matches("cancelled unary").count() == 2).then_some(())
    });
}

#[tokio::test]
async fn a_stream_of_calls_survives_a_reload_that_takes_its_server_away() {
    use std::io::{BufRead, BufReader, Write};
    let mut scene = Scene::new("").await;
    let root = scene.dir.path().join("root.pem");
    std::fs::write(&root, scene.rig.root_pem()).unwrap();
    let mut command = python("client.py");
    command.arg("across").arg(scene.rig.https().to_string()).arg(&root);
    let mut client = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (mut tell, told) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let begun = starlock::task::blocking(move || {
        let mut line = String::new();
        BufReader::new(told).read_line(&mut line).unwrap();
        line
    });
    assert_eq!(begun.await, "begun\n");
    scene.rig.load(&Plan::tls().respond("b.test", 200, None)).await;
    for _ in 0..8 {
        assert_eq!(scene.rig.connect_tls("a.test").await.get("a.test", "/").await.status, 404);
    }
    tell.write_all(b"go on\n").unwrap();
    let output = starlock::task::blocking(move || client.wait_with_output().unwrap()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn silence_on_either_side_ends_no_stream() {
    let scene = Scene::new("stall = \"500ms\"\nbody = \"500ms\"").await;
    scene.case("silence").await;
}

#[tokio::test]
async fn a_call_that_was_made_is_answered_within_response_and_a_client_may_think() {
    let scene = Scene::new("response = \"2s\"\nbody = \"2s\"").await;
    scene.case("thinking").await;
    scene.case("mute").await;
    let line = scene.rig.logged(|line| line["path"] == "/test.Bytes/ToClient").await;
    assert_eq!((&line["status"], &line["reason"]), (&504.into(), &"upstream_timeout".into()));
}

#[tokio::test]
async fn a_server_behind_tls_is_called_as_one_in_clear_is() {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["app.internal.test".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (chain, secret) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&chain, cert.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&secret, key.serialize_pem()).unwrap();
    let mut command = python("server.py");
    let server = Process::start(command.arg(&chain).arg(&secret), &dir.path().join("server.log"));
    let port: u16 = eventually("the server listens", || {
        server.log().lines().find_map(|line| line.strip_prefix("port ")?.parse().ok())
    });
    let tls = format!("[upstreams.app.tls]\nca = \"{}\"\nsni = \"app.internal.test\"", chain.display());
    let rig = front(&format!("https://127.0.0.1:{port}"), &tls).await;
    for case in ["kinds", "metadata", "statuses", "deadline"] {
        run(&rig, dir.path(), case).await;
    }
}

#[tokio::test]
async fn a_deadline_of_a_clients_own_is_held_against_no_server() {
    // They take calls and never answer.
    let mute = || {
        Server::raw(|stream| async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            let mut held = Vec::new();
            while let Some(Ok(call)) = connection.accept().await {
                held.push(call);
            }
        })
    };
    let (one, two) = (mute(), mute());
    let rig = Plan::toml(&format!(
        "listen = {{ https = [\"127.0.0.1:443\"], http = [] }}\n[routes]\n\"a.test\" = \"app\"\n[upstreams.app]\n\
         servers = [\"h2c://{}\", \"h2c://{}\"]\npassive = {{ failures = 1 }}\n",
        one.address, two.address
    ))
    .start()
    .await;
    let stream = TokioIo::new(rig.tls("a.test", "h2").await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let mut calls = Vec::new();
    for _ in 0..8 {
        let call = Request::post("https://a.test/x.Y/Z")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "1n")
            .body(Empty::<Bytes>::new());
        calls.push(sender.send_request(call.unwrap()));
    }
    for call in calls {
        let answer = call.await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["grpc-status"].as_bytes()), (200, &b"4"[..]));
    }
    assert_eq!(rig.logged(|line| line["path"] == "/x.Y/Z").await["reason"], "client_deadline");
    for server in [&one, &two] {
        assert_eq!(rig.endpoint(server.address).condition().as_str(), "up");
    }
}

#[tokio::test]
async fn what_goes_wrong_is_a_status_and_no_page() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = front(&format!("h2c://127.0.0.1:{}", free_port()), "").await;
    run(&nobody, dir.path(), "unavailable").await;
    let line = nobody.logged(|line| line["path"] == "/test.Bytes/Unary").await;
    assert_eq!((&line["status"], &line["reason"]), (&503.into(), &"upstream_connect_refused".into()));

    let mute = Server::raw(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let rig = front(&format!("h2c://{}", mute.address), "connect = \"300ms\"").await;
    run(&rig, dir.path(), "unavailable").await;

    let silent = Server::raw(|stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let mut held = Vec::new();
        while let Some(Ok(asked)) = connection.accept().await {
            held.push(asked);
        }
    });
    let rig = front(&format!("h2c://{}", silent.address), "response = \"300ms\"").await;
    run(&rig, dir.path(), "exceeded").await;

    let elsewhere = Plan::tls().respond("a.test/other", 200, None).start().await;
    run(&elsewhere, dir.path(), "unimplemented").await;
}
