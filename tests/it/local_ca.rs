//! The local CA as openssl, the system's store, NSS and a browser see it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::process::output;
use crate::support::starlock::{Starlock, binary, command, local_root, write_config};
use crate::support::web::served_chain;

const ROUTES: &str = "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[acme]\nca = \"local\"\n[routes]\n\
                      \"app.localhost\" = { respond = 200, body = \"hello from starlock\" }\n";

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn verify(dir: &Path, root: &str, chain: &str) -> Output {
    let (leaf, rest) = chain.split_at(chain.rfind("-----BEGIN").unwrap());
    for (name, pem) in [("root.pem", root), ("leaf.pem", leaf), ("rest.pem", rest)] {
        std::fs::write(dir.join(name), pem).unwrap();
    }
    let arguments = ["verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "rest.pem", "leaf.pem"];
    Command::new("openssl").args(arguments).current_dir(dir).output().expect("openssl is installed")
}

#[test]
fn openssl_takes_what_is_private_and_refuses_a_stolen_signature_outside() {
    let starlock = Starlock::start(ROUTES);
    let (root, chain) = (local_root(&starlock), served_chain(starlock.address("https"), "app.localhost"));
    assert_eq!(chain.matches("-----BEGIN").count(), 2, "leaf and intermediate, not the root");
    let dir = tempfile::tempdir().unwrap();
    let verified = verify(dir.path(), &root, &chain);
    assert!(verified.status.success(), "{}", text(&verified));
    let shown =
        output("openssl", &["x509", "-noout", "-text", "-in", dir.path().join("rest.pem").to_str().unwrap()]);
    assert!(shown.contains("pathlen:0") && shown.contains("X509v3 Name Constraints: critical"), "{shown}");
    assert!(shown.contains("DNS:localhost") && shown.contains("IP:127.0.0.0/255.0.0.0"), "{shown}");

    // Whoever steals the intermediate's key, or the root's, signs for a bank.
    for file in ["intermediate.json", "root.json"] {
        let stored = std::fs::read_to_string(starlock.path("state/local-ca").join(file)).unwrap();
        let stored: Value = serde_json::from_str(&stored).unwrap();
        let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(place("ca.pem"), stored["certificate"].as_str().unwrap()).unwrap();
        std::fs::write(place("ca.key"), stored["key"].as_str().unwrap()).unwrap();
        let sign = |name: &str| {
            let subject = format!("subjectAltName=critical,DNS:{name}");
            output(
                "openssl",
                &[
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                    "-keyout",
                    &place("stolen.key"),
                    "-out",
                    &place("stolen.pem"),
                    "-days",
                    "2",
                    "-subj",
                    "/",
                    "-addext",
                    &subject,
                    "-addext",
                    "basicConstraints=critical,CA:FALSE",
                    "-CA",
                    &place("ca.pem"),
                    "-CAkey",
                    &place("ca.key"),
                ],
            );
            let leaf = std::fs::read_to_string(place("stolen.pem")).unwrap();
            verify(dir.path(), &root, &format!("{leaf}{}", stored["certificate"].as_str().unwrap()))
        };
        let fine = sign("other.localhost");
        assert!(fine.status.success(), "{file}: {}", text(&fine));
        let refused = sign("bank.example.com");
        assert!(!refused.status.success(), "{file}");
        assert!(text(&refused).contains("permitted subtree violation"), "{file}: {}", text(&refused));
    }
}

#[test]
fn names_outside_come_from_a_second_root_that_is_made_only_for_them() {
    let starlock = Starlock::start(ROUTES);
    assert!(!starlock.path("state/local-ca/root-for-any-name.json").exists());
    let reloaded = starlock.reload(&format!("{ROUTES}\"app.example.com\" = {{ respond = 204 }}\n"));
    assert!(reloaded.status.success(), "{}", text(&reloaded));
    starlock.serial_other_than("app.example.com", None);
    let printed = starlock.command(&["trust"]);
    let roots = String::from_utf8(printed.stdout.clone()).unwrap();
    assert_eq!(roots, local_root(&starlock));
    assert_eq!(roots.matches("-----BEGIN").count(), 2);
    let said = String::from_utf8_lossy(&printed.stderr).into_owned();
    assert!(said.contains("any name") && said.contains("private names and addresses only"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let second = &roots[roots.rfind("-----BEGIN").unwrap()..];
    let https = starlock.address("https");
    let verified = verify(dir.path(), second, &served_chain(https, "app.example.com"));
    assert!(verified.status.success(), "{}", text(&verified));
    assert!(!verify(dir.path(), second, &served_chain(https, "app.localhost")).status.success());
}

#[test]
fn the_root_can_be_had_before_the_first_start_and_is_the_one_that_signs() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), ROUTES);
    let printed = command(dir.path(), &["trust", "--print"]);
    assert!(printed.status.success(), "{}", text(&printed));
    let pem = String::from_utf8(printed.stdout).unwrap();
    std::fs::write(dir.path().join("x.pem"), &pem).unwrap();
    let file = dir.path().join("x.pem");
    let arguments = ["x509", "-noout", "-fingerprint", "-sha256", "-in", file.to_str().unwrap()];
    let fingerprint = output("openssl", &arguments);
    let fingerprint = fingerprint.trim().split('=').next_back().unwrap();
    assert!(String::from_utf8_lossy(&printed.stderr).contains(fingerprint));
    assert_eq!(String::from_utf8(command(dir.path(), &["trust"]).stdout).unwrap(), pem);
}

#[test]
fn no_root_is_made_where_nothing_is_signed_with_it() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), "[listen]\nhttp = []\n[routes]\n\"app.example.com\" = { respond = 200 }\n");
    let output = command(dir.path(), &["trust"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("no certificate is signed by the local CA"), "{}", text(&output));
    assert!(!dir.path().join("state").exists());
}

/// A root directory with Debian's own `update-ca-certificates` and what it needs to run.
fn image(root: &Path) {
    for dir in [
        "bin",
        "usr/sbin",
        "usr/bin",
        "etc/ssl/certs",
        "usr/local/share",
        "usr/share/ca-certificates",
        "tmp",
        "etc/ca-certificates/update.d",
        "dev",
    ] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    let other = rcgen::generate_simple_self_signed(vec!["other.test".to_owned()]).unwrap().cert.pem();
    std::fs::write(root.join("usr/share/ca-certificates/other.crt"), other).unwrap();
    std::fs::write(root.join("etc/ca-certificates.conf"), "other.crt\n").unwrap();
    std::fs::write(root.join("dev/null"), "").unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("busybox is installed; scripts/test does it");
    output("chroot", &[root.to_str().unwrap(), "/bin/busybox", "--install", "-s", "/bin"]);
    std::fs::copy("/usr/sbin/update-ca-certificates", root.join("usr/sbin/update-ca-certificates")).unwrap();
    // The script calls `openssl rehash`, whose libraries come along.
    let openssl = "/usr/bin/openssl";
    let libraries = output("ldd", &[openssl]);
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for file in files.chain([openssl]) {
        let target = root.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(file, &target).unwrap();
    }
}

#[test]
fn a_system_takes_the_root_over_and_gives_it_back() {
    let starlock = Starlock::start(ROUTES);
    let image_dir = tempfile::tempdir().unwrap();
    image(image_dir.path());
    let root = image_dir.path().to_str().unwrap();
    let trust = |verb: &str| {
        let output = starlock.command(&["trust", verb, "--root", root]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let bundle =
        || std::fs::read_to_string(image_dir.path().join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    let said = trust("--install");
    assert!(said.contains("done") && said.contains("ran /usr/sbin/update-ca-certificates inside"), "{said}");
    assert!(bundle().contains(local_root(&starlock).trim()));
    let dir = tempfile::tempdir().unwrap();
    let chain = served_chain(starlock.address("https"), "app.localhost");
    assert!(verify(dir.path(), &bundle(), &chain).status.success());
    let again = trust("--install");
    assert!(again.contains("unchanged") && !again.contains("done"), "{again}");
    let said = trust("--uninstall");
    assert!(said.contains("removed "), "{said}");
    assert_eq!(bundle().matches("BEGIN").count(), 1, "the image's own root stays");
    let links = std::fs::read_dir(image_dir.path().join("etc/ssl/certs")).unwrap();
    let ours =
        links.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("starlock"));
    assert_eq!(ours.count(), 0, "no dangling link is left");
    let again = trust("--uninstall");
    assert!(again.contains("unchanged") && !again.contains("done"), "{again}");

    let empty = tempfile::tempdir().unwrap();
    let output = starlock.command(&["trust", "--install", "--root", empty.path().to_str().unwrap()]);
    assert!(text(&output).contains("install the package ca-certificates"), "{}", text(&output));
}

#[test]
fn an_update_that_failed_is_made_up_for_by_the_next_run() {
    let starlock = Starlock::start(ROUTES);
    let image_dir = tempfile::tempdir().unwrap();
    image(image_dir.path());
    let trust = |verb: &str| starlock.command(&["trust", verb, "--root", image_dir.path().to_str().unwrap()]);
    let program = image_dir.path().join("usr/sbin/update-ca-certificates");
    let good = std::fs::read_to_string(&program).unwrap();
    let breaks = || std::fs::write(&program, "#!/bin/sh\necho no space left >&2\nexit 1\n").unwrap();
    let mends = || std::fs::write(&program, &good).unwrap();
    let ours = || {
        let bundle = std::fs::read_to_string(image_dir.path().join("etc/ssl/certs/ca-certificates.crt"));
        bundle.unwrap_or_default().contains(local_root(&starlock).trim())
    };
    let fails = |verb: &str| {
        breaks();
        let output = trust(verb);
        assert!(!output.status.success() && text(&output).contains("no space left"), "{}", text(&output));
        mends();
    };
    let works = |verb: &str| {
        let output = trust(verb);
        assert!(output.status.success() && text(&output).contains("ran /usr/sbin/"), "{}", text(&output));
    };
    fails("--install");
    assert!(!ours());
    works("--install");
    assert!(ours());
    fails("--uninstall");
    assert!(ours());
    works("--uninstall");
    assert!(!ours());

    // A run that was killed between the file and the program.
    works("--install");
    let anchors = image_dir.path().join("usr/local/share/ca-certificates");
    let file = std::fs::read_dir(&anchors).unwrap().next().unwrap().unwrap().path();
    let pem = std::fs::read(&file).unwrap();
    works("--uninstall");
    std::fs::write(&file, pem).unwrap();
    works("--install");
    assert!(ours());
    assert!(!text(&trust("--install")).contains("done"), "and then there is nothing to do");
}

/// Under sudo, with a umask that lets nobody read what is made, `ada` keeps her own database.
#[test]
fn the_browsers_of_whoever_called_sudo_take_the_root_whatever_the_umask() {
    let starlock = Starlock::start(ROUTES);
    let home = tempfile::tempdir().unwrap();
    let database = database(&home.path().join(".pki/nssdb"));
    std::fs::write(
        home.path().join("passwd"),
        format!("root:x:0:0:root:/root:/bin/sh\nada:x:65534:65534::{}:/bin/sh\n", home.path().display()),
    )
    .unwrap();
    output("chown", &["-R", "65534:65534", home.path().to_str().unwrap()]);
    let usual = binary(&starlock.path(""));
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg("mount --bind \"$1/passwd\" /etc/passwd && umask 077 && exec \"$2\" trust --install --only browsers")
        .args([std::ffi::OsStr::new("sh"), home.path().as_os_str(), usual.get_program()])
        .env_clear()
        .envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .envs([("SUDO_USER", "ada"), ("SUDO_UID", "65534"), ("SUDO_GID", "65534")]);
    let done = command.output().unwrap();
    assert!(done.status.success() && text(&done).contains("added as a root"), "{}", text(&done));
    assert!(output("certutil", &["-d", &database, "-L"]).contains("Starlock local CA"));
}

fn database(dir: &Path) -> String {
    std::fs::create_dir_all(dir).unwrap();
    let database = format!("sql:{}", dir.display());
    output("certutil", &["-d", &database, "-N", "--empty-password"]);
    database
}

#[test]
fn browsers_take_the_root_over_and_give_it_back() {
    let starlock = Starlock::start(ROUTES);
    let nothing = starlock.command(&["trust", "--install", "--only", "browsers"]);
    assert!(text(&nothing).contains("start the browser once"), "{}", text(&nothing));
    let databases = [".pki/nssdb", ".mozilla/firefox/x1.default", "snap/firefox/common/.mozilla/firefox/x2"]
        .map(|dir| database(&starlock.path(dir)));
    let trust = |verb: &str| {
        let output = starlock.command(&["trust", verb, "--only", "browsers"]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let listed = |database: &String| output("certutil", &["-d", database, "-L"]);
    assert_eq!(trust("--install").matches("done").count(), 3);
    for database in &databases {
        let listed = listed(database);
        let line = listed.lines().find(|line| line.contains("Starlock local CA")).unwrap();
        assert!(line.trim_end().ends_with("C,,"), "{line}");
    }
    assert_eq!(trust("--install").matches("unchanged").count(), 3);
    assert_eq!(trust("--uninstall").matches("done").count(), 3);
    assert!(databases.iter().all(|database| !listed(database).contains("Starlock")));
    assert_eq!(trust("--uninstall").matches("unchanged").count(), 3);
}

#[test]
fn chromium_opens_the_page_once_the_root_is_trusted() {
    let starlock = Starlock::start(ROUTES);
    let home = starlock.path("");
    database(&home.join(".pki/nssdb"));
    let url = format!("https://app.localhost:{}/", starlock.address("https").port());
    let page = |profile: &str| {
        let output = Command::new("timeout")
            .args([
                "-k",
                "5",
                "120",
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args(["--disable-dev-shm-usage", "--disable-background-networking", "--dump-dom"])
            .arg(format!("--user-data-dir={}", home.join(profile).display()))
            .arg(&url)
            .env("HOME", &home)
            .output()
            .unwrap();
        text(&output)
    };
    let refused = page("before");
    assert!(!refused.contains("hello from starlock"), "{refused}");
    let installed = starlock.command(&["trust", "--install", "--only", "browsers"]);
    assert!(installed.status.success(), "{}", text(&installed));
    let shown = page("after");
    assert!(shown.contains("hello from starlock"), "{shown}");
}
