//! Starts when the world is not as it should be: it serves what it has and says what it lacks.

use crate::issuance::builtin;
use crate::support::pebble::{Options, Pebble, verify_chain};
use crate::support::process::output;
use crate::support::starlock::{Starlock, command, local_root, set_clock};
use crate::support::web::{Upstream, curl, served_chain};
use crate::support::{eventually, free_port, local};

#[test]
fn with_the_ca_down_it_serves_from_storage_at_once_and_keeps_trying() {
    let responder = local(free_port());
    let mut pebble = Pebble::start(Options::with_dns(responder).valid_for(40));
    let config = builtin(&pebble, responder, "\"example.test\" = { respond = 204 }");
    let mut starlock = Starlock::start(&config);
    let serial = starlock.serial_other_than("example.test", None);
    let root = pebble.root();
    starlock.process().signal("TERM");
    assert!(starlock.process().wait().success());

    pebble.stop();
    starlock.start_again();
    assert_eq!(starlock.certificates()[0]["serial"], serial.as_str());
    verify_chain(&served_chain(starlock.address("https"), "example.test"), &root, "example.test");
    let error = eventually("the outage is told", || {
        starlock.certificates()[0]["last_error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("localhost") && error.contains("tried again by itself"), "{error}");
    assert_eq!(starlock.certificates()[0]["serial"], serial.as_str(), "and still serves");

    pebble.restart();
    starlock.serial_other_than("example.test", Some(&serial));
}

#[test]
fn a_fresh_process_says_in_its_metrics_that_its_configuration_was_taken() {
    let config = "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\nmetrics = \"127.0.0.1:0\"\n[routes]\n\"a.localhost\" = { respond = 204 }\n";
    let starlock = Starlock::start(config);
    let metrics = || output("curl", &["-sf", &format!("http://{}/metrics", starlock.address("metrics"))]);
    let value = |series: &str| -> Option<f64> {
        metrics().lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    };
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert_eq!(value("starlock_config_last_reload_success "), Some(1.0));
    let loaded = value("starlock_config_last_reload_timestamp_seconds ").unwrap();
    assert!((now - 60.0..now + 1.0).contains(&loaded), "{loaded}");

    curl(starlock.address("https"), &local_root(&starlock), "https://a.localhost/", &[]).unwrap();
    let count = "starlock_http_request_duration_seconds_count{route=\"a.localhost\"}";
    eventually("the request is counted", || value(count).filter(|count| *count == 1.0));
    let text = metrics();
    assert!(text.contains("# TYPE starlock_http_request_duration_seconds histogram"), "{text}");
    assert!(
        text.contains("starlock_http_request_duration_seconds_bucket{le=\"+Inf\",route=\"a.localhost\"} 1"),
        "{text}"
    );

    assert!(!starlock.reload(&config.replace("204", "\"nonsense\"")).status.success());
    assert_eq!(value("starlock_config_last_reload_success "), Some(0.0), "a refusal is seen");
}

#[test]
fn a_state_directory_that_is_not_as_it_should_be_is_said_at_the_start() {
    let config =
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[routes]\n\"a.localhost\" = { respond = 204 }\n";
    let told = |prepare: &dyn Fn(&std::path::Path)| {
        let starlock = Starlock::start_with(config, |dir, _| prepare(&dir.join("state")));
        let lines = starlock.log();
        lines.lines().filter(|line| line.contains("WARN")).collect::<Vec<_>>().join("\n")
    };
    let make = |state: &std::path::Path| {
        std::fs::create_dir(state).unwrap();
        std::fs::set_permissions(state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    };
    let chown = |path: &std::path::Path| std::os::unix::fs::chown(path, Some(65534), None).unwrap();
    let whole = told(&|_| {});
    assert!(!whole.contains("belongs to uid"), "{whole}");
    let foreign = told(&|state| {
        make(state);
        chown(state);
    });
    assert!(foreign.contains("belongs to uid 65534, this process runs as"), "{foreign}");
    let value = told(&|state| {
        make(state);
        std::fs::create_dir(state.join("certs")).unwrap();
        std::fs::write(state.join("certs/a.json"), "{}").unwrap();
        chown(&state.join("certs/a.json"));
    });
    assert!(value.contains("certs/a.json belongs to uid 65534") && value.contains("chown -R"), "{value}");
    let volatile = format!("/dev/shm/starlock-test-{}", std::process::id());
    let starlock = Starlock::start(&format!("{config}[storage]\npath = \"{volatile}\"\n"));
    let log = starlock.log();
    drop(starlock);
    std::fs::remove_dir_all(&volatile).unwrap();
    assert!(log.contains("lies in memory") && log.contains("mount a durable volume"), "{log}");
}

#[test]
fn an_upstream_that_does_not_resolve_stops_nobody_else() {
    let app = Upstream::start("app");
    let starlock = Starlock::start(&format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[routes]\n\"app.localhost\" = \"{}\"\n\
         \"gone.localhost\" = \"http://no-such-host.invalid:80\"\n",
        app.url()
    ));
    let (https, root) = (starlock.address("https"), local_root(&starlock));
    assert!(curl(https, &root, "https://app.localhost/", &[]).unwrap().starts_with("app GET /"));
    let gone = curl(https, &root, "https://gone.localhost/", &["-w", "%{http_code}"]).unwrap();
    assert!(gone.ends_with("502") && gone.contains("Request "), "{gone}");
}

#[test]
fn a_clock_before_the_certificates_dates_is_said_aloud_and_renews_nothing() {
    let responder = local(free_port());
    let mut pebble = Pebble::start(Options::with_dns(responder));
    let mut starlock = Starlock::start(&builtin(&pebble, responder, "\"example.test\" = { respond = 204 }"));
    let serial = starlock.serial_other_than("example.test", None);
    starlock.process().kill();
    pebble.stop();
    starlock.start_again_with(|process| set_clock(process, -30 * 86_400));
    let certificate = &starlock.certificates()[0];
    assert_eq!((&certificate["serial"], &certificate["state"]), (&serial.into(), &"valid".into()));
    assert!(starlock.log().contains("before the certificate's first day"), "it is said aloud");
    assert!(!served_chain(starlock.address("https"), "example.test").is_empty());
}

#[test]
fn a_second_instance_is_refused_with_a_reason() {
    let starlock = Starlock::start(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[routes]\n\"a.localhost\" = { respond = 204 }\n",
    );
    let https = starlock.address("https");
    let dir = tempfile::tempdir().unwrap();
    let config = |admin: &str| {
        format!(
            "[listen]\nhttps = [\"{https}\"]\nhttp = []\nadmin = \"{admin}\"\n[routes]\n\"a.localhost\" = {{ respond = 204 }}\n"
        )
    };
    let file = dir.path().join("starlock.toml");
    std::fs::write(&file, config(dir.path().join("other.sock").to_str().unwrap())).unwrap();
    let output = command(dir.path(), &["run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&https.to_string()), "{said}");

    std::fs::write(&file, config(starlock.path("admin.sock").to_str().unwrap())).unwrap();
    let output = command(dir.path(), &["run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("admin.sock"), "{said}");
}

#[test]
fn two_processes_share_a_state_directory_and_order_once() {
    let responder = local(free_port());
    let pebble = Pebble::start(Options::with_dns(responder));
    let config = builtin(&pebble, responder, "\"example.test\" = { respond = 204 }");
    let first = Starlock::start(&config);
    let shared = first.path("state");
    let second = Starlock::start(&format!(
        "{}\n[storage]\npath = \"{}\"\n",
        config.replace(&format!("listen = [\"{responder}\"]"), "listen = [\"127.0.0.1:0\"]"),
        shared.display()
    ));
    let serial = first.serial_other_than("example.test", None);
    assert_eq!(second.serial_other_than("example.test", None), serial);
    assert_eq!(pebble.log().matches("Issued certificate serial").count(), 1);
}

#[test]
fn a_lost_state_directory_orders_nothing() {
    let responder = local(free_port());
    let pebble = Pebble::start(Options::with_dns(responder));
    let mut starlock = Starlock::start(&builtin(&pebble, responder, "\"example.test\" = { respond = 204 }"));
    starlock.serial_other_than("example.test", None);
    starlock.process().signal("TERM");
    assert!(starlock.process().wait().success());
    std::fs::rename(starlock.path("state/certs"), starlock.path("elsewhere")).unwrap();
    starlock.start_again();
    let certificate = &starlock.certificates()[0];
    assert_eq!(certificate["state"], "parked");
    assert!(certificate["last_error"].as_str().unwrap().contains("inventory.json"), "{certificate}");
    assert_eq!(pebble.log().matches("Issued certificate serial").count(), 1);
}

/// Forbids IPv6 sockets as a kernel without IPv6 does, then becomes the program that follows. A seccomp filter, since the kernel
/// of the machine has IPv6: `socket(AF_INET6, ...)` is EAFNOSUPPORT.
const WITHOUT_IPV6: &str = r#"
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
socket = {"x86_64": 41, "aarch64": 198}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 3, socket), (0x20, 0, 0, 16), (0x15, 0, 1, 10), (0x06, 0, 0, 0x00050000 | 97), (0x06, 0, 0, 0x7fff0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
header = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn without_ipv6_the_dual_stack_address_falls_back_to_ipv4() {
    let config = "[listen]\nhttps = [\"[::]:0\"]\nhttp = [\"[::]:0\"]\n[routes]\n\"a.localhost\" = { respond = 200, body = \"here\\n\" }\n";
    let starlock = Starlock::start_as(config, |dir, command| {
        let mut python = std::process::Command::new("python3");
        python
            .args(["-c", WITHOUT_IPV6])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(dir);
        python.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        python
    });
    let https = starlock.address("https");
    assert!(https.is_ipv4(), "{https}");
    let local = ([127, 0, 0, 1], https.port()).into();
    assert_eq!(curl(local, &local_root(&starlock), "https://a.localhost/", &[]).unwrap(), "here\n");
    assert!(starlock.log().contains("no IPv6"), "it is said");
}

#[test]
fn each_warning_about_the_file_is_a_line_of_the_log() {
    let starlock = Starlock::start(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[routes]\n\"a.localhost\" = { respond = 200 }\n\
         [upstreams.idle]\nservers = [\"http://127.0.0.1:9\"]\n",
    );
    let log = starlock.log();
    for wanted in [
        " WARN the local CA signs a certificate for `a.localhost`",
        " WARN no route leads to upstream `idle`",
    ] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
}
