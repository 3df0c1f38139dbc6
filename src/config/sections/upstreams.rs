//! Sections about servers.

use super::super::table::{Key, Kind, Section, Words};
use super::{SECONDS, growing, section};

static SERVER: Section = growing(
    "url",
    "servers",
    "One server",
    &[
        Key::required("url", Kind::Text, "http://host[:port]"),
        Key::later("weight", "Its share of requests"),
        Key::later("backup", "Used when no other server is up"),
    ],
);

static BALANCES: Words = Words { now: &["p2c"], later: &["round_robin", "random", "hash"] };

static UPSTREAM_TIMEOUTS: Section = section(
    "timeouts",
    "How long to wait for the servers of one upstream",
    &[
        Key::new("connect", SECONDS, "\"3s\"", "TCP connect"),
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

pub(in crate::config) static UPSTREAM: Section = section(
    "[upstreams]",
    "Servers that requests go to",
    &[
        Key::required(
            "servers",
            Kind::List(&Kind::Or(&Kind::Text, &SERVER)),
            "URLs: \"http://10.0.0.11:3000\"",
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
        Key::later("tls", "TLS to the servers"),
        Key::later("retries", "Tries again elsewhere"),
        Key::later("sticky", "Keeps a client at its server"),
        Key::later("proxy_protocol", "Sends the PROXY protocol"),
    ],
);
