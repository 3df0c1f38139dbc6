//! What a CA may answer: renewal information becomes a window and a wait within bounds, and what a directory says of itself can
//! stand in a DNS record. A leaf that names its issuer's key has an identifier that can stand in a URL.

#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use starlock::acme::{certificate_id, names_in_dns, renewal_window};
use starlock::name::HostName;

const HOUR: Duration = Duration::from_secs(3600);

fuzz_target!(|answer: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for retry_after in [None, Some(SystemTime::UNIX_EPOCH), Some(now + HOUR * 90_000)] {
        let Ok(Some(hint)) = renewal_window(answer, retry_after, now) else { continue };
        assert!(hint.start < hint.end, "{hint:?}");
        assert!(hint.again_at >= now + HOUR && hint.again_at <= now + HOUR * 24, "{hint:?}");
        for text in &hint.explanation {
            assert!(
                !text.is_empty() && text.chars().count() <= 500 && !text.contains(char::is_control),
                "{text:?}"
            );
        }
    }
    let (issuers, prefix) = names_in_dns(answer);
    assert!(issuers.len() <= 10);
    assert!(issuers.iter().all(|name| HostName::parse(name).is_ok()), "{issuers:?}");
    for prefix in &prefix {
        assert!(
            prefix.bytes().all(|byte| byte.is_ascii_graphic() && !b"\";\\".contains(&byte)),
            "{prefix:?}"
        );
    }
    for id in certificate_id(answer) {
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)), "{id}");
    }
});
