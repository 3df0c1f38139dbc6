//! What other programs may have kept: every account's key that is taken signs, whatever is refused is refused with a place, and
//! no message shows a key.

#![no_main]

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use starlock::acme::{Accounts, AcmeSpec, import_account};
use starlock::clock::SystemClock;
use starlock::import::{AccountKey, Source, read};
use starlock::storage::{MemoryStorage, Storage};
use starlock::tls::Bundle;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

thread_local! {
    static ROOTS: OnceCell<(TempDir, [PathBuf; 4])> = const { OnceCell::new() };
}

/// The files of each program, filled in this order.
const FILES: [(Source, &[&str]); 4] = [
    (
        Source::Certbot,
        &[
            "accounts/ca.test/directory/1/private_key.json",
            "accounts/ca.test/directory/1/regr.json",
            "renewal/a.test.conf",
            "live/a.test/fullchain.pem",
            "live/a.test/privkey.pem",
        ],
    ),
    (
        Source::Caddy,
        &[
            "acme/ca.test-directory/users/a@a.test/a.key",
            "acme/ca.test-directory/users/a@a.test/a.json",
            "certificates/ca.test-directory/a.test/a.test.crt",
            "certificates/ca.test-directory/a.test/a.test.key",
        ],
    ),
    (
        Source::AcmeSh,
        &[
            "ca/ca.test/directory/account.key",
            "ca/ca.test/directory/ca.conf",
            "a.test_ecc/a.test.conf",
            "a.test_ecc/fullchain.cer",
            "a.test_ecc/a.test.key",
        ],
    ),
    (Source::Traefik, &["acme.json"]),
];

fn roots() -> (TempDir, [PathBuf; 4]) {
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory");
    let roots = FILES.map(|(source, files)| {
        let root = dir.path().join(format!("{source:?}"));
        for file in files {
            std::fs::create_dir_all(root.join(file).parent().expect("a parent")).expect("a place to write");
        }
        root
    });
    (dir, roots)
}

// The first byte says whose files they are; `0xff` ends one.
fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let which = usize::from(*first) % FILES.len();
    let (source, files) = FILES[which];
    ROOTS.with(|cell| {
        let (_, roots) = cell.get_or_init(roots);
        let mut texts = rest.split(|byte| *byte == 0xff);
        for file in files {
            std::fs::write(roots[which].join(file), texts.next().unwrap_or_default())
                .expect("a place to write");
        }
        look(source, &roots[which], rest);
    });
});

fn look(source: Source, root: &Path, input: &[u8]) {
    let path = if source == Source::Traefik { root.join("acme.json") } else { root.to_owned() };
    let input = String::from_utf8_lossy(input);
    let found = match read(source, &path) {
        Ok(found) => found,
        Err(error) => return hides(&input, &error.to_string(), root),
    };
    for (place, reason) in &found.problems {
        assert!(place.contains(&root.display().to_string()), "{place}: {reason}");
        hides(&input, reason, root);
    }
    for certificate in &found.certificates {
        certificate.origin.is("https://ca.test/directory");
        match Bundle::from_pem(&certificate.chain_pem, certificate.key_pem.expose()) {
            Ok(bundle) => assert!(!bundle.names().is_empty()),
            Err(error) => hides(&input, &error.to_string(), root),
        }
    }
    for account in &found.accounts {
        let AccountKey::Es256(key) = &account.key else { continue };
        let spec = AcmeSpec::new("https://ca.test/directory");
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        RUNTIME.block_on(async {
            let taken = import_account(&*storage, &spec, key, account.url.as_deref(), false).await;
            assert!(taken.expect("memory takes everything"));
            let info = Accounts::new(storage.clone(), Arc::new(SystemClock)).kept(&spec).await;
            assert!(info.is_ok_and(|info| info.thumbprint.is_some()), "a key that was taken signs");
        });
    }
}

/// Nothing that could be a key is said: base64 of some length.
fn hides(input: &str, said: &str, root: &Path) {
    let is_key = |c: char| c.is_ascii_alphanumeric() || "+/-_=".contains(c);
    let place = root.display().to_string();
    for text in input.split(|c| !is_key(c)).filter(|text| text.len() >= 24) {
        assert!(!said.contains(text) || place.contains(text), "{said}");
    }
}
