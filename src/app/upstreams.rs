//! Upstreams over the admin socket: how their servers are, and keeping requests away from one of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::admin::{ServerStatus, UpstreamStatus};
use crate::balance::{BalanceSpec, Balancer, Endpoint, HashKey, Upstreams};

/// How many servers there are in each condition.
pub(super) fn conditions(upstreams: &Upstreams) -> BTreeMap<String, u64> {
    let mut conditions = BTreeMap::new();
    for endpoint in upstreams.endpoints() {
        *conditions.entry(endpoint.condition().as_str().to_owned()).or_insert(0) += 1;
    }
    conditions
}

/// Every upstream, by name.
pub(super) fn list(upstreams: &Upstreams) -> Vec<UpstreamStatus> {
    let mut all: Vec<_> = upstreams.balancers().map(|balancer| status(balancer)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Keeps new requests away from a server, or lets them come again. `server` is what [`list`] calls it, with or without its
/// scheme; a name stands for all its addresses.
pub(super) fn drain(
    upstreams: &Upstreams,
    upstream: &str,
    server: &str,
    drained: bool,
) -> Result<UpstreamStatus, String> {
    let Some(balancer) = upstreams.get(upstream) else {
        let names = list(upstreams).into_iter().map(|u| u.name).collect::<Vec<_>>().join(", ");
        return Err(format!("there is no upstream `{upstream}`; there are {names}"));
    };
    let endpoints = balancer.endpoints();
    let meant: Vec<&Arc<Endpoint>> = endpoints.iter().filter(|e| is_meant(e.label(), server)).collect();
    if meant.is_empty() {
        let labels = endpoints.iter().map(|e| &**e.label()).collect::<Vec<_>>().join(", ");
        return Err(format!("upstream `{upstream}` has no server `{server}`; it has {labels}"));
    }
    for endpoint in meant {
        endpoint.drain(drained);
        tracing::info!(%upstream, server = %endpoint.label(), drained, "a server was drained, or is used again");
    }
    Ok(status(balancer))
}

fn is_meant(label: &str, server: &str) -> bool {
    let bare =
        |text: &str| text.split_once("://").map_or_else(|| text.to_owned(), |(_, rest)| rest.to_owned());
    let without_address = label.split('#').next().unwrap_or(label);
    label == server || bare(label) == server || without_address == server || bare(without_address) == server
}

fn status(balancer: &Balancer) -> UpstreamStatus {
    let server = |endpoint: Arc<Endpoint>| ServerStatus {
        server: endpoint.label().to_string(),
        condition: endpoint.condition().as_str().to_owned(),
        requests: u64::try_from(endpoint.in_flight()).unwrap_or_default(),
        connections: u64::from(endpoint.connections()),
    };
    let balance = match &balancer.spec().balance {
        BalanceSpec::P2c => "p2c".to_owned(),
        BalanceSpec::RoundRobin => "round_robin".to_owned(),
        BalanceSpec::Random => "random".to_owned(),
        BalanceSpec::Hash(key) => match key {
            HashKey::Ip => "hash by ip".to_owned(),
            HashKey::Path => "hash by path".to_owned(),
            HashKey::Header(name) => format!("hash by header:{name}"),
            HashKey::Cookie(name) => format!("hash by cookie:{name}"),
        },
    };
    let servers = balancer.endpoints().into_iter().map(server).collect();
    UpstreamStatus { name: balancer.name().to_string(), balance, servers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_meant_by_its_url_or_its_place() {
        let label = "http://app.test:80#192.0.2.1";
        for server in [label, "app.test:80#192.0.2.1", "http://app.test:80", "app.test:80"] {
            assert!(is_meant(label, server), "{server}");
        }
        for server in ["app.test", "http://app.test:8", "192.0.2.1", "", "http://app.test:80#192.0.2.2"] {
            assert!(!is_meant(label, server), "{server}");
        }
        assert!(is_meant("http://10.0.0.1:80", "10.0.0.1:80"));
    }
}
