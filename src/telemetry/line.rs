//! How a line of the access log looks. Whatever came from a client is escaped here, once for each form.

use std::io::Write;
use std::time::SystemTime;

use super::access::AccessRecord;

/// Appends `record` as a JSON object and a newline. Fields that do not apply are left out.
pub(super) fn json(out: &mut Vec<u8>, record: &AccessRecord<'_>) {
    out.extend_from_slice(b"{\"time\":\"");
    time(out, record.time);
    out.push(b'"');
    field(out, "id", record.id);
    // Writing to a Vec does not fail.
    let _ = write!(out, ",\"client\":\"{}\"", record.client);
    field(out, "method", record.method);
    field(out, "host", record.host);
    field(out, "path", record.path);
    field(out, "protocol", record.protocol);
    let _ = write!(out, ",\"tls\":{}", record.tls_resumed.is_some());
    if let Some(resumed) = record.tls_resumed {
        let _ = write!(out, ",\"resumed\":{resumed}");
    }
    let _ = write!(
        out,
        ",\"status\":{},\"received\":{},\"sent\":{},\"duration_ms\":{}.{:03}",
        record.status,
        record.received,
        record.sent,
        record.duration.as_millis(),
        record.duration.subsec_micros() % 1000,
    );
    for (name, value) in [
        ("route", record.route),
        ("upstream", record.upstream),
        ("server", record.server),
        ("reason", record.reason),
    ] {
        if !value.is_empty() {
            field(out, name, value);
        }
    }
    out.extend_from_slice(b"}\n");
}

/// Appends `record` as words for people.
pub(super) fn text(out: &mut Vec<u8>, record: &AccessRecord<'_>) {
    time(out, record.time);
    let _ = write!(out, " {} ", record.client);
    plain(out, record.method);
    out.push(b' ');
    plain(out, record.host);
    plain(out, record.path);
    let _ = write!(
        out,
        " {} {} received={} sent={} {}.{:03}ms id={}",
        record.protocol,
        record.status,
        record.received,
        record.sent,
        record.duration.as_millis(),
        record.duration.subsec_micros() % 1000,
        record.id,
    );
    for (name, value) in [
        ("route", record.route),
        ("upstream", record.upstream),
        ("server", record.server),
        ("reason", record.reason),
    ] {
        if !value.is_empty() {
            let _ = write!(out, " {name}=");
            plain(out, value);
        }
    }
    out.push(b'\n');
}

/// RFC 3339 in UTC with milliseconds.
fn time(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
    );
}

/// The Gregorian date of a day since 1970, counted in eras of 400 years that start in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":\"");
    escape(out, value);
    out.push(b'"');
}

fn escape(out: &mut Vec<u8>, value: &str) {
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            // C1 controls and line separators too: a terminal or a log viewer may act on them.
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

fn plain(out: &mut Vec<u8>, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'!'..=b'~' if byte != b'\\' => out.push(byte),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn record<'a>(path: &'a str, reason: &'a str) -> AccessRecord<'a> {
        AccessRecord {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_210_096_007),
            id: "00ff",
            client: "2001:db8::1".parse().unwrap(),
            method: "POST",
            host: "a.test",
            path,
            protocol: "HTTP/2",
            tls_resumed: Some(true),
            status: 502,
            received: 3,
            sent: 20,
            duration: Duration::from_micros(12_345),
            route: "a.test/api",
            upstream: "api",
            server: "http://127.0.0.1:1",
            reason,
        }
    }

    #[test]
    fn both_forms() {
        let mut out = Vec::new();
        json(&mut out, &record("/a\"b", "upstream_connect_refused"));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"time\":\"2024-02-29T12:34:56.007Z\",\"id\":\"00ff\",\"client\":\"2001:db8::1\",\"method\":\"POST\",\
             \"host\":\"a.test\",\"path\":\"/a\\\"b\",\"protocol\":\"HTTP/2\",\"tls\":true,\"resumed\":true,\
             \"status\":502,\"received\":3,\"sent\":20,\"duration_ms\":12.345,\"route\":\"a.test/api\",\
             \"upstream\":\"api\",\"server\":\"http://127.0.0.1:1\",\"reason\":\"upstream_connect_refused\"}\n"
        );
        let mut out = Vec::new();
        text(&mut out, &record("/a b\n", ""));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2024-02-29T12:34:56.007Z 2001:db8::1 POST a.test/a\\x20b\\x0a HTTP/2 502 received=3 sent=20 12.345ms id=00ff \
             route=a.test/api upstream=api server=http://127.0.0.1:1\n"
        );
    }

    proptest! {
        #[test]
        fn whatever_is_sent_stays_one_line(path in ".*") {
            let mut out = Vec::new();
            json(&mut out, &record(&path, ""));
            prop_assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(value["path"].as_str().unwrap(), path.as_str());
            let mut out = Vec::new();
            text(&mut out, &record(&path, ""));
            prop_assert!(out[..out.len() - 1].iter().all(|b| (b' '..=b'~').contains(b)));
        }

        #[test]
        fn dates_agree_with_jiff(seconds in 0_u64..253_402_300_800) {
            let mut out = Vec::new();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            time(&mut out, at);
            let expected = jiff::Timestamp::try_from(at).unwrap().strftime("%Y-%m-%dT%H:%M:%S.000Z").to_string();
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
