//! The PROXY protocol, versions 1 and 2, as a balancer speaks it to us: who its client is, said before the client's first byte.

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest header of version 1, its line's end included.
const MAX_V1: usize = 107;
/// The longest header of version 2 that is taken: addresses are 36 bytes, or 216 for Unix sockets; the rest are TLVs, which are
/// passed over.
const MAX_V2: usize = 4096;
const V2_FIXED: usize = 16;
/// What is enough to tell the versions apart, and shorter than any header.
const SIGNATURE: usize = 12;

/// The two ends of a connection as a header says them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
}

/// How far a header has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// At least so many bytes are missing, so reading them reads nothing of what follows.
    Needs(usize),
    /// It is complete. `None`: it says nothing of the client (LOCAL, UNKNOWN, a Unix socket), so the connection is the balancer's own.
    Complete(Option<Addresses>),
}

/// Why a header is not taken. The peer is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It begins with something else.
    #[error("no PROXY header, though `listen.proxy_protocol` lists this peer")]
    Missing,
    /// Longer than any that makes sense.
    #[error("a PROXY header over its limit of {MAX_V1} bytes (version 1) or {MAX_V2} bytes (version 2)")]
    TooLong,
    /// It begins like one, and goes on unlike any.
    #[error("a malformed PROXY header")]
    Malformed,
}

/// Looks at the first bytes of a connection. Pure; `bytes` must not go beyond the header.
pub fn parse(bytes: &[u8]) -> Result<Progress, HeaderError> {
    let begins = |whole: &[u8]| bytes.iter().zip(whole).all(|(a, b)| a == b);
    if begins(v2::PROTOCOL_PREFIX) {
        version_2(bytes)
    } else if begins(v1::PROTOCOL_PREFIX.as_bytes()) {
        version_1(bytes)
    } else {
        Err(HeaderError::Missing)
    }
}

fn version_1(bytes: &[u8]) -> Result<Progress, HeaderError> {
    if bytes.len() < SIGNATURE {
        return Ok(Progress::Needs(SIGNATURE - bytes.len()));
    }
    match bytes.iter().position(|byte| *byte == b'\n') {
        None if bytes.len() >= MAX_V1 => Err(HeaderError::TooLong),
        // The line ends with two bytes.
        None if bytes.ends_with(b"\r") || bytes.len() == MAX_V1 - 1 => Ok(Progress::Needs(1)),
        None => Ok(Progress::Needs(2)),
        // A line that a bare LF ends would be read with the byte behind it, or not, as its length is odd or even.
        Some(end) if end + 1 < bytes.len() || !bytes[..end].ends_with(b"\r") => Err(HeaderError::Malformed),
        Some(_) => {
            let header = v1::Header::try_from(bytes).map_err(|_| HeaderError::Malformed)?;
            if header.header.len() != bytes.len() {
                return Err(HeaderError::Malformed);
            }
            Ok(Progress::Complete(match header.addresses {
                v1::Addresses::Tcp4(of) => Some(Addresses {
                    source: (of.source_address, of.source_port).into(),
                    destination: (of.destination_address, of.destination_port).into(),
                }),
                v1::Addresses::Tcp6(of) => Some(Addresses {
                    source: (of.source_address, of.source_port).into(),
                    destination: (of.destination_address, of.destination_port).into(),
                }),
                v1::Addresses::Unknown => None,
            }))
        }
    }
}

fn version_2(bytes: &[u8]) -> Result<Progress, HeaderError> {
    let Some(length) = bytes.get(V2_FIXED - 2..V2_FIXED) else {
        return Ok(Progress::Needs(if bytes.len() < SIGNATURE { SIGNATURE } else { V2_FIXED } - bytes.len()));
    };
    let whole = V2_FIXED + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if whole > MAX_V2 {
        return Err(HeaderError::TooLong);
    }
    if bytes.len() < whole {
        return Ok(Progress::Needs(whole - bytes.len()));
    }
    let header = v2::Header::try_from(bytes).map_err(|_| HeaderError::Malformed)?;
    if header.length() + V2_FIXED != bytes.len() {
        return Err(HeaderError::Malformed);
    }
    if header.command == v2::Command::Local || header.protocol != v2::Protocol::Stream {
        return Ok(Progress::Complete(None));
    }
    Ok(Progress::Complete(match header.addresses {
        v2::Addresses::IPv4(of) => Some(Addresses {
            source: (of.source_address, of.source_port).into(),
            destination: (of.destination_address, of.destination_port).into(),
        }),
        v2::Addresses::IPv6(of) => Some(Addresses {
            source: (of.source_address, of.source_port).into(),
            destination: (of.destination_address, of.destination_port).into(),
        }),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    }))
}

/// Reads a header and nothing of what follows it. Has no deadline of its own.
pub(super) async fn receive<IO: AsyncRead + Unpin>(io: &mut IO) -> io::Result<Option<Addresses>> {
    let mut bytes = Vec::with_capacity(MAX_V1);
    loop {
        match parse(&bytes) {
            Ok(Progress::Complete(addresses)) => return Ok(addresses),
            Ok(Progress::Needs(more)) => {
                let have = bytes.len();
                bytes.resize(have + more, 0);
                io.read_exact(&mut bytes[have..]).await?;
            }
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a reader makes of `bytes` with something behind them, and how much of them it read.
    fn received(bytes: &[u8]) -> (Result<Option<Addresses>, HeaderError>, usize) {
        let mut have = 0;
        loop {
            match parse(&bytes[..have]) {
                Ok(Progress::Needs(more)) => {
                    assert!(more > 0);
                    have += more;
                    if have > bytes.len() {
                        return (Err(HeaderError::Missing), have);
                    }
                }
                Ok(Progress::Complete(addresses)) => return (Ok(addresses), have),
                Err(error) => return (Err(error), have),
            }
        }
    }

    fn v2(command: u8, family: u8, length: u16, payload: &[u8]) -> Vec<u8> {
        [v2::PROTOCOL_PREFIX, &[0x20 | command, family], &length.to_be_bytes(), payload].concat()
    }

    fn pair(source: &str, destination: &str) -> Result<Option<Addresses>, HeaderError> {
        Ok(Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }))
    }

    #[test]
    fn headers_say_who_is_there_and_what_follows_is_left_alone() {
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0x11, 0x5c, 1, 187];
        let with_tlv = [&four[..], &[4, 0, 2, 9, 9]].concat();
        let six = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 15], &[1, 0, 1, 0, 2]]
            .concat();
        let cases: Vec<(Vec<u8>, _)> = vec![
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 4444 443\r\n".to_vec(),
                pair("192.0.2.7:4444", "198.51.100.1:443"),
            ),
            (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(), pair("[2001:db8::1]:1", "[::1]:2")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Ok(None)),
            (b"PROXY UNKNOWN some thing\r\n".to_vec(), Ok(None)),
            (v2(1, 0x11, 12, &four), pair("192.0.2.7:4444", "198.51.100.1:443")),
            (v2(1, 0x11, 17, &with_tlv), pair("192.0.2.7:4444", "198.51.100.1:443")),
            (v2(1, 0x21, 36, &six), pair("[2001:db8::1]:1", "[::1]:2")),
            (v2(0, 0x11, 12, &four), Ok(None)),
            (v2(0, 0, 0, &[]), Ok(None)),
            (v2(1, 0x12, 12, &four), Ok(None)),
            (v2(1, 0x31, 216, &[0; 216]), Ok(None)),
        ];
        for (header, expected) in cases {
            let bytes =
                [&header[..], b"\r\nGET / HTTP/1.1\r\n\r\nPROXY and two hundred bytes more", &[0; 200]]
                    .concat();
            assert_eq!(received(&bytes), (expected, header.len()), "{header:?}");
        }
    }

    #[test]
    fn what_is_no_header_or_a_bad_one_is_refused() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"[..], HeaderError::Missing),
            (&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 0, 0], HeaderError::Missing),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 4444\r\n            ", HeaderError::Malformed),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 04 443\r\n          ", HeaderError::Malformed),
            (b"PROXY TCP4 ::1 ::1 1 443\r\n                          ", HeaderError::Malformed),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 70000\r\n                ", HeaderError::Malformed),
            (b"PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n                   ", HeaderError::Malformed),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n                      ", HeaderError::Malformed),
            (&[&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(), HeaderError::TooLong),
            (&v2(2, 0x11, 12, &[0; 12]), HeaderError::Malformed),
            (&v2(1, 0x41, 12, &[0; 12]), HeaderError::Malformed),
            (&v2(1, 0x11, 11, &[0; 11]), HeaderError::Malformed),
            (&v2(1, 0x11, 4081, &[0; 4081]), HeaderError::TooLong),
        ] {
            let (found, read) = received(bytes);
            assert_eq!(found, Err(expected), "{bytes:?}");
            assert!(read <= MAX_V2, "{read}");
        }
    }

    #[tokio::test]
    async fn a_header_in_single_bytes_is_the_same() {
        let (mut near, mut far) = tokio::io::duplex(1);
        let client = async {
            let bytes = b"PROXY TCP4 192.0.2.7 198.51.100.1 4444 443\r\nrest";
            tokio::io::AsyncWriteExt::write_all(&mut near, bytes).await.unwrap();
            drop(near);
        };
        let server = async {
            let addresses = receive(&mut far).await.unwrap().unwrap();
            let mut rest = String::new();
            far.read_to_string(&mut rest).await.unwrap();
            (addresses.source.to_string(), rest)
        };
        let ((), (source, rest)) = tokio::join!(client, server);
        assert_eq!((&*source, &*rest), ("192.0.2.7:4444", "rest"));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_nothing_is_read_beyond_the_limit(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", v2::PROTOCOL_PREFIX]),
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [start, &rest].concat();
            let (_, read) = received(&bytes);
            prop_assert!(read <= MAX_V2.max(bytes.len()));
        }
    }

    #[test]
    fn a_line_ends_with_both_of_its_bytes() {
        for line in
            ["PROXY UNKNOWN \n", "PROXY UNKNOWN x\n", "PROXY UNKNOWN\n", "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n"]
        {
            assert_eq!(parse(line.as_bytes()), Err(HeaderError::Malformed), "{line:?}");
        }
        assert_eq!(parse(b"PROXY UNKNOWN x\r\n"), Ok(Progress::Complete(None)));
    }
}
