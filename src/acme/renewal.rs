//! ACME Renewal Information (RFC 9773): when the CA wants a certificate to be renewed.

use std::time::{Duration, SystemTime};

use instant_acme::{CertificateIdentifier, Error};
use serde::{Deserialize, Deserializer};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::client::RecordingClient;
use super::jws::base64url;
use super::session::{Directory, Session};
use crate::issuer::RenewalHint;

/// Where the CA does not say when to ask again (RFC 9773 section 4.3.2 recommends this).
const USUAL_POLL: Duration = Duration::from_secs(6 * 3600);
const SHORTEST_POLL: Duration = Duration::from_secs(3600);
const LONGEST_POLL: Duration = Duration::from_secs(24 * 3600);

/// RFC 9773 section 4.2.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RenewalInfo {
    suggested_window: Window,
    #[serde(rename = "explanationURL")]
    explanation: Option<String>,
}

#[derive(Deserialize)]
struct Window {
    #[serde(deserialize_with = "rfc3339")]
    start: jiff::Timestamp,
    #[serde(deserialize_with = "rfc3339")]
    end: jiff::Timestamp,
}

fn rfc3339<'de, D: Deserializer<'de>>(deserializer: D) -> Result<jiff::Timestamp, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// Asks the CA once. `None`: it has no ARI, does not know the certificate, or names a window that is none.
pub(super) async fn hint(
    client: &RecordingClient,
    directory: &Directory,
    leaf: &[u8],
    now: SystemTime,
) -> Result<Option<RenewalHint>, Error> {
    let (Some(base), Some(id)) = (&directory.renewal_info, certificate_id(leaf)) else { return Ok(None) };
    let url = format!("{}/{id}", base.trim_end_matches('/'));
    let answer = match Session::get_plain(client, &url).await {
        Ok(answer) => answer,
        // Nothing is known of it: another CA's certificate, or one that a restored CA has forgotten.
        Err(Error::Api(_)) if client.says_no() => return Ok(None),
        Err(Error::Json(_)) if client.says_gone() => return Ok(None),
        Err(error) => return Err(error),
    };
    let hint = renewal_window(&answer.body, client.retry_after(), now)?;
    if hint.is_none() {
        let said = plain(&String::from_utf8_lossy(&answer.body));
        tracing::warn!(certificate = id, said, "the CA's renewal window begins after its end; it is ignored");
    }
    Ok(hint)
}

/// What a CA's renewal information (RFC 9773 section 4.2) means; `None` if its window is none. `retry_after` is what the CA said beside
/// it. The next poll is not spread: whoever asks for many certificates does that.
pub fn renewal_window(
    body: &[u8],
    retry_after: Option<SystemTime>,
    now: SystemTime,
) -> Result<Option<RenewalHint>, serde_json::Error> {
    Ok(judge(&serde_json::from_slice(body)?, retry_after, now))
}

/// The window if it is one. The next poll is when the CA said, not before an hour and not after a day.
fn judge(info: &RenewalInfo, retry_after: Option<SystemTime>, now: SystemTime) -> Option<RenewalHint> {
    let (start, end) = (info.suggested_window.start.into(), info.suggested_window.end.into());
    if start >= end {
        return None;
    }
    let wait = retry_after.map_or(USUAL_POLL, |moment| moment.duration_since(now).unwrap_or_default());
    let wait = wait.clamp(SHORTEST_POLL, LONGEST_POLL);
    let explanation = info.explanation.as_deref().map(plain).filter(|text| !text.is_empty());
    Some(RenewalHint { start, end, explanation, again_at: now + wait })
}

/// A URL goes into logs and terminals: no control characters, not endless.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// RFC 9773 section 4.1: the issuer's key identifier and the serial. `None` without the former.
pub fn certificate_id(leaf: &[u8]) -> Option<String> {
    let id = identifier(leaf)?;
    Some(id.to_string())
}

/// As for a new order's `replaces`.
pub(super) fn identifier(leaf: &[u8]) -> Option<CertificateIdentifier<'static>> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let key_identifier =
        certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(aki) => {
                aki.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            _ => None,
        })?;
    Some(CertificateIdentifier {
        authority_key_identifier: base64url(&key_identifier).into(),
        serial: base64url(certificate.raw_serial()).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(start: &str, end: &str) -> RenewalInfo {
        let text = format!(
            r#"{{"suggestedWindow":{{"start":"{start}","end":"{end}"}},"explanationURL":"https://ca/\u001bx"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_window_is_one_and_polls_stay_within_bounds() {
        let now: SystemTime = "2026-11-24T00:00:00Z".parse::<jiff::Timestamp>().unwrap().into();
        let hours = |n: u64| Duration::from_secs(n * 3600);
        let good = info("2026-12-01T00:00:00Z", "2026-12-02T00:00:00+00:00");
        let hint = judge(&good, None, now).unwrap();
        assert_eq!((hint.start, hint.end), (now + hours(7 * 24), now + hours(8 * 24)));
        assert_eq!(hint.explanation.as_deref(), Some("https://ca/x"));
        for (asked, wait) in [
            (None, hours(6)),
            (Some(Duration::ZERO), hours(1)),
            (Some(Duration::from_secs(60)), hours(1)),
            (Some(hours(9)), hours(9)),
            (Some(hours(24 * 30)), hours(24)),
        ] {
            let hint = judge(&good, asked.map(|wait| now + wait), now).unwrap();
            assert_eq!(hint.again_at.duration_since(now).unwrap(), wait, "{asked:?}");
        }
        // In the past: ask again in an hour, not at once.
        assert!(judge(&good, Some(now - hours(1)), now).unwrap().again_at >= now + hours(1));
        for (start, end) in [
            ("2026-12-02T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("2026-12-02T00:00:00Z", "2026-12-02T00:00:00Z"),
        ] {
            assert_eq!(judge(&info(start, end), None, now), None);
        }
        // A window that lies behind us is one: renew now.
        assert!(judge(&info("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z"), None, now).is_some());
    }

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 9773 appendix A.1: this certificate's identifier is given in section 4.1.
        let pem = "-----BEGIN CERTIFICATE-----\n\
            MIIBQzCB66ADAgECAgUAh2VDITAKBggqhkjOPQQDAjAVMRMwEQYDVQQDEwpFeGFt\n\
            cGxlIENBMCIYDzAwMDEwMTAxMDAwMDAwWhgPMDAwMTAxMDEwMDAwMDBaMBYxFDAS\n\
            BgNVBAMTC2V4YW1wbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEeBZu\n\
            7cbpAYNXZLbbh8rNIzuOoqOOtmxA1v7cRm//AwyMwWxyHz4zfwmBhcSrf47NUAFf\n\
            qzLQ2PPQxdTXREYEnKMjMCEwHwYDVR0jBBgwFoAUaYhba4dGQEHhs3uEe6CuLN4B\n\
            yNQwCgYIKoZIzj0EAwIDRwAwRAIge09+S5TZAlw5tgtiVvuERV6cT4mfutXIlwTb\n\
            +FYN/8oCIClDsqBklhB9KAelFiYt9+6FDj3z4KGVelYM5MdsO3pK\n\
            -----END CERTIFICATE-----\n";
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        assert_eq!(certificate_id(&pem.contents).as_deref(), Some("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"));
        assert_eq!(certificate_id(b"no certificate"), None);
    }
}
