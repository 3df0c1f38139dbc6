//! Moving questions and answers between sockets and [`answer`], on a thread of its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

use super::answer::{Transport, answer};
use super::bind::Bound;
use super::limit::{RateLimit, prefix};
use super::zones::ZoneReader;
use crate::task::{self, Shutdown, Thread};

/// Connections at once, in all and of one network.
const MAX_CONNECTIONS: usize = 256;
const MAX_PER_PREFIX: usize = 32;
/// Between two questions on a connection, and for taking an answer.
const IDLE: Duration = Duration::from_secs(5);
/// A connection's whole life.
const LIFE: Duration = Duration::from_secs(30);
/// A query is its question and a few options.
const MAX_QUERY: usize = 4096;
/// After an error of the socket itself, so that a broken one does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// The responder while it answers. Dropping it lets it end; [`Running::stop`] waits for that.
#[derive(Debug)]
pub struct Running {
    thread: Option<Thread>,
    stop: Shutdown,
    addresses: Vec<SocketAddr>,
}

impl Bound {
    /// Answers from `zones` on a thread of its own, until `shutdown`. Errors if the system has no thread or no file left.
    pub fn start(self, zones: ZoneReader, shutdown: &Shutdown) -> io::Result<Running> {
        let stop = shutdown.child();
        let addresses = self.addresses().to_vec();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let until = stop.clone();
        let thread = task::spawn_thread("dns-responder", move || async move {
            match self.into_tokio() {
                Ok(sockets) => {
                    // The receiver waits for exactly this one message.
                    let _ = ready.send(Ok(()));
                    serve(&sockets, &zones, &until).await;
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        started.recv().map_err(|_| io::Error::other("the responder's thread ended at once"))??;
        Ok(Running { thread: Some(thread), stop, addresses })
    }

    fn into_tokio(self) -> io::Result<Vec<(UdpSocket, TcpListener)>> {
        self.pairs
            .into_iter()
            .map(|(udp, tcp)| Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?)))
            .collect()
    }
}

impl Running {
    /// Where it answers.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether its thread has ended, on purpose or not.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(Thread::is_finished)
    }

    /// Ends it and waits (milliseconds: it waits for nobody). `Err` says what its thread said when it panicked.
    pub fn stop(mut self) -> Result<(), String> {
        self.stop.trigger();
        self.thread.take().map_or(Ok(()), Thread::join)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

async fn serve(sockets: &[(UdpSocket, TcpListener)], zones: &ZoneReader, shutdown: &Shutdown) {
    let limit = RefCell::new(RateLimit::new(Instant::now()));
    let guests = Guests::default();
    let loops = sockets.iter().map(|(udp, tcp)| async {
        tokio::join!(datagrams(udp, zones, &limit), connections(tcp, zones, &guests));
    });
    let ended = until(shutdown, join_all(loops)).await;
    debug_assert!(ended.is_none(), "the loops end by the signal only");
}

/// Runs `work` until the signal; `None` if the signal came first.
async fn until<T>(shutdown: &Shutdown, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        value = work => Some(value),
        () = shutdown.wait() => None,
    }
}

async fn datagrams(socket: &UdpSocket, zones: &ZoneReader, limit: &RefCell<RateLimit>) {
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "a datagram could not be received");
                sleep(PAUSE).await;
                continue;
            }
        };
        if peer.port() == 0 {
            continue;
        }
        let allowed = limit.borrow_mut().allow(peer.ip(), Instant::now());
        let transport = if allowed { Transport::Udp } else { Transport::UdpLimited };
        if let Some(reply) = safely(zones, &buffer[..length], transport)
            && let Err(error) = socket.send_to(&reply, peer).await
        {
            tracing::debug!(%error, %peer, "a DNS answer could not be sent");
        }
    }
}

async fn connections(listener: &TcpListener, zones: &ZoneReader, guests: &Guests) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a DNS connection could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        // Over the limit it is closed at once: a resolver then asks another server or again.
        let Some(guest) = guests.admit(peer.ip()) else { continue };
        let zones = zones.clone();
        task::spawn_local(async move {
            let _guest = guest;
            if let Ok(Err(error)) = timeout(LIFE, converse(stream, &zones)).await {
                tracing::debug!(%error, %peer, "a DNS connection broke");
            }
        });
    }
}

/// Answers one question after another until the peer is done or idle.
async fn converse(mut stream: TcpStream, zones: &ZoneReader) -> io::Result<()> {
    loop {
        let Ok(query) = timeout(IDLE, read(&mut stream)).await else { return Ok(()) };
        let Some(query) = query? else { return Ok(()) };
        let Some(reply) = safely(zones, &query, Transport::Tcp) else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// One message; `None` at the end of the connection or when it is longer than a query can be.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_QUERY {
        return Ok(None);
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}

/// A defect in answering one question must not silence the others.
fn safely(zones: &ZoneReader, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    catch_unwind(AssertUnwindSafe(|| answer(&zones.load(), query, transport))).unwrap_or_else(|panic| {
        tracing::error!(panic = task::panic_text(panic.as_ref()), "a DNS question could not be answered");
        None
    })
}

/// Counts connections. All on one thread.
#[derive(Clone, Debug, Default)]
struct Guests(Rc<RefCell<HashMap<[u8; 8], usize>>>);

impl Guests {
    fn admit(&self, peer: IpAddr) -> Option<Guest> {
        let prefix = prefix(peer);
        let mut counts = self.0.borrow_mut();
        if counts.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        let count = counts.entry(prefix).or_insert(0);
        if *count >= MAX_PER_PREFIX {
            return None;
        }
        *count += 1;
        Some(Guest { guests: self.clone(), prefix })
    }
}

/// A connection that is counted while it lives.
#[derive(Debug)]
struct Guest {
    guests: Guests,
    prefix: [u8; 8],
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.guests.0.borrow_mut();
        if let Some(count) = counts.get_mut(&self.prefix) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_for_each_network_and_in_all() {
        let guests = Guests::default();
        let peer = |a: u8, b: u8| IpAddr::from([10, a, b, 1]);
        let mut held: Vec<_> = (0..100).filter_map(|_| guests.admit(peer(0, 0))).collect();
        assert_eq!(held.len(), MAX_PER_PREFIX);
        held.extend((1..=255).filter_map(|b| guests.admit(peer(1, b))));
        assert_eq!(held.len(), MAX_CONNECTIONS);
        assert!(guests.admit(peer(2, 0)).is_none());
        held.clear();
        assert!(guests.admit(peer(0, 0)).is_some());
        assert!(guests.0.borrow().is_empty());
    }
}
