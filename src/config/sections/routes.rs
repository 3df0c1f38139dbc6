//! Sections about routes: what a request meets on its way.

use super::super::table::{Key, Kind, Section, Words};
use super::admission::{BASIC_AUTH, CONCURRENCY, FORWARD_AUTH, RATE_LIMIT};
use super::{SECONDS, growing, section};

pub(in crate::config) static ROUTE: Section = growing(
    "to",
    "[routes]",
    "What happens at a host and path",
    &[
        Key::new(
            "when",
            Kind::Table(&WHEN),
            "",
            "What requests it is for. Of several tables in one list, the first whose condition is met; if none is: 404",
        ),
        Key::new(
            "to",
            Kind::Either(&Kind::Text, &Kind::Map(&WEIGHT)),
            "",
            "Name of an upstream, or a URL such as \"http://127.0.0.1:3000\"; or several with their weights: { app = 95, canary = 5 }",
        ),
        Key::new(
            "stick",
            Kind::Text,
            "",
            "What keeps a client at one of several upstreams: \"ip\", or \"cookie:NAME\" (one that somebody else sets)",
        ),
        Key::new("strip_prefix", Kind::Flag, "false", "Takes the route's path off before forwarding"),
        Key::new("rewrite", Kind::Table(&REWRITE), "", "Changes the path before forwarding; the query stays"),
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
        Key::new(
            "match",
            Kind::Text,
            "",
            "A pattern for the whole path, whose groups `redirect` holds as $1; paths that it does not match are 404",
        ),
        Key::new("respond", Kind::Count { min: 200, max: 599 }, "", "Answers with this status"),
        Key::new("body", Kind::Text, "", "The text that `respond` answers with"),
        Key::new("content_type", Kind::Text, "\"text/plain; charset=utf-8\"", "The media type of `body`"),
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
        Key::new(
            "request_headers",
            Kind::Table(&FIELDS),
            "",
            "Changes to the fields of requests for the server",
        ),
        Key::new(
            "response_headers",
            Kind::Table(&FIELDS),
            "",
            "Changes to the fields of answers, Starlock's own included",
        ),
        Key::new(
            "compress",
            Kind::Either(&Kind::Flag, &Kind::List(&Kind::Word(&CODINGS))),
            "false",
            "Compresses answers that are like text and at least 1 KiB; true is [\"zstd\", \"br\", \"gzip\"], the preferred one first",
        ),
        Key::new(
            "hsts",
            Kind::Or(&Kind::Flag, &HSTS),
            "false",
            "Tells browsers to come by https only: Strict-Transport-Security on every answer",
        ),
        Key::new(
            "error_pages",
            Kind::Map(&Kind::Either(&Kind::Flag, &Kind::Path)),
            "",
            "Files shown for errors: { \"404\" = \"/file.html\", \"5xx\" = \"/file.html\" }; upstream = true: also instead of a server's",
        ),
        Key::new(
            "mirror",
            Kind::Or(&Kind::Text, &MIRROR),
            "",
            "Sends copies of requests to another upstream, whose answers nobody sees",
        ),
        Key::new(
            "timeouts",
            Kind::Table(&TIMEOUTS),
            "",
            "Replaces those of the upstream and of [timeouts], each on its own",
        ),
    ],
);

/// Of one upstream among several.
static WEIGHT: Kind = Kind::Count { min: 0, max: 1_000_000 };

/// A value, one of several, or whether it is there at all.
static WANTED: Kind = Kind::Either(&Kind::Flag, &Kind::OneOrMore(&Kind::Text));

static WHEN: Section = section(
    "when",
    "A condition; all that it says must be met",
    &[
        Key::new("method", Kind::OneOrMore(&Kind::Text), "", "One of these methods; HEAD is one of its own"),
        Key::new(
            "header",
            Kind::Map(&WANTED),
            "",
            "Fields and their values: one, one of a list, true (there) or false (not there)",
        ),
        Key::new(
            "query",
            Kind::Map(&WANTED),
            "",
            "Parameters of the query and their values, like those of header",
        ),
    ],
);

static REWRITE: Section = section(
    "rewrite",
    "A path that becomes another",
    &[
        Key::required(
            "match",
            Kind::Text,
            "A regular expression for the whole path; what it does not match stays",
        ),
        Key::required("to", Kind::Text, "The new path, with groups of the pattern: \"/new/$1\""),
    ],
);

static FIELDS: Section = section(
    "headers",
    "Rules for fields: remove, then set, then add",
    &[
        Key::new(
            "set",
            Kind::Map(&Kind::Text),
            "",
            "Fields that get this value and no other; {client_ip}, {host}, {scheme}, {method}, {request_id} are filled in",
        ),
        Key::new("add", Kind::Map(&Kind::Text), "", "Fields that are there once more"),
        Key::new("remove", Kind::OneOrMore(&Kind::Text), "", "Fields that go"),
    ],
);

static CODINGS: Words = Words { now: &["zstd", "br", "gzip"], later: &[] };

static MIRROR: Section = growing(
    "to",
    "mirror",
    "Copies of requests; bodies of more than 64 KiB are not copied",
    &[
        Key::required("to", Kind::Text, "Name of an upstream, or a URL"),
        Key::new("percent", Kind::Count { min: 1, max: 100 }, "100", "How many of a hundred requests"),
    ],
);

static TIMEOUTS: Section = section(
    "timeouts",
    "Time-outs of this route alone",
    &[
        Key::new("response", SECONDS, "", "From the end of the request to the first byte of the answer"),
        Key::new("stall", SECONDS, "", "Without a byte of the answer's body"),
        Key::new("body", SECONDS, "", "Without progress on the request's body"),
        Key::new(
            "attempt",
            SECONDS,
            "",
            "To the first byte, before an idempotent request is tried elsewhere",
        ),
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
