//! Certificates for exact names below a wildcard that clients refuse: browsers and OpenSSL take no `*.localhost` or `*.internal`,
//! a wildcard right below the root. The first handshake for a name has one made; whoever signs does it elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::bundle::Bundle;
use crate::name::HostName;

/// Names kept; the one that was asked for the longest time ago makes way.
const KEPT: usize = 256;
/// Names that wait to be made; a handshake beyond that gets the wildcard.
const WAITING: usize = 64;
/// A handshake does not wait longer; it gets the wildcard.
const LIMIT: Duration = Duration::from_secs(5);

type Table = HashMap<Box<str>, Arc<Minted>>;

struct Minted {
    bundle: Arc<Bundle>,
    /// The wildcard's serial: when that one is renewed, so are all below it.
    parent: Box<str>,
    used: AtomicU64,
}

struct Inner {
    table: ArcSwap<Table>,
    /// Writers take turns.
    writing: Mutex<()>,
    ticks: AtomicU64,
    wanted: mpsc::Sender<Wanted>,
}

struct Wanted {
    name: HostName,
    parent: Box<str>,
    reply: oneshot::Sender<Arc<Bundle>>,
}

/// What has been made, for handshakes. Cloning is cheap.
#[derive(Clone)]
pub struct MintReader(Arc<Inner>);

/// What is to be made, for whoever signs. There is one.
pub struct Mint {
    inner: Arc<Inner>,
    wanted: mpsc::Receiver<Wanted>,
}

/// A name that a handshake waits for.
#[must_use]
pub struct MintJob {
    inner: Arc<Inner>,
    wanted: Wanted,
}

/// An empty mint.
pub fn mint() -> (Mint, MintReader) {
    let (wanted, receiver) = mpsc::channel(WAITING);
    let inner = Arc::new(Inner {
        table: ArcSwap::default(),
        writing: Mutex::default(),
        ticks: AtomicU64::new(0),
        wanted,
    });
    (Mint { inner: inner.clone(), wanted: receiver }, MintReader(inner))
}

impl Mint {
    /// The next name to make; `None` when no handshake can come any more. What was made meanwhile is given out here.
    pub async fn next(&mut self) -> Option<MintJob> {
        loop {
            let wanted = self.wanted.recv().await?;
            match self.inner.find(wanted.name.as_str(), &wanted.parent) {
                // The client may have left.
                Some(bundle) => drop(wanted.reply.send(bundle)),
                None if wanted.reply.is_closed() => {}
                None => return Some(MintJob { inner: self.inner.clone(), wanted }),
            }
        }
    }
}

impl MintJob {
    /// The name to sign for.
    pub fn name(&self) -> &HostName {
        &self.wanted.name
    }

    /// Keeps what was made and gives it to the handshake. Dropping the job instead makes the handshake go on with the wildcard.
    pub fn made(self, bundle: Arc<Bundle>) {
        let Self { inner, wanted } = self;
        inner.keep(&wanted, bundle.clone());
        // The client may have left.
        let _ = wanted.reply.send(bundle);
    }
}

impl MintReader {
    /// The certificate for exactly `name`, which only `wildcard` covers; without a lock if it has been made before.
    pub(super) async fn exact(&self, name: &HostName, wildcard: &Bundle) -> Option<Arc<Bundle>> {
        if let Some(bundle) = self.0.find(name.as_str(), wildcard.serial()) {
            return Some(bundle);
        }
        let (reply, made) = oneshot::channel();
        let wanted = Wanted { name: name.clone(), parent: wildcard.serial().into(), reply };
        self.0.wanted.try_send(wanted).ok()?;
        timeout(LIMIT, made).await.ok()?.ok()
    }
}

impl Inner {
    fn find(&self, name: &str, parent: &str) -> Option<Arc<Bundle>> {
        let table = self.table.load();
        let minted = table.get(name).filter(|minted| &*minted.parent == parent)?;
        minted.used.store(self.ticks.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(minted.bundle.clone())
    }

    fn keep(&self, wanted: &Wanted, bundle: Arc<Bundle>) {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table: Table = (**self.table.load()).clone();
        table.remove(wanted.name.as_str());
        while table.len() >= KEPT {
            let oldest = table.iter().min_by_key(|(_, minted)| minted.used.load(Ordering::Relaxed));
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { break };
            table.remove(&oldest);
        }
        let used = AtomicU64::new(self.ticks.fetch_add(1, Ordering::Relaxed));
        let minted = Minted { bundle, parent: wanted.parent.clone(), used };
        table.insert(wanted.name.as_str().into(), Arc::new(minted));
        self.table.store(Arc::new(table));
    }
}

impl fmt::Debug for MintReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MintReader({} names)", self.0.table.load().len())
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mint({} names)", self.inner.table.load().len())
    }
}

impl fmt::Debug for MintJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MintJob({})", self.wanted.name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::bundle::tests::self_signed;
    use super::*;

    /// Asks for a name while one job, if any comes, is done or dropped.
    async fn ask(
        mint: &mut Mint,
        reader: &MintReader,
        name: &str,
        parent: &Bundle,
        sign: bool,
    ) -> Option<Arc<Bundle>> {
        let name = HostName::parse(name).unwrap();
        tokio::select! {
            biased;
            answer = reader.exact(&name, parent) => answer,
            _ = async {
                let job = mint.next().await.unwrap();
                let bundle = Arc::new(self_signed(&[job.name().as_str()], 7));
                if sign { job.made(bundle) } else { drop(job) }
                std::future::pending::<()>().await;
            } => unreachable!(),
        }
    }

    #[tokio::test]
    async fn a_name_is_made_once_until_its_wildcard_changes() {
        let (mut mint, reader) = mint();
        let (wildcard, renewed) = (self_signed(&["*.localhost"], 7), self_signed(&["*.localhost"], 7));
        assert!(
            ask(&mut mint, &reader, "a.localhost", &wildcard, false).await.is_none(),
            "the wildcard serves"
        );
        let first = ask(&mut mint, &reader, "a.localhost", &wildcard, true).await.unwrap();
        let again = ask(&mut mint, &reader, "a.localhost", &wildcard, false).await.unwrap();
        assert_eq!(first.serial(), again.serial());
        let next = ask(&mut mint, &reader, "a.localhost", &renewed, true).await.unwrap();
        assert_ne!(first.serial(), next.serial());
        drop(mint);
        let name = HostName::parse("b.localhost").unwrap();
        assert!(reader.exact(&name, &wildcard).await.is_none(), "nobody signs any more");
    }

    #[tokio::test]
    async fn the_least_recently_used_makes_way() {
        let (mint, reader) = mint();
        let bundle = Arc::new(self_signed(&["x.localhost"], 7));
        let keep = |n: usize| {
            let name = HostName::parse(&format!("n{n}.localhost")).unwrap();
            let (reply, _) = oneshot::channel();
            mint.inner.keep(&Wanted { name, parent: "p".into(), reply }, bundle.clone());
        };
        (0..KEPT).for_each(keep);
        assert!(reader.0.find("n0.localhost", "p").is_some());
        keep(KEPT);
        assert!(reader.0.find("n0.localhost", "p").is_some(), "it was used");
        assert!(reader.0.find("n1.localhost", "p").is_none());
        assert_eq!(reader.0.table.load().len(), KEPT);
    }
}
