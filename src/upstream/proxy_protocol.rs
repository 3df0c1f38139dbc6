//! The header that tells a server who the client is (HAProxy's PROXY protocol, versions 1 and 2). Pure.

use std::net::{IpAddr, SocketAddr};

use ppp::{v1, v2};

use crate::balance::ProxyProtocol;

/// Both ends of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddresses {
    /// The client. Port 0 if only its address is known, as behind a trusted proxy.
    pub from: SocketAddr,
    /// Where it came in.
    pub to: SocketAddr,
}

/// The header for `client`. Addresses of two families are both written as IPv6.
pub(super) fn header(version: ProxyProtocol, client: &ClientAddresses) -> Vec<u8> {
    let (from, to) = match (client.from.ip(), client.to.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => (client.from, client.to),
        _ => (mapped(client.from), mapped(client.to)),
    };
    match version {
        ProxyProtocol::V1 => v1::Addresses::from((from, to)).to_string().into_bytes(),
        ProxyProtocol::V2 => {
            let builder = v2::Builder::with_addresses(
                v2::Version::Two | v2::Command::Proxy,
                v2::Protocol::Stream,
                (from, to),
            );
            // It fails on more than 64 KiB, and there are no TLVs.
            builder.build().unwrap_or_default()
        }
    }
}

/// What a connection begins with that is for no client but for ourselves.
pub(super) fn opening(version: Option<ProxyProtocol>) -> Vec<u8> {
    match version {
        None => Vec::new(),
        Some(ProxyProtocol::V1) => b"PROXY UNKNOWN\r\n".to_vec(),
        Some(ProxyProtocol::V2) => {
            let family = v2::Protocol::Unspecified;
            let builder = v2::Builder::with_addresses(
                v2::Version::Two | v2::Command::Local,
                family,
                v2::Addresses::Unspecified,
            );
            builder.build().unwrap_or_default()
        }
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(from: &str, to: &str) -> ClientAddresses {
        ClientAddresses { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    #[test]
    fn headers_as_the_specification_writes_them() {
        let four = client("192.0.2.1:56324", "198.51.100.7:443");
        let six = client("[2001:db8::1]:56324", "[2001:db8::2]:443");
        let mixed = client("192.0.2.1:0", "[2001:db8::2]:443");
        let text = |client: &ClientAddresses| String::from_utf8(header(ProxyProtocol::V1, client)).unwrap();
        assert_eq!(text(&four), "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n");
        assert_eq!(text(&six), "PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n");
        assert_eq!(text(&mixed), "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 0 443\r\n");
        let mut wanted = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        wanted.extend([192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb]);
        assert_eq!(header(ProxyProtocol::V2, &four), wanted);
        let binary = header(ProxyProtocol::V2, &mixed);
        assert_eq!((binary.len(), &binary[12..16]), (16 + 36, &[0x21, 0x21, 0, 36][..]));
        assert_eq!(&binary[16..32], "::ffff:192.0.2.1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
}
