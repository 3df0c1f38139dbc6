//! Signed requests (RFC 8555 section 6.2) for what instant-acme does not do: registering a key that was kept before, with an
//! external account, key roll-over to a key that was kept before, looking at an account, alternate chains.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;

/// An account's key: ECDSA on P-256, or RSA of an account that another program made, which signs nothing but its own roll-over.
pub(super) struct AccountKey {
    pair: Pair,
    der: Vec<u8>,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(rsa::KeyPair),
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

    /// From PKCS#8 DER, of RSA from PKCS#1 too.
    pub(super) fn from_der(der: Vec<u8>) -> Result<Self, KeyError> {
        let pair = match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der) {
            Ok(pair) => Pair::Ec(pair),
            Err(_) => {
                let pair = rsa::KeyPair::from_pkcs8(&der).or_else(|_| rsa::KeyPair::from_der(&der));
                Pair::Rsa(
                    pair.map_err(|_| KeyError("the account key is no ECDSA key on P-256, and not RSA"))?,
                )
            }
        };
        Ok(Self { pair, der })
    }

    /// Whether orders can be signed with it.
    pub(super) fn signs_orders(&self) -> bool {
        matches!(self.pair, Pair::Ec(_))
    }

    /// As it was given.
    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    /// The public key (RFC 7517).
    pub(super) fn jwk(&self) -> Value {
        match &self.pair {
            Pair::Ec(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
                json!({ "crv": "P-256", "kty": "EC", "x": base64url(x), "y": base64url(y) })
            }
            Pair::Rsa(pair) => {
                let (modulus, exponent) = match RSAPublicKey::from_der(pair.public_key().as_ref()) {
                    Ok((_, key)) => (key.modulus.to_vec(), key.exponent.to_vec()),
                    Err(_) => Default::default(), // it was written by the same library a moment ago
                };
                let number = |bytes: &[u8]| {
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    base64url(&bytes[zeros..])
                };
                json!({ "e": number(&exponent), "kty": "RSA", "n": number(&modulus) })
            }
        }
    }

    /// RFC 7638.
    pub(super) fn thumbprint(&self) -> String {
        let jwk = self.jwk();
        // Written by hand: the RFC fixes the order of the members.
        let text = match &self.pair {
            Pair::Ec(_) => format!(r#"{{"crv":"P-256","kty":"EC","x":{},"y":{}}}"#, jwk["x"], jwk["y"]),
            Pair::Rsa(_) => format!(r#"{{"e":{},"kty":"RSA","n":{}}}"#, jwk["e"], jwk["n"]),
        };
        base64url(&Sha256::digest(text))
    }

    /// A flattened JWS of `payload` (empty for POST-as-GET) under `header`, to which `alg` is added.
    pub(super) fn sign(&self, mut header: Value, payload: &str) -> Result<Value, KeyError> {
        let no_random = |_| KeyError("the system gives no random numbers");
        header["alg"] = if self.signs_orders() { "ES256" } else { "RS256" }.into();
        let (protected, payload) = (base64url(header.to_string().as_bytes()), base64url(payload.as_bytes()));
        let text = format!("{protected}.{payload}");
        let signature = match &self.pair {
            Pair::Ec(pair) => {
                base64url(pair.sign(&SystemRandom::new(), text.as_bytes()).map_err(no_random)?.as_ref())
            }
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
                    .map_err(no_random)?;
                base64url(&signature)
            }
        };
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
        let Pair::Ec(pair) = &key.pair else { panic!("a new key is on P-256") };
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref());
        public.verify(text.as_bytes(), &signature).unwrap();
        let header: Value =
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part("protected")).unwrap()).unwrap();
        assert_eq!(header, json!({ "alg": "ES256", "url": "https://ca.test/x", "nonce": "n" }));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(AccountKey::from_der(vec![1, 2, 3]).is_err());
    }

    #[test]
    fn an_rsa_key_signs_as_rfc_7518_says() {
        let made =
            rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let key = AccountKey::from_der(made.serialize_der()).unwrap();
        assert!(!key.signs_orders() && AccountKey::generate().unwrap().signs_orders());
        let jws = key.sign(json!({ "url": "https://ca.test/x" }), "{}").unwrap();
        let bytes = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(jws[name].as_str().unwrap()).unwrap();
        let header: Value = serde_json::from_slice(&bytes("protected")).unwrap();
        assert_eq!(header["alg"], "RS256");
        let jwk = key.jwk();
        let number = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
        let public = aws_lc_rs::rsa::PublicKeyComponents { n: number("n"), e: number("e") };
        assert_eq!((public.n.len(), public.e.as_slice()), (256, &[1, 0, 1][..]));
        let text = format!("{}.{}", jws["protected"].as_str().unwrap(), jws["payload"].as_str().unwrap());
        let verified = public.verify(
            &aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256,
            text.as_bytes(),
            &bytes("signature"),
        );
        verified.unwrap();
        // RFC 7638 section 3.1.
        assert_eq!(jwk.to_string(), format!(r#"{{"e":{},"kty":"RSA","n":{}}}"#, jwk["e"], jwk["n"]));
    }
}
