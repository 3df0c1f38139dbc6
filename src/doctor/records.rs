//! The DNS records that a person has to add once, for certificates that the built-in responder proves.

use std::collections::BTreeSet;

use crate::config::{IssuerPlan, Plan};
use crate::name::{DnsName, HostPattern};

/// The directory whose CAA identifier is known.
const LETS_ENCRYPT: &str = "api.letsencrypt.org";

/// What to add, line by line; empty if nothing is proven by the built-in responder.
pub fn to_add(plan: &Plan) -> Vec<String> {
    let Some(responder) = &plan.responder else { return Vec::new() };
    let mut lines = Vec::new();
    for challenge in &responder.challenge_names {
        for server in &responder.nameservers {
            lines.push(record(challenge, "NS", &server.name.to_fqdn()));
        }
    }
    for server in &responder.nameservers {
        let ours = responder.zone.as_ref().is_some_and(|zone| server.name.is_in(zone));
        let delegated = responder.challenge_names.iter().any(|name| server.name.is_in(name));
        for address in &server.addresses {
            let kind = if address.is_ipv4() { "A" } else { "AAAA" };
            let note = if ours || delegated { "    ; glue" } else { "    ; if it is not there yet" };
            lines.push(format!("{}{note}", record(&server.name, kind, &address.to_string())));
        }
    }
    if let Some(zone) = &responder.zone {
        lines.push(String::new());
        lines.push(format!("; or, once {zone} is delegated here, a CNAME instead of each NS above:"));
        for server in &responder.nameservers {
            lines.push(record(zone, "NS", &server.name.to_fqdn()));
        }
        for challenge in &responder.challenge_names {
            let base = challenge.parent().map_or_else(|| challenge.to_string(), |base| base.to_string());
            lines.push(record(challenge, "CNAME", &format!("{base}.{}", zone.to_fqdn())));
        }
    }
    lines
}

/// CAA records that keep others from issuing; whoever holds the responder's address could otherwise.
pub fn caa(plan: &Plan) -> Vec<String> {
    let mut bases: BTreeSet<DnsName> = BTreeSet::new();
    for certificate in &plan.certificates {
        if let IssuerPlan::Acme(acme) = &certificate.issuer
            && acme.is_builtin()
            && acme.acme.directory.contains(LETS_ENCRYPT)
        {
            bases.extend(certificate.names.iter().filter_map(HostPattern::base).map(DnsName::from));
        }
    }
    let apexes = bases.iter().filter(|name| !bases.iter().any(|other| *other != **name && name.is_in(other)));
    let value = "0 issue \"letsencrypt.org; validationmethods=dns-01; accounturi=ACCOUNT\"";
    apexes.map(|name| record(name, "CAA", value)).collect()
}

pub(super) fn record(name: &DnsName, kind: &str, value: &str) -> String {
    format!("{}  {kind}  {value}", name.to_fqdn())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, parse};

    fn plan(responder: &str) -> Plan {
        let text = format!(
            "dns = \"builtin\"\n[responder]\nlisten = [\"127.0.0.1:0\"]\n{responder}\n[routes]\n\
             \"*.example.com\" = {{ respond = 200 }}\n\"example.com\" = {{ respond = 200 }}\n"
        );
        let env = Environment { state_dir: "/s".into(), runtime_dir: "/r".into() };
        parse(&text, "f", &env).unwrap_or_else(|p| panic!("{p}")).plan
    }

    #[test]
    fn one_delegation_for_apex_and_wildcard() {
        let plan = plan("nameservers = [{ name = \"ns.example.net\", addresses = [\"203.0.113.7\"] }]");
        assert_eq!(
            to_add(&plan),
            [
                "_acme-challenge.example.com.  NS  ns.example.net.",
                "ns.example.net.  A  203.0.113.7    ; if it is not there yet",
            ]
        );
        assert_eq!(caa(&plan).len(), 1);
    }

    #[test]
    fn a_zone_of_its_own_offers_a_cname() {
        let zone = "zone = \"acme.example.net\"\nnameservers = [{ name = \"ns.acme.example.net\", addresses = [\"2001:db8::7\"] }]";
        let lines = to_add(&plan(zone)).join("\n");
        assert!(lines.contains("ns.acme.example.net.  AAAA  2001:db8::7    ; glue"), "{lines}");
        assert!(lines.contains("acme.example.net.  NS  ns.acme.example.net."), "{lines}");
        assert!(
            lines.contains("_acme-challenge.example.com.  CNAME  example.com.acme.example.net."),
            "{lines}"
        );
    }
}
