//! What the kernel does about the other end of a connection: whether it is still there, and how much waits for it.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// After so long without a byte the peer is asked.
const IDLE: Duration = Duration::from_secs(60);
/// Without an answer it is asked again after this long,
const INTERVAL: Duration = Duration::from_secs(15);
/// and after so many questions without one the connection ends.
const PROBES: u32 = 4;

/// The kernel takes no more while so many bytes wait that it has not sent yet. Two turns of an answer: enough for a link of 10 Gbit/s
/// to go on for a fifth of a millisecond while we do something else.
const UNSENT: u32 = 256 * 1024;

/// Tells the kernel what to do about the peer of a TCP connection. Connections that a listener accepts are as the listener.
///
/// It asks the peer whether it is there, if it says nothing: who has vanished without a word (a cable, a phone, a machine that lost
/// its power) is noticed after two minutes, also by streams and tunnels that may be silent for as long as they like.
///
/// It keeps little for a peer that does not read. By itself it would take megabytes for each, all of them encrypted and copied as soon
/// as somebody asks for a large answer; what is on its way to a peer that does read is not counted, however long the way.
///
/// `TCP_USER_TIMEOUT` is left alone: it also ends connections to peers that are there and do not read, whose time is
/// `timeouts.write` or `timeouts.tunnel`. A peer that vanishes while bytes to it are under way is given up by the kernel after
/// `net.ipv4.tcp_retries2`, which is a quarter of an hour.
pub fn watch_peer<'s>(socket: impl Into<SockRef<'s>>) {
    let socket = socket.into();
    let ask = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(PROBES);
    if let Err(error) = socket.set_tcp_keepalive(&ask) {
        tracing::debug!(%error, "the kernel does not ask whether a peer is still there");
    }
    if let Err(error) = socket.set_tcp_notsent_lowat(UNSENT) {
        tracing::debug!(%error, "the kernel keeps as much as it likes for a peer that does not read");
    }
}

/// Whether [`watch_peer`] was heeded.
#[cfg(test)]
pub(crate) fn is_watched<'s>(socket: impl Into<SockRef<'s>>) -> bool {
    let socket = socket.into();
    socket.keepalive().unwrap()
        && socket.tcp_keepalive_time().unwrap() == IDLE
        && socket.tcp_keepalive_interval().unwrap() == INTERVAL
        && socket.tcp_keepalive_retries().unwrap() == PROBES
        && socket.tcp_notsent_lowat().unwrap() == UNSENT
}
