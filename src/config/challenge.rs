//! How the names of a certificate are proven: `acme.challenge`, and what `auto` comes to.

use super::decode::Decoder;
use super::error::{Problem, Span};
use super::value::{At, Fields, Slot};
use crate::challenge::ChallengeKind;
use crate::dns::{ProviderKind, ProviderSpec};
use crate::listen::ListenSpec;
use crate::name::HostPattern;

/// What `acme.challenge` says.
#[derive(Clone, Debug)]
pub(super) enum Choice {
    Auto,
    /// It is wrong; that was said.
    Broken,
    One(At<ChallengeKind>),
}

/// Where a CA could look without DNS.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doors {
    tls: Door,
    clear: Door,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Door {
    /// We listen on the port that CAs come to.
    Usual,
    /// On others: something in front may lead there.
    Elsewhere,
    Closed,
}

impl Doors {
    pub(super) fn of(listen: &ListenSpec) -> Self {
        let door = |addresses: &[std::net::SocketAddr], port: u16| match addresses {
            [] => Door::Closed,
            all if all.iter().any(|address| address.port() == port) => Door::Usual,
            _ => Door::Elsewhere,
        };
        Self { tls: door(&listen.https, 443), clear: door(&listen.http, 80) }
    }

    /// tls-alpn-01 first, unless only the other one has the port that CAs come to.
    fn kinds(self) -> Vec<ChallengeKind> {
        let mut kinds = vec![(self.tls, ChallengeKind::TlsAlpn01), (self.clear, ChallengeKind::Http01)];
        kinds.retain(|(door, _)| *door != Door::Closed);
        kinds.sort_by_key(|(door, _)| *door);
        kinds.into_iter().map(|(_, kind)| kind).collect()
    }
}

impl Choice {
    /// Of an `[acme]` section.
    pub(super) fn of(section: &Slot<Fields>) -> Self {
        let Slot::Given(section) = section else { return Self::Auto };
        match section.value.slot::<&'static str>("challenge") {
            Slot::Absent => Self::Auto,
            Slot::Broken => Self::Broken,
            Slot::Given(word) => match ChallengeKind::parse(word.value) {
                Some(value) => Self::One(At { value, span: word.span }),
                None => Self::Auto,
            },
        }
    }

    /// How `names` are proven, best first. `None` if that is wrong, and was said; empty if somebody had to write records and
    /// there is no `[dns]`.
    pub(super) fn kinds(
        &self,
        decoder: &mut Decoder<'_>,
        names: &[At<HostPattern>],
        dns: &Slot<ProviderSpec>,
        doors: &Doors,
    ) -> Option<Vec<ChallengeKind>> {
        let wildcard = names.iter().find(|name| name.value.is_wildcard());
        let one = match self {
            Self::Broken => return None,
            Self::Auto => {
                return Some(match (dns, wildcard) {
                    (Slot::Absent, None) => doors.kinds(),
                    (Slot::Absent, Some(_)) => Vec::new(),
                    _ => vec![ChallengeKind::Dns01],
                });
            }
            Self::One(one) => one,
        };
        let kind = one.value;
        if let Some(wildcard) = wildcard.filter(|_| !kind.proves_wildcards()) {
            refuse_wildcard(decoder, wildcard, one);
            return None;
        }
        let closed = match kind {
            ChallengeKind::Http01 => (doors.clear == Door::Closed).then_some(("listen.http", "port 80")),
            ChallengeKind::TlsAlpn01 => (doors.tls == Door::Closed).then_some(("listen.https", "port 443")),
            _ => None,
        };
        if let Some((listen, port)) = closed {
            say_once(
                decoder,
                &one.span,
                Problem::error(one.span.clone(), format!("nobody listens for {kind}"))
                    .label(format!("the CA comes to {port}, and `{listen}` is []"))
                    .help("let Starlock listen there, or set `challenge = \"auto\"`"),
            );
            return None;
        }
        match dns {
            Slot::Absent if kind.writes_records() => return Some(Vec::new()),
            Slot::Given(dns)
                if kind == ChallengeKind::DnsAccount01 && dns.value.kind == ProviderKind::Builtin =>
            {
                say_once(
                    decoder,
                    &one.span,
                    Problem::error(one.span.clone(), "the built-in responder answers dns-01 only")
                        .label("not this one")
                        .help("leave `challenge` out: a delegated name needs no account in it"),
                );
                return None;
            }
            _ => {}
        }
        Some(vec![kind])
    }
}

fn refuse_wildcard(decoder: &mut Decoder<'_>, wildcard: &At<HostPattern>, one: &At<ChallengeKind>) {
    let kind = one.value;
    decoder.push(
        Problem::error(wildcard.span.clone(), format!("{kind} cannot prove `{}`", wildcard.value))
            .label("the CA would have to look at one host, and this is many")
            .also(one.span.clone(), "asked for here")
            .help("for wildcards: `challenge = \"dns-01\"` and a [dns] section, also in a [[certificates]] of its own")
            .help("or give each host a route of its own instead of the wildcard"),
    );
}

/// One mistake of `[acme]` is every certificate's, and is said once.
fn say_once(decoder: &mut Decoder<'_>, place: &Span, problem: Problem) {
    if !decoder.problems.iter().any(|known| known.span() == place) {
        decoder.push(problem);
    }
}
