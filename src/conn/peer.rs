//! Whether the other end of a connection is still there.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// After so long without a byte the peer is asked.
const IDLE: Duration = Duration::from_secs(60);
/// Without an answer it is asked again after this long,
const INTERVAL: Duration = Duration::from_secs(15);
/// and after so many questions without one the connection ends.
const PROBES: u32 = 4;

/// Lets the kernel ask the peer of a TCP connection whether it is there, if it says nothing: who has vanished without a word (a
/// cable, a phone, a machine that lost its power) is noticed after two minutes, also by streams and tunnels that may be silent for
/// as long as they like. Connections that a listener accepts are as the listener.
///
/// `TCP_USER_TIMEOUT` is left alone: it also ends connections to peers that are there and do not read, whose time is
/// `timeouts.write` or `timeouts.tunnel`. A peer that vanishes while bytes to it are under way is given up by the kernel after
/// `net.ipv4.tcp_retries2`, which is a quarter of an hour.
pub fn notice_vanished_peer<'s>(socket: impl Into<SockRef<'s>>) {
    let ask = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(PROBES);
    if let Err(error) = socket.into().set_tcp_keepalive(&ask) {
        tracing::debug!(%error, "the kernel does not ask whether a peer is still there");
    }
}

/// Whether [`notice_vanished_peer`] was heeded.
#[cfg(test)]
pub(crate) fn is_watched<'s>(socket: impl Into<SockRef<'s>>) -> bool {
    let socket = socket.into();
    socket.keepalive().unwrap()
        && socket.tcp_keepalive_time().unwrap() == IDLE
        && socket.tcp_keepalive_interval().unwrap() == INTERVAL
        && socket.tcp_keepalive_retries().unwrap() == PROBES
}
