//! `hsts`: browsers are told to come by https only (RFC 6797).

use http::header::{HeaderMap, HeaderValue, STRICT_TRANSPORT_SECURITY};

use super::spec::HstsSpec;

/// The field as it is sent.
#[derive(Debug)]
pub(super) struct Hsts(HeaderValue);

impl Hsts {
    pub(super) fn new(spec: &HstsSpec) -> Self {
        let mut text = format!("max-age={}", spec.max_age.as_secs());
        if spec.subdomains {
            text.push_str("; includeSubDomains");
        }
        if spec.preload {
            text.push_str("; preload");
        }
        // Digits and words: always a value.
        Self(HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("max-age=0")))
    }

    /// What a server says itself stays: it may know better.
    pub(super) fn finish(&self, headers: &mut HeaderMap) {
        headers.entry(STRICT_TRANSPORT_SECURITY).or_insert_with(|| self.0.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_field_says_what_was_configured_and_a_servers_own_stays() {
        let year = Duration::from_secs(31_536_000);
        let hsts = |subdomains, preload| Hsts::new(&HstsSpec { max_age: year, subdomains, preload });
        assert_eq!(hsts(false, false).0, "max-age=31536000");
        assert_eq!(hsts(true, true).0, "max-age=31536000; includeSubDomains; preload");
        let mut headers = HeaderMap::new();
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=5"));
        hsts(true, true).finish(&mut headers);
        assert_eq!(headers[STRICT_TRANSPORT_SECURITY], "max-age=5");
        headers.clear();
        hsts(false, false).finish(&mut headers);
        assert_eq!(headers[STRICT_TRANSPORT_SECURITY], "max-age=31536000");
    }
}
