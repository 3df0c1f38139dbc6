//! Certificates that somebody else writes into files.

use std::path::Path;

use crate::support::eventually;
use crate::support::starlock::Starlock;
use crate::support::web::{curl, served_chain};

/// Writes a self-signed pair for `host` into `dir`; returns its serial in hexadecimal.
fn write_pair(dir: &Path, host: &str, days: i64) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(100);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    let cert = params.self_signed(&key).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    // As most renewers do: both beside their places, then moved there one after the other.
    for (name, text) in [("tls.crt", cert.pem()), ("tls.key", key.serialize_pem())] {
        std::fs::write(dir.join(format!("{name}.new")), text).unwrap();
        std::fs::rename(dir.join(format!("{name}.new")), dir.join(name)).unwrap();
    }
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert.pem().as_bytes()).unwrap();
    let digits: String = pem.parse_x509().unwrap().raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    digits.strip_prefix("00").unwrap_or(&digits).to_owned()
}

fn config(names: &str, dir: &str) -> String {
    format!(
        r#"
[listen]
https = ["127.0.0.1:0"]
http = []

[[certificates]]
{names}
cert = "{dir}/tls.crt"
key = "{dir}/tls.key"

[routes]
"files.test" = {{ respond = 204 }}
"#
    )
}

#[test]
fn a_pair_that_changes_is_served_and_a_bad_one_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let first = write_pair(dir.path(), "files.test", 30);
    let starlock = Starlock::start(&config("", dir.path().to_str().unwrap()));
    assert_eq!(starlock.serial_other_than("files.test", None), first);
    let all = starlock.certificates();
    assert_eq!(all.len(), 1, "the route's host is covered by the files: {all:?}");
    assert_eq!((all[0]["issuer"].as_str(), all[0]["state"].as_str()), (Some("files"), Some("valid")));
    assert!(all[0]["not_after"].is_string());

    let second = write_pair(dir.path(), "files.test", 60);
    assert_eq!(starlock.serial_other_than("files.test", Some(&first)), second);

    std::fs::write(dir.path().join("tls.crt"), "nonsense").unwrap();
    let error =
        eventually("it is told", || starlock.certificates()[0]["last_error"].as_str().map(ToOwned::to_owned));
    assert!(error.contains("tls.crt"), "{error}");
    assert_eq!(starlock.serial_other_than("files.test", None), second, "the last good one is served");
    let reloaded = starlock.command(&["reload"]);
    assert!(!reloaded.status.success(), "{reloaded:?}");
    let third = write_pair(dir.path(), "files.test", 60);
    assert_eq!(starlock.serial_other_than("files.test", Some(&second)), third);
    eventually("it is mended", || starlock.certificates()[0]["last_error"].is_null().then_some(()));

    let refused = starlock.command(&["certs", "renew", "files.test"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("whoever writes its files"), "{refused:?}");
}

#[test]
fn a_kubernetes_secret_is_swapped_by_its_link() {
    let dir = tempfile::tempdir().unwrap();
    let link = |to: &str| {
        let fresh = dir.path().join("..data_tmp");
        std::os::unix::fs::symlink(to, &fresh).unwrap();
        std::fs::rename(fresh, dir.path().join("..data")).unwrap();
    };
    let first = write_pair(&dir.path().join("..2026_01"), "files.test", 30);
    link("..2026_01");
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), dir.path().join(file)).unwrap();
    }
    let starlock = Starlock::start(&config("names = [\"files.test\"]", dir.path().to_str().unwrap()));
    assert_eq!(starlock.serial_other_than("files.test", None), first);
    let second = write_pair(&dir.path().join("..2026_02"), "files.test", 60);
    link("..2026_02");
    std::fs::remove_dir_all(dir.path().join("..2026_01")).unwrap();
    assert_eq!(starlock.serial_other_than("files.test", Some(&first)), second);
    // One that is for something else is not taken.
    write_pair(&dir.path().join("..2026_03"), "other.test", 60);
    link("..2026_03");
    let error =
        eventually("it is told", || starlock.certificates()[0]["last_error"].as_str().map(ToOwned::to_owned));
    assert!(error.contains("other.test"), "{error}");
    let chain = served_chain(starlock.address("https"), "files.test");
    assert!(curl(starlock.address("https"), &chain, "https://files.test/", &[]).is_ok());
    assert_eq!(starlock.serial_other_than("files.test", None), second);
}

#[test]
fn files_that_cannot_be_used_are_an_error_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("starlock.toml");
    let check = |names: &str, more: &[&str]| {
        std::fs::write(&path, config(names, dir.path().to_str().unwrap())).unwrap();
        let output = crate::support::starlock::command(dir.path(), &[&["check"], more].concat());
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (code, text) = check("", &[]);
    assert!(code == Some(78) && text.contains("cannot read") && text.contains("tls.crt"), "{text}");
    let named = "names = [\"files.test\"]";
    assert_eq!(check(named, &["--offline"]).0, Some(0), "the file is needed only to serve");
    let refused = |why: &str| {
        let (code, text) = check(named, &[]);
        assert!(code == Some(78) && text.contains(why) && text.contains("tls.crt"), "{text}");
    };
    refused("cannot read");
    let output = crate::support::starlock::command(dir.path(), &["run"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("tls.crt"), "{text}");
    write_pair(dir.path(), "other.test", 60);
    refused("is for other.test and not for all of files.test");
    let key = std::fs::read(dir.path().join("tls.key")).unwrap();
    write_pair(dir.path(), "files.test", 60);
    let (code, text) = check(named, &[]);
    let from = format!("\n    from {}, which someone else renews", dir.path().join("tls.crt").display());
    assert!(code == Some(0) && text.contains(&from), "{text}");
    std::fs::write(dir.path().join("tls.key"), key).unwrap();
    refused("does not belong");
    write_pair(dir.path(), "other.test", 60);
    let output = crate::support::starlock::command(dir.path(), &["run"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("not for all of"), "{text}");
}
