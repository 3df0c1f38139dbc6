//! The bytes of a connection to a server.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::exchange::Failure;
use super::tls::{self, TlsReader};
use crate::balance::Endpoint;

/// A connection of any kind. A concrete type, so that clear text costs one branch.
#[derive(Debug)]
pub(super) enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsIo>),
}

/// A connection inside TLS.
#[derive(Debug)]
pub(super) struct TlsIo {
    stream: TlsStream<TcpStream>,
    state: TlsState,
}

/// How TLS fares on a connection after its handshake: with TLS 1.3 a server refuses a client's certificate only then. Cloning
/// shares it.
#[derive(Clone, Debug, Default)]
pub(super) struct TlsState(Option<Rc<Inner>>);

#[derive(Debug)]
struct Inner {
    endpoint: Arc<Endpoint>,
    reader: TlsReader,
    failure: Cell<Option<Failure>>,
    answered: Cell<bool>,
}

impl TlsState {
    pub(super) fn new(endpoint: Arc<Endpoint>, reader: TlsReader) -> Self {
        Self(Some(Rc::new(Inner { endpoint, reader, failure: Cell::new(None), answered: Cell::new(false) })))
    }

    /// What TLS has against the connection.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.0.as_ref()?.failure.get()
    }

    /// The server has answered: it has nothing against us.
    pub(super) fn answered(&self) {
        if let Some(inner) = self.0.as_ref().filter(|inner| !inner.answered.replace(true)) {
            inner.reader.told(&inner.endpoint, None);
        }
    }

    fn note<T>(&self, result: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(error)) = result
            && let Some(failure) = tls::refusal(error)
            && let Some(inner) = &self.0
        {
            inner.failure.set(Some(failure));
            inner.reader.told(&inner.endpoint, Some(&error.to_string()));
        }
    }
}

impl TlsIo {
    pub(super) fn new(stream: TlsStream<TcpStream>, state: TlsState) -> Self {
        Self { stream, state }
    }
}

macro_rules! poll_io {
    ($this:expr, $method:ident, $($argument:expr),*) => {
        match $this {
            Io::Tcp(io) => Pin::new(io).$method($($argument),*),
            Io::Unix(io) => Pin::new(io).$method($($argument),*),
            Io::Tls(io) => {
                let polled = Pin::new(&mut io.stream).$method($($argument),*);
                io.state.note(&polled);
                polled
            }
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        poll_io!(self.get_mut(), poll_read, cx, buffer)
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        poll_io!(self.get_mut(), poll_write, cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match (self.get_mut(), slices) {
            // The kernel takes one piece cheaper than a list of one; most requests are one.
            (Io::Tcp(io), [only]) => Pin::new(io).poll_write(cx, only),
            (io, slices) => poll_io!(io, poll_write_vectored, cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            Self::Unix(io) => io.is_write_vectored(),
            Self::Tls(io) => io.stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_io!(self.get_mut(), poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_io!(self.get_mut(), poll_shutdown, cx)
    }
}

/// A connection to a server that speaks another protocol than HTTP from now on. Dropping it closes it; what has to be heard of
/// first is shut down before.
#[derive(Debug)]
pub struct ServerStream {
    io: Io,
    /// What the server sent right behind its 101.
    ahead: Bytes,
}

impl ServerStream {
    pub(super) fn new(io: Io, ahead: &[u8]) -> Self {
        // A piece of a buffer, even an empty one, holds the whole of it.
        Self { io, ahead: Bytes::copy_from_slice(ahead) }
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let n = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..n]);
            self.ahead.advance(n);
            if self.ahead.is_empty() {
                self.ahead = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
