//! Sections about who may come, and how often.

use super::super::table::{Key, Kind, Section};
use super::{SECONDS, growing, section};

pub(in crate::config) static MTLS: Section = growing(
    "ca",
    "[mtls]",
    "Client certificates at a host: asked for in the handshake, by SNI",
    &[
        Key::required("ca", Kind::Path, "PEM file with the certificates of those who may sign"),
        Key::new(
            "optional",
            Kind::Flag,
            "false",
            "Lets clients without a certificate in, too; a wrong one is refused",
        ),
    ],
);

pub(super) static RATE_LIMIT: Section = growing(
    "rate",
    "rate_limit",
    "So many requests in a time, counted over all workers (GCRA); more are 429",
    &[
        Key::new("rate", Kind::Text, "", "Requests and time in one: \"100/1m\""),
        Key::new("requests", Kind::Count { min: 1, max: 1_000_000 }, "", "How many, with `per`"),
        Key::new("per", SECONDS, "", "In which time, with `requests`"),
        Key::new(
            "burst",
            Kind::Count { min: 1, max: 1_000_000 },
            "as many as `requests`",
            "How many of them may come at once",
        ),
        Key::new(
            "by",
            Kind::Text,
            "\"ip\"",
            "Who shares an allowance: ip (IPv6: a /64), route, or header:NAME (without that field: ip). The 65,536 busiest clients of a rule are remembered",
        ),
    ],
);

pub(super) static CONCURRENCY: Section = growing(
    "requests",
    "concurrency",
    "So many requests at a time; more are 503",
    &[
        Key::required("requests", Kind::Count { min: 1, max: 1_000_000 }, "How many"),
        Key::new("by", Kind::Text, "\"route\"", "route, or ip (IPv6: a /64)"),
    ],
);

pub(super) static BASIC_AUTH: Section = section(
    "basic_auth",
    "Names and passwords (RFC 7617); others are 401",
    &[
        Key::new(
            "users",
            Kind::Map(&Kind::PasswordHash),
            "",
            "Names and hashes of passwords, argon2 or bcrypt: `starlock hash-password` makes them",
        ),
        Key::new(
            "file",
            Kind::Path,
            "",
            "More users, as `htpasswd -B` writes them; read again when it changes",
        ),
        Key::new("realm", Kind::Text, "\"restricted\"", "What browsers show"),
        Key::new("forward_credentials", Kind::Flag, "false", "Sends the password on to the server"),
        Key::new(
            "user_header",
            Kind::Text,
            "",
            "The field that tells the server the name; a client's own is removed",
        ),
    ],
);

pub(super) static FORWARD_AUTH: Section = growing(
    "url",
    "forward_auth",
    "Another server decides: 2xx lets a request pass, 3xx and 4xx go to the client, anything else is 503",
    &[
        Key::required(
            "url",
            Kind::Text,
            "Whom to ask: a GET with X-Forwarded-Method, -Proto, -Host, -Uri, -For and the request's fields",
        ),
        Key::new(
            "copy",
            Kind::List(&Kind::Text),
            "[]",
            "Fields of its answer that the server is told, such as Remote-User; a client's own are removed",
        ),
        Key::new("timeout", SECONDS, "\"5s\"", "For the whole answer; after it the request is denied (503)"),
    ],
);
