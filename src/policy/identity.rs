//! What authentication says of a client to the server: fields that are first taken from the client.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::spelling::is_spelling;

/// What authentication found out about one request. The default is nothing.
#[derive(Debug, Default)]
pub struct Identity {
    /// Fields to set, in this order; several of one name are kept.
    pub(super) fields: Vec<(HeaderName, HeaderValue)>,
    /// Whether the password has done its duty and goes no further.
    pub(super) spent_credentials: bool,
}

impl Identity {
    /// Makes a request's fields say what was found out. `owned` are the names that only authentication may set: they go first, in
    /// every spelling, also where nothing takes their place.
    pub(super) fn tell(&self, owned: &[HeaderName], headers: &mut HeaderMap) {
        if self.spent_credentials {
            headers.remove(AUTHORIZATION);
        }
        let claimed: SmallVec<[HeaderName; 4]> = headers
            .keys()
            .filter(|name| owned.iter().any(|owned| is_spelling(name.as_str(), owned.as_str())))
            .cloned()
            .collect();
        for name in &claimed {
            headers.remove(name);
        }
        for (name, value) in &self.fields {
            headers.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_own_words_go_in_every_spelling() {
        let name = |text: &str| HeaderName::from_bytes(text.as_bytes()).unwrap();
        let mut headers = HeaderMap::new();
        for field in
            ["Remote-User", "remote_user", "Remote.User", "remote_groups", "remote-userx", "authorization"]
        {
            headers.append(name(field), HeaderValue::from_static("root"));
        }
        let owned = [name("remote-user"), name("remote_groups")];
        let mut identity = Identity { spent_credentials: true, ..Identity::default() };
        identity.fields.push((name("remote-user"), HeaderValue::from_static("alice")));
        identity.tell(&owned, &mut headers);
        let left: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.contains(&("remote-user", "alice")) && left.contains(&("remote-userx", "root")));
    }
}
