//! Certificates for other programs, a webhook for people, and secrets that are rotated while we run.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::support::dns::{Knot, script};
use crate::support::eventually;
use crate::support::pebble::{Options, Pebble};
use crate::support::process::output;
use crate::support::server::{Body, Server};
use crate::support::starlock::{Starlock, local_root};
use crate::support::web::{Upstream, curl, served_chain};

/// A zone to write into, and Pebble that believes everybody: who answers challenges is not what is tested.
struct Rig {
    pebble: Pebble,
    knot: Knot,
}

impl Rig {
    fn start(validity: u64) -> Self {
        let knot = Knot::start(&[("one.test", "")]);
        let mut options = Options::with_dns(knot.address).valid_for(validity);
        options.environment = vec![("PEBBLE_VA_ALWAYS_VALID".into(), "1".into())];
        Self { pebble: Pebble::start(options), knot }
    }

    fn config(&self, dns: &str, rest: &str) -> String {
        format!(
            "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\nmetrics = \"127.0.0.1:0\"\n[acme]\nca = \"{}\"\nca_root = \"{}\"\n\
             [dns]\nresolvers = [\"{}\"]\npropagation = \"off\"\n{dns}\n{rest}\n[routes]\n\"one.test\" = {{ respond = 204 }}\n",
            self.pebble.directory_url,
            self.pebble.ca_root.display(),
            self.knot.address
        )
    }
}

fn shell(path: &Path, text: &str) {
    script(path, &format!("#!/bin/sh\n{text}\n"));
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn metric(starlock: &Starlock, series: &str) -> u64 {
    let text = output("curl", &["-sf", &format!("http://{}/metrics", starlock.address("metrics"))]);
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or(0)
}

const LOCAL: &str = "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\nmetrics = \"127.0.0.1:0\"\n[acme]\nca = \"local\"\n[routes]\n\
    \"app.localhost\" = { respond = 204 }\n[[certificates]]\nnames = [\"app.localhost\"]\ndeploy = [\n\
    { dir = \"{dir}/mail\", run = [\"{dir}/hook\", \"an argument\"], mode = \"0640\" },\n\
    { run = \"{dir}/hangs\", timeout = \"1s\" },\n]\n";

#[test]
fn files_are_written_and_the_hook_told_once_over_restarts() {
    let mut starlock = Starlock::start_with(LOCAL, |dir, _| {
        shell(
            &dir.join("hook"),
            &format!(
                "printf '%s|' \"$1\" $STARLOCK_CERT_NAMES $STARLOCK_CERT_DIR >> {0}/told; cat $STARLOCK_CERT_FULLCHAIN > {0}/copy; echo >> {0}/told",
                dir.display()
            ),
        );
        shell(&dir.join("hangs"), "sleep 1000 & sleep 1000");
    });
    let told = starlock.path("told");
    eventually("the hook is done", || read(&told).ends_with('\n').then_some(()));
    assert_eq!(read(&told).trim(), format!("an argument|app.localhost|{}|", starlock.path("mail").display()));
    let chain = served_chain(starlock.address("https"), "app.localhost");
    let file = |name: &str| starlock.path("mail").join(name);
    assert_eq!((read(&file("fullchain.pem")), read(&starlock.path("copy"))), (chain.clone(), chain));
    assert_eq!(std::fs::metadata(file("privkey.pem")).unwrap().permissions().mode() & 0o777, 0o640);
    let public =
        |kind: &str, name: &str| output("openssl", &[kind, "-in", file(name).to_str().unwrap(), "-pubout"]);
    let of_leaf =
        output("openssl", &["x509", "-in", file("cert.pem").to_str().unwrap(), "-noout", "-pubkey"]);
    assert_eq!(public("pkey", "privkey.pem"), of_leaf);

    // The other one hangs, is killed, is told of, and is in nobody's way.
    let shown = eventually("the failure is shown", || {
        let shown = String::from_utf8(starlock.command(&["certs", "show", "app.localhost"]).stdout).unwrap();
        shown.contains("was killed").then_some(shown)
    });
    assert!(
        shown.contains("ok at ") && shown.contains("wrote ") && shown.contains("tried again in"),
        "{shown}"
    );
    assert!(metric(&starlock, "starlock_deploys_total{name=\"app.localhost\",result=\"failure\"}") > 0);
    assert_eq!(metric(&starlock, "starlock_deploys_total{name=\"app.localhost\",result=\"success\"}"), 1);

    let ok = |starlock: &Starlock| {
        let shown = String::from_utf8(starlock.command(&["certs", "show", "app.localhost"]).stdout).unwrap();
        shown.contains("ok at ").then_some(())
    };
    starlock.process().kill();
    starlock.start_again();
    eventually("it was looked at", || ok(&starlock));
    assert_eq!(read(&told).lines().count(), 1, "nothing had changed");
    starlock.process().kill();
    std::fs::remove_file(starlock.path("mail/cert.pem")).unwrap();
    starlock.start_again();
    eventually("it is told again", || (read(&told).lines().count() == 2).then_some(()));
    assert!(starlock.path("mail/cert.pem").exists());
}

#[test]
fn a_hook_that_fails_after_files_were_mended_is_run_again() {
    let config = LOCAL.replace("{ run = \"{dir}/hangs\", timeout = \"1s\" },\n", "");
    let mut starlock = Starlock::start_with(&config, |dir, _| {
        shell(&dir.join("hook"), &format!("echo once >> {0}/told; ! test -e {0}/broken", dir.display()));
    });
    let (told, broken) = (starlock.path("told"), starlock.path("broken"));
    eventually("the hook was told", || (read(&told).lines().count() == 1).then_some(()));
    let shown =
        |starlock: &Starlock| String::from_utf8(starlock.command(&["certs", "show", "app.localhost"]).stdout);
    eventually("it is remembered", || shown(&starlock).unwrap().contains("ok at ").then_some(()));
    starlock.process().kill();
    // Somebody changes a file; it is mended, and just then the hook fails.
    std::fs::write(starlock.path("mail/cert.pem"), "changed").unwrap();
    std::fs::write(&broken, "").unwrap();
    starlock.start_again();
    let said = eventually("the failure is shown", || {
        Some(shown(&starlock).unwrap()).filter(|shown| shown.contains("failed at "))
    });
    assert!(said.contains("the hook") && read(&starlock.path("mail/cert.pem")).contains("BEGIN"), "{said}");
    starlock.process().kill();
    std::fs::remove_file(&broken).unwrap();
    starlock.start_again();
    eventually("it is told again", || (read(&told).lines().count() == 3).then_some(()));
    eventually("it is well", || shown(&starlock).unwrap().contains("ok at ").then_some(()));
}

#[test]
fn every_renewal_is_passed_on() {
    let rig = Rig::start(30);
    let dns = "provider = \"exec\"\nprogram = \"/bin/true\"";
    let deploy =
        "[[certificates]]\nnames = [\"one.test\"]\ndeploy = { dir = \"{dir}/out\", run = \"{dir}/hook\" }";
    let starlock = Starlock::start_with(&rig.config(dns, deploy), |dir, _| {
        shell(&dir.join("hook"), &format!("echo $STARLOCK_CERT_SERIAL >> {}/told", dir.display()));
    });
    let first = starlock.serial_other_than("one.test", None);
    let second = starlock.serial_other_than("one.test", Some(&first));
    let told = eventually("both were told", || {
        let told = read(&starlock.path("told"));
        (told.contains(&first) && told.contains(&second)).then_some(told)
    });
    assert!(told.find(&first) < told.find(&second), "{told}");
    assert_eq!(told.matches(&first).count(), 1, "{told}");
}

type Posts = Arc<Mutex<Vec<(String, Option<String>)>>>;

fn answer(status: u16) -> Response<Body> {
    let body: Body = Full::new(Bytes::new()).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

/// A webhook that refuses the first message once.
fn webhook() -> (Server, Posts) {
    let posts = Posts::default();
    let seen = posts.clone();
    let server = Server::http(move |request| {
        let seen = seen.clone();
        async move {
            let signature =
                request.headers().get("x-starlock-signature").map(|v| v.to_str().unwrap().to_owned());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut posts = seen.lock().unwrap();
            posts.push((String::from_utf8(body.to_vec()).unwrap(), signature));
            answer(if posts.len() == 1 { 503 } else { 204 })
        }
    });
    (server, posts)
}

#[test]
fn a_failure_and_its_end_are_told_once_each_signed() {
    let rig = Rig::start(3600);
    let (server, posts) = webhook();
    let notify = format!(
        "[notify]\nwebhook = \"http://{}/hunter2\"\nsecret = {{ file = \"{{dir}}/key\" }}\n",
        server.address
    );
    let dns = |program: &str| format!("provider = \"exec\"\nprogram = \"{program}\"");
    let starlock = Starlock::start_with(&rig.config(&dns("/bin/false"), &notify), |dir, _| {
        std::fs::write(dir.join("key"), "Jefe\n").unwrap();
    });
    let events = || -> Vec<Value> {
        posts.lock().unwrap().iter().map(|(body, _)| serde_json::from_str(body).unwrap()).collect()
    };
    eventually("it was told twice, since the first was refused", || (events().len() == 2).then_some(()));
    let failed = events().pop().unwrap();
    assert_eq!(failed, events()[0]);
    assert_eq!(
        (&failed["event"], &failed["certificate"]["names"][0]),
        (&"renewal_failed".into(), &"one.test".into())
    );
    assert!(failed["error"].as_str().unwrap().contains("/bin/false"), "{failed}");
    let (body, signature) = posts.lock().unwrap()[0].clone();
    let body_file = starlock.path("body");
    std::fs::write(&body_file, body).unwrap();
    let expected = output("openssl", &["dgst", "-sha256", "-hmac", "Jefe", body_file.to_str().unwrap()]);
    let expected = expected.trim().split(' ').next_back().unwrap();
    assert_eq!(signature.unwrap(), format!("sha256={expected}"));

    let reloaded = starlock.reload(&rig.config(&dns("/bin/true"), &notify));
    assert!(reloaded.status.success(), "{reloaded:?}");
    starlock.serial_other_than("one.test", None);
    eventually("its end was told", || (events().len() == 3).then_some(()));
    assert_eq!(events()[2]["event"], "recovered");
    eventually("it is counted", || {
        (metric(&starlock, "starlock_notifications_total{result=\"sent\"}") == 2).then_some(())
    });
    assert!(!starlock.log().contains("hunter2"), "the URL's path is nobody's business");
}

#[test]
fn a_rotated_token_is_used_without_a_reload() {
    let rig = Rig::start(3600);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let passwords = seen.clone();
    let server = Server::http(move |request| {
        let passwords = passwords.clone();
        async move {
            let field = request.headers()["authorization"].to_str().unwrap().to_owned();
            let field = BASE64_STANDARD.decode(field.trim_start_matches("Basic ")).unwrap();
            let password = String::from_utf8(field).unwrap().split_once(':').unwrap().1.to_owned();
            let status = if password == "second-hunter2" { 200 } else { 401 };
            passwords.lock().unwrap().push(password);
            answer(status)
        }
    });
    let dns = format!(
        "provider = \"httpreq\"\nendpoint = \"http://{}\"\nusername = \"u\"\npassword = {{ file = \"{{dir}}/token\" }}",
        server.address
    );
    let starlock = Starlock::start_with(&rig.config(&dns, ""), |dir, _| {
        std::fs::write(dir.join("token"), "first-hunter2").unwrap();
    });
    let failed = || starlock.certificates()[0]["last_error"].as_str().map(ToOwned::to_owned);
    let error = eventually("the old token is refused", failed);
    assert!(error.contains("401") && !error.contains("hunter2"), "{error}");
    assert!(seen.lock().unwrap().iter().all(|password| password == "first-hunter2"));
    // As tools do it: a new file is moved into place.
    std::fs::write(starlock.path("token.new"), "second-hunter2").unwrap();
    std::fs::rename(starlock.path("token.new"), starlock.path("token")).unwrap();
    starlock.serial_other_than("one.test", None);
    assert!(starlock.log().contains("a secret has changed") && !starlock.log().contains("hunter2"));
    assert_eq!(starlock.status()["last_reload"], Value::Null);
}

#[test]
fn a_pipe_as_a_secret_is_refused_and_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    output("mkfifo", &[pipe.to_str().unwrap()]);
    let rig = Rig::start(3600);
    let starlock = Starlock::start(&rig.config("provider = \"exec\"\nprogram = \"/bin/true\"", ""));
    let dns = format!(
        "provider = \"httpreq\"\nendpoint = \"http://127.0.0.1:9\"\nusername = \"u\"\npassword = {{ file = \"{}\" }}",
        pipe.display()
    );
    let reloaded = starlock.reload(&rig.config(&dns, ""));
    let said = String::from_utf8_lossy(&reloaded.stderr).into_owned();
    assert!(!reloaded.status.success() && said.contains("no regular file"), "{said}");
    starlock.serial_other_than("one.test", None);
}

#[test]
fn a_rotated_secret_of_sticky_cookies_is_in_force_at_once() {
    let app = Upstream::start("app");
    let config = format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[routes]\n\"app.localhost\" = \"app\"\n[upstreams.app]\nservers = [\"{}\"]\n\
         sticky = {{ cookie = \"srv\", secret = {{ file = \"{{dir}}/sticky\" }} }}\n",
        app.url()
    );
    let starlock = Starlock::start_with(&config, |dir, _| {
        std::fs::write(dir.join("sticky"), "one one one one one one one one").unwrap();
    });
    let (https, root) = (starlock.address("https"), local_root(&starlock));
    let cookie = || {
        let answer = curl(https, &root, "https://app.localhost/", &["-i"]).unwrap();
        let line = answer.lines().find(|line| line.to_ascii_lowercase().starts_with("set-cookie: srv="));
        line.unwrap_or_else(|| panic!("no cookie in {answer}")).to_owned()
    };
    let first = cookie();
    assert_eq!(cookie(), first, "the same server under the same secret");
    std::fs::write(starlock.path("sticky"), "two two two two two two two two").unwrap();
    eventually("the new secret is in force", || (cookie() != first).then_some(()));
    assert!(starlock.status()["last_reload"].is_null(), "nobody reloaded");
}
