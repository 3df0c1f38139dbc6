//! What may lie in the state directory as an account: it has a key that signs, or it is refused without showing what it holds.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use starlock::acme::{Accounts, AcmeIssuer, AcmeSpec};
use starlock::clock::SystemClock;
use starlock::storage::{Expect, MemoryStorage, Storage};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

/// What is shorter holds no key, in whichever form.
const KEY: usize = 32;

fuzz_target!(|file: &[u8]| {
    RUNTIME.block_on(async {
        let spec = AcmeSpec::new("https://ca.test/directory");
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let key = AcmeIssuer::account_key(&spec);
        storage.store(&key, file, Expect::Absent).await.expect("memory takes everything");
        match Accounts::new(storage, Arc::new(SystemClock)).kept(&spec).await {
            Ok(info) => assert!(info.thumbprint.is_none_or(|thumbprint| thumbprint.len() == 43)),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains(key.as_str()), "{said}");
                let words = said.replace(key.as_str(), "");
                assert!(words.split_whitespace().all(|word| word.len() < KEY), "{said}");
            }
        }
    });
});
