//! Names and services among the servers: where they are now.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::backoff::Backoff;
use crate::balance::{Balancer, Found, ServerHost, ServerSpec, Target};
use crate::resolver::{Hosts, ResolveError, Service};

/// An answer's own TTL is kept within these.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// While a name does not resolve.
const AGAIN: Backoff = Backoff::new(&[
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
]);
/// More addresses than this of one name are a mistake.
const MOST: usize = 1024;

/// Resolves a server's name whenever its TTL is over. Does not end.
pub(super) async fn follow(balancer: &Balancer, index: usize, server: &ServerSpec, hosts: &Hosts) {
    let mut failures = 0;
    loop {
        let wait = match find(&server.host, hosts).await {
            Ok((found, ttl)) => {
                failures = 0;
                balancer.found(index, found);
                ttl.clamp(SHORTEST, LONGEST)
            }
            Err(error) => {
                balancer.found(index, Vec::new());
                if failures == 0 {
                    tracing::warn!(
                        upstream = %balancer.name(), %error,
                        "a server's name does not resolve; addresses that it had stay in use, and it is asked for again"
                    );
                }
                failures += 1;
                AGAIN.after(failures)
            }
        };
        sleep(wait).await;
    }
}

/// Everywhere a host is, in an order of its own, and for how long that holds.
async fn find(host: &ServerHost, hosts: &Hosts) -> Result<(Vec<Found>, Duration), ResolveError> {
    let (mut found, ttl) = match host {
        // Never unresolved.
        ServerHost::Unix(_) => (Vec::new(), LONGEST),
        ServerHost::Ip(address) => (vec![Found { address: *address, target: None }], LONGEST),
        ServerHost::Name(name) => {
            let (addresses, ttl) = hosts.look_up(name).await?;
            (addresses.into_iter().map(|address| Found { address, target: None }).collect(), ttl)
        }
        ServerHost::Service(name) => {
            let (services, mut shortest) = hosts.services(name).await?;
            let mut found = Vec::new();
            for (service, target) in targets(services) {
                // A target that does not resolve leaves the others in use.
                if let Ok((addresses, ttl)) = hosts.look_up(&service).await {
                    shortest = shortest.min(ttl);
                    let place = |address| Found { address, target: Some(target.clone()) };
                    found.extend(addresses.into_iter().map(place));
                }
            }
            (found, shortest)
        }
    };
    found.sort_by(|a, b| {
        let key = |found: &Found| (found.address, found.target.as_ref().map(|t| (t.port, t.name.clone())));
        key(a).cmp(&key(b))
    });
    found.dedup();
    found.truncate(MOST);
    if found.is_empty() {
        let name: Arc<str> = match host {
            ServerHost::Ip(address) => address.to_string().into(),
            ServerHost::Unix(path) => path.display().to_string().into(),
            ServerHost::Name(name) | ServerHost::Service(name) => name.clone(),
        };
        return Err(ResolveError { name, why: "it has no address".into() });
    }
    Ok((found, ttl))
}

/// What a service's records come to (RFC 2782): the lowest priority serves, the others are backups; weights are brought into
/// 1 to 256.
fn targets(services: Vec<Service>) -> Vec<(Arc<str>, Target)> {
    let best = services.iter().map(|s| s.priority).min().unwrap_or_default();
    let heaviest = services.iter().map(|s| s.weight).max().unwrap_or_default();
    let scale = u32::from(heaviest).div_ceil(256).max(1);
    let target = |service: Service| {
        let weight = u16::try_from(u32::from(service.weight) / scale).unwrap_or(u16::MAX).clamp(1, 256);
        let name: Arc<str> = service.target.trim_end_matches('.').into();
        let target = Target { name, port: service.port, weight, backup: service.priority != best };
        (service.target, target)
    };
    // RFC 2782: a target of "." says that there is no such service.
    services.into_iter().filter(|s| &*s.target != ".").map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_and_weights_of_a_service() {
        let service =
            |target: &str, priority, weight| Service { target: target.into(), port: 1, priority, weight };
        let made = |services| -> Vec<(String, u16, bool)> {
            let all = targets(services).into_iter();
            all.map(|(_, t)| (t.name.to_string(), t.weight, t.backup)).collect()
        };
        assert_eq!(
            made(vec![service("a.test.", 10, 0), service("b.test.", 10, 60), service("c.test.", 20, 5)]),
            [("a.test".into(), 1, false), ("b.test".into(), 60, false), ("c.test".into(), 5, true)]
        );
        assert_eq!(
            made(vec![service("a.test.", 0, 65_535), service("b.test.", 0, 6_553), service("c.test.", 0, 1)]),
            [("a.test".into(), 255, false), ("b.test".into(), 25, false), ("c.test".into(), 1, false)]
        );
        assert_eq!(made(vec![service(".", 0, 0)]), []);
    }
}
