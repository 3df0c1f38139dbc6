//! Certificates that are replaced under traffic.

use std::sync::atomic::Ordering;

use crate::issuance::builtin;
use crate::load;
use crate::support::pebble::{Options, Pebble};
use crate::support::starlock::Starlock;
use crate::support::web::Upstream;
use crate::support::{alone, free_port, local};

#[test]
fn three_renewals_under_load_fail_nothing() {
    let _alone = alone();
    let responder = local(free_port());
    let pebble = Pebble::start(Options::with_dns(responder).valid_for(20));
    let app = Upstream::start("app");
    let starlock =
        Starlock::start(&builtin(&pebble, responder, &format!("\"app.example.test\" = \"{}\"", app.url())));
    let mut serial = starlock.serial_other_than("*.example.test", None);

    let load = load::Load::start(load::Spec {
        address: starlock.address("https"),
        hosts: vec!["app.example.test".to_owned()],
        path: "/".to_owned(),
        root_pem: pebble.root(),
        rate: 600,
    });
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        serial = starlock.serial_other_than("*.example.test", Some(&serial));
    }
    let took = begun.elapsed().as_secs_f64();
    let report = load.stop();
    let (sent, failed) = (report.sent.load(Ordering::Relaxed), report.failed.load(Ordering::Relaxed));
    assert_eq!((failed, report.failed_handshakes.load(Ordering::Relaxed)), (0, 0), "{:?}", report.errors());
    assert_eq!(report.connections_closed.load(Ordering::Relaxed), 0, "no kept-alive connection was closed");
    // Whatever else this machine does: a renewal takes a second, and has requests under way all through it.
    assert!(sent as f64 / took >= 20.0, "{sent} requests in {took:.1} s are no load");
    assert!(report.serials().len() >= 3, "full handshakes saw {:?}", report.serials());
    assert!(report.resumed.load(Ordering::Relaxed) > 0);
    assert_eq!(app.requests.load(Ordering::Relaxed), sent);
}
