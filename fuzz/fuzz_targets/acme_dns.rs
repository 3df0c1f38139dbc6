//! What may lie in the file of acme-dns accounts: a domain finds its account or the reason is told, and no password is in it.

#![no_main]

use std::cell::OnceCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use starlock::clock::SystemClock;
use starlock::dns::{
    CommonKeys, ProviderKind, ProviderSpec, Surroundings, TxtProvider, TxtRecord, ZoneTurns, build,
};
use starlock::name::DnsName;
use starlock::resolver::Resolver;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

struct Rig {
    runtime: Runtime,
    provider: Arc<dyn TxtProvider>,
    accounts: PathBuf,
    _dir: TempDir,
}

thread_local! {
    static RIG: OnceCell<Rig> = const { OnceCell::new() };
}

/// Shorter texts occur in messages by chance.
const TELLING: usize = 12;

fn rig() -> Rig {
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory");
    let accounts = dir.path().join("accounts.json");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Nobody listens there: whoever has an account is told so.
    let kind = ProviderKind::AcmeDns { endpoint: "http://127.0.0.1:1".into(), accounts: accounts.clone() };
    let common = CommonKeys { timeout: Some(Duration::from_secs(1)), ..CommonKeys::default() };
    let surroundings = Surroundings {
        resolver: Arc::new(Resolver::new(Vec::new())),
        clock: Arc::new(SystemClock),
        turns: ZoneTurns::new(),
        builtin: None,
    };
    let provider = {
        let _entered = runtime.enter();
        build(&ProviderSpec { kind, common }, &surroundings).expect("a provider")
    };
    Rig { runtime, provider, accounts, _dir: dir }
}

fuzz_target!(|file: &[u8]| {
    RIG.with(|cell| {
        let rig = cell.get_or_init(rig);
        std::fs::write(&rig.accounts, file).expect("a place to write");
        for name in ["_acme-challenge.example.com", "a.auth.test"] {
            let name = DnsName::parse(name).expect("a name");
            let record = TxtRecord { name, value: "x".repeat(43) };
            let said =
                rig.runtime.block_on(rig.provider.add_txt(&record)).expect_err("nobody listens").to_string();
            for secret in secrets(file) {
                assert!(!said.contains(&secret), "{said}");
            }
        }
        assert!(std::fs::read(&rig.accounts).is_ok_and(|now| now == file), "nothing was registered");
    });
});

/// Passwords and user names, unless the same text stands where it may be shown.
fn secrets(file: &[u8]) -> Vec<String> {
    let Ok(Value::Object(accounts)) = serde_json::from_slice(file) else { return Vec::new() };
    let field = |wanted: fn(&str) -> bool| {
        let fields = accounts.values().filter_map(Value::as_object).flatten();
        let texts = fields.filter(move |(name, _)| wanted(&name.to_ascii_lowercase()));
        texts.filter_map(|(_, value)| value.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let shown = field(|name| name == "fulldomain").join(" ").to_ascii_lowercase();
    let mut secrets = field(|name| matches!(name, "password" | "username"));
    let ours = [
        "_acme-challenge.example.com. CNAME a.auth.test",
        "acme-dns: cannot register example.com at http://127.0.0.1:1",
    ];
    secrets.retain(|text| {
        text.len() >= TELLING
            && !shown.contains(&text.to_ascii_lowercase())
            && !ours.iter().any(|ours| ours.contains(&**text))
    });
    secrets
}
