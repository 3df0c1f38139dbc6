//! `kill -9` in the middle of an order, again and again.

use crate::issuance::{builtin, txt_at};
use crate::support::pebble::{Options, Pebble};
use crate::support::starlock::Starlock;
use crate::support::stopper::{Stop, Stopper};
use crate::support::{eventually, free_port, local};

/// Pebble's paths for the steps of an order (RFC 8555 section 7.4), each before Pebble hears of it and after.
const STEPS: &[Stop] = &[
    Stop { path: "/order-plz", after: false },
    Stop { path: "/order-plz", after: true },
    Stop { path: "/chalZ/", after: false },
    Stop { path: "/chalZ/", after: true },
    Stop { path: "/finalize-order/", after: false },
    Stop { path: "/finalize-order/", after: true },
    Stop { path: "/certZ/", after: false },
    Stop { path: "/certZ/", after: true },
];

#[test]
fn killed_at_every_step_of_an_order_it_serves_the_last_good_certificate_and_goes_on() {
    let responder = local(free_port());
    let pebble = Pebble::start(Options::with_dns(responder).valid_for(20));
    let stopper = Stopper::before(&pebble);
    let config = builtin(&pebble, responder, "\"example.test\" = { respond = 204 }")
        .replace(&pebble.directory_url, &stopper.directory_url);
    let mut starlock = Starlock::start(&config);
    let mut serial = starlock.serial_other_than("example.test", None);
    for stop in STEPS {
        stopper.arm(*stop);
        stopper.wait_for_hit();
        starlock.process().kill();
        // The CA does not answer at all until the start has been looked at: a resumed order takes 60 ms.
        stopper.arm(Stop { path: "/", after: false });
        starlock.start_again();
        let held = starlock.certificates();
        assert_eq!(
            held[0]["serial"],
            serial.as_str(),
            "{stop:?}: the last good certificate is served at once"
        );
        stopper.release();
        serial = starlock.serial_other_than("example.test", Some(&serial));
        assert_eq!(txt_at(responder, "_acme-challenge.example.test"), Vec::<String>::new(), "{stop:?}");
        // What the running process is just writing (the CA's answer to how long to wait, say) goes by itself, and others may come; what
        // the dead one left stays.
        let left = leftovers(&starlock);
        eventually(&format!("{stop:?}: nothing of {left:?} stays"), || {
            let now = leftovers(&starlock);
            left.iter().all(|path| !now.contains(path)).then_some(())
        });
    }
}

/// Files that only an unfinished write or an unfinished challenge leaves.
fn leftovers(starlock: &Starlock) -> Vec<String> {
    walkdir::WalkDir::new(starlock.path("state"))
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| entry.path().to_string_lossy().into_owned())
        .filter(|path| path.contains(".tmp-") || path.contains("journal") || path.contains("damaged"))
        .collect()
}
