//! From what went wrong at the CA to a verdict: whose turn it is, when to come back, and words for a person.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use instant_acme::{Error, Problem};

use super::client::LastAnswer;
use crate::issuer::{FailureClass, IssueError, Retry};

/// A CA that says "come back in a month" is not believed further than this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A link that a person has to open is shown whole: it carries a signed token with up to a hundred names.
const LONGEST_LINK: usize = 16_000;

/// What was being done, for the message.
pub(super) struct Context<'a> {
    /// The CA's host.
    pub(super) ca: &'a str,
    /// The names of the order.
    pub(super) names: &'a str,
    /// As in "while creating the order".
    pub(super) doing: &'a str,
    /// Whether the CA looked at DNS, so that `unauthorized` is about a name and not about the account.
    pub(super) validating: bool,
}

/// Judges an error of instant-acme with the answer that it came from.
pub(super) fn judge(
    error: &Error,
    last: Option<&LastAnswer>,
    context: &Context<'_>,
    now: SystemTime,
) -> IssueError {
    let Context { ca, names, doing, .. } = context;
    if let Error::Api(problem) = error {
        return judge_problem(problem, last, context, now);
    }
    match last {
        Some(LastAnswer::Failed(failure)) => IssueError::new(
            FailureClass::CaDown,
            Retry::Backoff,
            format!(
                "{names}: no answer from the CA while {doing}: {failure}. The order is tried again by itself."
            ),
        ),
        Some(LastAnswer::Answer { status, retry_after, text, .. })
            if status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS =>
        {
            let said = text.as_deref().map(|t| format!(", saying \"{t}\"")).unwrap_or_default();
            let class =
                if status.is_server_error() { FailureClass::CaDown } else { FailureClass::RateLimited };
            let message = format!(
                "{names}: {ca} answered {status} while {doing}{said}. This is on the CA's side; the order is tried again by itself."
            );
            IssueError::new(class, at(*retry_after, now), message)
        }
        Some(LastAnswer::Answer { status, .. }) if status.is_redirection() => IssueError::new(
            FailureClass::Config,
            Retry::Backoff,
            format!(
                "{names}: {ca} answered {status} while {doing}: it points elsewhere, and ACME is not followed there. \
                 Set acme.ca to the final URL of the directory. Tried again by itself."
            ),
        ),
        Some(LastAnswer::Answer { status, text: Some(text), .. }) => IssueError::new(
            FailureClass::Config,
            Retry::Backoff,
            format!(
                "{names}: {ca} answered {status} with something that is not ACME while {doing}: \"{text}\". \
                 Check that acme.ca is the URL of an ACME directory. Tried again by itself."
            ),
        ),
        _ => IssueError::new(
            FailureClass::CaDown,
            Retry::Backoff,
            format!(
                "{names}: the CA's answer could not be used while {doing}: {error}. The order is tried again by itself."
            ),
        ),
    }
}

/// Judges a problem document (RFC 8555 section 6.7).
pub(super) fn judge_problem(
    problem: &Problem,
    last: Option<&LastAnswer>,
    context: &Context<'_>,
    now: SystemTime,
) -> IssueError {
    let Context { ca, names, doing, validating } = context;
    let kind = kind(problem);
    let retry_after = match last {
        Some(LastAnswer::Answer { retry_after, .. }) => *retry_after,
        _ => None,
    };
    let (class, retry, advice) = match kind {
        _ if is_pause(problem) => (
            FailureClass::RateLimited,
            Retry::Pause,
            "The CA has paused these names for this account after many failures in a row, and signs nothing for them before a \
             person opens its link and confirms. Mend what failed first (`starlock doctor` looks for it), open the link, then \
             `starlock certs renew`. By itself the CA is asked once a day.",
        ),
        "rateLimited" => (
            FailureClass::RateLimited,
            at(retry_after, now),
            "The CA's limit is reached; the order waits by itself.",
        ),
        "unauthorized" if !validating => (
            FailureClass::Config,
            Retry::Park,
            "The CA does not let this account do that: it may have been deactivated there. To register a new one, move \
             the file below `accounts` out of the state directory and restart.",
        ),
        "unauthorized" | "incorrectResponse" | "dns" | "connection" | "tls" => {
            (FailureClass::Validation, Retry::Backoff, looked(doing))
        }
        "dnssec" => (
            FailureClass::Validation,
            Retry::Backoff,
            "DNSSEC of the zone is broken: check the DS records at the registrar.",
        ),
        "caa" => (
            FailureClass::Validation,
            Retry::Park,
            "A CAA record forbids this CA: allow it there, then `starlock reload`.",
        ),
        "rejectedIdentifier" | "unsupportedIdentifier" => {
            (FailureClass::Config, Retry::Park, "The CA will not sign these names: change them or the CA.")
        }
        "externalAccountRequired" => {
            let advice = "This CA wants an external account binding: set acme.eab = { kid, hmac }, then `starlock reload`.";
            (FailureClass::Config, Retry::Park, advice)
        }
        "userActionRequired" => {
            (FailureClass::Config, Retry::Park, "The CA wants a person to act: follow what it says.")
        }
        "invalidContact" | "unsupportedContact" => {
            (FailureClass::Config, Retry::Park, "Correct acme.email, then `starlock reload`.")
        }
        "invalidProfile" => {
            (FailureClass::Config, Retry::Park, "Correct acme.profile, then `starlock reload`.")
        }
        "badCSR" | "badPublicKey" | "badSignatureAlgorithm" | "malformed" => (
            FailureClass::Config,
            Retry::Park,
            "The CA does not accept what it was sent: check acme.key and acme.ca.",
        ),
        "serverInternal" | "badNonce" => (
            FailureClass::CaDown,
            at(retry_after, now),
            "This is on the CA's side; the order is tried again by itself.",
        ),
        _ => (FailureClass::CaDown, at(retry_after, now), "The order is tried again by itself."),
    };
    let said = match retry {
        Retry::Pause => words(problem, LONGEST_LINK),
        _ => plain(problem),
    };
    IssueError::new(class, retry, format!("{names}: {ca} said while {doing}: {said}. {advice}"))
}

/// What to check after the CA looked in vain: the last word of "validating NAME by KIND" says where it looked.
fn looked(doing: &str) -> &'static str {
    match doing.rsplit(' ').next() {
        Some("http-01") => {
            "The CA looked and did not find the challenge: check that the name's addresses (AAAA too) lead to this machine, and that \
             port 80 of them comes to `listen.http`, from outside this network too. The next attempt is made by itself."
        }
        Some("tls-alpn-01") => {
            "The CA looked and did not find the challenge: check that the name's addresses (AAAA too) lead to this machine, and that \
             port 443 of them comes to `listen.https` with nothing in between that ends TLS. The next attempt is made by itself."
        }
        Some("dns-persist-01") => {
            "The CA did not take the _validation-persist record: `starlock check` and the log say how it has to be."
        }
        _ => {
            "The CA looked and did not find the challenge: check that the _acme-challenge name is delegated or writable as intended, \
             from outside this network too."
        }
    }
}

/// The last word of the problem's URN, or nothing for a foreign one.
pub(super) fn kind(problem: &Problem) -> &str {
    problem.r#type.as_deref().and_then(|t| t.strip_prefix("urn:ietf:params:acme:error:")).unwrap_or("")
}

/// Whether the request was not processed for its nonce alone, so that sending it again is right.
pub(super) fn is_bad_nonce(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if kind(problem) == "badNonce")
}

/// Whether a refused registration was refused for its external account.
pub(super) fn is_about_external_account(problem: &Problem) -> bool {
    matches!(kind(problem), "externalAccountRequired" | "unauthorized" | "malformed")
}

/// What went wrong while a person waits: nothing is tried again by itself.
pub(super) fn for_a_command(error: &Error, last: Option<&LastAnswer>, ca: &str, doing: &str) -> String {
    match (error, last) {
        (Error::Api(problem), _) => format!("{ca} said while {doing}: {}", plain(problem)),
        (_, Some(LastAnswer::Failed(failure))) => format!("no answer from {ca} while {doing}: {failure}"),
        (_, Some(LastAnswer::Answer { status, text: Some(text), .. })) => {
            format!("{ca} answered {status} with something that is not ACME while {doing}: \"{text}\"")
        }
        _ => format!("the answer of {ca} could not be used while {doing}: {error}"),
    }
}

/// The CA's own words: `detail (type)`, then each subproblem. Control characters do not pass.
pub(super) fn plain(problem: &Problem) -> String {
    words(problem, 1000)
}

/// Whether it is Let's Encrypt's pause: no instant, and a link that a person has to open. Boulder sends a new order's refusal as
/// `rateLimited` with these words and a link to `/sfe/v1/unpause?jwt=` of its portal. The words are enough whatever the type; of a
/// CA with words of its own the link says it.
fn is_pause(problem: &Problem) -> bool {
    let said = problem.detail.as_deref().unwrap_or_default();
    let opens = |word: &str| word.starts_with("https://") && word.contains("/unpause");
    let link = kind(problem) == "rateLimited" && said.split_ascii_whitespace().any(opens);
    link || said.contains("is temporarily prevented from requesting certificates for")
}

fn words(problem: &Problem, most: usize) -> String {
    let mut text = problem.detail.clone().unwrap_or_else(|| "(no detail)".to_owned());
    if !kind(problem).is_empty() {
        text = format!("{text} ({})", kind(problem));
    }
    for sub in problem.subproblems.iter().take(10) {
        let name = sub.identifier.as_ref().map(|i| i.authorized(false).to_string()).unwrap_or_default();
        text = format!("{text}; {name}: {}", sub.detail.as_deref().unwrap_or("(no detail)"));
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect()
}

fn at(retry_after: Option<SystemTime>, now: SystemTime) -> Retry {
    match retry_after {
        Some(moment) if moment > now => Retry::At(moment.min(now + LONGEST_RETRY_AFTER)),
        _ => Retry::Backoff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_client::HttpError;

    const CONTEXT: Context<'_> =
        Context { ca: "ca.test", names: "example.test", doing: "creating the order", validating: false };

    fn problem(kind: &str) -> Error {
        let json = format!(
            r#"{{"type":"urn:ietf:params:acme:error:{kind}","detail":"words of\u001b the CA","status":400}}"#
        );
        Error::Api(serde_json::from_str(&json).unwrap())
    }

    fn answer(status: u16, retry_after: Option<SystemTime>, text: Option<&str>) -> LastAnswer {
        LastAnswer::Answer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after,
            text: text.map(ToOwned::to_owned),
            location: None,
            alternates: Vec::new(),
        }
    }

    #[test]
    fn every_kind_has_a_verdict_and_the_cas_words() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let later = now + Duration::from_secs(60);
        for (kind, class, retry) in [
            ("rateLimited", FailureClass::RateLimited, Retry::At(later)),
            ("incorrectResponse", FailureClass::Validation, Retry::Backoff),
            ("caa", FailureClass::Validation, Retry::Park),
            ("unauthorized", FailureClass::Config, Retry::Park),
            ("rejectedIdentifier", FailureClass::Config, Retry::Park),
            ("malformed", FailureClass::Config, Retry::Park),
            ("serverInternal", FailureClass::CaDown, Retry::At(later)),
            ("somethingNew", FailureClass::CaDown, Retry::At(later)),
        ] {
            let verdict = judge(&problem(kind), Some(&answer(400, Some(later), None)), &CONTEXT, now);
            assert_eq!((verdict.class, verdict.retry), (class, retry), "{kind}");
            assert!(
                verdict.message.contains("words of  the CA") && verdict.message.contains("example.test"),
                "{verdict}"
            );
        }
    }

    #[test]
    fn a_pause_waits_for_the_person_who_opens_its_link() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let link = format!("https://portal.letsencrypt.org/sfe/v1/unpause?jwt=eyJ{}.end", "a".repeat(4000));
        let problem = |kind: &str, detail: &str| -> Problem {
            let json = serde_json::json!({
                "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail, "status": 429
            });
            serde_json::from_value(json).unwrap()
        };
        // As Boulder writes it where it takes new orders: the names that are paused, joined by commas, and the portal's link.
        let boulders = format!(
            "Your account is temporarily prevented from requesting certificates for example.test, *.example.test and possibly others. \
             Please visit: {link}"
        );
        let own_words = format!("example.test is paused for this account. See {link}");
        // type, words, whether it is a pause
        for (kind, detail, pause) in [
            ("rateLimited", boulders.as_str(), true),
            ("unauthorized", &boulders, true),
            ("rateLimited", &own_words, true),
            ("malformed", &own_words, false),
            (
                "rateLimited",
                "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, retry after \
                 2026-12-01 09:13:16 UTC: see https://letsencrypt.org/docs/rate-limits/#new-certificates-per-exact-set-of-identifiers",
                false,
            ),
            (
                "rateLimited",
                "too many failed authorizations (5) for \"unpause.example.test\" in the last 1h0m0s, retry after 2026-12-01 09:13:16 UTC: \
                 see https://letsencrypt.org/docs/rate-limits/#authorization-failures-per-identifier-per-account",
                false,
            ),
        ] {
            let verdict =
                judge_problem(&problem(kind, detail), Some(&answer(429, None, None)), &CONTEXT, now);
            assert_eq!(verdict.retry == Retry::Pause, pause, "{kind}: {detail}");
            if pause {
                assert_eq!(verdict.class, FailureClass::RateLimited);
                assert!(verdict.message.contains(&link), "the link is whole: {verdict}");
                assert!(
                    verdict.message.contains("opens its link") && verdict.message.contains("once a day"),
                    "{verdict}"
                );
            }
        }
    }

    #[test]
    fn a_balancers_html_is_told_with_its_status_and_its_retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let json = Error::Json(serde_json::from_str::<u8>("<").unwrap_err());
        let far = now + Duration::from_secs(90 * 24 * 3600);
        let verdict = judge(&json, Some(&answer(503, Some(far), Some("<h1>Busy</h1>"))), &CONTEXT, now);
        assert_eq!(
            (verdict.class, verdict.retry),
            (FailureClass::CaDown, Retry::At(now + LONGEST_RETRY_AFTER))
        );
        assert!(verdict.message.contains("503") && verdict.message.contains("<h1>Busy</h1>"), "{verdict}");
        let verdict = judge(&json, Some(&answer(200, None, Some("<h1>Hello</h1>"))), &CONTEXT, now);
        assert_eq!(verdict.class, FailureClass::Config);
        let verdict = judge(&json, Some(&answer(301, None, Some("<a href=x>"))), &CONTEXT, now);
        assert!(verdict.message.contains("301") && verdict.message.contains("final URL"), "{verdict}");
        let looked = Context { validating: true, ..CONTEXT };
        assert_eq!(judge(&problem("unauthorized"), None, &looked, now).class, FailureClass::Validation);
        let down = HttpError::Connect { host: "ca.test".into(), reason: "connection refused".into() };
        let verdict =
            judge(&Error::Other(Box::new(down.clone())), Some(&LastAnswer::Failed(down)), &CONTEXT, now);
        assert_eq!((verdict.class, verdict.retry), (FailureClass::CaDown, Retry::Backoff));
        assert!(verdict.message.contains("connection refused"), "{verdict}");
    }
}
