//! Every section of the file as a table of keys. What is not here is unknown; what is `later` is refused by name.

mod admission;
mod certificates;
mod routes;
mod upstreams;

use super::table::{Key, Kind, More, Section, Words};
use crate::proxy::client::TrustedHeader;

pub(super) use admission::MTLS;
pub(super) use certificates::{
    ACME, CAS, CERTIFICATE, DNS, LATER_PROVIDERS, NOTIFY, OWN_PROVIDERS, RESPONDER,
};
pub(super) use routes::ROUTE;
pub(super) use upstreams::UPSTREAM;

const SECONDS: Kind = Kind::Duration { zero: false };

const fn section(name: &'static str, doc: &'static str, keys: &'static [Key]) -> Section {
    Section { name, doc, keys, more: More::Nothing, grows_from: "" }
}

/// A table that a scalar may stand for: then it is the value of `grows_from`.
const fn growing(
    grows_from: &'static str,
    name: &'static str,
    doc: &'static str,
    keys: &'static [Key],
) -> Section {
    Section { name, doc, keys, more: More::Nothing, grows_from }
}

/// The whole file.
pub(super) static FILE: Section = section(
    "the file",
    "Configuration of Starlock. The smallest useful file is one route.",
    &[
        Key::new("listen", Kind::Table(&LISTEN), "", "Where clients come in"),
        Key::new(
            "acme",
            Kind::Or(&Kind::Text, &ACME),
            "",
            "Who signs certificates, unless one has its own `acme`",
        ),
        Key::new(
            "dns",
            Kind::Or(&Kind::Text, &DNS),
            "",
            "Who answers DNS-01, unless a certificate has its own `dns`",
        ),
        Key::new(
            "certificates",
            Kind::List(&Kind::Table(&CERTIFICATE)),
            "",
            "Certificates by name; without one that covers it, a route's host gets its own",
        ),
        Key::new(
            "responder",
            Kind::Table(&RESPONDER),
            "",
            "The built-in DNS server, for `dns.provider = \"builtin\"`",
        ),
        Key::new(
            "routes",
            Kind::Hosts(&Kind::Or(&Kind::Text, &ROUTE)),
            "",
            "Host and path prefix to what happens there",
        ),
        Key::new(
            "mtls",
            Kind::Map(&Kind::Or(&Kind::Path, &MTLS)),
            "",
            "Client certificates, by host; a name comes before a `*.`",
        ),
        Key::new("upstreams", Kind::Map(&Kind::Table(&UPSTREAM)), "", "Servers that requests go to, by name"),
        Key::new("timeouts", Kind::Table(&TIMEOUTS), "", "How long anything may take"),
        Key::new("limits", Kind::Table(&LIMITS), "", "How much a client may send or hold"),
        Key::new("notify", Kind::Table(&NOTIFY), "", "Who is told when a certificate is in danger"),
        Key::new("storage", Kind::Table(&STORAGE), "", "Where state lies"),
        Key::new("log", Kind::Table(&LOG), "", "What is written about requests"),
        Key::new(
            "expect",
            Kind::List(&Kind::Table(&EXPECT)),
            "",
            "Tests of the routes, run by `starlock check`",
        ),
    ],
);

pub(super) static LISTEN: Section = section(
    "[listen]",
    "Where clients come in",
    &[
        Key::new(
            "https",
            Kind::List(&Kind::Listen(443)),
            "[\"[::]:443\"]",
            "With TLS; HTTP/2 and HTTP/1.1. [] turns it off: `http` then serves the routes",
        ),
        Key::new(
            "http",
            Kind::List(&Kind::Listen(80)),
            "[\"[::]:80\"]",
            "In clear; redirects to https (308). [] turns it off",
        ),
        Key::new(
            "admin",
            Kind::Path,
            "$RUNTIME_DIRECTORY/admin.sock",
            "Unix socket that `starlock status` and its like talk to",
        ),
        Key::new("metrics", Kind::Listen(9464), "", "Where Prometheus may ask; off without it"),
        Key::new(
            "ready",
            Kind::Listen(8081),
            "",
            "Where a balancer may ask, by HTTP and any path, whether to send requests: 200, and 503 as soon as a shutdown begins; \
             off without it",
        ),
        Key::new(
            "trusted_proxies",
            Kind::List(&Kind::Net),
            "[]",
            "Peers that are believed when they say who their client is",
        ),
        Key::new(
            "trusted_header",
            Kind::Word(&TRUSTED_HEADERS),
            "\"x-forwarded-for\"",
            "The field in which they say so: the other one is their client's own, and is not believed. Beside x-forwarded-for, other \
             X-Forwarded-* and X-Real-IP are theirs; beside forwarded, nothing is",
        ),
        Key::new(
            "proxy_protocol",
            Kind::List(&Kind::Net),
            "[]",
            "Balancers whose connections begin with a PROXY header (v1 or v2): they must; nobody else may",
        ),
        Key::new("h2c", Kind::Flag, "false", "HTTP/2 in clear as well, by prior knowledge, on `http`"),
        Key::new("default_sni", Kind::Host, "", "The name whose certificate clients without SNI get"),
    ],
);

pub(super) static TIMEOUTS: Section = section(
    "[timeouts]",
    "How long anything may take",
    &[
        Key::new("handshake", SECONDS, "\"10s\"", "TLS handshake, and the PROXY header before it"),
        Key::new("header", SECONDS, "\"10s\"", "From the first byte of a request to the end of its head"),
        Key::new("idle", SECONDS, "\"180s\"", "Between the requests of a client"),
        Key::new("body", SECONDS, "\"60s\"", "Without progress on a request's body"),
        Key::new("write", SECONDS, "\"60s\"", "Without the client taking a byte of an answer"),
        Key::new("connect", SECONDS, "\"3s\"", "TCP connect to a server"),
        Key::new(
            "response",
            SECONDS,
            "\"60s\"",
            "From the end of the request to the first byte of the answer",
        ),
        Key::new(
            "attempt",
            SECONDS,
            "\"5s\"",
            "To the first byte, before an idempotent request is tried elsewhere",
        ),
        Key::new("stall", SECONDS, "\"5m\"", "Without a byte of the answer's body"),
        Key::new("upstream_idle", SECONDS, "\"60s\"", "How long an idle connection to a server is kept"),
        Key::new(
            "tunnel",
            SECONDS,
            "\"1h\"",
            "Without a byte either way: WebSocket, upgrades, `passthrough`",
        ),
        Key::new(
            "lame_duck",
            Kind::Duration { zero: true },
            "",
            "How long everything is served on when `listen.ready` has turned 503; then `drain` begins. Default: 5 s with \
             `listen.ready`, else nothing",
        ),
        Key::new(
            "drain",
            Kind::Duration { zero: true },
            "\"30s\"",
            "For requests in flight when shutting down",
        ),
    ],
);

pub(super) static LIMITS: Section = section(
    "[limits]",
    "How much a client may send or hold",
    &[
        Key::new("header", Kind::Size, "\"32KiB\"", "Head of a request (431)"),
        Key::new(
            "header_fields",
            Kind::Count { min: 1, max: 10_000 },
            "100",
            "Fields of a request's head (431)",
        ),
        Key::new("uri", Kind::Size, "\"8KiB\"", "Target of a request (414)"),
        Key::new("body", Kind::Size, "", "Body of a request (413); unlimited without it"),
        Key::new(
            "h2_streams",
            Kind::Count { min: 1, max: 100_000 },
            "100",
            "Requests at a time on one HTTP/2 connection",
        ),
        Key::new(
            "connections",
            Kind::Count { min: 1, max: 100_000_000 },
            "",
            "Open connections; from nine tenths on, those idle the longest are closed. Default: 90 % of half the file limit",
        ),
        Key::new(
            "requests",
            Kind::Count { min: 1, max: 100_000_000 },
            "",
            "Requests under way in all (503 with Retry-After). Default: 90 % of half the file limit",
        ),
        Key::new(
            "buffered",
            Kind::Size,
            "",
            "Bytes held in all for clients that do not read and servers that do not take (503). Default: a quarter of the memory",
        ),
        Key::new(
            "connections_per_ip",
            Kind::Count { min: 1, max: 100_000_000 },
            "",
            "Open connections of one address (IPv6: of one /64); unlimited without it",
        ),
    ],
);

pub(super) static STORAGE: Section = section(
    "[storage]",
    "Where state lies",
    &[
        Key::new(
            "path",
            Kind::Path,
            "$STATE_DIRECTORY",
            "A directory of Starlock's own; made if it does not exist",
        ),
        Key::later("etcd", "State in etcd, for many machines"),
    ],
);

static TRUSTED_HEADERS: Words = Words { now: &TrustedHeader::WORDS, later: &[] };

static ACCESS: Words = Words { now: &["stdout", "off"], later: &[] };

static ACCESS_FILE: Section =
    section("access", "A file", &[Key::required("file", Kind::Path, "Opened again on SIGUSR1")]);

pub(super) static LOG: Section = section(
    "[log]",
    "What is written about requests",
    &[Key::new(
        "access",
        Kind::Or(&Kind::Word(&ACCESS), &ACCESS_FILE),
        "\"stdout\"",
        "Where a line for each request goes: stdout, off, or { file = \"...\" }",
    )],
);

pub(super) static EXPECT: Section = section(
    "[[expect]]",
    "A request and what must become of it",
    &[
        Key::required("request", Kind::Text, "Method and URL: \"GET https://app.example.com/api\""),
        Key::new(
            "header",
            Kind::Map(&Kind::Text),
            "",
            "Fields of the request, for conditions: { X-Beta = \"1\" }",
        ),
        Key::new("to", Kind::Text, "", "The upstream that it must reach"),
        Key::new(
            "status",
            Kind::Count { min: 200, max: 599 },
            "",
            "The status that Starlock itself must answer with",
        ),
        Key::new("redirect", Kind::Text, "", "The URL that it must be sent to"),
    ],
);
