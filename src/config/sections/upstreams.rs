//! Sections about servers.

use super::super::table::{Key, Kind, Section, Words};
use super::{SECONDS, growing, section};

/// A number of things that are counted on the fingers.
const FEW: Kind = Kind::Count { min: 1, max: 100 };
/// A bound of a server.
const MANY: Kind = Kind::Count { min: 1, max: 1_000_000 };

static SERVER: Section = growing(
    "url",
    "servers",
    "One server",
    &[
        Key::required(
            "url",
            Kind::Text,
            "http://host[:port], https://, h2c://: every address of the host is a server. srv://_http._tcp.example.com (srv+https://, srv+h2c://): what its SRV records say. unix:/path",
        ),
        Key::new("weight", Kind::Count { min: 1, max: 256 }, "1", "Its share of requests"),
        Key::new("backup", Kind::Flag, "false", "Gets requests only when no other server can take them"),
        Key::new("max_connections", MANY, "", "Open connections at a time, over all workers"),
        Key::new(
            "max_requests",
            MANY,
            "",
            "Requests at a time; beyond it others get them, and if all are full clients get 503 with Retry-After",
        ),
    ],
);

static BALANCES: Words = Words { now: &["p2c", "round_robin", "random", "hash"], later: &[] };

static BALANCE: Section = section(
    "balance",
    "How a server is chosen",
    &[
        Key::new("by", Kind::Word(&BALANCES), "\"p2c\"", "p2c: of two at random, the less busy one"),
        Key::new(
            "key",
            Kind::Text,
            "\"ip\"",
            "What `hash` goes by: ip, path, header:NAME, cookie:NAME; without the header or cookie, the ip",
        ),
    ],
);

static STICKY: Section = section(
    "sticky",
    "A signed cookie that keeps a client at its server as long as that is up",
    &[
        Key::required("cookie", Kind::Text, "Its name"),
        Key::required("secret", Kind::Secret, "Signs it; the same on all machines"),
        Key::new("ttl", SECONDS, "", "How long a browser keeps it; without it, until it is closed"),
    ],
);

static QUESTIONS: Words = Words { now: &["http", "grpc", "tcp"], later: &[] };

static HEALTH: Section = growing(
    "path",
    "health",
    "How servers are asked whether they are well",
    &[
        Key::new(
            "kind",
            Kind::Word(&QUESTIONS),
            "\"http\"",
            "http: GET; grpc: grpc.health.v1 over HTTP/2 in clear; tcp: a connection",
        ),
        Key::new("path", Kind::Text, "", "What is got by `http`"),
        Key::new(
            "status",
            Kind::OneOrMore(&Kind::Count { min: 100, max: 599 }),
            "",
            "Statuses that are well; default: 200 to 299",
        ),
        Key::new("service", Kind::Text, "", "The service that `grpc` asks about; default: the whole server"),
        Key::new("every", SECONDS, "\"10s\"", "From one question to the next, give or take a tenth"),
        Key::new("timeout", SECONDS, "\"3s\"", "For connection and answer"),
        Key::new(
            "fall",
            FEW,
            "3",
            "Bad answers in a row that make a server down; the very first one alone does",
        ),
        Key::new("rise", FEW, "2", "Good answers in a row that make it up again"),
    ],
);

static PASSIVE: Section = section(
    "passive",
    "When a server that fails requests gets none for a while; at most half of them",
    &[
        Key::new("connect_errors", FEW, "3", "Connections in a row that were not had"),
        Key::new("failures", FEW, "5", "Requests in a row without an answer, or with 502, 503 or 504"),
        Key::new("within", SECONDS, "\"10s\"", "The time for `failures`"),
        Key::new(
            "eject",
            SECONDS,
            "\"10s\"",
            "How long it gets none; doubles if it fails again soon after its return",
        ),
        Key::new("eject_max", SECONDS, "\"5m\"", "At most so long"),
    ],
);

static RETRIES: Section = section(
    "retries",
    "When a request is tried on another server",
    &[
        Key::new(
            "connect",
            Kind::Count { min: 0, max: 5 },
            "2",
            "Others that are tried when no connection was had; those that refuse it are passed over and not counted, unless this is 0",
        ),
        Key::new(
            "idempotent",
            Kind::Count { min: 0, max: 5 },
            "1",
            "Others that a GET, HEAD, OPTIONS, PUT or DELETE of at most 64 KiB is sent to when there is no answer",
        ),
        Key::new(
            "on",
            Kind::OneOrMore(&Kind::Count { min: 400, max: 599 }),
            "[502, 503, 504]",
            "Answers that are as good as none; [] for none",
        ),
        Key::new(
            "budget",
            Kind::Count { min: 0, max: 100 },
            "20",
            "Percent of requests that `idempotent` may repeat; three a second are always allowed",
        ),
    ],
);

static UPSTREAM_TIMEOUTS: Section = section(
    "timeouts",
    "How long to wait for the servers of one upstream",
    &[
        Key::new(
            "connect",
            SECONDS,
            "\"3s\"",
            "TCP connect, all servers that are tried together; and as long again for TLS",
        ),
        Key::new(
            "response",
            SECONDS,
            "\"60s\"",
            "From the end of the request to the first byte of the answer",
        ),
        Key::new("stall", SECONDS, "\"5m\"", "Without a byte of the answer's body"),
        Key::new("upstream_idle", SECONDS, "\"60s\"", "How long an idle connection to a server is kept"),
        Key::new(
            "attempt",
            SECONDS,
            "\"5s\"",
            "To the first byte, before an idempotent request is tried elsewhere",
        ),
    ],
);

static PROXY_PROTOCOLS: Words = Words { now: &["v1", "v2"], later: &[] };

static TLS_HTTP: Words = Words { now: &["auto", "1.1", "2"], later: &[] };

static UPSTREAM_TLS: Section = section(
    "tls",
    "TLS to servers. Files that change are read again within 5 s",
    &[
        Key::new("ca", Kind::Path, "", "PEM file with the roots that are trusted, instead of the system's"),
        Key::new("cert", Kind::Path, "", "PEM file with our certificate, for servers that ask for one"),
        Key::new("key", Kind::Path, "", "PEM file with its key"),
        Key::new("sni", Kind::Host, "", "The name that is asked for and verified, instead of the URL's host"),
        Key::new(
            "http",
            Kind::Word(&TLS_HTTP),
            "\"auto\"",
            "Which HTTP is spoken; auto: HTTP/2 if the server picks it, else HTTP/1.1",
        ),
        Key::new(
            "danger_skip_verify",
            Kind::Flag,
            "false",
            "Takes any certificate: whoever gets in between reads and changes everything",
        ),
    ],
);

pub(in crate::config) static UPSTREAM: Section = section(
    "[upstreams]",
    "Servers that requests go to",
    &[
        Key::required(
            "servers",
            Kind::List(&Kind::Or(&Kind::Text, &SERVER)),
            "URLs: \"http://10.0.0.11:3000\"; also https://, h2c:// and unix:/path",
        ),
        Key::new("balance", Kind::Or(&Kind::Word(&BALANCES), &BALANCE), "\"p2c\"", "How a server is chosen"),
        Key::new("sticky", Kind::Table(&STICKY), "", "Keeps a client at its server"),
        Key::new(
            "slow_start",
            SECONDS,
            "",
            "A server that comes, or comes back, gets its full share only after this time",
        ),
        Key::new(
            "health",
            Kind::Or(&Kind::Text, &HEALTH),
            "",
            "Asks servers whether they are well: the path of a GET, or a table",
        ),
        Key::new(
            "passive",
            Kind::Or(&Kind::Flag, &PASSIVE),
            "true",
            "A server that fails requests gets none for a while",
        ),
        Key::new("retries", Kind::Or(&Kind::Flag, &RETRIES), "true", "Tries again elsewhere"),
        Key::new(
            "timeouts",
            Kind::Table(&UPSTREAM_TIMEOUTS),
            "",
            "Replaces those of [timeouts], each on its own",
        ),
        Key::new("tls", Kind::Table(&UPSTREAM_TLS), "", "TLS to the https:// servers"),
        Key::new(
            "proxy_protocol",
            Kind::Word(&PROXY_PROTOCOLS),
            "",
            "Tells servers the client's address by a PROXY header; connections are then kept for one client each",
        ),
    ],
);
