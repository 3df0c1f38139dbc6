//! What is answered when a request does not go as the client wished.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use super::host::HostError;
use super::path::PathError;
use crate::policy::Denial;
use crate::upstream::Failure;

/// Why a request is not forwarded, or its answer not had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// CONNECT, TRACE.
    Method,
    Host(HostError),
    Path(PathError),
    /// A server might read the path as that of another route.
    AmbiguousPath,
    /// The target is longer than `limits.uri`.
    UriTooLong,
    /// More fields than `limits.header_fields`.
    TooManyFields,
    /// A transfer coding other than `chunked`, or `chunked` more than once (RFC 9112 section 6.1).
    TransferCoding,
    /// Several lengths.
    ContentLengths,
    /// The certificate that was served is not for this host.
    Misdirected,
    NoRoute,
    /// What the route makes of the path is not in normal form.
    BadRewrite,
    /// The route's policy does not let it in.
    Denied(Denial),
    /// The announced body is larger than allowed.
    BodyTooLarge,
    /// `limits.requests` or `limits.buffered` is reached.
    Overload,
    Upstream(Failure),
}

impl Refusal {
    /// Who failed decides the status; the reason is the word for the log and the metrics.
    pub(super) fn verdict(self) -> (StatusCode, &'static str) {
        match self {
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method"),
            Self::Host(_) => (StatusCode::BAD_REQUEST, "bad_host"),
            Self::Path(_) => (StatusCode::BAD_REQUEST, "bad_path"),
            Self::AmbiguousPath => (StatusCode::BAD_REQUEST, "ambiguous_path"),
            Self::UriTooLong => (StatusCode::URI_TOO_LONG, "uri_too_long"),
            Self::TooManyFields => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header_fields"),
            Self::TransferCoding => (StatusCode::NOT_IMPLEMENTED, "transfer_coding"),
            Self::ContentLengths => (StatusCode::BAD_REQUEST, "content_lengths"),
            Self::Misdirected => (StatusCode::MISDIRECTED_REQUEST, "misdirected"),
            Self::NoRoute => (StatusCode::NOT_FOUND, "no_route"),
            Self::BadRewrite => (StatusCode::BAD_REQUEST, "bad_rewrite"),
            Self::Denied(denial) => denial.verdict(),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::Overload => (StatusCode::SERVICE_UNAVAILABLE, "overload"),
            Self::Upstream(failure) => match failure {
                Failure::ClientBody => (StatusCode::BAD_REQUEST, "client_body"),
                Failure::ClientBodyTimeout => (StatusCode::REQUEST_TIMEOUT, "client_body_timeout"),
                Failure::ClientBodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
                Failure::Resolve => (StatusCode::BAD_GATEWAY, "upstream_unresolved"),
                Failure::NoServer => (StatusCode::SERVICE_UNAVAILABLE, "upstream_none"),
                Failure::Full => (StatusCode::SERVICE_UNAVAILABLE, "upstream_full"),
                Failure::ConnectRefused => (StatusCode::SERVICE_UNAVAILABLE, "upstream_connect_refused"),
                Failure::ConnectTimeout => (StatusCode::SERVICE_UNAVAILABLE, "upstream_connect_timeout"),
                Failure::Connect => (StatusCode::SERVICE_UNAVAILABLE, "upstream_connect_failed"),
                Failure::NoSocket => (StatusCode::SERVICE_UNAVAILABLE, "upstream_no_socket"),
                Failure::TlsTimeout => (StatusCode::SERVICE_UNAVAILABLE, "upstream_tls_timeout"),
                Failure::TlsCertificate => (StatusCode::BAD_GATEWAY, "upstream_tls_certificate"),
                Failure::TlsRefused => (StatusCode::BAD_GATEWAY, "upstream_tls_refused"),
                Failure::Tls => (StatusCode::BAD_GATEWAY, "upstream_tls_failed"),
                Failure::NotHttp2 => (StatusCode::BAD_GATEWAY, "upstream_not_http2"),
                Failure::NoSwitch => (StatusCode::BAD_GATEWAY, "upstream_no_upgrade"),
                Failure::Unstarted | Failure::Closed => (StatusCode::BAD_GATEWAY, "upstream_closed"),
                Failure::Malformed => (StatusCode::BAD_GATEWAY, "upstream_malformed"),
                Failure::ResponseTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
                Failure::ClientDeadline => (StatusCode::GATEWAY_TIMEOUT, "client_deadline"),
                Failure::AnswerBroken => (StatusCode::BAD_GATEWAY, "upstream_broken"),
                Failure::AnswerStalled => (StatusCode::GATEWAY_TIMEOUT, "upstream_stalled"),
            },
        }
    }

    /// Whether Starlock itself said no, as opposed to a server that did not answer: `starlock_rejected_total`.
    pub(super) fn is_rejection(self) -> bool {
        !matches!(
            self,
            Self::Upstream(failure)
                if !matches!(failure, Failure::ClientBody | Failure::ClientBodyTimeout | Failure::ClientBodyTooLarge)
        )
    }

    /// Whether another attempt a moment later may well go better: the answer says so in Retry-After.
    pub(super) fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Overload
                | Self::Upstream(
                    Failure::NoServer
                        | Failure::Full
                        | Failure::NoSocket
                        | Failure::ConnectRefused
                        | Failure::ConnectTimeout
                        | Failure::Connect
                        | Failure::TlsTimeout
                )
        )
    }

    /// Whether the rest of the request is not worth reading, or cannot be told from the next one, so that the connection has to end.
    /// What follows a CONNECT was meant for a tunnel.
    pub(super) fn closes(self) -> bool {
        matches!(
            self,
            Self::Method
                | Self::TransferCoding
                | Self::ContentLengths
                | Self::BodyTooLarge
                | Self::Upstream(
                    Failure::ClientBody | Failure::ClientBodyTimeout | Failure::ClientBodyTooLarge
                )
        )
    }
}

/// What a gRPC client is told instead of `status`: it reads no pages. By gRPC's table of HTTP statuses, but for 504, which is
/// known to be a deadline.
pub(super) fn grpc_status(status: StatusCode) -> (&'static str, &'static str) {
    match status.as_u16() {
        400 | 413 | 414 | 431 => ("13", "INTERNAL"),
        401 => ("16", "UNAUTHENTICATED"),
        403 => ("7", "PERMISSION_DENIED"),
        404 | 405 => ("12", "UNIMPLEMENTED"),
        408 | 504 => ("4", "DEADLINE_EXCEEDED"),
        429 | 502 | 503 => ("14", "UNAVAILABLE"),
        _ => ("2", "UNKNOWN"),
    }
}

/// Whether the client is a browser, as far as its Accept says.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::ACCEPT).iter();
    values.any(|accept| accept.as_bytes().windows(9).any(|w| w.eq_ignore_ascii_case(b"text/html")))
}

/// The page for an error: HTML for browsers, else a line of text. It says what happened and the request's id, nothing else.
pub(super) fn page(status: StatusCode, id: &str, html: bool) -> (&'static str, Bytes) {
    let reason = status.canonical_reason().unwrap_or("Error");
    let code = status.as_u16();
    if html {
        let page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{code} {reason}</title></head>\n\
             <body><h1>{code} {reason}</h1><p>Request {id}</p></body></html>\n"
        );
        ("text/html; charset=utf-8", page.into())
    } else {
        ("text/plain; charset=utf-8", format!("{code} {reason}\nRequest {id}\n").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_accept_and_hold_the_id() {
        let mut headers = HeaderMap::new();
        assert!(!wants_html(&headers));
        let (kind, text) = page(StatusCode::BAD_GATEWAY, "00ff", false);
        assert_eq!((kind, &*text), ("text/plain; charset=utf-8", &b"502 Bad Gateway\nRequest 00ff\n"[..]));
        headers.insert(header::ACCEPT, "application/xml;q=0.9, Text/HTML".parse().unwrap());
        assert!(wants_html(&headers));
        let (kind, html) = page(StatusCode::NOT_FOUND, "00ff", true);
        assert_eq!(kind, "text/html; charset=utf-8");
        assert!(
            String::from_utf8(html.to_vec()).unwrap().contains("<h1>404 Not Found</h1><p>Request 00ff</p>")
        );
    }

    #[test]
    fn who_failed_decides_the_status() {
        for (failure, status) in [
            (Failure::ConnectRefused, 503),
            (Failure::ConnectTimeout, 503),
            (Failure::TlsTimeout, 503),
            (Failure::TlsCertificate, 502),
            (Failure::Resolve, 502),
            (Failure::ResponseTimeout, 504),
            (Failure::NoServer, 503),
            (Failure::ClientBodyTimeout, 408),
        ] {
            let refusal = Refusal::Upstream(failure);
            assert_eq!(refusal.verdict().0.as_u16(), status);
            assert_eq!(refusal.is_transient(), status == 503, "{failure:?}");
        }
        assert!(
            Refusal::NoRoute.is_rejection() && Refusal::Upstream(Failure::ClientBodyTooLarge).is_rejection()
        );
        assert!(!Refusal::Upstream(Failure::Closed).is_rejection());
    }
}
