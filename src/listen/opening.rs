//! What is looked at before a connection is handed to TLS or HTTP: nothing that is read here is lost.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use super::frames::PREFACE;
use super::watch::Watch;
use crate::name::HostName;
use crate::tls::{Hello, HelloReader};

/// A hello with a post-quantum key share has less than 2 KiB.
const HELLO: usize = 2048;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
}

impl Ends {
    /// IPv4 addresses as such, although the listener takes both.
    pub(super) fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { peer: canonical(peer), local: canonical(local) }
    }
}

/// Reads a ClientHello: the name that it asks for, and the bytes. Ends early if it is none; has no deadline of its own.
pub(super) async fn hello<IO: AsyncRead + Unpin>(io: &mut IO) -> (Option<HostName>, Bytes) {
    let mut reader = HelloReader::default();
    let mut bytes = BytesMut::with_capacity(HELLO);
    loop {
        let seen = bytes.len();
        match io.read_buf(&mut bytes).await {
            // What is wrong with the connection is for the handshake to say.
            Ok(0) | Err(_) => return (None, bytes.freeze()),
            Ok(_) => match reader.read(&bytes[seen..]) {
                Hello::Incomplete => {}
                Hello::For(name) => return (Some(name), bytes.freeze()),
                Hello::Other => return (None, bytes.freeze()),
            },
        }
    }
}

/// Waits for the first bytes and reads them; none if the connection has ended, for whatever reason. Has no deadline of its own.
pub(super) async fn first(stream: &mut TcpStream) -> Bytes {
    // Whoever says nothing costs no buffer.
    let mut bytes = BytesMut::new();
    if stream.readable().await.is_ok() {
        bytes.reserve(HELLO);
        // What is wrong with the connection is for the handshake to say.
        let _ = stream.read_buf(&mut bytes).await;
    }
    bytes.freeze()
}

/// Whether somebody speaks HTTP where TLS is spoken: its records begin with a number below 32, a request with a letter.
pub(super) fn is_clear_http(first: &[u8]) -> bool {
    first.first().is_some_and(u8::is_ascii_alphabetic)
}

/// What he is told.
pub(super) const NOT_CLEAR: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 57\r\nConnection: close\r\n\r\nThis port speaks HTTPS: use https:// instead of http://.\n";

/// Reads until it is clear whether HTTP/2 begins without TLS: whether it does, and the bytes. `watch` hears of them.
pub(super) async fn prior_knowledge<IO: AsyncRead + Unpin>(io: &mut IO, watch: &Watch) -> (bool, Bytes) {
    let mut bytes = BytesMut::new();
    loop {
        bytes.reserve(PREFACE.len());
        match io.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return (false, bytes.freeze()),
            Ok(_) => watch.read(),
        }
        if bytes.starts_with(PREFACE) {
            return (true, bytes.freeze());
        }
        if !PREFACE.starts_with(&bytes) {
            return (false, bytes.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::super::spec::ListenTimeouts;
    use super::*;

    #[tokio::test]
    async fn http2_is_known_by_its_preface_and_everything_else_by_its_first_other_byte() {
        for (bytes, expected) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04"[..], true),
            (b"PRI * HTTP/2.0\r\n\r\nSX", false),
            (b"PROPFIND / HTTP/1.1\r\n", false),
            (b"P", false),
            (b"", false),
        ] {
            for step in [1, 24, 100] {
                let watch = Watch::alone(ListenTimeouts::default());
                let mut io = Pieces(bytes, step);
                let (found, mut read) = {
                    let (found, read) = prior_knowledge(&mut io, &watch).await;
                    (found, read.to_vec())
                };
                io.read_to_end(&mut read).await.unwrap();
                assert_eq!((found, &*read), (expected, bytes), "in steps of {step}");
            }
        }
    }

    #[test]
    fn http_without_tls_is_known_by_its_first_byte_and_told() {
        for clear in ["GET / HTTP/1.1\r\n", "PRI * HTTP/2.0", "post"] {
            assert!(is_clear_http(clear.as_bytes()), "{clear}");
        }
        for other in [&b""[..], b"\x16\x03\x01", b"\x15", b"\x80\x2e", b"\0", b"\r\n"] {
            assert!(!is_clear_http(other), "{other:?}");
        }
        let text = std::str::from_utf8(NOT_CLEAR).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    }

    /// Gives its bytes in pieces.
    struct Pieces<'a>(&'a [u8], usize);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let (piece, rest) = self.0.split_at(self.1.min(self.0.len()).min(buf.remaining()));
            buf.put_slice(piece);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }
}
