//! One question to one server: over UDP, and over TCP when the answer was cut.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::name::DnsName;

/// A datagram may get lost once.
const UDP_TRIES: u32 = 2;
const UDP_WAIT: Duration = Duration::from_secs(2);
pub(super) const TCP_WAIT: Duration = Duration::from_secs(5);
/// What passes every path unfragmented (DNS flag day 2020).
pub(super) const PAYLOAD: u16 = 1232;

/// Why a server gave no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nothing came back in time.
    #[error("no answer within {} s", UDP_WAIT.as_secs() * u64::from(UDP_TRIES))]
    Silent,
    /// This machine has no way there, as with IPv6 addresses on an IPv4 host.
    #[error("no route from this machine")]
    NoRoute,
    /// The system says no.
    #[error("{0}")]
    Failed(String),
    /// What came back is not DNS.
    #[error("the answer is not valid DNS: {0}")]
    Garbage(String),
}

/// Asks `server` for records of one type, with recursion desired or not. Ends within ten seconds.
///
/// Every response code is an answer. Dropping the future closes the sockets.
pub async fn ask(
    server: SocketAddr,
    name: &DnsName,
    kind: RecordType,
    recurse: bool,
) -> Result<Message, AskError> {
    let name = Name::from_ascii(name.to_fqdn()).map_err(|e| AskError::Garbage(e.to_string()))?;
    let mut query = Message::query();
    query.metadata.recursion_desired = recurse;
    query.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    query.set_edns(edns);
    let answer = over_udp(server, &query).await?;
    // Servers older than EDNS say so in these two ways.
    let old = matches!(answer.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp);
    let answer = if old {
        query.edns = None;
        over_udp(server, &query).await?
    } else {
        answer
    };
    if answer.metadata.truncation {
        return timeout(TCP_WAIT, over_tcp(server, &query)).await.unwrap_or(Err(AskError::Silent));
    }
    Ok(answer)
}

pub(super) async fn over_udp(server: SocketAddr, query: &Message) -> Result<Message, AskError> {
    let bytes = query.to_vec().map_err(|e| AskError::Garbage(e.to_string()))?;
    let local: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket for each question: its random port is half of what makes a forged answer hard to place.
    let socket = UdpSocket::bind((local, 0)).await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    let mut buffer = vec![0; 4096];
    for _ in 0..UDP_TRIES {
        socket.send(&bytes).await.map_err(failed)?;
        let until = Instant::now() + UDP_WAIT;
        while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
            let length = received.map_err(failed)?;
            match Message::from_vec(&buffer[..length]) {
                Ok(answer) if answers(&answer, query) => return Ok(answer),
                // Somebody else's datagram must not end the wait for ours.
                Ok(_) | Err(_) => {}
            }
        }
    }
    Err(AskError::Silent)
}

pub(super) async fn over_tcp(server: SocketAddr, query: &Message) -> Result<Message, AskError> {
    let bytes = query.to_vec().map_err(|e| AskError::Garbage(e.to_string()))?;
    let mut stream = TcpStream::connect(server).await.map_err(failed)?;
    let answer = roundtrip(&mut stream, &bytes).await.map_err(failed)?;
    let answer = Message::from_vec(&answer).map_err(|e| AskError::Garbage(e.to_string()))?;
    if answers(&answer, query) {
        Ok(answer)
    } else {
        Err(AskError::Garbage("it belongs to another question".into()))
    }
}

/// Sends one message with its length in front and reads one (RFC 1035 section 4.2.2). The caller bounds the time.
pub(crate) async fn roundtrip(stream: &mut TcpStream, query: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(query.len()).map_err(|_| io::Error::other("the question is too long"))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn answers(answer: &Message, query: &Message) -> bool {
    answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == MessageType::Response
        // A server that could not read the question may leave it out.
        && (answer.queries == query.queries
            || (answer.queries.is_empty() && answer.metadata.response_code != ResponseCode::NoError))
}

#[allow(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn failed(error: io::Error) -> AskError {
    match error.kind() {
        io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::Unsupported => AskError::NoRoute,
        io::ErrorKind::ConnectionRefused => AskError::Failed("refused: nothing listens there".into()),
        io::ErrorKind::UnexpectedEof => {
            AskError::Failed("the connection was closed without an answer".into())
        }
        _ => AskError::Failed(error.to_string()),
    }
}
