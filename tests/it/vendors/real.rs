//! The same contract against real servers: PowerDNS, DNS UPDATE at Knot, and moto, which speaks Route 53's API.

use std::process::Command;
use std::sync::Arc;

use starlock::clock::SystemClock;
use starlock::dns::{CommonKeys, ProviderKind, ProviderSpec, Surroundings, ZoneTurns, build};
use starlock::resolver::Resolver;
use starlock::secret::{Secret, SecretSource};

use super::suite::{contract, pairs, provider};
use super::zone::{FOREIGN, NAMES, ZONE};
use crate::support::dns::{Knot, PowerDns, txt};
use crate::support::process::Process;
use crate::support::{eventually, free_port};

/// Vendors of the table that are proven here.
pub const VENDORS: &[&str] = &["pdns", "route53"];

async fn passes(provider: &dyn starlock::dns::TxtProvider, seen: &(dyn Fn(&str) -> Vec<String> + Sync)) {
    let foreign = super::suite::record(NAMES[0], FOREIGN);
    provider.add_txt(&foreign).await.unwrap();
    contract(provider, NAMES[0], &[FOREIGN], seen).await.unwrap();
    contract(provider, NAMES[1], &[], seen).await.unwrap();
    provider.remove_txt(&foreign).await.unwrap();
    assert!(seen(NAMES[0]).is_empty());
}

#[tokio::test]
async fn powerdns_keeps_the_contract() {
    let server = PowerDns::start(ZONE);
    let keys = pairs(&[("url", &server.url), ("api_key", &server.api_key)]);
    passes(&*provider("pdns", &keys), &|name| txt(server.address, name)).await;
}

#[tokio::test]
async fn rfc2136_keeps_the_contract() {
    let knot = Knot::start(&[(ZONE, "")]);
    let kind = ProviderKind::Rfc2136 {
        server: knot.address,
        key_name: knot.key_name.clone(),
        secret: SecretSource::Plain(Secret::new(&*knot.secret)),
        algorithm: "hmac-sha256".into(),
    };
    let with = Surroundings {
        resolver: Arc::new(Resolver::new(vec![knot.address])),
        clock: Arc::new(SystemClock),
        turns: ZoneTurns::new(),
        builtin: None,
    };
    let provider = build(&ProviderSpec { kind, common: CommonKeys::default() }, &with).unwrap();
    passes(&*provider, &|name| txt(knot.address, name)).await;
}

/// moto takes any signature, and lists zones without the `IsTruncated` that is documented: the fake of Route 53 shows both.
#[tokio::test]
async fn route53_keeps_the_contract_at_moto() {
    let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
    let moto = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/python/bin/moto_server");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", moto, "-H", "127.0.0.1", "-p", &port.to_string()]);
    let _moto = Process::start(&mut command, &dir.path().join("log"));
    let url = format!("http://127.0.0.1:{port}");
    let zones = format!("{url}/2013-04-01/hostedzone");
    let body = format!(
        "<CreateHostedZoneRequest xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><Name>{ZONE}.</Name>\
         <CallerReference>one</CallerReference></CreateHostedZoneRequest>"
    );
    let authorization = "Authorization: AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/route53/aws4_request, \
                         SignedHeaders=host, Signature=x";
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl")
            .args(["-fsS", "-m", "5", "-H", authorization])
            .args(arguments)
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let made = eventually("moto makes the zone", || {
        curl(&["-H", "Content-Type: application/xml", "-d", &body, &zones])
    });
    let id = made.split("<Id>/hostedzone/").nth(1).unwrap().split('<').next().unwrap();
    let keys =
        pairs(&[("access_key", "AKID"), ("secret_key", "secret"), ("zone_id", id), ("endpoint", &url)]);
    let sets = format!("{zones}/{id}/rrset");
    let seen = |name: &str| {
        let listed = curl(&[&sets]).unwrap();
        let sets = listed.split("<ResourceRecordSet>").skip(1);
        let ours = sets.filter(|set| set.contains(&format!("<Name>{name}.</Name>")));
        let mut values: Vec<String> = ours
            .flat_map(|set| set.split("<Value>").skip(1))
            .filter_map(|value| value.split('<').next())
            .map(|value| value.replace("&quot;", "").replace('"', ""))
            .collect();
        values.sort();
        values
    };
    passes(&*provider("route53", &keys), &seen).await;
}
