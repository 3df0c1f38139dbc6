//! Account keys in the forms that programs keep: JWK (RFC 7517), PKCS#8, SEC 1 and PKCS#1.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

/// The key of an account.
#[derive(Clone, PartialEq, Eq)]
pub enum AccountKey {
    /// ECDSA on P-256 (ES256), as PKCS#8 DER.
    Es256(Vec<u8>),
    /// RSA, as DER (PKCS#8 or PKCS#1): Starlock signs no order with it, but can have the CA take another key for it.
    Rsa(Vec<u8>),
    /// A kind that Starlock signs nothing with: its name.
    Other(String),
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Es256(_) => f.write_str("Es256([redacted])"),
            Self::Rsa(_) => f.write_str("Rsa([redacted])"),
            Self::Other(kind) => write!(f, "Other({kind})"),
        }
    }
}

impl AccountKey {
    /// From a JWK with its private part. The error names no value.
    pub(super) fn from_jwk(jwk: &Value) -> Result<Self, String> {
        let kind = jwk["kty"].as_str().ok_or("it is no JWK")?;
        let curve = jwk["crv"].as_str().unwrap_or_default();
        if kind == "RSA" {
            return rsa_from_jwk(jwk);
        }
        if (kind, curve) != ("EC", "P-256") {
            return Ok(Self::Other(if kind == "EC" { format!("ECDSA on {curve}") } else { kind.to_owned() }));
        }
        let part = |name: &str| -> Result<Vec<u8>, String> {
            let text = jwk[name].as_str().ok_or_else(|| format!("the JWK has no `{name}`"))?;
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
            let bytes = bytes.map_err(|_| format!("`{name}` of the JWK is not base64url"))?;
            // RFC 7518 section 6.2.1.2 wants 32 bytes; some writers drop leading zeros.
            let missing = 32_usize
                .checked_sub(bytes.len())
                .ok_or_else(|| format!("`{name}` of the JWK is too long"))?;
            Ok([vec![0; missing], bytes].concat())
        };
        let public = [vec![4], part("x")?, part("y")?].concat();
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &part("d")?,
            &public,
        );
        pkcs8(&pair.map_err(|_| "the parts of the JWK do not belong together".to_owned())?)
    }

    /// From PEM.
    pub(super) fn from_pem(pem: &str) -> Result<Self, String> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| format!("it holds no private key: {e}"))?;
        Self::from_der(&der)
    }

    /// From DER of any of the three forms.
    pub(super) fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, String> {
        if matches!(der, PrivateKeyDer::Pkcs1(_)) {
            return rsa(der.secret_der());
        }
        match EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der()) {
            Ok(pair) => pkcs8(&pair),
            Err(_) if aws_lc_rs::rsa::KeyPair::from_pkcs8(der.secret_der()).is_ok() => {
                Ok(Self::Rsa(der.secret_der().to_vec()))
            }
            Err(_) => Ok(Self::Other("another kind than ECDSA on P-256".to_owned())),
        }
    }
}

/// PKCS#1 of a JWK (RFC 7518 section 6.3, RFC 8017 appendix A.1.2).
fn rsa_from_jwk(jwk: &Value) -> Result<AccountKey, String> {
    let mut numbers = vec![2, 1, 0]; // the version
    for name in ["n", "e", "d", "p", "q", "dp", "dq", "qi"] {
        let text = jwk[name].as_str().ok_or_else(|| format!("the JWK has no `{name}`"))?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
        let bytes = bytes.map_err(|_| format!("`{name}` of the JWK is not base64url"))?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        // A number that begins with a set bit would be negative.
        let sign = bytes.get(zeros).is_none_or(|first| *first >= 0x80);
        let number = [if sign { &[0][..] } else { &[] }, &bytes[zeros..]].concat();
        element(&mut numbers, 2, &number);
    }
    let mut der = Vec::new();
    element(&mut der, 0x30, &numbers);
    rsa(&der)
}

fn rsa(pkcs1: &[u8]) -> Result<AccountKey, String> {
    match aws_lc_rs::rsa::KeyPair::from_der(pkcs1) {
        Ok(_) => Ok(AccountKey::Rsa(pkcs1.to_vec())),
        Err(_) => {
            Err("the RSA key is of no use: its parts do not belong together, or it is under 2048 bits"
                .to_owned())
        }
    }
}

/// One element of DER.
fn element(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    out.push(tag);
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            out.push(0x80 | u8::try_from(length.len() - zeros).unwrap_or(8));
            out.extend(&length[zeros..]);
        }
    }
    out.extend(content);
}

fn pkcs8(pair: &EcdsaKeyPair) -> Result<AccountKey, String> {
    let document = pair.to_pkcs8v1().map_err(|_| "the key cannot be written as PKCS#8".to_owned())?;
    Ok(AccountKey::Es256(document.as_ref().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7515 appendix A.3.1.
    const JWK: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0","d":"jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"}"#;

    #[test]
    fn one_key_in_all_its_forms_is_one_key() {
        let mut jwk: Value = serde_json::from_str(JWK).unwrap();
        let AccountKey::Es256(der) = AccountKey::from_jwk(&jwk).unwrap() else { panic!() };
        let again = AccountKey::from_der(&PrivateKeyDer::Pkcs8(der.clone().into())).unwrap();
        assert_eq!(again, AccountKey::Es256(der.clone()));
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).unwrap();
        use aws_lc_rs::signature::KeyPair;
        let x = BASE64_URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap()).unwrap();
        assert_eq!(pair.public_key().as_ref()[1..33], x);

        jwk["y"] = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU".into();
        let error = AccountKey::from_jwk(&jwk).unwrap_err();
        assert!(error.contains("belong together") && !error.contains("jpsQ"), "{error}");
        assert!(!format!("{again:?}").contains(&format!("{der:?}")));
    }

    /// The contents of the elements of DER that stand one after the other.
    fn elements(mut der: &[u8]) -> Vec<&[u8]> {
        let mut all = Vec::new();
        while let [_, first, rest @ ..] = der {
            let more = usize::from(if *first < 0x80 { 0 } else { first & 0x7f });
            let length = match more {
                0 => usize::from(*first),
                _ => rest[..more].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
            };
            all.push(&rest[more..more + length]);
            der = &rest[more + length..];
        }
        all
    }

    #[test]
    fn rsa_keys_are_read_in_any_form_and_small_or_broken_ones_are_not() {
        use aws_lc_rs::rsa::KeyPair;
        let made =
            rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let key = made.serialize_der();
        assert_eq!(AccountKey::from_pem(&made.serialize_pem()), Ok(AccountKey::Rsa(key.clone())));
        // PKCS#8 is a version, an algorithm and a string that holds PKCS#1: a version and eight numbers.
        let pkcs1 = elements(elements(&key)[0])[2];
        let numbers = elements(elements(pkcs1)[0]);
        let names = ["version", "n", "e", "d", "p", "q", "dp", "dq", "qi"];
        let mut jwk: Value = names
            .iter()
            .zip(&numbers)
            .map(|(name, number)| {
                let zeros = number.iter().take_while(|byte| **byte == 0).count();
                ((*name).to_owned(), Value::from(BASE64_URL_SAFE_NO_PAD.encode(&number[zeros..])))
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
        jwk["kty"] = "RSA".into();
        assert_eq!(AccountKey::from_jwk(&jwk), Ok(AccountKey::Rsa(pkcs1.to_vec())));
        assert_eq!(KeyPair::from_der(pkcs1).unwrap().public_modulus_len(), 256);
        let again = AccountKey::from_der(&PrivateKeyDer::Pkcs1(pkcs1.to_vec().into()));
        assert_eq!(again, Ok(AccountKey::Rsa(pkcs1.to_vec())));
        assert_eq!(format!("{again:?}"), "Ok(Rsa([redacted]))");
        let mut broken = jwk.clone();
        broken["p"] = jwk["q"].clone();
        assert!(AccountKey::from_jwk(&broken).unwrap_err().contains("belong together"));
    }

    #[test]
    fn other_kinds_are_named() {
        let of = |text: &str| AccountKey::from_jwk(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"kty":"RSA","n":"eA"}"#), Err("the JWK has no `e`".into()));
        assert_eq!(of(r#"{"kty":"OKP","crv":"Ed25519"}"#), Ok(AccountKey::Other("OKP".into())));
        assert_eq!(of(r#"{"kty":"EC","crv":"P-384"}"#), Ok(AccountKey::Other("ECDSA on P-384".into())));
        assert!(of("{}").is_err() && of(r#"{"kty":"EC","crv":"P-256"}"#).is_err());
        assert!(AccountKey::from_pem("nonsense").is_err());
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert!(matches!(AccountKey::from_pem(&p384.serialize_pem()), Ok(AccountKey::Other(_))));
    }
}
