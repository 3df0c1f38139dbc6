//! The shipped binary and a real ACME server, through each way to write a TXT record.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::support::dns::{Knot, PowerDns, hook, script, txt};
use crate::support::pebble::{Options, Pebble, verify_chain};
use crate::support::starlock::Starlock;
use crate::support::web::served_chain;

const CHALLENGE: &str = "_acme-challenge.example.test";

/// Orders apex and wildcard in one order through `dns`, sees the chain served, and the record gone.
fn issues_through(server: SocketAddr, dns: &str) -> Starlock {
    let pebble = Pebble::start(Options::with_dns(server));
    let starlock = Starlock::start(&config(&pebble, server, dns));
    let serial = starlock.serial_other_than("*.example.test", None);
    assert_eq!(pebble.status_of(&serial).as_deref(), Some("Valid"));
    let root = pebble.root();
    for host in ["example.test", "any.example.test"] {
        verify_chain(&served_chain(starlock.address("https"), host), &root, host);
    }
    assert_eq!(txt(server, CHALLENGE), Vec::<String>::new(), "no record is left behind");
    assert_eq!(pebble.log().matches("Issued certificate serial").count(), 1);
    starlock
}

fn config(pebble: &Pebble, server: SocketAddr, dns: &str) -> String {
    format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[acme]\nca = \"{}\"\nca_root = \"{}\"\n\
         [dns]\nresolvers = [\"{server}\"]\nttl = \"1s\"\n{dns}\n\
         [[certificates]]\nnames = [\"example.test\", \"*.example.test\"]\n\
         [routes]\n\"example.test\" = {{ respond = 204 }}\n",
        pebble.directory_url,
        pebble.ca_root.display()
    )
}

fn rfc2136(knot: &Knot) -> String {
    format!(
        "provider = \"rfc2136\"\nserver = \"{}\"\nkey_name = \"{}\"\nsecret = \"{}\"",
        knot.address, knot.key_name, knot.secret
    )
}

#[test]
fn knot_with_tsig() {
    let knot = Knot::start(&[("example.test", "")]);
    issues_through(knot.address, &rfc2136(&knot));
}

#[test]
fn powerdns_by_its_api() {
    let server = PowerDns::start("example.test");
    let dns = format!("provider = \"pdns\"\nurl = \"{}\"\napi_key = \"{}\"", server.url, server.api_key);
    issues_through(server.address, &dns);
}

#[test]
fn a_program() {
    let knot = Knot::start(&[("example.test", "")]);
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hook");
    hook(&knot, &program);
    issues_through(knot.address, &format!("provider = \"exec\"\nprogram = \"{}\"", program.display()));
}

#[test]
fn an_http_endpoint() {
    let knot = Knot::start(&[("example.test", "")]);
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hook");
    hook(&knot, &program);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    runtime.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let program = program.clone();
            let service = service_fn(move |request| endpoint(program.clone(), request));
            tokio::spawn(async move {
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    let dns = format!("provider = \"httpreq\"\nendpoint = \"{url}\"\nusername = \"u\"\npassword = \"p\"");
    issues_through(knot.address, &dns);
}

/// Strict about the contract: `POST /hook/present|cleanup`, basic auth, two keys, the name with its dot.
async fn endpoint(program: PathBuf, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let status = |code| Ok(Response::builder().status(code).body(Full::default()).unwrap());
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let verb = match parts.uri.path() {
        "/hook/present" => "present",
        "/hook/cleanup" => "cleanup",
        _ => return status(404),
    };
    if parts.headers.get("authorization").is_none_or(|v| v != "Basic dTpw") {
        return status(401);
    }
    let keys = json.as_object().map_or(0, serde_json::Map::len);
    let (Some(fqdn), Some(value), 2) = (json["fqdn"].as_str(), json["value"].as_str(), keys) else {
        return status(400);
    };
    if !fqdn.ends_with('.') {
        return status(400);
    }
    let done = Command::new(program).args([verb, fqdn, value]).status().unwrap().success();
    status(if done { 204 } else { 500 })
}

#[test]
fn a_wrong_key_is_told_and_no_ca_is_asked() {
    let knot = Knot::start(&[("example.test", "")]);
    let pebble = Pebble::start(Options::with_dns(knot.address));
    let wrong = rfc2136(&knot).replace(&knot.secret, "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc=");
    let starlock = Starlock::start(&config(&pebble, knot.address, &wrong));
    let certificate = crate::support::eventually("the refusal is told", || {
        Some(starlock.certificates().remove(0)).filter(|c| c["last_error"].is_string())
    });
    assert_eq!(certificate["state"], "parked", "{certificate}");
    assert!(!starlock.log().contains("d3Jvbmcg"), "the key is in the log");
    assert_eq!(pebble.log().matches("POST /chalZ/").count(), 0, "the CA was told to look");

    // Mended and reloaded, it is tried at once.
    let output = starlock.reload(&config(&pebble, knot.address, &rfc2136(&knot)));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    starlock.serial_other_than("example.test", None);
}

#[test]
fn a_program_that_hangs_is_killed_with_the_process_and_swept_at_the_next_start() {
    let knot = Knot::start(&[("example.test", "")]);
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("hook");
    hook(&knot, &inner);
    // Writes the record, then blocks until told otherwise.
    let (blocking, free) = (dir.path().join("blocking"), dir.path().join("free"));
    script(
        &blocking,
        &format!(
            "#!/bin/sh\nset -eu\n{} \"$@\"\nwhile [ $1 = present ] && ! [ -e {} ]; do sleep 0.05; done\n",
            inner.display(),
            free.display()
        ),
    );
    let pebble = Pebble::start(Options::with_dns(knot.address));
    let dns = format!("provider = \"exec\"\nprogram = \"{}\"", blocking.display());
    let mut starlock = Starlock::start(&config(&pebble, knot.address, &dns));
    crate::support::eventually("a record stands", || {
        (!txt(knot.address, CHALLENGE).is_empty()).then_some(())
    });
    starlock.process().kill();
    assert!(!txt(knot.address, CHALLENGE).is_empty());
    std::fs::write(&free, "").unwrap();
    starlock.start_again();
    starlock.serial_other_than("example.test", None);
    crate::support::eventually("the record is swept", || {
        txt(knot.address, CHALLENGE).is_empty().then_some(())
    });
}
