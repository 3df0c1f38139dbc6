//! What a client's bytes are in HTTP/2, as far as its time and our windows go: where frames begin and end. What they mean is for
//! the protocol's own parser.

/// How HTTP/2 begins (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Both windows before anybody has said anything else (section 6.9.2).
pub(super) const USUAL_WINDOW: i64 = 65_535;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// What a frame costs, and one that begins a request, in bytes that are taken in the same time.
const FRAME: usize = 256;
const HEAD: usize = 2048;
/// A byte of header fields costs so many times more than one of a body: four of them can be a field.
const FIELDS: usize = 8;

/// Follows the frames that a client sends.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Bytes of the preface so far.
    preface: usize,
    head: [u8; 9],
    /// Bytes of the frame's head so far.
    known: usize,
    /// Bytes of its payload that are still to come.
    rest: usize,
    /// A few bytes of the payload, of frames that are read.
    piece: [u8; 6],
    pieced: usize,
    /// A block of header fields goes on in the next frame.
    open_block: bool,
}

/// What some bytes said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// So much more may be sent on the connection.
    pub(super) credit: i64,
    /// So much may be sent on each new stream.
    pub(super) window: Option<i64>,
    /// What it is to serve the frames that began, beyond their bytes: as much as to take so many bytes.
    pub(super) cost: usize,
}

impl Frames {
    /// Takes the next bytes.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Said {
        let mut said = Said::default();
        let skipped = bytes.len().min(PREFACE.len() - self.preface);
        self.preface += skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.rest > 0 {
                let length = bytes.len().min(self.rest);
                self.payload(&bytes[..length], &mut said);
                self.rest -= length;
                bytes = &bytes[length..];
            } else {
                let length = bytes.len().min(self.head.len() - self.known);
                self.head[self.known..self.known + length].copy_from_slice(&bytes[..length]);
                self.known += length;
                bytes = &bytes[length..];
                if self.known == self.head.len() {
                    said.cost += self.begin();
                }
            }
            if self.rest == 0 && self.known == self.head.len() {
                self.known = 0;
            }
        }
        said
    }

    /// Bytes of the payload that has begun and is not there yet.
    pub(super) fn rest(&self) -> usize {
        self.rest
    }

    /// A frame's head is known; what the frame will cost beyond its bytes.
    fn begin(&mut self) -> usize {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.rest = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        self.pieced = 0;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.open_block = flags & END_HEADERS == 0;
        }
        match kind {
            HEADERS => HEAD + FIELDS * self.rest,
            CONTINUATION => FRAME + FIELDS * self.rest,
            _ => FRAME,
        }
    }

    fn payload(&mut self, bytes: &[u8], said: &mut Said) {
        let [_, _, _, kind, flags, stream @ ..] = self.head;
        let size = match kind {
            SETTINGS if flags & ACK == 0 => 6,
            WINDOW_UPDATE if stream == [0; 4] => 4,
            _ => return,
        };
        for byte in bytes {
            self.piece[self.pieced] = *byte;
            self.pieced += 1;
            if self.pieced < size {
                continue;
            }
            self.pieced = 0;
            let [a, b, c, d, e, f] = self.piece;
            if kind == WINDOW_UPDATE {
                said.credit += i64::from(u32::from_be_bytes([a & 0x7f, b, c, d]));
            } else if u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE {
                said.window = Some(u32::from_be_bytes([c, d, e, f]).into());
            }
        }
    }

    /// Whether the client has begun something that it has to go on with at once: its preface, a frame, a block of header fields.
    /// The payload of DATA is not meant: that is somebody's body, with a time of its own.
    pub(super) fn is_unfinished(&self) -> bool {
        let in_preface = self.preface > 0 && self.preface < PREFACE.len();
        let in_head = self.known > 0 && self.known < self.head.len();
        let in_frame = self.rest > 0 && self.head[3] != DATA;
        in_preface || in_head || in_frame || self.open_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    #[test]
    fn what_was_begun_is_known_to_the_byte() {
        // Each with the number of bytes after which nothing is unfinished.
        let frames: &[(Vec<u8>, bool)] = &[
            (PREFACE.to_vec(), false),
            (frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]), false),
            (frame(HEADERS, END_HEADERS, 1, b"block"), false),
            (frame(HEADERS, 0, 3, b"part"), true),
            (frame(CONTINUATION, 0, 3, b""), true),
            (frame(CONTINUATION, END_HEADERS, 3, b"end"), false),
            (frame(6, 0, 0, &[0; 8]), false),
            (frame(HEADERS, END_HEADERS, 5, b""), false),
            (frame(0x77, 0, 0, b"unknown"), false),
        ];
        let mut read = Frames::default();
        assert!(!read.is_unfinished(), "nothing was said yet");
        for (bytes, open) in frames {
            for (at, byte) in bytes.iter().enumerate() {
                read.read(&[*byte]);
                let last = at + 1 == bytes.len();
                assert_eq!(read.is_unfinished(), !last || *open, "byte {at} of {bytes:?}");
            }
        }
        read.read(&frame(DATA, 0, 1, b"body")[..11]);
        assert!(!read.is_unfinished(), "a body has its own time");
        read.read(b"dy");
        assert!(!read.is_unfinished() && read.known == 0 && read.rest == 0);
    }

    #[test]
    fn windows_are_read_in_pieces_of_any_size() {
        let all = [
            PREFACE,
            &frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0, 0, 1, 0, 0, 0, 9]),
            &frame(SETTINGS, ACK, 0, &[]),
            &frame(WINDOW_UPDATE, 0, 0, &[0x80, 0, 1, 0]),
            &frame(WINDOW_UPDATE, 0, 7, &[0, 0, 9, 9]),
            &frame(DATA, 0, 1, &[0, 4, 0, 0, 0, 0]),
            &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 5]),
            &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 7]),
            &frame(HEADERS, 0, 9, b"block"),
            &frame(CONTINUATION, END_HEADERS, 9, b"more"),
        ]
        .concat();
        for step in [1, 2, 5, 7, 13, 1_000] {
            let mut frames = Frames::default();
            let (mut credit, mut cost, mut windows) = (0, 0, Vec::new());
            for piece in all.chunks(step) {
                let said = frames.read(piece);
                credit += said.credit;
                cost += said.cost;
                windows.extend(said.window);
            }
            assert_eq!((credit, cost), (261, 8 * FRAME + HEAD + 9 * FIELDS), "in steps of {step}");
            assert_eq!(windows.last(), Some(&7));
            assert_eq!(windows.first(), Some(if step == 1_000 { &7 } else { &65_536 }));
            assert!(!frames.is_unfinished());
        }
    }
}
