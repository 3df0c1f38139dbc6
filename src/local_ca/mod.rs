//! Certificates for `localhost`, `.internal` and addresses, signed by a CA of our own that lives in storage.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer as Signer, KeyPair, KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::clock::SharedClock;
use crate::issuer::{
    FailureClass, IssueError, IssueRequest, IssuedCert, Issuer, IssuerId, Progress, Retry, Spent,
};
use crate::secret::Secret;
use crate::storage::{Expect, Key, Storage, StorageError};

const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Short, since renewing costs nothing.
const LEAF_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates begin this much earlier: clocks of laptops and containers differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// The local CA. Its root is made at the first signature and kept; trust it once and every certificate is trusted.
#[derive(Debug)]
pub struct LocalCa {
    id: IssuerId,
    storage: Arc<dyn Storage>,
    clock: SharedClock,
}

#[derive(Serialize, Deserialize)]
struct StoredRoot {
    certificate: String,
    key: String,
}

impl LocalCa {
    /// Touches nothing yet.
    pub fn new(storage: Arc<dyn Storage>, clock: SharedClock) -> Self {
        Self { id: IssuerId::new("local"), storage, clock }
    }

    /// The root certificate as PEM, made if there is none: for a person to trust.
    pub async fn root_pem(&self) -> Result<String, StorageError> {
        Ok(self.root().await?.certificate)
    }

    async fn root(&self) -> Result<StoredRoot, StorageError> {
        let key = Key::new(&["local-ca", "root"]);
        // A second round only when another process made the root between our look and our store.
        for _ in 0..2 {
            if let Some(found) = self.storage.load(&key).await? {
                return serde_json::from_slice(&found.value)
                    .map_err(|e| StorageError::Damaged { key: key.clone(), reason: e.to_string() });
            }
            let broken =
                |reason: String| StorageError::Io { what: "cannot make the local CA's root".into(), reason };
            let root = make_root(self.clock.now()).map_err(|e| broken(e.to_string()))?;
            let value = serde_json::to_vec(&root).map_err(|e| broken(e.to_string()))?;
            match self.storage.store(&key, &value, Expect::Absent).await {
                Ok(_) => {
                    tracing::info!(
                        "made the local CA's root; to trust it, take the PEM in the field `certificate` of local-ca/root.json in the state directory"
                    );
                    return Ok(root);
                }
                Err(StorageError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StorageError::Conflict(key))
    }
}

#[async_trait]
impl Issuer for LocalCa {
    fn id(&self) -> &IssuerId {
        &self.id
    }

    fn is_instant(&self) -> bool {
        true
    }

    async fn issue(
        &self,
        request: &IssueRequest,
        _progress: &dyn Progress,
    ) -> Result<IssuedCert, IssueError> {
        let failed = |what: String| {
            IssueError::new(
                FailureClass::Config,
                Retry::Backoff,
                format!("{:?}: the local CA cannot sign: {what}. Tried again by itself.", request.names),
            )
        };
        let root = self.root().await.map_err(|e| failed(e.to_string()))?;
        sign(&root, request, self.clock.now()).map_err(|e| failed(e.to_string()))
    }

    async fn stored(&self, _request: &IssueRequest) {}
}

fn make_root(now: SystemTime) -> Result<StoredRoot, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let label = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    params.distinguished_name.push(DnType::CommonName, format!("Starlock local CA {label}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) =
        (date(now, BACKDATE, Duration::ZERO), date(now, Duration::ZERO, ROOT_LIFETIME));
    let certificate = params.self_signed(&key)?;
    Ok(StoredRoot { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn sign(root: &StoredRoot, request: &IssueRequest, now: SystemTime) -> Result<IssuedCert, rcgen::Error> {
    let signer = Signer::from_ca_cert_pem(&root.certificate, KeyPair::from_pem(&root.key)?)?;
    let key = KeyPair::generate()?;
    let names: Vec<String> = request.names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) =
        (date(now, BACKDATE, Duration::ZERO), date(now, Duration::ZERO, LEAF_LIFETIME));
    let leaf = params.signed_by(&key, &signer)?;
    Ok(IssuedCert {
        chain_pem: format!("{}{}", leaf.pem(), root.certificate),
        key_pem: Secret::new(key.serialize_pem()),
        resumed: false,
        spent: Spent::default(),
    })
}

fn date(now: SystemTime, before: Duration, after: Duration) -> OffsetDateTime {
    OffsetDateTime::from(now - before + after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::issuer::Step;
    use crate::name::HostPattern;
    use crate::storage::MemoryStorage;

    struct Silent;

    impl Progress for Silent {
        fn step(&self, _step: Step) {}
    }

    #[tokio::test]
    async fn one_root_signs_everything_and_survives() {
        let storage = Arc::new(MemoryStorage::new());
        let names = ["app.localhost", "127.0.0.1"].map(|n| HostPattern::parse(n).unwrap());
        let request = IssueRequest::new(names.into());
        let first = LocalCa::new(storage.clone(), Arc::new(SystemClock));
        let root = first.root_pem().await.unwrap();
        let again = LocalCa::new(storage, Arc::new(SystemClock));
        assert_eq!(again.root_pem().await.unwrap(), root);
        let issued = again.issue(&request, &Silent).await.unwrap();
        assert!(issued.chain_pem.ends_with(&root));

        // A client that trusts the root trusts the leaf, for its name and its address.
        use rustls::client::danger::ServerCertVerifier;
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
            .build()
            .unwrap();
        let leaf = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
        for name in ["app.localhost", "127.0.0.1"] {
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now()).unwrap();
        }
        let other = ServerName::try_from("other.localhost").unwrap();
        assert!(verifier.verify_server_cert(&leaf, &[], &other, &[], UnixTime::now()).is_err());
    }
}
