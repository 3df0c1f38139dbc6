//! The provider's credentials, proven by a throw-away TXT record where the challenge will stand.

use std::sync::Arc;
use std::time::Duration;

use super::finding::Note;
use crate::challenge::{Janitor, RehearsalError, rehearse};
use crate::dns::{
    DnsError, Propagation, PropagationCheck, ProviderKind, ProviderSpec, TxtProvider, TxtRecord,
};
use crate::name::DnsName;
use crate::resolver::{Resolver, Zone};

/// For showing, and again for being gone.
const LIMIT: Duration = Duration::from_secs(15);

/// What trying came to.
#[derive(Clone, Debug)]
pub(super) enum Tried {
    Works,
    Failed(RehearsalError),
    Skipped(String),
}

/// Writes a record that no CA would take, and takes it away again.
pub(super) async fn attempt(
    provider: Arc<dyn TxtProvider>,
    resolver: &Resolver,
    janitor: &Janitor,
    name: &DnsName,
    zone: &Zone,
    propagation: &Propagation,
) -> Tried {
    let value = format!("starlock-doctor-{:016x}", rand::random::<u64>());
    let record = TxtRecord { name: name.clone(), value };
    let limit = LIMIT.min(propagation.timeout);
    match rehearse(provider, resolver, janitor, &record, zone, limit).await {
        Ok(()) => Tried::Works,
        Err(error) => Tried::Failed(error),
    }
}

pub(super) fn judge(name: &DnsName, zone: &DnsName, spec: &ProviderSpec, tried: &Tried) -> Note {
    let who = who(spec);
    let place = "[dns]";
    let error = match tried {
        Tried::Works => {
            return Note::ok(
                "provider.works",
                format!("{who} wrote a TXT record at {name}, every server showed it, and it is gone again"),
            );
        }
        Tried::Skipped(why) => {
            return Note::skipped(
                "provider.not-tried",
                format!("whether {who} may write at {name} was not tried"),
            )
            .why(why.as_str())
            .place(place);
        }
        Tried::Failed(error) => error,
    };
    match error {
        RehearsalError::Write(DnsError::Refused(reason)) => {
            Note::failure("provider.refused", format!("{who} does not write at {name}: {reason}"))
                .why("an order ends here, before any CA is asked")
                .fix(right_to_write(name, zone, spec))
                .place(place)
        }
        RehearsalError::Write(DnsError::Unavailable(reason)) => {
            Note::failure("provider.unavailable", format!("{who} did not write at {name}: {reason}"))
                .why("an order waits for it, and fails when it does not come back")
                .fix(reach(spec))
                .place(place)
        }
        RehearsalError::See { table, some } => {
            // What takes updates for the world shows them at once; a vendor may take minutes.
            let certain = !some
                && matches!(spec.kind, ProviderKind::Rfc2136 { .. })
                && spec.propagation() == PropagationCheck::Authoritative;
            let what = if *some {
                "not every server of the zone showed it"
            } else {
                "no server of the zone showed it"
            };
            Note::failure_if(certain, "provider.not-seen", format!("{who} took the TXT record for {name}, and {what} within {} s:\n{}", LIMIT.as_secs(), table.trim_end()))
                .why("an order waits until every server shows it, and gives up after `propagation.timeout`")
                .fix(format!("see that {who} writes into the zone {zone} that the world sees (dig +nssearch {zone}); one that only takes long needs [dns] propagation = {{ timeout = \"10m\" }}"))
                .place(place)
        }
        RehearsalError::Remove(left) => Note::warning(
            "provider.not-removed",
            format!("the TXT record at {name} was to be removed, and is still shown by {left}"),
        )
        .why("values that stay behind pile up until answers do not fit any more")
        .fix(format!("see that the credentials may delete too, and remove it by hand: dig {name} TXT"))
        .place(place),
    }
}

impl ProviderSpec {
    fn propagation(&self) -> PropagationCheck {
        self.common.propagation.check
    }
}

fn who(spec: &ProviderSpec) -> String {
    match &spec.kind {
        ProviderKind::Builtin => "the built-in responder".into(),
        ProviderKind::Rfc2136 { server, .. } => format!("DNS UPDATE to {server}"),
        ProviderKind::Exec { program } => format!("the program {}", program.display()),
        ProviderKind::Httpreq { endpoint, .. } => format!("httpreq at {endpoint}"),
        ProviderKind::AcmeDns { endpoint, .. } => format!("acme-dns at {endpoint}"),
        ProviderKind::Vendor { name, .. } => (*name).to_owned(),
    }
}

fn right_to_write(name: &DnsName, zone: &DnsName, spec: &ProviderSpec) -> String {
    let fqdn = name.to_fqdn();
    match &spec.kind {
        ProviderKind::Rfc2136 { key_name, .. } => {
            let key = format!("{}.", key_name.trim_end_matches('.'));
            format!(
                "let the key update TXT there. BIND, in the zone {zone}: update-policy {{ grant {key} name {fqdn} TXT; }};\n\
                 Knot, in its acl: key: {key} action: update update-type: [TXT]"
            )
        }
        ProviderKind::Exec { program } => {
            format!("try it by hand: {} present {fqdn} test", program.display())
        }
        ProviderKind::Httpreq { endpoint, .. } => format!(
            "try it by hand: curl -i -H 'Content-Type: application/json' -d '{{\"fqdn\":\"{fqdn}\",\"value\":\"test\"}}' {endpoint}/present"
        ),
        ProviderKind::Vendor { name: vendor, .. } => {
            format!(
                "make a token at {vendor} that may edit the records of {zone}, and nothing else, and put it where [dns] reads it"
            )
        }
        ProviderKind::AcmeDns { accounts, .. } => {
            format!(
                "see the account of {name} in {}; one that is removed there is registered anew",
                accounts.display()
            )
        }
        ProviderKind::Builtin => String::new(),
    }
}

fn reach(spec: &ProviderSpec) -> String {
    match &spec.kind {
        ProviderKind::Rfc2136 { server, .. } => format!(
            "start the server, or open the way to {server} over TCP: dig +tcp @{} -p {} version.bind CH TXT",
            server.ip(),
            server.port()
        ),
        ProviderKind::Exec { program } => {
            format!("see what it waits for: {} present _acme-challenge.example.com. test", program.display())
        }
        ProviderKind::Httpreq { endpoint, .. } => {
            format!("see what answers there: curl -i {endpoint}/present")
        }
        _ => "let this machine reach the vendor's API, and look at the vendor's status page".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;
    use crate::dns::CommonKeys;
    use crate::secret::{Secret, SecretSource};

    #[test]
    fn each_outcome_has_its_words() {
        let name = DnsName::parse("_acme-challenge.example.com").unwrap();
        let zone = DnsName::parse("example.com").unwrap();
        let update = ProviderSpec {
            kind: ProviderKind::Rfc2136 {
                server: ([192, 0, 2, 1], 53).into(),
                key_name: "acme".into(),
                secret: SecretSource::Plain(Secret::new("x")),
                algorithm: "hmac-sha256".into(),
            },
            common: CommonKeys::default(),
        };
        let vendor = ProviderSpec {
            kind: ProviderKind::Vendor { name: "cloudflare", keys: Default::default() },
            common: CommonKeys::default(),
        };
        let see = |some| Tried::Failed(RehearsalError::See { table: "t".into(), some });
        let write = |error| Tried::Failed(RehearsalError::Write(error));
        let refused = || write(DnsError::Refused("NOTAUTH".into()));
        for (spec, tried, id, severity, fix) in [
            (&update, Tried::Works, "provider.works", Severity::Ok, ""),
            (&update, Tried::Skipped("x".into()), "provider.not-tried", Severity::Skipped, ""),
            (
                &update,
                refused(),
                "provider.refused",
                Severity::Failure,
                "grant acme. name _acme-challenge.example.com. TXT;",
            ),
            (
                &vendor,
                refused(),
                "provider.refused",
                Severity::Failure,
                "may edit the records of example.com",
            ),
            (
                &update,
                write(DnsError::Unavailable("x".into())),
                "provider.unavailable",
                Severity::Failure,
                "192.0.2.1",
            ),
            (&update, see(false), "provider.not-seen", Severity::Failure, "dig +nssearch example.com"),
            (&update, see(true), "provider.not-seen", Severity::Warning, "timeout"),
            (&vendor, see(false), "provider.not-seen", Severity::Warning, "timeout"),
            (
                &update,
                Tried::Failed(RehearsalError::Remove("x".into())),
                "provider.not-removed",
                Severity::Warning,
                "by hand",
            ),
        ] {
            let note = judge(&name, &zone, spec, &tried);
            assert!((note.id, note.severity) == (id, severity) && note.fix.contains(fix), "{note:?}");
        }
    }
}
