//! A reload is a transaction, and nobody outside notices it.

use std::sync::atomic::Ordering;

use crate::load;
use crate::support::alone;
use crate::support::starlock::{Starlock, local_root};
use crate::support::web::{Upstream, curl};

fn config(app: &Upstream, extra: &str) -> String {
    format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"127.0.0.1:0\"]\n[log]\naccess = \"off\"\n\
         [routes]\n\"app.localhost\" = \"{}\"\n{extra}",
        app.url()
    )
}

#[test]
fn a_thousand_reloads_under_load_fail_nothing_and_grow_nothing() {
    let _alone = alone();
    let app = Upstream::start("app");
    let mut starlock = Starlock::start(&config(&app, ""));
    let load = load::Load::start(load::Spec {
        address: starlock.address("https"),
        hosts: vec!["app.localhost".to_owned()],
        path: "/".to_owned(),
        root_pem: local_root(&starlock),
        rate: 300,
    });
    let mut settled = 0;
    for round in 0..1000 {
        let extra = format!(
            "\"app.localhost/{}\" = {{ respond = 204 }}\n\"r{}.localhost\" = {{ respond = 200 }}\n",
            round % 7,
            round % 20
        );
        let output = starlock.reload(&config(&app, &extra));
        assert!(output.status.success(), "reload {round}: {}", String::from_utf8_lossy(&output.stderr));
        if round == 200 {
            settled = starlock.process().memory_kib();
        }
    }
    let grown = starlock.process().memory_kib().saturating_sub(settled);
    let report = load.stop();
    assert!(report.sent.load(Ordering::Relaxed) > 500);
    let failed = report.failed.load(Ordering::Relaxed) + report.failed_handshakes.load(Ordering::Relaxed);
    assert_eq!(failed, 0, "{:?}", report.errors());
    assert_eq!(report.connections_closed.load(Ordering::Relaxed), 0, "a reload closed a connection");
    assert!(grown < 16 * 1024, "800 reloads grew the process by {grown} KiB");
}

#[test]
fn a_bad_file_changes_nothing_and_says_everything() {
    let app = Upstream::start("app");
    let starlock = Starlock::start(&config(&app, ""));
    let bad = format!("{}\n[listne]\n[limits]\nheader = 5\n", config(&app, "\"b.localhost\" = \"nobody\"\n"));
    let output = starlock.reload(&bad);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for wrong in ["listne", "header", "nobody"] {
        assert!(said.contains(wrong), "{wrong} is not in:\n{said}");
    }
    let status = starlock.status();
    assert_eq!(status["last_reload"]["ok"], false);
    let answer =
        curl(starlock.address("https"), &local_root(&starlock), "https://app.localhost/still", &[]).unwrap();
    assert!(answer.starts_with("app GET /still"));

    // SIGHUP takes the good file over, and tells nobody but the log.
    let mut starlock = starlock;
    std::fs::write(starlock.path("starlock.toml"), config(&app, "\"b.localhost\" = { respond = 204 }\n"))
        .unwrap();
    starlock.process().signal("HUP");
    crate::support::eventually("the reload is taken over", || {
        (starlock.status()["last_reload"]["ok"] == true).then_some(())
    });
    let root = local_root(&starlock);
    curl(starlock.address("https"), &root, "https://b.localhost/", &["-f"]).unwrap();
}
