//! Every way to prove a name against a real ACME server: by our listeners, by an account's own label, by a record that stays.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use crate::load;
use crate::support::dns::{Knot, txt};
use crate::support::pebble::{Options, Pebble, verify_chain};
use crate::support::starlock::{Starlock, local_root};
use crate::support::stopper::{Stop, Stopper};
use crate::support::web::{Upstream, curl, served_chain};
use crate::support::{alone, eventually, local};

/// Everything below `example.test` is here.
const HERE: &str = "@ A 127.0.0.1\n* A 127.0.0.1";

/// A Starlock whose ports Pebble knows, before it has asked for anything.
struct Scene {
    pebble: Pebble,
    starlock: Starlock,
    _knot: Knot,
}

impl Scene {
    fn new(change: impl FnOnce(Options) -> Options) -> Self {
        let knot = Knot::start(&[("example.test", HERE)]);
        let starlock =
            Starlock::start(&listening("acme = \"local\"\nroutes.\"x.localhost\" = { respond = 200 }"));
        let mut options = Options::with_dns(knot.address);
        options.http_port = starlock.address("http").port();
        options.tls_port = starlock.address("https").port();
        let pebble = Pebble::start(change(options));
        Self { pebble, starlock, _knot: knot }
    }

    /// Puts `more` into force, with this Pebble as the CA.
    fn go(&self, challenge: &str, more: &str) {
        self.go_by(&self.pebble.directory_url, challenge, more);
    }

    fn go_by(&self, directory: &str, challenge: &str, more: &str) {
        let config = listening(&format!("{}\n{more}", acme(&self.pebble, directory, challenge)));
        let output = self.starlock.reload(&config);
        assert!(output.status.success(), "{output:?}");
    }

    /// A request in clear: status line and fields, then the body.
    fn ask(&self, host: &str, path: &str, more: &[&str]) -> String {
        ask(self.starlock.address("http"), host, path, more)
    }
}

fn acme(pebble: &Pebble, directory: &str, challenge: &str) -> String {
    let root = pebble.ca_root.display();
    format!("acme = {{ ca = \"{directory}\", ca_root = \"{root}\", challenge = \"{challenge}\" }}")
}

fn listening(more: &str) -> String {
    // Keys of the top level come first.
    let (top, tables) = more.split_once("\n[").map_or((more, String::new()), |(t, r)| (t, format!("\n[{r}")));
    format!("{top}\nlisten = {{ https = [\"127.0.0.1:0\"], http = [\"127.0.0.1:0\"] }}\n{tables}")
}

fn ask(address: SocketAddr, host: &str, path: &str, more: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sSi", "--path-as-is", "--max-time", "20", "-H", &format!("Host: {host}")])
        .args(more)
        .arg(format!("http://{address}{path}"))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Answers that lie in the storage.
fn kept(state: &Path) -> Vec<String> {
    let below = walkdir::WalkDir::new(state.join("answers")).into_iter().flatten();
    let files = below.filter(|entry| entry.file_type().is_file());
    files.map(|entry| entry.path().display().to_string()).filter(|path| !path.contains(".lock")).collect()
}

fn proven_by(pebble: &Pebble) -> (usize, usize) {
    let log = pebble.log();
    (
        log.matches("Attempting to validate w/ HTTP").count(),
        log.matches("set VALID by completed challenge").count(),
    )
}

#[test]
fn several_names_by_each_of_our_listeners_and_routes_stay_as_they_are() {
    for challenge in ["http-01", "tls-alpn-01", "auto"] {
        let scene = Scene::new(|options| options);
        let app = Upstream::start("app");
        let upstream = app.url();
        scene.go(
            challenge,
            &format!(
                "[[certificates]]\nnames = [\"example.test\", \"www.example.test\", \"a.b.example.test\"]\n\
                 [routes]\n\"example.test\" = \"{upstream}\"\n\"www.example.test\" = {{ redirect = \"https://example.test\" }}\n\
                 \"a.b.example.test\" = {{ respond = 204 }}\n\"alone.example.test\" = {{ respond = 200, body = \"alone\" }}"
            ),
        );
        let root = scene.pebble.root();
        let https = scene.starlock.address("https");
        for host in ["example.test", "www.example.test", "alone.example.test"] {
            let serial = scene.starlock.serial_other_than(host, None);
            assert_eq!(scene.pebble.status_of(&serial).as_deref(), Some("Valid"));
            verify_chain(&served_chain(https, host), &root, host);
        }
        let (by_http, valid) = proven_by(&scene.pebble);
        assert_eq!(valid, 4, "{challenge}");
        assert_eq!(by_http > 0, challenge == "http-01", "{challenge}: {by_http} looks at port 80");
        assert_eq!(kept(&scene.starlock.path("state")), Vec::<String>::new());
        let answer =
            curl(https, &root, "https://example.test/.well-known/acme-challenge/x", &["--http2"]).unwrap();
        assert!(answer.starts_with("app GET /.well-known/acme-challenge/x"), "{answer}");
        assert!(scene.ask("example.test", "/a?b=c", &[]).contains("308"));
        // Nobody is answered as a CA once nothing is asked of us.
        let validator = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &https.to_string(),
                "-servername",
                "example.test",
                "-alpn",
                "acme-tls/1",
            ])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&validator.stderr).into_owned();
        assert!(said.contains("no application protocol"), "{said}");
    }
}

#[test]
fn hostile_requests_go_to_their_routes_while_a_challenge_stands() {
    let scene = Scene::new(|options| options);
    let app = Upstream::start("app");
    let stopper = Stopper::before(&scene.pebble);
    stopper.arm(Stop { path: "/chalZ/", after: false });
    let route = format!("[routes]\n\"example.test\" = \"{}\"", app.url());
    scene.go_by(&stopper.directory_url, "http-01", &route);
    stopper.wait_for_hit();
    let state = scene.starlock.path("state");
    let file = kept(&state).pop().expect("an answer stands");
    let stored: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let (token, answer) = (stored["token"].as_str().unwrap(), stored["answer"].as_str().unwrap());
    let path = format!("/.well-known/acme-challenge/{token}");

    let given = scene.ask("example.test", &path, &[]);
    assert!(given.starts_with("HTTP/1.1 200") && given.ends_with(answer), "{given}");
    assert!(scene.ask("EXAMPLE.test.:80", &path, &[]).ends_with(answer));
    assert!(!scene.ask("example.test", &path, &["-I"]).contains(answer));
    let long = format!("/.well-known/acme-challenge/{}", "a".repeat(4000));
    let changed = format!("/.well-known/acme-challenge/{}", token.to_ascii_lowercase());
    for (host, path, more) in [
        ("other.example.test", path.as_str(), &[][..]),
        ("127.0.0.1", &path, &[]),
        ("example.test", &changed, &[]),
        ("example.test", &long, &[]),
        ("example.test", &format!("/.well-known/acme-challenge/../acme-challenge/{token}"), &[]),
        ("example.test", &format!("/.well-known/acme-challenge/%2e%2e/{token}"), &[]),
        ("example.test", &format!("{path}/"), &[]),
        ("example.test", &format!("/x{path}"), &[]),
        ("example.test", "/.well-known/acme-challenge/", &[]),
        ("example.test", &path, &["-X", "POST"]),
    ] {
        let said = scene.ask(host, path, more);
        let status: u16 = said.split(' ').nth(1).unwrap().parse().unwrap();
        assert!([308, 400, 404, 421].contains(&status) && !said.contains(answer), "{host} {path}: {said}");
    }
    assert_eq!(app.requests.load(Ordering::Relaxed), 0, "in clear everything is redirected");

    // Told to end while the answer stands: nothing is left behind.
    let mut starlock = scene.starlock;
    starlock.process().signal("TERM");
    assert!(starlock.process().wait().success());
    assert_eq!(kept(&state), Vec::<String>::new());
}

#[test]
fn a_node_that_shares_the_storage_answers_for_another() {
    let scene = Scene::new(|options| options);
    // The CA comes to the second one, which has no such certificate and no part in the order.
    let shared = scene.starlock.path("state");
    let second = Starlock::start(&listening(&format!(
        "acme = \"local\"\nstorage.path = \"{}\"\nroutes.\"y.localhost\" = {{ respond = 200 }}",
        shared.display()
    )));
    let stopper = Stopper::before(&scene.pebble);
    stopper.arm(Stop { path: "/chalZ/", after: false });
    scene.go_by(&stopper.directory_url, "http-01", "[routes]\n\"example.test\" = { respond = 204 }");
    stopper.wait_for_hit();
    let file = kept(&shared).pop().expect("an answer stands");
    let stored: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let (token, answer) = (stored["token"].as_str().unwrap(), stored["answer"].as_str().unwrap());
    let said =
        ask(second.address("http"), "example.test", &format!("/.well-known/acme-challenge/{token}"), &[]);
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with(answer), "{said}");
    stopper.release();
    scene.starlock.serial_other_than("example.test", None);
    assert_eq!(kept(&shared), Vec::<String>::new());
}

#[test]
fn renewals_by_tls_alpn_under_load_fail_nothing() {
    let _alone = alone();
    let scene = Scene::new(|options| options.valid_for(20));
    let app = Upstream::start("app");
    scene.go("tls-alpn-01", &format!("[routes]\n\"app.example.test\" = \"{}\"", app.url()));
    let mut serial = scene.starlock.serial_other_than("app.example.test", None);
    let load = load::Load::start(load::Spec {
        address: scene.starlock.address("https"),
        hosts: vec!["app.example.test".to_owned()],
        path: "/".to_owned(),
        root_pem: scene.pebble.root(),
        rate: 300,
    });
    for _ in 0..2 {
        serial = scene.starlock.serial_other_than("app.example.test", Some(&serial));
    }
    let report = load.stop();
    let failed = (report.failed.load(Ordering::Relaxed), report.failed_handshakes.load(Ordering::Relaxed));
    assert_eq!(failed, (0, 0), "{:?}", report.errors());
    assert!(report.serials().len() >= 2 && report.resumed.load(Ordering::Relaxed) > 0);
}

/// A port where every connection ends at once, as long as the tests run.
fn hangs_up() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    port
}

#[test]
fn what_the_ca_cannot_see_is_said_in_words_for_that_challenge() {
    let scene = Scene::new(|mut options| {
        (options.http_port, options.tls_port) = (hangs_up(), hangs_up());
        options
    });
    for (challenge, says) in [("http-01", "port 80"), ("tls-alpn-01", "port 443")] {
        scene.go(challenge, "[routes]\n\"example.test\" = { respond = 204 }");
        let error = eventually("the failure is told", || {
            let all = scene.starlock.certificates();
            let error =
                all.iter().find(|c| c["names"][0] == "example.test")?["last_error"].as_str()?.to_owned();
            error.contains(challenge).then_some(error)
        });
        assert!(error.contains(says), "{error}");
        assert_eq!(kept(&scene.starlock.path("state")), Vec::<String>::new());
    }
    // An older Pebble does not know it; what it offers instead is said.
    let dns = format!("[dns]\nprovider = \"exec\"\nprogram = \"/bin/true\"\nresolvers = [\"{}\"]", local(1));
    scene.go("dns-account-01", &format!("{dns}\n[routes]\n\"example.test\" = {{ respond = 204 }}"));
    let error = eventually("the offer is told", || {
        let all = scene.starlock.certificates();
        let error = all.iter().find(|c| c["names"][0] == "example.test")?["last_error"].as_str()?.to_owned();
        error.contains("dns-account-01").then_some(error)
    });
    assert!(
        error.contains("it offers") && error.contains("tls-alpn-01") && error.contains("acme.challenge"),
        "{error}"
    );
}

fn rfc2136(knot: &Knot) -> String {
    format!(
        "[dns]\nprovider = \"rfc2136\"\nttl = \"1s\"\nresolvers = [\"{0}\"]\nserver = \"{0}\"\nkey_name = \"{1}\"\nsecret = \"{2}\"",
        knot.address, knot.key_name, knot.secret
    )
}

#[test]
fn an_account_has_a_challenge_name_of_its_own() {
    let knot = Knot::start(&[("example.test", "")]);
    let mut options = Options::with_dns(knot.address);
    options.newer = true;
    let mut pebble = Pebble::start(options.valid_for(30));
    let stopper = Stopper::before(&pebble);
    stopper.arm(Stop { path: "/chalZ/", after: false });
    let starlock = Starlock::start(&listening(&format!(
        "{}\n{}\n[[certificates]]\nnames = [\"example.test\", \"*.example.test\"]\n[routes]\n\"example.test\" = {{ respond = 204 }}",
        acme(&pebble, &stopper.directory_url, "dns-account-01"),
        rfc2136(&knot)
    )));
    stopper.wait_for_hit();
    assert_eq!(txt(knot.address, "_acme-challenge.example.test"), Vec::<String>::new());
    let account = account_url(&starlock);
    let label = label(&account);
    let name = format!("{label}._acme-challenge.example.test");
    assert_eq!(txt(knot.address, &name).len(), 2, "both stand at {name}");
    stopper.release();
    let serial = starlock.serial_other_than("*.example.test", None);
    assert_eq!(pebble.status_of(&serial).as_deref(), Some("Valid"));
    assert_eq!(txt(knot.address, &name), Vec::<String>::new());

    // The CA forgets everything: what others wrote for this account would be worth nothing under another one.
    pebble.restart();
    let error = eventually("the account is not made again", || {
        let error = starlock.certificates()[0]["last_error"].as_str()?.to_owned();
        error.contains("no other one is registered").then_some(error)
    });
    assert!(error.contains(&account), "{error}");
    assert_eq!(account_url(&starlock), account);
}

/// `_LABEL` of an account, by other people's tools.
fn label(account: &str) -> String {
    let script = "printf %s \"$1\" | openssl dgst -sha256 -binary | head -c 10 | base32 | tr A-Z a-z";
    let output = Command::new("sh").args(["-c", script, "sh", account]).output().unwrap();
    format!("_{}", String::from_utf8(output.stdout).unwrap().trim())
}

fn account_url(starlock: &Starlock) -> String {
    let accounts = walkdir::WalkDir::new(starlock.path("state").join("accounts")).into_iter().flatten();
    let texts =
        accounts.filter(|e| e.file_type().is_file()).filter_map(|e| std::fs::read_to_string(e.path()).ok());
    let urls = texts.filter_map(|text| {
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(json["url"].as_str()?.to_owned())
    });
    urls.last().expect("an account with its URL")
}

#[test]
fn a_record_that_stays_is_asked_for_and_nothing_else() {
    let knot = Knot::start(&[("example.test", "")]);
    let mut options = Options::with_dns(knot.address);
    options.newer = true;
    let pebble = Pebble::start(options);
    // The provider is never called: it could not.
    let config = listening(&format!(
        "{}\n[dns]\nprovider = \"exec\"\nprogram = \"/nonexistent\"\nresolvers = [\"{}\"]\n\
         [[certificates]]\nnames = [\"example.test\", \"*.example.test\"]\n[routes]\n\"example.test\" = {{ respond = 204 }}",
        acme(&pebble, &pebble.directory_url, "dns-persist-01"),
        knot.address
    ));
    let starlock = Starlock::start(&config);
    let told = || starlock.certificates()[0]["last_error"].as_str().map(ToOwned::to_owned);
    let error = eventually("what is missing is told", told);
    let account = account_url(&starlock);
    let value = format!("pebble.letsencrypt.org; accounturi={account}; policy=wildcard");
    assert!(error.contains(&format!("add: _validation-persist.example.test.  TXT  \"{value}\"")), "{error}");
    assert!(error.contains("no TXT record there") && error.contains(&knot.address.to_string()), "{error}");
    assert!(starlock.log().contains("accounturi="), "the log has it too");
    assert!(!pebble.log().contains("There are now 1 orders"), "the CA heard of no order");

    let update = format!(
        "server {}\nzone example.test\nupdate add _validation-persist.example.test 1 TXT \"{value}\"\nsend\n",
        knot.address.ip()
    );
    let script = "printf %s \"$1\" | nsupdate -v -y \"hmac-sha256:acme:$2\"";
    let added = Command::new("sh").args(["-c", script, "sh", &update, &knot.secret]).output().unwrap();
    assert!(added.status.success(), "{added:?}");
    // A changed configuration is tried at once.
    let output = starlock
        .reload(&config.replace("dns-persist-01\" }", "dns-persist-01\", email = \"ops@example.test\" }"));
    assert!(output.status.success(), "{output:?}");
    let serial = starlock.serial_other_than("*.example.test", None);
    assert_eq!(pebble.status_of(&serial).as_deref(), Some("Valid"));
    assert_eq!(txt(knot.address, "_validation-persist.example.test"), [value], "it stays");
    assert_eq!(txt(knot.address, "_acme-challenge.example.test"), Vec::<String>::new());
}

#[test]
fn names_below_a_local_wildcard_get_certificates_of_their_own() {
    let starlock = Starlock::start(&listening(
        "\n[routes]\n\"*.localhost\" = { respond = 200, body = \"any\" }\n\"*.app.internal\" = { respond = 200, body = \"deep\" }",
    ));
    let https = starlock.address("https");
    let root = eventually("the wildcard is served", || {
        served_chain(https, "a.localhost").contains("BEGIN").then(|| local_root(&starlock))
    });
    // OpenSSL, as browsers, takes no wildcard right below the root.
    for host in ["a.localhost", "b.localhost", "a.localhost"] {
        assert_eq!(curl(https, &root, &format!("https://{host}/"), &["--http2"]).unwrap(), "any");
        verify_chain(&served_chain(https, host), &root, host);
    }
    assert_eq!(served_chain(https, "a.localhost"), served_chain(https, "a.localhost"), "made once");
    assert_ne!(served_chain(https, "a.localhost"), served_chain(https, "b.localhost"));
    eventually("the deeper wildcard is served", || {
        served_chain(https, "x.app.internal").contains("BEGIN").then_some(())
    });
    assert_eq!(curl(https, &root, "https://x.app.internal/", &[]).unwrap(), "deep");
    assert_eq!(
        served_chain(https, "x.app.internal"),
        served_chain(https, "y.app.internal"),
        "that one is good"
    );
    assert_eq!(starlock.certificates().len(), 2, "what is made on demand is no certificate to look after");
    let renewed = starlock.command(&["certs", "renew", "*.localhost"]);
    assert!(renewed.status.success(), "{renewed:?}");
    assert!(!starlock.log().contains(" ERROR "), "{}", starlock.log());
}
