//! What a client may ask for: the path that is matched is the path that is forwarded, and nothing in it reads two ways.

#![no_main]

use libfuzzer_sys::fuzz_target;
use starlock::proxy::path::{has_prefix, normalise, other_readings, without_prefix};

fuzz_target!(|path: &str| {
    let Ok(normal) = normalise(path) else { return };
    assert!(normal.starts_with('/'));
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'), "{normal}");
    assert!(normal.split('/').all(|segment| segment != "." && segment != ".."), "{normal}");
    assert_eq!(normalise(&normal).as_deref(), Ok(&*normal), "the normal form is its own");
    for escape in normal.split('%').skip(1) {
        let byte = u8::from_str_radix(&escape[..2], 16).expect("two digits");
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        assert!(!unreserved && !byte.is_ascii_control() && byte != b'\\', "{normal}");
    }
    for reading in other_readings(&normal) {
        assert!(reading.starts_with('/') && reading != *normal, "{normal}: {reading}");
    }
    for prefix in ["/", "/a", "/a/b"] {
        if has_prefix(&normal, prefix) {
            let rest = without_prefix(&normal, prefix);
            assert!(rest.starts_with('/') && normal.ends_with(rest.trim_start_matches('/')), "{normal}: {rest}");
        }
    }
});
