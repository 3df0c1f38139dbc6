//! Making roots, intermediates and leaves, and reading them again. Pure but for randomness.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer as Signer, KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::pem::parse_x509_pem;

use super::scope::Scope;
use crate::issuer::{IssuedCert, Spent};
use crate::name::HostPattern;
use crate::secret::Secret;

const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// A new intermediate is made at two thirds: what the old one has signed lives a week and the rest is room.
const ROTATE_AT: Duration = Duration::from_secs(60 * 24 * 3600);
/// Short, since renewing costs nothing.
const LEAF_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates begin this much earlier: clocks of laptops and containers differ.
const BACKDATE: Duration = Duration::from_secs(3600);
/// The end of a root is said this long before it comes.
const WARN_BEFORE: Duration = Duration::from_secs(90 * 24 * 3600);
/// 2026-01-01: a clock before this is wrong, and says nothing about a root.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// A root as storage holds it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoredRoot {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// An intermediate as storage holds it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoredIntermediate {
    certificate: String,
    key: String,
    /// The fingerprint of the root that signed it.
    root: String,
    /// What it may sign; `None`: everything that the root may.
    scope: Option<Vec<String>>,
}

/// What a CA certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Whether it may sign another CA.
    pub(super) may_have_intermediates: bool,
    /// Whether it is limited to some names.
    pub(super) limited: bool,
    pub(super) label: String,
    /// SHA-256 of the DER, lower-case hex.
    pub(super) fingerprint: String,
}

impl Facts {
    /// The error is for a person.
    pub(super) fn read(pem: &str) -> Result<Self, String> {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|e| format!("not a PEM certificate: {e}"))?;
        let certificate = pem.parse_x509().map_err(|e| format!("not a certificate: {e}"))?;
        let constraints = certificate.basic_constraints().ok().flatten().map(|found| found.value.clone());
        let time = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        let label = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
            may_have_intermediates: constraints.is_some_and(|c| c.ca && c.path_len_constraint != Some(0)),
            limited: certificate.name_constraints().is_ok_and(|found| found.is_some()),
            label: label.unwrap_or("Starlock local CA").to_owned(),
            fingerprint: hex(&Sha256::digest(&pem.contents)),
        })
    }
}

/// What to do with a root at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Signs.
    Good,
    /// Signs, but not for much longer.
    Ending,
    /// Its days are over.
    Over,
    /// It begins later than now: made under a clock that was far ahead.
    Future,
    /// The clock itself is wrong; nothing is judged by it.
    WrongClock,
}

/// Looks at a root's dates.
pub(super) fn judge(facts: &Facts, now: SystemTime) -> Judgement {
    match () {
        () if is_wrong(now) => Judgement::WrongClock,
        () if facts.not_before > now => Judgement::Future,
        () if facts.not_after <= now + LEAF_LIFETIME => Judgement::Over,
        () if facts.not_after <= now + WARN_BEFORE => Judgement::Ending,
        () => Judgement::Good,
    }
}

/// Whether no clock that is right can say this.
pub(super) fn is_wrong(now: SystemTime) -> bool {
    now < SystemTime::UNIX_EPOCH + EARLIEST
}

/// A new root, limited to `scope` if there is one.
pub(super) fn root(now: SystemTime, scope: Option<&Scope>) -> Result<StoredRoot, rcgen::Error> {
    let key = KeyPair::generate()?;
    let label = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let kind = if scope.is_some() { "" } else { " for any name" };
    let mut params = ca(format!("Starlock local CA{kind} {label}"), 1, scope);
    // A day: a root outlives every misadjusted clock around it.
    (params.not_before, params.not_after) = (date(now - DAY), date(now + ROOT_LIFETIME));
    let certificate = params.self_signed(&key)?;
    Ok(StoredRoot { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new intermediate under `root`, limited to `scope` if there is one.
pub(super) fn intermediate(
    root: &StoredRoot,
    facts: &Facts,
    scope: Option<&Scope>,
    now: SystemTime,
) -> Result<StoredIntermediate, rcgen::Error> {
    let key = KeyPair::generate()?;
    let label = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut params = ca(format!("Starlock local intermediate {label}"), 0, scope);
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) =
        (date(now - BACKDATE), date((now + INTERMEDIATE_LIFETIME).min(facts.not_after)));
    let certificate = params.signed_by(&key, &signer(root)?)?;
    Ok(StoredIntermediate {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        root: facts.fingerprint.clone(),
        scope: scope.map(Scope::texts),
    })
}

impl StoredIntermediate {
    /// Whether it may go on signing `names` under `root`.
    pub(super) fn is_good(&self, root: &Facts, names: &[HostPattern], now: SystemTime) -> bool {
        let Ok(own) = Facts::read(&self.certificate) else { return false };
        let scope = self.scope.as_ref().map(|texts| Scope::from_texts(texts.iter().map(String::as_str)));
        let permitted = |name: &HostPattern| scope.as_ref().is_none_or(|scope| scope.permits(name));
        self.root == root.fingerprint
            && own.not_before <= now
            && now < own.not_before + BACKDATE + ROTATE_AT
            && names.iter().all(permitted)
    }
}

/// A leaf for `names` with a key of its own; the chain is what a client needs beside the root.
pub(super) fn leaf(
    intermediate: &StoredIntermediate,
    names: &[HostPattern],
    now: SystemTime,
) -> Result<IssuedCert, rcgen::Error> {
    let signer = StoredRoot { certificate: intermediate.certificate.clone(), key: intermediate.key.clone() };
    signed(&signer, names, now)
}

/// A leaf right under a root that may have no intermediate, or under an intermediate.
pub(super) fn signed(
    by: &StoredRoot,
    names: &[HostPattern],
    now: SystemTime,
) -> Result<IssuedCert, rcgen::Error> {
    let end = Facts::read(&by.certificate).map_or(now + LEAF_LIFETIME, |facts| facts.not_after);
    let key = KeyPair::generate()?;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (date(now - BACKDATE), date((now + LEAF_LIFETIME).min(end)));
    let leaf = params.signed_by(&key, &signer(by)?)?;
    Ok(IssuedCert {
        chain_pem: format!("{}{}", leaf.pem(), by.certificate),
        key_pem: Secret::new(key.serialize_pem()),
        resumed: false,
        spent: Spent::default(),
    })
}

fn ca(name: String, path_length: u8, scope: Option<&Scope>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = scope.map(Scope::constraints);
    params
}

fn signer(root: &StoredRoot) -> Result<Signer<'static, KeyPair>, rcgen::Error> {
    Signer::from_ca_cert_pem(&root.certificate, KeyPair::from_pem(&root.key)?)
}

fn date(moment: SystemTime) -> OffsetDateTime {
    OffsetDateTime::from(moment)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_judged_by_a_clock_that_can_be_right() {
        let now = SystemTime::UNIX_EPOCH + EARLIEST + 400 * DAY;
        let facts = |from: i64, to: i64| Facts {
            not_before: shift(now, from),
            not_after: shift(now, to),
            may_have_intermediates: true,
            limited: true,
            label: String::new(),
            fingerprint: String::new(),
        };
        for (root, judgement) in [
            (facts(-1, 3650), Judgement::Good),
            (facts(-3600, 80), Judgement::Ending),
            (facts(-3645, 5), Judgement::Over),
            (facts(-3660, -10), Judgement::Over),
            (facts(1, 3650), Judgement::Future),
        ] {
            assert_eq!(judge(&root, now), judgement, "{root:?}");
        }
        assert_eq!(judge(&facts(-1, 3650), SystemTime::UNIX_EPOCH), Judgement::WrongClock);
    }

    fn shift(now: SystemTime, days: i64) -> SystemTime {
        let by = DAY * u32::try_from(days.unsigned_abs()).unwrap();
        if days < 0 { now - by } else { now + by }
    }
}
