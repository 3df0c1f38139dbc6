//! What a balancer says of its client: at most 4 KiB are read, never a byte of what follows, and cutting a header short or
//! waiting for its pieces changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use starlock::listen::proxy_header::{HeaderError, Progress, parse};

fuzz_target!(|bytes: &[u8]| {
    let mut have = 0;
    let end = loop {
        match parse(&bytes[..have]) {
            Ok(Progress::Needs(more)) => {
                assert!(more > 0 && have + more <= 4096);
                have += more;
                if have > bytes.len() {
                    return;
                }
            }
            other => break other,
        }
    };
    for cut in 0..have {
        // A part is never a whole, and it asks for no more than there is.
        match parse(&bytes[..cut]) {
            Ok(Progress::Needs(more)) => assert!(cut + more <= have || end.is_err()),
            Ok(Progress::Complete(_)) => panic!("{cut} of {have} bytes are a header, too"),
            Err(_) => assert!(end.is_err()),
        }
    }
    if let Ok(Progress::Complete(_)) = end {
        let longer = [&bytes[..have], b"x"].concat();
        assert_eq!(parse(&longer), Err(HeaderError::Malformed), "more than a header is none");
    }
});
