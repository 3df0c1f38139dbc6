//! Cookies that keep a client at its server.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;

use super::spec::StickySpec;
use crate::secret::{Secret, SecretError};

/// A cookie's value: 128 bits of HMAC-SHA256 over the server's name, as 22 characters. Whoever has not the secret can neither
/// learn the server's address from it nor make one for another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Token([u8; 22]);

impl Token {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        text.try_into().ok().map(Self)
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// A cookie as the configuration wants it, with its secret read.
#[derive(Clone)]
pub(super) struct Sticky {
    pub(super) cookie: Arc<str>,
    key: Arc<hmac::Key>,
    ttl: Option<Duration>,
}

/// What a server sends to clients that are to stay with it.
#[derive(Clone, Debug)]
pub(super) struct Cookie {
    pub(super) token: Token,
    pub(super) plain: HeaderValue,
    pub(super) secure: HeaderValue,
}

impl Sticky {
    /// Reads the secret. Blocking.
    pub(super) fn new(spec: &StickySpec) -> Result<Self, SecretError> {
        let secret: Secret = spec.secret.resolve()?;
        let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()));
        Ok(Self { cookie: spec.cookie.clone(), key, ttl: spec.ttl })
    }

    /// The cookie of a server. `None` only if the cookie's name cannot stand in a header, which `config` refuses.
    pub(super) fn cookie(&self, upstream: &str, server: &str) -> Option<Cookie> {
        let tag = hmac::sign(&self.key, format!("{upstream}\n{server}").as_bytes());
        let token = Token::parse(URL_SAFE_NO_PAD.encode(&tag.as_ref()[..16]).as_bytes())?;
        let age = self.ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs())).unwrap_or_default();
        let plain = format!("{}={}; Path=/; HttpOnly; SameSite=Lax{age}", self.cookie, token.as_str());
        Some(Cookie { token, secure: format!("{plain}; Secure").parse().ok()?, plain: plain.parse().ok()? })
    }
}

impl std::fmt::Debug for Sticky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sticky({})", self.cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretSource;

    fn sticky(secret: &str) -> Sticky {
        let secret = SecretSource::Plain(Secret::new(secret));
        Sticky::new(&StickySpec { cookie: "srv".into(), secret, ttl: Some(Duration::from_secs(60)) }).unwrap()
    }

    #[test]
    fn a_cookie_depends_on_server_upstream_and_secret_and_shows_none_of_them() {
        let cookie = |secret, upstream, server| sticky(secret).cookie(upstream, server).unwrap();
        let one = cookie("s", "app", "http://10.0.0.1:80");
        let value = one.plain.to_str().unwrap();
        assert!(value.starts_with("srv=") && !value.contains("10.0.0"), "{value}");
        assert!(value.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=60"), "{value}");
        assert_eq!(one.secure.to_str().unwrap(), format!("{value}; Secure"));
        assert_eq!(one.token, cookie("s", "app", "http://10.0.0.1:80").token, "on every machine");
        for other in [
            cookie("t", "app", "http://10.0.0.1:80"),
            cookie("s", "api", "http://10.0.0.1:80"),
            cookie("s", "app", "http://10.0.0.2:80"),
        ] {
            assert_ne!(one.token, other.token);
        }
        assert!(Token::parse(b"short").is_none());
    }
}
