//! Who a client asks for, before anybody shakes hands with it.

use std::fmt;

use rustls::server::Acceptor;

use crate::name::HostName;

/// The largest hello that is looked into: rustls takes none that is larger either.
const MAX_HELLO: usize = 64 * 1024;

/// Reads a ClientHello, in however many records and segments it comes. Never answers: whatever is wrong with the hello is for the
/// handshake to say, which gets to see the same bytes.
#[derive(Default)]
pub struct HelloReader {
    acceptor: Acceptor,
    seen: usize,
}

/// What a hello turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More has to be read.
    Incomplete,
    /// It asks for this name.
    For(HostName),
    /// It names nobody, or it is no hello.
    Other,
}

impl HelloReader {
    /// Looks at what has arrived since the last time. Not to be called again once it has said something else than
    /// [`Hello::Incomplete`].
    pub fn read(&mut self, mut bytes: &[u8]) -> Hello {
        self.seen += bytes.len();
        while !bytes.is_empty() {
            if self.acceptor.read_tls(&mut bytes).is_err() {
                return Hello::Other;
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().and_then(|n| HostName::parse(n).ok());
                    return name.map_or(Hello::Other, Hello::For);
                }
                Err(_) => return Hello::Other,
            }
        }
        if self.seen > MAX_HELLO { Hello::Other } else { Hello::Incomplete }
    }
}

impl fmt::Debug for HelloReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HelloReader({} bytes)", self.seen)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake message in records of `size` bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let pieces = hello[5..].chunks(size);
        pieces
            .flat_map(|piece| [&[22, 3, 1], &(piece.len() as u16).to_be_bytes()[..], piece].concat())
            .collect()
    }

    fn read(bytes: &[u8], step: usize) -> (Hello, usize) {
        let mut reader = HelloReader::default();
        let mut seen = 0;
        for piece in bytes.chunks(step) {
            seen += piece.len();
            match reader.read(piece) {
                Hello::Incomplete => {}
                other => return (other, seen),
            }
        }
        (Hello::Incomplete, seen)
    }

    #[test]
    fn the_name_is_found_however_the_hello_comes() {
        let whole = hello("db.example.com");
        let expected = Hello::For(HostName::parse("db.example.com").unwrap());
        for bytes in [whole.clone(), in_records(&whole, 100), in_records(&whole, 7)] {
            for step in [1, 3, 1000, usize::MAX / 2] {
                assert_eq!(read(&bytes, step), (expected.clone(), bytes.len()), "in steps of {step}");
            }
        }
        assert_eq!(read(&whole[..whole.len() - 1], 100).0, Hello::Incomplete);
        assert_eq!(read(&hello("192.0.2.1"), 100).0, Hello::Other, "an address is not asked for");
    }

    #[test]
    fn what_is_no_hello_is_known_soon_and_an_endless_one_is_given_up() {
        for bytes in
            [&b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"[..], b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n", &[0; 64]]
        {
            assert_eq!(read(bytes, 1).0, Hello::Other, "{bytes:?}");
        }
        // A handshake message that says it is as long as a message can be.
        let mut endless = vec![1, 0, 255, 255];
        endless.resize(80 * 1024, 0);
        let (found, seen) = read(&in_records(&[&[0; 5], &endless[..]].concat(), 1000), 1000);
        assert!(found == Hello::Other && seen < 70 * 1024, "{found:?} after {seen}");
    }
}
