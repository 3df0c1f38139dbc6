//! One contract for every DNS vendor: each goes through the same suite, against its real server or against a fake of its API that
//! is as strict as the vendor's own documents.
//!
//! Vendors' endpoints are fixed, and `HTTPS_PROXY` and `SSL_CERT_FILE` are read from the environment of the process. So this test
//! binary runs itself once more with both set, and the fakes answer in that second process.

mod bearer;
mod headers;
mod real;
mod sessions;
mod signed;
mod suite;
mod zone;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use starlock::dns::{Proven, vendors};

use crate::support::connect::{self, Ca};
use crate::support::dns::loopback;
use crate::support::process::Process;

/// The address of the proxy and where its root lies; set in the second process.
const PROXY: &str = "STARLOCK_TEST_PROXY";
/// Only this vendor, to look at one alone.
const ONLY: &str = "STARLOCK_TEST_VENDOR";

fn fakes() -> Vec<&'static suite::Fake> {
    [bearer::FAKES, headers::FAKES, signed::FAKES, sessions::FAKES].concat()
}

#[test]
fn every_vendor_keeps_the_contract() {
    match std::env::var(PROXY) {
        Ok(place) => inside(&place),
        Err(_) => outside(),
    }
}

fn outside() {
    let dir = tempfile::tempdir().unwrap();
    let (address, root) = (std::net::SocketAddr::from((loopback(), 8443)), dir.path().join("root.pem"));
    let ca_at = format!("{address} {}", root.display());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "vendors::every_vendor_keeps_the_contract", "--nocapture"]).env(PROXY, ca_at);
    connect::through(&mut command, address, &root);
    let mut second = Process::start(&mut command, &dir.path().join("log"));
    let status = second.wait();
    assert!(status.success(), "{}", second.log());
}

fn inside(place: &str) {
    let (address, root) = place.split_once(' ').unwrap();
    let only = std::env::var(ONLY).ok();
    let fakes: Vec<_> =
        fakes().into_iter().filter(|fake| only.as_deref().is_none_or(|only| only == fake.name)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let problems = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let world = suite::World::new(&fakes);
        tokio::spawn(connect::serve(listener, Arc::new(Ca::new(root.as_ref())), world.answer()));
        suite::run(&fakes, &world).await
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What the table says was proven is what was proven.
#[test]
fn the_table_says_what_was_proven() {
    let with = |proven: Proven| {
        vendors().iter().filter(|v| v.proven == proven).map(|v| v.name).collect::<BTreeSet<_>>()
    };
    let names: BTreeSet<_> = fakes().iter().map(|fake| fake.name).collect();
    assert_eq!(with(Proven::StrictFake), names.difference(&with(Proven::RealServer)).copied().collect());
    assert_eq!(with(Proven::RealServer), real::VENDORS.iter().copied().collect());
    assert!(names.len() >= 20, "{names:?}");
}

/// docs/providers.md says the same as the table. The expected text is shown when it does not.
#[test]
fn the_documents_say_what_was_proven() {
    let list = |proven: Proven| {
        let names = vendors().iter().filter(|v| v.proven == proven).map(|v| format!("`{}`", v.name));
        names.collect::<Vec<_>>().join(", ")
    };
    let expected = [
        ("the real server", format!("`builtin`, `rfc2136`, `exec`, `httpreq`, {}", list(Proven::RealServer))),
        ("a strict fake", format!("`acme-dns`, {}", list(Proven::StrictFake))),
        ("nothing but that they can be made", list(Proven::BuiltOnly)),
    ];
    let page = include_str!("../../../docs/providers.md");
    for (against, names) in expected {
        let row = format!("| {against} | {names} |");
        assert!(page.contains(&row), "docs/providers.md lacks this row:\n{row}");
    }
}
