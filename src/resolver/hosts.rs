//! Addresses of upstream names, as the system resolves them: /etc/hosts, then the servers of /etc/resolv.conf.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use hickory_proto::rr::{RData, Record};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::time::Instant;

/// A server's own TTL is kept within these.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// A failure is remembered this long, so that traffic does not become a flood of questions.
const FAILURE: Duration = Duration::from_secs(2);
/// How long after its TTL an answer is used while there is no newer one.
const STALE: Duration = Duration::from_secs(3600);
/// The system's files are read again after this long: a start without network must heal by itself.
const SYSTEM: Duration = Duration::from_secs(30);
/// Names come from the configuration; more than this many are not remembered.
const CAPACITY: usize = 4096;

/// Why a name has no address. The name, or who answers for it, is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` does not resolve: {why}")]
pub struct ResolveError {
    /// The name.
    pub name: Arc<str>,
    /// In the resolver's words.
    pub why: Arc<str>,
}

/// What was found, and for how long it holds.
type Found = Result<(Vec<IpAddr>, Duration), String>;
type Pending = Shared<BoxFuture<'static, Result<Arc<[IpAddr]>, ResolveError>>>;
type Lookup = Box<dyn Fn(Arc<str>) -> BoxFuture<'static, Found> + Send + Sync>;
type ServicesFound = Result<(Vec<Service>, Duration), String>;
type Services = Box<dyn Fn(Arc<str>) -> BoxFuture<'static, ServicesFound> + Send + Sync>;

/// An SRV record (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The host's name.
    pub target: Arc<str>,
    /// Its port.
    pub port: u16,
    /// The lowest is used first.
    pub priority: u16,
    /// Its share among those of the same priority.
    pub weight: u16,
}

/// Resolves names and remembers the answers. Cloning shares the memory; usable from every thread.
#[derive(Clone)]
pub struct Hosts(Arc<Inner>);

struct Inner {
    lookup: Lookup,
    services: Services,
    names: Mutex<HashMap<Arc<str>, Entry>>,
}

#[derive(Default)]
struct Entry {
    addresses: Option<(Arc<[IpAddr]>, Instant)>,
    failed: Option<(Arc<str>, Instant)>,
    /// A question under way; whoever waits for it drives it.
    pending: Option<Pending>,
}

impl Hosts {
    /// Resolves as the system does. Reads files and opens sockets only when a name is asked for.
    pub fn system() -> Self {
        Self::through(System::default())
    }

    /// Asks these name servers and nobody else.
    pub fn asking(servers: &[SocketAddr]) -> Self {
        Self::through(System { servers: servers.to_vec(), ..System::default() })
    }

    fn through(system: System) -> Self {
        let system = Arc::new(system);
        let lookup = {
            let system = system.clone();
            move |name: Arc<str>| {
                let system = system.clone();
                async move { system.lookup(&name).await }.boxed()
            }
        };
        let services = move |name: Arc<str>| {
            let system = system.clone();
            async move { system.services(&name).await }.boxed()
        };
        Self::new(Box::new(lookup), Box::new(services))
    }

    fn new(lookup: Lookup, services: Services) -> Self {
        Self(Arc::new(Inner { lookup, services, names: Mutex::default() }))
    }

    /// The addresses of `name` and for how long they hold; asks, and remembers nothing itself. For whoever comes again by that
    /// time.
    pub async fn look_up(&self, name: &Arc<str>) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
        let found = (self.0.lookup)(name.clone()).await;
        found.map_err(|why| ResolveError { name: name.clone(), why: why.into() })
    }

    /// The SRV records of `name` and for how long they hold; asks, and remembers nothing itself.
    pub async fn services(&self, name: &Arc<str>) -> Result<(Vec<Service>, Duration), ResolveError> {
        let found = (self.0.services)(name.clone()).await;
        found.map_err(|why| ResolveError { name: name.clone(), why: why.into() })
    }

    /// At least one address for `name`. Answers at once from memory, else asks; many callers share one question. While a new
    /// answer cannot be had, the last one serves for an hour past its TTL. Has no deadline of its own; dropping the future is fine.
    pub async fn resolve(&self, name: &Arc<str>) -> Result<Arc<[IpAddr]>, ResolveError> {
        let pending = {
            let mut names = self.0.names.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if names.len() >= CAPACITY && !names.contains_key(name) {
                names.retain(|_, entry| entry.pending.is_some() || entry.is_fresh(now));
            }
            let entry = names.entry(name.clone()).or_default();
            if let Some(answer) = entry.remembered(name, now) {
                return answer;
            }
            entry.pending.get_or_insert_with(|| self.ask(name.clone())).clone()
        };
        pending.await
    }

    fn ask(&self, name: Arc<str>) -> Pending {
        let inner = Arc::downgrade(&self.0);
        let question = (self.0.lookup)(name.clone());
        async move {
            let found = question.await;
            match inner.upgrade() {
                Some(inner) => inner.record(&name, found),
                None => Err(ResolveError { name, why: "shutting down".into() }),
            }
        }
        .boxed()
        .shared()
    }
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hosts")
    }
}

impl Entry {
    fn is_fresh(&self, now: Instant) -> bool {
        self.addresses.as_ref().is_some_and(|(_, until)| now < *until)
    }

    fn remembered(&self, name: &Arc<str>, now: Instant) -> Option<Result<Arc<[IpAddr]>, ResolveError>> {
        let failed = self.failed.as_ref().filter(|(_, until)| now < *until);
        match (&self.addresses, failed) {
            (Some((addresses, until)), _) if now < *until => Some(Ok(addresses.clone())),
            (Some((addresses, until)), Some(_)) if now < *until + STALE => Some(Ok(addresses.clone())),
            (_, Some((why, _))) => Some(Err(ResolveError { name: name.clone(), why: why.clone() })),
            _ => None,
        }
    }
}

impl Inner {
    fn record(&self, name: &Arc<str>, found: Found) -> Result<Arc<[IpAddr]>, ResolveError> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = names.entry(name.clone()).or_default();
        entry.pending = None;
        let now = Instant::now();
        let found = found.and_then(|(addresses, ttl)| {
            if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok((addresses, ttl)) }
        });
        match found {
            Ok((addresses, ttl)) => {
                let addresses: Arc<[IpAddr]> = addresses.into();
                entry.addresses = Some((addresses.clone(), now + ttl.clamp(SHORTEST, LONGEST)));
                entry.failed = None;
                Ok(addresses)
            }
            Err(why) => {
                tracing::warn!(%name, error = why, "an upstream name does not resolve; asked again with the next connection");
                let why: Arc<str> = why.into();
                entry.failed = Some((why.clone(), now + FAILURE));
                entry.remembered(name, now).unwrap_or_else(|| Err(ResolveError { name: name.clone(), why }))
            }
        }
    }
}

/// hickory with the system's files.
#[derive(Default)]
struct System {
    held: Mutex<Option<(TokioResolver, Instant)>>,
    /// Asked instead of the system's, if there are any.
    servers: Vec<SocketAddr>,
}

impl System {
    async fn lookup(&self, name: &str) -> Found {
        // RFC 6761 section 6.3: never a question for the network.
        let bare = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if bare == "localhost" || bare.ends_with(".localhost") {
            return Ok((vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], LONGEST));
        }
        let found = self.resolver()?.lookup_ip(name).await.map_err(|error| error.to_string())?;
        let ttl = found.valid_until().saturating_duration_since(Instant::now().into_std());
        Ok((found.iter().collect(), ttl))
    }

    async fn services(&self, name: &str) -> ServicesFound {
        let found = self.resolver()?.srv_lookup(name).await.map_err(|error| error.to_string())?;
        let ttl = found.valid_until().saturating_duration_since(Instant::now().into_std());
        let service = |record: &Record| match &record.data {
            RData::SRV(srv) => Some(Service {
                target: srv.target.to_string().into(),
                port: srv.port,
                priority: srv.priority,
                weight: srv.weight,
            }),
            _ => None,
        };
        Ok((found.answers().iter().filter_map(service).collect(), ttl))
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((resolver, until)) = &*held
            && Instant::now() < *until
        {
            return Ok(resolver.clone());
        }
        // An image from scratch has no resolv.conf; /etc/hosts may still know the name.
        let with = |config| TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let mut builder = match self.servers.as_slice() {
            [] => TokioResolver::builder_tokio().unwrap_or_else(|_| with(ResolverConfig::default())),
            servers => with(ResolverConfig::from_name_servers(servers.iter().map(name_server).collect())),
        };
        let options = builder.options_mut();
        options.timeout = Duration::from_secs(2);
        options.attempts = 2;
        let resolver = builder.build().map_err(|error| error.to_string())?;
        *held = Some((resolver.clone(), Instant::now() + SYSTEM));
        Ok(resolver)
    }
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections.iter_mut().for_each(|connection| connection.port = address.port());
    server
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// Gives the answers of a list, the last one for ever, and counts the questions.
    fn scripted(answers: Vec<Found>) -> (Hosts, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let lookup = move |_| {
            let n = count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
            let answer = answers[n].clone();
            async move {
                tokio::task::yield_now().await;
                answer
            }
            .boxed()
        };
        let services = |_| async { Err("no service".to_owned()) }.boxed();
        let hosts = Hosts::new(Box::new(lookup), Box::new(services));
        (hosts, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn answers_live_as_long_as_their_ttl_and_questions_are_shared() {
        let (hosts, asked) = scripted(vec![Ok((vec![A], Duration::from_secs(10)))]);
        let name: Arc<str> = "a.test".into();
        let (one, two) = tokio::join!(hosts.resolve(&name), hosts.resolve(&name));
        assert_eq!((&*one.unwrap(), &*two.unwrap()), (&[A][..], &[A][..]));
        hosts.resolve(&name).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::advance(Duration::from_secs(9)).await;
        hosts.resolve(&name).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        hosts.resolve(&name).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_shortly_and_an_old_answer_helps_out() {
        let lost = || Err("no network".to_owned());
        let found = || Ok((vec![A], Duration::ZERO));
        let (hosts, asked) = scripted(vec![lost(), found(), lost()]);
        let name: Arc<str> = "a.test".into();
        for _ in 0..3 {
            let error = hosts.resolve(&name).await.unwrap_err();
            assert_eq!(error.to_string(), "`a.test` does not resolve: no network");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::advance(FAILURE).await;
        hosts.resolve(&name).await.unwrap();
        tokio::time::advance(STALE / 2).await;
        assert!(hosts.resolve(&name).await.is_ok(), "stale, and no newer one");
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        tokio::time::advance(STALE).await;
        assert!(hosts.resolve(&name).await.is_err(), "too old");
    }

    #[tokio::test(start_paused = true)]
    async fn no_address_is_a_failure() {
        let (hosts, _) = scripted(vec![Ok((vec![], Duration::from_secs(10)))]);
        assert!(hosts.resolve(&"a.test".into()).await.is_err());
    }

    #[tokio::test]
    async fn localhost_needs_no_server() {
        let hosts = Hosts::system();
        let found = hosts.resolve(&"App.localhost".into()).await.unwrap();
        assert_eq!(&*found, [IpAddr::from([127, 0, 0, 1]), IpAddr::from(Ipv6Addr::LOCALHOST)]);
    }
}
