//! What the configuration says about who answers DNS-01.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::name::DnsName;
use crate::secret::SecretSource;

/// A `[dns]` section or a certificate's own `dns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderSpec {
    /// Who.
    pub kind: ProviderKind,
    /// The keys that every provider takes.
    pub common: CommonKeys,
}

/// Keys that every provider takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommonKeys {
    /// The zone to write into, instead of finding it.
    pub zone: Option<DnsName>,
    /// TTL of the records, in seconds (default 60).
    pub ttl: Option<u32>,
    /// Time for one call to the provider (default 30 s).
    pub timeout: Option<Duration>,
    /// How to know that the records are visible.
    pub propagation: Propagation,
    /// DNS servers used to find authoritative servers; empty means the system's.
    pub resolvers: Vec<SocketAddr>,
}

/// How to know that a record is visible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// Whom to ask.
    pub check: PropagationCheck,
    /// How long to wait before giving up, before the CA is told anything.
    pub timeout: Duration,
    /// For `doh`: URLs of resolvers (RFC 8484); each has to show the records.
    pub doh: Vec<String>,
    /// For `wait`: how long.
    pub wait: Duration,
}

/// Resolvers that are asked over HTTPS when none are named.
pub const DEFAULT_DOH: [&str; 2] = ["https://cloudflare-dns.com/dns-query", "https://dns.google/dns-query"];

impl Default for Propagation {
    fn default() -> Self {
        Self {
            check: PropagationCheck::Authoritative,
            timeout: Duration::from_secs(120),
            doh: DEFAULT_DOH.map(str::to_owned).into(),
            wait: Duration::from_secs(60),
        }
    }
}

/// Whom to ask whether a record is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropagationCheck {
    /// Every authoritative server of the zone.
    Authoritative,
    /// Resolvers outside, over HTTPS: where port 53 is blocked, or names look different inside.
    Doh,
    /// Nobody; the CA is told after a fixed time.
    Wait,
    /// Nobody; the CA is told at once.
    Off,
}

/// The provider and its own keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderKind {
    /// Our own responder; uses `[responder]`.
    Builtin,
    /// DNS UPDATE with TSIG (RFC 2136, RFC 8945).
    Rfc2136 {
        /// Where updates go.
        server: SocketAddr,
        /// The TSIG key's name.
        key_name: String,
        /// The TSIG key, base64.
        secret: SecretSource,
        /// `hmac-sha256`, `hmac-sha384` or `hmac-sha512`.
        algorithm: String,
    },
    /// A program: `PROGRAM present|cleanup FQDN. VALUE`.
    Exec {
        /// The program.
        program: PathBuf,
    },
    /// An HTTP endpoint: `POST {endpoint}/present` and `/cleanup`.
    Httpreq {
        /// Without the trailing slash.
        endpoint: String,
        /// Basic auth, if any.
        username: Option<String>,
        /// Its password.
        password: Option<SecretSource>,
    },
    /// An acme-dns server: `POST {endpoint}/update` and `/register`.
    AcmeDns {
        /// Without the trailing slash.
        endpoint: String,
        /// The accounts, a file as lego writes it; made if it is not there.
        accounts: PathBuf,
    },
    /// A vendor's API through the `dns-update` crate; the keys are those of the vendor's row in `dns::vendors()`.
    Vendor {
        /// The name in the configuration.
        name: &'static str,
        /// Values by key; checked against the vendor's table when the file was read.
        keys: BTreeMap<&'static str, VendorValue>,
    },
}

/// A value of a vendor's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VendorValue {
    /// Plain text, also numbers and booleans as written.
    Text(String),
    /// A secret.
    Secret(SecretSource),
}

/// One row of [`vendors`](fn@super::vendors): a provider's name in the configuration and its own keys.
#[derive(Clone, Copy, Debug)]
pub struct Vendor {
    /// As written after `provider =`.
    pub name: &'static str,
    /// Its keys, in the order of the reference.
    pub keys: &'static [VendorKey],
    /// Keys of which at least one has to be given, although none of them is required alone; empty if there are none such.
    pub any_of: &'static [&'static str],
    /// Keys that make no sense without another: the key, then the other.
    pub needs: &'static [(&'static str, &'static str)],
    /// Keys of which only one may be given.
    pub excludes: &'static [(&'static str, &'static str)],
    /// How it was shown to work.
    pub proven: Proven,
}

/// What the contract suite of the tests was run against: two values at one name, presented and removed twice, beside a
/// foreign value; refused credentials; an API that is busy or broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proven {
    /// The real server software.
    RealServer,
    /// A fake that is as strict as the vendor's documents.
    StrictFake,
    /// Nothing but that a client can be made.
    BuiltOnly,
}

impl Proven {
    /// As the reference says it.
    pub fn words(self) -> &'static str {
        match self {
            Self::RealServer => "real server",
            Self::StrictFake => "strict fake",
            Self::BuiltOnly => "built only",
        }
    }
}

/// A key of a vendor.
#[derive(Clone, Copy, Debug)]
pub struct VendorKey {
    /// As written in the file.
    pub name: &'static str,
    /// Whether its value is a secret (a table such as `{ env = "X" }`, or a string with a warning).
    pub secret: bool,
    /// Whether leaving it out is an error.
    pub required: bool,
    /// What its text has to be.
    pub kind: VendorKind,
    /// One line for the reference.
    pub doc: &'static str,
}

/// What the text of a vendor's key has to be. Values that are not are refused by [`build`](fn@super::build) too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VendorKind {
    /// Anything.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Bool,
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl VendorKind {
    /// Whether `text` is such a value; else what was wanted.
    pub fn check(self, text: &str) -> Result<(), String> {
        let fits = match self {
            Self::Text => true,
            Self::Number => text.parse::<u32>().is_ok(),
            Self::Bool => matches!(text, "true" | "false"),
            Self::Choice(words) => words.contains(&text),
        };
        match self {
            _ if fits => Ok(()),
            Self::Text => Ok(()),
            Self::Number => Err("a whole number is wanted".into()),
            Self::Bool => Err("true or false is wanted".into()),
            Self::Choice(words) => Err(format!("one of {} is wanted", words.join(", "))),
        }
    }
}
