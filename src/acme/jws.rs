//! Signed requests (RFC 8555 section 6.2) for what instant-acme does not do: registering a key that was kept before, with an
//! external account, key roll-over to a key that was kept before, looking at an account, alternate chains.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An account's key: ECDSA on P-256.
pub(super) struct AccountKey {
    pair: EcdsaKeyPair,
    der: Vec<u8>,
}

/// Not a key, or a number generator that fails.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct KeyError(&'static str);

impl AccountKey {
    /// A new one.
    pub(super) fn generate() -> Result<Self, KeyError> {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| KeyError("the system gives no random numbers"))?;
        Self::from_der(der.as_ref().to_vec())
    }

    /// From PKCS#8 DER.
    pub(super) fn from_der(der: Vec<u8>) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
            .map_err(|_| KeyError("the account key is not an ECDSA key on P-256"))?;
        Ok(Self { pair, der })
    }

    /// PKCS#8 DER.
    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    /// The public key (RFC 7517).
    pub(super) fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
        json!({ "crv": "P-256", "kty": "EC", "x": base64url(x), "y": base64url(y) })
    }

    /// RFC 7638.
    pub(super) fn thumbprint(&self) -> String {
        let jwk = self.jwk();
        // Written by hand: the RFC fixes the order of the members.
        let text = format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, jwk["x"], jwk["y"]);
        base64url(&Sha256::digest(text))
    }

    /// A flattened JWS of `payload` (empty for POST-as-GET) under `header`, to which `alg` is added.
    pub(super) fn sign(&self, mut header: Value, payload: &str) -> Result<Value, KeyError> {
        header["alg"] = "ES256".into();
        let (protected, payload) = (base64url(header.to_string().as_bytes()), base64url(payload.as_bytes()));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), format!("{protected}.{payload}").as_bytes())
            .map_err(|_| KeyError("the system gives no random numbers"))?;
        let signature = base64url(signature.as_ref());
        Ok(json!({ "protected": protected, "payload": payload, "signature": signature }))
    }
}

/// Binds the account of `key` to an external one (RFC 8555 section 7.3.4).
pub(super) fn external_binding(kid: &str, hmac_key: &[u8], key: &AccountKey, url: &str) -> Value {
    let header = json!({ "alg": "HS256", "kid": kid, "url": url }).to_string();
    let (protected, payload) = (base64url(header.as_bytes()), base64url(key.jwk().to_string().as_bytes()));
    let hmac_key = hmac::Key::new(hmac::HMAC_SHA256, hmac_key);
    let tag = hmac::sign(&hmac_key, format!("{protected}.{payload}").as_bytes());
    json!({ "protected": protected, "payload": payload, "signature": base64url(tag.as_ref()) })
}

pub(super) fn base64url(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    #[test]
    fn what_is_signed_verifies_and_says_what_it_is() {
        let key = AccountKey::generate().unwrap();
        let again = AccountKey::from_der(key.der().to_vec()).unwrap();
        assert_eq!(key.thumbprint(), again.thumbprint());
        let jws = key.sign(json!({ "url": "https://ca.test/x", "nonce": "n" }), "{}").unwrap();
        let part = |name: &str| jws[name].as_str().unwrap().to_owned();
        let signature = BASE64_URL_SAFE_NO_PAD.decode(part("signature")).unwrap();
        let text = format!("{}.{}", part("protected"), part("payload"));
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key().as_ref());
        public.verify(text.as_bytes(), &signature).unwrap();
        let header: Value =
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part("protected")).unwrap()).unwrap();
        assert_eq!(header, json!({ "alg": "ES256", "url": "https://ca.test/x", "nonce": "n" }));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(AccountKey::from_der(vec![1, 2, 3]).is_err());
    }
}
