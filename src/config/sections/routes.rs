//! Sections about routes: what a request meets on its way.

use super::super::table::{Key, Kind, Section};
use super::admission::{BASIC_AUTH, CONCURRENCY, FORWARD_AUTH, RATE_LIMIT};
use super::{growing, section};

pub(in crate::config) static ROUTE: Section = growing(
    "to",
    "[routes]",
    "What happens at a host and path",
    &[
        Key::new("to", Kind::Text, "", "Name of an upstream, or a URL such as \"http://127.0.0.1:3000\""),
        Key::new("strip_prefix", Kind::Flag, "false", "Takes the route's path off before forwarding"),
        Key::new(
            "redirect",
            Kind::Text,
            "",
            "Where clients are sent; keeps path and query unless it has a path",
        ),
        Key::new(
            "passthrough",
            Kind::Text,
            "",
            "Server (\"10.0.0.5:5432\") or upstream that gets the TLS connections for this host as they are",
        ),
        Key::new("respond", Kind::Count { min: 200, max: 599 }, "", "Answers with this status"),
        Key::new("body", Kind::Text, "", "The text that `respond` answers with"),
        Key::new(
            "status",
            Kind::Count { min: 100, max: 999 },
            "308",
            "Status of `redirect`: 301, 302, 303, 307 or 308",
        ),
        Key::new(
            "allow",
            Kind::OneOrMore(&Kind::Net),
            "",
            "Networks that may use the route; all others are 403",
        ),
        Key::new(
            "deny",
            Kind::OneOrMore(&Kind::Net),
            "",
            "Networks that may not use the route (403); comes before `allow`",
        ),
        Key::new(
            "rate_limit",
            Kind::Or(&Kind::Text, &RATE_LIMIT),
            "",
            "So many requests in a time, such as \"100/1m\"; more are 429",
        ),
        Key::new(
            "concurrency",
            Kind::Or(&Kind::Count { min: 1, max: 1_000_000 }, &CONCURRENCY),
            "",
            "So many requests at a time; more are 503",
        ),
        Key::new("basic_auth", Kind::Table(&BASIC_AUTH), "", "Who may come, by name and password"),
        Key::new(
            "forward_auth",
            Kind::Or(&Kind::Text, &FORWARD_AUTH),
            "",
            "Asks another server whether a request may pass",
        ),
        Key::new("max_body", Kind::Size, "", "Largest request body (413); replaces `limits.body`"),
        Key::later("headers", "Header rules"),
        Key::later("compress", "Compresses answers"),
        Key::new(
            "hsts",
            Kind::Or(&Kind::Flag, &HSTS),
            "false",
            "Tells browsers to come by https only: Strict-Transport-Security on every answer",
        ),
        Key::later("rewrite", "Changes the path"),
        Key::later("error_pages", "Pages for errors"),
        Key::later("methods", "Condition on the method"),
        Key::later("when", "Condition on the request"),
        Key::later("mirror", "Copies a share of requests to another upstream"),
        Key::later("split", "Shares requests among upstreams by weight"),
        Key::later("timeouts", "Time-outs of this route alone"),
    ],
);

static HSTS: Section = section(
    "hsts",
    "Strict-Transport-Security (RFC 6797)",
    &[
        Key::new(
            "max_age",
            Kind::Duration { zero: true },
            "\"365d\"",
            "How long browsers remember it; \"0s\" takes it back",
        ),
        Key::new("subdomains", Kind::Flag, "false", "For all names below, too"),
        Key::new("preload", Kind::Flag, "false", "Allows the lists that browsers ship; hard to undo"),
    ],
);
