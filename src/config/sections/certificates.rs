//! Sections about certificates: who signs, who answers, which names.

use super::super::table::{Key, Kind, More, Section, Words};
use super::{SECONDS, growing, section};

/// `acme.ca`, beside directory URLs.
pub(in crate::config) static CAS: Words = Words {
    now: &["letsencrypt", "letsencrypt-staging", "zerossl", "google", "sslcom", "local"],
    later: &[],
};
static KEYS: Words = Words { now: &["p256", "p384", "rsa2048", "rsa4096"], later: &[] };
static CHALLENGES: Words = Words {
    now: &["auto", "dns-01", "http-01", "tls-alpn-01", "dns-account-01", "dns-persist-01"],
    later: &[],
};

const CA: Key = Key::new(
    "ca",
    Kind::Text,
    "\"letsencrypt\"",
    "letsencrypt, letsencrypt-staging, zerossl, google, sslcom, local, or the URL of an ACME directory",
);
const EMAIL: Key = Key::new("email", Kind::Text, "", "Contact for the CA; one for each CA");
const CA_ROOT: Key =
    Key::new("ca_root", Kind::Path, "", "PEM file with a root to trust for a private ACME directory");
const EAB_KEY: Key = Key::new(
    "eab",
    Kind::Table(&EAB),
    "",
    "External account binding, for CAs that demand it; used once, one for each CA",
);
const PROFILE: Key = Key::new("profile", Kind::Text, "", "A profile that the CA's directory offers");
const CHAIN: Key = Key::new(
    "preferred_chain",
    Kind::Text,
    "",
    "Which of the CA's chains to serve: the common name of the issuer of its topmost certificate",
);
const CA_LIMITS: Key = Key::new(
    "limits",
    Kind::Table(&ALLOWANCE),
    "",
    "What the CA allows, whichever certificate it is for; known for Let's Encrypt, nothing for a private directory",
);

pub(in crate::config) static ACME: Section = growing(
    "ca",
    "[acme]",
    "Who signs certificates",
    &[
        EMAIL,
        CA,
        CA_ROOT,
        Key::new("key", Kind::Word(&KEYS), "\"p256\"", "The kind of private key to make"),
        Key::new(
            "challenge",
            Kind::Word(&CHALLENGES),
            "\"auto\"",
            "How control of a name is proven; auto: dns-01 with a [dns], else tls-alpn-01 and http-01 by the listeners",
        ),
        Key::new(
            "fallback",
            Kind::List(&Kind::Or(&Kind::Text, &FALLBACK)),
            "[]",
            "CAs that are tried in this order when the one before is down or refuses",
        ),
        EAB_KEY,
        PROFILE,
        CHAIN,
        CA_LIMITS,
        Key::new("rehearse", Kind::Flag, "false", "Orders new sets of names at the CA's staging first"),
    ],
);

pub(in crate::config) static FALLBACK: Section =
    growing("ca", "fallback", "Another CA", &[EMAIL, CA, CA_ROOT, EAB_KEY, PROFILE, CHAIN, CA_LIMITS]);

static EAB: Section = section(
    "eab",
    "An account that was made at the CA before",
    &[
        Key::required("kid", Kind::Text, "The key identifier that the CA gave"),
        Key::required("hmac", Kind::Secret, "The HMAC key beside it, in base64url"),
    ],
);

static ALLOWANCE: Section = section(
    "limits",
    "What a CA allows",
    &[
        Key::new("names", Kind::Table(&RATE), "", "Certificates for one exact set of names"),
        Key::new("domain", Kind::Table(&RATE), "", "Certificates for one registered domain"),
        Key::new("orders", Kind::Table(&RATE), "", "Orders of the account"),
        Key::new("failures", Kind::Table(&RATE), "", "Failed authorizations of one name"),
        Key::new("accounts", Kind::Table(&RATE), "", "New accounts of this machine's address"),
        Key::new(
            "pause_after",
            Kind::Count { min: 1, max: 1_000_000 },
            "",
            "Failures of a name in a row after which the CA pauses it",
        ),
    ],
);

static RATE: Section = section(
    "rate",
    "So many at once, and one more each time",
    &[
        Key::required("burst", Kind::Count { min: 1, max: 1_000_000_000 }, "How many may be used at once"),
        Key::required("every", SECONDS, "After this time one more may be"),
    ],
);

static CHECKS: Words = Words { now: &["authoritative", "doh", "wait", "off"], later: &[] };

pub(in crate::config) static PROPAGATION: Section = growing(
    "check",
    "propagation",
    "How to know that a record is visible",
    &[
        Key::new(
            "check",
            Kind::Word(&CHECKS),
            "\"authoritative\"",
            "Whom to ask: every authoritative server, resolvers over HTTPS, or nobody",
        ),
        Key::new(
            "doh",
            Kind::List(&Kind::Text),
            "[\"https://cloudflare-dns.com/dns-query\", \"https://dns.google/dns-query\"]",
            "For `doh`: resolvers outside (RFC 8484); each has to show the records",
        ),
        Key::new("wait", SECONDS, "\"60s\"", "For `wait`: how long before the CA is told"),
        Key::new(
            "timeout",
            SECONDS,
            "\"120s\"",
            "How long to wait before giving up; the CA is told nothing then",
        ),
    ],
);

pub(in crate::config) static DNS: Section = Section {
    name: "[dns]",
    doc: "Who answers DNS-01",
    keys: &[
        Key::required(
            "provider",
            Kind::Text,
            "Who: builtin, rfc2136, exec, httpreq, acme-dns, or a DNS vendor",
        ),
        Key::new("zone", Kind::Dns, "", "The zone to write into, instead of finding it"),
        Key::new("ttl", SECONDS, "\"60s\"", "TTL of the records"),
        Key::new("timeout", SECONDS, "\"30s\"", "Time for one call to the provider"),
        Key::new(
            "propagation",
            Kind::Or(&Kind::Word(&CHECKS), &PROPAGATION),
            "\"authoritative\"",
            "How to know that the records are visible",
        ),
        Key::new(
            "resolvers",
            Kind::List(&Kind::Server(53)),
            "",
            "DNS servers used to find authoritative servers; default: the system's",
        ),
    ],
    more: More::Provider,
    grows_from: "provider",
};

static ALGORITHMS: Words = Words { now: &["hmac-sha256", "hmac-sha384", "hmac-sha512"], later: &[] };

/// Providers that are no vendor, and their own keys.
pub(in crate::config) static OWN_PROVIDERS: &[(&str, &[Key])] = &[
    ("builtin", &[]),
    (
        "rfc2136",
        &[
            Key::required("server", Kind::Server(53), "Where updates go"),
            Key::required("key_name", Kind::Text, "Name of the TSIG key"),
            Key::required("secret", Kind::Secret, "The TSIG key in base64"),
            Key::new("algorithm", Kind::Word(&ALGORITHMS), "\"hmac-sha256\"", "Algorithm of the TSIG key"),
        ],
    ),
    ("exec", &[Key::required("program", Kind::Path, "Called as PROGRAM present|cleanup FQDN. VALUE")]),
    (
        "httpreq",
        &[
            Key::required("endpoint", Kind::Text, "POST goes to ENDPOINT/present and ENDPOINT/cleanup"),
            Key::new("username", Kind::Text, "", "User name for basic authentication"),
            Key::new("password", Kind::Secret, "", "Password for basic authentication"),
        ],
    ),
    (
        "acme-dns",
        &[
            Key::required("endpoint", Kind::Text, "URL of the acme-dns server"),
            Key::required(
                "accounts",
                Kind::Path,
                "File with the accounts as lego writes it; made if it is not there",
            ),
        ],
    ),
];

/// Providers that are refused until their feature exists.
pub(in crate::config) static LATER_PROVIDERS: &[&str] = &[];

pub(in crate::config) static CERTIFICATE: Section = section(
    "[[certificates]]",
    "One certificate",
    &[
        Key::new(
            "names",
            Kind::List(&Kind::Pattern),
            "",
            "Its names; `*.` stands for exactly one label. With `cert`, what the file has to be for",
        ),
        Key::new("dns", Kind::Or(&Kind::Text, &DNS), "", "Who answers DNS-01; replaces [dns] as a whole"),
        Key::new("acme", Kind::Or(&Kind::Text, &ACME), "", "Who signs it; replaces [acme] as a whole"),
        Key::new(
            "cert",
            Kind::Path,
            "",
            "A PEM file that someone else renews; watched and swapped under traffic",
        ),
        Key::new("key", Kind::Path, "", "The private key beside `cert`"),
        Key::new(
            "deploy",
            Kind::OneOrMore(&Kind::Table(&DEPLOY)),
            "",
            "Files to write and a hook to run after each renewal",
        ),
    ],
);

pub(in crate::config) static DEPLOY: Section = section(
    "deploy",
    "Passes the certificate on to another program",
    &[
        Key::new(
            "dir",
            Kind::Path,
            "",
            "Gets fullchain.pem, cert.pem, chain.pem and privkey.pem; made if it does not exist",
        ),
        Key::new(
            "run",
            Kind::OneOrMore(&Kind::Text),
            "",
            "A program, or a list of it and its arguments; no shell. Told in STARLOCK_CERT_NAMES, _DIR, _KEY, _FULLCHAIN, _SERIAL",
        ),
        Key::new("owner", Kind::Text, "", "Whose the files are: user, user:group or :group"),
        Key::new("mode", Kind::Text, "\"0600\"", "Rights of the files, octal"),
        Key::new("timeout", SECONDS, "\"60s\"", "For the writing, and again for the program"),
    ],
);

pub(in crate::config) static NOTIFY: Section = section(
    "[notify]",
    "Who is told when a certificate is in danger",
    &[
        Key::required(
            "webhook",
            Kind::Text,
            "A URL that JSON is posted to: failures, recoveries, coming ends",
        ),
        Key::new(
            "secret",
            Kind::Secret,
            "",
            "Signs the body: X-Starlock-Signature: sha256=HMAC-SHA256 in hexadecimal",
        ),
        Key::new("ca_root", Kind::Path, "", "PEM file with a root to trust for the webhook"),
        Key::new("repeat", SECONDS, "\"24h\"", "A failure that goes on is told again after this time"),
        Key::new(
            "before_expiry",
            SECONDS,
            "\"24h\"",
            "The last warning before the end; others come at a sixth and a twentieth of the lifetime",
        ),
    ],
);

static NAME_SERVER: Section = section(
    "nameservers",
    "One name of the responder",
    &[
        Key::required("name", Kind::Dns, "The name in the NS record"),
        Key::new("addresses", Kind::List(&Kind::Ip), "[]", "Its addresses as the world sees them"),
    ],
);

pub(in crate::config) static RESPONDER: Section = section(
    "[responder]",
    "The built-in authoritative DNS server",
    &[
        Key::required("listen", Kind::List(&Kind::Listen(53)), "Where it listens, UDP and TCP"),
        Key::new("zone", Kind::Dns, "", "Its own zone, only for CNAME delegation"),
        Key::required(
            "nameservers",
            Kind::List(&Kind::Table(&NAME_SERVER)),
            "Its names as the world knows them",
        ),
    ],
);
