//! Bytes made smaller as they come. Bounded: each encoder has a window of its own and no more, and there are only so many.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::compress::Coding;

/// Encoders of the whole process at one time; answers beyond these are not compressed. One takes 1.5 MiB for zstd, 4 MiB for
/// brotli and 0.3 MiB for gzip (measured), so a crowd of slow readers costs 512 MiB at most.
pub const MAX_ENCODERS: usize = 128;

static ENCODERS: AtomicUsize = AtomicUsize::new(0);

/// 256 KiB. Clients must take 8 MiB for zstd (RFC 9659) and 16 MiB for brotli.
const WINDOW_LOG: u32 = 18;

/// One stream that is being encoded.
pub struct Encoder {
    kind: Kind,
    _permit: Permit,
}

enum Kind {
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(Box<flate2::write::GzEncoder<Vec<u8>>>),
}

struct Permit;

impl Permit {
    fn take() -> Option<Self> {
        let taken = ENCODERS
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < MAX_ENCODERS).then_some(n + 1));
        taken.ok().map(|_| Self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        ENCODERS.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    /// An encoder, if there is room for one more.
    pub fn new(coding: Coding) -> Option<Self> {
        let permit = Permit::take()?;
        let kind = match coding {
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).ok()?;
                encoder.window_log(WINDOW_LOG).ok()?;
                Kind::Zstd(Box::new(encoder))
            }
            Coding::Brotli => {
                Kind::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, 4, WINDOW_LOG)))
            }
            Coding::Gzip => {
                Kind::Gzip(Box::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6))))
            }
        };
        Some(Self { kind, _permit: permit })
    }

    /// Takes `data`; how much comes out of it and when is up to the coding.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match &mut self.kind {
            Kind::Zstd(encoder) => encoder.write_all(data),
            Kind::Brotli(encoder) => encoder.write_all(data),
            Kind::Gzip(encoder) => encoder.write_all(data),
        }
    }

    /// Makes everything that was taken so far readable for the other side.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Zstd(encoder) => encoder.flush(),
            Kind::Brotli(encoder) => encoder.flush(),
            Kind::Gzip(encoder) => encoder.flush(),
        }
    }

    /// How much has come out and was not taken away.
    pub fn ready(&self) -> usize {
        match &self.kind {
            Kind::Zstd(encoder) => encoder.get_ref().len(),
            Kind::Brotli(encoder) => encoder.get_ref().len(),
            Kind::Gzip(encoder) => encoder.get_ref().len(),
        }
    }

    /// Takes away what has come out.
    pub fn take(&mut self) -> Bytes {
        let out = match &mut self.kind {
            Kind::Zstd(encoder) => encoder.get_mut(),
            Kind::Brotli(encoder) => encoder.get_mut(),
            Kind::Gzip(encoder) => encoder.get_mut(),
        };
        std::mem::take(out).into()
    }

    /// The end of the stream: what is left.
    pub fn finish(self) -> io::Result<Bytes> {
        Ok(match self.kind {
            Kind::Zstd(encoder) => encoder.finish()?,
            Kind::Brotli(encoder) => encoder.into_inner(),
            Kind::Gzip(encoder) => encoder.finish()?,
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn decoded(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 1 << 22];
        let mut reader: Box<dyn Read + '_> = match coding {
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
            Coding::Brotli => Box::new(brotli::Decompressor::new(bytes, 4096)),
            Coding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
        };
        let mut length = 0;
        // A stream that is not over gives what it has, and then an error.
        while let Ok(n @ 1..) = reader.read(&mut out[length..]) {
            length += n;
        }
        out.truncate(length);
        out
    }

    #[test]
    fn what_was_flushed_can_be_read_at_once_and_nothing_is_lost() {
        for coding in Coding::ALL {
            let mut encoder = Encoder::new(coding).unwrap();
            encoder.write(b"hello ").unwrap();
            encoder.flush().unwrap();
            let mut sent = encoder.take().to_vec();
            assert_eq!(decoded(coding, &sent), b"hello ", "{coding}");
            let more: Vec<u8> =
                (0..1_000_000_u32).flat_map(|n| (n / 7).to_le_bytes()).take(3 << 20).collect();
            for piece in more.chunks(64 << 10) {
                encoder.write(piece).unwrap();
                sent.extend(encoder.take());
            }
            sent.extend(encoder.finish().unwrap());
            assert_eq!(decoded(coding, &sent), [b"hello ", &more[..]].concat(), "{coding}");
            assert!(sent.len() < more.len() / 2, "{coding}: {}", sent.len());
        }
    }
}
