//! What certbot, Caddy, acme.sh and Traefik keep is served on without any order, and their accounts are used.

use std::path::Path;
use std::process::{Command, Output};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;

use crate::issuance::builtin;
use crate::support::pebble::{Options, Pebble};
use crate::support::process::{Process, output};
use crate::support::starlock::{Starlock, command, write_config};
use crate::support::{eventually, free_port, local};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Pebble that believes everybody: whoever kept these files before is not what is tested.
fn believing(validity: u64) -> (Pebble, std::net::SocketAddr) {
    let responder = local(free_port());
    let mut options = Options::with_dns(responder).valid_for(validity);
    options.nonce_reject = 0;
    options.environment = vec![("PEBBLE_VA_ALWAYS_VALID".into(), "1".into())];
    (Pebble::start(options), responder)
}

fn serial(pem: &Path) -> String {
    let shown = output("openssl", &["x509", "-noout", "-serial", "-in", pem.to_str().unwrap()]);
    let digits = shown.trim().trim_start_matches("serial=").to_ascii_lowercase();
    digits.trim_start_matches('0').to_owned()
}

/// The URL of the only account below certbot's directory.
fn certbots_account(theirs: &Path) -> String {
    let found = output("find", &[theirs.join("accounts").to_str().unwrap(), "-name", "regr.json"]);
    let text = std::fs::read_to_string(found.trim()).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["uri"].as_str().unwrap().to_owned()
}

fn issued(pebble: &Pebble) -> usize {
    pebble.log().matches("Issued certificate serial").count()
}

/// The row of the table that names `name`.
fn row<'a>(said: &'a str, what: &str, name: &str) -> &'a str {
    said.lines()
        .find(|line| line.contains(what) && line.contains(name))
        .unwrap_or_else(|| panic!("{name}: {said}"))
}

#[test]
fn certbots_certificates_are_served_without_an_order() {
    let (pebble, responder) = believing(3600);
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("letsencrypt");
    let certbot = |names: &[&str]| {
        let port = free_port().to_string();
        let mut command = Command::new("certbot");
        command.args([
            "certonly",
            "--non-interactive",
            "--agree-tos",
            "--email",
            "ops@example.test",
            "--standalone",
        ]);
        command.args([
            "--http-01-address",
            "127.0.0.1",
            "--http-01-port",
            &port,
            "--server",
            &pebble.directory_url,
        ]);
        for (option, name) in
            [("--config-dir", "letsencrypt"), ("--work-dir", "work"), ("--logs-dir", "logs")]
        {
            command.arg(option).arg(dir.path().join(name));
        }
        command.args(names.iter().flat_map(|name| ["-d", name]));
        let output = command.env("REQUESTS_CA_BUNDLE", &pebble.ca_root).output();
        let output = output.expect("certbot is installed; scripts/test does it");
        assert!(output.status.success(), "{}", text(&output));
    };
    certbot(&["one.test", "two.test"]);
    certbot(&["other.test"]);
    let config = format!(
        "{}\n[[certificates]]\nnames = [\"two.test\", \"one.test\"]\n",
        builtin(&pebble, responder, "\"one.test\" = { respond = 204 }")
    );
    write_config(dir.path(), &config);
    let import = |more: &[&str]| {
        let output = command(dir.path(), &[&["import", "certbot", theirs.to_str().unwrap()], more].concat());
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let said = import(&["--dry-run"]);
    assert!(row(&said, "certificate", "one.test").starts_with("would take"), "{said}");
    assert!(std::fs::read_dir(dir.path().join("state/certs")).is_err(), "nothing was written");
    let said = import(&[]);
    assert!(row(&said, "certificate", "one.test, two.test").starts_with("taken"), "{said}");
    assert!(row(&said, "certificate", "other.test").starts_with("left"), "{said}");
    assert!(said.contains("[[certificates]]\nnames = [\"other.test\"]"), "{said}");
    assert!(row(&said, "account", "localhost").starts_with("left") && said.contains("RSA"), "{said}");
    assert!(import(&[]).contains("is held already"));
    // Its account has an RSA key: the CA gives it another one, if that is asked for.
    assert!(
        said.contains("with --roll-keys") && said.contains("first order registers a new account"),
        "{said}"
    );
    let url = certbots_account(&theirs);
    let said = import(&["--roll-keys", "--dry-run"]);
    assert!(row(&said, "account", "localhost").starts_with("would take"), "{said}");
    assert!(!dir.path().join("state/accounts").exists(), "nothing was written, and nobody was asked");
    let said = import(&["--roll-keys"]);
    assert!(row(&said, "account", "localhost").starts_with("taken"), "{said}");
    assert!(said.contains(&format!("{url}, with a new key")), "{said}");
    assert!(import(&["--roll-keys"]).contains("there is an account at this CA already"));

    let before = issued(&pebble);
    let starlock =
        Starlock::start(&config.replace(
            "[log]",
            &format!("[storage]\npath = \"{}\"\n[log]", dir.path().join("state").display()),
        ));
    let served = starlock.serial_other_than("one.test", None);
    assert_eq!(served.trim_start_matches('0'), serial(&theirs.join("live/one.test/cert.pem")));
    // What nobody had before is ordered, and that alone.
    starlock.serial_other_than("example.test", None);
    assert_eq!(issued(&pebble), before + 1);
    // Orders are signed with the new key, under the old URL.
    let renewed = starlock.command(&["certs", "renew", "one.test", "--force"]);
    assert!(renewed.status.success(), "{}", text(&renewed));
    starlock.serial_other_than("one.test", Some(&served));
    let listed = starlock.command(&["accounts", "list", "--json"]);
    assert!(text(&listed).contains(&url), "{}", text(&listed));
    let running = command(dir.path(), &["import", "certbot", theirs.to_str().unwrap()]);
    assert!(
        !running.status.success() && text(&running).contains("Starlock is running"),
        "{}",
        text(&running)
    );
}

#[test]
fn caddys_certificate_is_served_and_renewed_by_its_account() {
    let (pebble, responder) = believing(60);
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("caddy");
    let (http, https) = (free_port(), free_port());
    let caddy = json!({
        "admin": { "disabled": true },
        "storage": { "module": "file_system", "root": theirs },
        "apps": {
            "http": { "http_port": http, "https_port": https, "servers": { "one": {
                "listen": [format!("127.0.0.1:{https}")],
                "automatic_https": { "disable_redirects": true },
                "routes": [{ "match": [{ "host": ["caddy.test"] }], "handle": [{ "handler": "static_response", "body": "x" }] }],
            }}},
            "tls": { "automation": { "policies": [{ "issuers": [{
                "module": "acme", "ca": pebble.directory_url, "email": "ops@example.test",
                "trusted_roots_pem_files": [pebble.ca_root],
            }]}]}},
        },
    });
    let file = dir.path().join("caddy.json");
    std::fs::write(&file, caddy.to_string()).unwrap();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/sid/usr/bin/caddy");
    let mut start = Command::new(program);
    start.arg("run").arg("--config").arg(&file).env("HOME", dir.path());
    let mut process = Process::start(&mut start, &dir.path().join("caddy.log"));
    let name = pebble.directory_url.trim_start_matches("https://").replace([':', '/'], "-");
    let kept = theirs.join("certificates").join(&name).join("caddy.test/caddy.test.crt");
    eventually("Caddy has a certificate", || kept.exists().then_some(()));
    process.kill();

    let config = builtin(&pebble, responder, "\"caddy.test\" = { respond = 204 }");
    write_config(dir.path(), &config);
    let output = command(dir.path(), &["import", "caddy", theirs.to_str().unwrap()]);
    let said = text(&output);
    assert!(row(&said, "certificate", "caddy.test").starts_with("taken"), "{said}");
    assert!(row(&said, "account", &name).starts_with("taken") && said.contains("/my-account/"), "{said}");
    let accounts = || pebble.log().matches("accounts in memory").count();
    let (before, orders) = (accounts(), issued(&pebble));
    let starlock =
        Starlock::start(&config.replace(
            "[log]",
            &format!("[storage]\npath = \"{}\"\n[log]", dir.path().join("state").display()),
        ));
    let first = starlock.serial_other_than("caddy.test", None);
    let mine = starlock.certificates();
    assert_eq!(first.trim_start_matches('0'), serial(&kept), "{mine:?}");
    starlock.serial_other_than("caddy.test", Some(&first));
    assert!(issued(&pebble) > orders);
    assert_eq!(accounts(), before, "no account was registered");
}

/// An account's key signs requests and is of one kind; a certificate's key is only served, and programs make all kinds.
#[test]
fn a_certificate_is_served_whatever_its_key_is() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("letsencrypt");
    let names = ["rsa.test", "pkcs1.test", "p384.test"];
    for name in names {
        let live = theirs.join("live").join(name);
        std::fs::create_dir_all(&live).unwrap();
        let file = |name: &str| live.join(name).to_str().unwrap().to_owned();
        let (chain, key, made) = (file("fullchain.pem"), file("privkey.pem"), file("made.pem"));
        let kind: &[&str] = match name {
            "p384.test" => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
            _ => &["-newkey", "rsa:2048"],
        };
        let (subject, san) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
        let rest =
            ["-nodes", "-days", "30", "-subj", &subject, "-addext", &san, "-keyout", &made, "-out", &chain];
        output("openssl", &[&["req", "-x509"], kind, &rest].concat());
        // As certbot and others wrote them: PKCS#8, PKCS#1, SEC 1.
        match name {
            "rsa.test" => drop(std::fs::copy(&made, &key).unwrap()),
            "pkcs1.test" => drop(output("openssl", &["rsa", "-traditional", "-in", &made, "-out", &key])),
            _ => drop(output("openssl", &["ec", "-in", &made, "-out", &key])),
        }
        let begin = std::fs::read_to_string(&key).unwrap().lines().next().unwrap_or_default().to_owned();
        let form = match name {
            "rsa.test" => "-----BEGIN PRIVATE KEY-----",
            "pkcs1.test" => "-----BEGIN RSA PRIVATE KEY-----",
            _ => "-----BEGIN EC PRIVATE KEY-----",
        };
        assert_eq!(begin, form);
        put(
            &theirs.join(format!("renewal/{name}.conf")),
            "server = https://ca.example.invalid/directory\n[renewalparams]\n",
        );
    }
    let routes: String = names.iter().map(|name| format!("\"{name}\" = {{ respond = 204 }}\n")).collect();
    let state = dir.path().join("state");
    let config = format!(
        "[acme]\nca = \"https://ca.example.invalid/directory\"\n[dns]\nprovider = \"exec\"\nprogram = \"/bin/true\"\n\
         [listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[storage]\npath = \"{}\"\n[routes]\n{routes}",
        state.display()
    );
    write_config(dir.path(), &config);
    let said = text(&command(dir.path(), &["import", "certbot", theirs.to_str().unwrap()]));
    assert!(said.contains("3 of 3 taken"), "{said}");

    let starlock = Starlock::start(&config);
    let https = starlock.address("https").to_string();
    for (name, signed_by) in names.into_iter().zip(["RSA-PSS", "RSA-PSS", "ECDSA"]) {
        let client = Command::new("openssl")
            .args(["s_client", "-connect", &https, "-servername", name])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let shown = text(&client);
        let signature = shown.lines().find(|line| line.starts_with("Peer signature type:")).unwrap_or(&shown);
        assert!(signature.ends_with(signed_by), "{name}: {shown}");
        let pem = dir.path().join(format!("{name}.pem"));
        let begin = shown.find("-----BEGIN CERTIFICATE-----").unwrap_or_else(|| panic!("{name}: {shown}"));
        std::fs::write(&pem, &shown[begin..]).unwrap();
        assert_eq!(serial(&pem), serial(&theirs.join("live").join(name).join("fullchain.pem")), "{name}");
    }
}

struct Made {
    chain: String,
    key: KeyPair,
}

fn made(names: &[&str], from_days: i64, to_days: i64) -> Made {
    let key = KeyPair::generate().unwrap();
    let mut params =
        CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    params.not_before = time::OffsetDateTime::now_utc() + time::Duration::days(from_days);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(to_days);
    Made { chain: params.self_signed(&key).unwrap().pem(), key }
}

const CONFIG: &str = "[acme]\nca = \"https://acme.example/directory\"\n[dns]\nprovider = \"exec\"\nprogram = \"/bin/true\"\n\
    [listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n[routes]\n\"good.test\" = { respond = 204 }\n\"foreign.test\" = { respond = 204 }\n\
    \"mixed.test\" = { respond = 204 }\n\"old.test\" = { respond = 204 }\n\"app.localhost\" = { respond = 204 }\n";

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn acme_sh_is_read_and_every_refusal_has_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), CONFIG);
    let theirs = dir.path().join("acme.sh");
    let other = KeyPair::generate().unwrap();
    let mut wrong = made(&["mixed.test"], -1, 50);
    wrong.key = other;
    for (name, certificate, api) in [
        ("good.test", made(&["good.test"], -1, 50), "https://acme.example/directory"),
        ("foreign.test", made(&["foreign.test"], -1, 50), "https://acme.zerossl.com/v2/DV90"),
        ("mixed.test", wrong, "https://acme.example/directory"),
        ("old.test", made(&["old.test"], -90, -1), "https://acme.example/directory"),
        ("app.localhost", made(&["app.localhost"], -1, 50), "https://acme.example/directory"),
        ("more.test", made(&["more.test", "*.more.test"], -1, 50), "https://acme.example/directory"),
    ] {
        let dir = theirs.join(format!("{name}_ecc"));
        put(&dir.join("fullchain.cer"), &certificate.chain);
        put(&dir.join(format!("{name}.key")), &certificate.key.serialize_pem());
        put(
            &dir.join(format!("{name}.conf")),
            &format!("Le_Domain='{name}'\nLe_API='{api}'\nLe_Keylength='ec-256'\n"),
        );
    }
    put(&theirs.join("broken.test/broken.test.conf"), "Le_Domain='broken.test'\n");
    let ca = theirs.join("ca/acme.example/directory");
    std::fs::create_dir_all(&ca).unwrap();
    let key = ca.join("account.key");
    output(
        "openssl",
        &["ecparam", "-name", "prime256v1", "-noout", "-genkey", "-out", key.to_str().unwrap()],
    );
    assert!(std::fs::read_to_string(&key).unwrap().contains("BEGIN EC PRIVATE KEY"));
    put(&ca.join("ca.conf"), "ACCOUNT_URL='https://acme.example/acct/7'\nCA_KEY_HASH='x='\n");

    let output = command(dir.path(), &["import", "acme.sh", theirs.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    for (what, name, word, why) in [
        ("certificate", "good.test", "taken", "until 20"),
        ("certificate", "foreign.test", "left", "it comes from https://acme.zerossl.com/v2/DV90"),
        ("certificate", "old.test", "left", "it expired at"),
        ("certificate", "app.localhost", "left", "the local CA signs"),
        ("certificate", "more.test", "left", "exactly these names"),
        ("account", "acme.example", "taken", "https://acme.example/acct/7"),
    ] {
        let line = row(&said, what, name);
        assert!(line.starts_with(word) && line.contains(why) || said.contains(why), "{name}: {said}");
        assert!(line.starts_with(word), "{name}: {said}");
    }
    assert!(said.contains("does not belong to the certificate") && said.contains("broken.test"), "{said}");
    assert!(said.contains("names = [\"more.test\", \"*.more.test\"]"), "{said}");
    assert!(!said.contains("names = [\"old.test\"]"), "{said}");
    let nothing = command(dir.path(), &["import", "acme.sh", dir.path().join("state").to_str().unwrap()]);
    assert!(!nothing.status.success() && text(&nothing).contains("acme.sh"), "{}", text(&nothing));
}

#[test]
fn traefiks_file_is_read_in_both_versions() {
    let encode = |text: &str| BASE64_STANDARD.encode(text);
    let certificate = |certificate: &Made, lower: bool| {
        let (chain, key) = (encode(&certificate.chain), encode(&certificate.key.serialize_pem()));
        match lower {
            true => {
                json!({ "domain": { "main": "good.test" }, "certificate": chain, "key": key, "Store": "default" })
            }
            false => {
                json!({ "Domain": { "Main": "good.test", "SANs": null }, "Certificate": chain, "Key": key })
            }
        }
    };
    let scratch = tempfile::tempdir().unwrap();
    let rsa = scratch.path().join("rsa.der");
    output("openssl", &["genrsa", "-out", scratch.path().join("rsa.pem").to_str().unwrap(), "2048"]);
    output(
        "openssl",
        &[
            "rsa",
            "-in",
            scratch.path().join("rsa.pem").to_str().unwrap(),
            "-traditional",
            "-outform",
            "DER",
            "-out",
            rsa.to_str().unwrap(),
        ],
    );
    let rsa = BASE64_STANDARD.encode(std::fs::read(rsa).unwrap());
    let p256 =
        BASE64_STANDARD.encode(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_der());
    for (lower, key, word) in [(true, &rsa, "left"), (false, &p256, "taken")] {
        let dir = tempfile::tempdir().unwrap();
        write_config(dir.path(), CONFIG);
        let resolver = json!({
            "Account": {
                "Email": "ops@example.test",
                "Registration": { "body": { "status": "valid" }, "uri": "https://acme.example/acct/9" },
                "PrivateKey": key,
                "KeyType": "4096",
            },
            "Certificates": [certificate(&made(&["good.test"], -1, 50), lower)],
        });
        let file = dir.path().join("acme.json");
        std::fs::write(&file, if lower { json!({ "le": resolver }) } else { resolver }.to_string()).unwrap();
        let output = command(dir.path(), &["import", "traefik", file.to_str().unwrap()]);
        let said = text(&output);
        assert!(row(&said, "certificate", "good.test").starts_with("taken"), "{said}");
        assert!(row(&said, "account", "https://acme.example/acct/9").starts_with(word), "{said}");
        assert_eq!(said.contains("its key is RSA"), lower, "{said}");
        let next = ["the first order registers a new account", "starlock accounts list"];
        assert!(next.iter().all(|words| said.contains(words) == lower), "{said}");
        assert!(!said.contains(&key[..40]), "no key is shown");
    }
}

#[test]
fn an_account_of_certbot_with_an_ecdsa_key_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), CONFIG);
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    use rcgen::PublicKeyData;
    let der = pair.serialize_der();
    // The private number lies behind `04 20` in PKCS#8's ECPrivateKey.
    let start = der.windows(5).position(|w| w == [2, 1, 1, 4, 32]).unwrap() + 5;
    let base64 = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let point = pair.der_bytes();
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": base64(&point[1..33]), "y": base64(&point[33..]), "d": base64(&der[start..start + 32]) });
    let account = dir.path().join("le/accounts/acme.example/directory/0123456789abcdef");
    put(&account.join("private_key.json"), &jwk.to_string());
    put(&account.join("regr.json"), r#"{"body": {}, "uri": "https://acme.example/acct/3"}"#);
    put(&account.join("meta.json"), r#"{"creation_host": "x"}"#);
    let said = text(&command(dir.path(), &["import", "certbot", dir.path().join("le").to_str().unwrap()]));
    assert!(row(&said, "account", "acme.example/directory").starts_with("taken"), "{said}");
    let kept =
        std::fs::read_to_string(dir.path().join("state/accounts/acme.example-directory.json")).unwrap();
    assert!(kept.contains("https://acme.example/acct/3"), "{kept}");
    let again = text(&command(dir.path(), &["import", "certbot", dir.path().join("le").to_str().unwrap()]));
    assert!(again.contains("there is an account at this CA already"), "{again}");
}
