//! A certificate's private key and its request.

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_RSA_SHA256, RsaKeySize,
};

use crate::issuer::KeyKind;
use crate::name::HostPattern;
use crate::secret::Secret;

/// A new key in PKCS#8 PEM. RSA of 4096 bits may take seconds of one core.
pub(super) fn generate(kind: KeyKind) -> Result<Secret, rcgen::Error> {
    let key = match kind {
        KeyKind::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyKind::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        KeyKind::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        KeyKind::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
    }?;
    Ok(Secret::new(key.serialize_pem()))
}

/// The CSR for all names, in DER.
pub(super) fn csr(key_pem: &Secret, names: &[HostPattern]) -> Result<Vec<u8>, rcgen::Error> {
    let key = KeyPair::from_pem(key_pem.expose())?;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}
