//! Sections about servers.

use super::super::table::{Key, Kind, Section, Words};
use super::{SECONDS, growing, section};

static SERVER: Section = growing(
    "url",
    "servers",
    "One server",
    &[
        Key::required("url", Kind::Text, "http://host[:port], https://, h2c://, unix:/path"),
        Key::later("weight", "Its share of requests"),
        Key::later("backup", "Used when no other server is up"),
    ],
);

static BALANCES: Words = Words { now: &["p2c"], later: &["round_robin", "random", "hash"] };

static UPSTREAM_TIMEOUTS: Section = section(
    "timeouts",
    "How long to wait for the servers of one upstream",
    &[
        Key::new("connect", SECONDS, "\"3s\"", "TCP connect, and as long again for TLS"),
        Key::new(
            "response",
            SECONDS,
            "\"60s\"",
            "From the end of the request to the first byte of the answer",
        ),
        Key::new("stall", SECONDS, "\"5m\"", "Without a byte of the answer's body"),
        Key::new("upstream_idle", SECONDS, "\"60s\"", "How long an idle connection to a server is kept"),
        Key::later("attempt", "To the first byte, before an idempotent request is tried elsewhere"),
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
        Key::new(
            "balance",
            Kind::Word(&BALANCES),
            "\"p2c\"",
            "How a server is chosen; p2c: the less busy of two",
        ),
        Key::later("health", "Asks servers whether they are well"),
        Key::new(
            "timeouts",
            Kind::Table(&UPSTREAM_TIMEOUTS),
            "",
            "Replaces those of [timeouts], each on its own",
        ),
        Key::new("tls", Kind::Table(&UPSTREAM_TLS), "", "TLS to the https:// servers"),
        Key::later("retries", "Tries again elsewhere"),
        Key::later("sticky", "Keeps a client at its server"),
        Key::new(
            "proxy_protocol",
            Kind::Word(&PROXY_PROTOCOLS),
            "",
            "Tells servers the client's address by a PROXY header; connections are then kept for one client each",
        ),
    ],
);
