//! A real Pebble: an ACME server that means it. One in five nonces is refused.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

use super::process::{Process, output};
use super::{eventually, free_port};

pub struct Pebble {
    pub directory_url: String,
    /// Trust this for the directory.
    pub ca_root: PathBuf,
    management: String,
    acme_port: u16,
    management_port: u16,
    options: Options,
    process: Process,
    /// Last: the process writes its log there to its end.
    dir: TempDir,
}

#[derive(Clone)]
pub struct Options {
    /// Who Pebble asks; plain DNS over UDP and TCP.
    pub dns: SocketAddr,
    /// Lifetime of certificates, in seconds.
    pub validity: u64,
    /// Percent of authorizations that are reused.
    pub authz_reuse: u8,
    /// Percent of nonces that are refused.
    pub nonce_reject: u8,
    /// The Pebble of a newer Debian: ARI, profiles, dns-account-01, dns-persist-01.
    pub newer: bool,
    /// Where it looks for http-01 and tls-alpn-01.
    pub http_port: u16,
    pub tls_port: u16,
    /// Key identifier and HMAC key (base64url) of the external account that it demands.
    pub external_account: Option<(String, String)>,
    /// Names and lifetimes in seconds of its profiles (newer only), beside `default`.
    pub profiles: Vec<(String, u64)>,
    /// What it calls itself in CAA records.
    pub caa_identities: Vec<String>,
    /// Further variables: `PEBBLE_ALTERNATE_ROOTS`, `PEBBLE_CHAIN_LENGTH`.
    pub environment: Vec<(String, String)>,
}

impl Options {
    pub fn with_dns(dns: SocketAddr) -> Self {
        Self {
            dns,
            validity: 3600,
            authz_reuse: 0,
            nonce_reject: 20,
            newer: false,
            http_port: 5002,
            tls_port: 5001,
            external_account: None,
            profiles: Vec::new(),
            caa_identities: Vec::new(),
            environment: Vec::new(),
        }
    }

    pub fn valid_for(mut self, seconds: u64) -> Self {
        self.validity = seconds;
        self
    }
}

impl Pebble {
    pub fn start(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (acme_port, management_port) = (free_port(), free_port());
        let ca_root = directory_certificate(&dir);
        let process = spawn(&dir, &options, acme_port, management_port);
        let pebble = Self {
            directory_url: format!("https://localhost:{acme_port}/dir"),
            ca_root,
            management: format!("https://localhost:{management_port}"),
            acme_port,
            management_port,
            options,
            process,
            dir,
        };
        pebble.wait();
        pebble
    }

    /// A new process on the same ports: it has forgotten every account, order and root.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(&self.dir, &self.options, self.acme_port, self.management_port);
        self.wait();
    }

    pub fn stop(&mut self) {
        self.process.kill();
    }

    /// Where its own certificate and key are.
    pub fn directory(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The root that issued certificates chain to, as PEM.
    pub fn root(&self) -> String {
        self.manage("/roots/0").expect("Pebble serves its root")
    }

    /// A root or an alternate one, as PEM.
    pub fn alternate_root(&self, index: u32) -> Option<String> {
        self.manage(&format!("/roots/{index}"))
    }

    /// What ARI says from now on of a certificate, word for word (newer only).
    pub fn set_renewal_info(&self, leaf_pem: &str, response: &str) {
        let body = serde_json::json!({ "Certificate": leaf_pem, "ARIResponse": response }).to_string();
        let output = Command::new("curl")
            .args(["-sSf", "--max-time", "5", "--cacert"])
            .arg(&self.ca_root)
            .args(["--data-binary", &body, &format!("{}/set-renewal-info/", self.management)])
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{output:?}");
    }

    /// `Valid`, `Revoked`, or `None` for a serial that Pebble does not know.
    pub fn status_of(&self, serial: &str) -> Option<String> {
        let answer = self.manage(&format!("/cert-status-by-serial/{serial}"))?;
        let json: serde_json::Value = serde_json::from_str(&answer).ok()?;
        Some(json["Status"].as_str()?.to_owned())
    }

    fn wait(&self) {
        eventually("Pebble answers", || self.manage("/roots/0"));
        eventually("Pebble's directory answers", || self.get(&self.directory_url));
    }

    fn manage(&self, path: &str) -> Option<String> {
        self.get(&format!("{}{path}", self.management))
    }

    fn get(&self, url: &str) -> Option<String> {
        let output = Command::new("curl")
            .args(["-sf", "--max-time", "5", "--cacert"])
            .arg(&self.ca_root)
            .arg(url)
            .output();
        let output = output.expect("curl is installed");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn spawn(dir: &TempDir, options: &Options, acme_port: u16, management_port: u16) -> Process {
    let mut config = serde_json::json!({ "pebble": {
        "listenAddress": format!("127.0.0.1:{acme_port}"),
        "managementListenAddress": format!("127.0.0.1:{management_port}"),
        "certificate": dir.path().join("directory.pem"),
        "privateKey": dir.path().join("directory.key"),
        "httpPort": options.http_port,
        "tlsPort": options.tls_port,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": options.external_account.is_some(),
    }});
    let section = &mut config["pebble"];
    section["caaIdentities"] = options.caa_identities.clone().into();
    if options.newer {
        let default = [("default".to_owned(), options.validity)];
        section["profiles"] = default
            .iter()
            .chain(&options.profiles)
            .map(|(name, validity)| {
                let profile = serde_json::json!({ "description": name, "validityPeriod": validity });
                (name.clone(), profile)
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
    } else {
        section["certificateValidityPeriod"] = options.validity.into();
    }
    if let Some((kid, hmac)) = &options.external_account {
        section["externalAccountMACKeys"] = serde_json::json!({ kid: hmac });
    }
    let file = dir.path().join("pebble.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new(if options.newer { newer_program() } else { "pebble".into() });
    command
        .arg("-config")
        .arg(&file)
        .args(["-dnsserver", &options.dns.to_string()])
        .env("PEBBLE_VA_NOSLEEP", "1")
        .env("PEBBLE_WFE_NONCEREJECT", options.nonce_reject.to_string())
        .env("PEBBLE_AUTHZREUSE", options.authz_reuse.to_string())
        .envs(options.environment.iter().cloned());
    Process::start(&mut command, &dir.path().join("pebble.log"))
}

/// Unpacked by `scripts/newer-debs`.
fn newer_program() -> PathBuf {
    let program = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/sid/usr/bin/pebble"));
    assert!(program.exists(), "run: scripts/newer-debs sid pebble ({} is missing)", program.display());
    program
}

/// A root and a leaf for `localhost`, as the package ships none. Returns the root's file.
fn directory_certificate(dir: &TempDir) -> PathBuf {
    let root_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root of Pebble's directory");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(params, root_key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("directory.pem"), leaf.pem()).unwrap();
    std::fs::write(path("directory.key"), key.serialize_pem()).unwrap();
    std::fs::write(path("root.pem"), root.pem()).unwrap();
    path("root.pem")
}

/// Whether Pebble's ARI cannot find a certificate with this serial (as in DER): it looks serials up without the sign byte that DER and
/// RFC 9773 section 4.1 give those whose first bit is set. One in 256 of its serials is such a one; a test takes another.
pub fn ari_misses(serial: &[u8]) -> bool {
    serial.first() == Some(&0)
}

/// Verifies a served chain against a root with OpenSSL, for `host`.
pub fn verify_chain(chain: &str, root: &str, host: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (chain_file, root_file) = (dir.path().join("chain.pem"), dir.path().join("root.pem"));
    std::fs::write(&chain_file, chain).unwrap();
    std::fs::write(&root_file, root).unwrap();
    let (chain_file, root_file) = (chain_file.to_str().unwrap(), root_file.to_str().unwrap());
    let arguments =
        ["verify", "-CAfile", root_file, "-untrusted", chain_file, "-verify_hostname", host, chain_file];
    assert!(output("openssl", &arguments).contains("OK"));
}
