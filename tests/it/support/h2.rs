//! HTTP/2 frame by frame, for what no well-behaved client does.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::client::PATIENCE;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// One connection, with the default windows of 65,535 bytes.
pub(crate) struct Frames<IO = TcpStream>(TlsStream<IO>);

impl<IO: AsyncRead + AsyncWrite + Unpin> Frames<IO> {
    /// Says hello and returns what the server settled.
    pub(crate) async fn begin(mut stream: TlsStream<IO>) -> (Self, Vec<(u16, u32)>) {
        stream.write_all(PREFACE).await.unwrap();
        let mut frames = Self(stream);
        frames.send(SETTINGS, 0, 0, &[]).await;
        let settings = frames.next_of(SETTINGS).await;
        frames.send(SETTINGS, ACK, 0, &[]).await;
        let pairs = settings.payload.chunks(6).map(|pair| {
            (u16::from_be_bytes([pair[0], pair[1]]), u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]))
        });
        (frames, pairs.collect())
    }

    /// A connection on which nothing was said yet.
    pub(crate) fn over(stream: TlsStream<IO>) -> Self {
        Self(stream)
    }

    /// Sends bytes that the other side may not want any more; `false` if it has closed.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok() && self.0.flush().await.is_ok()
    }

    /// Ends our side.
    pub(crate) async fn shut(&mut self) {
        let _ = self.0.shutdown().await;
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.send_at_once(&frame(kind, flags, stream, payload)).await;
    }

    /// Sends any number of frames with one write.
    pub(crate) async fn send_at_once(&mut self, frames: &[u8]) {
        self.0.write_all(frames).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// A request's head for `path` at `a.test`; `more` fields follow.
    pub(crate) async fn request(
        &mut self,
        stream: u32,
        flags: u8,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
    ) {
        self.send_at_once(&request(stream, flags, method, path, more)).await;
    }

    pub(crate) async fn more(&mut self, stream: u32, bytes: u32) {
        self.send(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await;
    }

    /// The next frame; `None` at the end. Pings are answered.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            let frame = self.read().await?;
            if frame.kind != PING {
                return Some(frame);
            }
            if frame.flags & ACK == 0 {
                self.send(PING, ACK, 0, &frame.payload).await;
            }
        }
    }

    async fn read(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.any()).await.expect("no frame")
    }

    /// The next frame, whatever it is, however long it takes; `None` at the end.
    pub(crate) async fn any(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame of this kind; others are passed over.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection ended");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// How `stream` ends: with its last frame, or with a reset.
    pub(crate) async fn end_of(&mut self, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection ended");
            if frame.stream == stream
                && (frame.kind == RST_STREAM || (frame.kind <= HEADERS && frame.flags & END_STREAM != 0))
            {
                return frame;
            }
        }
    }
}

/// One frame as bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// See [`Frames::request`].
pub(crate) fn request(stream: u32, flags: u8, method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let pseudo = [(":method", method), (":scheme", "https"), (":authority", "a.test"), (":path", path)];
    for (name, value) in pseudo.iter().chain(more) {
        field(&mut block, name.as_bytes(), value.as_bytes());
    }
    frame(HEADERS, flags | END_HEADERS, stream, &block)
}

/// One field line, written out and kept out of the table (RFC 7541 section 6.2.2).
pub(crate) fn field(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    string(block, name);
    string(block, value);
}

/// RFC 7541 section 5.2, not Huffman-coded.
pub(crate) fn string(block: &mut Vec<u8>, text: &[u8]) {
    length(block, text.len());
    block.extend(text);
}

/// RFC 7541 section 5.1 with a prefix of seven bits.
fn length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        block.push(length as u8);
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// The status of an answer; it is always its first field.
pub(crate) fn status(block: &[u8]) -> u16 {
    // An encoder that was told a new table size says so first.
    let updates = block.iter().take_while(|byte| **byte & 0xe0 == 0x20).count();
    match block[updates..] {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        [0x48 | 0x08 | 0x18, 0x03, a, b, c, ..] => {
            [a, b, c].iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'))
        }
        [0x48 | 0x08 | 0x18, length @ 0x82..=0x83, ref rest @ ..] => {
            digits(&rest[..usize::from(length & 0x7f)])
        }
        ref other => panic!("no status: {other:02x?}"),
    }
}

/// Three digits in Huffman's code: 0 to 2 have five bits, 3 to 9 six.
fn digits(coded: &[u8]) -> u16 {
    let bits: Vec<u16> =
        coded.iter().flat_map(|b| (0..8).rev().map(move |n| u16::from(b >> n & 1))).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let take = |n: usize| bits[at..at + n].iter().fold(0, |value, bit| value << 1 | bit);
        let (digit, length) = match take(5) {
            short @ 0..=2 => (short, 5),
            _ => (take(6) - 0b01_1001 + 3, 6),
        };
        number = number * 10 + digit;
        at += length;
    }
    number
}
