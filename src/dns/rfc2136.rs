//! DNS UPDATE (RFC 2136) signed with TSIG (RFC 8945).
//!
//! Written here on `hickory-proto` instead of through `dns-update`: that spawns a task for each connection, and turns a
//! refused key into "validation failed", where a person needs to hear whether the key's name, its secret or the clock is wrong.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigVerifier, TSigner};
use tokio::net::TcpStream;

use super::build::BuildError;
use super::redact::one_line;
use super::turns::ZoneTurns;
use super::zone::ZoneFinder;
use super::{DnsError, TxtProvider, TxtRecord};
use crate::clock::SharedClock;
use crate::name::DnsName;
use crate::resolver::roundtrip;

/// Seconds that the clocks may differ (RFC 8945 section 10 recommends 300).
const FUDGE: u16 = 300;
const PROVIDER: &str = "rfc2136";

pub(super) struct Rfc2136 {
    pub(super) id: String,
    pub(super) server: SocketAddr,
    pub(super) signer: TSigner,
    pub(super) ttl: u32,
    pub(super) timeout: Duration,
    pub(super) zones: ZoneFinder,
    pub(super) turns: ZoneTurns,
    pub(super) clock: SharedClock,
}

impl fmt::Debug for Rfc2136 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rfc2136({})", self.id)
    }
}

/// Makes the key that signs.
pub(super) fn signer(key_name: &str, secret: &str, algorithm: &str) -> Result<TSigner, BuildError> {
    let bad = |key, reason: String| BuildError::BadKey { provider: PROVIDER.into(), key, reason };
    let algorithm = match algorithm.trim_end_matches('.') {
        "hmac-sha256" => TsigAlgorithm::HmacSha256,
        "hmac-sha384" => TsigAlgorithm::HmacSha384,
        "hmac-sha512" => TsigAlgorithm::HmacSha512,
        other => {
            let reason = format!("`{other}` is not one of hmac-sha256, hmac-sha384, hmac-sha512");
            return Err(bad("algorithm", reason));
        }
    };
    let name = Name::from_ascii(key_name).map_err(|e| bad("key_name", e.to_string()))?;
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let key = GeneralPurpose::new(&STANDARD, lenient).decode(secret).map_err(|_| {
        bad("secret", "it is not base64; take it as the name server's key file writes it".into())
    })?;
    TSigner::new(key, algorithm, name, FUDGE).map_err(|e| bad("algorithm", e.to_string()))
}

impl Rfc2136 {
    async fn update(&self, record: &TxtRecord, add: bool) -> Result<(), DnsError> {
        let zone = self.zones.zone_of(&record.name).await?;
        let _turn = self.turns.take(zone.as_str()).await;
        let now = self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut message = message(record, &zone, add.then_some(self.ttl)).map_err(DnsError::Refused)?;
        let what = format!("the update of {} in zone {zone} at {}", record.name, self.server);
        let broken = |e: String| DnsError::Unavailable(format!("{what} failed: {}", one_line(&e)));
        let verifier = message.finalize(&self.signer, now).map_err(|e| broken(e.to_string()))?;
        let query = message.to_vec().map_err(|e| broken(e.to_string()))?;
        // Updates go over TCP: nothing is lost, and no answer can be forged by a guess.
        let exchange = async {
            let mut stream = TcpStream::connect(self.server).await?;
            roundtrip(&mut stream, &query).await
        };
        let bytes = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(broken(error.to_string())),
            Err(_) => return Err(broken(format!("no answer within {} s", self.timeout.as_secs()))),
        };
        let answer = Message::from_vec(&bytes).map_err(|e| broken(e.to_string()))?;
        if answer.metadata.id != message.metadata.id {
            return Err(broken("the answer belongs to another question".into()));
        }
        self.judge(&answer, &bytes, verifier, &zone, &what)
    }

    fn judge(
        &self,
        answer: &Message,
        bytes: &[u8],
        verifier: Option<TSigVerifier>,
        zone: &DnsName,
        what: &str,
    ) -> Result<(), DnsError> {
        let key = self.signer.signer_name();
        let refused = |why: String| Err(DnsError::Refused(format!("{what} was refused: {why}")));
        match answer.signature().and_then(|tsig| tsig.data.error) {
            Some(TsigError::BadKey) => {
                return refused(format!(
                    "the server has no key `{key}` with {} (BADKEY); compare `key_name` and `algorithm` with its configuration",
                    self.signer.algorithm()
                ));
            }
            Some(TsigError::BadSig) => {
                return refused(format!("the secret of key `{key}` is not the server's (BADSIG)"));
            }
            Some(TsigError::BadTime) => {
                return Err(DnsError::Unavailable(format!(
                    "{what} was refused: this machine's clock and the server's differ by more than {FUDGE} s (BADTIME)"
                )));
            }
            _ => {}
        }
        let verified = verifier.is_some_and(|mut v| v.verify(bytes).is_ok());
        match answer.metadata.response_code {
            ResponseCode::NoError if verified => Ok(()),
            ResponseCode::NoError => Err(DnsError::Unavailable(format!(
                "{what} was answered without a valid signature of key `{key}`; it may not have come from the server"
            ))),
            ResponseCode::NotAuth => {
                refused(format!("the server is not primary for {zone} (NOTAUTH); see `server` and `zone`"))
            }
            ResponseCode::NotZone => {
                refused(format!("the name does not lie in {zone} (NOTZONE); see `zone`"))
            }
            ResponseCode::Refused => refused(format!(
                "key `{key}` may not write TXT records there (REFUSED); allow it in the server's update policy"
            )),
            ResponseCode::FormErr | ResponseCode::NotImp => {
                refused("the server does not support DNS UPDATE with TSIG over TCP".into())
            }
            code => Err(DnsError::Unavailable(format!("{what} failed: the server says {code}"))),
        }
    }
}

#[async_trait]
impl TxtProvider for Rfc2136 {
    fn id(&self) -> &str {
        &self.id
    }

    async fn add_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.update(record, true).await
    }

    async fn remove_txt(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.update(record, false).await
    }
}

/// An update that adds one record with a TTL, or removes exactly this one (RFC 2136 sections 2.5.1 and 2.5.4).
fn message(record: &TxtRecord, zone: &DnsName, ttl: Option<u32>) -> Result<Message, String> {
    let wire = |name: &DnsName| Name::from_ascii(name.to_fqdn()).map_err(|e| e.to_string());
    let (owner, zone) = (wire(&record.name)?, wire(zone)?);
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Update;
    message.metadata.recursion_desired = false;
    message.add_query(Query::query(zone, RecordType::SOA));
    let chunks = record.value.as_bytes().chunks(255).collect();
    let mut update = Record::from_rdata(owner, ttl.unwrap_or(0), RData::TXT(TXT::from_bytes(chunks)));
    if ttl.is_none() {
        update.dns_class = DNSClass::NONE;
    }
    message.add_authority(update);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_keys_are_named() {
        let error = |name, secret, algorithm| match signer(name, secret, algorithm) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("accepted"),
        };
        assert!(signer("acme.", "c2VjcmV0", "hmac-sha256").is_ok());
        assert!(signer("acme", "c2VjcmV0MQ", "hmac-sha512.").is_ok());
        assert!(error("acme", "not base64!", "hmac-sha256").contains("`secret`"));
        assert!(!error("acme", "not base64!", "hmac-sha256").contains("not base64!"));
        assert!(error("acme", "c2VjcmV0", "hmac-md5").contains("hmac-sha384"));
    }

    #[test]
    fn an_update_adds_or_removes_one_value() {
        let record =
            TxtRecord { name: DnsName::parse("_acme-challenge.example.com").unwrap(), value: "v".into() };
        let zone = DnsName::parse("example.com").unwrap();
        let add = message(&record, &zone, Some(60)).unwrap();
        assert_eq!((add.authorities[0].dns_class, add.authorities[0].ttl), (DNSClass::IN, 60));
        let remove = message(&record, &zone, None).unwrap();
        assert_eq!((remove.authorities[0].dns_class, remove.authorities[0].ttl), (DNSClass::NONE, 0));
        assert_eq!(remove.queries[0].query_type(), RecordType::SOA);
    }
}
